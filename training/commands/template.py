"""Build the template that clinical heads are turned to: MNI152 in the mean pose and size of the training patients."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "build the template of the head's pose"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="labelled, skull-stripped cases")
    parser.add_argument("--splits", type=Path, required=True, help="JSON that `split` wrote")
    parser.add_argument("--split", default="train", help="part to take poses from (default: train)")
    parser.add_argument("--out", type=Path, required=True, help="the template (.nii.gz)")


def run(arguments: argparse.Namespace) -> None:
    from training.discovery import discover
    from training.splits import part, read_splits
    from training.template import mean_affine, mni152, posed, write_template

    names = part(read_splits(arguments.splits), arguments.split, arguments.splits)
    template = mni152()
    cases = discover(arguments.data).select(names)
    axes, spread = mean_affine(cases, template, lambda text: print(text, flush=True))
    write_template(posed(template, axes), arguments.out)
    print(f"mean of {len(names)} patients {axes.round(4).tolist()}, largest deviation {spread:.3f}: {arguments.out}")
