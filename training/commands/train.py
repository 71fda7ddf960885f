"""Train a network: teacher, student or baseline, as the configuration says. Goes on where an earlier call stopped.

On several GPUs or machines: `torchrun --nproc-per-node N -m training train ...`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "train a teacher, a student or a baseline; goes on where an earlier call stopped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, help="YAML, see training/configs")
    parser.add_argument("--splits", type=Path, required=True, help="JSON that `split` wrote")
    parser.add_argument("--cache", type=Path, required=True, help="folder that `prepare` wrote")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder: checkpoints, log, configuration")
    parser.add_argument("--split", default="train", help="part of the splits to train on (default: train)")
    parser.add_argument(
        "--validation-split", default="val", help="part that chooses the best checkpoint (default: val)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--stop-after", type=int, metavar="STEPS", help="end this call after so many steps")
    parser.add_argument("--change-config", action="store_true", help="go on with another configuration; it is recorded")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="replace values of the configuration")


def run(arguments: argparse.Namespace) -> None:
    from training.cohort import prepared_parts
    from training.config import load_config
    from training.distributed import joined_world
    from training.loop import run_training

    config = load_config(arguments.config, arguments.overrides)
    cases, validation = prepared_parts(
        config, arguments.cache, arguments.splits, arguments.split, arguments.validation_split
    )
    with joined_world(arguments.device) as world:
        checkpoint = run_training(
            config,
            cases,
            arguments.out,
            world=world,
            validation_cases=validation,
            stop_after=arguments.stop_after,
            change_config=arguments.change_config,
        )
        if world.is_main:
            print(checkpoint)
