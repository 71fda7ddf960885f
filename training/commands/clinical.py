"""Degrade labelled patients to clinical form and measure what the preparation costs: Dice, registration error, time."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "measure the preparation on patients degraded to clinical form"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="labelled, challenge-ready cases")
    parser.add_argument("--splits", type=Path, required=True, help="JSON that `split` wrote")
    parser.add_argument("--split", default="train", help="part to take patients from (default: train)")
    parser.add_argument("--cases", type=int, default=6, help="so many, evenly spaced in the part (default: 6)")
    parser.add_argument("--convention", default=None, help="label convention of all cases")
    parser.add_argument("--bundle", type=Path, help="weights (default: those that ship)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON of the figures")


def run(arguments: argparse.Namespace) -> None:
    import json

    import torch
    from MSTKDSegmentLib.pipeline import Segmenter

    from training import clinical
    from training.discovery import discover
    from training.files import write_text
    from training.provenance import current_commit, describe_hardware, package_versions
    from training.splits import part, read_splits

    names = part(read_splits(arguments.splits), arguments.split, arguments.splits)
    step = max(1, len(names) // arguments.cases)
    cases = discover(arguments.data, convention=arguments.convention).select(names[::step][: arguments.cases])
    segmenter = Segmenter(arguments.bundle, arguments.device)
    measured = clinical.run(cases, segmenter, lambda text: print(text, flush=True))
    about = {
        "split": arguments.split,
        "weights_sha256": segmenter.bundle.sha256,
        "hardware": describe_hardware(torch.device(segmenter.device.name)),
        "versions": package_versions(),
        "commit": current_commit(),
    }
    write_text(arguments.out, json.dumps({**about, **measured}, indent=1) + "\n")
    for name, means in measured["mean"].items():
        print(name, {key: round(value, 3) for key, value in means.items()})
    print(arguments.out)
