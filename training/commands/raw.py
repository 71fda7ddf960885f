"""Segment a patient as the scanner made it, and compare with a segmentation of the same patient in atlas space."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "measure the product on a raw clinical patient with a reference in atlas space"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--patient", type=Path, required=True, help="folder of the volumes as the scanner made them")
    parser.add_argument(
        "--atlas", type=Path, required=True, help="folder of the same patient skull-stripped in atlas space, with _seg"
    )
    parser.add_argument("--convention", default="auto", help="label convention of that segmentation")
    parser.add_argument("--bundle", type=Path, help="weights (default: those that ship)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON of the figures")


def run(arguments: argparse.Namespace) -> None:
    import json

    import torch
    from MSTKDSegmentLib.memory import peak_memory_mib
    from MSTKDSegmentLib.pipeline import Segmenter

    from training import raw
    from training.files import write_text
    from training.provenance import current_commit, describe_hardware, package_versions

    segmenter = Segmenter(arguments.bundle, arguments.device)
    measured = raw.measure(arguments.patient, arguments.atlas, segmenter, arguments.convention)
    about = {
        "weights_sha256": segmenter.bundle.sha256,
        "hardware": describe_hardware(torch.device(segmenter.device.name)),
        "versions": package_versions(),
        "commit": current_commit(),
        "peak_memory_mib": peak_memory_mib(),
    }
    write_text(arguments.out, json.dumps({**about, **measured}, indent=1) + "\n")
    shown = ", ".join(f"{region} {value:.3f}" for region, value in measured["dice"].items())
    print(f"Dice {shown}; brain {measured['brain_dice']:.3f}; {measured['seconds']['total']:.0f} s")
    print(arguments.out)
