"""Score a bundle or a run's checkpoint on labelled cases, for all 15 subsets of the sequences.

On several GPUs or machines: `torchrun --nproc-per-node N -m training evaluate ...`; run it again to go on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from MSTKDSegmentLib.accelerator import ACCELERATORS, NONE

from training.commands.check import add_data_arguments

HELP = "score a bundle or a checkpoint over the 15 subsets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data_arguments(parser)
    parser.add_argument("--splits", type=Path, required=True, help="JSON that `split` wrote")
    parser.add_argument("--split", default="val", help="part to evaluate (default: val)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--bundle", type=Path, help="bundle (.zip); default: the one that the product ships")
    what.add_argument("--checkpoint", type=Path, help="last.pt or best.pt of a run")
    parser.add_argument("--out", type=Path, required=True, help="folder for per_case.csv and summary.json")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument(
        "--accelerator", choices=ACCELERATORS, default=NONE, help="run a bundle by OpenVINO, to see what that costs"
    )
    parser.add_argument("--subsets", nargs="+", metavar="SUBSET", help="such as T1Gd+FLAIR; default: all 15")
    parser.add_argument("--limit-cases", type=int, metavar="N", help="the first N cases of the split only")
    parser.add_argument("--save-labels", action="store_true", help="keep the label maps in OUT/labels")
    parser.add_argument(
        "--paper-legacy",
        action="store_true",
        help="also summarise HD95 as the published code has it (0 mm for empty masks), beside the right one",
    )


def run(arguments: argparse.Namespace) -> None:
    from MSTKDSegmentLib.modalities import SUBSETS, parse_subset

    from training.cohort import labelled_part
    from training.distributed import joined_world
    from training.evaluate import CLEAN_UPS, Candidate, evaluate

    wanted = {parse_subset(text) for text in arguments.subsets} if arguments.subsets else set(SUBSETS)
    cases = labelled_part(
        arguments.data,
        arguments.layout,
        arguments.convention,
        arguments.splits,
        arguments.split,
        arguments.limit_cases,
    )
    with joined_world(arguments.device) as world:
        device = world.product_device(arguments.device)
        if arguments.checkpoint and arguments.accelerator != NONE:
            raise ValueError("an accelerator runs bundles; export the checkpoint first")
        if arguments.checkpoint:
            candidate = Candidate.from_checkpoint(arguments.checkpoint, device)
        else:
            candidate = Candidate.from_bundle(arguments.bundle, device, arguments.accelerator)
        if world.is_main:
            print(f"{candidate.source} on {candidate.device}: {len(cases)} cases of {arguments.split}", flush=True)
        path = evaluate(
            candidate,
            cases,
            arguments.out,
            arguments.split,
            CLEAN_UPS,
            subsets=[subset for subset in SUBSETS if subset in wanted],
            told=lambda text: print(text, flush=True),
            processes=arguments.processes,
            world=world,
            paper_legacy=arguments.paper_legacy,
            labels_out=arguments.out / "labels" if arguments.save_labels else None,
        )
        if world.is_main:
            _report(path, list(CLEAN_UPS))


def _report(path: Path, clean_ups: list[str]) -> None:
    import json

    from training.summary import summary_table

    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    means = {name: summary["clean_up"][name]["mean_over_subsets"] for name in clean_ups}
    for name, mean in means.items():
        print(f"clean-up {name}: mean over subsets {mean}")
    # Gentlest first: on a tie the gentler rule wins, so that clean-up is on only where it helps.
    best = max(clean_ups, key=lambda name: sum(means[name].values()))
    print(f"\nbest clean-up on {summary['split']}: {best}\n\n{summary_table(summary, best)}\n\n{path}")
