"""`python -m training prepare | train | evaluate | export | card`: from labelled cases to a bundle."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from MSTKDSegmentLib.errors import MSTKDError
from MSTKDSegmentLib.regions import NO_CLEAN_UP, CleanUp

# The rules that validation chooses between; the winner goes into the card.
CLEAN_UPS = {
    "none": NO_CLEAN_UP,
    "small": CleanUp({"WT": 0.1}),
    "medium": CleanUp({"WT": 0.5, "TC": 0.05}, min_total_et_ml=0.1),
    "large": CleanUp({"WT": 1.0, "TC": 0.2}, min_total_et_ml=0.3),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--splits", type=Path, required=True, help='JSON: {"train": [case, ...], "val": [...]}')
        return sub

    prepare = command("prepare", "check and normalise labelled cases into a cache")
    prepare.add_argument("--data", type=Path, required=True, help="folder of BraTS-style case folders")
    prepare.add_argument("--cache", type=Path, required=True)
    prepare.add_argument("--processes", type=int, default=2)

    train = command("train", "train a network; goes on where an earlier call stopped")
    train.add_argument("--config", type=Path, required=True)
    train.add_argument("--cache", type=Path, required=True)
    train.add_argument("--out", type=Path, required=True)
    train.add_argument("--split", default="train")
    train.add_argument("--device", default="cpu")
    train.add_argument("--stop-after", type=int, help="end this call after so many steps")
    train.add_argument("--change-config", action="store_true", help="go on with another configuration; it is recorded")
    train.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="replace values of the configuration")

    evaluate = command("evaluate", "score a bundle over the 15 subsets")
    evaluate.add_argument("--data", type=Path, required=True)
    evaluate.add_argument("--bundle", type=Path)
    evaluate.add_argument("--split", default="val")
    evaluate.add_argument("--device", default="auto")
    evaluate.add_argument("--processes", type=int, default=1, help="cases at a time; the cores are shared out")
    evaluate.add_argument("--out", type=Path, required=True)

    export = command("export", "write a bundle with its card")
    export.add_argument("--run", type=Path, required=True, help="folder that `train` wrote")
    export.add_argument("--cache", type=Path, required=True)
    export.add_argument("--split", default="train")
    export.add_argument("--texts", type=Path, required=True, help="YAML: name, description, data, licence, citations")
    export.add_argument("--evaluation", type=Path, help="summary.json of these weights; its figures go into the card")
    export.add_argument("--clean-up", choices=sorted(CLEAN_UPS), default="none")
    export.add_argument("--out", type=Path, required=True)

    card = commands.add_parser("card", help="write a bundle's card as Markdown")
    card.add_argument("--bundle", type=Path)
    card.add_argument("--out", type=Path, required=True)
    return parser


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        COMMANDS[arguments.command](arguments)
    except MSTKDError as error:
        print(f"training: error: {error}", file=sys.stderr)
        return error.exit_code
    except (FileNotFoundError, ValueError, FloatingPointError) as error:
        print(f"training: error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f'training: error: {error}; install the tools first: pip install -e ".[train]"', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("training: stopped; run the same command again to go on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


def _prepare(arguments: argparse.Namespace) -> None:
    from training.data import read_splits

    arguments.cache.mkdir(parents=True, exist_ok=True)
    names = [name for cases in read_splits(arguments.splits).values() for name in cases]
    missing = [n for n in names if not (arguments.cache / f"{n}.npz").exists()]
    jobs = [(arguments.data / name, arguments.cache) for name in missing]
    with ProcessPoolExecutor(arguments.processes) as pool:
        for number, name in enumerate(pool.map(_prepare_one, jobs), start=1):
            print(f"{number}/{len(jobs)} {name}", flush=True)


def _prepare_one(job: tuple[Path, Path]) -> str:
    from training.data import find_case, prepare_case

    folder, cache = job
    prepare_case(find_case(folder), cache)
    return folder.name


def _train(arguments: argparse.Namespace) -> None:
    from training.config import load_config
    from training.data import read_splits
    from training.engine import run_training

    config = load_config(arguments.config, arguments.overrides)
    cases = read_splits(arguments.splits)[arguments.split]
    checkpoint = run_training(
        config,
        arguments.cache,
        cases,
        arguments.out,
        arguments.device,
        stop_after=arguments.stop_after,
        change_config=arguments.change_config,
    )
    print(checkpoint)


def _evaluate(arguments: argparse.Namespace) -> None:
    import json

    from MSTKDSegmentLib.pipeline import Segmenter

    from training.data import find_case, read_splits
    from training.evaluate import evaluate, summary_table

    segmenter = Segmenter(arguments.bundle, arguments.device)
    cases = [find_case(arguments.data / name) for name in read_splits(arguments.splits)[arguments.split]]
    path = evaluate(
        segmenter,
        cases,
        arguments.out,
        arguments.split,
        CLEAN_UPS,
        told=lambda text: print(text, flush=True),
        processes=arguments.processes,
    )
    summary = json.loads(path.read_text())
    for name, figures in summary["clean_up"].items():
        print(f"clean-up {name}: mean over subsets {figures['mean_over_subsets']}")
    # In the order of CLEAN_UPS: on a tie the gentler rule wins, so that clean-up is on only where it helps.
    best = max(CLEAN_UPS, key=lambda name: sum(summary["clean_up"][name]["mean_over_subsets"].values()))
    print(f"\nbest clean-up on this split: {best}\n\n{summary_table(summary, best)}")


def _export(arguments: argparse.Namespace) -> None:
    from training.data import cache_fingerprint, read_splits
    from training.export import export_bundle, read_texts

    cases = read_splits(arguments.splits)[arguments.split]
    path = export_bundle(
        arguments.run / "last.pt",
        arguments.out,
        texts=read_texts(arguments.texts),
        cases=cases,
        fingerprint=cache_fingerprint(arguments.cache, cases),
        evaluation=arguments.evaluation,
        clean_up=arguments.clean_up,
        clean_up_rules=CLEAN_UPS[arguments.clean_up],
    )
    print(path)


def _card(arguments: argparse.Namespace) -> None:
    from MSTKDSegmentLib.weights import read_bundle

    from training.model_card import card_markdown

    arguments.out.write_text(card_markdown(read_bundle(arguments.bundle).card))
    print(arguments.out)


COMMANDS = {"prepare": _prepare, "train": _train, "evaluate": _evaluate, "export": _export, "card": _card}


if __name__ == "__main__":
    sys.exit(main())
