"""Rigid registration and the template's pose: movements that are known are found, and nothing is moved for nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from MSTKDSegmentLib.alignment import rigid_matrix, samples
from MSTKDSegmentLib.errors import Cancelled
from MSTKDSegmentLib.registration import (
    IDENTITY,
    as_matrix,
    as_transform,
    centre,
    coarser,
    composed,
    distance_mm,
    inverted,
    register,
)
from MSTKDSegmentLib.template import degrees_of, pose_of, rigid_part, template

SAMPLE = Path(__file__).resolve().parents[1] / "Resources" / "sample"
LARGEST_ERROR_MM = 1.5


@pytest.fixture(scope="module")
def sequences() -> dict[str, sitk.Image]:
    """The sample patient on voxels of 2 mm: what the finest level of the registration sees."""
    return {
        name: sitk.BinShrink(sitk.ReadImage(str(SAMPLE / f"sample_{name}.nii.gz"), sitk.sitkFloat32), [2, 2, 2])
        for name in ("t1gd", "t2", "flair")
    }


def brain(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image) > 0


def moved(image: sitk.Image, matrix: np.ndarray) -> sitk.Image:
    """`image` after `matrix` has moved what it shows."""
    return sitk.Resample(image, image, as_transform(inverted(matrix)), sitk.sitkLinear)


def thick(image: sitk.Image, slices: int = 3) -> sitk.Image:
    """Every three slices averaged into one: 6 mm."""
    return sitk.BinShrink(image, [1, 1, slices])


@pytest.mark.parametrize(
    ("name", "place"),
    [("t2", (6.0, -5.0, 6.0, 5.0, -4.0, 4.0)), ("flair", (-7.0, 4.0, 6.0, -5.0, 5.0, 3.0))],
    ids=["t2", "flair in thick slices"],
)
def test_a_movement_of_10_mm_and_8_degrees_is_found(sequences, name, place):
    fixed = sequences["t1gd"]
    probe = samples(fixed, brain(fixed), 500)
    matrix = rigid_matrix(np.array(place), probe.points.mean(axis=0))
    other = moved(sequences[name], matrix)
    other = thick(other) if name == "flair" else other
    found = register(fixed, brain(fixed), other, brain(other))
    assert distance_mm(found.matrix, matrix, probe.points) < LARGEST_ERROR_MM
    assert found.after > found.before + 0.1 and found.start
    assert found.moved_mm == pytest.approx(distance_mm(matrix, IDENTITY, probe.points), abs=1.5)


def test_wrong_coordinates_are_mended_from_the_centres(sequences):
    fixed = sequences["t1gd"]
    away = sitk.Image(sequences["t2"])
    away.SetOrigin(np.add(away.GetOrigin(), [400.0, 0.0, -300.0]).tolist())
    found = register(fixed, brain(fixed), away, brain(away))
    true = np.column_stack([np.eye(3), [400.0, 0.0, -300.0]])
    assert found.start == "centres" and found.before == 0.0
    assert distance_mm(found.matrix, true, samples(fixed, brain(fixed), 500).points) < LARGEST_ERROR_MM


def test_a_further_start_is_tried(sequences):
    """Turned by 90 degrees: neither the scanner's coordinates nor the centres lead there."""
    fixed = sequences["t1gd"]
    middle = centre(fixed, brain(fixed))
    matrix = rigid_matrix(np.array([0.0, 0.0, 0.0, 0.0, 0.0, 90.0]), middle)
    other = moved(sequences["t2"], matrix)
    near = rigid_matrix(np.array([2.0, 2.0, 0.0, 4.0, 0.0, 85.0]), middle)
    found = register(fixed, brain(fixed), other, brain(other), {"heads": near})
    assert found.start == "heads"
    assert distance_mm(found.matrix, matrix, samples(fixed, brain(fixed), 500).points) < LARGEST_ERROR_MM


def test_what_shows_nothing_in_common_is_not_moved(sequences):
    """The geometry is left as it was where no place is better."""
    fixed = sequences["t1gd"]
    mask = brain(fixed)
    noise = sitk.GetImageFromArray(np.random.default_rng(0).normal(100, 10, mask.shape).astype(np.float32))
    noise.CopyInformation(fixed)
    found = register(fixed, mask, noise, np.ones(mask.shape, bool))
    assert found.start == "" and found.moved_mm == 0.0
    np.testing.assert_array_equal(found.matrix, IDENTITY)


def test_it_can_be_cancelled(sequences):
    calls = []

    def cancel() -> bool:
        calls.append(1)
        return len(calls) > 3

    fixed = sequences["t1gd"]
    with pytest.raises(Cancelled):
        register(fixed, brain(fixed), sequences["t2"], brain(sequences["t2"]), cancel=cancel)
    assert len(calls) < 30


# --- matrices --------------------------------------------------------------------------------------------------------

PLACES = st.lists(st.floats(-50, 50), min_size=6, max_size=6).map(np.array)


@given(PLACES, PLACES)
@settings(max_examples=30, deadline=None)
def test_matrices_compose_invert_and_become_transforms(first, second):
    a, b = (rigid_matrix(place, np.array([1.0, 2.0, 3.0])) for place in (first, second))
    point = np.array([7.0, -5.0, 11.0])

    def there(matrix: np.ndarray, at: np.ndarray) -> np.ndarray:
        return matrix[:, :3] @ at + matrix[:, 3]

    np.testing.assert_allclose(there(composed(a, b), point), there(a, there(b, point)), atol=1e-8)
    np.testing.assert_allclose(there(inverted(a), there(a, point)), point, atol=1e-8)
    np.testing.assert_allclose(as_transform(a).TransformPoint(point.tolist()), there(a, point), atol=1e-8)
    np.testing.assert_allclose(as_matrix(as_transform(a)), a, atol=1e-8)


def test_the_distance_of_two_matrices_is_the_mean_over_the_points():
    shift = np.column_stack([np.eye(3), [3.0, 4.0, 0.0]])
    assert distance_mm(shift, IDENTITY, [[0, 0, 0], [9, 9, 9]]) == pytest.approx(5.0)


# --- coarser volumes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.9, 0.9, 5.5), (2.0, 0.5, 3.0)])
def test_a_coarser_volume_shows_the_same_at_the_same_place(spacing):
    """A ramp along each physical axis stays that ramp, away from the edges."""
    image = sitk.Image([48, 48, 24], sitk.sitkFloat32)
    image.SetSpacing(spacing)
    image.SetOrigin((5.0, -7.0, 9.0))
    index = np.stack(np.meshgrid(*(np.arange(n) for n in (24, 48, 48)), indexing="ij"), -1)[..., ::-1]
    points = index * spacing + image.GetOrigin()
    ramp = sitk.GetImageFromArray((points @ [1.0, 2.0, -0.5]).astype(np.float32))
    ramp.CopyInformation(image)
    small = coarser(ramp, 3.0)
    assert max(small.GetSpacing()) <= 1.3 * 3.0
    middle = [n // 2 for n in small.GetSize()]
    expected = np.dot(small.TransformIndexToPhysicalPoint(middle), [1.0, 2.0, -0.5])
    assert small[middle] == pytest.approx(expected, abs=1e-2)


# --- the template ----------------------------------------------------------------------------------------------------


def test_the_template_is_a_brain_around_the_origin():
    image = template()
    mask = sitk.GetArrayViewFromImage(image) > 0
    assert image.GetSpacing() == (2.0, 2.0, 2.0)
    assert np.linalg.norm(centre(image, mask)) < 1.0
    assert 1200 < mask.sum() * 8 / 1000 < 1900  # ml
    # Left and right halves are alike, front and back are not: it is not lying on its side.
    assert _likeness(mask, 2) > 0.95 > _likeness(mask, 1)


def _likeness(mask: np.ndarray, axis: int) -> float:
    used = np.flatnonzero(mask.any(axis=tuple(k for k in range(3) if k != axis)))
    cut = np.take(mask, range(used[0], used[-1] + 1), axis)
    return float(2 * np.count_nonzero(cut & np.flip(cut, axis)) / (2 * np.count_nonzero(cut)))


def test_a_turned_head_is_measured(sequences):
    image = sequences["t1gd"]
    here = rigid_part(pose_of(image, brain(image)))
    turn = rigid_matrix(np.array([5.0, 0.0, 0.0, -14.0, 6.0, -5.0]), centre(image, brain(image)))
    other = moved(image, turn)
    there = rigid_part(pose_of(other, brain(other)))
    assert degrees_of(there @ here.T @ turn[:, :3].T) < 3.0


def test_the_nearest_rotation_of_a_scaled_one_is_itself():
    turn = rigid_matrix(np.array([0.0, 0.0, 0.0, 10.0, 20.0, 30.0]), np.zeros(3))[:, :3]
    np.testing.assert_allclose(rigid_part(np.column_stack([1.3 * turn, np.zeros(3)])), turn, atol=1e-12)
    assert degrees_of(np.eye(3)) == 0.0
    assert degrees_of(rigid_matrix(np.array([0, 0, 0, 0, 0, 25.0]), np.zeros(3))[:, :3]) == pytest.approx(25.0)
