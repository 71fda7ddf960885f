"""How well two volumes lie on each other: mutual information at some thousand points, and where its maximum is near by.

This is the cheap look that tells registered sequences from moved ones; `registration` moves them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from .volume_checks import voxel_columns

BINS = 32
POINTS = 12000
# Grey levels beyond these percentiles fall into the outermost bins.
LEVELS_PERCENTILES = (1.0, 99.0)


@dataclass(frozen=True)
class Samples:
    """Points (N, 3) in LPS mm inside the brain of one volume, and its grey level at each, in `BINS` bins."""

    points: np.ndarray
    levels: np.ndarray


def samples(image: sitk.Image, mask: np.ndarray, count: int = POINTS, seed: int = 0) -> Samples:
    """`count` voxels of `image` drawn from `mask` (D, H, W); the same seed draws the same ones.

    Raises ValueError for an empty mask.
    """
    inside = np.flatnonzero(mask.ravel())
    if not inside.size:
        raise ValueError("no voxel to compare")
    drawn = np.random.default_rng(seed).choice(inside, min(count, inside.size), replace=False)
    index = np.stack(np.unravel_index(drawn, mask.shape), axis=1)
    points = index[:, ::-1] @ voxel_columns(image).T + image.GetOrigin()
    return Samples(points, _binned(sitk.GetArrayViewFromImage(image).reshape(-1)[drawn]))


def _binned(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, LEVELS_PERCENTILES)
    if not high > low:
        return np.zeros(values.shape, np.intp)
    return np.clip((values - low) * (BINS / (high - low)), 0, BINS - 1).astype(np.intp)


def mutual_information(fixed: Samples, moving: sitk.Image, matrix: Optional[np.ndarray] = None) -> float:
    """Mutual information in bits between `fixed` and `moving` at the same points, less where not all points overlap.

    It is weighted with the share of the points inside `moving`, and 0 where fewer than half are there. `matrix` (3, 4)
    takes points of the fixed volume's space to the moving one's (LPS mm), None for the same space.
    """
    points = fixed.points if matrix is None else fixed.points @ matrix[:, :3].T + matrix[:, 3]
    index = (points - moving.GetOrigin()) @ np.linalg.inv(voxel_columns(moving)).T
    inside = ((index >= 0) & (index <= np.array(moving.GetSize()) - 1)).all(axis=1)
    if np.count_nonzero(inside) < len(points) / 2:
        return 0.0
    view = sitk.GetArrayViewFromImage(moving)
    values = ndimage.map_coordinates(view, index[inside, ::-1].T, order=1, output=np.float32)
    joint = np.bincount(fixed.levels[inside] * BINS + _binned(values), minlength=BINS * BINS).reshape(BINS, BINS)
    return _information(joint / joint.sum()) * float(np.mean(inside))


def _information(joint: np.ndarray) -> float:
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    used = joint > 0
    return float(np.sum(joint[used] * np.log2(joint[used] / apart[used])))


@dataclass(frozen=True)
class Misalignment:
    """Where the best place near by is: `shift_mm` and `turn_degrees` (x, y, z) from where the volume lies now.

    `here` and `best` are the mutual information in bits now and at the best of the places tried.
    """

    shift_mm: tuple[float, float, float]
    turn_degrees: tuple[float, float, float]
    here: float
    best: float

    @property
    def millimetres(self) -> float:
        """Length of the shift."""
        return float(np.linalg.norm(self.shift_mm))

    @property
    def degrees(self) -> float:
        """Size of the turn."""
        return float(np.linalg.norm(self.turn_degrees))


def misalignment(
    fixed: Samples,
    moving: sitk.Image,
    steps: Sequence[float] = (4.0, 4.0),
    rounds: int = 2,
    worth_a_round: float = 0.0,
) -> Misalignment:
    """Tries shifts and turns of `steps` (mm, degrees) both ways along each axis and takes the parabola's maximum.

    In each further round the steps are halved; there is none where those before it won less than `worth_a_round` bits.
    Turns are about the middle of the points.
    """
    place = np.zeros(6)
    middle = fixed.points.mean(axis=0)
    here = mutual_information(fixed, moving)
    best = here
    for round_number in range(rounds):
        if round_number and best - here < worth_a_round:
            break
        for axis in range(6):
            step = (steps[0] if axis < 3 else steps[1]) / 2**round_number
            around = []
            for sign in (-1, 1):
                tried = place.copy()
                tried[axis] += sign * step
                around.append(mutual_information(fixed, moving, rigid_matrix(tried, middle)))
            moved = place.copy()
            moved[axis] += step * _vertex(around[0], best, around[1])
            value = mutual_information(fixed, moving, rigid_matrix(moved, middle))
            if value > best:
                place, best = moved, value
    x, y, z, a, b, c = (float(value) for value in place)
    return Misalignment((x, y, z), (a, b, c), here, best)


def _vertex(before: float, here: float, after: float) -> float:
    """Where the parabola through values at -1, 0 and 1 is highest, within -1.5 and 1.5; uphill where it has no top."""
    curvature = before - 2 * here + after
    if curvature >= 0:
        return 1.0 if after > before else -1.0
    return float(np.clip((before - after) / (2 * curvature), -1.5, 1.5))


def rigid_matrix(place: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """(3, 4): turn about `middle` by `place[3:]` degrees (about x, then y, then z), then shift by `place[:3]` mm."""
    x, y, z = np.deg2rad(place[3:])
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    turn = about_z @ about_y @ about_x
    return np.column_stack([turn, middle - turn @ middle + place[:3]])
