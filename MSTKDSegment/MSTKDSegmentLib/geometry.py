"""The canonical 1 mm grid that all volumes of a patient share, and the way there and back.

The network sees one LPS-aligned 1 mm grid around the head. Where a volume's own lattice coincides with it (any axis
order and flips), going there and back copies voxels and interpolates nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Callable, NamedTuple, Optional

import numpy as np
import SimpleITK as sitk

from .overlap import foreground
from .regions import region_probabilities, regions_to_labels
from .registration import IDENTITY, as_transform, inverted
from .volume_checks import voxel_columns

LATTICE_TOLERANCE = 1e-3  # of axis vectors, per voxel: 0.13 mm at the rim of 256 voxels
LATTICE_OFFSET_TOLERANCE = 1e-2  # voxels


@dataclass(frozen=True)
class CanonicalGrid:
    """A 1 mm grid along the LPS axes: `origin` (x, y, z) mm is the centre of voxel 0, `size` (x, y, z) in voxels."""

    origin: tuple[float, float, float]
    size: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W), the shape of arrays on this grid."""
        return self.size[2], self.size[1], self.size[0]


class _Lattice(NamedTuple):
    """Image index along `axis[j]` = `sign[j]` * grid index j + `offset[j]`, for grid axes j = x, y, z."""

    axis: tuple[int, ...]
    sign: tuple[int, ...]
    offset: tuple[int, ...]


# --- The canonical grid ---


def canonical_grid(
    images: Mapping[str, sitk.Image],
    reference: str,
    multiple: int = 32,
    margin_mm: float = 2.0,
    masks: Optional[Mapping[str, np.ndarray]] = None,
) -> CanonicalGrid:
    """The 1 mm LPS grid centred on the union of the foregrounds, each side a multiple of `multiple` and at least 64.

    One grid point lies on a voxel of `images[reference]`; where its lattice is LPS-aligned at 1 mm, so do all.
    `masks`: the images' foregrounds (D, H, W) where they are known already.
    """
    boxes = [_bounds(image, foreground(image) if masks is None else masks[name]) for name, image in images.items()]
    low = np.min([box[0] for box in boxes], axis=0)
    high = np.max([box[1] for box in boxes], axis=0)
    return grid_around(low, high, _middle(images[reference]), multiple, margin_mm)


def grid_around(
    low: np.ndarray, high: np.ndarray, anchor: np.ndarray, multiple: int = 32, margin_mm: float = 2.0
) -> CanonicalGrid:
    """The 1 mm LPS grid centred on the box from `low` to `high`, with one point at `anchor` (all (3,), LPS mm).

    Each side is a multiple of `multiple` voxels and at least 64.
    """
    low, high = low - margin_mm, high + margin_mm
    least = math.ceil(64 / multiple) * multiple
    size = np.maximum(np.ceil((high - low) / multiple - 1e-6).astype(int) * multiple, least)
    origin = (low + high) / 2 - (size - 1) / 2
    # A grid point on a voxel of the reference makes lattices of 1 mm coincide, and keeps those of 0.5 or 5 mm from
    # lying half-way between grid points. Ties go down, whatever the rounding noise and the order of the image's axes.
    origin = anchor + np.ceil(origin - anchor - 0.5 - 1e-6)
    x, y, z = (float(value) for value in origin)
    return CanonicalGrid((x, y, z), (int(size[0]), int(size[1]), int(size[2])))


def _bounds(image: sitk.Image, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest LPS coordinates (mm) of `mask` (D, H, W) on `image`, voxels' own extent included."""
    # A linear function of the index is extreme at the ends of a row, so two points a row give the exact box.
    z, y = np.nonzero(mask.any(axis=2))
    rows = mask[z, y]
    first, last = rows.argmax(axis=1), mask.shape[2] - 1 - rows[:, ::-1].argmax(axis=1)
    index = np.concatenate([np.stack([first, y, z], 1), np.stack([last, y, z], 1)])
    columns = voxel_columns(image)
    points = index @ columns.T + image.GetOrigin()
    half = np.abs(columns).sum(axis=1) / 2
    return points.min(axis=0) - half, points.max(axis=0) + half


def _middle(image: sitk.Image) -> np.ndarray:
    """LPS mm of the middle voxel: anchoring there halves what a spacing of 0.9995 adds up to at the rim."""
    return np.array(image.TransformIndexToPhysicalPoint([n // 2 for n in image.GetSize()]))


def _signed_permutation(matrix: np.ndarray) -> Optional[np.ndarray]:
    """`matrix` (3, 3) rounded, if it is a permutation of the axes with signs within the tolerance."""
    rounded = np.rint(matrix)
    exact = np.abs(matrix - rounded).max() <= LATTICE_TOLERANCE
    ones = np.abs(rounded)
    return rounded.astype(int) if exact and (ones.sum(0) == 1).all() and (ones.sum(1) == 1).all() else None


def _common_lattice(image: sitk.Image, grid: CanonicalGrid) -> Optional[_Lattice]:
    """How the image's voxels lie on the grid's, or None where they do not coincide."""
    steps = _signed_permutation(np.linalg.inv(voxel_columns(image)))
    if steps is None:
        return None
    middle = np.array([n // 2 for n in image.GetSize()])
    start = middle + steps @ (np.array(grid.origin) - _middle(image))  # image index of grid voxel 0
    if np.abs(start - np.rint(start)).max() > LATTICE_OFFSET_TOLERANCE:
        return None
    axis = np.abs(steps).argmax(axis=0)
    sign, offset = steps[axis, range(3)], np.rint(start)[axis].astype(int)
    return _Lattice(tuple(map(int, axis)), tuple(map(int, sign)), tuple(map(int, offset)))


def _common_views(native: np.ndarray, canonical: np.ndarray, lattice: _Lattice) -> tuple[np.ndarray, np.ndarray]:
    """Views of the two (D, H, W) arrays on the voxels that both have, in the canonical axis order."""
    view = native.transpose([2 - lattice.axis[j] for j in (2, 1, 0)])
    native_part, canonical_part = [], []
    for k, j in enumerate((2, 1, 0)):
        if lattice.sign[j] < 0:
            view = np.flip(view, k)
        # After the flip, index = grid index + shift.
        shift = lattice.offset[j] if lattice.sign[j] > 0 else view.shape[k] - 1 - lattice.offset[j]
        start = max(0, -shift)
        stop = max(start, min(canonical.shape[k], view.shape[k] - shift))
        canonical_part.append(slice(start, stop))
        native_part.append(slice(start + shift, stop + shift))
    return view[tuple(native_part)], canonical[tuple(canonical_part)]


# --- There and back ---


def to_canonical(
    image: sitk.Image,
    grid: CanonicalGrid,
    *,
    is_label: bool = False,
    default: float = 0.0,
    matrix: Optional[np.ndarray] = None,
) -> np.ndarray:
    """(D, H, W) float32 of `image` on `grid`; `default` outside the image.

    Copies voxels where the lattices coincide; else linear interpolation (labels: nearest neighbour). Axes sampled finer
    than 1/1.5 mm are smoothed first, so that the coarser grid shows no aliasing. `matrix` (3, 4) takes points of the
    grid's space to the image's (LPS mm); None where they share one.
    """
    lattice = _common_lattice(image, grid) if _same_space(matrix) else None
    if lattice is not None:
        result = np.full(grid.shape, default, np.float32)
        source, target = _common_views(sitk.GetArrayViewFromImage(image), result, lattice)
        target[...] = source
        return result
    if not is_label:
        image = _smoothed_for_1mm(sitk.Cast(image, sitk.sitkFloat32))
    interpolator = sitk.sitkNearestNeighbor if is_label else sitk.sitkLinear
    direction = np.eye(3).ravel().tolist()
    moved = sitk.Resample(
        image, grid.size, _transform(matrix), interpolator, grid.origin, (1.0, 1.0, 1.0), direction, default,
        image.GetPixelID(),
    )  # fmt: skip
    return sitk.GetArrayFromImage(moved).astype(np.float32, copy=False)


def _same_space(matrix: Optional[np.ndarray]) -> bool:
    return matrix is None or np.array_equal(matrix, IDENTITY)


def _transform(matrix: Optional[np.ndarray]) -> sitk.Transform:
    return sitk.Transform() if matrix is None or _same_space(matrix) else as_transform(matrix)


def _smoothed_for_1mm(image: sitk.Image) -> sitk.Image:
    # Variance that takes a point spread of one voxel's FWHM to one of 1 mm (Cardoso et al. 2015, MICCAI).
    variance = [(1.0 - s * s) / (8 * math.log(2)) if s * 1.5 < 1.0 else 0.0 for s in image.GetSpacing()]
    return sitk.DiscreteGaussian(image, variance, useImageSpacing=True) if any(variance) else image


def to_native(
    array: np.ndarray,
    grid: CanonicalGrid,
    reference_image: sitk.Image,
    *,
    is_label: bool,
    matrix: Optional[np.ndarray] = None,
) -> np.ndarray:
    """`array` (D, H, W) on `grid` brought to the voxels of `reference_image`, 0 outside the grid.

    Labels keep their type (nearest neighbour); other values become float32 (linear interpolation). An exact copy where
    the lattices coincide. `matrix` as in `to_canonical`: from the grid's space to the image's. Raises ValueError when
    the array does not have the grid's shape.
    """
    if array.shape != grid.shape:
        raise ValueError(f"array of shape {array.shape} on a grid of shape {grid.shape}")
    dtype = array.dtype if is_label else np.dtype(np.float32)
    lattice = _common_lattice(reference_image, grid) if _same_space(matrix) else None
    if lattice is not None:
        result = np.zeros(reference_image.GetSize()[::-1], dtype)
        target, source = _common_views(result, array, lattice)
        target[...] = source
        return result
    carried = np.uint8 if is_label and array.dtype == bool else dtype
    image = sitk.GetImageFromArray(np.ascontiguousarray(array, carried))
    image.SetOrigin(grid.origin)
    interpolator = sitk.sitkNearestNeighbor if is_label else sitk.sitkLinear
    back = _transform(None if matrix is None else inverted(matrix))
    return sitk.GetArrayFromImage(sitk.Resample(image, reference_image, back, interpolator, 0.0)).astype(
        dtype, copy=False
    )


def labels_to_native(
    probabilities: np.ndarray,
    grid: CanonicalGrid,
    reference_image: sitk.Image,
    between: Optional[Callable[[], None]] = None,
    matrix: Optional[np.ndarray] = None,
    thresholds: Optional[Sequence[float]] = None,
) -> np.ndarray:
    """Labels (D, H, W) uint8 at each voxel of `reference_image` from class probabilities (C, D, H, W) on `grid`.

    With `thresholds` (of WT, TC, ET; C = 4) a voxel belongs to a region from that probability on and if it belongs to
    the regions around it; without, its class is the most probable one. Background also outside the grid and where
    classes tie. Probabilities are interpolated before the choice, which keeps borders smooth; where the lattices
    coincide the choice is copied. One array at a time is held. `between` is called before each is interpolated; what
    it raises ends the work. `matrix` as in `to_native`.
    """
    if _same_space(matrix) and _common_lattice(reference_image, grid) is not None:
        return to_native(choose_labels(probabilities, thresholds), grid, reference_image, is_label=True)

    def interpolated() -> Iterator[np.ndarray]:
        for one in _compared(probabilities, thresholds):
            if between is not None:
                between()
            yield to_native(one, grid, reference_image, is_label=False, matrix=matrix)

    return _chosen(interpolated(), thresholds)


def choose_labels(probabilities: np.ndarray, thresholds: Optional[Sequence[float]]) -> np.ndarray:
    """`labels_to_native` on the grid of `probabilities` (C, D, H, W) itself."""
    return _chosen(_compared(probabilities, thresholds), thresholds)


def _compared(probabilities: np.ndarray, thresholds: Optional[Sequence[float]]) -> np.ndarray:
    """What the choice is made from: the classes, or with `thresholds` the regions."""
    return probabilities if thresholds is None else region_probabilities(probabilities)


def _chosen(arrays: Iterable[np.ndarray], thresholds: Optional[Sequence[float]]) -> np.ndarray:
    if thresholds is None:
        return _most_probable(arrays)
    return regions_to_labels(*(probability >= threshold for probability, threshold in zip(arrays, thresholds)))


def _most_probable(classes: Iterable[np.ndarray]) -> np.ndarray:
    best, labels = np.empty(0), np.empty(0, np.uint8)
    for label, probability in enumerate(classes):
        if label == 0:
            best, labels = probability.astype(np.float32), np.zeros(probability.shape, np.uint8)
            continue
        better = probability > best
        labels[better] = label
        np.copyto(best, probability, where=better)
    return labels


def array_to_image(array: np.ndarray, reference_image: sitk.Image) -> sitk.Image:
    """`array` (D, H, W) as an image in the place of `reference_image`; bool becomes uint8, float16 float32.

    Raises ValueError when the shapes differ.
    """
    if array.shape != tuple(reference_image.GetSize()[::-1]):
        raise ValueError(f"array of shape {array.shape} for an image of shape {reference_image.GetSize()[::-1]}")
    kept = {"bool": np.uint8, "float16": np.float32}.get(array.dtype.name, array.dtype)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array, kept))
    image.CopyInformation(reference_image)
    return image
