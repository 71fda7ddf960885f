"""The figures of a review as words and cells of tables, the same in every report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

import numpy as np

from ..errors import MSTKDError
from ..metrics import HD95_PENALTY_MM, Status
from ..modalities import MODALITIES
from ..regions import REGION_KEYS
from ..report_template import format_ml
from ..segmentation_io import read_provenance
from .comparison import Review, Reviewed
from .label_maps import LabelMap
from .places import Place
from .scores import RegionReview
from .what_if import WhatIf

STATUS_TEXT: Mapping[str, str] = {
    Status.OK: "both have it",
    Status.BOTH_EMPTY: "neither has it: counts as right",
    Status.MISSED: "missed: only the ground truth has it",
    Status.FP_ONLY: "invented: only the prediction has it",
}
EMPTY_POLICY = (
    "Where neither has a region, Dice and NSD count 1 and HD95 0 mm; where only one has it, Dice and NSD count 0 and "
    f"HD95 {HD95_PENALTY_MM} mm (the challenges' penalty). No empty mask is left out of a mean."
)
SCORE_HEADINGS = (
    "Region", "Masks", "Dice", "HD95 (mm)", "NSD 1 mm", "NSD 2 mm", "Reference (ml)", "Prediction (ml)", "Error (ml)",
    "Error (%)", "Sensitivity", "Precision", "Lesions found", "False lesions",
)  # fmt: skip
_MAKING = ("software", "bundle", "sequences", "device", "accelerator", "versions", "date")
PLACE_HEADINGS = ("", "Region", "Error", "ml", "Up to (mm)", "Where", "R, A, S (mm, Slicer)")


def score_cells(review: RegionReview) -> list[str]:
    """One region's cells under `SCORE_HEADINGS`."""
    score, percent = review.score, review.volume_error_percent
    return [
        review.region,
        STATUS_TEXT[score.status],
        f"{score.dice:.3f}",
        f"{score.hd95:.1f}",
        f"{score.nsd1:.3f}",
        f"{score.nsd2:.3f}",
        format_ml(review.reference_ml),
        format_ml(review.prediction_ml),
        f"{score.volume_error_ml:+.2f}",
        "-" if percent is None else f"{percent:+.1f}",
        f"{review.sensitivity:.3f}",
        f"{review.precision:.3f}",
        f"{review.lesions.found} of {review.lesions.reference}",
        str(review.lesions.false),
    ]


def volume_cells(one: Reviewed) -> list[str]:
    """Volumes in ml of WT, TC and ET of a prediction without ground truth."""
    return [format_ml(one.volumes_ml[key]) if key in one.volumes_ml else "-" for key in REGION_KEYS]


def where_text(point: Sequence[float]) -> str:
    """A point in LPS mm as Slicer's slice views say it: "R 23.0, A 12.5, S 34.0 mm"."""
    sides = (("L", "R"), ("P", "A"), ("S", "I"))
    parts = (f"{pair[0] if value >= 0 else pair[1]} {abs(value):.1f}" for pair, value in zip(sides, point))
    return f"{', '.join(parts)} mm"


def place_cells(rank: int, place: Place) -> list[str]:
    """One worst place's cells under `PLACE_HEADINGS`."""
    ras = ", ".join(f"{value:.1f}" for value in place.point_ras)
    distance = f"{place.distance_mm:.1f}" if np.isfinite(place.distance_mm) else "-"
    cells = [f"{rank}.", place.region, place.kind_text, format_ml(place.volume_ml), distance]
    return [*cells, where_text(place.point), ras]


def agreement_rows(review: Review) -> list[list[str]]:
    """A row for each pair of predictions: their names and the Dice of WT, TC and ET between them."""
    rows = []
    for pair, dice in review.agreement.items():
        rows.append([*pair, *(f"{dice[key]:.3f}" if key in dice else "-" for key in REGION_KEYS)])
    return rows


def subset_rows(what_if: WhatIf) -> tuple[list[str], list[list[str]]]:
    """Headings and rows: each subset of sequences with its Dice and volumes by region."""
    against = what_if.against
    headings = ["Sequences", *(f"{key} Dice to the {against}" for key in REGION_KEYS)]
    headings += [f"{key} (ml)" for key in REGION_KEYS]
    rows = []
    for one in what_if.results:
        dices = [f"{one.dice[key]:.3f}" if key in one.dice else "-" for key in REGION_KEYS]
        rows.append([one.name, *dices, *(format_ml(one.volumes_ml[key]) for key in REGION_KEYS)])
    return headings, rows


def carrier_sentences(what_if: WhatIf) -> list[str]:
    """For each region which sequence carries it: without which alone most Dice is lost."""
    sentences = []
    for region in REGION_KEYS:
        lost = what_if.carried_by(region)
        if len(lost) < 2:
            continue
        most = max(lost, key=lambda name: lost[name])
        if lost[most] < 0.01:
            sentences.append(f"{region}: no single sequence is missed (at most {lost[most]:+.3f} Dice is lost).")
        else:
            rest = ", ".join(f"{name} {lost[name]:+.3f}" for name in MODALITIES if name in lost and name != most)
            sentences.append(f"{region}: carried by {most}; without it {lost[most]:.3f} Dice is lost ({rest}).")
    return sentences


def what_was_compared(predictions: Mapping[str, LabelMap], ground_truth: Optional[LabelMap] = None) -> dict[str, str]:
    """Lines for a report's provenance: files (by name only), the conventions recognised, and what made a prediction."""
    lines = {}
    if ground_truth is not None:
        partly = len(ground_truth.known) < len(REGION_KEYS)
        known = f"; it shows {', '.join(ground_truth.known)} only" if partly else ""
        lines["ground truth"] = f"{Path(ground_truth.source).name}: {ground_truth.how}{known}"
    for name, one in predictions.items():
        lines[f"prediction {name}"] = f"{Path(one.source).name}: {one.how}"
        lines.update({f"{name}: {key}": text for key, text in _made_by(Path(one.source)).items()})
    return lines


def _made_by(path: Path) -> dict[str, str]:
    """What a file of this program says of its making: software, bundle, sequences, versions, date."""
    try:
        found = read_provenance(path)
    except MSTKDError:
        return {}
    return {key: found[key] for key in _MAKING if key in found}


def without_folders(text: str, files: Sequence[Path]) -> str:
    """`text` with `files` by their names only: folders may be called by a patient's name."""
    for path in sorted(files, key=lambda one: len(str(one)), reverse=True):
        if path.name:
            text = text.replace(str(path), path.name)
    return text
