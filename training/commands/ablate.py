"""The paper's Table 4 from one command: train variants with equal budgets and seeds, score them, compare them.

Run it again to go on. On several GPUs: `torchrun --nproc-per-node N -m training ablate ...`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
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
    from training.cache import CachedCases
    from training.config import load_config
    from training.discovery import discover
    from training.distributed import joined_world
    from training.splits import part, read_patients, read_splits, require_disjoint

    if not arguments.no_evaluate and arguments.data is None:
        raise ValueError("--data is missing: the folder of labelled cases to score on (or --no-evaluate to train only)")
    base = load_config(arguments.config, arguments.overrides)
    names = DEFAULT_VARIANTS if arguments.variants is None else _listed(arguments.variants)
    variants(base, names)  # before the cases are read, which takes a while
    splits, patients = read_splits(arguments.splits), read_patients(arguments.splits)
    training_names = part(splits, arguments.split, arguments.splits)
    scoring = None
    if not arguments.no_evaluate:
        wanted = part(splits, arguments.evaluate_split, arguments.splits)
        require_disjoint(training_names, wanted, patients, arguments.evaluate_split)
        found = discover(arguments.data, arguments.layout, arguments.convention).select(wanted)
        found = [replace(case, patient=patients.get(case.name, case.patient)) for case in found]
        scoring = Scoring(found, arguments.evaluate_split, arguments.device, arguments.processes)
    limit = int(base.sampling.memory_gb * 1e9)
    cases = CachedCases(arguments.cache, training_names, limit)
    validation = None
    if base.validation.every:
        held = part(splits, arguments.validation_split, arguments.splits)
        require_disjoint(training_names, held, patients, arguments.validation_split)
        validation = CachedCases(arguments.cache, held, limit)
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
