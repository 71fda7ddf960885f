"""All measurements of `mstkd bench` in turn, and the files that it writes."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from ..errors import OutputError
from ..output_set import staged_outputs
from ..terminal import Progress, print_line, print_table
from ..weights import read_bundle
from .forward import measure_forward
from .growth import measure_growth
from .hardware import header, written_command
from .shares import measure_shares
from .tables import Table, as_markdown, bench_tables
from .whole_path import CASE_SHAPE, QUICK_CASE_SHAPE, measure_batch, measure_case, phantom_sources

# Shares of the progress: whole cases, then the networks, then how cost grows.
CASE, BATCH, FORWARD = 0.3, 0.5, 1.0
GROWTH = 0.6


@dataclass(frozen=True)
class BenchRequest:
    """What to measure. files: a case of one's own, by sequence, instead of the phantom; weights: None: the shipped."""

    files: Mapping[str, Path] = field(default_factory=dict)
    weights: Optional[Path] = None
    device: str = "auto"
    runs: int = 5
    quick: bool = False
    growth: bool = False

    def command(self) -> str:
        """The command line, without folders."""
        options = {
            **{name.lower(): path for name, path in self.files.items()},
            "weights": self.weights,
            "device": self.device,
            "runs": self.runs,
            "quick": self.quick,
            "growth": self.growth,
        }
        return written_command("mstkd bench", options)


def run_bench(request: BenchRequest, progress: Optional[Progress] = None) -> dict[str, Any]:
    """Measure `runs` times (once if `quick`) and give medians.

    Raises WeightsError, DeviceError, and MSTKDError when a measured command fails.
    """
    # torch's profiler would write lines of its own among the progress; read when torch is imported.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    bundle = read_bundle(request.weights)
    whole = progress or (lambda _share, _text: None)
    runs = 1 if request.quick else request.runs
    report = _part(whole, 0.0, 1.0 - GROWTH) if request.growth else whole
    with tempfile.TemporaryDirectory(prefix="mstkd-bench-") as folder:
        report(0.0, "making the synthetic case")
        sources = dict(request.files) or phantom_sources(Path(folder), request.quick)
        # Whole commands come first, before this process has threads and memory of its own.
        case = measure_case(sources, bundle.source, request.device, runs, _part(report, 0.0, CASE))
        batch = measure_batch(sources, bundle.source, request.device, runs, _part(report, CASE, BATCH))
        chosen, forward = _forward(request, str(bundle.card["preset"]), runs, _part(report, BATCH, FORWARD))
        growth = {}
        if request.growth:
            part = _part(whole, 1.0 - GROWTH, 1.0)
            growth = {"growth": measure_growth(sources, bundle, chosen["name"], runs, request.quick, part)}
    shape = QUICK_CASE_SHAPE if request.quick else CASE_SHAPE
    about = {
        "input": {name: path.name for name, path in request.files.items()} or "synthetic phantom",
        "shape": None if request.files else list(shape),
    }
    return {
        "quick": request.quick,
        **header(request.command()),
        "device": chosen,
        "segment": {**about, **case},
        "batch": batch,
        **forward,
        **growth,
    }


def _forward(
    request: BenchRequest, shipped: str, runs: int, progress: Progress
) -> tuple[dict[str, str], dict[str, Any]]:
    from ..devices import choose_device

    device = choose_device(request.device)
    found = measure_forward(shipped, device.name, runs, request.quick, progress)
    shape = found["forward"]["shape"]
    progress(0.99, "where the time goes")
    shares = measure_shares(shipped, shape, device.name, found["peak_gmac_per_s"])
    return {"name": device.name, "reason": device.reason}, {**found, "time_by_kind": shares}


def _part(progress: Progress, start: float, end: float) -> Progress:
    return lambda share, text: progress(start + (end - start) * share, text)


# --- what is shown and written ---------------------------------------------------------------------------------------


def print_bench(measured: Mapping[str, Any]) -> None:
    """The measurements for a person at a terminal."""
    print_tables(bench_tables(measured))
    if measured["quick"]:
        print_line("quick: small sizes, one run; not a measurement", "yellow")


def print_tables(tables: list[Table]) -> None:
    """Lines and rows on the terminal."""
    for table in tables:
        for line in (table.title, *table.lines):
            print_line(line)
        if table.rows:
            print_table(table.headings, table.rows)


def write_bench(measured: Mapping[str, Any], folder: Path, name: str = "bench") -> list[Path]:
    """`<name>.json`, `<name>.md` and, where growth was measured, `<name>-growth.png` in `folder`; gives their paths.

    Files of that name are replaced, all or none. Raises OutputError where they cannot be written.
    """
    growth = measured.get("growth")
    picture = f"{name}-growth.png" if growth else None
    return write_results(folder, name, measured, "How fast it is", bench_tables(measured), picture)


def checked_folder(folder: Path) -> Path:
    """`folder` with "~" written out; OutputError where it is a file. To be called before hours are spent."""
    folder = folder.expanduser()
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; give a folder for the measurements")
    return folder


def write_results(
    folder: Path, name: str, measured: Mapping[str, Any], title: str, tables: list[Table], picture: Optional[str] = None
) -> list[Path]:
    """`<name>.json` and `<name>.md` in `folder`, and a picture of `measured["growth"]` called `picture`.

    Written under temporary names and then renamed, all or none. Raises OutputError where they cannot be written.
    """
    folder = checked_folder(folder)
    paths = [folder / f"{name}.json", folder / f"{name}.md", *([folder / picture] if picture else [])]
    with staged_outputs(paths, overwrite=True) as temporary:
        text = json.dumps(measured, indent=1, ensure_ascii=False)
        temporary[paths[0]].write_text(text + "\n", encoding="utf-8")
        temporary[paths[1]].write_text(as_markdown(title, tables, picture), encoding="utf-8")
        if picture:
            from .growth_plot import write_growth_plot

            write_growth_plot(temporary[paths[2]], measured["growth"])
    return paths
