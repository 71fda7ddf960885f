"""Measure a training step of each preset with teacher and losses, their ratio, and whether making crops keeps up.

Without --cache and --splits the crops come from a synthetic case.
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "measure seconds of a training step and of making crops"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--presets", nargs="+", choices=("compact", "paper"), default=["compact", "paper"], help="default: both"
    )
    parser.add_argument("--crop", type=int, default=64, help="side of the cubic crop in voxels (default: 64)")
    parser.add_argument("--batch", type=int, default=1, help="crops of a step (default: 1)")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="bf16", help="default: bf16")
    parser.add_argument("--steps", type=int, default=5, help="rounds; the medians count (default: 5)")
    parser.add_argument("--cache", type=Path, help="folder that `prepare` wrote")
    parser.add_argument("--splits", type=Path, help="JSON that `split` wrote; needed with --cache")
    parser.add_argument("--split", default="train", help="part of the splits to cut crops from (default: train)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write NAME.json and NAME.md there")
    parser.add_argument("--name", help="what they are called (default: training-step-CROP-PRECISION)")


def run(arguments: argparse.Namespace) -> None:
    import json
    import sys

    from MSTKDSegmentLib.bench.command import checked_folder, print_tables, write_results
    from MSTKDSegmentLib.bench.hardware import written_command
    from MSTKDSegmentLib.bench.tables import header_table

    from training.bench import bench_config, run_bench, shown
    from training.distributed import joined_world
    from training.splits import part, read_splits

    name = arguments.name or f"training-step-{arguments.crop}-{arguments.precision}"
    if Path(name).name != name:
        raise ValueError("--name is a name; the folder goes with --out")
    out = None if arguments.out is None else checked_folder(arguments.out)
    if (arguments.cache is None) != (arguments.splits is None):
        raise ValueError("--cache and --splits belong together: give both, or neither for a synthetic case")
    config = bench_config(arguments.crop, arguments.batch, arguments.precision)
    cases = None
    if arguments.cache is not None:
        cases = (arguments.cache, part(read_splits(arguments.splits), arguments.split, arguments.splits))
    with joined_world(arguments.device) as world:
        if world.size > 1:
            raise ValueError("the measurement is of one process; start it without torchrun")
        measured = run_bench(
            arguments.presets,
            config,
            arguments.steps,
            world,
            cases,
            told=lambda text: print(text, file=sys.stderr, flush=True),
            command=written_command("python -m training bench", _options(arguments)),
        )
    tables = [header_table(measured), shown(measured)]
    if out is not None:
        write_results(out, name, measured, "How fast a training step is", tables)
    if arguments.json:
        print(json.dumps(measured, indent=1))
    else:
        print_tables(tables)


def _options(arguments: argparse.Namespace) -> dict[str, object]:
    names = ("crop", "batch", "precision", "steps", "cache", "splits", "split", "device")
    return {"presets": " ".join(arguments.presets), **{name: getattr(arguments, name) for name in names}}
