"""Divide labelled cases into train, val and test, or into folds, by patient."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from training.commands.check import add_data_arguments

if TYPE_CHECKING:
    from training.discovery import LabelledCase

HELP = "divide labelled cases into train, val and test, or into folds, by patient"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="the split file, JSON")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validation", type=float, default=0.1, help="share of all cases (default: 0.1)")
    parser.add_argument("--test", type=float, default=0.2, help="share of all cases (default: 0.2, as in the paper)")
    parser.add_argument("--folds", type=int, help="divide what is not test into so many folds instead")
    parser.add_argument(
        "--within",
        type=Path,
        metavar="SPLITS",
        help="divide the train part of this split file alone (for folds: with --test 0, nothing else is held out)",
    )
    parser.add_argument("--report", type=Path, help="folder that `check` wrote: spares reading the cases again")
    parser.add_argument("--skip-bad", action="store_true", help="leave out cases that cannot be used")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing split file")


def run(arguments: argparse.Namespace) -> None:
    from MSTKDSegmentLib.errors import OutputError

    from training.splits import make_splits, write_splits

    if arguments.out.exists() and not arguments.overwrite:
        raise OutputError(f"{arguments.out} exists; choose another name, or --overwrite if nothing was trained with it")
    cases = _cases(arguments)
    hashes = _hashes(cases, arguments)
    for case in cases:
        if case.name not in hashes:
            print(f"left out: {case.name} cannot be used")
    kept = [case for case in cases if case.name in hashes]
    splits = make_splits(kept, arguments.seed, arguments.validation, arguments.test, arguments.folds, hashes)
    write_splits(splits, arguments.out, arguments.overwrite)
    for part, members in splits.parts.items():
        print(f"{part}: {len(members)} cases of {len({splits.patients[name] for name in members})} patients")


def _cases(arguments: argparse.Namespace) -> Sequence[LabelledCase]:
    from training.cohort import labelled_part
    from training.discovery import discover

    if arguments.within is not None:
        return labelled_part(arguments.data, arguments.layout, arguments.convention, arguments.within, "train")
    found = discover(arguments.data, arguments.layout, arguments.convention)
    return found.cases if arguments.skip_bad and found.cases else found.complete()


def _hashes(cases: Sequence[LabelledCase], arguments: argparse.Namespace) -> dict[str, dict[str, str]]:
    """Checksums of the usable cases; InputError for the others unless they are to be left out."""
    from MSTKDSegmentLib.errors import InputError

    from training.checks import check_cases, read_hashes

    if arguments.report is not None:
        hashes = read_hashes(arguments.report)
        unknown = [case.name for case in cases if case.name not in hashes]
        if unknown and not arguments.skip_bad:
            names = ", ".join(unknown[:5])
            raise InputError(f"{arguments.report}: does not hold {names} as usable; run `check`, or use --skip-bad")
        return hashes
    reports = check_cases(cases, arguments.processes, lambda text: print(text, flush=True))
    bad = [report.name for report in reports if not report.usable]
    if bad and not arguments.skip_bad:
        raise InputError(f"{arguments.data}: cannot be used: {', '.join(bad[:5])}; run `check`, or use --skip-bad")
    return {r.name: {**r.voxel_sha256, "labels": r.label_sha256} for r in reports if r.usable}
