import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MSTKDSegmentLib.case_roles import propose_roles, roles_in_folder
from MSTKDSegmentLib.errors import InputError, RoleError
from MSTKDSegmentLib.file_checks import VOLUME_ENDINGS
from MSTKDSegmentLib.modalities import MODALITIES
from role_names import AMBIGUOUS, NAMES, NO_INPUT, UNKNOWN


def roles(*names, tags=None):
    return {p.source: (p.modality, p.certainty) for p in propose_roles([Path(name) for name in names], tags)}


def test_a_t1_beside_a_t1_with_contrast_is_the_one_without():
    assert roles("a_t1.nii.gz", "a_t1ce.nii.gz") == {
        "a_t1.nii.gz": ("T1", "certain"),
        "a_t1ce.nii.gz": ("T1Gd", "certain"),
    }


def test_two_volumes_for_one_role_are_a_question_that_names_the_other():
    first, second = propose_roles([Path("x/a_t2.nii.gz"), Path("x/b_t2.nii.gz")])
    assert first.modality is None and second.modality is None
    assert (first.certainty, second.certainty) == ("ambiguous", "ambiguous")
    assert "b_t2.nii.gz" in first.reason and "a_t2.nii.gz" in second.reason
    assert first.candidates == ("T2",)


def test_equal_file_names_are_told_apart_by_their_folders():
    first, _ = propose_roles([Path("x/before/t2.nii.gz"), Path("x/after/t2.nii.gz")])
    assert str(Path("x/after/t2.nii.gz")) in first.reason


def test_certain_beats_likely():
    found = roles("a_t1.nii.gz", "a_t1n.nii.gz", "a_t1ce.nii.gz")
    assert found["a_t1n.nii.gz"] == ("T1", "certain")
    assert found["a_t1.nii.gz"] == NO_INPUT


def test_an_unnamed_t1_beside_a_t1_before_contrast_may_be_the_one_after():
    found = roles("t1_pre.nii.gz", "mprage.nii.gz")
    assert found == {"t1_pre.nii.gz": ("T1", "certain"), "mprage.nii.gz": AMBIGUOUS}


def test_the_plain_version_of_a_scan_is_preferred():
    plain, bias = propose_roles([Path("U_T1c.nii.gz"), Path("U_T1c_bias.nii.gz")])
    assert (plain.modality, bias.modality) == ("T1Gd", None)
    assert bias.reason == (
        '"bias" in the file name marks the bias-corrected copy of a scan; U_T1c.nii.gz is used as T1Gd instead'
    )
    found = roles("s/U_T2.nii.gz", "u/U_T2_unstripped.nii.gz", "u/U_FLAIR_unstripped.nii.gz")
    assert list(found.values()) == [("T2", "certain"), NO_INPUT, ("FLAIR", "certain")]


def test_a_folder_that_all_volumes_share_says_nothing():
    found = roles("study/T2/case/scan1.nii.gz", "study/T2/case/scan2_flair.nii.gz")
    assert list(found.values()) == [UNKNOWN, ("FLAIR", "certain")]


def test_tags_are_used_for_the_source_that_has_them():
    tags = {"c/s1": {"SeriesDescription": "AX T1", "ContrastBolusAgent": "Gd"}}
    assert roles("c/s1", "c/s2_t1", tags=tags) == {"c/s1": ("T1Gd", "certain"), "c/s2_t1": ("T1", "certain")}


def test_no_volumes_no_proposals():
    assert propose_roles([]) == []


MIXED = [
    *("U_T1.nii.gz", "U_T1_bias.nii.gz", "U_T1c.nii.gz", "U_T1c_bias.nii.gz", "U_T2.nii.gz", "V_T2.nii.gz"),
    *("U_FLAIR_unstripped.nii.gz", "U_ADC.nii.gz", "U_seg.nii.gz", "U_MPRAGE.nii.gz"),
]


@settings(deadline=None, max_examples=25)
@given(st.permutations(MIXED))
def test_the_order_of_volumes_does_not_matter(names):
    assert {p.source: p for p in propose_roles([Path(n) for n in names])} == {
        p.source: p for p in propose_roles([Path(n) for n in MIXED])
    }


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from(sorted(name for name in NAMES if name)), max_size=12, unique=True))
def test_no_role_is_ever_proposed_twice(names):
    proposals = propose_roles([Path(name) for name in names])
    given_roles = [p.modality for p in proposals if p.modality]
    assert len(given_roles) == len(set(given_roles))
    assert all((p.modality is not None) == (p.certainty in ("certain", "likely")) for p in proposals)


# --- folders --------------------------------------------------------------------------------------------------------


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def found_in(folder: Path, **more) -> dict:
    return {
        modality: path.relative_to(folder).as_posix() for modality, path in roles_in_folder(folder, **more)[0].items()
    }


def test_a_folder_of_brats(tmp_path):
    suffixes = ("t1n", "t1c", "t2w", "t2f", "seg")
    touch(tmp_path, *(f"BraTS-GLI-00002-000-{suffix}.nii.gz" for suffix in suffixes), "notes.txt", "._x_t1n.nii.gz")
    chosen, proposals = roles_in_folder(tmp_path)
    assert tuple(chosen) == MODALITIES
    assert [path.name[-10:-7] for path in chosen.values()] == ["t1n", "t1c", "t2w", "t2f"]
    assert len(proposals) == 5


@pytest.mark.parametrize("ending", VOLUME_ENDINGS)
def test_every_volume_ending_is_seen(tmp_path, ending):
    touch(tmp_path, f"case_t1ce{ending}", f"case_flair{ending}")
    assert found_in(tmp_path) == {"T1Gd": f"case_t1ce{ending}", "FLAIR": f"case_flair{ending}"}


def test_a_folder_of_ucsf_inside_its_unpacked_archive(tmp_path):
    inner = tmp_path / "UCSF-PDGM-0004_nifti"
    kinds = ("T1", "T1_bias", "T1c", "T1c_bias", "T2", "T2_bias", "FLAIR", "FLAIR_bias", "ADC", "SWI", "DTI_eddy_FA")
    touch(inner, *(f"UCSF-PDGM-0004_{kind}.nii.gz" for kind in kinds), "UCSF-PDGM-0004_tumor_segmentation.nii.gz")
    chosen, _ = roles_in_folder(tmp_path)
    assert [path.name for path in chosen.values()] == [
        f"UCSF-PDGM-0004_{kind}.nii.gz" for kind in ("T1", "T1c", "T2", "FLAIR")
    ]


def test_sub_folders_with_one_volume_each(tmp_path):
    touch(tmp_path, "1_T1/scan.nii.gz", "2_T1GD/scan.nii.gz", "4_FLAIR/scan.nii.gz", "mask.nii.gz")
    assert found_in(tmp_path) == {
        "T1": "1_T1/scan.nii.gz",
        "T1Gd": "2_T1GD/scan.nii.gz",
        "FLAIR": "4_FLAIR/scan.nii.gz",
    }


def test_volumes_in_the_folder_itself_win_over_those_below(tmp_path):
    touch(tmp_path, "t2.nii.gz", "old/t2.nii.gz")
    assert found_in(tmp_path) == {"T2": "t2.nii.gz"}


def test_a_bids_session(tmp_path):
    touch(tmp_path, "anat/sub-01_T1w.nii.gz", "anat/sub-01_ce-gd_T1w.nii.gz", "dwi/sub-01_dwi.nii.gz")
    assert found_in(tmp_path) == {"T1": "anat/sub-01_T1w.nii.gz", "T1Gd": "anat/sub-01_ce-gd_T1w.nii.gz"}


def test_dicom_folders_by_their_names(tmp_path):
    series = ("2-AX T1-11", "3-AX T1 POST GD-12", "4-AX FLAIR-13", "5-AX DWI-14")
    touch(tmp_path, *(f"08-23-1996-MR BRAIN/{name}/000001.dcm" for name in series))
    study = tmp_path / "08-23-1996-MR BRAIN"
    assert found_in(tmp_path) == {
        modality: (study / name).relative_to(tmp_path).as_posix()
        for modality, name in zip(("T1", "T1Gd", "FLAIR"), series)
    }


def test_dicom_folders_by_their_tags(tmp_path):
    descriptions = {"S1": "AX T1", "S2": "AX T1 GD", "S3": "LOCALIZER"}
    for name in descriptions:
        touch(tmp_path, f"{name}/IM0001")
        (tmp_path / name / "IM0001").write_bytes(bytes(128) + b"DICM")

    def read_tags(folder: Path) -> dict:
        return {"SeriesDescription": descriptions[folder.name]}

    assert found_in(tmp_path, read_tags=read_tags) == {"T1": "S1", "T1Gd": "S2"}
    with pytest.raises(RoleError, match="no word in the name names a sequence"):
        roles_in_folder(tmp_path)


def test_the_name_of_the_case_folder_is_no_evidence(tmp_path):
    touch(tmp_path, "T2/scan.nii.gz")
    with pytest.raises(RoleError, match=r"scan\.nii\.gz: no word in the file name"):
        roles_in_folder(tmp_path / "T2")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("a_t2.nii.gz", "b_t2.nii.gz", "a_flair.nii.gz"), r"a_t2\.nii\.gz: .*b_t2\.nii\.gz would be T2 too"),
        (("T1 pre post.nii.gz", "flair.nii.gz"), "both before"),
        (("BRATS_001.nii.gz",), "4-D"),
        (("a_seg.nii.gz", "a_adc.nii.gz"), "a_adc.nii.gz: .*diffusion"),
        (("before/t2.nii.gz", "after/t2.nii.gz"), "would be T2 too"),
        (("readme.txt",), "holds no volume"),
        (tuple(f"scan{i}.nii.gz" for i in range(12)), "and 4 more"),
    ],
)
def test_an_unclear_folder_is_refused_with_reasons_and_what_to_do(tmp_path, names, says):
    touch(tmp_path, *names)
    with pytest.raises(RoleError, match=says) as error:
        roles_in_folder(tmp_path)
    assert all(flag in str(error.value) for flag in ("--t1,", "--t1gd", "--t2", "--flair"))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_what_the_user_settled_raises_no_question(tmp_path):
    for name in ("a_t1ce.nii.gz", "b_t1ce.nii.gz", "c_flair.nii.gz"):
        (tmp_path / name).touch()
    with pytest.raises(RoleError, match="not clear"):
        roles_in_folder(tmp_path)
    with pytest.raises(RoleError, match="not clear"):
        roles_in_folder(tmp_path, settled={"T2"})
    roles, _ = roles_in_folder(tmp_path, settled={"T1Gd"})
    assert {name: path.name for name, path in roles.items()} == {"FLAIR": "c_flair.nii.gz"}


def by_look(proposals, settled):
    """As if the first volume of which nothing is known looked like FLAIR."""
    found = list(proposals)
    for index, proposal in enumerate(found):
        if proposal.certainty == "unknown" and "FLAIR" not in settled:
            found[index] = replace(proposal, modality="FLAIR", certainty="likely", reason="by its look (p 0.97)")
            break
    return found


def test_the_error_tells_what_looks_propose_and_how_to_accept_it(tmp_path):
    touch(tmp_path, "scan1.nii.gz", "scan2.nii.gz")
    with pytest.raises(RoleError) as error:
        roles_in_folder(tmp_path, by_look=by_look)
    hint = "proposed is scan1.nii.gz as FLAIR by its look (p 0.97); accept this with --by-look, or name the files"
    assert hint in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(RoleError) as error:
        roles_in_folder(tmp_path, by_look=lambda proposals, _settled: list(proposals))
    assert "by-look" not in str(error.value)


def test_looks_are_taken_where_that_is_asked_for(tmp_path):
    touch(tmp_path, "scan1.nii.gz", "scan2.nii.gz", "a_t2.nii.gz")
    assert found_in(tmp_path, by_look=by_look) == {"T2": "a_t2.nii.gz"}  # clear enough without
    assert found_in(tmp_path, by_look=by_look, accept_looks=True) == {"T2": "a_t2.nii.gz", "FLAIR": "scan1.nii.gz"}


def test_loose_dicom_slices_are_refused(tmp_path):
    touch(tmp_path, "IM1.dcm", "IM2.dcm")
    with pytest.raises(RoleError, match="a folder of its own"):
        roles_in_folder(tmp_path)


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        roles_in_folder(tmp_path / "nowhere")


def test_every_subset_of_files_gives_that_subset(tmp_path):
    files = {"T1": "c_t1.nii.gz", "T1Gd": "c_t1ce.nii.gz", "T2": "c_t2.nii.gz", "FLAIR": "c_flair.nii.gz"}
    for size in range(1, 5):
        for subset in itertools.combinations(MODALITIES, size):
            case = tmp_path / "-".join(subset)
            touch(case, *(files[modality] for modality in subset))
            assert found_in(case) == {modality: files[modality] for modality in subset}
