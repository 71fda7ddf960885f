"""The four sequences, their exact names, and their subsets."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Optional

import numpy as np

from .errors import RoleError

MODALITIES: tuple[str, ...] = ("T1", "T1Gd", "T2", "FLAIR")
"""The sequences in the order of the network's input channels."""

SUBSETS: tuple[tuple[str, ...], ...] = tuple(
    subset for size in range(1, len(MODALITIES) + 1) for subset in itertools.combinations(MODALITIES, size)
)
"""The 15 non-empty subsets: single sequences first, then pairs, triples and all four; within each size in the order of
`MODALITIES` read from left to right."""

ALIASES: Mapping[str, tuple[str, ...]] = {
    "T1": ("t1", "t1n", "t1w", "t1wi", "t1weighted", "t1pre", "t1precontrast", "t1nativ", "t1native"),
    "T1Gd": (
        *("t1gd", "t1c", "t1ce", "ct1", "cet1", "t1wce", "t1wgd", "t1wc", "t1gad", "t1gado", "gdt1", "t1km"),
        *("t1post", "t1postgd", "t1postcontrast", "t1contrast", "t1+c", "t1c+", "t1+gd"),
    ),
    "T2": ("t2", "t2w", "t2wi", "t2weighted"),
    "FLAIR": ("flair", "t2f", "t2flair", "t2wflair", "darkfluid"),
}
"""Exact names of each sequence, lower case and without separators; the first one is the command line's own."""

_MODALITY_OF: dict[str, str] = {alias: modality for modality, aliases in ALIASES.items() for alias in aliases}


def canonical_modality(text: str) -> Optional[str]:
    """The sequence that `text` is an exact name of, ignoring case, blanks, `_`, `-` and `.`; None if it is none."""
    return _MODALITY_OF.get(re.sub(r"[\s_.\-]", "", text.lower()))


def subset_name(subset: Iterable[str]) -> str:
    """`("FLAIR", "T1Gd")` -> `"T1Gd+FLAIR"`, always in the order of `MODALITIES`.

    Raises RoleError for an empty subset or a sequence that is not one of `MODALITIES`.
    """
    return "+".join(_checked(subset))


def availability(subset: Iterable[str]) -> np.ndarray:
    """1.0 for each sequence that is present, else 0.0: float32, shape (4,), in the order of `MODALITIES`.

    Raises RoleError for an empty subset or a sequence that is not one of `MODALITIES`.
    """
    present = _checked(subset)
    return np.array([modality in present for modality in MODALITIES], dtype=np.float32)


def parse_subset(text: str) -> tuple[str, ...]:
    """`"flair,t1ce"` or `"T1Gd+FLAIR"` -> `("T1Gd", "FLAIR")`; `"all"` -> all four.

    Names are separated by a comma, semicolon or plus sign. Raises RoleError when a name is unknown or given twice.
    """
    if text.strip().lower() == "all":
        return MODALITIES
    # The plus sign of "T1+C" belongs to the name; every other one separates two names.
    joined = re.sub(r"(?i)\bt1w?\s*(?:\+\s*(?:c|gd)|c\s*\+)(?=\s*(?:[,;+]|$))", "t1gd", text)
    pieces = [piece for piece in re.split(r"[,;+]", joined) if piece.strip()]
    found = [_parsed_name(piece, text) for piece in pieces]
    if not found:
        raise RoleError(f"no sequence given in {text!r}: name at least one of {_accepted_names()}")
    for modality in MODALITIES:
        if found.count(modality) > 1:
            raise RoleError(f"{modality} is given twice in {text!r}: name each sequence once")
    return _checked(found)


def _parsed_name(piece: str, text: str) -> str:
    words = piece.split()
    # "T2 FLAIR" is one sequence to a radiologist and two to whoever forgot the comma: do not guess.
    if len(words) > 1 and all(canonical_modality(word) for word in words):
        raise RoleError(f"{piece.strip()!r} in {text!r} could be one sequence or several: put commas between them")
    modality = canonical_modality(piece)
    if modality is None:
        raise RoleError(f"unknown sequence {piece.strip()!r} in {text!r}: name some of {_accepted_names()}")
    return modality


def _accepted_names() -> str:
    return "; ".join(f"{modality} ({', '.join(ALIASES[modality][:4])})" for modality in MODALITIES)


def _checked(subset: Iterable[str]) -> tuple[str, ...]:
    wanted = list(subset)
    unknown = [name for name in wanted if name not in MODALITIES]
    if unknown or not wanted:
        problem = f"unknown sequence {unknown[0]!r}" if unknown else "no sequence given"
        raise RoleError(f"{problem}: name at least one of {', '.join(MODALITIES)}")
    return tuple(modality for modality in MODALITIES if modality in wanted)
