"""Mutual information at points, and where it is highest: against values computed by hand and known movements."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from MSTKDSegmentLib.alignment import BINS, misalignment, mutual_information, rigid_matrix, samples
from MSTKDSegmentLib.registration import as_transform, inverted

SAMPLE = Path(__file__).resolve().parents[1] / "Resources" / "sample"


def image_of(array: np.ndarray, spacing=(1.0, 1.0, 1.0)) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(array, np.float32))
    image.SetSpacing(spacing)
    return image


@pytest.fixture(scope="module")
def sequences() -> dict[str, sitk.Image]:
    """The sample patient on voxels of 2 mm."""
    return {
        name: sitk.BinShrink(sitk.ReadImage(str(SAMPLE / f"sample_{name}.nii.gz"), sitk.sitkFloat32), [2, 2, 2])
        for name in ("t1gd", "flair")
    }


def test_a_volume_tells_everything_of_itself():
    """Two equally frequent values are one bit, eight are three."""
    for values, bits in ((2, 1.0), (8, 3.0)):
        image = image_of(np.arange(16**3).reshape(16, 16, 16) % values)
        found = mutual_information(samples(image, np.ones((16, 16, 16), bool), count=16**3), image)
        assert found == pytest.approx(bits, abs=1e-9)


def test_it_does_not_matter_what_the_grey_levels_mean():
    array = np.arange(16**3).reshape(16, 16, 16) % 4
    image, swapped = image_of(array), image_of(np.array([70, 10, 300, 20])[array])
    assert mutual_information(samples(image, np.ones(array.shape, bool), 16**3), swapped) == pytest.approx(2.0)


def test_noise_tells_next_to_nothing():
    rng = np.random.default_rng(0)
    first, second = (image_of(rng.normal(size=(40, 40, 40))) for _ in range(2))
    # What a finite sample pretends: about (BINS - 1)^2 / (2 N ln 2) bits (Miller 1955).
    bias = (BINS - 1) ** 2 / (2 * 12000 * np.log(2))
    assert mutual_information(samples(first, np.ones((40, 40, 40), bool)), second) == pytest.approx(bias, rel=0.2)


def test_points_outside_the_other_volume_cost():
    array = np.arange(16**3).reshape(16, 16, 16) % 2
    image = image_of(array)
    probe = samples(image, np.ones(array.shape, bool), 16**3)
    quarter = np.column_stack([np.eye(3), [0.0, 0.0, 4.0]])  # a quarter of the points leave it, the rest fits
    assert mutual_information(probe, image, quarter) == pytest.approx(0.75)
    most = np.column_stack([np.eye(3), [0.0, 0.0, 12.0]])
    assert mutual_information(probe, image, most) == 0.0


def test_a_constant_volume_tells_nothing():
    image = image_of(np.full((10, 10, 10), 7.0))
    assert mutual_information(samples(image, np.ones((10, 10, 10), bool)), image) == 0.0


def test_an_empty_mask_is_an_error():
    with pytest.raises(ValueError, match="no voxel"):
        samples(image_of(np.ones((8, 8, 8))), np.zeros((8, 8, 8), bool))


def test_points_are_the_voxels_centres():
    image = image_of(np.zeros((4, 5, 6)), (1.0, 2.0, 3.0))
    image.SetOrigin((10.0, 20.0, 30.0))
    mask = np.zeros((4, 5, 6), bool)
    mask[2, 3, 4] = True
    np.testing.assert_allclose(samples(image, mask).points, [[10 + 4, 20 + 3 * 2, 30 + 2 * 3]])


def test_the_rigid_matrix_turns_about_the_middle_and_then_shifts():
    matrix = rigid_matrix(np.array([1.0, 2.0, 3.0, 0.0, 0.0, 90.0]), np.array([10.0, 0.0, 0.0]))
    np.testing.assert_allclose(matrix[:, :3] @ [10, 0, 0] + matrix[:, 3], [11, 2, 3], atol=1e-12)
    np.testing.assert_allclose(matrix[:, :3] @ [11, 0, 0] + matrix[:, 3], [11, 3, 3], atol=1e-12)


@given(st.lists(st.floats(-40, 40), min_size=6, max_size=6))
@settings(max_examples=30, deadline=None)
def test_a_rigid_matrix_keeps_lengths_and_handedness(place):
    turn = rigid_matrix(np.array(place), np.array([3.0, -4.0, 5.0]))[:, :3]
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(turn) == pytest.approx(1.0)


def test_registered_sequences_lie_where_they_are(sequences):
    found = misalignment(samples(sequences["t1gd"], _brain(sequences["t1gd"])), sequences["flair"])
    assert found.millimetres < 1.0 and found.degrees < 1.0
    assert found.best - found.here < 0.05


def test_a_movement_is_found(sequences):
    probe = samples(sequences["t1gd"], _brain(sequences["t1gd"]))
    place = np.array([2.5, -2.0, 0.0, 0.0, 3.0, 0.0])
    matrix = rigid_matrix(place, probe.points.mean(axis=0))
    moved = sitk.Resample(sequences["flair"], sequences["flair"], as_transform(inverted(matrix)), sitk.sitkLinear)
    found = misalignment(probe, moved)
    np.testing.assert_allclose([*found.shift_mm, *found.turn_degrees], place, atol=1.2)
    assert found.best > found.here + 0.1


def _brain(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayViewFromImage(image) > 0
