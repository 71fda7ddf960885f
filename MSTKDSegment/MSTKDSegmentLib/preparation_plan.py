"""What is going to be done to the volumes before the network sees them, in sentences for the panel.

It foresees what `recognition` and `preparation` will decide; where that takes a look at the voxels, it says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional

from .preparation_record import asks_program
from .translation import _

if TYPE_CHECKING:
    from .panel import InputFacts

# On two cores of a 2020s processor, one raw patient with 5.5 mm slices: 1.9 s a brain, 3.0 s a registration (twice as
# long where it has to start anew), 1 s for the rest.
SECONDS_A_BRAIN, SECONDS_A_REGISTRATION, OTHER_SECONDS = 2.0, 4.0, 2.0
ROUNDED_TO_SECONDS = 5


@dataclass(frozen=True)
class PreparationChoice:
    """What the user says of the preparation. registered, skull_stripped: None where it is to be found out.

    brain_mask: a node of the scene, of the reference, or None. extractor: one of `preparation_record.EXTRACTORS`.
    """

    registered: Optional[bool] = None
    skull_stripped: Optional[bool] = None
    brain_mask: Optional[Any] = None
    extractor: str = "auto"
    bias_correction: bool = False


NOTHING_SAID = PreparationChoice()
PROGRAMS = {"hd-bet": "HD-BET", "synthstrip": "SynthStrip", "deepbet": "deepbet"}
"""What the extractors that have to be installed are called."""


def skulls(inputs: Mapping[str, InputFacts], choice: PreparationChoice) -> list[str]:
    """The sequences that will be treated as showing the skull."""
    if choice.skull_stripped is not None:
        return [] if choice.skull_stripped else list(inputs)
    return [modality for modality, facts in inputs.items() if not facts.stripped]


def wants_program(inputs: Mapping[str, InputFacts], choice: PreparationChoice, reference: str) -> bool:
    """Whether an installed program is asked where the brain is."""
    if not inputs or choice.brain_mask is not None:
        return False
    with_skull = skulls(inputs, choice)
    return asks_program(choice.extractor, {name: name not in with_skull for name in inputs}, reference)


def is_registered(inputs: Mapping[str, InputFacts], choice: PreparationChoice) -> bool:
    """Whether the sequences will surely be registered to each other."""
    if len(inputs) < 2 or choice.registered is True:
        return False
    return choice.registered is False or bool(skulls(inputs, choice))


def is_prepared(inputs: Mapping[str, InputFacts], choice: PreparationChoice) -> bool:
    """Whether the volumes will surely be changed."""
    changed = bool(skulls(inputs, choice)) or _masked(choice) or choice.bias_correction
    return changed or is_registered(inputs, choice)


def _masked(choice: PreparationChoice) -> bool:
    return choice.brain_mask is not None and choice.skull_stripped is not True


def preparation_sentences(
    inputs: Mapping[str, InputFacts], reference: str, choice: PreparationChoice, program: str = ""
) -> list[str]:
    """What will be done, and about how long it takes. program: that takes the skull off, "" for our own network."""
    if not inputs:
        return []
    with_skull, registering = skulls(inputs, choice), is_registered(inputs, choice)
    about_skulls = _about_skulls(inputs, with_skull, choice, program)
    sentences = [about_skulls] if about_skulls else []
    if registering:
        sentences.append(_("The sequences are registered to {reference}.").format(reference=reference))
    elif not about_skulls:
        sentences.append(_about_ready(inputs, choice))
    if choice.bias_correction:
        sentences.append(_("The bias field of each is corrected (N4)."))
    if with_skull or registering:
        registrations = len(inputs) - 1 if registering else 0
        seconds = OTHER_SECONDS + SECONDS_A_BRAIN * len(with_skull) + SECONDS_A_REGISTRATION * registrations
        sentences.append(_about_time(seconds, program))
    return sentences


def _about_skulls(
    inputs: Mapping[str, InputFacts], with_skull: list[str], choice: PreparationChoice, program: str
) -> str:
    if choice.brain_mask is not None and _masked(choice):
        return _("The brain is taken from {name}.").format(name=choice.brain_mask.GetName())
    if with_skull and program:
        return _("The skull on {sequences} is removed by {program}.").format(
            sequences=", ".join(with_skull), program=program
        )
    if with_skull:
        return _("The skull on {sequences} is removed here.").format(sequences=", ".join(with_skull))
    left = [modality for modality, facts in inputs.items() if not facts.stripped]
    if left:
        return _(
            "The skull seems to be still there on {sequences}; it stays because you said that it is gone, and the "
            "network will do worse than stated."
        ).format(sequences=", ".join(left))
    return ""


def _about_ready(inputs: Mapping[str, InputFacts], choice: PreparationChoice) -> str:
    grids = {facts.grid for facts in inputs.values()}
    if choice.registered is None and len(grids) > 1:
        return _("They are skull-stripped already and moved only where they do not lie on each other.")
    if len(inputs) > 1:
        return _("They are skull-stripped and registered already: left alone, unless they turn out to lie askew.")
    return _("It is skull-stripped already: left alone, unless the head turns out to lie askew.")


def _about_time(seconds: float, program: str) -> str:
    if program:
        return _("{program} may take minutes without a graphics processor.").format(program=program)
    rounded = max(1, round(seconds / ROUNDED_TO_SECONDS)) * ROUNDED_TO_SECONDS
    return _("That takes about {seconds} s on two processor cores.").format(seconds=rounded)
