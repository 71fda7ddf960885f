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


def read_calibrations(folders: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """decision.json of each folder. Raises ValueError for calibrations of different patients: nothing to compare."""
    found = {name: json.loads((folder / DECISION).read_text(encoding="utf-8")) for name, folder in folders.items()}
    first = next(iter(found))
    for name, about in found.items():
        if sorted(about["cases"]) != sorted(found[first]["cases"]):
            raise ValueError(f"{name} and {first} were calibrated on different patients")
    return found


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
        if "left_out" not in one:
            raise ValueError(f"{title}: calibrated by an earlier version; run `calibrate` again (seconds)")
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
