"""`mstkd info`: what a weights bundle says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, Union

from .modalities import SUBSETS, subset_name
from .terminal import RESEARCH_ONLY, print_line, print_table, region_text
from .weights import Bundle, load_network, read_bundle

REGION_KEYS = ("WT", "TC", "ET")


def bundle_info(path: Union[str, Path, None]) -> dict[str, Any]:
    """The card, the number of parameters, where the bundle lies and its size in bytes. Raises WeightsError."""
    from .network import count_parameters  # imports torch

    bundle = read_bundle(path)
    # Loading proves that this version can run the bundle, which the card alone does not.
    network = load_network(bundle)
    return {
        "source": bundle.source,
        "bytes": Path(bundle.source).stat().st_size,
        "parameters": count_parameters(network),
        "card": dict(bundle.card),
        "expected_dice": {subset_name(subset): _row(bundle, subset) for subset in SUBSETS},
    }


def _row(bundle: Bundle, subset: tuple[str, ...]) -> Optional[dict[str, Any]]:
    expected = bundle.expected_dice(subset)
    if expected is None:
        return None
    metrics = bundle.card["metrics"]
    return {**expected, "n": metrics["subsets"][subset_name(subset)].get("n", metrics.get("n"))}


def print_info(info: Mapping[str, Any]) -> None:
    """The same for a person at a terminal."""
    card = info["card"]
    print_line(f"{card['name']}: preset {card['preset']}, {info['parameters'] / 1e6:.2f} million parameters", "bold")
    print_line(f"source: {info['source']} ({info['bytes'] / 2**20:.1f} MiB)")
    print_line(f"sha256 of the weights: {card['sha256']}")
    print_line(f"licence: {_text(card['licence'])}")
    for key, value in _items(card["training"]):
        print_line(f"training: {key}: {_text(value)}")
    rows = [
        [
            name,
            *(region_text(row, key) for key in REGION_KEYS),
            "-" if row is None or row["n"] is None else str(row["n"]),
        ]
        for name, row in info["expected_dice"].items()
    ]
    print_line("Mean Dice on validation, by the sequences that are present:")
    print_table(("sequences", *REGION_KEYS, "n"), rows)
    print_line(RESEARCH_ONLY)


def _items(training: object) -> list[tuple[str, Any]]:
    return list(training.items()) if isinstance(training, dict) else [("data", training)]


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
