"""Rigid registration of one volume to another by Mattes' mutual information, from coarse to fine (SimpleITK).

Everything is in physical space (LPS mm). It starts from where the scanner says that the volumes are, from their centres
and from where else they may lie; what it finds is kept only where it really lies better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Callable, Optional, TypeVar

import numpy as np
import SimpleITK as sitk

from .alignment import mutual_information, samples
from .errors import Cancelled

CancelCheck = Callable[[], bool]
Movable = TypeVar("Movable", sitk.Euler3DTransform, sitk.Similarity3DTransform, sitk.AffineTransform)

# Voxel sides (mm) of the levels, from coarse to fine.
LEVELS_MM = (6.0, 3.0, 2.0)
THICK = 1.3
SMOOTHING = 0.7  # voxels: mutual information of blocks that are not smoothed is rough
ITERATIONS = 120
BINS = 32
# Around the brain: its edge counts, and what lies further out moves by itself.
MASK_MARGIN_MM = 3.0
# Mutual information (bits) below which the volumes hardly tell anything of each other: other patients, other organs.
LEAST_INFORMATION = 0.08
# So much of the mutual information must be won for a movement to be believed.
LEAST_GAIN = 0.01


@dataclass(frozen=True)
class Registration:
    """`matrix` (3, 4) takes points of the fixed volume's space to the moving one's, LPS mm.

    before, after: mutual information in bits where the volumes lay and where they lie now. moved_mm: mean distance
    that the points of the brain went; degrees: size of the turn. start: where it set out ("scanner", "centres" or
    another), "" where nothing was found that lies better and `matrix` is the identity. failed: nothing that could be
    trusted was found.
    """

    matrix: np.ndarray
    before: float
    after: float
    moved_mm: float
    degrees: float
    start: str
    failed: bool = False


def unmoved(information: float, failed: bool = False) -> Registration:
    """No movement, for a volume that lies right or (`failed`) that could not be registered."""
    return Registration(IDENTITY.copy(), information, information, 0.0, 0.0, "", failed)


IDENTITY = np.eye(3, 4)


def register(
    fixed: sitk.Image,
    fixed_mask: np.ndarray,
    moving: sitk.Image,
    moving_mask: np.ndarray,
    starts: Mapping[str, np.ndarray] = MappingProxyType({}),
    cancel: Optional[CancelCheck] = None,
) -> Registration:
    """The rigid movement that lays `moving` on `fixed`; the masks (D, H, W) say where each one's brain or head is.

    It sets out from the scanner's coordinates, from the masks' centres, and from further `starts` (3, 4) by name; the
    best after the coarsest level goes on. Raises Cancelled within about a second of a true `cancel()`.
    """
    finest = coarser(fixed, LEVELS_MM[-1])
    probe = samples(finest, sitk.GetArrayViewFromImage(mask_on(finest, fixed, fixed_mask)).astype(bool))
    before = mutual_information(probe, moving)
    middle = centre(fixed, fixed_mask)
    apart = np.column_stack([np.eye(3), centre(moving, moving_mask) - middle])

    def information(transform: sitk.Euler3DTransform) -> float:
        return mutual_information(probe, moving, as_matrix(transform))

    # Coarse, the brains alone: a bright scalp draws the optimiser away.
    coarse = _Level.of(brain_only(fixed, fixed_mask), fixed_mask, brain_only(moving, moving_mask), LEVELS_MM[0])
    reached: list[tuple[str, sitk.Euler3DTransform]] = []
    for name, matrix in {"scanner": IDENTITY, **starts, "centres": apart}.items():
        begin = _euler(matrix, middle)
        reached += [(name, begin), (name, coarse.optimised(begin, cancel))]
    start, transform = max(reached, key=lambda one: information(one[1]))
    for side in LEVELS_MM[1:]:
        finer = _Level.of(fixed, fixed_mask, moving, side).optimised(transform, cancel)
        transform = max((transform, finer), key=information)
    after = information(transform)
    if after < before + LEAST_GAIN:
        return unmoved(before)
    matrix = as_matrix(transform)
    return Registration(matrix, before, after, *_movement(matrix, probe.points), start)


def stop_if(cancel: Optional[CancelCheck]) -> None:
    """Raises Cancelled where the user asked to stop."""
    if cancel is not None and cancel():
        raise Cancelled("cancelled; nothing was written")


def _euler(matrix: np.ndarray, middle: np.ndarray) -> sitk.Euler3DTransform:
    """The rigid `matrix` (3, 4) as a turn about `middle` and a shift."""
    transform = sitk.Euler3DTransform()
    transform.SetCenter(middle.tolist())
    transform.SetMatrix(matrix[:, :3].ravel().tolist(), 1e-4)
    transform.SetTranslation((matrix[:, :3] @ middle + matrix[:, 3] - middle).tolist())
    return transform


@dataclass(frozen=True)
class _Level:
    """Both volumes at one resolution."""

    fixed: sitk.Image
    mask: sitk.Image
    moving: sitk.Image
    side: float

    @classmethod
    def of(cls, fixed: sitk.Image, fixed_mask: np.ndarray, moving: sitk.Image, side: float) -> _Level:
        coarse = coarser(fixed, side)
        return cls(coarse, mask_on(coarse, fixed, fixed_mask), coarser(moving, side), side)

    def optimised(self, start: sitk.Euler3DTransform, cancel: Optional[CancelCheck]) -> sitk.Euler3DTransform:
        return optimised_level(self.fixed, self.mask, self.moving, start, self.side, cancel)


def brain_only(image: sitk.Image, mask: np.ndarray) -> sitk.Image:
    """`image` with 0 outside `mask` (D, H, W)."""
    alone = sitk.GetImageFromArray(np.where(mask, sitk.GetArrayViewFromImage(image), 0).astype(np.float32))
    alone.CopyInformation(image)
    return alone


def centre(image: sitk.Image, mask: np.ndarray) -> np.ndarray:
    """LPS mm of the centre of gravity of `mask` (D, H, W)."""
    index = [
        float(np.average(np.arange(n), weights=mask.sum(axis=tuple(k for k in range(3) if k != axis))))
        for axis, n in enumerate(mask.shape)
    ]
    return np.array(image.TransformContinuousIndexToPhysicalPoint(index[::-1]))


def _movement(matrix: np.ndarray, points: np.ndarray) -> tuple[float, float]:
    there = points @ matrix[:, :3].T + matrix[:, 3]
    cosine = (np.trace(matrix[:, :3]) - 1) / 2
    return float(np.linalg.norm(there - points, axis=1).mean()), math.degrees(math.acos(min(1.0, max(-1.0, cosine))))


def optimised_level(
    fixed: sitk.Image,
    mask: sitk.Image,
    moving: sitk.Image,
    start: Movable,
    side: float,
    cancel: Optional[CancelCheck] = None,
) -> Movable:
    """`start` moved to the nearest maximum of the mutual information inside `mask`; the first steps are of `side` / 2.

    Raises Cancelled.
    """
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(BINS)
    method.SetMetricFixedMask(mask)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=side / 2,
        minStep=0.02,
        numberOfIterations=ITERATIONS,
        relaxationFactor=0.6,
        gradientMagnitudeTolerance=1e-7,
    )
    method.SetOptimizerScalesFromPhysicalShift()
    found = type(start)(start)
    method.SetInitialTransform(found, inPlace=True)
    wish = {"stop": False}

    def look() -> None:
        if cancel is not None and cancel():
            wish["stop"] = True
            method.StopRegistration()

    if cancel is not None:
        method.AddCommand(sitk.sitkIterationEvent, look)
    try:
        method.Execute(fixed, moving)
    except RuntimeError:  # all sampled points lie outside the moving volume: this start leads nowhere
        found = start
    if wish["stop"]:
        raise Cancelled("cancelled; nothing was written")
    return found


def coarser(image: sitk.Image, side: float) -> sitk.Image:
    """`image` with voxels of about `side` mm: averaged in blocks, and interpolated across slices thicker than that.

    Slightly smoothed. Thick slices have to be interpolated: on their own lattice the mutual information is drawn to
    places where both volumes' slices coincide.
    """
    factors = [max(1, min(int(side / spacing + 1e-3), n)) for spacing, n in zip(image.GetSpacing(), image.GetSize())]
    shrunk = sitk.BinShrink(sitk.Cast(image, sitk.sitkFloat32), factors)
    if max(shrunk.GetSpacing()) > THICK * side:
        spacing = [min(s, side) for s in shrunk.GetSpacing()]
        size = [max(1, int((n - 1) * a / b) + 1) for n, a, b in zip(shrunk.GetSize(), shrunk.GetSpacing(), spacing)]
        shrunk = sitk.Resample(
            shrunk, size, sitk.Transform(), sitk.sitkLinear, shrunk.GetOrigin(), spacing, shrunk.GetDirection()
        )
    return sitk.DiscreteGaussian(shrunk, [SMOOTHING**2] * 3, useImageSpacing=False)


def mask_on(grid: sitk.Image, image: sitk.Image, mask: np.ndarray) -> sitk.Image:
    """`mask` (D, H, W) of `image`, wider by `MASK_MARGIN_MM`, on the coarser `grid`."""
    whole = sitk.GetImageFromArray(mask.astype(np.uint8))
    whole.CopyInformation(image)
    there = sitk.Resample(whole, grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    radius = [max(1, round(MASK_MARGIN_MM / s)) for s in grid.GetSpacing()]
    return sitk.BinaryDilate(there, radius, sitk.sitkBall)


def as_matrix(transform: sitk.Transform) -> np.ndarray:
    """(3, 4) of a linear transform: the point p goes to matrix[:, :3] @ p + matrix[:, 3]."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(unit)) - origin for unit in np.eye(3).tolist()]
    return np.column_stack([*columns, origin])


def as_transform(matrix: np.ndarray) -> sitk.AffineTransform:
    """The SimpleITK transform of a (3, 4) matrix."""
    return sitk.AffineTransform(matrix[:, :3].ravel().tolist(), matrix[:, 3].tolist())


def composed(*matrices: np.ndarray) -> np.ndarray:
    """(3, 4) that applies the last matrix first, as matrix products do."""
    result = np.eye(4)
    for matrix in matrices:
        result = result @ np.vstack([matrix, [0, 0, 0, 1]])
    return result[:3]


def inverted(matrix: np.ndarray) -> np.ndarray:
    """(3, 4) of the way back."""
    turn = np.linalg.inv(matrix[:, :3])
    return np.column_stack([turn, -turn @ matrix[:, 3]])


def distance_mm(first: np.ndarray, second: np.ndarray, points: Sequence[Sequence[float]]) -> float:
    """Mean distance between where two matrices (3, 4) take `points` (N, 3)."""
    at = np.asarray(points, float)
    apart = at @ (first[:, :3] - second[:, :3]).T + first[:, 3] - second[:, 3]
    return float(np.linalg.norm(apart, axis=1).mean())
