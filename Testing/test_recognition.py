"""Challenge-ready or not: the sample patient as it is, moved, turned, and with the user's word against the evidence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from MSTKDSegmentLib.alignment import rigid_matrix
from MSTKDSegmentLib.errors import InputError
from MSTKDSegmentLib.overlap import find_foreground
from MSTKDSegmentLib.preparation_record import READY, Wishes
from MSTKDSegmentLib.recognition import Recognition, ready_record, recognise
from MSTKDSegmentLib.registration import as_transform, centre
from MSTKDSegmentLib.volumes import Volume, volume_from_image

SAMPLE = Path(__file__).resolve().parents[1] / "Resources" / "sample"


@pytest.fixture(scope="module")
def images() -> dict[str, sitk.Image]:
    """The sample patient on voxels of 2 mm; noise in the averaged background is none."""
    return {
        name: sitk.BinShrink(sitk.ReadImage(str(SAMPLE / f"sample_{name.lower()}.nii.gz"), sitk.sitkFloat32), [2, 2, 2])
        for name in ("T1Gd", "T2", "FLAIR")
    }


def moved(image: sitk.Image, place) -> sitk.Image:
    middle = centre(image, sitk.GetArrayFromImage(image) > 0)
    matrix = rigid_matrix(np.array(place, float), middle)
    return sitk.Resample(image, image, as_transform(matrix), sitk.sitkLinear)


def recognised(images: dict[str, sitk.Image], wishes: Wishes = Wishes(), reference: str = "T1Gd") -> Recognition:  # noqa: B008
    volumes = {name: volume_from_image(image, name) for name, image in images.items()}
    return recognise(volumes, {n: find_foreground(v.image) for n, v in volumes.items()}, reference, wishes)


def test_the_sample_patient_is_challenge_ready(images):
    found = recognised(images)
    assert found.challenge_ready and found.told == ()
    assert set(found.misalignments) == {"T2", "FLAIR"}
    assert found.head_degrees is not None and found.head_degrees < 18


def test_one_sequence_alone_is_registered(images):
    assert recognised({"T2": images["T2"]}, reference="T2").challenge_ready


def test_a_moved_sequence_on_the_same_grid_is_seen(images):
    found = recognised({**images, "FLAIR": moved(images["FLAIR"], [6, 0, 5, 0, 6, 0])})
    assert not found.registered and not found.challenge_ready
    assert all(found.stripped.values()) and found.upright


def test_another_grid_is_not_yet_another_place(images):
    thick = sitk.BinShrink(images["FLAIR"], [1, 1, 3])
    assert recognised({**images, "FLAIR": thick}).registered


def test_a_sequence_with_other_coordinates_is_not_registered(images):
    away = sitk.Image(images["FLAIR"])
    away.SetOrigin((500.0, 0.0, 0.0))
    assert not recognised({**images, "FLAIR": away}).registered


def test_a_head_that_lies_askew_is_seen(images):
    turned = {name: moved(image, [0, 0, 0, 0, 24, 18]) for name, image in images.items()}
    found = recognised(turned)
    assert found.registered and not found.upright
    assert found.head_degrees > 20


def test_the_users_word_counts_more_than_the_evidence(images):
    askew = {name: moved(image, [0, 0, 0, 0, 22, 15]) for name, image in images.items()}
    askew["FLAIR"] = moved(askew["FLAIR"], [8, 0, 0, 0, 0, 6])
    found = recognised(askew, READY)
    assert found.challenge_ready and found.head_degrees is None and not found.misalignments
    assert found.told == ("skull-stripped", "registered", "upright")
    found = recognised(images, Wishes(registered=False, skull_stripped=False, upright=False))
    assert not (found.registered or found.upright or any(found.stripped.values()))
    assert found.told == ("not skull-stripped", "not registered", "not upright")


def test_a_mask_changes_nothing_of_what_the_volumes_are(images):
    mask = sitk.Cast(images["T1Gd"] > 0, sitk.sitkUInt8)
    assert recognised(images, Wishes(brain_mask=mask)).challenge_ready


def test_an_unknown_extractor_is_refused():
    with pytest.raises(InputError, match="unknown brain extraction 'bet'"):
        Wishes(extractor="bet")


def test_the_record_of_what_is_left_alone_holds_the_evidence(images):
    volumes = {name: Volume(image, f"/folder/{name}.nii.gz") for name, image in images.items()}
    masks = {name: sitk.GetArrayFromImage(image) > 0 for name, image in images.items()}
    record = ready_record(volumes, masks, "T1Gd", recognised(images))
    assert record.challenge_ready and record.extractor == "none: skull-stripped already"
    about = record.to_dict()
    assert about["brain_ml"] == pytest.approx(masks["T1Gd"].sum() * 8 / 1000, abs=0.1)
    one = about["sequences"]["FLAIR"]
    assert one["similarity_before"] == one["similarity_after"] > 0.1
    assert one["background"] == pytest.approx(1 - masks["FLAIR"].mean(), abs=0.02)
    assert one["start"] == "" and one["moved_mm"] == 0
