"""The measurements as tables, for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional


@dataclass(frozen=True)
class Table:
    """A title, lines that explain it, headings and rows; a table without rows is text."""

    title: str
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    lines: Sequence[str] = ()


def bench_tables(measured: Mapping[str, Any]) -> list[Table]:
    """All that `run_bench` measured."""
    tables = [header_table(measured), _case_table(measured), _batch_table(measured["batch"]), _forward_table(measured)]
    if measured["time_by_kind"]:
        tables.append(_kinds_table(measured))
    return [*tables, *growth_tables(measured.get("growth") or {})]


def header_table(measured: Mapping[str, Any]) -> Table:
    """Machine, versions, command: from the keys of `hardware.header` and the device."""
    machine, versions, device = measured["hardware"], measured["versions"], measured["device"]
    memory = machine["memory_mib"]
    gpus = ", ".join(machine["gpus"])
    text = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
        f"{'' if memory is None else f', {memory / 1024:.1f} GiB'}{f', {gpus}' if gpus else ''}"
    )
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return Table(
        text,
        lines=(
            f"device: {device['name']}: {device['reason']}" if isinstance(device, Mapping) else f"device: {device}",
            packages,
            f"{measured['command']} on {measured['date'][:10]}, commit {measured['commit']}",
        ),
    )


def _case_table(measured: Mapping[str, Any]) -> Table:
    case = measured["segment"]
    wall = case["median_wall_seconds"]
    slower = case["stages_slower_than_the_network"]
    loading = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in case["loading_meanwhile"].items())
    return Table(
        f"One case as a command, files to .seg.nrrd: {wall:.2f} s, peak memory {_mib(case['peak_memory_mib'])} "
        f"(median of {case['runs']})",
        ("stage", "seconds", "share"),
        [[name, f"{seconds:.3f}", _percent(seconds / wall)] for name, seconds in case["stages"].items()],
        (
            f"slower than the network: {', '.join(slower)}" if slower else "no other stage is slower than the network",
            f"loading, mostly while the volumes are read and prepared: {loading}",
        ),
    )


def _batch_table(batch: Mapping[str, Any]) -> Table:
    return Table(
        f"A batch of {batch['cases']} as a command: {batch['median_wall_seconds']:.2f} s; its first case "
        f"{batch['median_seconds_of_first_case']:.2f} s, its second {batch['median_seconds_of_second_case']:.2f} s"
    )


def _forward_table(measured: Mapping[str, Any]) -> Table:
    forward, shipped = measured["forward"], measured["forward"]["shipped_preset"]
    shape = " x ".join(map(str, forward["shape"]))
    rows = []
    for precision, key in (("fp32", "forward"), ("bf16", "forward_bf16")):
        for name, row in measured.get(key, {}).items():
            if isinstance(row, Mapping):
                memory = _mib(row["memory_mib"]) if "memory_mib" in row else "-"
                figures = (f"{row['gmac']:g}", f"{row['gmac_per_s']:g}", _percent(row["share_of_peak"]), memory)
                rows.append([name, precision, seconds_text(row["median_seconds"]), *figures])
    peaks = [f"fp32 {measured['peak_gmac_per_s']:g}{' (TF32)' if forward['tf32'] else ''}"]
    ratios = [f"fp32 {_times(measured['speedup_vs_paper'])}"]
    if "forward_bf16" in measured:
        peaks.append(f"bf16 {measured['peak_gmac_per_s_bf16']:g}")
        ratios.append(f"bf16 {_times(measured['speedup_vs_paper_bf16'])}")
    return Table(
        f"One forward pass of {shape} voxels (matrix product: {', '.join(peaks)} GMAC/s)",
        ("preset", "precision", "seconds", "GMAC", "GMAC/s", "share of peak", "memory"),
        rows,
        (
            f"{shipped} is {', '.join(ratios)} times as fast as paper and takes "
            f"{_times(measured['memory_ratio_vs_paper'])} times less memory (fp32)",
        ),
    )


def _kinds_table(measured: Mapping[str, Any]) -> Table:
    found = measured["time_by_kind"]
    rows = [
        [
            kind,
            seconds_text(row["seconds"]),
            _percent(row["share"]),
            f"{row['gmac']:g}" if row["gmac"] else "-",
            "-" if row["share_of_peak"] is None else _percent(row["share_of_peak"]),
            _percent(row["lost"]),
        ]
        for kind, row in found["kinds"].items()
    ]
    return Table(
        f"Where the time of {measured['forward']['shipped_preset']} goes: {_percent(found['share_of_peak'])} of the "
        "peak are reached",
        ("kind of work", "seconds", "share", "GMAC", "share of peak", "lost"),
        rows,
        ("lost: what the kind takes beyond its multiply-accumulates at the peak, of the whole pass",),
    )


# --- how cost grows --------------------------------------------------------------------------------------------------


def growth_tables(growth: Mapping[str, Any]) -> list[Table]:
    """Of `growth.measure_growth`; none where nothing was measured."""
    if not growth:
        return []
    rows = {
        name: [[str(row[key]) if key != "seconds" else seconds_text(row[key]) for key in keys] for row in growth[name]]
        for name, keys in {
            "batch": ("cases", "seconds", "seconds_per_case"),
            "subsets": ("subsets", "seconds", "seconds_per_subset"),
            "processes": ("processes", "cases", "seconds", "speedup"),
        }.items()
    }
    network = [
        [f"{row['ratio']:g}", _shape(row["shape"]), seconds_text(row["seconds"]), f"{row['seconds_ratio']:g}"]
        for row in growth["network"]
    ]
    command = [
        [f"{row['ratio']:g}", _shape(row["network_shape"]), f"{row['network_seconds']:.2f}", f"{row['seconds']:.2f}",
         _mib(row["peak_memory_mib"])]
        for row in growth["command"]
    ]  # fmt: skip
    return [
        Table("Network alone by size", ("voxels", "shape", "seconds", "times"), network),
        Table("Whole command by size of the brain", ("voxels", "grid", "network s", "command s", "memory"), command),
        Table("Cases in a batch (one process)", ("cases", "seconds", "per case"), rows["batch"]),
        Table("Subsets of one case (one process)", ("subsets", "seconds", "per subset"), rows["subsets"]),
        Table("Processes of `evaluate --jobs`", ("processes", "cases", "seconds", "speed-up"), rows["processes"]),
    ]


# --- texts -----------------------------------------------------------------------------------------------------------


def as_markdown(title: str, tables: Sequence[Table], picture: Optional[str] = None) -> str:
    """A page with a heading, the tables, and a picture that lies beside it."""
    parts = [f"# {title}", ""]
    for table in tables:
        parts += [f"**{table.title}**" if table.rows else table.title, ""]
        parts += [line + "  " for line in table.lines] + ([""] if table.lines else [])
        if table.rows:
            parts += ["| " + " | ".join(table.headings) + " |", "|" + "---|" * len(table.headings)]
            parts += ["| " + " | ".join(row) + " |" for row in table.rows]
            parts.append("")
    if picture:
        parts += [f"![How cost grows]({picture})", ""]
    return "\n".join(parts)


def seconds_text(seconds: float) -> str:
    """Milliseconds below a tenth of a second."""
    return f"{1000 * seconds:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _times(ratio: Optional[float]) -> str:
    return "unknown" if ratio is None else f"{ratio:g}"


def _mib(value: Optional[float]) -> str:
    return "unknown" if value is None else f"{value:.0f} MiB"


def _shape(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))
