"""What the commands print for people: a progress bar on a terminal, tables, notices, errors of one line."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Callable, Optional

from .errors import Cancelled

if TYPE_CHECKING:
    from rich.console import Console

Progress = Callable[[float, str], None]

RESEARCH_ONLY = "For research use only. Not a medical device: not for diagnosis or treatment decisions."


@contextmanager
def progress_bar(wanted: bool) -> Iterator[Optional[Progress]]:
    """Yields a function of (fraction 0..1, text) that moves a bar on stderr; None where stderr is no terminal."""
    if not (wanted and sys.stderr.isatty()):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda fraction, text: bar.update(task, completed=fraction, description=text)


def print_line(text: str, style: str = "") -> None:
    """One line on stdout, coloured on a terminal; long lines are not broken, so that paths can be copied."""
    _console().print(text, style=style or None, markup=False, highlight=False, soft_wrap=True)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> None:
    """A table on stdout: the first `text_columns` columns to the left, numbers to the right."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < text_columns else "right")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    _console().print(table)


def _console() -> Console:
    from rich.console import Console

    return Console()


def warn(text: str) -> None:
    """A sentence that the user must see even where nothing else is printed."""
    print(f"mstkd: warning: {_one_line(text)}", file=sys.stderr)


def print_error(error: BaseException) -> None:
    """The one line of an error on stderr."""
    prefix = "mstkd" if isinstance(error, Cancelled) else "mstkd: error"
    print(f"{prefix}: {_one_line(str(error))}", file=sys.stderr)


def error_json(error: BaseException, exit_code: int) -> dict[str, Any]:
    """`{"error": {...}}` as every command with --json prints it."""
    return {"error": {"kind": type(error).__name__, "message": _one_line(str(error)), "exit_code": exit_code}}


def _one_line(text: str) -> str:
    return " ".join(text.split())


def region_text(values: Optional[Mapping[str, float]], key: str, digits: int = 3) -> str:
    """A number of one region, or a dash where there is none."""
    return "-" if values is None or key not in values else f"{values[key]:.{digits}f}"
