"""Fit what tells T1, T1Gd, T2 and FLAIR apart by look, check it on patients that it has not seen, and write it.

Settings are chosen by cross-validation inside the training part; the check part is looked at once, at the end.
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "fit what tells the sequences apart by look"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="labelled, skull-stripped cases")
    parser.add_argument("--splits", type=Path, required=True, help="JSON that `split` wrote")
    parser.add_argument("--split", default="train", help="part to learn from (default: train)")
    parser.add_argument("--check-split", default="val", help="part to check on (default: val)")
    parser.add_argument("--processes", type=int, default=1, help="cases at a time (default: 1)")
    parser.add_argument("--out", type=Path, required=True, help="the classifier (.json)")


def run(arguments: argparse.Namespace) -> None:
    from training.appearance import examples_of, make_model, shown, write_model
    from training.discovery import discover
    from training.splits import part, read_splits

    found, splits = discover(arguments.data), read_splits(arguments.splits)
    training, validation = (
        found.select(part(splits, name, arguments.splits)) for name in (arguments.split, arguments.check_split)
    )

    def told(text: str) -> None:
        print(text, flush=True)

    known = examples_of(training, arguments.processes, told)
    model, card = make_model(known, examples_of(validation, arguments.processes, told))
    write_model(arguments.out, model, card)
    for line in (*shown(card), str(arguments.out)):
        told(line)
