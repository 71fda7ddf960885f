"""Methods to compare: one network's scores each, read from its per_case.csv and checked to be comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from MSTKDSegmentLib.modalities import subset_name

from training.scores import REGIONS, Row, as_paper_legacy, read_rows

DOT_ROWS = ("FLAIR", "T1", "T1Gd", "T2")
"""The lines of dots in the head of the paper's tables."""
PAPER_ORDER: tuple[str, ...] = tuple(
    subset_name(text.split())
    for text in (
        *("T2", "T1Gd", "T1", "FLAIR"),
        *("T1Gd T2", "T1 T1Gd", "FLAIR T1", "T1 T2", "FLAIR T2", "FLAIR T1Gd"),
        *("FLAIR T1 T1Gd", "FLAIR T1 T2", "FLAIR T1Gd T2", "T1 T1Gd T2", "FLAIR T1 T1Gd T2"),
    )
)
"""The 15 subsets as the columns of the paper's Tables 1 and 2 follow each other, with the one that Table 1 lacks."""


@dataclass(frozen=True)
class Metric:
    """A column of the scores, how it is shown, and which end of it is good."""

    key: str
    title: str
    unit: str
    scale: float
    larger_is_better: bool


DICE = Metric("dice", "Dice", "%", 100.0, True)
HD95 = Metric("hd95", "HD95", "mm", 1.0, False)


@dataclass(frozen=True, eq=False)
class Method:
    """One network's scores after one clean-up: a row for every case, subset and region."""

    name: str
    rows: tuple[Row, ...]

    @cached_property
    def cases(self) -> tuple[str, ...]:
        return tuple(sorted({row.case for row in self.rows}))

    @cached_property
    def patients(self) -> tuple[str, ...]:
        """The patient of each of `cases`."""
        of_case = {row.case: row.patient for row in self.rows}
        return tuple(of_case[case] for case in self.cases)

    @cached_property
    def subsets(self) -> tuple[str, ...]:
        """The subsets that were evaluated, in the paper's order."""
        there = {row.subset for row in self.rows}
        return tuple(name for name in PAPER_ORDER if name in there)

    @cached_property
    def row_of(self) -> Mapping[tuple[str, str, str], Row]:
        """(case, subset, region) -> row."""
        return {(row.case, row.subset, row.region): row for row in self.rows}

    def values(self, metric: Metric, region: str, subsets: Sequence[str]) -> np.ndarray:
        """(cases,): each case's mean over `subsets`, in the metric's unit."""
        of_case = [[getattr(self.row_of[c, s, region], metric.key) for s in subsets] for c in self.cases]
        return np.mean(np.array(of_case), axis=1) * metric.scale

    def only(self, subsets: Sequence[str]) -> Method:
        """The same, seen through `subsets` alone."""
        return replace(self, rows=tuple(row for row in self.rows if row.subset in subsets))

    def as_paper_legacy(self) -> Method:
        """The same with the published code's HD95; see `scores.PAPER_LEGACY_NOTE`."""
        return replace(self, rows=tuple(as_paper_legacy(self.rows)))


def read_method(name: str, path: Path, clean_up: str = "none") -> Method:
    """The scores of `clean_up` in a `per_case.csv`.

    Raises FileNotFoundError, or ValueError when the file is of another version, lacks the clean-up, holds several
    networks, or is not finished.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; give the per_case.csv that `python -m training evaluate` wrote")
    rows = read_rows(path)
    mine = tuple(row for row in rows if row.clean_up == clean_up)
    if not mine:
        there = ", ".join(sorted({row.clean_up for row in rows})) or "nothing"
        raise ValueError(f"{path}: no scores of clean-up {clean_up!r}; it holds {there}")
    if len({row.checkpoint_sha256 for row in mine}) > 1:
        raise ValueError(f"{path}: scores of several networks; give one file for each")
    method = Method(name, mine)
    for key in ((c, s, r) for c in method.cases for s in method.subsets for r in REGIONS):
        if key not in method.row_of:
            raise ValueError(f"{path}: {' '.join(key)} is missing; run `python -m training evaluate` to its end first")
    return method


def on_common_subsets(methods: Sequence[Method]) -> list[Method]:
    """All methods, each with the subsets that every one was evaluated on; ValueError if there are none."""
    common = [name for name in PAPER_ORDER if all(name in method.subsets for method in methods)]
    if not common:
        raise ValueError(
            f"{', '.join(m.name for m in methods)} have no subset in common; evaluate them on the same ones"
        )
    return [method.only(common) for method in methods]


def require_comparable(methods: Sequence[Method]) -> None:
    """Raises ValueError unless all methods were scored on the same cases, subsets and reference segmentations."""
    first = methods[0]
    for other in methods[1:]:
        for what in ("cases", "subsets"):
            mine, theirs = set(getattr(first, what)), set(getattr(other, what))
            if mine != theirs:
                raise ValueError(
                    f"{first.name} and {other.name} were evaluated on different {what} "
                    f"({', '.join(sorted(mine ^ theirs)[:5])}); evaluate both on the same ones"
                )
        for key, row in first.row_of.items():
            if other.row_of[key].n_ref != row.n_ref or other.row_of[key].patient != row.patient:
                raise ValueError(
                    f"{first.name} and {other.name}: {row.case} has another reference segmentation or patient"
                )


def sample_size(method: Method) -> str:
    """ "n = 12 cases of 11 patients"."""
    return f"n = {len(method.cases)} cases of {len(set(method.patients))} patients"
