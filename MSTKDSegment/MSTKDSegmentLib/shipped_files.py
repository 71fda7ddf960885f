"""Where the files lie that ship with the library: beside it (Slicer, a checkout) or inside it (a wheel)."""

from __future__ import annotations

from pathlib import Path

from .errors import WeightsError


def places(*parts: str) -> list[Path]:
    """Where `Resources/<parts>` may be, the likelier first."""
    here = Path(__file__).resolve().parent
    return [root.joinpath("Resources", *parts) for root in (here.parent, here)]


def shipped_file(*parts: str) -> Path:
    """`Resources/<parts>`, wherever it is. Raises WeightsError where it is missing."""
    for place in places(*parts):
        if place.is_file():
            return place
    raise WeightsError(f"{parts[-1]} is missing; reinstall the software")
