"""Diameters of shapes whose answers are known, on straight, thick, oblique and sheared grids."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from MSTKDSegmentLib.diameters import Diameters, lesion_diameters, measure
from phantom import OBLIQUE
from scipy.spatial import distance

UNIT = np.eye(3)


def ball(radius: float, spacing=(1.0, 1.0, 1.0), side: int = 61) -> np.ndarray:
    z, y, x = np.indices((side, side, side)) - side // 2
    return (x * spacing[0]) ** 2 + (y * spacing[1]) ** 2 + (z * spacing[2]) ** 2 <= radius**2


def test_nothing_has_no_diameter():
    assert lesion_diameters(np.zeros((4, 5, 6), bool), UNIT) == Diameters(0.0, 0.0, 0.0)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 1.0), (1.0, 1.0, 3.0)])
def test_a_ball_is_as_wide_everywhere(spacing):
    found = lesion_diameters(ball(20, spacing), np.diag(spacing))
    # Voxels count as a whole, so a radius of 20 mm may be half a voxel more on either side.
    assert found.longest_mm == pytest.approx(40, abs=max(spacing) + 0.01)
    assert found.axial_longest_mm == pytest.approx(40, abs=1.01)
    assert found.axial_perpendicular_mm == pytest.approx(found.axial_longest_mm, rel=0.03)


def test_a_straight_rod_has_its_length_to_the_outer_faces():
    mask = np.zeros((9, 9, 40), bool)
    mask[4, 4, 5:35] = True
    found = lesion_diameters(mask, np.diag([0.5, 2.0, 1.0]))
    assert found.longest_mm == pytest.approx(30 * 0.5)
    assert found.axial_longest_mm == pytest.approx(30 * 0.5)
    assert found.axial_perpendicular_mm == pytest.approx(2.0)  # one voxel along y


def test_an_ellipse_gives_both_axes_of_rano_and_the_slices_are_axial():
    z, y, x = np.indices((31, 61, 61)) - np.array([15, 30, 30]).reshape(3, 1, 1, 1)
    mask = (x / 24) ** 2 + (y / 12) ** 2 + (z / 4) ** 2 <= 1
    found = lesion_diameters(mask, UNIT)
    assert (found.longest_mm, found.axial_longest_mm) == pytest.approx((49, 49), abs=0.1)
    assert found.axial_perpendicular_mm == pytest.approx(25, abs=0.6)
    # The same voxels with the patient's axes along others of the grid: what was sagittal is axial now.
    turned = lesion_diameters(mask, UNIT[:, [2, 0, 1]])  # grid x runs along the patient's z, y along x, z along y
    assert turned.longest_mm == pytest.approx(found.longest_mm)
    assert turned.axial_longest_mm == pytest.approx(25, abs=0.1)
    assert turned.axial_perpendicular_mm == pytest.approx(9, abs=0.6)


def test_an_oblique_grid_changes_nothing():
    mask = ball(14, side=41)
    straight, oblique = lesion_diameters(mask, UNIT), lesion_diameters(mask, OBLIQUE)
    for name in ("longest_mm", "axial_longest_mm", "axial_perpendicular_mm"):
        assert getattr(oblique, name) == pytest.approx(getattr(straight, name))


def test_a_sheared_grid_is_measured_in_millimetres():
    # Steps along y also go along x: the square of voxels is a parallelogram whose long diagonal is known.
    columns = np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    mask = np.zeros((3, 22, 22), bool)
    mask[1, 1:21, 1:21] = True
    found = lesion_diameters(mask, columns)
    assert found.axial_longest_mm == pytest.approx(np.hypot(40, 20), abs=1.5)
    # The chord at right angles through the parallelogram's middle: area / long diagonal * 2 for a rhombus-like shape.
    assert found.axial_perpendicular_mm < found.axial_longest_mm / 2


def test_only_the_largest_piece_counts_and_only_pieces_of_one_slice():
    mask = np.zeros((20, 60, 60), bool)
    mask[5:15, 5:20, 5:20] = True
    mask[10, 50, 50] = True  # a speck far away
    # On slice 15 the lesion ends in two horns, 15 mm apart: they are no single diameter there.
    mask[15, 5:20, 5] = mask[15, 5:20, 19] = True
    found = lesion_diameters(mask, UNIT)
    assert found.longest_mm < 30
    assert found.axial_longest_mm == pytest.approx(np.hypot(15, 15), abs=1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_any_mask_agrees_with_the_slow_way(seed):
    random = np.random.default_rng(seed)
    mask = np.zeros((6, 8, 9), bool)
    mask[1:5, 1:7, 1:8] = random.random((4, 6, 7)) < 0.6
    mask[2, 3, 1:8] = True  # one piece that surely is the largest
    columns = np.diag(random.uniform(0.5, 3, 3))
    found = lesion_diameters(mask, columns)
    from scipy import ndimage

    numbered, count = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(numbered.ravel())[1:]
    piece = numbered == 1 + sizes.argmax()
    points = []
    for z, y, x in np.argwhere(piece):
        for step in np.vstack([UNIT, -UNIT]):
            i, j, k = (np.array([x, y, z]) + step).astype(int)
            if not piece[k, j, i]:
                points.append((np.array([x, y, z]) + step / 2) @ columns.T)
    assert found.longest_mm == pytest.approx(distance.pdist(np.array(points)).max())
    assert 0 < found.axial_perpendicular_mm <= found.axial_longest_mm + 1e-9 <= found.longest_mm + 2e-9
    assert count >= 1


def test_measure_gives_volumes_and_diameters_of_every_structure():
    labels = np.zeros((20, 24, 28), np.uint8)
    labels[4:16, 4:20, 4:24] = 2
    labels[6:14, 8:16, 8:18] = 3
    labels[8:12, 10:14, 10:14] = 1
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing((1.0, 1.0, 2.0))
    found = measure(labels, image)
    assert list(found) == ["WT", "TC", "ET", "NCR", "ED"]
    assert found["WT"]["volume_ml"] == pytest.approx(12 * 16 * 20 * 2 / 1000)
    assert found["NCR"]["volume_ml"] == pytest.approx(4 * 4 * 4 * 2 / 1000)
    assert found["ET"]["volume_ml"] == pytest.approx((8 * 8 * 10 - 64) * 2 / 1000)
    assert found["TC"]["axial_longest_mm"] == pytest.approx(found["ET"]["axial_longest_mm"])
    assert found["WT"]["longest_mm"] == pytest.approx(np.sqrt(20**2 + 16**2 + 24**2), abs=2)
    empty = measure(np.zeros_like(labels), image)
    assert all(value == 0 for values in empty.values() for value in values.values())
