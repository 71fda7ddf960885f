"""Figures as the page shows them: rows of texts, plain data for JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Callable, Optional

from ..errors import MSTKDError
from ..regions import REGION_KEYS
from ..review.comparison import Review
from ..review.places import MISSED, Place
from ..review.scores import RegionReview
from ..review.verdicts import Verdict
from .session import OpenCase, ReviewSession

NOTHING = "–"  # noqa: RUF001 - a dash that is as wide as a digit
MARKS = {"accept": "A", "minor edits": "m", "major edits": "M", "reject": "R"}

_FIGURES: tuple[tuple[str, Callable[[RegionReview], str]], ...] = (
    ("Dice", lambda one: f"{one.score.dice:.3f}"),
    ("HD95 (mm)", lambda one: f"{one.score.hd95:.1f}"),
    ("NSD at 1 mm", lambda one: f"{one.score.nsd1:.3f}"),
    ("NSD at 2 mm", lambda one: f"{one.score.nsd2:.3f}"),
    ("Sensitivity", lambda one: f"{one.sensitivity:.3f}"),
    ("Precision", lambda one: f"{one.precision:.3f}"),
    ("Truth (ml)", lambda one: f"{one.reference_ml:.2f}"),
    ("Prediction (ml)", lambda one: f"{one.prediction_ml:.2f}"),
    (
        "Volume error (%)",
        lambda one: NOTHING if one.volume_error_percent is None else f"{one.volume_error_percent:+.0f}",
    ),
    ("Lesions found", lambda one: f"{one.lesions.found} of {one.lesions.reference}"),
    ("False lesions", lambda one: f"{one.lesions.false}"),
)


def metric_rows(found: Review) -> list[dict[str, Any]]:
    """One row for each figure of the first prediction: {"name", "WT", "TC", "ET"}; a dash for unknown regions."""
    one = found.predictions[0]
    if found.ground_truth is None:
        rows = [
            _row("Volume (ml)", {key: f"{one.volumes_ml[key]:.2f}" for key in REGION_KEYS if key in one.volumes_ml})
        ]
        for (first, second), dice in found.agreement.items():
            if first == one.name:
                rows.append(_row(f"Dice with {second}", {key: f"{value:.3f}" for key, value in dice.items()}))
        return rows
    scores = {score.region: score for score in one.scores}
    return [_row(name, {key: text(score) for key, score in scores.items()}) for name, text in _FIGURES]


def _row(name: str, cells: Mapping[str, str]) -> dict[str, Any]:
    return {"name": name, **{key: cells.get(key, NOTHING) for key in REGION_KEYS}}


def dice_cells(found: Optional[Review]) -> dict[str, str]:
    """The Dice of the first prediction by region; dashes where there is nothing measured."""
    scores = {} if found is None else {score.region: score.score.dice for score in found.predictions[0].scores}
    return {key: f"{scores[key]:.2f}" if key in scores else NOTHING for key in REGION_KEYS}


def place_rows(places: Iterable[Place]) -> list[dict[str, Any]]:
    """{"number", "region", "kind", "missed", "volume", "distance", "ras"} of each worst place."""
    return [
        {
            "number": number,
            "region": place.region,
            "kind": place.kind_text,
            "missed": place.kind == MISSED,
            "volume": f"{place.volume_ml:.2f}",
            "distance": f"{place.distance_mm:.0f}" if place.distance_mm < 1e6 else NOTHING,
            "ras": ras_text(place.point_ras),
        }
        for number, place in enumerate(places, 1)
    ]


def ras_text(point: Sequence[float]) -> str:
    """A point in RAS mm as "R 12, A 3, S 40", each by the side that it lies on."""
    sides = zip(point, ("RL", "AP", "SI"))
    return ", ".join(f"{side[0] if value >= 0 else side[1]} {abs(value):.0f}" for value, side in sides)


def case_rows(session: ReviewSession) -> list[dict[str, Any]]:
    """{"index", "name", "mark", "verdict", "problem"} of each case; the mark is that of its last verdict."""
    rows = []
    for index, item in enumerate(session.items):
        given = sorted(session.verdicts_of(item.name), key=lambda one: one.time)
        last = given[-1].verdict if given else ""
        rows.append(
            {
                "index": index,
                "name": item.name,
                "verdict": last,
                "mark": MARKS.get(last, ""),
                "problem": item.problem,
                "sequences": len(item.images),
            }
        )
    return rows


def prediction_rows(session: ReviewSession, case: OpenCase) -> list[dict[str, Any]]:
    """{"name", "title", "unsaved", "mark", and the Dice by region} of each prediction of the open case."""
    made = session.made(case.name)
    given = {one.prediction: one.verdict for one in session.verdicts_of(case.name)}
    return [
        {
            "name": name,
            "title": f"{name}: {one.how}",
            "unsaved": name in made and made[name].path is None,
            "mark": MARKS.get(given.get(name, ""), ""),
            **dice_cells(case.reviews.get(name)),
        }
        for name, one in case.predictions.items()
    ]


def error_text(error: Exception) -> str:
    """What is shown of an error: ours are sentences, others are named."""
    return str(error) if isinstance(error, MSTKDError) else f"unexpected {type(error).__name__}: {error}"


def verdict_text(given: Optional[Verdict]) -> str:
    """What was said of a prediction before, "" where nothing was."""
    if given is None:
        return ""
    who = f" by {given.reader}" if given.reader else ""
    return f"{given.verdict}{who}, {clock_text(given.seconds)}, {given.time.replace('T', ' ').rstrip('Z')} UTC"


def clock_text(seconds: float) -> str:
    """Such as "2:05"."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def what_if_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each subset: its Dice by region; `found` is `WhatIf.to_dict()`."""
    return [
        _row(one["subset"], {key: f"{value:.2f}" for key, value in one["dice"].items()}) for one in found["subsets"]
    ]


def carried_text(found: Mapping[str, Any]) -> str:
    """Which sequence carries which region, in one sentence; `found` is `WhatIf.to_dict()`."""
    parts = []
    for key, lost in found["carried_by"].items():
        if lost and max(lost.values()) > 0:
            name = max(lost, key=lambda one: lost[one])
            parts.append(f"{key}: {name} (without it {-lost[name]:+.2f})")
    return "; ".join(parts)
