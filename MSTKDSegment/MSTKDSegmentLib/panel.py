"""What the panel says about the volumes chosen: flags beside the selectors, what will be done, what is in the way.

Facts in, words out: no Qt, no MRML, so that every sentence can be tested without Slicer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

from .appearance import Look, doubts
from .expectations import expectation, expectation_sentences
from .modalities import MODALITIES
from .overlap import finest_sequence
from .preparation_plan import NOTHING_SAID, PreparationChoice, is_prepared, preparation_sentences
from .roles import RoleProposal
from .translation import _
from .volumes import MIN_SLICES

MOST_QUESTIONS = 2  # one by one with their reasons; more would push the rest of the panel away


@dataclass(frozen=True)
class InputFacts:
    """What the panel needs to know of one volume node.

    size: voxels along x, y, z; spacing: mm, parent transforms included; transform: name of the parent transform, "" for
    none; linear: whether all parent transforms are; obstacle: why the node is no MRI volume at all, "" where it is;
    stripped: whether the skull is gone;
    proposal: what its name, DICOM header or look says; look: see `appearance`, None where it cannot be told;
    patient, study: the PatientID and StudyInstanceUID of its DICOM header, "" where unknown; grid: equal for volumes
    whose voxels coincide.
    """

    node_id: str
    name: str
    size: tuple[int, int, int] = (0, 0, 0)
    spacing: tuple[float, float, float] = (0.0, 0.0, 0.0)
    voxel_mm3: float = 0.0
    transform: str = ""
    linear: bool = True
    obstacle: str = ""
    stripped: bool = True
    patient: str = ""
    study: str = ""
    proposal: Optional[RoleProposal] = None
    look: Optional[Look] = None
    grid: tuple[float, ...] = field(default=(), repr=False)


# --- beside each selector -------------------------------------------------------------------------------------------


def flags(inputs: Mapping[str, InputFacts]) -> dict[str, str]:
    """By sequence what is wrong or doubtful with the volume chosen for it; nothing for those that look right."""
    found: dict[str, list[str]] = {modality: [] for modality in inputs}
    for modality, facts in inputs.items():
        found[modality] += filter(None, [obstacle_of(facts), _doubt_by_name(modality, facts)])
    for modality, sentence in _doubles(inputs).items():
        found[modality].append(sentence)
    _flag_looks(inputs, found)
    _flag_patients(inputs, found)
    return {modality: " ".join(sentences) for modality, sentences in found.items() if sentences}


def obstacle_of(facts: InputFacts) -> str:
    """Why this volume cannot be segmented at all; "" where nothing stands in the way."""
    if facts.obstacle:
        return facts.obstacle
    if not facts.linear:
        return _(
            "{name} stands under the non-linear transform {transform}. Harden it (Data module, right click on the "
            "transform) and choose it again."
        ).format(name=facts.name, transform=facts.transform)
    if min(facts.size) < MIN_SLICES:
        size = " x ".join(str(number) for number in facts.size)
        return _("{name} has {size} voxels; each axis needs at least {least}. Choose the whole 3-D series.").format(
            name=facts.name, size=size, least=MIN_SLICES
        )
    return ""


def _doubt_by_name(modality: str, facts: InputFacts) -> str:
    proposal = facts.proposal
    if proposal is None:
        return ""
    if proposal.certainty == "not_an_input":
        return _("Is this an input? {reason}.").format(reason=proposal.reason)
    if proposal.modality not in (None, modality) and modality not in proposal.candidates:
        return _("Is this {sequence}? {reason}.").format(sequence=modality, reason=proposal.reason)
    return ""


def _doubles(inputs: Mapping[str, InputFacts]) -> dict[str, str]:
    """A sentence for each sequence whose volume another one before it has already."""
    first: dict[str, str] = {}
    sentences = {}
    for modality, facts in inputs.items():
        other = first.setdefault(facts.node_id, modality)
        if other != modality:
            sentences[modality] = _("{name} is chosen as {first} and as {second}; choose it once.").format(
                name=facts.name, first=other, second=modality
            )
    return sentences


def _flag_looks(inputs: Mapping[str, InputFacts], found: Mapping[str, list[str]]) -> None:
    nodes = [facts.node_id for facts in inputs.values()]
    once = {modality: facts for modality, facts in inputs.items() if nodes.count(facts.node_id) == 1}
    looks = {modality: facts.look for modality, facts in once.items() if facts.look is not None}
    for modality, sentence in doubts(looks).items():
        found[modality].append(sentence)


def _flag_patients(inputs: Mapping[str, InputFacts], found: Mapping[str, list[str]]) -> None:
    """Another patient, else another examination of the same one, as far as the headers say."""
    patients = _others({modality: facts.patient for modality, facts in inputs.items()})
    studies = _others({modality: facts.study for modality, facts in inputs.items()})
    for modality, first in {**studies, **patients}.items():
        sentence = _("Its DICOM header names another examination (study) than that of {sequence}.")
        if modality in patients:
            sentence = _("Its DICOM header names another patient than that of {sequence}.")
        found[modality].append(sentence.format(sequence=first))


def _others(said: Mapping[str, str]) -> dict[str, str]:
    """The sequences that say something else than the first one that says anything, and that one; "" says nothing."""
    known = {modality: text for modality, text in said.items() if text}
    first = next(iter(known), "")
    return {modality: first for modality, text in known.items() if text != known[first]}


# --- below them -----------------------------------------------------------------------------------------------------


def problem_with(inputs: Mapping[str, InputFacts]) -> str:
    """Why these volumes by sequence cannot be segmented, in one line; "" where nothing is in the way."""
    unknown = [modality for modality in inputs if modality not in MODALITIES]
    if unknown:
        return _("Unknown sequence {unknown}; the sequences are {known}.").format(
            unknown=", ".join(unknown), known=", ".join(MODALITIES)
        )
    if not inputs:
        return _("Choose at least one of {sequences}.").format(sequences=", ".join(MODALITIES))
    in_the_way = [*_doubles(inputs).values(), *map(obstacle_of, inputs.values())]
    return next(filter(None, in_the_way), "")


def plan(
    inputs: Mapping[str, InputFacts],
    reference: str = "",
    choice: PreparationChoice = NOTHING_SAID,
    program: str = "",
) -> str:
    """What will be done with the volumes' grids, transforms and skulls; reference: a sequence, "" for the default one.

    program: the installed one that removes the skull, "" for our own network. "" while `problem_with` names a problem.
    """
    if problem_with(inputs):
        return ""
    chosen = reference_of(inputs, reference)
    sentences = [
        _("The result lies on the grid of {sequence} ({grid}).").format(sequence=chosen, grid=_grid(inputs[chosen]))
    ]
    if reference and reference not in inputs:
        sentences.insert(0, _("{sequence} is not chosen, so another reference is taken.").format(sequence=reference))
    others = [modality for modality in inputs if inputs[modality].grid != inputs[chosen].grid]
    if others:
        sentences.append(
            _("On other grids, resampled in physical space: {sequences}.").format(
                sequences=", ".join(f"{modality} ({_grid(inputs[modality])})" for modality in others)
            )
        )
    elif len(inputs) > 1:
        sentences.append(_("All sequences share it."))
    moved = [f"{modality} ({facts.transform})" for modality, facts in inputs.items() if facts.transform]
    if moved:
        sentences.append(_("Parent transforms are applied: {sequences}.").format(sequences=", ".join(moved)))
    return " ".join([*sentences, *preparation_sentences(inputs, chosen, choice, program)])


def reference_of(inputs: Mapping[str, InputFacts], reference: str = "") -> str:
    """The sequence whose grid the result gets: `reference` where it is chosen, else the finest one."""
    if reference in inputs:
        return reference
    return finest_sequence({modality: facts.voxel_mm3 for modality, facts in inputs.items()})


def _grid(facts: InputFacts) -> str:
    size = " x ".join(str(number) for number in facts.size)
    spacing = " x ".join(f"{number:.3g}" for number in facts.spacing)
    return _("{size} voxels of {spacing} mm").format(size=size, spacing=spacing)


def proposal_tip(facts: Optional[InputFacts]) -> str:
    """A selector's tooltip: why the volume in it was proposed, or that nothing speaks for it."""
    if facts is None:
        return _("Leave this empty if the patient does not have it.")
    if facts.proposal is None or facts.proposal.modality is None:
        reason = facts.proposal.reason if facts.proposal is not None else _("nothing is known of it")
        return _("{name}: {reason}.").format(name=facts.name, reason=reason)
    return _("{name}: proposed as {sequence}, {reason}.").format(
        name=facts.name, sequence=facts.proposal.modality, reason=facts.proposal.reason
    )


def unused(proposals: Sequence[RoleProposal]) -> str:
    """What to tell of the volumes that a proposal left out; "" when there are none worth a word."""
    asked = [proposal for proposal in proposals if proposal.certainty == "ambiguous"]
    if len(asked) > MOST_QUESTIONS:
        return _("{count} volumes could take the same places; please choose among them: {names}.").format(
            count=len(asked), names=", ".join(proposal.source.strip() for proposal in asked)
        )
    return " ".join(
        _("Please decide on {name}: {reason}.").format(name=proposal.source, reason=proposal.reason)
        for proposal in asked
    )


@dataclass(frozen=True)
class PanelState:
    """All that the panel shows before a run; problem: why Segment cannot be pressed, "" where it can.

    flags and tips are by sequence; expectation and plan are "" while there is nothing to tell.
    """

    problem: str
    flags: Mapping[str, str]
    tips: Mapping[str, str]
    plan: str
    expectation: str


def panel_state(
    inputs: Mapping[str, InputFacts],
    card: Optional[Mapping[str, Any]],
    weights_problem: str = "",
    torch_ready: bool = True,
    reference: str = "",
    choice: PreparationChoice = NOTHING_SAID,
    program: str = "",
) -> PanelState:
    """What the panel shows for the volumes chosen; card: that of the weights, None where `weights_problem` says why."""
    unusable = problem_with(inputs)
    problem = unusable or weights_problem
    if not problem and not torch_ready:
        problem = _("PyTorch is not installed yet: press Install PyTorch at the top.")
    sentences: list[str] = []
    if card is not None and not unusable:
        sentences = expectation_sentences(expectation(card, inputs))
        if is_prepared(inputs, choice):
            sentences.append(
                _("Those patients' volumes needed no preparation (skull-stripped and registered); here it may be less.")
            )
    return PanelState(
        problem,
        flags(inputs),
        {modality: proposal_tip(inputs.get(modality)) for modality in MODALITIES},
        plan(inputs, reference, choice, program),
        " ".join(sentences),
    )


def elapsed(seconds: float) -> str:
    """Time as minutes and seconds, "1:05"."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
