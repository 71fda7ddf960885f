"""Whether two volumes that lie on each other show one brain: a patient's edges run the same way on any contrast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from .overlap import sample_mask
from .registration import IDENTITY
from .volume_checks import voxel_columns

POINTS = 4000
STEP_MM = 3.0
# So far inside the brain: the outline of sequences that were stripped with one mask is the same, and proves nothing.
DEPTH_MM = 6.0
# Grey levels are compared at so many mm on both sides of a point, and after a shift by so many.
REACH_MM, SHIFT_MM = 2.0, 5.0
BINS = 24
# Fewer points or less alike neighbours: a slab, or noise; nothing can be told.
LEAST_POINTS = 1000
LEAST_SMOOTHNESS = 0.15
# A lesion is no structure of the whole brain.
CLIP_PERCENTILES = (5.0, 95.0)
# Edges so parallel need no second look.
PLAINLY_SAME_EDGES = 0.5
# Sum of both measures below which two brains are different ones. It was set on 46 patients of BraTS and tried on 10
# others. As they lie: below are 1 of 276 pairs of one patient (others: 0 of 60) and 257 of 258 pairs of two patients
# (54 of 54). Moved, in half of the pairs with slices of 3 to 6 mm, and registered again: 1 of 92 (0 of 40) and 85 of 92
# (38 of 40).
SAME_BRAIN = 0.45


@dataclass(frozen=True)
class Likeness:
    """How alike two brains are inside.

    edges: mean squared cosine between their grey-level gradients where both have an edge; 1/3 for volumes that have
    nothing to do with each other, 1 where all edges are parallel. fall: mutual information in bits that is lost when
    one is shifted by `SHIFT_MM`; None where the edges settle it.
    """

    edges: float
    fall: Optional[float] = None

    @property
    def same(self) -> bool:
        """Whether they can be one brain."""
        return self.fall is None or self.edges + self.fall >= SAME_BRAIN


def likeness(
    fixed: sitk.Image,
    fixed_mask: np.ndarray,
    moving: sitk.Image,
    moving_mask: np.ndarray,
    matrix: Optional[np.ndarray] = None,
) -> Optional[Likeness]:
    """How alike the insides of two brains are; None where it cannot be told.

    The masks (D, H, W) say where the brains are; `matrix` (3, 4) takes points of the fixed volume's space to the moving
    one's (LPS mm), None for the same space.
    """
    matrix = IDENTITY if matrix is None else matrix
    points = _interior(fixed, fixed_mask)
    there = points @ matrix[:, :3].T + matrix[:, 3]
    both = sample_mask(moving_mask, moving, there)
    if np.count_nonzero(both) < LEAST_POINTS:
        return None
    points, there = points[both], there[both]
    first, first_smooth = _gradients(fixed, points, np.eye(3))
    second, second_smooth = _gradients(moving, there, matrix[:, :3])
    if min(first_smooth, second_smooth) < LEAST_SMOOTHNESS:
        return None
    edges = _parallel(first, second)
    if edges >= PLAINLY_SAME_EDGES:
        return Likeness(edges)
    return Likeness(edges, _fall(_values(fixed, points), moving, there))


def _interior(image: sitk.Image, mask: np.ndarray) -> np.ndarray:
    """Up to `POINTS` points (N, 3), LPS mm, that lie about `DEPTH_MM` inside `mask` (D, H, W)."""
    steps = np.array([max(1, round(STEP_MM / spacing)) for spacing in image.GetSpacing()])
    coarse = mask[:: steps[2], :: steps[1], :: steps[0]].astype(np.uint8)
    reach = [2 * max(1, round(DEPTH_MM / length)) + 1 for length in (steps * image.GetSpacing())[::-1]]
    index = np.argwhere(ndimage.minimum_filter(coarse, reach, mode="constant"))
    if len(index) > POINTS:
        index = index[np.random.default_rng(0).choice(len(index), POINTS, replace=False)]
    return index[:, ::-1] * steps @ voxel_columns(image).T + image.GetOrigin()


def _values(image: sitk.Image, points: np.ndarray) -> np.ndarray:
    index = (points - image.GetOrigin()) @ np.linalg.inv(voxel_columns(image)).T
    voxels = sitk.GetArrayViewFromImage(image)
    values: np.ndarray = ndimage.map_coordinates(voxels, index[:, ::-1].T, order=1, output=np.float32, mode="nearest")
    return values


def _gradients(image: sitk.Image, points: np.ndarray, axes: np.ndarray) -> tuple[np.ndarray, float]:
    """Grey-level differences (N, 3) along the columns of `axes` (3, 3), and how alike the two sides of a point are."""
    sides = np.stack([_values(image, points + sign * REACH_MM * axis) for sign in (1, -1) for axis in axes.T])
    clipped = np.clip(sides, *np.percentile(sides, CLIP_PERCENTILES))
    return (sides[:3] - sides[3:]).T, _correlation(clipped[:3].ravel(), clipped[3:].ravel())


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    scale = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / scale if scale else 0.0


def _parallel(first: np.ndarray, second: np.ndarray) -> float:
    """Mean squared cosine between gradients (N, 3) where both are stronger than their median; 0 where none is."""
    lengths = np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=1)
    edges = (lengths[0] > np.median(lengths[0])) & (lengths[1] > np.median(lengths[1]))
    if not edges.any():
        return 0.0
    cosines = (first[edges] * second[edges]).sum(axis=1) / (lengths[0][edges] * lengths[1][edges])
    return float(np.mean(cosines**2))


def _fall(fixed: np.ndarray, moving: sitk.Image, points: np.ndarray) -> float:
    """Bits of mutual information with the values `fixed` (N,) that `moving` loses when shifted by `SHIFT_MM`."""
    levels = _levels(fixed)
    shifts = SHIFT_MM * np.concatenate([np.eye(3), -np.eye(3)])
    apart = [_information(levels, _levels(_values(moving, points + shift))) for shift in shifts]
    return _information(levels, _levels(_values(moving, points))) - float(np.mean(apart))


def _levels(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, (1, 99))
    if not high > low:
        return np.zeros(values.shape, np.intp)
    return np.clip((values - low) * (BINS / (high - low)), 0, BINS - 1).astype(np.intp)


def _information(first: np.ndarray, second: np.ndarray) -> float:
    joint = np.bincount(first * BINS + second, minlength=BINS * BINS).reshape(BINS, BINS) / len(first)
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    used = joint > 0
    return float(np.sum(joint[used] * np.log2(joint[used] / apart[used])))
