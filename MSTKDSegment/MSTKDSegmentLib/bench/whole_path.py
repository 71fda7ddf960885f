"""The whole way as a command in fresh processes: one case from files to a written segmentation, and a batch."""

from __future__ import annotations

import csv
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ..batch import SUMMARY
from ..modalities import MODALITIES
from ..terminal import Progress
from .child import Finished, run_mstkd
from .phantom import CASE_SHAPE, CASE_SPACING_MM, write_phantom
from .timing import rounded

QUICK_CASE_SHAPE, QUICK_SPACING_MM = (36, 40, 38), 2.0
STARTING, LOADING, NETWORK, REST, ENDING = (
    "start Python, imports",
    "wait for torch and weights",
    "network",
    "between the stages",
    "after the files: JSON, diameters, end",
)
# What `mstkd segment --json` calls its stages, in the order of a run, and what they are called here.
STAGES = {
    "read": "read and decompress",
    "recognise": "recognise",
    "check": "check",
    "prepare": "prepare clinical volumes",
    "normalise": "normalise",
    "common grid": "common grid",
    "load the network": LOADING,
    "network": NETWORK,
    "native grid and clean-up": "native grid and clean-up",
    "write": "write",
}


def measure_case(
    sources: Mapping[str, Path], weights: str, device: str, runs: int, progress: Progress
) -> dict[str, Any]:
    """Medians of `runs` runs of `mstkd segment` on `sources`. Raises MSTKDError where the command fails."""
    done = []
    with tempfile.TemporaryDirectory(prefix="mstkd-bench-") as folder:
        for index in range(runs):
            progress(index / runs, "segmenting a whole case")
            done.append(run_case(sources, weights, device, Path(folder)))
    return case_summary(done)


def run_case(sources: Mapping[str, Path], weights: str, device: str, folder: Path) -> Finished:
    """One run; its result lies in `folder` and is replaced by the next one's."""
    output = folder / "bench.seg.nrrd"
    named = [word for name, path in sources.items() for word in (f"--{name.lower()}", str(path))]
    return run_mstkd(
        "segment", "-o", str(output), "--overwrite", "--device", device, "--weights", weights, *named
    )  # fmt: skip


def stages_of(done: Finished) -> dict[str, float]:
    """Seconds by stage, from the start of the process to its end."""
    told = done.told
    first, last = (datetime.fromisoformat(told[key]) for key in ("started", "ended"))
    inside = {STAGES.get(name, name): seconds for name, seconds in told["stages"].items()}
    order = [name for name in STAGES.values() if name in inside]
    stages = {STARTING: (first - done.started).total_seconds(), **{name: inside[name] for name in order}}
    stages[REST] = told["seconds"]["total"] - sum(inside.values())
    stages[ENDING] = (done.ended - last).total_seconds()
    return stages


def case_summary(done: Sequence[Finished]) -> dict[str, Any]:
    """What is told of runs of one case."""
    stages = [stages_of(one) for one in done]
    medians = {name: round(statistics.median(of[name] for of in stages), 3) for name in stages[0]}
    told = [one.told for one in done]
    peaks = [one["peak_memory_mib"] for one in told if one["peak_memory_mib"] is not None]
    slower = [name for name, seconds in medians.items() if name != NETWORK and seconds > medians[NETWORK]]
    return {
        "runs": len(done),
        "wall_seconds": rounded([one.seconds for one in done], 3),
        "median_wall_seconds": round(statistics.median(one.seconds for one in done), 3),
        "peak_memory_mib": max(peaks, default=None),
        "network_shape": told[0]["network_shape"],
        "median_stage_seconds": _medians([one["seconds"] for one in told]),
        "stages": medians,
        "stages_slower_than_the_network": slower,
        # Done in a second thread while the volumes are read and prepared; the stage is what was waited for in the end.
        "loading_meanwhile": _medians([one["loading"] for one in told]),
    }


def _medians(every: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: round(statistics.median(one[name] for one in every), 3) for name in every[0]}


# --- a batch ---------------------------------------------------------------------------------------------------------


def measure_batch(
    sources: Mapping[str, Path], weights: str, device: str, runs: int, progress: Progress, count: int = 2
) -> dict[str, Any]:
    """Medians of `runs` runs of `mstkd segment --batch` over `count` cases, all of the same files."""
    walls, cases = [], []
    for index in range(runs):
        progress(index / runs, f"a batch of {count}")
        with tempfile.TemporaryDirectory(prefix="mstkd-bench-") as folder:
            table = write_cases(Path(folder) / "cases.csv", sources, count)
            out = Path(folder) / "out"
            words = ["segment", "--batch", str(table), "-o", str(out), "--device", device, "--weights", weights]
            walls.append(run_mstkd(*words).seconds)
            with (out / SUMMARY).open(encoding="utf-8", newline="") as file:
                cases.append([float(row["seconds"]) for row in csv.DictReader(file)])
    return batch_summary(walls, cases)


def batch_summary(walls: Sequence[float], cases: Sequence[Sequence[float]]) -> dict[str, Any]:
    """What is told of batches: seconds of each command, and of each of its cases in order."""
    second = [of[1] for of in cases if len(of) > 1]
    return {
        "cases": len(cases[0]),
        "wall_seconds": rounded(walls, 3),
        "median_wall_seconds": round(statistics.median(walls), 3),
        "median_seconds_of_first_case": round(statistics.median(of[0] for of in cases), 3),
        "median_seconds_of_second_case": round(statistics.median(second), 3) if second else None,
    }


def write_cases(path: Path, sources: Mapping[str, Path], count: int, ground_truth: Path | None = None) -> Path:
    """A CSV of `count` cases of the same files, as `--batch` and `evaluate` take it."""
    columns = ["case", *(name.lower() for name in MODALITIES)] + (["ground_truth"] if ground_truth else [])
    files = [str(sources[name].resolve()) if name in sources else "" for name in MODALITIES]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for number in range(1, count + 1):
            writer.writerow([f"case{number}", *files, *([str(ground_truth.resolve())] if ground_truth else [])])
    return path


def phantom_sources(folder: Path, quick: bool, brain_scale: float = 1.0) -> dict[str, Path]:
    """The made-up case of the usual size, or a small one."""
    shape, spacing = (QUICK_CASE_SHAPE, QUICK_SPACING_MM) if quick else (CASE_SHAPE, CASE_SPACING_MM)
    return write_phantom(folder, shape, spacing, brain_scale)
