"""A reader's verdicts in a CSV file that survives crashes: each is appended, written through to the disk, and stays."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path

from ..errors import InputError, OutputError

ACCEPT, MINOR, MAJOR, REJECT = "accept", "minor edits", "major edits", "reject"
VERDICTS = (ACCEPT, MINOR, MAJOR, REJECT)


@dataclass(frozen=True)
class Verdict:
    """What a reader says of one prediction of a case. seconds: spent on it; time: UTC, ISO 8601."""

    case: str
    prediction: str
    verdict: str
    seconds: float
    comment: str = ""
    reader: str = ""
    time: str = ""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise InputError(f"unknown verdict {self.verdict!r}; use one of {', '.join(VERDICTS)}")


COLUMNS = tuple(field.name for field in fields(Verdict))


def append_verdict(path: Path, verdict: Verdict) -> Verdict:
    """Append one line to `path` (made with its header where it is missing), and wait until the disk has it.

    Gives the verdict as it was written, with its time. A line that a crash cut short before is ended first, so that it
    spoils no other. Raises OutputError where the disk does not take it or the file is not one of ours.
    """
    time = verdict.time or datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    verdict = Verdict(**{**asdict(verdict), "seconds": round(float(verdict.seconds), 1), "time": time})
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            start = file.tell()
            if start:
                _require_ours(path)
                file.seek(start - 1)
                broken = file.read(1) != b"\n"
                text = "\n" if broken else ""
            else:
                text = _line(COLUMNS)
            text += _line([str(value) for value in asdict(verdict).values()])
            try:
                file.write(text.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                file.truncate(start)  # half a line is none
                raise
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(
            f"{path}: the verdict could not be written ({reason}). Check the folder and the disk."
        ) from error
    return verdict


def read_verdicts(path: Path) -> list[Verdict]:
    """All whole lines of `path`, the oldest first; [] where there is no file. What a crash cut short is left out.

    Raises OutputError for a file that is not one of ours, InputError where it cannot be read.
    """
    path = Path(path)
    if not path.exists() or not path.stat().st_size:
        return []
    _require_ours(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [found for row in csv.DictReader(file) if (found := _verdict(row)) is not None]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}). Move it away or repair it.") from error


def latest(verdicts: list[Verdict]) -> dict[tuple[str, str], Verdict]:
    """The last verdict on each (case, prediction)."""
    return {(one.case, one.prediction): one for one in verdicts}


def _verdict(row: dict[str, str]) -> Verdict | None:
    try:
        return Verdict(**{**{name: row[name] for name in COLUMNS}, "seconds": float(row["seconds"])})  # type: ignore[arg-type]
    except (KeyError, TypeError, ValueError, InputError):
        return None


def _require_ours(path: Path) -> None:
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        if next(csv.reader(file), []) != list(COLUMNS):
            raise OutputError(f"{path} is not a table of verdicts of this program; choose another file.")


def _line(cells: list[str] | tuple[str, ...]) -> str:
    """One line of CSV; line breaks in a comment become blanks, so that a line is a verdict."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow([" ".join(cell.split()) for cell in cells])
    return text.getvalue()
