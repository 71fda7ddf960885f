"""tables.md: what was compared, every table, every figure; and each table's CSV and LaTeX beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from MSTKDSegmentLib.metrics import HD95_PENALTY_MM

from training.files import write_text
from training.methods import Method
from training.table_formats import Table, markdown, write_table


def write_tables(
    tables: Sequence[Table], methods: Sequence[Method], figures: Sequence[Path], out: Path, title: str
) -> list[Path]:
    """Write all into `out`; returns the paths, tables.md first. Raises OutputError where they cannot be written."""
    parts = [f"# {title}", _methods(methods), _policy(), *(markdown(table) for table in tables)]
    parts += [f"![{path.stem}]({path.name})" for path in figures]
    page = out / "tables.md"
    paths = [path for table in tables for path in write_table(table, out)]
    write_text(page, "\n\n".join(part.strip() for part in parts) + "\n")
    return [page, *paths, *figures]


def _methods(methods: Sequence[Method]) -> str:
    lines = ["| method | weights sha256 | clean-up | cases | patients |", "|---|---|---|---:|---:|"]
    for method in methods:
        row = method.rows[0]
        lines.append(
            f"| {method.name} | `{row.checkpoint_sha256[:16]}` | {row.clean_up} | {len(method.cases)} "
            f"| {len(set(method.patients))} |"
        )
    return "\n".join(lines)


def _policy() -> str:
    return (
        "Native space, whole volume. No case is left out of a mean: where both masks are empty Dice is 100 % and HD95 "
        f"0 mm; where one is empty Dice is 0 and HD95 {HD95_PENALTY_MM} mm. Intervals are 95 % percentile bootstraps "
        "that draw patients with all their cases; Wilcoxon tests see one mean difference a patient."
    )
