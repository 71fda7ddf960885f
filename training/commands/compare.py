"""A table of several weights as `calibrate` found them: mean Dice over the subsets, and with some of them.

In brackets the mean with thresholds chosen on the other patients. The prepared 1 mm grid, no clean-up.
"""

from __future__ import annotations

import argparse

from training.commands.tables import named_files

HELP = "a table of several weights as `calibrate` found them"
DEFAULT_SETS = ("T1", "T1Gd", "T2", "FLAIR", "T1+T1Gd+T2+FLAIR")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("calibrations", nargs="+", metavar="NAME=FOLDER", help="weights and calibrate's --out")
    parser.add_argument("--sets", nargs="+", default=DEFAULT_SETS, help=f"columns (default: {' '.join(DEFAULT_SETS)})")


def run(arguments: argparse.Namespace) -> None:
    from training.calibration_files import comparison

    print(comparison(named_files(arguments.calibrations, "FOLDER"), arguments.sets))
