"""What a volume looks like: features of known values, the joint proposal against brute force, doubts, real patients."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from MSTKDSegmentLib import appearance
from MSTKDSegmentLib.appearance import (
    FEATURES,
    NONE_WEIGHT,
    Look,
    doubts,
    features,
    look,
    propose_by_look,
    read_model,
    shipped_model,
    swapped,
)
from MSTKDSegmentLib.errors import WeightsError
from MSTKDSegmentLib.look_roles import settled_by_look
from MSTKDSegmentLib.modalities import MODALITIES, SUBSETS
from MSTKDSegmentLib.overlap import brain_alone
from MSTKDSegmentLib.roles import RoleProposal, propose_from_dicom, propose_from_name
from phantom import blank_image, brain_on
from sample_volumes import sample_volume
from scipy import ndimage

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
DATA = Path(__file__).resolve().parents[1] / "data"
RAW = SHARED / "raw" / "TCGA-FG-6692" / "atlas_space"


def look_of(t1=0.0, t1gd=0.0, t2=0.0, flair=0.0, unlike=0.5) -> Look:
    return Look(dict(zip(MODALITIES, (t1, t1gd, t2, flair))), unlike)


def look_alone(image: sitk.Image) -> Look:
    return look(image, brain_alone(image))


@pytest.fixture(scope="module")
def sample() -> dict[str, sitk.Image]:
    return {modality: sample_volume(modality) for modality in MODALITIES}


# --- features -------------------------------------------------------------------------------------------------------


def phantom(bright_share: float = 0.0) -> sitk.Image:
    """A brain of values 50 to 150 in voxels of 2 mm, of which a share has the value 400."""
    image = brain_on(blank_image(spacing=(2.0, 2.0, 2.0)))
    voxels = sitk.GetArrayFromImage(image)
    inside = np.flatnonzero(voxels)
    voxels.ravel()[np.random.default_rng(1).choice(inside, int(bright_share * inside.size), replace=False)] = 400
    changed = sitk.GetImageFromArray(voxels)
    changed.CopyInformation(image)
    return changed


def feature(image: sitk.Image, name: str) -> float:
    return float(features(image, sitk.GetArrayFromImage(image) != 0)[FEATURES.index(name)])


def test_grey_values_are_told_in_interquartile_ranges_from_the_median():
    plain, bright = phantom(), phantom(0.02)  # uniform: quartiles at 75, 100 and 125
    assert feature(plain, "grey 99.5 %") == pytest.approx(np.log1p((149.5 - 100) / 50), abs=0.02)
    assert feature(plain, "grey 1 %") == pytest.approx(-np.log1p((100 - 51) / 50), abs=0.02)
    assert feature(bright, "grey 99.5 %") == pytest.approx(np.log1p((400 - 100) / 50), rel=0.03)


def test_depth_and_layers_follow_a_brain_that_brightens_inwards():
    image = blank_image(spacing=(2.0, 2.0, 2.0))
    inside = sitk.GetArrayFromImage(brain_on(image)) != 0
    depth = ndimage.distance_transform_edt(inside, sampling=(2.0, 2.0, 2.0))
    inwards = sitk.GetImageFromArray(np.where(inside, 100 + depth, 0).astype(np.float32))
    inwards.CopyInformation(image)
    middles = [feature(inwards, f"grey 50 % below {layer} mm") for layer in (4, 7, 11, 16)]
    assert middles == sorted(middles) and middles[0] < 0 < middles[-1]
    depths = [feature(inwards, f"depth from rank {share}") for share in ("0", "0.2", "0.6", "0.97")]
    assert depths == sorted(depths) and depths[0] < 0 < depths[-1]


def test_units_and_offset_do_not_matter(sample):
    image = sample["T1Gd"]
    brain = sitk.GetArrayFromImage(image) != 0
    shifted = sitk.Cast(image * 37.0 + 500.0, sitk.sitkFloat32)
    assert features(shifted, brain) == pytest.approx(features(image, brain), abs=1e-3)


def test_what_lies_outside_the_brain_does_not_matter(sample):
    image = sample["FLAIR"]
    voxels = sitk.GetArrayFromImage(image)
    brain = voxels != 0
    filled = sitk.GetImageFromArray(np.where(brain, voxels, 3 * voxels.max()).astype(np.float32))
    filled.CopyInformation(image)
    assert features(filled, brain) == pytest.approx(features(image, brain))


@pytest.mark.parametrize("change", [-2, 2], ids=["too small", "too large"])
@pytest.mark.parametrize("modality", MODALITIES)
def test_a_brain_mask_that_errs_by_two_voxels_changes_nothing_that_counts(sample, modality, change):
    brain = sitk.GetArrayFromImage(sample[modality]) != 0
    grow = ndimage.binary_dilation if change > 0 else ndimage.binary_erosion
    assert look(sample[modality], grow(brain, iterations=abs(change) // 2)).likeliest == modality


@pytest.mark.parametrize("modality", MODALITIES)
def test_thick_slices_along_any_axis_look_the_same(sample, modality):
    for factors in ([3, 1, 1], [1, 3, 1], [1, 1, 3]):  # 6 mm
        assert look_alone(sitk.BinShrink(sample[modality], factors)).likeliest == modality


def test_nothing_is_said_of_a_volume_without_brain_contrast_or_numbers():
    image = phantom()
    brain = sitk.GetArrayFromImage(image) != 0
    assert look(image, np.zeros_like(brain)) is None
    assert look(image * 0.0 + 7.0, brain) is None
    small = np.zeros_like(brain)
    small[20:26, 20:26, 20:26] = True
    assert look(image, small) is None
    broken = sitk.GetArrayFromImage(image)
    broken[brain] = np.where(np.arange(brain.sum()) % 10, broken[brain], np.nan)
    assert look(sitk.GetImageFromArray(broken), brain) is None


# --- the shipped classifier -----------------------------------------------------------------------------------------


def test_the_sample_patient_is_recognised(sample):
    looks = {modality: look_alone(image) for modality, image in sample.items()}
    assert {modality: found.likeliest for modality, found in looks.items()} == {name: name for name in MODALITIES}
    assert not any(found.is_unlike for found in looks.values())
    assert sum(looks["T2"].probabilities.values()) == pytest.approx(1.0)
    for order in itertools.permutations(MODALITIES):
        found = propose_by_look([looks[modality] for modality in order])
        assert [proposal.modality for proposal in found] == list(order)
    assert doubts(looks) == {}
    exchanged = {"T1": looks["T1Gd"], "T1Gd": looks["T1"], "T2": looks["FLAIR"], "FLAIR": looks["T2"]}
    assert set(doubts(exchanged)) == set(MODALITIES)


def test_a_map_that_is_no_sequence_is_unlike_all(sample):
    t2, flair = (sitk.GetArrayFromImage(sample[name]) for name in ("T2", "FLAIR"))
    brain = (t2 != 0) & (flair > 0)
    ratio = sitk.GetImageFromArray(np.where(brain, (t2 / np.maximum(flair, 1)) ** 3, 0).astype(np.float32))
    ratio.CopyInformation(sample["T2"])
    found = look(ratio, brain)
    assert found.is_unlike
    assert propose_by_look([found]) == [None]
    assert "none of T1, T1Gd, T2, FLAIR" in doubts({"T2": found})["T2"]


def test_the_card_says_how_well_it_does():
    card = json.loads(appearance.model_path().read_text())["card"]
    figures = card["metrics"]["validation"]["as released"]
    assert card["validation"]["patients"] == 10
    assert figures["proposals, all four"]["share right"] >= 0.95
    assert figures["T1 against T1Gd, single"]["share"] >= 0.9
    assert figures["T1 against T1Gd, pairs"]["share"] >= 0.9
    assert "Research use only" in card["licence"] and len(card["citations"]) == 4


def test_a_missing_damaged_or_foreign_classifier_is_told_in_one_line(tmp_path, monkeypatch):
    good = json.loads(appearance.model_path().read_text())
    path = tmp_path / "model.json"
    for text in ("", "[]", "{}", json.dumps({**good, "features": ["x"]}), json.dumps({**good, "model": {"mean": 1}})):
        path.write_text(text)
        with pytest.raises(WeightsError, match="reinstall") as error:
            read_model(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    good["model"]["weights"].pop()
    path.write_text(json.dumps(good))
    with pytest.raises(WeightsError, match="other sizes"):
        read_model(path)
    monkeypatch.setattr(appearance, "MODEL", "nowhere.json")
    with pytest.raises(WeightsError, match=r"nowhere\.json is missing; reinstall"):
        appearance.model_path()


# --- the volumes of one patient -------------------------------------------------------------------------------------


def brute_force(looks: list) -> np.ndarray:
    """(N, 4) shares by going through every assignment."""
    shares, total = np.zeros((len(looks), 4)), 0.0
    for choice in itertools.product([*MODALITIES, None], repeat=len(looks)):
        given_roles = [role for role in choice if role]
        if len(given_roles) != len(set(given_roles)):
            continue
        weight = 1.0
        for found, role in zip(looks, choice):
            weight *= NONE_WEIGHT if role is None else found.probabilities[role]
        total += weight
        for index, role in enumerate(choice):
            if role:
                shares[index, MODALITIES.index(role)] += weight
    return shares / total


weights = st.lists(st.floats(0.01, 1.0), min_size=4, max_size=4)


@settings(deadline=None, max_examples=40)
@given(st.lists(weights, min_size=1, max_size=5))
def test_proposals_are_the_shares_of_all_assignments(table):
    looks = [look_of(*(np.array(row) / sum(row))) for row in table]
    expected = brute_force(looks)
    found = propose_by_look(looks, certain=0.5)
    for proposal, row in zip(found, expected):
        if proposal is None:
            assert row.max() <= 0.5 + 1e-9
        else:
            assert proposal.probability == pytest.approx(row[MODALITIES.index(proposal.modality)])
    given_roles = [proposal.modality for proposal in found if proposal]
    assert len(given_roles) == len(set(given_roles))


def test_of_two_t1_weighted_volumes_the_brighter_one_is_t1gd():
    unsure, plain = look_of(t1=0.5, t1gd=0.5), look_of(t1=0.99, t1gd=0.01)
    assert propose_by_look([unsure]) == [None]
    first, second = propose_by_look([unsure, plain])
    assert (first.modality, second.modality) == ("T1Gd", "T1")
    # 0.5 * 0.99 against all ways: the other order, or none for one or for both.
    ways = 0.5 * 0.99 + 0.5 * 0.01 + 0.02 * (0.5 + 0.5 + 0.99 + 0.01) + 0.02**2
    assert second.probability == pytest.approx((0.5 * 0.99 + 0.02 * 0.99) / ways)


def test_two_volumes_of_one_sequence_are_left_to_the_person():
    twins = [look_of(t2=0.98, flair=0.02), look_of(t2=0.97, flair=0.03)]
    assert propose_by_look(twins) == [None, None]
    assert [p and p.modality for p in propose_by_look([*twins, look_of(t1=1.0)])] == [None, None, "T1"]


def test_what_cannot_be_seen_gets_nothing():
    assert propose_by_look([]) == []
    assert propose_by_look([None, look_of(t2=1.0, unlike=1.2)]) == [None, None]
    assert propose_by_look([look_of(0.3, 0.3, 0.2, 0.2)]) == [None]


def test_a_sequence_that_is_taken_is_not_given_to_its_double():
    clear = look_of(t1=0.96, t1gd=0.04)
    assert propose_by_look([clear], [("T1Gd", "T2", "FLAIR")]) == [None]
    assert propose_by_look([clear], [MODALITIES])[0].modality == "T1"


# --- proposals beside names -----------------------------------------------------------------------------------------


def test_names_win_and_looks_fill_what_is_free():
    proposals = [propose_from_name(name) for name in ("a_t1.nii.gz", "scan_x.nii.gz", "scan_y.nii.gz", "adc.nii.gz")]
    looks = [look_of(flair=1.0), look_of(t1=0.9, t1gd=0.1), look_of(flair=0.99, t2=0.01), look_of(t2=1.0)]
    settled = settled_by_look(proposals, looks.__getitem__)
    assert [proposal.modality for proposal in settled] == ["T1", None, "FLAIR", None]
    assert settled[2].certainty == "likely"
    assert re.fullmatch(r"by its look \(p 0\.9\d\), please check", settled[2].reason)
    assert settled[0] == proposals[0] and settled[1] == proposals[1] and settled[3] == proposals[3]


def test_questions_are_settled_only_where_that_is_wanted_and_among_their_candidates():
    proposals = [propose_from_name("T1 T2 a"), propose_from_name("T1 T2 b")]
    looks = [look_of(t2=1.0), look_of(flair=1.0)]
    assert settled_by_look(proposals, looks.__getitem__) == proposals
    settled = settled_by_look(proposals, looks.__getitem__, ambiguous_too=True)
    assert [proposal.modality for proposal in settled] == ["T2", None]


def test_times_that_say_t1_leave_contrast_to_the_look():
    by_times = propose_from_dicom({"EchoTime": "10", "RepetitionTime": "600"}, "S1")
    assert by_times.candidates == ("T1",)
    assert settled_by_look([by_times], lambda _: look_of(t1gd=1.0))[0].modality == "T1Gd"
    assert settled_by_look([by_times], lambda _: look_of(flair=1.0))[0].modality is None


def test_nothing_is_looked_at_where_nothing_is_free_or_too_much_is_open():
    def refuse(_index: int) -> Look:
        raise AssertionError("looked at")

    unknown = RoleProposal("x", None, "unknown", "no word")
    assert settled_by_look([unknown], refuse, taken=MODALITIES) == [unknown]
    assert settled_by_look([unknown] * 13, refuse) == [unknown] * 13


# --- doubts ---------------------------------------------------------------------------------------------------------


def test_doubts_are_for_clear_cases_only():
    assert doubts({"FLAIR": look_of(t2=0.97, flair=0.03)}) == {
        "FLAIR": "This volume looks like T2, not FLAIR. Please check."
    }
    for unsure in (look_of(t2=0.89, flair=0.04, t1=0.07), look_of(t2=0.94, flair=0.06), look_of(flair=1.0)):
        assert doubts({"FLAIR": unsure}) == {}
    assert "If contrast agent was given" in doubts({"T1": look_of(t1=0.01, t1gd=0.99)})["T1"]
    assert "without contrast agent" in doubts({"T1Gd": look_of(t1=0.99, t1gd=0.01)})["T1Gd"]


def test_a_pair_is_judged_by_its_order():
    plain, enhanced = look_of(t1=0.99, t1gd=0.01), look_of(t1=0.02, t1gd=0.98)
    assert swapped(enhanced, plain) and not swapped(plain, enhanced) and not swapped(plain, plain)
    wrong = doubts({"T1": enhanced, "T1Gd": plain})
    assert set(wrong) == {"T1", "T1Gd"} and all("wrong way round" in sentence for sentence in wrong.values())
    # A tumour that hardly takes up contrast agent: alone it would be doubted, beside its T1 the order is right.
    faint = look_of(t1=0.96, t1gd=0.04)
    assert doubts({"T1Gd": faint}) != {}
    assert doubts({"T1": plain, "T1Gd": faint}) == {}
    assert "not T1Gd" in doubts({"T1": plain, "T1Gd": look_of(t2=1.0)})["T1Gd"]


# --- real patients --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validation_looks() -> dict[str, dict[str, Look]]:
    if not (SHARED / "splits.json").is_file() or not DATA.is_dir():
        pytest.skip("no real patients here")
    cases = json.loads((SHARED / "splits.json").read_text())["val"]
    folders = [DATA / case for case in cases if (DATA / case).is_dir()]
    if not folders:
        pytest.skip("the validation patients are not unpacked in data/")
    names = dict(zip(MODALITIES, ("t1", "t1ce", "t2", "flair")))
    return {
        folder.name: {
            modality: look_alone(sitk.ReadImage(str(folder / f"{folder.name}_{name}.nii.gz"), sitk.sitkFloat32))
            for modality, name in names.items()
        }
        for folder in folders
    }


def test_no_validation_patient_raises_a_false_alarm(validation_looks):
    for case, looks in validation_looks.items():
        for subset in SUBSETS:
            assert doubts({modality: looks[modality] for modality in subset}) == {}, (case, subset)


def test_validation_patients_are_proposed_without_names(validation_looks):
    right = total = 0
    for looks in validation_looks.values():
        found = propose_by_look([looks[modality] for modality in MODALITIES])
        right += sum(proposal is not None and proposal.modality == name for proposal, name in zip(found, MODALITIES))
        assert all(proposal is None or proposal.modality == name for proposal, name in zip(found, MODALITIES))
        total += len(found)
    assert right >= 0.95 * total


def test_swapped_volumes_of_validation_patients_are_found(validation_looks):
    for case, looks in validation_looks.items():
        assert swapped(looks["T1Gd"], looks["T1"]), case
        assert doubts({"T2": looks["FLAIR"], "FLAIR": looks["T2"]}), case


@pytest.mark.skipif(not RAW.is_dir(), reason="no raw patient here")
def test_a_patient_of_another_hospital_is_recognised():
    names = {"T1": "t1", "T1Gd": "t1c", "T2": "t2", "FLAIR": "flair"}
    looks = [look_alone(sitk.ReadImage(str(RAW / f"{name}.nii.gz"), sitk.sitkFloat32)) for name in names.values()]
    assert [found.likeliest for found in looks] == list(MODALITIES)
    assert shipped_model().certain < min(proposal.probability for proposal in propose_by_look(looks))
