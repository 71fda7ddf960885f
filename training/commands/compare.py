"""A table of several weights as `calibrate` found them: mean Dice over the subsets, and with some of them.

In brackets the mean with thresholds chosen on the other patients. With --reference also each other's difference from
it, by number of sequences, with intervals. A NAME given several times is one method in several folds: their patients
are put together. The prepared 1 mm grid, no clean-up.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from training.commands.tables import named_file

HELP = "a table of several weights as `calibrate` found them"
DEFAULT_SETS = ("T1", "T1Gd", "T2", "FLAIR", "T1+T1Gd+T2+FLAIR")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "calibrations", nargs="+", metavar="NAME=FOLDER", help="weights (or a fold) and calibrate's --out"
    )
    parser.add_argument("--sets", nargs="+", default=DEFAULT_SETS, help=f"columns (default: {' '.join(DEFAULT_SETS)})")
    parser.add_argument("--reference", metavar="NAME", help="print each other's difference from it, by patient")


def run(arguments: argparse.Namespace) -> None:
    from training.calibration_tables import comparison, differences, read_calibrations

    folders: dict[str, list[Path]] = {}
    for text in arguments.calibrations:
        name, folder = named_file(text, "FOLDER")
        folders.setdefault(name, []).append(folder)
    found = read_calibrations(folders)
    reference = arguments.reference
    if reference and reference not in found:
        raise ValueError(f"--reference {reference!r} is none of {', '.join(found)}")
    print(comparison(found, arguments.sets))
    for name in found if reference else ():
        if name != reference:
            print("\n" + differences(name, found[name], reference, found[reference]))
