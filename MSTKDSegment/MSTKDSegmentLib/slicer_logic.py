"""From volume nodes to a segmentation node through the worker process: for the panel, the console and scripts."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Optional

from .card_reader import CardReader
from .child_python import find_python
from .device_check import DeviceReport, check_device
from .errors import Cancelled, InputError, MSTKDError, RoleError
from .handover import Request
from .panel import InputFacts, PanelState, panel_state, problem_with, reference_of, unused
from .preparation_plan import PROGRAMS, PreparationChoice, skulls, wants_program
from .preparation_record import EXTRACTORS, Wishes
from .run_task import SegmentationTask
from .slicer_inputs import InputReader, InstanceValue, of_one_examination
from .slicer_mask import brain_mask_from_node, brain_mask_obstacle
from .slicer_output import OutputChoice, SegmentResult, deliver, made_here, require_replaceable
from .slicer_prepared import places_of, prepared_volumes
from .slicer_scene import STRUCTURES, check_output_node, volume_from_node
from .specialists import usable
from .torch_setup import TORCH_MISSING, torch_installed
from .translation import _
from .worker_process import WorkerResult, WorkerRun, segment_in_worker, worker_command


@dataclass(frozen=True)
class Job:
    """One segmentation to be done.

    volumes: scalar volume nodes by "T1", "T1Gd", "T2", "FLAIR", any subset, None for what is missing. device: "auto",
    "cpu", "cuda", "cuda:N" or "mps". reference: the sequence whose grid the result gets, "" for the finest. weights: a
    bundle's path, "" for the one that ships. keep: whether the result brings what the network saw.
    """

    volumes: Mapping[str, Any]
    output: OutputChoice = field(default_factory=OutputChoice)
    device: str = "auto"
    reference: str = ""
    weights: str = ""
    preparation: PreparationChoice = field(default_factory=PreparationChoice)
    keep: bool = False

    @property
    def given(self) -> dict[str, Any]:
        """The volumes that there are."""
        return {modality: node for modality, node in self.volumes.items() if node is not None}


def job(
    volumes: Mapping[str, Any],
    output_node: Optional[Any] = None,
    device: str = "auto",
    *,
    segments: str = "labels",
    reference: str = "",
    weights: str = "",
    surface: bool = False,
    probabilities: bool = False,
    replace: bool = False,
    keep: bool = False,
    **preparation: Any,
) -> Job:
    """A `Job` from plain arguments: those of `Job`, `OutputChoice` and `preparation_choice`.

    Raises InputError for wrong ones.
    """
    if not isinstance(volumes, Mapping):
        raise InputError(_("Give the volumes as a dictionary from sequence (T1, T1Gd, T2, FLAIR) to node."))
    for name, node in [*volumes.items(), ("output", output_node)]:
        _require_node(name, node)
    if segments not in STRUCTURES:
        raise InputError(_("Unknown segments {segments!r}; use labels or regions.").format(segments=segments))
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device.strip().lower()):
        raise InputError(_("Unknown device {device!r}; use auto, cpu, cuda, cuda:N or mps.").format(device=device))
    output = OutputChoice(output_node, segments, surface, probabilities, replace)
    return Job(volumes, output, device, reference, weights, preparation_choice(**preparation), keep)


def preparation_choice(
    *,
    registered: Optional[bool] = None,
    skull_stripped: Optional[bool] = None,
    brain_mask: Optional[Any] = None,
    extractor: str = "auto",
    bias_correction: bool = False,
) -> PreparationChoice:
    """A `PreparationChoice`; brain_mask: a volume or segmentation node. Raises InputError for wrong arguments."""
    for name, answer in (("registered", registered), ("skull_stripped", skull_stripped)):
        if answer is not None and not isinstance(answer, bool):
            raise InputError(
                _("{name}: {value!r} is no answer; use True, False, or None to have it found out.").format(
                    name=name, value=answer
                )
            )
    _require_node("brain_mask", brain_mask)
    if extractor not in EXTRACTORS:
        raise InputError(
            _("Unknown brain extraction {extractor!r}; use one of {known}.").format(
                extractor=extractor, known=", ".join(EXTRACTORS)
            )
        )
    return PreparationChoice(registered, skull_stripped, brain_mask, extractor, bias_correction)


def _require_node(name: str, node: Optional[Any]) -> None:
    if node is not None and not hasattr(node, "GetParentTransformNode"):
        raise InputError(
            _("{name}: {value!r} is no node of the scene. Give the node itself, as slicer.util.getNode does.").format(
                name=name, value=node
            )
        )


class SegmentLogic:
    """python: the interpreter of the child process, default the one that belongs to this Slicer; instance_value: asks
    Slicer's DICOM database, None where there is none.
    """

    def __init__(
        self,
        python: Optional[str] = None,
        instance_value: Optional[InstanceValue] = None,
    ) -> None:
        self._python, self._instance_value = python, instance_value
        self.reader = InputReader(instance_value)
        self._weights = CardReader()

    def proposeVolumes(self, volumeNodes: Sequence[Any]) -> tuple[dict[str, Any], list[Any]]:  # noqa: N802, N803
        """Volume nodes by the sequence that their names or DICOM headers speak of, and the proposal for every node.

        Where those say nothing, a skull-stripped volume is proposed by its look, which its reason says.
        A node that could be one sequence or another is in the proposals only: the person decides.
        """
        # Label maps and colour volumes are kinds of scalar volumes in MRML, but no inputs; nor is what we made.
        nodes = [
            node for node in volumeNodes if node.GetClassName() == "vtkMRMLScalarVolumeNode" and not made_here(node)
        ]
        proposals = self.reader.propose(nodes)
        return {p.modality: node for p, node in zip(proposals, nodes) if p.modality}, proposals

    def proposeWith(self, volumeNodes: Sequence[Any], chosen: Sequence[Any]) -> tuple[dict[str, Any], str]:  # noqa: N802, N803
        """As `proposeVolumes`, of one examination: that of the nodes `chosen`; and a sentence on what to decide."""
        nodes, sentence = of_one_examination(volumeNodes, chosen, self._instance_value)
        proposed, proposals = self.proposeVolumes(nodes)
        return proposed, sentence or unused(proposals)

    def problemWith(self, volumes: Mapping[str, Any]) -> str:  # noqa: N802
        """Why these volume nodes by sequence cannot be segmented, in one line; "" where nothing is in the way."""
        return problem_with(self.reader.facts(volumes))

    def panelState(  # noqa: N802
        self,
        volumes: Mapping[str, Any],
        reference: str = "",
        weights: str = "",
        outputNode: Optional[Any] = None,  # noqa: N803
        **preparation: Any,
    ) -> tuple[PanelState, str]:
        """What the panel shows for this choice, and a sentence on the weights, "" for those that ship.

        preparation: see `preparation_choice`.
        """
        card, problem, about = self._weights.card(weights)
        if outputNode is not None and not problem:
            try:
                check_output_node(outputNode)
            except MSTKDError as error:
                problem = str(error)
        facts, choice = self.reader.facts(volumes), preparation_choice(**preparation)
        program, missing = _program(facts, reference, choice)
        problem = problem or _mask_problem(facts, choice) or missing
        return panel_state(facts, card, problem, torch_installed(), reference, choice, program), about

    def segment(
        self,
        volumes: Mapping[str, Any],
        outputNode: Optional[Any] = None,  # noqa: N803
        device: str = "auto",
        *,
        progress: Optional[Callable[[float, str], None]] = None,
        cancel: Optional[Callable[[], bool]] = None,
        **options: Any,
    ) -> SegmentResult:
        """Segment the tumour and wait for it: for scripts and batches. Arguments and errors: see `job`.

        progress(fraction, text) is called some thirty times a second; a true cancel() ends the run with `Cancelled`.
        Whatever is raised, the scene is as it was.
        """
        wanted = job(volumes, outputNode, device, **options)
        request, finish = self._request(wanted), _delivery(wanted)
        lost = _loss_of(wanted)

        def stop() -> bool:
            gone = lost()
            if gone:
                raise Cancelled(gone)
            return cancel is not None and cancel()

        return finish(segment_in_worker(request, progress, stop, self._child()))

    def start(
        self,
        volumes: Mapping[str, Any],
        outputNode: Optional[Any] = None,  # noqa: N803
        device: str = "auto",
        **options: Any,
    ) -> SegmentationTask:
        """Begin and return at once: the task is to be polled from a timer; its `outcome` is a `SegmentResult`.

        Raises MSTKDError where the inputs, the output or torch stand in the way; then nothing was begun.
        """
        wanted = job(volumes, outputNode, device, **options)
        request, finish = self._request(wanted), _delivery(wanted)
        return SegmentationTask(WorkerRun(request, self._child(), wait=False), finish, _loss_of(wanted))

    def check_device(self, device: str = "auto", keep_alive: Optional[Callable[[], None]] = None) -> DeviceReport:
        """Prove by a tiny convolution that torch works on `device`; raises what `device_check.check_device` raises."""
        return check_device(device, self._python or find_python(), sys.path, keep_alive=keep_alive)

    def _child(self) -> list[str]:
        return worker_command(self._python or find_python(), sys.path)  # Slicer's packages, wherever they are

    def _request(self, job: Job) -> Request:
        facts = self.reader.facts(job.given)
        problem = problem_with(facts)
        if problem:
            raise RoleError(problem)
        if not torch_installed():
            raise MSTKDError(TORCH_MISSING)
        if job.output.node is not None:
            check_output_node(job.output.node)
            require_replaceable(job.output)
        if job.reference and job.reference not in job.given:
            raise RoleError(
                _("The reference {sequence} is not among the sequences chosen.").format(sequence=job.reference)
            )
        problem = _mask_problem(facts, job.preparation) or _program(facts, job.reference, job.preparation)[1]
        if problem:
            raise InputError(problem)
        return Request(
            {modality: volume_from_node(node) for modality, node in job.given.items()},
            job.device,
            job.reference or None,
            os.path.abspath(job.weights) if job.weights else None,  # noqa: PTH100 - the child starts elsewhere
            job.output.probabilities,
            _wishes(job.preparation),
            job.keep,
        )


def _wishes(choice: PreparationChoice) -> Wishes:
    wishes = Wishes(
        choice.registered,
        choice.skull_stripped,
        extractor=choice.extractor,
        bias_correction=choice.bias_correction,
    )
    if choice.brain_mask is None:
        return wishes
    return wishes.with_mask(brain_mask_from_node(choice.brain_mask), choice.brain_mask.GetName())


def _mask_problem(facts: Mapping[str, InputFacts], choice: PreparationChoice) -> str:
    """Why the brain mask cannot be used, "" where it can or where there is none."""
    if choice.brain_mask is None:
        return ""
    for modality, one in facts.items():
        if one.node_id == choice.brain_mask.GetID():
            return _("{name} is chosen as {sequence} and as brain mask; choose it once.").format(
                name=one.name, sequence=modality
            )
    return brain_mask_obstacle(choice.brain_mask)


def _program(facts: Mapping[str, InputFacts], reference: str, choice: PreparationChoice) -> tuple[str, str]:
    """The installed program that will remove the skull ("" for our own network), and why the one asked for cannot."""
    if problem_with(facts):
        return "", ""
    chosen = reference_of(facts, reference)
    if not wants_program(facts, choice, chosen):
        return "", ""
    with_skull = skulls(facts, choice)
    uses = usable(choice.extractor, chosen, with_skull)
    if uses:
        return uses[0].title(chosen), ""
    if choice.extractor == "auto":
        return "", ""
    return "", _(
        "{program} is not installed in this Slicer's Python, or takes no {sequence}. Install it with its weights, or "
        "choose another brain extraction under Advanced."
    ).format(program=PROGRAMS[choice.extractor], sequence=_(" or ").join(with_skull))


def _delivery(job: Job) -> Callable[[WorkerResult], SegmentResult]:
    """What is to be done with the result; where the volumes stand is looked up now, as they are handed over."""
    places = places_of(job.given) if job.keep else {}

    def finish(result: WorkerResult) -> SegmentResult:
        found = deliver(result, job.given[result.reference], job.output)
        if result.prepared is None:
            return found
        return replace(found, prepared=prepared_volumes(result.prepared, job.given, result.reference, places))

    return finish


def _loss_of(job: Job) -> Callable[[], str]:
    nodes = {**job.given, **({} if job.output.node is None else {"output": job.output.node})}
    scenes = {name: node.GetScene() for name, node in nodes.items()}
    names = {name: node.GetName() for name, node in nodes.items()}

    def lost() -> str:
        for name, node in nodes.items():
            if node.GetScene() is None or node.GetScene() is not scenes[name]:
                return _("{name} was removed from the scene; the segmentation was stopped.").format(name=names[name])
        return ""

    return lost
