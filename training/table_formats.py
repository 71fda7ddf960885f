"""One table as Markdown, CSV and LaTeX (booktabs). What stands in it is the business of `training.tables`."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from training.files import write_text

FULL, EMPTY = "●", "○"
"""A sequence that is present, and one that is missing, in a table's head."""


class Mark(Enum):
    """How a cell stands out among the methods: best (bold), second (underlined)."""

    NONE = 0
    BEST = 1
    SECOND = 2


@dataclass(frozen=True)
class Cell:
    """What one reads in a table."""

    text: str
    mark: Mark = Mark.NONE


@dataclass(frozen=True)
class Table:
    """A table to read (`header` rows above `body` rows of as many cells) and the same figures as `records` for CSV.

    The first `text_columns` are words; where there are several and the first repeats, it is shown once, as a group.
    `name` is the stem of its files and its label.
    """

    name: str
    caption: str
    header: tuple[tuple[str, ...], ...]
    body: tuple[tuple[Cell, ...], ...]
    records: tuple[Mapping[str, Any], ...]
    text_columns: int = 1

    def shown_rows(self) -> list[tuple[bool, list[Cell]]]:
        """(starts a new group, cells) of each row; the group's name only where it starts."""
        rows: list[tuple[bool, list[Cell]]] = []
        before = ""
        for cells in self.body:
            first = cells[0].text
            repeated = bool(rows) and first == before
            new_group = self.text_columns > 1 and bool(rows) and not repeated
            rows.append((new_group, [Cell("") if repeated else cells[0], *cells[1:]]))
            before = first
        return rows


def markdown(table: Table) -> str:
    """GitHub-flavoured Markdown; the rows of the head stand under each other in one cell."""
    head = ["<br>".join(dict.fromkeys(filter(None, column))) for column in zip(*table.header)]
    if any(FULL in cell or EMPTY in cell for row in table.header for cell in row):
        head = ["<br>".join(column) for column in zip(*table.header)]
    lines = [f"**{table.caption}**", "", _pipes(_md_escape(cell) for cell in head)]
    words, figures = table.text_columns, len(head) - table.text_columns
    lines.append(_pipes(["---"] * words + ["---:"] * figures))
    lines += [_pipes(_md_cell(cell) for cell in cells) for _, cells in table.shown_rows()]
    return "\n".join(lines) + "\n"


def _pipes(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _md_escape(text: str) -> str:
    return text.replace("|", "\\|")


def _md_cell(cell: Cell) -> str:
    text = _md_escape(cell.text)
    return {Mark.BEST: f"**{text}**", Mark.SECOND: f"<u>{text}</u>", Mark.NONE: text}[cell.mark]


def csv_text(table: Table) -> str:
    """The records with a line of column names; figures are not rounded as they are for reading."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(table.records[0]), lineterminator="\n")
    writer.writeheader()
    for record in table.records:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in record.items()})
    return file.getvalue()


_LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    FULL: r"$\bullet$",
    EMPTY: r"$\circ$",
}


def latex_escape(text: str) -> str:
    """`text` with every character that LaTeX would read as a command written out, and minus signs of full length."""
    escaped = "".join(_LATEX.get(char, char) for char in text)
    return re.sub(r"(?<!\w)-(?=\d)", "$-$", escaped)


def latex(table: Table) -> str:
    r"""A `table` float that needs only `\usepackage{booktabs}`."""
    columns = len(table.header[0])
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}[htbp]",
        r"\centering",
        # Sixteen columns of figures on a page.
        r"\scriptsize\setlength{\tabcolsep}{2.5pt}" if columns > 10 else r"\small",
        rf"\caption{{{latex_escape(table.caption)}}}",
        rf"\label{{tab:{table.name.replace('_', '-')}}}",
        rf"\begin{{tabular}}{{{'l' * table.text_columns}{'c' * (columns - table.text_columns)}}}",
        r"\toprule",
        *(line for row in table.header for line in _latex_head(row)),
        r"\midrule",
    ]
    for new_group, cells in table.shown_rows():
        if new_group:
            lines.append(r"\midrule")
        lines.append(" & ".join(map(_latex_cell, cells)) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def _latex_head(row: Sequence[str]) -> list[str]:
    """One line of the head; a title over several columns is centred over them, with a rule below."""
    cells: list[str] = []
    rules: list[str] = []
    position = 0
    while position < len(row):
        text, width = row[position], 1
        while text not in ("", FULL, EMPTY) and row[position : position + width + 1] == (text,) * (width + 1):
            width += 1
        escaped = latex_escape(text)
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{escaped}}}" if width > 1 else escaped)
        if width > 1:
            rules.append(rf"\cmidrule(lr){{{position + 1}-{position + width}}}")
        position += width
    return [" & ".join(cells) + r" \\", *rules]


def _latex_cell(cell: Cell) -> str:
    text = latex_escape(cell.text)
    return {Mark.BEST: rf"\textbf{{{text}}}", Mark.SECOND: rf"\underline{{{text}}}", Mark.NONE: text}[cell.mark]


def write_table(table: Table, out: Path) -> list[Path]:
    """`<out>/<name>.csv` and `.tex`; returns their paths. Raises OutputError where they cannot be written."""
    paths = [out / f"{table.name}{ending}" for ending in (".csv", ".tex")]
    for path, text in zip(paths, (csv_text(table), latex(table))):
        write_text(path, text)
    return paths
