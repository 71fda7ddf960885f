"""What accuracy the bundle's card lets a user expect from the very sequences at hand, and what one more would bring."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Optional

from .modalities import MODALITIES, subset_name
from .translation import _

REGION_KEYS = ("WT", "TC", "ET")
# Mean Dice that a further sequence must add to be worth the words; less than the scatter of any of our validations.
WORTH_NAMING = 0.005


@dataclass(frozen=True)
class Expectation:
    """Mean validation Dice of a subset by region, 95 % intervals where the card has them, and its number of patients.

    `gain` is the change of mean Dice by region that `best_addition` brought there; None where nothing is missing, and
    where no single sequence more raised the mean of the three regions.
    """

    subset: tuple[str, ...]
    dice: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    patients: int
    best_addition: Optional[str] = None
    gain: Optional[Mapping[str, float]] = None


def expectation(card: Mapping[str, Any], subset: Iterable[str]) -> Optional[Expectation]:
    """What `card` says of `subset` (any order), None where nothing. Raises RoleError for an unknown sequence."""
    name = subset_name(subset)
    present = tuple(name.split("+"))
    rows = card["metrics"].get("subsets", {})
    row = rows.get(name)
    if not _complete(row):
        return None
    dice = _dice(row)
    gains = {}
    for modality in MODALITIES:
        if modality not in present:
            larger = rows.get(subset_name((*present, modality)))
            if _complete(larger):
                gains[modality] = {key: value - dice[key] for key, value in _dice(larger).items()}
    best = max(gains, key=lambda modality: sum(gains[modality].values()), default=None)
    if best is not None and sum(gains[best].values()) / len(REGION_KEYS) < WORTH_NAMING:
        best = None
    return Expectation(
        present,
        dice,
        {key: (row[f"{key}_ci95"][0], row[f"{key}_ci95"][1]) for key in REGION_KEYS if f"{key}_ci95" in row},
        int(row.get("n", card["metrics"].get("patients", 0))),
        best,
        None if best is None else gains[best],
    )


def _complete(row: Any) -> bool:
    return isinstance(row, Mapping) and all(isinstance(row.get(key), (int, float)) for key in REGION_KEYS)


def _dice(row: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(row[key]) for key in REGION_KEYS}


def expectation_sentences(found: Optional[Expectation]) -> list[str]:
    """One sentence on this subset and, where a sequence is missing, one on the sequence that would help most."""
    if found is None:
        return [_("These weights come without validation figures for this set of sequences.")]
    figures = ", ".join(
        f"{key} {found.dice[key]:.2f}"
        + (f" [{found.intervals[key][0]:.2f}, {found.intervals[key][1]:.2f}]" if key in found.intervals else "")
        for key in REGION_KEYS
    )
    name = subset_name(found.subset) if len(found.subset) > 1 else _("{sequence} only").format(sequence=found.subset[0])
    sentences = [
        _("Expect with {sequences}: mean Dice {figures} on {count} validation patients.").format(
            sequences=name, figures=figures, count=found.patients
        )
    ]
    if found.best_addition is not None and found.gain is not None:
        changes = ", ".join(f"{key} {found.gain[key]:+.2f}" for key in REGION_KEYS)
        sentences.append(
            _("Adding {sequence} changed that by {changes}.").format(sequence=found.best_addition, changes=changes)
        )
    elif len(found.subset) < len(MODALITIES):
        sentences.append(_("No single further sequence improved this there."))
    return sentences
