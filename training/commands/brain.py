"""Train the brain-extraction network on synthetic heads, check it on brains it has not seen, and write its bundle.

--head takes an atlas's head and its skull-stripped copy; see training/README.md for where to get them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "train the network that extracts the brain"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="labelled, skull-stripped cases")
    parser.add_argument("--splits", type=Path, required=True, help="JSON that `split` wrote")
    parser.add_argument("--split", default="train", help="part to learn brains from (default: train)")
    parser.add_argument("--check-split", default="val", help="part to check the masks on (default: val)")
    parser.add_argument(
        "--head", nargs=2, action="append", type=Path, required=True, metavar=("HEAD", "BRAIN"), help="may be repeated"
    )
    parser.add_argument("--steps", type=int, default=5000, help="default: 5000")
    parser.add_argument("--batch", type=int, default=2, help="heads of a step (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument(
        "--run", type=Path, required=True, help="folder of the run's checkpoint and log; the same again goes on"
    )
    parser.add_argument("--out", type=Path, help="write the bundle there (.zip)")


def run(arguments: argparse.Namespace) -> None:
    from training.brain.export import export_brain_network
    from training.brain.heads import read_brain, read_head
    from training.brain.train import BrainConfig, check, train
    from training.discovery import discover
    from training.distributed import joined_world
    from training.splits import part, read_splits

    found, splits = discover(arguments.data), read_splits(arguments.splits)
    heads = [read_head(*pair) for pair in arguments.head]
    names = part(splits, arguments.split, arguments.splits)
    others = part(splits, arguments.check_split, arguments.splits)
    brains = [read_brain(case) for case in found.select(names)]
    config = BrainConfig(steps=arguments.steps, batch=arguments.batch, seed=arguments.seed)
    with joined_world(arguments.device) as world:
        network = train(config, brains, heads, arguments.run, world, lambda text: print(text, flush=True))
    scores = check(network.cpu(), [read_brain(case) for case in found.select(others)], heads)
    print(f"Dice of the mask on {scores['n']} heads made of {len(others)} other brains: {scores}")
    if arguments.out is not None:
        training = {
            "config": vars(config),
            "brains": {"split": arguments.split, "n": len(names)},
            "heads": [pair[0].name for pair in arguments.head],
        }
        export_brain_network(arguments.out, network, training, scores)
        print(arguments.out)
