"""Write a bundle's card as a page of Markdown."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "write a bundle's card as Markdown"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, help="a bundle (.zip); by default the one that ships")
    parser.add_argument("--out", type=Path, required=True)


def run(arguments: argparse.Namespace) -> None:
    from MSTKDSegmentLib.weights import read_bundle

    from training.files import write_text
    from training.model_card import card_markdown

    write_text(arguments.out, card_markdown(read_bundle(arguments.bundle).card))
    print(arguments.out)
