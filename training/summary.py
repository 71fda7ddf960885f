"""From rows of scores to `summary.json`: means, medians and intervals by clean-up, subset and region."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from MSTKDSegmentLib.statistics import estimate

from training.model_card import subset_rows
from training.scores import PAPER_LEGACY_NOTE, REGIONS, SUBSET_NAMES, Row, as_paper_legacy

# A card lists each patient for these: everything there is, and the one sequence that nearly every patient has.
PER_CASE_SUBSETS = (SUBSET_NAMES[-1], "FLAIR")


def summarise(rows: Sequence[Row], split: str, paper_legacy: bool = False) -> dict[str, Any]:
    """Everything in `summary.json`. Means and medians are over cases; 95 % intervals are bootstraps by patient.

    By clean-up: `subsets` (Dice, HD95, NSD, volume error, statuses), `mean_over_subsets` (Dice) and its HD95, and
    `per_case`. `paper_legacy` adds a part of that name, apart from the rest, so that it gets into no card.
    Raises ValueError without rows.
    """
    if not rows:
        raise ValueError("no scores to summarise")
    by_clean_up = {name: _of_clean_up(mine) for name, mine in _grouped(rows, "clean_up").items()}
    summary: dict[str, Any] = {
        "checkpoint_sha256": rows[0].checkpoint_sha256,
        "split": split,
        "cases": sorted({row.case for row in rows}),
        "patients": len({row.patient for row in rows}),
        "clean_up": by_clean_up,
    }
    if paper_legacy:
        legacy = _grouped(as_paper_legacy(rows), "clean_up")
        figures = {name: _hd95_only(mine) for name, mine in legacy.items()}
        summary["paper_legacy"] = {"note": PAPER_LEGACY_NOTE, "clean_up": figures}
    return summary


def summary_table(summary: Mapping[str, Any], clean_up: str) -> str:
    """The summary's Dice as a Markdown table, one line a subset."""
    chosen = summary["clean_up"][clean_up]
    mean = chosen["mean_over_subsets"]
    average = f"| mean over {len(chosen['subsets'])} subsets | | " + " | ".join(f"{mean[r]:.3f}" for r in REGIONS)
    return "\n".join([*subset_rows(chosen["subsets"]), f"{average} |"])


def _grouped(rows: Iterable[Row], field: str) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(getattr(row, field), []).append(row)
    return groups


def _of_clean_up(rows: Sequence[Row]) -> dict[str, Any]:
    by_subset = _grouped(rows, "subset")
    subsets = {name: _of_subset(by_subset[name]) for name in SUBSET_NAMES if name in by_subset}
    means = {region: _over_subsets(subsets, region) for region in REGIONS}
    return {
        "subsets": subsets,
        "mean_over_subsets": {region: round(mean, 4) for region, mean in means.items()},
        "mean_over_subsets_hd95_mm": {r: round(_over_subsets(subsets, f"{r}_hd95_mm"), 2) for r in REGIONS},
        "per_case": {name: _per_case(by_subset[name]) for name in PER_CASE_SUBSETS if name in by_subset},
    }


def _over_subsets(subsets: Mapping[str, Mapping[str, Any]], key: str) -> float:
    return float(np.mean([entry[key] for entry in subsets.values()]))


def _of_subset(rows: Sequence[Row]) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    for region, mine in _grouped(rows, "region").items():
        entry |= _of_region(region, mine)
        entry["n"] = len(mine)
    return entry


def _of_region(region: str, rows: Sequence[Row]) -> dict[str, Any]:
    patients = [row.patient for row in rows]
    dice = np.array([row.dice for row in rows])
    hd95 = np.array([row.hd95 for row in rows])
    mean, median = (estimate(dice, patients, statistic) for statistic in ("mean", "median"))
    distance = estimate(hd95, patients)
    statuses = {name: len(mine) for name, mine in sorted(_grouped(rows, "status").items())}
    return {
        region: round(mean.value, 4),
        f"{region}_ci95": [round(mean.low, 4), round(mean.high, 4)],
        f"{region}_median": round(median.value, 4),
        f"{region}_median_ci95": [round(median.low, 4), round(median.high, 4)],
        f"{region}_hd95_mm": round(distance.value, 2),
        f"{region}_hd95_mm_ci95": [round(distance.low, 2), round(distance.high, 2)],
        f"{region}_hd95_mm_median": round(float(np.median(hd95)), 2),
        f"{region}_nsd1": round(float(np.mean([row.nsd1 for row in rows])), 4),
        f"{region}_nsd2": round(float(np.mean([row.nsd2 for row in rows])), 4),
        f"{region}_volume_error_ml": round(float(np.mean([row.volume_error_ml for row in rows])), 3),
        f"{region}_status": statuses,
    }


def _hd95_only(rows: Sequence[Row]) -> dict[str, Any]:
    by_subset = _grouped(rows, "subset")
    subsets = {
        name: {
            f"{region}_hd95_mm": round(float(np.mean([row.hd95 for row in mine])), 2)
            for region, mine in _grouped(by_subset[name], "region").items()
        }
        for name in SUBSET_NAMES
        if name in by_subset
    }
    return {
        "subsets": subsets,
        "mean_over_subsets_hd95_mm": {r: round(_over_subsets(subsets, f"{r}_hd95_mm"), 2) for r in REGIONS},
    }


def _per_case(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    return {case: {row.region: round(row.dice, 4) for row in mine} for case, mine in _grouped(rows, "case").items()}
