"""Evaluation over the 15 subsets through the product's own pipeline: native space, whole volume, three regions.

Scores follow the empty-mask policy of `MSTKDSegmentLib.metrics`; no case is ever dropped from a mean.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Callable

import numpy as np
import SimpleITK as sitk
import torch
from MSTKDSegmentLib.geometry import labels_to_native
from MSTKDSegmentLib.inference import predict
from MSTKDSegmentLib.metrics import RegionScore, region_scores
from MSTKDSegmentLib.modalities import MODALITIES, SUBSETS, availability, subset_name
from MSTKDSegmentLib.pipeline import PreparedCase, Segmenter, read_case
from MSTKDSegmentLib.regions import NO_CLEAN_UP, CleanUp, remove_small_components, voxel_volume_ml

from training.data import LabelledCase, read_labels
from training.model_card import REGIONS, subset_rows

BOOTSTRAP_SAMPLES = 2000
# A card lists each patient for these: everything there is, and the one sequence that nearly every patient has.
PER_CASE_SUBSETS = (subset_name(SUBSETS[-1]), "FLAIR")


@dataclass(frozen=True)
class Row:
    """One case, subset and region; `clean_up` names the post-processing that was scored."""

    case: str
    subset: str
    region: str
    clean_up: str
    n_ref: int
    n_pred: int
    status: str
    dice: float
    hd95: float
    volume_error_ml: float
    checkpoint_sha256: str


def with_subset(case: PreparedCase, subset: tuple[str, ...]) -> PreparedCase:
    """The prepared case as if only the sequences of `subset` were there: other channels zero, mask 0."""
    mask = availability(subset)
    return replace(
        case,
        volumes={name: volume for name, volume in case.volumes.items() if name in subset},
        reference=case.reference if case.reference in subset else subset[0],
        image=case.image * mask[:, None, None, None],
        availability=mask,
    )


def evaluate_case(
    segmenter: Segmenter,
    labelled: LabelledCase,
    clean_ups: Mapping[str, CleanUp],
    subsets: Sequence[tuple[str, ...]] = SUBSETS,
) -> list[Row]:
    """Scores of one patient for every subset and clean-up, on the grid of the reference segmentation."""
    prepared = read_case({m: labelled.images[m] for m in MODALITIES})
    truth = read_labels(labelled)
    reference = sitk.GetArrayFromImage(truth)
    voxel_ml = voxel_volume_ml(truth.GetSpacing(), truth.GetDirection())
    rows: list[Row] = []
    for subset in subsets:
        case = with_subset(prepared, subset)
        prediction = predict(segmenter.network, case.image, case.availability, device=segmenter.device.name)
        native = labels_to_native(prediction.probabilities, case.grid, truth)
        scored: list[tuple[np.ndarray, list[RegionScore]]] = []
        for name, clean_up in clean_ups.items():
            labels = remove_small_components(native, clean_up, voxel_ml)
            # Most clean-ups change nothing in most cases, and surface distances cost more than comparing.
            scores = next((known for same, known in scored if np.array_equal(same, labels)), None)
            if scores is None:
                scores = region_scores(labels, reference, truth.GetSpacing()[::-1])
                scored.append((labels, scores))
            rows += [_row(labelled.name, subset, name, score, segmenter.bundle.sha256) for score in scores]
    return rows


def _row(case: str, subset: tuple[str, ...], clean_up: str, score: RegionScore, sha256: str) -> Row:
    return Row(
        case=case,
        subset=subset_name(subset),
        region=score.region,
        clean_up=clean_up,
        n_ref=score.n_ref,
        n_pred=score.n_pred,
        status=score.status,
        dice=score.dice,
        hd95=score.hd95,
        volume_error_ml=score.volume_error_ml,
        checkpoint_sha256=sha256,
    )


def evaluate(
    segmenter: Segmenter,
    cases: Sequence[LabelledCase],
    out: Path,
    split: str,
    clean_ups: Mapping[str, CleanUp] | None = None,
    told: Callable[[str], None] = print,
    processes: int = 1,
) -> Path:
    """Evaluate `cases`, writing `<out>/per_case.csv` after each of them and `<out>/summary.json` at the end.

    A case that `per_case.csv` already holds for these weights is not run again; the summary is of `cases` alone.
    """
    out.mkdir(parents=True, exist_ok=True)
    table = out / "per_case.csv"
    rows = [row for row in read_rows(table) if row.checkpoint_sha256 == segmenter.bundle.sha256]
    done = {row.case for row in rows}
    missing = [case for case in cases if case.name not in done]
    work = partial(evaluate_case, segmenter, clean_ups=clean_ups or {"none": NO_CLEAN_UP})
    for fresh in _each(work, missing, processes):
        rows += fresh
        write_rows(table, rows)
        full = [r for r in fresh if r.subset == subset_name(SUBSETS[-1]) and r.clean_up == fresh[0].clean_up]
        told(f"{fresh[0].case}: " + ", ".join(f"{r.region} {r.dice:.3f} ({r.status})" for r in full))
    names = {case.name for case in cases}
    path = out / "summary.json"
    path.write_text(json.dumps(summarise([row for row in rows if row.case in names], split), indent=1))
    return path


def _each(
    work: Callable[[LabelledCase], list[Row]], cases: Sequence[LabelledCase], processes: int
) -> Iterator[list[Row]]:
    """The rows of each case, in order; with several processes the cores are shared out among them."""
    if processes <= 1 or len(cases) <= 1:
        yield from map(work, cases)
        return
    threads = max((os.cpu_count() or 1) // processes, 1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        yield from pool.map(work, cases)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    names = [field.name for field in fields(Row)]
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({name: getattr(row, name) for name in names} for row in rows)
    temporary.replace(path)


def read_rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    kinds = {field.name: {"int": int, "float": float}.get(str(field.type), str) for field in fields(Row)}
    with path.open(newline="") as file:
        return [Row(**{name: kinds[name](value) for name, value in line.items()}) for line in csv.DictReader(file)]


def bootstrap_interval(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of (patients,) `values`, percentile bootstrap over patients."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (BOOTSTRAP_SAMPLES, len(values)))].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def summarise(rows: Sequence[Row], split: str) -> dict[str, object]:
    """Means by clean-up, subset and region with n and 95 % CI, and the mean over the 15 subsets."""
    summary: dict[str, object] = {
        "checkpoint_sha256": rows[0].checkpoint_sha256,
        "split": split,
        "cases": sorted({r.case for r in rows}),
    }
    by_clean_up: dict[str, object] = {}
    for clean_up in sorted({r.clean_up for r in rows}):
        subsets: dict[str, dict[str, object]] = {}
        for subset in (subset_name(s) for s in SUBSETS):
            entry: dict[str, object] = {}
            for region in REGIONS:
                mine = [r for r in rows if (r.clean_up, r.subset, r.region) == (clean_up, subset, region)]
                if not mine:
                    continue
                dice = np.array([r.dice for r in mine])
                low, high = bootstrap_interval(dice)
                entry[region] = round(float(dice.mean()), 4)
                entry[f"{region}_ci95"] = [round(low, 4), round(high, 4)]
                entry[f"{region}_hd95_mm"] = round(float(np.mean([r.hd95 for r in mine])), 2)
                entry["n"] = len(mine)
            if entry:
                subsets[subset] = entry
        mean = {
            region: round(float(np.mean([entry[region] for entry in subsets.values()])), 4)  # type: ignore[misc]
            for region in REGIONS
        }
        by_clean_up[clean_up] = {
            "subsets": subsets,
            "mean_over_subsets": mean,
            "per_case": {subset: _per_case(rows, clean_up, subset) for subset in PER_CASE_SUBSETS},
        }
    summary["clean_up"] = by_clean_up
    return summary


def _per_case(rows: Sequence[Row], clean_up: str, subset: str) -> dict[str, dict[str, float]]:
    scores: dict[str, dict[str, float]] = {}
    for row in rows:
        if (row.clean_up, row.subset) == (clean_up, subset):
            scores.setdefault(row.case, {})[row.region] = round(row.dice, 4)
    return scores


def summary_table(summary: Mapping[str, Any], clean_up: str) -> str:
    """The summary as a Markdown table, one line a subset."""
    chosen = summary["clean_up"][clean_up]
    mean = chosen["mean_over_subsets"]
    average = "| mean over subsets | | " + " | ".join(f"{mean[r]:.3f}" for r in REGIONS) + " |"
    return "\n".join([*subset_rows(chosen["subsets"]), average])
