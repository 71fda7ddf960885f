"""How cost grows: with the volume, with the cases of a batch, with the subsets of a case, with the processes."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..modalities import SUBSETS
from ..terminal import Progress
from ..weights import Bundle, load_network
from .child import run_mstkd
from .forward import forward_step
from .phantom import CASE_SHAPE, CASE_SPACING_MM, write_phantom_labels
from .timing import clock_of, interleaved_seconds
from .whole_path import (
    QUICK_CASE_SHAPE,
    QUICK_SPACING_MM,
    case_summary,
    measure_batch,
    phantom_sources,
    run_case,
    write_cases,
)

# (D, H, W): once, twice and four times the voxels.
SHAPES = ((96, 96, 128), (96, 192, 128), (192, 192, 128))
QUICK_SHAPES = ((32, 32, 32), (32, 32, 64), (32, 64, 64))
# Of the brain; on the common grid about once, twice and four times the voxels.
BRAIN_SCALES = (0.6, 0.8, 1.0)
BATCHES, SUBSET_COUNTS, PROCESSES, EVALUATED_CASES = (1, 2, 4, 8), (1, 5, 15), (1, 2), 4
QUICK_BATCHES, QUICK_SUBSET_COUNTS, QUICK_EVALUATED_CASES = (1, 2), (1, 2), 2
MOST_RUNS = 3


def measure_growth(
    sources: Mapping[str, Path], bundle: Bundle, device: str, runs: int, quick: bool, progress: Progress
) -> dict[str, Any]:
    """Medians of `runs` runs, `MOST_RUNS` at most. `sources`: the case of batches, subsets and processes.

    Raises MSTKDError where a measured command fails.
    """
    runs = min(runs, MOST_RUNS)

    def part(start: float, end: float) -> Progress:
        return lambda share, text: progress(start + (end - start) * share, text)

    with tempfile.TemporaryDirectory(prefix="mstkd-bench-") as name:
        folder = Path(name)
        return {
            "runs": runs,
            "network": by_size(bundle, device, runs, QUICK_SHAPES if quick else SHAPES, part(0.0, 0.1)),
            "command": _by_brain(bundle.source, device, runs, quick, folder, part(0.1, 0.25)),
            "batch": _by_cases(sources, bundle.source, device, runs, quick, part(0.25, 0.6)),
            "subsets": _by_subsets(sources, bundle, device, runs, quick, part(0.6, 0.8)),
            "processes": _by_processes(sources, bundle.source, device, runs, quick, folder, part(0.8, 1.0)),
        }


def by_size(
    bundle: Bundle, device: str, runs: int, shapes: Sequence[Sequence[int]], progress: Progress
) -> list[dict[str, Any]]:
    """The shipped network alone, fp32, on volumes of `shapes` (D, H, W)."""
    import torch

    from ..inference import repeatable

    network = load_network(bundle)
    steps = {str(number): forward_step(network, shape, device) for number, shape in enumerate(shapes)}
    with torch.inference_mode(), repeatable():
        seconds = interleaved_seconds(
            steps, runs, clock_of(device), lambda share, _text: progress(share, "the network by size")
        )
    return size_rows(shapes, [statistics.median(seconds[name]) for name in steps])


def size_rows(shapes: Sequence[Sequence[int]], seconds: Sequence[float]) -> list[dict[str, Any]]:
    """Shape, voxels, seconds and both against the first row's."""
    voxels = [math.prod(shape) for shape in shapes]
    return [
        {
            "shape": list(shape),
            "voxels": count,
            "ratio": round(count / voxels[0], 2),
            "seconds": round(taken, 4),
            "seconds_ratio": round(taken / seconds[0], 2),
        }
        for shape, count, taken in zip(shapes, voxels, seconds)
    ]


def _by_brain(
    weights: str, device: str, runs: int, quick: bool, folder: Path, progress: Progress
) -> list[dict[str, Any]]:
    cases = []
    for scale in BRAIN_SCALES:
        place = folder / f"brain-{scale}"
        place.mkdir()
        cases.append(phantom_sources(place, quick, scale))
    done: list[list[Any]] = [[] for _case in cases]
    for index in range(runs):
        for number, sources in enumerate(cases):
            progress((index + number / len(cases)) / runs, "the whole command by size")
            done[number].append(run_case(sources, weights, device, folder))
    return brain_rows([case_summary(of) for of in done])


def brain_rows(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """From summaries of `whole_path`, the smallest brain first."""
    voxels = [math.prod(case["network_shape"]) for case in cases]
    return [
        {
            "network_shape": case["network_shape"],
            "voxels": count,
            "ratio": round(count / voxels[0], 2),
            "network_seconds": case["median_stage_seconds"]["network"],
            "seconds": case["median_wall_seconds"],
            "peak_memory_mib": case["peak_memory_mib"],
        }
        for case, count in zip(cases, voxels)
    ]


def _by_cases(
    sources: Mapping[str, Path], weights: str, device: str, runs: int, quick: bool, progress: Progress
) -> list[dict[str, Any]]:
    counts = QUICK_BATCHES if quick else BATCHES
    rows = []
    for number, count in enumerate(counts):
        progress(sum(counts[:number]) / sum(counts), f"a batch of {count}")
        batch = measure_batch(sources, weights, device, runs, lambda _share, _text: None, count)
        seconds = batch["median_wall_seconds"]
        rows.append({"cases": count, "seconds": seconds, "seconds_per_case": round(seconds / count, 3)})
    return rows


def _by_subsets(
    sources: Mapping[str, Path], bundle: Bundle, device: str, runs: int, quick: bool, progress: Progress
) -> list[dict[str, Any]]:
    from ..pipeline import Segmenter, read_case

    counts = QUICK_SUBSET_COUNTS if quick else SUBSET_COUNTS
    segmenter = Segmenter(bundle, device)
    reading, each = [], []
    for index in range(runs):
        start = time.perf_counter()
        case = read_case(dict(sources))
        subsets = [one for one in SUBSETS if set(one) <= set(case.subset)][::-1]  # all sequences first
        reading.append(time.perf_counter() - start)
        times = []
        for number in range(max(counts)):
            progress((index + number / max(counts)) / runs, "subsets of one case")
            start = time.perf_counter()
            segmenter.segment_prepared(case.only(subsets[number % len(subsets)]))
            times.append(time.perf_counter() - start)
        each.append(times)
    return subset_rows(reading, each, counts)


def subset_rows(
    reading: Sequence[float], each: Sequence[Sequence[float]], counts: Sequence[int]
) -> list[dict[str, Any]]:
    """Seconds for the first `counts` subsets, reading and preparing included: from those of each, run by run."""
    rows = []
    for count in counts:
        seconds = statistics.median(first + sum(times[:count]) for first, times in zip(reading, each))
        per_subset = round(seconds / count, 3)
        rows.append({"subsets": count, "seconds": round(seconds, 3), "seconds_per_subset": per_subset})
    return rows


def _by_processes(
    sources: Mapping[str, Path], weights: str, device: str, runs: int, quick: bool, folder: Path, progress: Progress
) -> list[dict[str, Any]]:
    shape, spacing = (QUICK_CASE_SHAPE, QUICK_SPACING_MM) if quick else (CASE_SHAPE, CASE_SPACING_MM)
    truth = write_phantom_labels(folder, shape, spacing)
    count = QUICK_EVALUATED_CASES if quick else EVALUATED_CASES
    table = write_cases(folder / "evaluated.csv", sources, count, truth)

    def evaluate(processes: int) -> None:
        with tempfile.TemporaryDirectory(prefix="mstkd-bench-") as out:
            words = ["evaluate", str(table), "-o", out, "--jobs", str(processes), "--device", device]
            run_mstkd(*words, "--weights", weights)

    seconds: dict[int, list[float]] = {processes: [] for processes in PROCESSES}
    for index in range(runs):
        for number, processes in enumerate(PROCESSES):
            progress((index + number / len(PROCESSES)) / runs, f"{processes} processes")
            start = time.perf_counter()
            evaluate(processes)
            seconds[processes].append(time.perf_counter() - start)
    return process_rows({processes: statistics.median(taken) for processes, taken in seconds.items()}, count)


def process_rows(seconds: Mapping[int, float], cases: int) -> list[dict[str, Any]]:
    """From the seconds by the number of processes, the least first."""
    alone = next(iter(seconds.values()))
    return [
        {"processes": number, "cases": cases, "seconds": round(taken, 3), "speedup": round(alone / taken, 2)}
        for number, taken in seconds.items()
    ]
