"""Training's data: finding cases, label conventions, checks, splits, the cache and the commands for them."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import training_phantom as made
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from MSTKDSegmentLib.errors import InputError, OutputError
from MSTKDSegmentLib.modalities import MODALITIES
from MSTKDSegmentLib.patients import patient_of
from MSTKDSegmentLib.pipeline import read_case

from training import cache as cache_module
from training.cache import CachedCases, cache_fingerprint, is_current, load_case, prepare_case
from training.cases import LabelledCase, collection_of
from training.checks import check_case, check_cases, read_hashes, shared_voxels, voxel_hashes, write_report
from training.commands import check, prepare, split
from training.discovery import discover, find_case, find_cases
from training.files import replacing
from training.labels import CAVITY, convention_of, label_convention, read_labels
from training.splits import make_splits, part, read_splits, write_splits


def fake(name, patient=None, **fields):
    return LabelledCase(name, patient or patient_of(name), {}, Path(f"{name}_seg.nii.gz"), "folder", **fields)


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Three cases of two patients in the forms of BraTS 2018 and 2024; read only."""
    root = tmp_path_factory.mktemp("collection")
    made.write_labelled_case(root / "HGG", "Brats18_CBICA_AAB_1", seed=1)
    for number in (100, 101):
        name = f"BraTS-GLI-00005-{number}"
        made.write_labelled_case(root, name, "brats2024", "brats2023", seed=number)
    return root


@pytest.fixture(scope="module")
def prepared(collection, tmp_path_factory):
    """A cache of the collection; read only."""
    out = tmp_path_factory.mktemp("cache")
    for case in find_cases(collection):
        prepare_case(case, out)
    return out


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / folder.name))


# --- discovery ---


@pytest.mark.parametrize(
    ("below", "name", "style", "layout", "patient"),
    [
        ("HGG", "Brats17_TCIA_241_1", "brats2018", "brats2017", "TCIA_241"),
        ("LGG", "Brats18_TCIA10_241_1", "brats2018", "brats2018", "TCIA_241"),
        ("HGG", "BraTS19_2013_11_1", "brats2018", "brats2019", "2013_11"),
        (".", "BraTS20_Training_001", "brats2018", "brats2020", "BraTS20_Training_001"),
        (".", "BraTS2021_00005", "brats2018", "brats2021", "BraTS-GLI-00005"),
        (".", "BraTS-GLI-00005-000", "brats2023", "brats2023", "BraTS-GLI-00005"),
        (".", "BraTS-GLI-02063-101", "brats2023", "brats2024", "BraTS-GLI-02063"),
        (".", "FeTS2022_00005", "brats2018", "fets", "BraTS-GLI-00005"),
        ("site A/new", "Doe", "brats2018", "folder", "Doe"),
    ],
)
def test_each_collection_is_found(below, name, style, layout, patient, tmp_path):
    made.write_labelled_case(tmp_path / below, name, style=style)
    (tmp_path / "partitioning_1.csv").write_text("Partition_ID,Subject_ID\n1,FeTS2022_00005\n")
    (case,) = find_cases(tmp_path)
    assert (case.name, case.layout, case.patient) == (name, layout, patient)
    assert [case.images[m].name.split(name)[1] for m in MODALITIES] == [
        f"{ending}.nii.gz" for ending in made.STYLES[style][:4]
    ]
    assert case.segmentation.name.endswith("seg.nii.gz")
    assert find_case(tmp_path / below / name) == case


def test_the_misnamed_segmentation_of_brats_2020_is_taken(tmp_path):
    case = made.write_labelled_case(tmp_path, "BraTS20_Training_355")
    (case / "BraTS20_Training_355_seg.nii.gz").rename(case / "W39_1998.09.19_Segm.nii.gz")
    assert find_case(case).segmentation.name == "W39_1998.09.19_Segm.nii.gz"


def test_name_mapping_joins_the_years_of_a_patient(tmp_path):
    made.write_labelled_case(tmp_path, "BraTS20_Training_001")
    made.write_labelled_case(tmp_path, "BraTS19_CBICA_AAB_1")
    (tmp_path / "name_mapping.csv").write_text(
        "Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID,"
        "BraTS_2020_subject_ID\nHGG,Brats17_CBICA_AAB_1,Brats18_CBICA_AAB_1,NA,BraTS19_CBICA_AAB_1,"
        "BraTS20_Training_001\n"
    )
    assert [case.patient for case in find_cases(tmp_path)] == ["CBICA_AAB", "CBICA_AAB"]


def test_junk_and_result_folders_are_passed_over(tmp_path):
    case = made.write_labelled_case(tmp_path, "BraTS2021_00005")
    (case / "._BraTS2021_00005_t1.nii.gz").write_bytes(b"mac")
    (tmp_path / ".DS_Store").write_bytes(b"mac")
    copied(case, tmp_path / ".Trash")
    results = tmp_path / "results"
    results.mkdir()
    for name in ("BraTS2021_00005_seg.nii.gz", "BraTS2021_00006_seg.nii.gz"):
        shutil.copy(case / "BraTS2021_00005_seg.nii.gz", results / name)
    found = discover(tmp_path)
    assert [c.name for c in found.cases] == ["BraTS2021_00005"]
    assert found.problems == ()


@pytest.mark.parametrize(("left_out", "words"), [("t2", "T2 not found"), ("seg", "expected one")])
def test_an_incomplete_case_is_a_problem_that_names_it(left_out, words, tmp_path):
    made.write_labelled_case(tmp_path, "Good")
    case = made.write_labelled_case(tmp_path, "Bad")
    (case / f"Bad_{left_out}.nii.gz").unlink()
    found = discover(tmp_path)
    assert [c.name for c in found.cases] == ["Good"]
    assert len(found.problems) == 1
    assert str(case) in found.problems[0]
    assert words in found.problems[0]
    with pytest.raises(InputError, match=words):
        find_case(case)
    with pytest.raises(InputError, match=f"1 cases cannot be used: .*{words}"):
        find_cases(tmp_path)
    assert [c.name for c in found.select(["Good"])] == ["Good"]
    with pytest.raises(InputError, match=f"Bad not found among 1 cases .*{words}"):
        found.select(["Good", "Bad"])


def test_two_folders_of_one_name_are_a_problem(tmp_path):
    case = made.write_labelled_case(tmp_path / "HGG", "Brats18_2013_1_1")
    copied(case, tmp_path / "LGG")
    found = discover(tmp_path)
    assert len(found.cases) == 1
    assert "second case Brats18_2013_1_1" in found.problems[0]


def test_a_folder_without_cases_and_a_wrong_layout_say_what_was_expected(tmp_path):
    with pytest.raises(InputError, match="no labelled case found"):
        find_cases(tmp_path)
    with pytest.raises(InputError, match="no such datalist"):
        discover(tmp_path, "datalist")
    with pytest.raises(InputError, match="unknown layout 'brats'"):
        discover(tmp_path, "brats")
    with pytest.raises(InputError, match="no such folder of cases"):
        discover(tmp_path / "nowhere")


def test_linked_folders_are_followed_and_circles_end(tmp_path):
    case = made.write_labelled_case(tmp_path / "store", "Doe")
    data = tmp_path / "data"
    data.mkdir()
    try:
        (data / "Doe").symlink_to(case, target_is_directory=True)
        (data / "again").symlink_to(data, target_is_directory=True)
    except OSError:
        pytest.skip("links cannot be made here")
    assert [c.name for c in find_cases(data)] == ["Doe"]


# --- MSD ---


@pytest.fixture(scope="module")
def msd(tmp_path_factory):
    return made.write_msd(tmp_path_factory.mktemp("msd"))


def test_msd_channels_reach_the_product_in_the_right_order(msd):
    cases = find_cases(msd.parent)
    assert [(case.name, case.layout, case.patient) for case in cases] == [
        ("BRATS_001", "msd", "BRATS_001"),
        ("BRATS_002", "msd", "BRATS_002"),
    ]
    sources = cases[1].sources()
    images, labels = made.phantom(1)
    for index, modality in enumerate(MODALITIES):
        assert np.array_equal(sitk.GetArrayViewFromImage(sources[modality].image), images[index])
    assert np.array_equal(sitk.GetArrayViewFromImage(read_labels(cases[1])), labels)
    prepared = read_case(sources)
    assert prepared.subset == MODALITIES
    assert cases[1].files.keys() == {"images", "segmentation"}


def test_msd_without_channel_names_or_labels_is_a_problem(msd, tmp_path):
    root = copied(msd, tmp_path)
    (root / "labelsTr" / "BRATS_002.nii.gz").unlink()
    assert "BRATS_002.nii.gz: no segmentation" in discover(root).problems[0]
    (root / "dataset.json").write_text(json.dumps({"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "?"}}))
    found = discover(tmp_path, "msd")
    assert found.cases == ()
    assert "does not name T2" in found.problems[0]


def test_a_truncated_4d_file_is_refused(msd, tmp_path):
    root = copied(msd, tmp_path)
    path = root / "imagesTr" / "BRATS_001.nii.gz"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(InputError, match=r"BRATS_001\.nii\.gz: the file is damaged or cut short"):
        find_cases(root)[0].sources()


# --- datalists ---


def files_of(folder: Path) -> list[str]:
    return [f"{folder.name}/{folder.name}{ending}.nii.gz" for ending in made.STYLES["brats2018"]]


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    root = tmp_path_factory.mktemp("listed")
    return made.write_labelled_case(root, "P1", "brats2023")


def datalist(folder: Path, data, name="list.json") -> Path:
    path = folder.parent / name
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def test_every_form_of_a_json_datalist_means_the_same(listed):
    *images, label = files_of(listed)
    flair_first = [images[3], images[1], images[0], images[2]]
    keys = dict(zip(("t1", "t1gd", "t2", "flair"), images))
    named = {"case": "P1", "label": label}
    forms = [
        {"training": [{**named, "image": images}]},
        [{"image": dict(zip(MODALITIES, images)), "label": label}],
        {"validation": [{**named, **keys}]},
        {"modalities": ["FLAIR", "t1ce", "t1", "t2"], "training": [{**named, "image": flair_first}]},
    ]
    expected = [{m: listed.parent / path for m, path in zip(MODALITIES, images)}] * len(forms)
    found = [find_cases(datalist(listed, form))[0] for form in forms]
    assert [case.images for case in found] == expected
    assert {(case.name, case.patient, case.convention) for case in found} == {("P1", "P1", None)}


def test_a_list_in_another_order_than_its_file_names_is_refused(listed):
    *images, label = files_of(listed)
    path = datalist(listed, {"training": [{"image": images[::-1], "label": label}]})
    assert 'is named FLAIR; give the order of the lists as "modalities"' in discover(path).problems[0]


def test_a_csv_datalist_names_patient_and_convention(listed):
    *images, label = files_of(listed)
    lines = ["case,patient,t1,t1gd,t2,flair,segmentation,convention"]
    lines += [",".join(("A", "Doe", *images, label, "brats2023")), ",".join(("B", "Doe", *images, "missing.nii", ""))]
    found = discover(datalist(listed, "\n".join(lines), "list.csv"))
    (case,) = found.cases
    assert (case.name, case.patient, case.convention, case.layout) == ("A", "Doe", "brats2023", "datalist")
    assert "line 3" in found.problems[0]
    assert "missing.nii: no such file" in found.problems[0]


def test_a_4d_image_in_a_datalist_needs_its_channels(msd):
    entry = {"image": "imagesTr/BRATS_001.nii.gz", "label": "labelsTr/BRATS_001.nii.gz", "convention": "msd"}
    path = msd / "list.json"
    path.write_text(json.dumps({"training": [entry]}))
    assert 'add "modalities"' in discover(path).problems[0]
    path.write_text(json.dumps({"modalities": list(made.MSD_CHANNELS), "training": [entry]}))
    (case,) = find_cases(path)
    assert case.channels == {"T1": 1, "T1Gd": 2, "T2": 3, "FLAIR": 0}
    path.unlink()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not a datalist"),
        ('{"test": []}', 'no list "training"'),
        ('{"training": [1]}', r"training\[0\]: an entry is a dictionary"),
        ('{"modalities": ["t1"], "training": []}', '"modalities" must name'),
    ],
)
def test_what_is_no_datalist_is_said(text, words, tmp_path):
    path = tmp_path / "list.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        discover(path)


# --- labels ---


@pytest.mark.parametrize(
    ("name", "values", "convention"),
    [
        ("BraTS20_1", (0, 1, 2, 4), "brats2021"),
        ("FeTS2022_00000", (0, 1, 2), "brats2021"),
        ("BraTS-GLI-00005-000", (0, 1, 2, 3), "brats2023"),
        ("BraTS-GLI-02063-100", (0, 1, 2, 3, 4), "brats2024"),
        ("BraTS-GLI-02063-100", (0, 1, 2, 4), "brats2024"),
        ("BraTS-GLI-00002-000", (0, 1, 2, 4), "brats2021"),
        ("MSD_BRATS_001", (0, 1, 2, 3), "msd"),
        ("BRATS_001", (0, 1, 2, 3), "msd"),
        ("any", (0, 1, 2), "brats2023"),
        ("any", (0, 1, 2, 4), "brats2021"),
        ("any", (0, 3, 4), "brats2024"),
    ],
)
def test_label_conventions(name, values, convention):
    chosen, reason = convention_of(fake(name), values)
    assert chosen == label_convention(fake(name), values) == convention
    assert reason


def test_an_explicit_convention_wins_and_contradictions_are_errors():
    assert convention_of(fake("BraTS20_1", convention="msd"), (0, 3)) == ("msd", "named by the user")
    with pytest.raises(InputError, match="value 3, which brats2020 does not have"):
        convention_of(fake("BraTS20_Training_001"), (0, 1, 2, 3))
    with pytest.raises(InputError, match="the value 7 is of no known"):
        convention_of(fake("any"), (0, 1, 7))
    with pytest.raises(InputError, match="name theirs with --convention"):
        convention_of(fake("BraTS-PED-00001-000"), (0, 1, 2, 3))


def test_the_cavity_is_background_unless_it_is_kept(collection):
    case = find_case(collection / "BraTS-GLI-00005-100")
    plain, kept = (sitk.GetArrayFromImage(read_labels(case, keep)) for keep in (False, True))
    assert sorted(np.unique(plain)) == [0, 1, 2, 3]
    assert np.count_nonzero(kept == CAVITY) == 2
    assert not plain[kept == CAVITY].any()
    assert np.array_equal(plain[kept != CAVITY], kept[kept != CAVITY])


def test_interpolated_labels_are_refused(listed, tmp_path):
    case = copied(listed, tmp_path)
    _, labels = made.phantom()
    made.write_array(case / "P1_seg.nii.gz", labels.astype(np.float32) * 0.9)
    with pytest.raises(InputError, match=r"P1_seg\.nii\.gz: holds the value .* nearest-neighbour"):
        read_labels(find_case(case))


# --- checks ---


def texts(report, severity):
    return [finding.text for finding in report.findings if finding.severity == severity]


def test_good_cases_are_reported_with_their_convention_and_patient(collection, tmp_path):
    reports = check_cases(find_cases(collection))
    assert [report.usable for report in reports] == [True] * 3
    assert [report.convention for report in reports] == ["brats2024", "brats2024", "brats2021"]
    assert texts(reports[0], "info") == ["of the same patient (BraTS-GLI-00005) as BraTS-GLI-00005-101"]
    assert [texts(report, "warning") for report in reports] == [[], [], []]
    assert reports[0].label_voxels["RC"] == 2
    path = write_report(reports, tmp_path / "report")
    assert "3 cases, 0 of them unusable" in path.read_text(encoding="utf-8")
    assert "| brats2021 | a name of brats2018: ET is 4 | 1 |" in path.read_text(encoding="utf-8")
    hashes = read_hashes(path.parent)
    assert hashes[reports[2].name] == voxel_hashes(find_case(collection / "HGG" / "Brats18_CBICA_AAB_1"))
    assert sorted(p.name for p in path.parent.iterdir()) == ["checks.json", "checks.md"]


def changed(tmp_path, ending, change):
    """The findings about a case after `change` of one file's path and array."""
    case = made.write_labelled_case(tmp_path, "P1")
    path = case / f"P1_{ending}.nii.gz"
    change(path, sitk.GetArrayFromImage(sitk.ReadImage(str(path))))
    return check_case(find_case(case))


def set_voxel(value):
    def change(path, array):
        array = array.astype(np.float32)
        array[14, 14, 14] = value
        made.write_array(path, array)

    return change


@pytest.mark.parametrize(
    ("ending", "change", "words"),
    [
        ("t1", lambda path, _: path.write_bytes(path.read_bytes()[:-300]), "damaged or cut short"),
        ("t2", set_voxel(np.nan), "NaN or infinite"),
        ("t2", set_voxel(np.inf), "NaN or infinite"),
        ("flair", lambda path, array: made.write_array(path, np.zeros_like(array)), "every voxel has the value 0"),
        ("seg", set_voxel(9), "the value 9 is of no known label convention"),
        ("t2", lambda path, _: shutil.copy(path.with_name("P1_t1.nii.gz"), path), "T1 and T2 hold the same voxels"),
        ("seg", lambda path, array: made.write_array(path, np.roll(array, 15, 1)), "of the labelled voxels lie inside"),
    ],
)
def test_unusable_files_are_errors(ending, change, words, tmp_path):
    report = changed(tmp_path, ending, change)
    assert not report.usable
    assert any(words in text for text in texts(report, "error"))


def test_odd_files_are_warnings(tmp_path):
    def elsewhere(path, array):
        image = sitk.GetImageFromArray(array)
        image.SetOrigin((0.5, 0, 0))
        sitk.WriteImage(image, str(path))

    report = changed(tmp_path / "a", "seg", lambda path, array: made.write_array(path, np.zeros_like(array)))
    assert "no tumour is labelled" in texts(report, "warning")[0]
    assert report.usable
    assert "on a grid of its own" in texts(changed(tmp_path / "b", "seg", elsewhere), "warning")[0]
    assert "T2: on another grid than T1Gd" in texts(changed(tmp_path / "c", "t2", elsewhere), "warning")[0]


def test_volumes_far_apart_are_an_error(tmp_path):
    def elsewhere(path, array):
        image = sitk.GetImageFromArray(array)
        image.SetOrigin((500.0, 0, 0))
        sitk.WriteImage(image, str(path))

    assert "do not overlap" in texts(changed(tmp_path, "t2", elsewhere), "error")[0]


def test_copies_under_other_names_are_noticed(tmp_path):
    made.write_labelled_case(tmp_path, "BraTS2021_00005", seed=1)
    made.write_labelled_case(tmp_path, "Copy", seed=1)
    made.write_labelled_case(tmp_path, "Other", seed=2)
    reports = check_cases(find_cases(tmp_path))
    assert [any("very voxels" in text for text in texts(r, "warning")) for r in reports] == [True, True, False]
    assert shared_voxels({r.name: r.voxel_sha256 for r in reports}) == [["BraTS2021_00005", "Copy"]]


def test_a_4_among_cases_with_et_3_is_pointed_out(tmp_path):
    made.write_labelled_case(tmp_path, "A", "brats2023", seed=1)
    made.write_labelled_case(tmp_path, "B", "brats2021", seed=2)
    reports = check_cases(find_cases(tmp_path))
    assert texts(reports[0], "warning") == []
    assert texts(reports[1], "warning")[0].startswith("read as brats2021")


# --- splits ---


NAMES = st.lists(st.integers(0, 30), min_size=12, max_size=60).map(
    lambda patients: [fake(f"BraTS-GLI-{p:05d}-{100 + i}") for i, p in enumerate(patients)]
)


def owners(splits, parts):
    return {name: {splits.patients[case] for case in splits.parts[name]} for name in parts}


@settings(deadline=None, max_examples=25)
@given(NAMES, st.integers(0, 5), st.randoms())
def test_splits_are_by_patient_complete_and_independent_of_order(cases, seed, random):
    assume(len({case.patient for case in cases}) >= 10)
    splits = make_splits(cases, seed, validation=0.2, test=0.2)
    parts = splits.parts
    assert sorted(name for members in parts.values() for name in members) == sorted(case.name for case in cases)
    patients = owners(splits, parts)
    assert not patients["train"] & patients["val"]
    assert not (patients["train"] | patients["val"]) & patients["test"]
    largest = max(sum(c.patient == case.patient for c in cases) for case in cases)
    assert abs(len(parts["test"]) - 0.2 * len(cases)) <= largest
    assert abs(len(parts["val"]) - 0.2 * len(cases)) <= largest
    shuffled = list(cases)
    random.shuffle(shuffled)
    assert make_splits(shuffled, seed, validation=0.2, test=0.2) == splits


@settings(deadline=None, max_examples=25)
@given(NAMES, st.integers(2, 4))
def test_each_case_is_validated_in_one_fold(cases, folds):
    assume(len({case.patient for case in cases}) >= 10)
    splits = make_splits(cases, 0, test=0.2, folds=folds)
    rest = {case.name for case in cases} - set(splits.parts["test"])
    validated = [name for n in range(folds) for name in splits.parts[f"fold_{n}/val"]]
    assert sorted(validated) == sorted(rest)
    for n in range(folds):
        patients = owners(splits, (f"fold_{n}/train", f"fold_{n}/val"))
        assert not set.intersection(*patients.values())
        assert set(splits.parts[f"fold_{n}/train"]) | set(splits.parts[f"fold_{n}/val"]) == rest


def test_another_seed_gives_another_split():
    cases = [fake(f"P{i}") for i in range(40)]
    assert make_splits(cases, 0).parts != make_splits(cases, 1).parts
    assert {name: len(members) for name, members in make_splits(cases, 0).parts.items()} == {
        "test": 8,
        "val": 4,
        "train": 28,
    }


@pytest.mark.parametrize("seed", range(6))
def test_cases_with_the_same_voxels_stay_together(seed):
    cases = [fake(f"P{i}") for i in range(12)]
    hashes = {case.name: {"T1": case.name, "labels": "same"} for case in cases}
    hashes["P3"]["T1"] = hashes["P7"]["T1"] = "copy"
    hashes["P7"]["T2"] = hashes["P9"]["T2"] = "another"
    splits = make_splits(cases, seed, hashes=hashes)
    homes = [{part for part, members in splits.parts.items() if name in members} for name in ("P3", "P7", "P9")]
    assert homes[0] == homes[1] == homes[2]
    assert splits.patients["P9"] == "P3"
    assert splits.patients["P1"] == "P1"


def test_impossible_splits_are_errors():
    cases = [fake(f"P{i}") for i in range(3)]
    with pytest.raises(ValueError, match="too few: nothing is left for val"):
        make_splits(cases, 0)
    with pytest.raises(ValueError, match="must be shares"):
        make_splits(cases, 0, validation=0.5, test=0.5)
    with pytest.raises(ValueError, match="at least 2"):
        make_splits(cases, 0, folds=1)
    with pytest.raises(ValueError, match="occur twice: P0"):
        make_splits([*cases, fake("P0")], 0)


def test_a_split_file_is_read_back_and_never_replaced_unasked(tmp_path):
    path = tmp_path / "splits.json"
    cases = [fake(f"P{i}") for i in range(20)]
    for folds in (None, 3):
        splits = make_splits(cases, 4, folds=folds, hashes={"P0": {"T1": "x"}})
        write_splits(splits, path, overwrite=folds is not None)
        assert read_splits(path) == {name: list(members) for name, members in splits.parts.items()}
        stored = json.loads(path.read_text(encoding="utf-8"))
        assert (stored["format"], stored["seed"], stored["sha256"]) == (1, 4, {"P0": {"T1": "x"}})
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"splits\.json exists"):
        write_splits(splits, path)
    assert path.read_bytes() == before
    assert part(read_splits(path), "fold_0/val", path)
    with pytest.raises(ValueError, match="no part 'val'; it has test, fold_0/train"):
        part(read_splits(path), "val", path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"train": ["a", "b"], "val": ["b"]}, "more than one split: b"),
        ({"train": ["a", "a"]}, "twice in train: a"),
        ({"train": "a"}, "no list of case names"),
        ({"train": ["BraTS-GLI-00005-100"], "val": ["BraTS-GLI-00005-101"]}, "patients with cases in more than one"),
        ([], "not a split file"),
        ({"format": 9}, "format 9"),
        ({"format": 1, "parts": {"train": ["a"], "val": ["b"]}, "patients": {"a": "p", "b": "p"}}, "patients .*: p"),
        ({"format": 1, "parts": {"test": ["a"]}, "folds": [{"train": ["b"], "val": ["a"]}]}, "more than one split: a"),
    ],
)
def test_split_files_that_would_leak_are_refused(data, words, tmp_path):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=words):
        read_splits(path)


# --- cache ---


def test_prepared_case_is_normalised_cut_to_the_brain_and_relabelled(prepared):
    images, labels = load_case(prepared, "BraTS-GLI-00005-100")
    assert images.shape == (4, *labels.shape)
    assert (images.dtype, labels.dtype) == (np.float16, np.uint8)
    assert np.bincount(labels.ravel())[CAVITY] == 2
    assert all(side - 6 <= cut <= side for side, cut in zip(made.SHAPE, labels.shape))
    t1 = images[0].astype(np.float32)
    assert t1[t1 != 0].mean() == pytest.approx(0, abs=0.05)
    # T1Gd is brightest where the label says ET.
    assert images[1][labels == 3].mean() > images[1][labels == 2].mean() + 1


def test_preparing_gives_the_values_that_the_version_stands_for(tmp_path):
    """When this fails, `read_case` prepares cases in another way: raise CACHE_VERSION and put the new values here."""
    z, y, x = np.mgrid[:12, :14, :16]
    brain = (abs(z - 5.5) < 4) & (abs(y - 6.5) < 5) & (abs(x - 7.5) < 6)  # 8 x 10 x 12 voxels
    for index, ending in enumerate(made.STYLES["brats2018"][:4]):
        ramp = 100 + x + (index + 1) * y + 2 * z
        ramp[5, 6, 7] = 9999  # an artefact, which must not enter mean and deviation
        made.write_array(tmp_path / f"A{ending}.nii.gz", np.where(brain, ramp, 0).astype(np.int16))
    made.write_array(tmp_path / "A_seg.nii.gz", (brain & (x == 8) & (z < 7)).astype(np.uint8))
    prepare_case(find_case(tmp_path), tmp_path)
    images, labels = load_case(tmp_path, tmp_path.name)
    assert cache_module.CACHE_VERSION == 2
    assert images.shape == (4, 8, 10, 12)
    assert np.bincount(labels.ravel()).tolist() == [910, 50]  # 5 x 10 voxels
    assert labels[0, 0].tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert images[:, 3, 4, 5].tolist() == [8.0] * 4
    # (value - mean) / deviation by hand: numpy's clip, mean and std of the ramp at percentiles 0.5 and 99.5
    assert images[:, 0, 0, 0].tolist() == pytest.approx([-2.6534, -2.6519, -2.5156, -2.3776], abs=3e-3)


def test_a_cache_notices_changed_files_conventions_and_versions(collection, tmp_path, monkeypatch):
    folder = copied(collection / "HGG" / "Brats18_CBICA_AAB_1", tmp_path)
    case, cache = find_case(folder), tmp_path / "cache"
    assert not is_current(case, cache)
    prepare_case(case, cache)
    assert is_current(case, cache)
    os.utime(case.images["T1"], (1, 1))  # a copy is the same by its contents
    assert is_current(case, cache)
    assert not is_current(LabelledCase(**{**vars(case), "convention": "brats2021"}), cache)
    images, _ = made.phantom(77)
    made.write_array(case.images["T1"], images[0])
    assert not is_current(case, cache)
    prepare_case(case, cache)
    assert is_current(case, cache)
    monkeypatch.setattr(cache_module, "PREPROCESSING", "another")
    assert not is_current(case, cache)
    with pytest.raises(ValueError, match="prepared by another version: run `python -m training prepare`"):
        load_case(cache, case.name)
    assert [path.name for path in cache.iterdir()] == ["Brats18_CBICA_AAB_1.npz"]


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: data[:900] + b"x" * 50 + data[950:]])
def test_missing_and_damaged_cache_files_say_what_to_do(prepared, tmp_path, damage):
    with pytest.raises(FileNotFoundError, match=r"Doe\.npz is missing: run `python -m training prepare`"):
        load_case(tmp_path, "Doe")
    (tmp_path / "Doe.npz").write_bytes(damage((prepared / "BraTS-GLI-00005-100.npz").read_bytes()))
    with pytest.raises(ValueError, match=r"Doe\.npz is damaged .*: delete it and run"):
        load_case(tmp_path, "Doe")


def test_a_cache_of_the_first_version_is_refused(tmp_path):
    np.savez(tmp_path / "Doe.npz", images=np.zeros((4, 8, 8, 8)), labels=np.zeros((8, 8, 8)), version=1)
    with pytest.raises(ValueError, match="prepared by another version"):
        load_case(tmp_path, "Doe")


def test_the_fingerprint_depends_on_names_and_labels_but_not_on_order(prepared):
    names = sorted(path.stem for path in prepared.glob("*.npz"))
    assert cache_fingerprint(prepared, names) == cache_fingerprint(prepared, names[::-1])
    assert cache_fingerprint(prepared, names) != cache_fingerprint(prepared, names[1:])


def test_cases_beyond_the_memory_limit_are_read_each_time(prepared):
    names = sorted(path.stem for path in prepared.glob("*.npz"))
    one = sum(array.nbytes for array in load_case(prepared, names[0]))
    cases = CachedCases(prepared, names, memory_limit_bytes=one)
    assert len(cases) == 3
    assert cases[0][0] is cases[0][0]
    assert cases[-1][0] is not cases[-1][0]
    for again in (cases, CachedCases(prepared, names), pickle.loads(pickle.dumps(cases))):
        for name, (images, labels) in zip(names, again):
            expected = load_case(prepared, name)
            assert np.array_equal(images, expected[0])
            assert np.array_equal(labels, expected[1])
    assert len(pickle.dumps(CachedCases(prepared, names))) < 2000
    with pytest.raises(IndexError):
        cases[3]
    with pytest.raises(FileNotFoundError, match=r"Doe\.npz is missing"):
        CachedCases(prepared, [*names, "Doe"], memory_limit_bytes=0)


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert [(p.name, p.read_text(encoding="utf-8")) for p in tmp_path.iterdir()] == [("a.json", "old")]


# --- commands ---


def call(command, *arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    command.run(parser.parse_args([str(argument) for argument in arguments]))


def test_check_split_prepare_one_after_the_other(tmp_path, capsys):
    data = tmp_path / "data"
    for seed in range(5):
        made.write_labelled_case(data, f"P{seed}", seed=seed)
    call(check, "--data", data, "--report", tmp_path / "report")
    out = tmp_path / "splits.json"
    shares = ("--validation", 0.2, "--test", 0.2)
    call(split, "--data", data, "--out", out, "--report", tmp_path / "report", *shares)
    splits = read_splits(out)
    assert {name: len(cases) for name, cases in splits.items()} == {"test": 1, "val": 1, "train": 3}
    with pytest.raises(OutputError, match="exists"):
        call(split, "--data", data, "--out", out, *shares)
    cache = tmp_path / "cache"
    call(prepare, "--data", data, "--splits", out, "--cache", cache)
    assert sorted(path.name for path in cache.glob("*.npz")) == [f"P{n}.npz" for n in range(5)]
    assert "3/5 P2: prepared in" in capsys.readouterr().out
    call(prepare, "--data", data, "--cache", cache, "--processes", 2)
    assert capsys.readouterr().out == "5 of 5 cases are prepared already\n"


def test_folds_of_the_training_part_alone(tmp_path):
    data = tmp_path / "data"
    for seed in range(5):
        made.write_labelled_case(data, f"P{seed}", seed=seed)
    given = tmp_path / "given.json"
    given.write_text(json.dumps({"train": ["P0", "P1", "P3"], "val": ["P2", "P4"]}))
    out = tmp_path / "folds.json"
    call(split, "--data", data, "--within", given, "--test", 0, "--folds", 3, "--out", out)
    parts = read_splits(out)
    assert sorted(parts) == [f"fold_{n}/{kind}" for n in range(3) for kind in ("train", "val")]
    assert sorted(name for n in range(3) for name in parts[f"fold_{n}/val"]) == ["P0", "P1", "P3"]
    given.write_text(json.dumps({"train": ["P0", "P9"], "val": ["P2"]}))
    with pytest.raises(InputError, match=r"data: P9 not found among 5 cases; check --data and the split file"):
        call(split, "--data", data, "--within", given, "--test", 0, "--folds", 2, "--out", tmp_path / "other.json")


def test_bad_cases_block_prepare_unless_they_are_skipped(tmp_path, capsys):
    data = tmp_path / "data"
    for seed, name in enumerate(("Good", "Bad", "Incomplete")):
        case = made.write_labelled_case(data, name, seed=seed)
    (case / "Incomplete_t1.nii.gz").unlink()
    (data / "Bad" / "Bad_t1.nii.gz").write_bytes(b"")
    cache = tmp_path / "cache"
    with pytest.raises(InputError, match="Incomplete: T1 not found"):
        call(prepare, "--data", data, "--cache", cache)
    shutil.rmtree(case)
    with pytest.raises(InputError, match=r"cannot be used: Bad; see .*checks\.md\. Repair them or use --skip-bad"):
        call(prepare, "--data", data, "--cache", cache)
    assert not list(cache.glob("*.npz"))
    call(prepare, "--data", data, "--cache", cache, "--skip-bad")
    assert [path.name for path in cache.glob("*.npz")] == ["Good.npz"]
    with pytest.raises(InputError, match="1 of 2 cases cannot be used"):
        call(check, "--data", data, "--report", tmp_path / "report")
    assert "the file is empty" in (tmp_path / "report" / "checks.md").read_text(encoding="utf-8")


def test_names_tell_collections():
    assert collection_of("BraTS20_Training_001") == "brats2020"
    assert collection_of("Case_1") is None
    assert patient_of("Brats17_CBICA_AAB_1") == patient_of("BraTS19_CBICA_AAB_1") == "CBICA_AAB"
