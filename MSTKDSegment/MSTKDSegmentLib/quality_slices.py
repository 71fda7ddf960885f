"""A case's sequences cut into slices for the quality report, with brain and tumour brought to each one's own voxels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable, Optional

import numpy as np
import SimpleITK as sitk

from .geometry import array_to_image, to_native
from .pipeline import PreparedCase
from .regions import require_labels
from .registration import as_transform, composed, inverted
from .report_case import PLANES, Plane, turned_to_lps
from .report_picture import Painter, box_with_margin, grey_window, slice_position

Colour = tuple[float, float, float]

MARGIN_MM = 12.0
# Around the tumour, and the least that is shown of each side.
TUMOUR_MARGIN_MM, LEAST_MM = 25.0, 100.0
# A voxel whose longest side is so many times its shortest one: the slices were taken across it.
THICK = 1.5


@dataclass(frozen=True)
class Cut:
    """One slice as displayed (rows, columns), first row on top.

    grey: 0 to 1. voxel_mm: a voxel's height and width. outlined, dashed: masks and the colours of their outlines.
    tiles: bool, where the second of two sequences is shown. painted: values that `painter` turns into colours
    over the slice, at the picture's pixels. mark: (row, column) of a voxel to point at.
    """

    plane: Plane
    title: str
    grey: np.ndarray
    voxel_mm: tuple[float, float]
    outlined: Sequence[tuple[Colour, np.ndarray]] = ()
    tiles: Optional[np.ndarray] = None
    dashed: Sequence[tuple[Colour, np.ndarray]] = ()
    painted: Optional[np.ndarray] = None
    painter: Optional[Painter] = None
    mark: Optional[tuple[int, int]] = None


@dataclass(frozen=True)
class Shown:
    """A sequence as it was taken: arrays (z, y, x) along the LPS axes that are closest to its own, on `grid`.

    brain: bool. box: around the brain with a margin. window: the grey levels to show. dark, median: of the brain's grey
    levels. turned: what turns arrays (D, H, W) of the sequence to such ones.
    """

    voxels: np.ndarray
    brain: np.ndarray
    grid: sitk.Image
    box: Sequence[slice]
    window: tuple[float, float]
    dark: float
    median: float
    turned: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def of(cls, case: PreparedCase, name: str) -> Shown:
        """The sequence `name` of the case."""
        image = case.volumes[name].image
        grid, turned = turned_to_lps(image)
        voxels, brain = turned(sitk.GetArrayViewFromImage(image)), turned(brain_on(case, name))
        box = box_with_margin(brain, grid.GetSpacing()[::-1], MARGIN_MM)
        inside, mask = voxels[tuple(box)], brain[tuple(box)]
        window = grey_window(np.where(mask, inside, inside.min()))  # scalp and fat are brighter than any brain
        values = inside[mask] if mask.any() else inside.ravel()
        dark, median = np.percentile(values[:: max(1, values.size // 100_000)], (1, 50))
        return cls(voxels, brain, grid, box, window, float(dark), float(median), turned)

    def evened(self, values: np.ndarray) -> np.ndarray:
        """0 to 1: the brain's median is equally bright whatever the sequence, and neither CSF nor fat is cut off."""
        ratio = np.maximum(values - self.dark, 0) / max(self.median - self.dark, 1e-6)
        return np.asarray(ratio**2 / (1 + ratio**2), np.float32)

    def box_around(self, tight: Sequence[slice]) -> list[slice]:
        """`tight` with `TUMOUR_MARGIN_MM` and sides of at least `LEAST_MM`, as far as they lie in `self.box`."""
        box = []
        for side, outer, mm in zip(tight, self.box, self.grid.GetSpacing()[::-1]):
            half = max((side.stop - side.start) / 2 + TUMOUR_MARGIN_MM / mm, LEAST_MM / 2 / mm)
            middle = (side.start + side.stop) / 2
            start, stop = max(outer.start, int(middle - half)), min(outer.stop, int(np.ceil(middle + half)))
            box.append(slice(min(start, side.start), max(stop, side.stop)))
        return box

    def cuts(
        self, index: Sequence[int], outlined: Sequence[tuple[Colour, np.ndarray]], box: Sequence[slice]
    ) -> list[Cut]:
        """Slices of `box` through `index` (z, y, x) with the outlines of the masks (z, y, x)."""
        return cuts_of(self.voxels, self.grid, self.window, index, box, outlined)


def cuts_of(
    voxels: np.ndarray,
    grid: sitk.Image,
    window: tuple[float, float],
    index: Sequence[int],
    box: Sequence[slice],
    outlined: Sequence[tuple[Colour, np.ndarray]] = (),
    dashed: Sequence[tuple[Colour, np.ndarray]] = (),
    painted: Optional[np.ndarray] = None,
    painter: Optional[Painter] = None,
    marked: bool = False,
) -> list[Cut]:
    """Three slices of `box` through `index` (z, y, x) of LPS arrays (z, y, x) on `grid`; see `Cut`.

    window: the grey levels to show. marked: point at `index`.
    """
    spacing = grid.GetSpacing()[::-1]
    thick = int(np.argmax(spacing)) if max(spacing) > THICK * min(spacing) else None
    cuts = []
    for plane in PLANES:
        down, across = plane.in_plane_axes
        taken = " (as taken)" if plane.axis == thick else ""
        at = index[plane.axis]
        cuts.append(
            Cut(
                plane,
                f"{plane.name}{taken}, {slice_position(grid, plane.axis, index)}",
                _grey(plane.cut(voxels, at, box), window),
                (spacing[down], spacing[across]),
                [(colour, plane.cut(mask, at, box)) for colour, mask in outlined],
                dashed=[(colour, plane.cut(mask, at, box)) for colour, mask in dashed],
                painted=None if painted is None else plane.cut(painted, at, box),
                painter=painter,
                mark=plane.place(index, box) if marked else None,
            )
        )
    return cuts


def shown_sequences(case: PreparedCase) -> dict[str, Shown]:
    """All sequences of the case, ready to be cut."""
    return {name: Shown.of(case, name) for name in case.volumes}


def brain_on(case: PreparedCase, name: str) -> np.ndarray:
    """The brain (D, H, W) bool on the voxels of the sequence `name`."""
    image, brain = case.volumes[name].image, case.brain.astype(np.float32)
    return to_native(brain, case.grid, image, is_label=False, matrix=case.matrix(name)) > 0.5


def labels_on(case: PreparedCase, labels: np.ndarray, name: str) -> np.ndarray:
    """`labels` (D, H, W, 0 to 3) of the reference's grid on the voxels of the sequence `name`, nearest neighbour.

    Raises ValueError where they are not on the reference's grid.
    """
    image = array_to_image(require_labels(labels), case.reference_image)
    if name == case.reference:
        return sitk.GetArrayFromImage(image)
    here, there = (case.matrix(one) for one in (case.reference, name))
    transform = as_transform(composed(here, inverted(there)))
    there_image = sitk.Resample(image, case.volumes[name].image, transform, sitk.sitkNearestNeighbor, 0.0)
    return sitk.GetArrayFromImage(there_image)


def _grey(values: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    low, high = window
    return np.clip((values - low) / (high - low), 0, 1).astype(np.float32)


def middle_of(box: Sequence[slice]) -> list[int]:
    """The index in the middle of a box."""
    return [(side.start + side.stop) // 2 for side in box]
