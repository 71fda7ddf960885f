"""What a user says about the volumes of a case before they are prepared, and what was found and done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Optional

import SimpleITK as sitk

from .errors import InputError

EXTRACTORS = ("auto", "own", "hd-bet", "synthstrip", "deepbet")
OWN, GIVEN, NONE_NEEDED = "own network", "mask given by the user", "none: skull-stripped already"
OUTLINE = "outline of the skull-stripped sequences"


@dataclass(frozen=True)
class Wishes:
    """What the user says about the volumes; None: to be found out.

    registered: lie on each other. skull_stripped: show nothing but the brain. upright: the head lies as in BraTS.
    brain_mask: of the reference, on any grid of its space. extractor: one of `EXTRACTORS`. bias_correction: N4.
    mask_source: what messages call the mask, its file or node.
    """

    registered: Optional[bool] = None
    skull_stripped: Optional[bool] = None
    upright: Optional[bool] = None
    brain_mask: Optional[sitk.Image] = None
    extractor: str = "auto"
    bias_correction: bool = False
    mask_source: str = "brain mask"

    def __post_init__(self) -> None:
        if self.extractor not in EXTRACTORS:
            raise InputError(f"unknown brain extraction {self.extractor!r}; use one of {', '.join(EXTRACTORS)}")

    def with_mask(self, mask: sitk.Image, source: str) -> Wishes:
        """The same with a brain mask, which messages call `source`."""
        return replace(self, brain_mask=mask, mask_source=source)


READY = Wishes(registered=True, skull_stripped=True, upright=True)
"""For data sets that were prepared as the challenges do it: nothing is looked at, nothing is moved."""


def asks_program(extractor: str, stripped: Mapping[str, bool], reference: str) -> bool:
    """Whether an installed program is asked where the brain is: by its name on any reference with a skull; of itself
    only where no sequence shows the brain alone.
    """
    if stripped[reference] or extractor == "own":
        return False
    return extractor != "auto" or not any(stripped.values())


@dataclass(frozen=True)
class SequenceRecord:
    """What was found and done about one sequence.

    background: share of voxels that are exactly background. similarity: mutual information with the reference in bits,
    before and after (None for the reference itself and where it was not measured). moved_mm: mean distance that the
    brain went; start: where the registration set out ("scanner", "centres"), "" where nothing was moved. failed: no
    place was found that could be trusted, and it was left where it was.
    """

    source: str
    stripped: bool
    background: float
    similarity_before: Optional[float] = None
    similarity_after: Optional[float] = None
    moved_mm: float = 0.0
    degrees: float = 0.0
    start: str = ""
    failed: bool = False

    @property
    def moved(self) -> bool:
        """Whether it was moved to lie on the reference."""
        return bool(self.start)


@dataclass(frozen=True)
class PreparationRecord:
    """What was found and done about a case; `stripped`, `registered`, `upright` are what was decided, and `told` holds
    those that the user said. brain_ml: of the mask. turned_degrees: how far the head was turned, 0 where it was not.
    """

    reference: str
    sequences: Mapping[str, SequenceRecord]
    stripped: bool
    registered: bool
    upright: bool
    told: tuple[str, ...] = ()
    extractor: str = NONE_NEEDED
    brain_ml: float = 0.0
    turned_degrees: float = 0.0
    head_degrees: Optional[float] = None
    bias_corrected: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def challenge_ready(self) -> bool:
        """Whether the volumes were left alone."""
        return self.stripped and self.registered and self.upright and not self.bias_corrected

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "challenge_ready": self.challenge_ready,
            "reference": self.reference,
            "skull_stripped": self.stripped,
            "registered": self.registered,
            "upright": self.upright,
            "told_by_user": list(self.told),
            "brain_extraction": self.extractor,
            "brain_ml": round(self.brain_ml, 1),
            "head_turned_from_template_degrees": None if self.head_degrees is None else round(self.head_degrees, 1),
            "turned_degrees": round(self.turned_degrees, 1),
            "bias_corrected": self.bias_corrected,
            "sequences": {name: _rounded(vars(one)) for name, one in self.sequences.items()},
            "seconds": _rounded(self.seconds),
        }


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in values.items()}
