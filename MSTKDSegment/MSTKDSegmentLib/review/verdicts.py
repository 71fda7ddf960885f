"""A reader's verdicts in a CSV file that survives crashes: each is appended, written through to the disk, and stays."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Optional

from ..errors import InputError, OutputError

ACCEPT, MINOR, MAJOR, REJECT = "accept", "minor edits", "major edits", "reject"
VERDICTS = (ACCEPT, MINOR, MAJOR, REJECT)
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True)
class Verdict:
    """What a reader says of one prediction of a case. seconds: spent on it; time: UTC, ISO 8601.

    Line breaks, runs of blanks and characters that no text file holds become single blanks in all texts, so that a
    verdict is one line.
    """

    case: str
    prediction: str
    verdict: str
    seconds: float
    comment: str = ""
    reader: str = ""
    time: str = ""

    def __post_init__(self) -> None:
        for name in ("case", "prediction", "comment", "reader"):
            object.__setattr__(self, name, one_line(getattr(self, name)))
        object.__setattr__(self, "seconds", round(float(self.seconds), 1))
        if self.verdict not in VERDICTS:
            raise InputError(f"unknown verdict {self.verdict!r}; use one of {', '.join(VERDICTS)}")


COLUMNS = tuple(field.name for field in fields(Verdict))


def one_line(text: str) -> str:
    """A text as a `Verdict` holds it."""
    plain = text.replace("\0", " ").encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair is no character
    return " ".join(plain.split())


def append_verdict(path: Path, verdict: Verdict) -> Verdict:
    """Append one line to `path` (made with its header where it is missing), and wait until the disk has it.

    Gives the verdict as it was written, with its time. A line that a crash cut short before is ended first, so that it
    spoils no other. Raises OutputError where the disk does not take it, which leaves the file as it was, or where the
    file is not one of ours.
    """
    path = Path(path)
    if not verdict.time:
        verdict = replace(verdict, time=datetime.now(timezone.utc).strftime(TIME_FORMAT))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as file:  # unbuffered: what the disk refused must not be tried again later
            start = file.seek(0, os.SEEK_END)
            head = b""
            if not start:
                head = _line(COLUMNS)
            else:
                _require_ours(path)
                file.seek(start - 1)
                if file.read(1) != b"\n":
                    head = b"\n"
            try:
                _write_all(file.fileno(), head + _line([str(value) for value in asdict(verdict).values()]))
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):  # the first error is what the reader has to know
                    os.ftruncate(file.fileno(), start)  # half a line is none
                raise
    except OSError as error:
        raise OutputError(
            f"{path}: the verdict could not be written ({error.strerror or error}). Check the folder and the disk."
        ) from error
    return verdict


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def read_verdicts(path: Path) -> list[Verdict]:
    """All whole lines of `path`, the oldest first; [] where there is no file. What a crash cut short is left out.

    Raises OutputError for a file that is not one of ours, InputError where it cannot be read.
    """
    path = Path(path)
    try:
        if not path.exists() or not path.stat().st_size:
            return []
        _require_ours(path)
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}). Check the file.") from error
    # Each line by itself: a quotation mark that a crash left open must not swallow the lines after it.
    rows = (_cells(line) for line in text.split("\n")[1:] if line)
    return [found for row in rows if (found := _verdict(row)) is not None]


def latest(verdicts: Sequence[Verdict]) -> dict[tuple[str, str], Verdict]:
    """The last verdict on each (case, prediction)."""
    return {(one.case, one.prediction): one for one in verdicts}


def _cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line.replace("\0", " ")], strict=True), [])
    except csv.Error:
        return []


def _verdict(cells: Sequence[str]) -> Optional[Verdict]:
    """The verdict in a line's cells; None for the header, and for a line that was cut short."""
    if len(cells) != len(COLUMNS):
        return None
    row: Mapping[str, str] = dict(zip(COLUMNS, cells))
    try:
        datetime.strptime(row["time"], TIME_FORMAT)  # the last cell: whole only where the line is
        return Verdict(**{**row, "seconds": float(row["seconds"])})  # type: ignore[arg-type]
    except (ValueError, InputError):
        return None


def _require_ours(path: Path) -> None:
    with path.open("rb") as file:
        first = file.readline(4096).decode("utf-8", "replace")
    # Of a header that a crash cut short a part is left.
    if _cells(first.strip()) != list(COLUMNS) and not _line(COLUMNS).decode().startswith(first.rstrip("\n")):
        raise OutputError(f"{path} is not a table of verdicts of this program; choose another file.")


def _line(cells: Sequence[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8")
