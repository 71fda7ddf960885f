"""The paper's Table 4 from one command: train variants with equal budgets and seeds, score them, compare them.

Run it again to go on. On several GPUs: `torchrun --nproc-per-node N -m training ablate ...`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "train, score and compare ablations and baselines with equal budgets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, required=True, help="YAML of the full method, see training/configs")
    parser.add_argument("--splits", type=Path, required=True, help="JSON that `split` wrote")
    parser.add_argument("--cache", type=Path, required=True, help="folder that `prepare` wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder that gets one for each variant, and tables")
    parser.add_argument(
        "--variants",
        metavar="NAME,NAME",
        help="full, without-ms-tkd, without-gsme, without-slkd, no-distillation (default: these), segresnet, unetr",
    )
    parser.add_argument("--split", default="train", help="part of the splits to train on (default: train)")
    parser.add_argument(
        "--validation-split", default="val", help="part that the configuration's validation uses (default: val)"
    )
    parser.add_argument("--evaluate-split", default="val", help="part to score the variants on (default: val)")
    parser.add_argument("--data", type=Path, help="folder of labelled cases, or a datalist, to score on")
    parser.add_argument("--layout", default="auto", help="auto, folders, msd or datalist")
    parser.add_argument("--convention", help="label convention of all cases, where names and values do not tell it")
    parser.add_argument("--no-evaluate", action="store_true", help="train only")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    parser.add_argument("--processes", type=int, default=1, help="cases scored at a time; the cores are shared out")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="replace values of the configuration")


def run(arguments: argparse.Namespace) -> None:
    from training.ablate import DEFAULT_VARIANTS, Scoring, run_ablation, variants
    from training.cohort import labelled_part, prepared_parts
    from training.config import load_config
    from training.distributed import joined_world
    from training.splits import part, read_patients, read_splits, require_disjoint

    if not arguments.no_evaluate and arguments.data is None:
        raise ValueError("--data is missing: the folder of labelled cases to score on (or --no-evaluate to train only)")
    base = load_config(arguments.config, arguments.overrides)
    names = DEFAULT_VARIANTS if arguments.variants is None else _listed(arguments.variants)
    variants(base, names)  # before the cases are read, which takes a while
    scoring = None
    if not arguments.no_evaluate:
        splits = read_splits(arguments.splits)
        trained = part(splits, arguments.split, arguments.splits)
        scored = part(splits, arguments.evaluate_split, arguments.splits)
        require_disjoint(trained, scored, read_patients(arguments.splits), arguments.evaluate_split)
        found = labelled_part(
            arguments.data, arguments.layout, arguments.convention, arguments.splits, arguments.evaluate_split
        )
        scoring = Scoring(found, arguments.evaluate_split, arguments.device, arguments.processes)
    cases, validation = prepared_parts(
        base, arguments.cache, arguments.splits, arguments.split, arguments.validation_split
    )
    with joined_world(arguments.device) as world:
        paths = run_ablation(
            base,
            names,
            cases,
            arguments.out,
            world=world,
            validation_cases=validation,
            scoring=scoring,
            told=lambda text: print(text, flush=True),
        )
        for path in paths:
            print(path)


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
