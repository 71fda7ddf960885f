"""What the quality report shows: sequences over each other, brain and tumour on each of them.

Pairs of sequences are shown in the canonical space; brain and tumour on the voxels of each sequence, as it was taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Optional

import numpy as np
import SimpleITK as sitk

from .alignment import mutual_information, samples
from .pipeline import PreparedCase
from .preparation_record import SequenceRecord
from .quality_slices import MARGIN_MM, Colour, Cut, Shown, brain_on, labels_on, middle_of
from .regions import LABELS, bounding_box, volumes_ml, voxel_volume_ml
from .registration import as_transform, composed, inverted
from .report_case import PLANES, Plane, fullest_slices
from .report_picture import slice_position
from .report_template import format_ml

BRAIN_COLOUR: Colour = (0.25, 0.85, 1.0)
OTHER_COLOUR: Colour = (1.0, 0.82, 0.55)  # of the tiles that show the other sequence
WHITE: Colour = (1.0, 1.0, 1.0)
TILE_MM = 20
OBLIQUE_DEGREES = 5.0


@dataclass(frozen=True)
class View:
    """Three slices that belong together. legend: words in the colours that they explain. close: as large as fits."""

    heading: str
    caption: str
    cuts: Sequence[Cut]
    legend: Sequence[tuple[str, Colour]]
    close: bool = False


Row = tuple[View, ...]


# --- sequences over each other ---------------------------------------------------------------------------------------


def registration_rows(case: PreparedCase, shown: Mapping[str, Shown]) -> list[Row]:
    """Each sequence over the reference: before and after in one row where it was moved, else once, two to a row."""
    rows: list[Row] = []
    unmoved: list[View] = []
    for name, record in case.record.sequences.items():
        if name == case.reference:
            continue
        matrix = case.matrix(name)
        if record.moved:
            scanner = case.matrix(case.reference)
            pair = (case.reference, name)
            before = _pair(case, shown, pair, scanner, "before registration", _before_text(record))
            rows.append((before, _pair(case, shown, pair, matrix, "after registration", _after_text(record))))
        else:
            text = _unmoved_text(case, record)
            unmoved.append(_pair(case, shown, (case.reference, name), matrix, "not moved", text))
    return rows + _two_to_a_row(unmoved)


def other_pair_rows(case: PreparedCase, shown: Mapping[str, Shown]) -> list[Row]:
    """Every two sequences other than the reference over each other as they lie now, two to a row."""
    others = [name for name in case.record.sequences if name != case.reference]
    views = []
    for first, second in combinations(others, 2):
        text = f"As both lie on {case.reference} now. Similarity {_bits(_similarity(case, first, second))}."
        moved = any(case.record.sequences[name].moved for name in (first, second))
        state = "after registration" if moved else "not moved"
        views.append(_pair(case, shown, (first, second), case.matrix(second), state, text))
    return _two_to_a_row(views)


def _similarity(case: PreparedCase, first: str, second: str) -> Optional[float]:
    """Mutual information in bits inside the brain; None where `first` shows no brain."""
    mask = brain_on(case, first)
    if not mask.any():
        return None
    between = composed(case.matrix(second), inverted(case.matrix(first)))
    return mutual_information(samples(case.volumes[first].image, mask), case.volumes[second].image, between)


def _two_to_a_row(views: Sequence[View]) -> list[Row]:
    return [tuple(views[n : n + 2]) for n in range(0, len(views), 2)]


def _pair(
    case: PreparedCase, shown: Mapping[str, Shown], pair: tuple[str, str], matrix: np.ndarray, state: str, caption: str
) -> View:
    """Tiles of the two of `pair`; `matrix` (3, 4) leads from the canonical space to the second one's."""
    under, over = pair
    margin = round(MARGIN_MM)
    inner = bounding_box(case.brain) or tuple(slice(0, size) for size in case.brain.shape)
    box = [slice(side.start - margin, side.stop + margin) for side in inner]  # the sequences go on beyond the grid
    middle = middle_of(box)
    place = sitk.Image(1, 1, 1, sitk.sitkUInt8)
    place.SetOrigin((np.array(case.grid.origin) + middle[::-1]).tolist())
    cuts = []
    for plane in PLANES:
        sides = [slice(n, n + 1) if axis == plane.axis else box[axis] for axis, n in enumerate(middle)]
        first = _sampled(case, under, case.matrix(under), plane, sides, shown)
        second = _sampled(case, over, matrix, plane, sides, shown)
        title = f"{plane.name}, {slice_position(place, plane.axis, (0, 0, 0))}"
        tiles = tiles_of(first.shape, TILE_MM)
        cuts.append(Cut(plane, title, checkerboard(first, second, tiles), (1.0, 1.0), (), tiles))
    legend = ((f"{under} tiles", WHITE), (f"{over} tiles", OTHER_COLOUR))
    return View(f"{over} over {under}, {state}", caption, cuts, legend)


def checkerboard(first: np.ndarray, second: np.ndarray, tiles: np.ndarray) -> np.ndarray:
    """`second` where `tiles`, else `first`; all (rows, columns)."""
    return np.where(tiles, second, first)


def tiles_of(shape: Sequence[int], side: int) -> np.ndarray:
    """(rows, columns) bool: squares of `side` pixels like a chessboard's, the first one False."""
    rows, columns = (np.arange(size) // side for size in shape)
    return np.asarray((rows[:, None] + columns) % 2 == 1)


def _sampled(
    case: PreparedCase,
    name: str,
    matrix: np.ndarray,
    plane: Plane,
    sides: Sequence[slice],
    shown: Mapping[str, Shown],
) -> np.ndarray:
    """The slice `sides` (z, y, x) of the canonical grid on the sequence: 0 to 1, black where it does not reach."""
    start = case.grid.origin + np.array([side.start for side in sides[::-1]])
    there = sitk.Resample(
        case.volumes[name].image, [side.stop - side.start for side in sides[::-1]], as_transform(matrix),
        sitk.sitkLinear, start.tolist(), (1.0, 1.0, 1.0), np.eye(3).ravel().tolist(), shown[name].dark,
    )  # fmt: skip
    return shown[name].evened(plane.cut(sitk.GetArrayViewFromImage(there), 0, (slice(None),) * 3))


def _bits(value: Optional[float]) -> str:
    return "not measured" if value is None else f"{value:.2f} bits"


def _before_text(record: SequenceRecord) -> str:
    return f"Where its own coordinates place it. Similarity {_bits(record.similarity_before)}."


def _after_text(record: SequenceRecord) -> str:
    return (
        f"Moved by {record.moved_mm:.1f} mm, turned by {record.degrees:.1f} degrees. "
        f"Similarity {_bits(record.similarity_before)} -> {_bits(record.similarity_after)}."
    )


def _unmoved_text(case: PreparedCase, record: SequenceRecord) -> str:
    told = "registered" in case.record.told
    reason = "Left where it is, as you said." if told else "Left where it is: it lies right already."
    if record.failed:
        reason = "Could not be registered and was left where it is: check it by eye."
    return f"{reason} Similarity {_bits(record.similarity_after)}."


# --- brain and tumour ------------------------------------------------------------------------------------------------


def native_rows(case: PreparedCase, shown: Mapping[str, Shown], labels: Optional[np.ndarray]) -> list[Row]:
    """Brain and tumour on each sequence in one row; without `labels` (as in `labels_on`) the brain, two to a row."""
    brains = [_brain_view(case, name, one) for name, one in shown.items()]
    if labels is None:
        return _two_to_a_row(brains)
    return [(brain, _tumour_view(case, labels, name, one)) for brain, (name, one) in zip(brains, shown.items())]


def _brain_view(case: PreparedCase, name: str, one: Shown) -> View:
    sides = " x ".join(f"{side:.2f}" for side in case.volumes[name].image.GetSpacing())
    caption = f"Voxels of {sides} mm{_oblique(one.grid)}. Brain {_ml(one.brain, one.grid):.0f} ml on this sequence."
    heading = f"{name}{' (reference)' if name == case.reference else ''}, brain"
    cuts = one.cuts(middle_of(one.box), [(BRAIN_COLOUR, one.brain)], one.box)
    return View(heading, caption, cuts, (("Brain", BRAIN_COLOUR),))


def _tumour_view(case: PreparedCase, labels: np.ndarray, name: str, one: Shown) -> View:
    here = one.turned(labels_on(case, labels, name))
    box = bounding_box(here)
    heading = f"{name}, tumour"
    legend = [(item.key, item.colour) for item in LABELS]
    if box is None:
        nothing = "No tumour is marked." if not labels.any() else "The tumour found lies outside this sequence."
        return View(heading, nothing, one.cuts(middle_of(one.box), (), one.box), legend)
    volumes = volumes_ml(here[box], voxel_volume_ml(one.grid.GetSpacing(), one.grid.GetDirection()))
    texts = ", ".join(f"{key} {format_ml(volumes[key])}" for key in ("WT", "TC", "ET"))
    masks = [(item.colour, here == item.labels[0]) for item in LABELS]
    return View(
        heading,
        f"The slices with most tumour in each plane. On this sequence's voxels: {texts} ml.",
        one.cuts(fullest_slices(here > 0), masks, one.box_around(box)),
        legend,
        close=True,
    )


def _ml(mask: np.ndarray, grid: sitk.Image) -> float:
    return float(np.count_nonzero(mask)) * voxel_volume_ml(grid.GetSpacing(), grid.GetDirection())


def _oblique(grid: sitk.Image) -> str:
    axes = np.abs(np.reshape(grid.GetDirection(), (3, 3)).diagonal())
    degrees = float(np.degrees(np.arccos(np.clip(axes.min(), 0, 1))))
    return f", slices tilted by up to {degrees:.0f} degrees" if degrees > OBLIQUE_DEGREES else ""
