"""A case as a report shows it: turned to the patient's axes, cut into planes, through its largest lesion.

Radiological convention: the patient's right is on the left of the picture, anterior on the left of sagittal slices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Callable, Optional

import numpy as np
import SimpleITK as sitk

from .regions import components, require_labels


@dataclass(frozen=True)
class Plane:
    """How a plane is cut from an LPS array (z, y, x): the axis it is perpendicular to, and the letters at its edges."""

    name: str
    axis: int
    left: str
    right: str
    top: str
    bottom: str

    @property
    def in_plane_axes(self) -> tuple[int, int]:
        """The array axes that run down and across the picture."""
        down, across = (axis for axis in range(3) if axis != self.axis)
        return down, across

    def cut(self, volume: np.ndarray, index: int, box: Sequence[slice]) -> np.ndarray:
        """The slice as displayed, cropped to `box`, first row on top."""
        down, across = self.in_plane_axes
        plane = np.take(volume, index, axis=self.axis)[box[down], box[across]]
        return plane[::-1] if down == 0 else plane  # z grows upwards, y already grows downwards (to posterior)

    def place(self, index: Sequence[int], box: Sequence[slice]) -> tuple[int, int]:
        """Row and column of the voxel `index` (z, y, x) in the slice that `cut` gives."""
        down, across = self.in_plane_axes
        row = box[down].stop - 1 - index[down] if down == 0 else index[down] - box[down].start
        return row, index[across] - box[across].start


PLANES = (
    Plane("Axial", 0, "R", "L", "A", "P"),
    Plane("Coronal", 1, "R", "L", "S", "I"),
    Plane("Sagittal", 2, "A", "P", "S", "I"),
)


@dataclass(frozen=True)
class OrientedCase:
    """A case turned to LPS axes: arrays (z, y, x), spacing in mm in that order; `grid` knows where voxels lie."""

    images: Mapping[str, np.ndarray]
    labels: np.ndarray
    ground_truth: Optional[np.ndarray]
    spacing: tuple[float, float, float]
    grid: sitk.Image

    @classmethod
    def from_arrays(
        cls,
        images: Mapping[str, np.ndarray],
        labels: np.ndarray,
        ground_truth: Optional[np.ndarray],
        reference: sitk.Image,
    ) -> OrientedCase:
        """Turns arrays (D, H, W); ValueError if one is not on the reference's grid or there is no image."""
        if not images:
            raise ValueError("a report needs at least one image")
        size = reference.GetSize()[::-1]
        for array in (labels, *images.values(), *([] if ground_truth is None else [ground_truth])):
            if array.shape != size:
                raise ValueError(f"an array's grid {array.shape} is not the reference's {size}")
        grid, turned = turned_to_lps(reference)
        truth = None if ground_truth is None else turned(require_labels(ground_truth))
        x, y, z = grid.GetSpacing()
        oriented = {name: turned(array) for name, array in images.items()}
        return cls(oriented, turned(require_labels(labels)), truth, (z, y, x), grid)

    def lesion_slices(self) -> tuple[int, ...]:
        """Per axis the slice with most of the largest lesion (if none was found: the reference's), else the middle."""
        mask = self.labels > 0
        if not mask.any() and self.ground_truth is not None:
            mask = self.ground_truth > 0
        if not mask.any():
            return tuple(size // 2 for size in mask.shape)
        numbered, counts = components(mask)
        return fullest_slices(numbered == counts.argmax())


def turned_to_lps(reference: sitk.Image) -> tuple[sitk.Image, Callable[[np.ndarray], np.ndarray]]:
    """The reference's grid with LPS axes (its voxels hold nothing), and what turns an array (D, H, W) to it."""
    orient = sitk.DICOMOrientImageFilter()
    orient.SetDesiredCoordinateOrientation("LPS")
    # A stand-in of one byte per voxel says how the axes turn; numpy then turns all arrays without copying them.
    grid = sitk.Image(reference.GetSize(), sitk.sitkUInt8)
    grid.SetSpacing(reference.GetSpacing())
    grid.SetOrigin(reference.GetOrigin())
    grid.SetDirection(reference.GetDirection())
    grid = orient.Execute(grid)
    order = [2 - axis for axis in orient.GetPermuteOrder()[::-1]]
    steps = tuple(slice(None, None, -1 if flip else None) for flip in orient.GetFlipAxes()[::-1])
    return grid, lambda array: np.transpose(array, order)[steps]


def fullest_slices(mask: np.ndarray) -> tuple[int, ...]:
    """Per axis the index of the slice with most of `mask` (3-D, not empty)."""
    return tuple(_fullest(mask.sum(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3))


def _fullest(voxels: np.ndarray) -> int:
    """The index of the largest count; of several equal ones the middle one."""
    candidates = np.flatnonzero(voxels == voxels.max())
    return int(candidates[candidates.size // 2])
