"""The cases of a batch: the sub-folders of a folder, or the lines of a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from .errors import InputError
from .file_checks import os_errors_as_input_errors, printable
from .modalities import canonical_modality

SEQUENCE_COLUMNS = {"t1": "T1", "t1gd": "T1Gd", "t2": "T2", "flair": "FLAIR"}
COLUMNS = ("case", *SEQUENCE_COLUMNS, "reference", "ground_truth")
PREDICTION = "prediction"


@dataclass(frozen=True)
class BatchCase:
    """One case, not looked at yet: a folder, or files by sequence. `where` says where it is listed, for messages."""

    name: str
    where: str
    folder: Optional[Path] = None
    files: Mapping[str, Path] = field(default_factory=dict)
    reference: Optional[str] = None
    ground_truth: Optional[Path] = None
    predictions: Mapping[str, Path] = field(default_factory=dict)


def read_cases(
    source: Path, output_folder: Optional[Path] = None, predictions: bool = False, keep: Optional[Path] = None
) -> list[BatchCase]:
    """The cases in `source`, a folder of case folders or a CSV file (columns: `COLUMNS`), in their order.

    predictions: the CSV file may name segmentations to look at, in the column `prediction` or, where there are several
    of a case, `prediction NAME` ...
    Raises InputError when there are none, for a source that cannot be read, and for a CSV file that cannot be
    understood as a whole: unknown column, unusable or repeated case name, unknown reference.
    Files are not looked at: a bad one concerns its case only.
    """
    with os_errors_as_input_errors(source):
        if source.is_dir():
            cases = _case_folders(source, [folder for folder in (output_folder, keep) if folder is not None])
        elif source.is_file():
            cases = list(_csv_cases(source, predictions))
        else:
            raise InputError(f"{source}: no such folder or CSV file; give a folder of case folders, or a CSV of cases")
    if not cases:
        raise InputError(f"{source}: holds no cases; give a folder with one sub-folder a case, or a CSV of cases")
    return cases


def _case_folders(source: Path, outputs: Sequence[Path]) -> list[BatchCase]:
    folders = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
    # The results may well be put beside the cases, and in a folder of several runs: that is no case either.
    ours = {above for folder in outputs for above in (folder.resolve(), *folder.resolve().parents)}
    cases = [path for path in folders if path.resolve() not in ours]
    # A name that is not UTF-8 fails its own case, when its volumes are looked for; the summary can be written.
    return [BatchCase(printable(path.name), printable(str(path)), folder=path) for path in cases]


def _csv_cases(source: Path, predictions: bool) -> Iterator[BatchCase]:
    lines: dict[str, int] = {}
    for line, row in _csv_rows(source, predictions):
        where = f"{source} line {line}"
        name = row.get("case", "")
        if not name:
            raise InputError(f"{where}: no case name; fill in the column `case`")
        if name.startswith(".") or any(character in name for character in '/\\:*?"<>|') or not name.isprintable():
            raise InputError(f"{where}: case name {name!r} cannot be a file name; use letters, digits, '-' and '_'")
        # Windows and macOS take A.nii and a.nii for one file.
        if name.casefold() in lines:
            raise InputError(f"{where}: case {name!r} stands in line {lines[name.casefold()]} already; name each once")
        lines[name.casefold()] = line
        reference = canonical_modality(row["reference"]) if row.get("reference") else None
        if row.get("reference") and reference is None:
            raise InputError(f"{where}: unknown reference {row['reference']!r}; use T1, T1Gd, T2 or FLAIR")
        yield BatchCase(
            name=name,
            where=where,
            files={sequence: _path(source, row[key]) for key, sequence in SEQUENCE_COLUMNS.items() if row.get(key)},
            reference=reference,
            ground_truth=_path(source, row["ground_truth"]) if row.get("ground_truth") else None,
            predictions={
                _prediction(key): _path(source, text) for key, text in row.items() if text and _prediction(key)
            },
        )


def _prediction(column: str) -> str:
    """What the predictions in a column are called; "" for another column."""
    first, _, name = column.partition(" ")
    return (name.strip() or first) if first == PREDICTION else ""


def _path(source: Path, text: str) -> Path:
    try:
        return source.parent / Path(text).expanduser()
    except RuntimeError as error:  # ~somebody who has no home here
        raise InputError(f"{source}: {text!r}: {error}; give the whole path") from error


def _csv_rows(source: Path, predictions: bool) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, cells by column) of every line that is not empty."""
    try:
        with source.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            header = [cell.strip().lower() for cell in next(reader, [])]
            _check_header(header, source, predictions)
            for cells in reader:
                texts = [cell.strip() for cell in cells]
                if len(texts) != len(header) and any(texts):
                    raise InputError(
                        f"{source} line {reader.line_num}: {len(texts)} cells, the header has {len(header)}; quote "
                        "names with commas"
                    )
                if any(texts):
                    yield reader.line_num, dict(zip(header, texts))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{source}: not a CSV text file in UTF-8 ({error}); save it as CSV again") from error


def _check_header(header: list[str], source: Path, predictions: bool) -> None:
    expected = ", ".join((*COLUMNS, PREDICTION) if predictions else COLUMNS)
    for column in header:
        if column not in COLUMNS and not (predictions and _prediction(column)):
            raise InputError(f"{source} line 1: unknown column {column!r}; the columns are {expected}")
        if header.count(column) > 1:
            raise InputError(f"{source} line 1: column {column!r} stands there twice; the columns are {expected}")
    names = [name for name in map(_prediction, header) if name]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{source} line 1: two columns of predictions are called {name!r}; name them apart")
    compared = predictions and "ground_truth" in header and bool(names)
    if "case" not in header or not (compared or set(header) & set(SEQUENCE_COLUMNS)):
        raise InputError(f"{source} line 1: needs the column case and at least one of {', '.join(SEQUENCE_COLUMNS)}")
