"""Check and normalise labelled cases into a cache; what is there and still current is not done again."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from training.commands.check import add_data_arguments

if TYPE_CHECKING:
    from training.discovery import LabelledCase

HELP = "check and normalise labelled cases into a cache"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    parser.add_argument("--splits", type=Path, help="prepare the cases of this split file only")
    parser.add_argument("--cache", type=Path, required=True, help="folder for the normalised cases")
    parser.add_argument("--skip-bad", action="store_true", help="leave out cases that cannot be used")


def run(arguments: argparse.Namespace) -> None:
    from training.cache import is_current
    from training.checks import check_cases, write_report
    from training.parallel import each

    cases = _chosen(arguments)
    stale = [case for case in cases if not is_current(case, arguments.cache)]
    print(f"{len(cases) - len(stale)} of {len(cases)} cases are prepared already", flush=True)
    if not stale:
        return
    print(f"checking {len(stale)} cases", flush=True)
    reports = check_cases(stale, arguments.processes, lambda text: print(text, flush=True))
    path = write_report(reports, arguments.cache / "checks")
    _refuse([report.name for report in reports if not report.usable], arguments, f"see {path}")
    good = [case for case, report in zip(stale, reports) if report.usable]
    failed = []
    for number, (name, seconds, trouble) in enumerate(
        each(partial(_prepare, cache=arguments.cache), good, arguments.processes), start=1
    ):
        print(f"{number}/{len(good)} {name}: {trouble or f'prepared in {seconds:.1f} s'}", flush=True)
        if trouble:
            failed.append(name)
    _refuse(failed, arguments, "the reasons stand above")


def _chosen(arguments: argparse.Namespace) -> Sequence[LabelledCase]:
    from training.discovery import discover
    from training.splits import read_splits

    found = discover(arguments.data, arguments.layout, arguments.convention)
    wanted = None
    if arguments.splits is not None:
        # A case stands in several folds.
        wanted = list(dict.fromkeys(name for names in read_splits(arguments.splits).values() for name in names))
    if not arguments.skip_bad:
        return found.complete() if wanted is None else found.select(wanted)
    for problem in found.problems:
        print(f"left out: {problem}")
    return [case for case in found.cases if wanted is None or case.name in wanted]


def _prepare(case: LabelledCase, cache: Path) -> tuple[str, float, str]:
    """(name, seconds, what was wrong): an error of one case must not end the others."""
    from MSTKDSegmentLib.errors import InputError

    from training.cache import prepare_case

    start = time.perf_counter()
    try:
        prepare_case(case, cache)
    except InputError as error:
        return case.name, time.perf_counter() - start, str(error)
    return case.name, time.perf_counter() - start, ""


def _refuse(names: Sequence[str], arguments: argparse.Namespace, where: str) -> None:
    from MSTKDSegmentLib.errors import InputError

    if not names:
        return
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    if arguments.skip_bad:
        print(f"left out: {listed}; {where}", flush=True)
    else:
        raise InputError(f"{arguments.data}: cannot be used: {listed}; {where}. Repair them or use --skip-bad")
