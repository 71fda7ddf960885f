"""Where the brain is on each volume: given by the user, found by a program of theirs or by us, or alone on it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Callable, Optional

import numpy as np
import SimpleITK as sitk

from .brain_extraction import brain_probability, mask_on
from .errors import GeometryError, InputError
from .geometry import array_to_image
from .overlap import Foreground
from .preparation_record import GIVEN, NONE_NEEDED, OUTLINE, OWN, Wishes, asks_program
from .preprocess import fill_holes
from .registration import CancelCheck
from .specialists import SpecialistFailed, Use, extract, usable
from .volume_checks import mask_ml
from .volumes import Volume

LEAST_BRAIN_ML = 100.0

Told = Callable[[float, str], None]


@dataclass(frozen=True)
class Brain:
    """Where the brain of one volume is: probability in physical space, and mask (D, H, W) on the volume's voxels."""

    probability: sitk.Image
    mask: np.ndarray


@dataclass(frozen=True)
class Brains:
    """The brain of each volume; `trusted` names those that the final mask is made of, `extractor` says by what."""

    each: Mapping[str, Brain]
    trusted: tuple[str, ...]
    extractor: str
    notices: tuple[str, ...]

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """(D, H, W) bool by sequence."""
        return {name: one.mask for name, one in self.each.items()}

    def without_lost(self, lost: Collection[str], reference: str) -> Brains:
        """The same where a trusted sequence lies on the reference; else the reference's own brain, by our network.

        lost: those that could not be registered, so that their masks cannot be brought to the others.
        """
        if any(name not in lost for name in self.trusted):
            return self
        notice = (
            f"{', '.join(self.trusted)} could not be laid on {reference}, so the brain found there ({self.extractor}) "
            f"is of no use: the brain that our own network found on {reference} was taken."
        )
        return replace(self, trusted=(reference,), extractor=OWN, notices=(*self.notices, notice))


def find_brains(
    volumes: Mapping[str, Volume],
    found: Mapping[str, Foreground],
    stripped: Mapping[str, bool],
    reference: str,
    wishes: Wishes,
    told: Told,
    cancel: Optional[CancelCheck] = None,
    device: Callable[[], str] = lambda: "cpu",
) -> Brains:
    """The brain on every volume, the reference first: what the user gave, or a specialist marked, serves everything
    that follows. `found` and `stripped`: the foreground of each, and whether that is the brain.

    A specialist marks the reference or, where it does not take that, another sequence with a skull: the final mask is
    made of the brain there. Raises InputError where no brain is found, GeometryError for a mask beside the reference,
    SpecialistFailed where the program that was asked for by name fails, Cancelled.
    """
    search = _Search(volumes, reference, wishes, told, cancel, device)
    each: dict[str, Brain] = {}
    extractor, marked_on = "", reference
    if wishes.brain_mask is not None:
        each[reference], extractor = search.given(wishes.brain_mask, wishes.mask_source), GIVEN
    elif asks_program(wishes.extractor, stripped, reference):
        marked = search.by_specialist([name for name in volumes if not stripped[name]])
        if marked is not None:
            each[marked.sequence], extractor, marked_on = marked.brain, marked.title, marked.sequence
    for number, name in enumerate([reference, *(name for name in volumes if name != reference)]):
        if name not in each:
            told(number / len(volumes), f"finding the brain on {name}")
            each[name] = search.alone(name, found[name]) if stripped[name] else search.by_our_network(name)
    alone = tuple(name for name in volumes if stripped[name])
    if extractor:
        trusted: tuple[str, ...] = (marked_on,)
    else:
        trusted = alone or tuple(volumes)
        extractor = NONE_NEEDED if len(alone) == len(volumes) else OUTLINE if alone else OWN
    in_order = {name: each[name] for name in volumes}
    return Brains(in_order, trusted, extractor, (*search.notices, *unasked(wishes, stripped, reference)))


def unasked(wishes: Wishes, stripped: Mapping[str, bool], reference: str) -> list[str]:
    """What to say where the user named a program for the brain and it was not needed."""
    if wishes.extractor == "auto" or not stripped[reference] or wishes.brain_mask is not None:
        return []
    return [f"{reference} is skull-stripped already, so the brain extraction that you chose was not run."]


@dataclass(frozen=True)
class _Marked:
    brain: Brain
    sequence: str
    title: str


class _Search:
    def __init__(
        self,
        volumes: Mapping[str, Volume],
        reference: str,
        wishes: Wishes,
        told: Told,
        cancel: Optional[CancelCheck],
        device: Callable[[], str],
    ) -> None:
        self._volumes, self._reference, self._asked = volumes, reference, wishes.extractor
        self._told, self._cancel, self._device = told, cancel, device
        self.notices: list[str] = []

    def alone(self, name: str, found: Foreground) -> Brain:
        return self._brain(fill_holes(found.mask), name)

    def by_our_network(self, name: str) -> Brain:
        volume = self._volumes[name]
        probability = brain_probability(volume.image, volume.source, self._device(), self._cancel, self._say_once)
        mask = mask_on(probability, volume.image)
        if mask_ml(mask, volume.image) < LEAST_BRAIN_ML:
            raise InputError(
                f"{volume.source}: no brain was found on it ({mask_ml(mask, volume.image):.0f} ml). Give a volume of "
                "the head; if it is skull-stripped already, say so."
            )
        return Brain(probability, mask)

    def _say_once(self, sentence: str) -> None:
        if sentence not in self.notices:
            self.notices.append(sentence)

    def given(self, mask: sitk.Image, source: str) -> Brain:
        """The user's `mask`, which messages call `source`, on the reference."""
        volume = self._volumes[self._reference]
        who = f"the reference {self._reference} ({volume.source})"
        probability = sitk.Cast(sitk.Cast(mask, sitk.sitkFloat32) > 0, sitk.sitkFloat32)
        marked = mask_ml(sitk.GetArrayViewFromImage(probability) > 0, probability)
        if not marked:
            raise InputError(f"{source}: the brain mask is empty. Give one in which the brain is above 0, or none.")
        on_reference = mask_on(probability, volume.image)
        there = mask_ml(on_reference, volume.image)
        if not there:
            raise GeometryError(
                f"{source}: the brain mask does not overlap {who}. Give a mask that was made on that volume."
            )
        if there < LEAST_BRAIN_ML <= marked:
            raise GeometryError(
                f"{source}: only {there:.0f} of the {marked:.0f} ml of the brain mask lie on {who}. Give a mask that "
                "was made on that volume."
            )
        if there < LEAST_BRAIN_ML:
            raise InputError(
                f"{source}: the brain mask marks {there:.0f} ml on {who}, too little for a brain. Mark the whole "
                "brain, or give no mask."
            )
        return Brain(probability, on_reference)

    def by_specialist(self, with_skull: Collection[str]) -> Optional[_Marked]:
        """The brain by the best installed program that marks one; None where none did and none was asked for by name.

        with_skull: the sequences that show the skull.
        """
        uses = usable(self._asked, self._reference, with_skull)
        if self._asked != "auto" and not uses:
            raise InputError(
                f"{self._asked} is not installed here or takes no {' or '.join(with_skull)}; install it, or use "
                "another brain extraction"
            )
        failures = []
        marked = None
        for use in uses:
            try:
                mask = self._marked_by(use)
            except SpecialistFailed as error:
                failure = f"{use.sequence} ({self._volumes[use.sequence].source}): {error}"
                if self._asked != "auto":
                    raise SpecialistFailed(failure) from error
                failures.append(failure)
                continue
            marked = _Marked(self._brain(mask, use.sequence), use.sequence, use.title(self._reference))
            break
        instead = "Our own brain extraction" if marked is None else marked.title
        self.notices += [f"{failure} {instead} was used instead." for failure in failures]
        return marked

    def _marked_by(self, use: Use) -> np.ndarray:
        def alive(_text: str = "") -> None:  # one text all the while: whoever shows it shows the time too
            self._told(0.0, f"extracting the brain with {use.title(self._reference)}")

        alive()
        return extract(use.program, self._volumes[use.sequence].image, self._device(), self._cancel, alive)

    def _brain(self, mask: np.ndarray, name: str) -> Brain:
        return Brain(array_to_image(mask.astype(np.float32), self._volumes[name].image), mask)
