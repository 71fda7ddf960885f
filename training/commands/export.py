"""Write the trained student as a bundle with its card, and prove it.

The bundle is read back and segments one patient through the product's own pipeline; the result must be the trainer's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "write a bundle with its card, proved through the product's own pipeline"
SAMPLE = Path(__file__).resolve().parents[2] / "Resources" / "sample"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, required=True, help="folder that `train` wrote")
    parser.add_argument("--checkpoint", choices=("last", "best"), default="last")
    parser.add_argument("--splits", type=Path, help="to check what the run was trained on: the split file ...")
    parser.add_argument("--split", default="train", help="... and its part (default: train)")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True, help="YAML: name, description, data, licence, citations")
    parser.add_argument("--evaluation", type=Path, help="summary.json of these weights; its figures go into the card")
    parser.add_argument("--clean-up", default="none", help="post-processing that `evaluate` compared (default: none)")
    parser.add_argument("--decision", type=Path, help="decision.json that `calibrate` chose for these weights")
    parser.add_argument("--blend-with", type=Path, help="bundle or checkpoint that the run came from: interpolate ...")
    parser.add_argument("--share", type=float, default=0.5, help="... with so much of the run's weights (default: 0.5)")
    parser.add_argument("--trial", type=Path, default=SAMPLE, help="case folder to prove the bundle on (the sample)")
    parser.add_argument("--out", type=Path, required=True, help="the bundle (.zip)")


def run(arguments: argparse.Namespace) -> None:
    from MSTKDSegmentLib.case_roles import roles_in_folder

    from training.cache import cache_fingerprint
    from training.evaluate import CLEAN_UPS
    from training.export import Blend, export_bundle, read_texts, trained_cases
    from training.splits import part, read_splits

    if arguments.clean_up not in CLEAN_UPS:
        raise ValueError(f"unknown clean-up {arguments.clean_up!r}; known: {', '.join(CLEAN_UPS)}")
    checkpoint = arguments.run / f"{arguments.checkpoint}.pt"
    named = None
    if arguments.splits is not None:
        named = part(read_splits(arguments.splits), arguments.split, arguments.splits)
    cases = trained_cases(checkpoint, named)
    trial, _ = roles_in_folder(arguments.trial)
    agreement = export_bundle(
        checkpoint,
        arguments.out,
        texts=read_texts(arguments.texts),
        cases=cases,
        fingerprint=cache_fingerprint(arguments.cache, cases),
        trial=trial,
        evaluation=arguments.evaluation,
        clean_up=arguments.clean_up,
        clean_up_rules=CLEAN_UPS[arguments.clean_up],
        decision=arguments.decision,
        blend=None if arguments.blend_with is None else Blend(arguments.blend_with, arguments.share),
    )
    for name, value in agreement.items():
        print(f"Dice of bundle and trainer on {arguments.trial.name}, {name}: {value:.4f}")
    print(arguments.out)
