"""Scores of one case, subset and region as rows of a CSV file: writing, reading, and HD95 as `paper_legacy` has it.

A cell is one row; nothing is ever averaged here. The empty-mask policy is `MSTKDSegmentLib.metrics.Status`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from MSTKDSegmentLib.metrics import Status
from MSTKDSegmentLib.modalities import SUBSETS, subset_name
from MSTKDSegmentLib.regions import REGIONS as REGION_STRUCTURES

from training.files import replacing

REGIONS: tuple[str, ...] = tuple(region.key for region in REGION_STRUCTURES)
SUBSET_NAMES: tuple[str, ...] = tuple(map(subset_name, SUBSETS))
PAPER_LEGACY_NOTE = (
    "paper_legacy: HD95 is 0.0 mm where the prediction or the reference is empty, as in the published code. It "
    "flatters, because a missed tumour counts as a perfect surface; it is here only to compare with published figures."
)


@dataclass(frozen=True)
class Row:
    """One case, subset and region. n_ref, n_pred: voxels; hd95: mm; nsd1, nsd2: at 1 and 2 mm; seconds: the network's.

    `clean_up` names the post-processing that was scored.
    """

    case: str
    patient: str
    subset: str
    region: str
    n_ref: int
    n_pred: int
    status: str
    dice: float
    hd95: float
    nsd1: float
    nsd2: float
    volume_error_ml: float
    seconds: float
    checkpoint_sha256: str
    clean_up: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What there is one row of: case, subset, region, clean-up."""
        return self.case, self.subset, self.region, self.clean_up


COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(Row))
_KINDS: Mapping[str, type] = {
    field.name: {"int": int, "float": float}.get(str(field.type), str) for field in fields(Row)
}


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write `rows`, all or nothing: a reader never sees half a file. Raises OutputError where it cannot be written."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: getattr(row, name) for name in COLUMNS} for row in rows)


def read_rows(path: Path) -> list[Row]:
    """Rows of a file that `write_rows` wrote; [] when there is none.

    Raises ValueError naming the file and the columns or the line that cannot be used.
    """
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        _require_columns(path, reader.fieldnames or ())
        return [_row(path, number, line) for number, line in enumerate(reader, start=2)]


def _require_columns(path: Path, found: Sequence[str]) -> None:
    missing = [name for name in COLUMNS if name not in found]
    if missing:
        raise ValueError(
            f"{path}: no scores of this version, the columns {', '.join(missing)} are missing; "
            "move the file away and run `python -m training evaluate` again"
        )


def _row(path: Path, number: int, line: Mapping[str, str]) -> Row:
    try:
        return Row(**{name: _KINDS[name](line[name]) for name in COLUMNS})
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path}, line {number}: {error}; the file is damaged, restore it or evaluate again"
        ) from error


def merged(tables: Iterable[Iterable[Row]], cases: Sequence[str]) -> list[Row]:
    """All rows of `tables`, each key once (the last wins): `cases` in their order first, then others as they come.

    Within a case the order is clean-up as it comes inside each subset, subsets as in `SUBSETS`, regions WT, TC, ET, so
    that the same scores always give the same file.
    """
    unique = {row.key: row for table in tables for row in table}
    names = list(dict.fromkeys([*cases, *(row.case for row in unique.values())]))
    clean_ups = list(dict.fromkeys(row.clean_up for row in unique.values()))
    place = {name: number for number, name in enumerate(names)}

    def order(row: Row) -> tuple[int, int, int, int]:
        return (
            place[row.case],
            SUBSET_NAMES.index(row.subset),
            clean_ups.index(row.clean_up),
            REGIONS.index(row.region),
        )

    return sorted(unique.values(), key=order)


def as_paper_legacy(rows: Iterable[Row]) -> list[Row]:
    """`rows` with HD95 as the published code has it (`PAPER_LEGACY_NOTE`); all else stays, the status too."""
    return [row if row.status == Status.OK else replace(row, hd95=0.0) for row in rows]
