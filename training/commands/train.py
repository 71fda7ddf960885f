"""Train a network: teacher, student or baseline, as the configuration says. Goes on where an earlier call stopped.

On several GPUs or machines: `torchrun --nproc-per-node N -m training train ...`.
"""

from __future__ import annotations

import argparse
import os
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
    from training.cache import CachedCases
    from training.config import load_config
    from training.distributed import joined_world
    from training.loop import run_training
    from training.splits import part, read_patients, read_splits, require_disjoint

    config = load_config(arguments.config, arguments.overrides)
    splits = read_splits(arguments.splits)
    names = part(splits, arguments.split, arguments.splits)
    held = []
    if config.validation.every:
        held = part(splits, arguments.validation_split, arguments.splits)
        require_disjoint(names, held, read_patients(arguments.splits), arguments.validation_split)
    # The limit is for a computer: its processes share it, and so do the two parts.
    limit = config.sampling.memory_gb * 1e9 / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cases = CachedCases(arguments.cache, names, int(limit * len(names) / (len(names) + len(held))))
    validation = None
    if held:
        validation = CachedCases(arguments.cache, held, int(limit * len(held) / (len(names) + len(held))))
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
