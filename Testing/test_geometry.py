"""Volumes in space: the canonical grid holds the head, and what is found there comes back to where it was."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from MSTKDSegmentLib.geometry import (
    CanonicalGrid,
    array_to_image,
    canonical_grid,
    labels_to_native,
    to_canonical,
    to_native,
)
from MSTKDSegmentLib.overlap import foreground
from phantom import BRAIN_RADII, CENTRE, IDENTITY, OBLIQUE, blank_image, brain_on, dice, ellipsoid, voxel_points

# Large enough that the voxel stairs of a 1 mm label, seen in a 0.5 mm grid, cost less than 3 % of Dice.
TUMOUR = (np.add(CENTRE, [3, -5, 2]), np.array([24.0, 20.0, 22.0]))
RAS = np.diag([-1.0, -1.0, 1.0])
PIR = np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]], float)  # LPS columns of the axes P, I, R
SHEARED = np.array([[1, 0.15, 0.1], [0, 1, 0.2], [0.05, 0, 1]]) / np.linalg.norm(
    [[1, 0.15, 0.1], [0, 1, 0.2], [0.05, 0, 1]], axis=0
)


def _grid_image(grid: CanonicalGrid) -> sitk.Image:
    image = sitk.Image(grid.size, sitk.sitkFloat32)
    image.SetOrigin(grid.origin)
    return image


CASES = {
    "aligned": (IDENTITY, (1, 1, 1), 0.999),
    "oblique": (OBLIQUE, (1, 1, 1), 0.97),
    "fine": (IDENTITY, (0.6, 0.6, 1.0), 0.97),
    "RAS 1.2 mm": (RAS, (1.2, 1.2, 1.2), 0.97),
    "PIR 0.8 mm": (PIR, (0.8, 1.0, 0.9), 0.97),
    "sheared": (SHEARED, (1, 1, 1), 0.97),
    # 5 mm slices: half a slice at either end may change sides.
    "thick": (IDENTITY, (0.9, 0.9, 5.0), 0.9),
    "thick oblique": (OBLIQUE, (0.9, 0.9, 5.0), 0.9),
}


@pytest.mark.parametrize("name", CASES)
def test_tumour_found_in_canonical_space_comes_back_in_place(name):
    direction, spacing, least = CASES[name]
    image = brain_on(blank_image(direction, spacing))
    grid = canonical_grid({"T1": image}, "T1")
    found = ellipsoid(voxel_points(_grid_image(grid)), *TUMOUR)
    expected = ellipsoid(voxel_points(image), *TUMOUR)
    as_label = to_native(found.astype(np.uint8), grid, image, is_label=True)
    probabilities = np.stack([1.0 - found, np.zeros(grid.shape), found]).astype(np.float16)
    as_class = labels_to_native(probabilities, grid, image)
    for mask in (as_label == 1, as_class == 2):
        assert mask.shape == image.GetSize()[::-1]
        assert dice(mask, expected) >= least
        assert np.linalg.norm(voxel_points(image)[mask].mean(0) - voxel_points(image)[expected].mean(0)) < 0.5
    assert as_label.dtype == as_class.dtype == np.uint8
    assert set(np.unique(as_class)) == {0, 2}


@pytest.mark.parametrize("name", CASES)
def test_intensities_arrive_where_they_belong(name):
    direction, spacing, _ = CASES[name]
    image = blank_image(direction, spacing)
    ramp = (voxel_points(image) @ [0.5, -1.0, 2.0]).astype(np.float32)  # linear, so interpolation is exact
    grid = canonical_grid({"T1": brain_on(image)}, "T1")
    moved = to_canonical(array_to_image(ramp, image), grid, default=-999)
    points = voxel_points(_grid_image(grid))
    inside = ellipsoid(points, CENTRE, BRAIN_RADII)
    assert moved.dtype == np.float32
    assert moved.shape == grid.shape
    np.testing.assert_allclose(moved[inside], (points @ [0.5, -1.0, 2.0])[inside], atol=0.05)
    back = to_native(moved, grid, image, is_label=False)
    inside = ellipsoid(voxel_points(image), CENTRE, BRAIN_RADII)
    np.testing.assert_allclose(back[inside], ramp[inside], atol=0.1)


@pytest.mark.parametrize("axes", list(permutations(range(3))))
def test_all_48_axis_orders_at_1_mm_are_copied_exactly(axes):
    base = brain_on(blank_image(extent=76, centre=CENTRE + 0.3), CENTRE + 0.3)
    grid = canonical_grid({"T1": base}, "T1")
    expected = to_canonical(base, grid)
    labels = np.random.default_rng(1).integers(0, 4, grid.shape).astype(np.uint8)
    for signs in product([False, True], repeat=3):
        image = sitk.Flip(sitk.PermuteAxes(base, axes), signs)
        np.testing.assert_array_equal(to_canonical(image, grid), expected)
        again = canonical_grid({"T1": image}, "T1")
        np.testing.assert_allclose(again.origin, grid.origin, atol=1e-9)
        assert again.size == grid.size
        np.testing.assert_array_equal(
            to_native(expected, grid, image, is_label=False), sitk.GetArrayViewFromImage(image)
        )
        native = to_native(labels, grid, image, is_label=True)
        one_hot = np.stack([labels == k for k in range(4)]).astype(np.float16)
        np.testing.assert_array_equal(labels_to_native(one_hot, grid, image), native)
        again = to_canonical(array_to_image(native, image), grid, is_label=True)
        covered = to_canonical(array_to_image(np.ones_like(native), image), grid, is_label=True) == 1
        np.testing.assert_array_equal(again[covered], labels[covered])


@settings(deadline=None, max_examples=25)
@given(
    origin=st.tuples(*[st.floats(-500, 500)] * 3), axes=st.permutations(range(3)), flips=st.tuples(*[st.booleans()] * 3)
)
def test_any_origin_round_trips_exactly(origin, axes, flips):
    image = sitk.Image((70, 40, 50), sitk.sitkFloat32)
    image.SetOrigin(origin)
    values = np.zeros((50, 40, 70), np.float32)
    values[10:40, 10:30, 15:60] = np.random.default_rng(2).uniform(1, 2, (30, 20, 45))
    image = sitk.Flip(sitk.PermuteAxes(array_to_image(values, image), list(axes)), flips)
    grid = canonical_grid({"T2": image}, "T2")
    assert all(n % 32 == 0 and n >= 64 for n in grid.size)
    canonical = to_canonical(image, grid)
    assert np.count_nonzero(canonical) == 30 * 20 * 45
    np.testing.assert_array_equal(to_native(canonical, grid, image, is_label=False), sitk.GetArrayViewFromImage(image))


def test_a_nearly_1_mm_lattice_stays_in_place_and_a_shifted_one_is_interpolated():
    nearly = brain_on(blank_image(spacing=(1.0005, 0.9995, 1.0)))
    grid = canonical_grid({"T1": nearly}, "T1")
    np.testing.assert_array_equal(
        to_native(to_canonical(nearly, grid), grid, nearly, is_label=False), sitk.GetArrayViewFromImage(nearly)
    )
    shifted = sitk.Image(nearly)
    shifted.SetOrigin(np.add(nearly.GetOrigin(), (0.5, 0, 0)).tolist())
    assert not np.array_equal(to_canonical(shifted, grid), to_canonical(nearly, grid))


def test_fine_volumes_are_smoothed_before_they_are_thinned():
    """A checkerboard of 0.25 mm voxels is grey at 1 mm; picking voxels would show it black or white."""
    image = blank_image(spacing=(0.25, 0.25, 1.0), extent=32)
    x, y = np.meshgrid(np.arange(128), np.arange(128))
    board = np.broadcast_to(100.0 * ((x + y) % 2), (32, 128, 128)).astype(np.float32)
    grid = CanonicalGrid(tuple(CENTRE - 8), (16, 16, 16))
    moved = to_canonical(array_to_image(board, image), grid)
    np.testing.assert_allclose(moved[4:-4, 4:-4, 4:-4], 50, atol=5)


def test_outside_the_grid_is_background():
    image = blank_image()
    grid = CanonicalGrid(tuple(CENTRE - 16.25), (32, 32, 32))  # off the lattice by a quarter voxel
    probabilities = np.stack([np.zeros(grid.shape), np.ones(grid.shape)]).astype(np.float32)
    labels = labels_to_native(probabilities, grid, image)
    inside = (np.abs(voxel_points(image) - CENTRE + 0.75) <= 16).all(-1)
    assert labels[~inside].sum() == 0
    assert np.count_nonzero(labels) == pytest.approx(32**3, rel=0.1)


def test_grid_far_from_the_image_copies_nothing():
    image = blank_image(extent=20)
    grid = CanonicalGrid(tuple(CENTRE + 500), (32, 32, 32))
    assert (to_canonical(image, grid, default=-1) == -1).all()
    assert not to_native(np.ones(grid.shape, np.float32), grid, image, is_label=False).any()


def test_wrong_shapes_are_refused():
    grid, image = CanonicalGrid((0, 0, 0), (32, 64, 96)), blank_image(extent=20)
    assert grid.shape == (96, 64, 32)
    with pytest.raises(ValueError, match="shape"):
        to_native(np.zeros((32, 64, 96)), grid, image, is_label=False)
    with pytest.raises(ValueError, match="shape"):
        labels_to_native(np.zeros((2, 32, 64, 96)), grid, image)
    with pytest.raises(ValueError, match="shape"):
        array_to_image(np.zeros((2, 2, 2)), image)


# --- The grid ---


def test_grid_is_centred_and_holds_every_foreground_with_its_margin():
    first, second = (
        brain_on(blank_image()),
        brain_on(blank_image(OBLIQUE, (0.9, 0.9, 5), centre=np.add(CENTRE, [20, 0, 0])), np.add(CENTRE, [20, 0, 0])),
    )
    grid = canonical_grid({"T1": first, "FLAIR": second}, "T1")
    # x: 12 - 30 to 32 + 30 = 80 mm and margins -> 96; y: 72 -> 96; z: 56 -> 64 or 96 with the thick slices' extent
    assert grid.size[:2] == (96, 96)
    for image in (first, second):
        points = voxel_points(image)[foreground(image)]
        assert (points.min(0) - 1 >= grid.origin).all()
        assert (points.max(0) + 1 <= np.add(grid.origin, grid.size) - 1).all()
    middle = np.add(grid.origin, (np.array(grid.size) - 1) / 2)
    np.testing.assert_allclose(middle[:2], np.add(CENTRE, [10, 0, 0])[:2], atol=2)
    offset = np.subtract(grid.origin, first.GetOrigin())
    np.testing.assert_allclose(offset, np.rint(offset), atol=1e-9)


def test_small_heads_get_64_voxels():
    image = blank_image(extent=50)
    values = np.zeros(image.GetSize()[::-1], np.float32)
    values[20:30, 20:30, 20:30] = np.arange(1000).reshape(10, 10, 10) + 1
    assert canonical_grid({"T1": array_to_image(values, image)}, "T1").size == (64, 64, 64)
    assert canonical_grid({"T1": array_to_image(values, image)}, "T1", multiple=48).size == (96, 96, 96)


def test_array_to_image_types():
    image = blank_image(extent=20)
    for dtype, kept in [("bool", "uint8"), ("float16", "float32"), ("int16", "int16")]:
        made = array_to_image(np.ones(image.GetSize()[::-1], dtype), image)
        assert sitk.GetArrayViewFromImage(made).dtype == kept
        assert made.GetOrigin() == image.GetOrigin()


def test_known_foregrounds_are_used():
    image = brain_on(blank_image())
    mask = foreground(image)
    assert canonical_grid({"T1": image}, "T1", masks={"T1": mask}) == canonical_grid({"T1": image}, "T1")
    small = np.zeros_like(mask)
    small[40:44, 40:44, 40:44] = True
    assert canonical_grid({"T1": image}, "T1", masks={"T1": small}).size == (64, 64, 64)


def test_the_caller_is_asked_before_each_class_that_is_interpolated():
    image = brain_on(blank_image(OBLIQUE))
    grid = canonical_grid({"T1": image}, "T1")
    probabilities = np.zeros((4, *grid.shape), np.float32)
    asked = []

    def stop_at_the_third():
        asked.append(None)
        if len(asked) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        labels_to_native(probabilities, grid, image, stop_at_the_third)
    assert len(asked) == 3
