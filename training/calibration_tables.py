"""Several weights beside each other, from what `calibrate` wrote: Dice, and what a difference of Dice is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.calibration_files import DECISION
from training.scores import REGIONS
from training.statistics import compare_paired
from training.tables import by_number_missing

# By how many sequences are missing.
TITLES = ("all four", "three sequences", "two sequences", "one sequence")


def read_calibrations(folders: Mapping[str, Sequence[Path]]) -> dict[str, dict[str, Any]]:
    """decision.json of each name's folder or, of several folders (folds), what they say together.

    Raises ValueError for names with different patients (nothing to compare) and folds that share one.
    """
    found = {
        name: _together(name, [json.loads((folder / DECISION).read_text(encoding="utf-8")) for folder in mine])
        for name, mine in folders.items()
    }
    first = next(iter(found))
    for name, about in found.items():
        if sorted(about["cases"]) != sorted(found[first]["cases"]):
            raise ValueError(f"{name} and {first} were calibrated on different patients")
    return found


def _together(name: str, folds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What several folds say as if they were one: figures as means over all patients, the others side by side."""
    if len(folds) == 1:
        return folds[0]
    cases = [case for fold in folds for case in fold["cases"]]
    subsets = [subset for subset in folds[0]["figures"] if all(subset in fold["figures"] for fold in folds)]

    def mean(subset: str, region: str, key: str) -> float:
        return sum(len(f["cases"]) * f["figures"][subset][region][key] for f in folds) / len(cases)

    def side_by_side(subset: str, region: str) -> dict[str, float]:
        return {case: dice for fold in folds for case, dice in fold["left_out"][subset][region].items()}

    for fold in folds:
        _require_left_out(name, fold)
    scored = [patient for fold in folds for patient in set(fold["patient_of"].values())]
    if len(set(scored)) != len(scored):
        raise ValueError(f"{name}: its folds share patients; a name given several times is one method in several folds")
    return {
        "split": f"{len(folds)} folds",
        "cases": cases,
        "patient_of": {case: patient for fold in folds for case, patient in fold["patient_of"].items()},
        "figures": {
            s: {r: {key: mean(s, r, key) for key in ("dice", "dice_left_out")} for r in REGIONS} for s in subsets
        },
        "left_out": {s: {r: side_by_side(s, r) for r in REGIONS} for s in subsets},
    }


def _require_left_out(name: str, about: Mapping[str, Any]) -> None:
    if "left_out" not in about:
        raise ValueError(f"{name}: calibrated by an earlier version; run `calibrate` again (seconds)")


def comparison(found: Mapping[str, Mapping[str, Any]], sets: Sequence[str]) -> str:
    """A Markdown table, one row for each of `read_calibrations`: Dice WT / TC / ET, mean over all sets and by set.

    Raises ValueError for a set that one of them lacks.
    """
    for name, about in found.items():
        if missing := set(sets) - set(about["figures"]):
            raise ValueError(
                f"{name} has no figures of {sorted(missing)[0]!r}; there are {', '.join(about['figures'])}"
            )
    lines = ["| | mean | " + " | ".join(sets) + " |", "|---" * (2 + len(sets)) + "|"]
    for name, about in found.items():
        everywhere = tuple(about["figures"])
        mean = f"{_mean_dice(about, everywhere, 'dice')} ({_mean_dice(about, everywhere, 'dice_left_out')})"
        lines.append(" | ".join([f"| {name}", mean, *(_mean_dice(about, (one,), "dice") for one in sets)]) + " |")
    first = next(iter(found.values()))
    return "\n".join([f"Dice WT / TC / ET, {first['split']}, n = {len(first['cases'])}", "", *lines])


def _mean_dice(about: Mapping[str, Any], subsets: Sequence[str], key: str) -> str:
    rows = [about["figures"][subset] for subset in subsets]
    return " / ".join(f"{sum(row[region][key] for row in rows) / len(rows):.3f}" for region in REGIONS)


def differences(name: str, about: Mapping[str, Any], reference: str, other: Mapping[str, Any]) -> str:
    """A Markdown table: points of Dice of `about` over `other`, with what the other patients chose for both of them.

    By number of sequences, 95 % intervals by patient. Raises ValueError where `calibrate` was an earlier version's.
    """
    for title, one in ((name, about), (reference, other)):
        _require_left_out(title, one)
    cases = sorted(about["patient_of"])
    patients = [about["patient_of"][case] for case in cases]
    shared = [subset for subset in about["left_out"] if subset in other["left_out"]]
    lines = [
        f"{name} over {reference}, points of Dice, {about['split']}, n = {len(set(patients))}",
        "",
        f"| | {' | '.join(REGIONS)} | mean of the three |",
        "|---" * (len(REGIONS) + 2) + "|",
    ]
    by_number = by_number_missing(shared)
    incomplete = [subset for missing, group in by_number.items() if missing for subset in group]
    rows = [("a sequence is missing", incomplete)] if incomplete else []
    rows += [(TITLES[missing], group) for missing, group in reversed(by_number.items())]
    for title, group in rows:
        cells = []
        for regions in (*((region,) for region in REGIONS), REGIONS):
            ours, theirs = (
                [float(np.mean([one["left_out"][s][r][case] for s in group for r in regions])) for case in cases]
                for one in (about, other)
            )
            found = compare_paired(100 * np.array(ours), 100 * np.array(theirs), patients).difference
            value, low, high = (round(one, 1) + 0.0 for one in (found.value, found.low, found.high))  # no "-0.0"
            cells.append(f"{value:.1f} [{low:.1f}, {high:.1f}]")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)
