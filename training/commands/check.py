"""Look over labelled cases before training: damaged files, geometry, label values, copies. Nothing is changed."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "look over labelled cases: damaged files, geometry, label values, copies"


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """What `check`, `split` and `prepare` say about where the labelled cases are."""
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of BraTS, FeTS or MSD cases, or a datalist (.json, .csv)"
    )
    parser.add_argument(
        "--layout",
        default="auto",
        choices=("auto", "folders", "msd", "datalist"),
        help="kind of --data (default: auto)",
    )
    parser.add_argument(
        "--convention",
        choices=("brats2021", "brats2023", "brats2024", "msd"),
        help="label convention of all cases, where names and values do not tell it",
    )
    parser.add_argument("--processes", type=int, default=1, help="cases at a time (default: 1)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    parser.add_argument("--report", type=Path, required=True, help="folder for checks.md and checks.json")


def run(arguments: argparse.Namespace) -> None:
    from MSTKDSegmentLib.errors import InputError

    from training.checks import ERROR, WARNING, check_cases, write_report
    from training.discovery import discover

    found = discover(arguments.data, arguments.layout, arguments.convention)
    if not found.problems:
        found.complete()
    reports = check_cases(found.cases, arguments.processes, lambda text: print(text, flush=True))
    path = write_report(reports, arguments.report, found.problems)
    unusable = sum(not report.usable for report in reports)
    for kind in (ERROR, WARNING):
        print(f"{kind}s: {sum(finding.severity == kind for report in reports for finding in report.findings)}")
    print(path)
    if unusable or found.problems:
        raise InputError(
            f"{arguments.data}: {unusable} of {len(reports)} cases cannot be used and {len(found.problems)} could not "
            f"be taken up; see {path}"
        )
