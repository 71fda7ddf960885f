"""From volume nodes to a segmentation node through the worker process: for the panel, the console and scripts."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

from .card_reader import CardReader
from .child_python import find_python
from .device_check import DeviceReport, check_device
from .errors import Cancelled, InputError, MSTKDError, RoleError
from .handover import Request
from .panel import PanelState, panel_state, problem_with
from .run_task import SegmentationTask
from .slicer_inputs import InputReader, InstanceValue, proposals_for
from .slicer_output import PROBABILITY_OF, OutputChoice, SegmentResult, deliver, require_replaceable
from .slicer_scene import STRUCTURES, check_output_node, volume_from_node
from .torch_setup import TORCH_MISSING, torch_installed
from .translation import _
from .worker_process import WorkerRun, segment_in_worker, worker_command


@dataclass(frozen=True)
class Job:
    """One segmentation to be done.

    volumes: scalar volume nodes by "T1", "T1Gd", "T2", "FLAIR", any subset, None for what is missing. device: "auto",
    "cpu", "cuda", "cuda:N" or "mps". reference: the sequence whose grid the result gets, "" for the finest. weights: a
    bundle's path, "" for the one that ships.
    """

    volumes: Mapping[str, Any]
    output: OutputChoice = field(default_factory=OutputChoice)
    device: str = "auto"
    reference: str = ""
    weights: str = ""

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
) -> Job:
    """A `Job` from plain arguments; they are those of `Job` and `OutputChoice`. Raises InputError for wrong ones."""
    if not isinstance(volumes, Mapping):
        raise InputError(_("Give the volumes as a dictionary from sequence (T1, T1Gd, T2, FLAIR) to node."))
    for name, node in [*volumes.items(), ("output", output_node)]:
        if node is not None and not hasattr(node, "GetParentTransformNode"):
            raise InputError(
                _(
                    "{name}: {value!r} is no node of the scene. Give the node itself, as slicer.util.getNode does."
                ).format(name=name, value=node)
            )
    if segments not in STRUCTURES:
        raise InputError(_("Unknown segments {segments!r}; use labels or regions.").format(segments=segments))
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", device.strip().lower()):
        raise InputError(_("Unknown device {device!r}; use auto, cpu, cuda, cuda:N or mps.").format(device=device))
    output = OutputChoice(output_node, segments, surface, probabilities, replace)
    return Job(volumes, output, device, reference, weights)


class SegmentLogic:
    """python: the interpreter of the child process, default the one that belongs to this Slicer; instance_value: asks
    Slicer's DICOM database, None where there is none.
    """

    def __init__(
        self,
        python: Optional[str] = None,
        instance_value: Optional[InstanceValue] = None,
    ) -> None:
        self._python = python
        self._instance_value = instance_value
        self.reader = InputReader(instance_value)
        self._weights = CardReader()

    def proposeVolumes(self, volumeNodes: Sequence[Any]) -> tuple[dict[str, Any], list[Any]]:  # noqa: N802, N803
        """Volume nodes by the sequence that their names or DICOM headers speak of, and the proposal for every node.

        A node that could be one sequence or another is in the proposals only: the person decides.
        """
        # Label maps and colour volumes are kinds of scalar volumes in MRML, but no inputs; nor is what we made.
        nodes = [
            node
            for node in volumeNodes
            if node.GetClassName() == "vtkMRMLScalarVolumeNode" and not node.GetAttribute(PROBABILITY_OF)
        ]
        proposals = proposals_for(nodes, self._instance_value)
        return {p.modality: node for p, node in zip(proposals, nodes) if p.modality}, proposals

    def problemWith(self, volumes: Mapping[str, Any]) -> str:  # noqa: N802
        """Why these volume nodes by sequence cannot be segmented, in one line; "" where nothing is in the way."""
        return problem_with(self.reader.facts(volumes))

    def panelState(  # noqa: N802
        self,
        volumes: Mapping[str, Any],
        reference: str = "",
        weights: str = "",
        outputNode: Optional[Any] = None,  # noqa: N803
    ) -> tuple[PanelState, str]:
        """What the panel shows for this choice, and a sentence on the weights, "" for those that ship."""
        card, problem, about = self._weights.card(weights)
        if outputNode is not None and not problem:
            try:
                check_output_node(outputNode)
            except MSTKDError as error:
                problem = str(error)
        return panel_state(self.reader.facts(volumes), card, problem, torch_installed(), reference), about

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
        request = self._request(wanted)
        lost = _loss_of(wanted)

        def stop() -> bool:
            gone = lost()
            if gone:
                raise Cancelled(gone)
            return cancel is not None and cancel()

        result = segment_in_worker(request, progress, stop, self._child())
        return deliver(result, wanted.given[result.reference], wanted.output)

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
        run = WorkerRun(self._request(wanted), self._child(), wait=False)
        return SegmentationTask(
            run, lambda result: deliver(result, wanted.given[result.reference], wanted.output), _loss_of(wanted)
        )

    def check_device(self, device: str = "auto", keep_alive: Optional[Callable[[], None]] = None) -> DeviceReport:
        """Prove by a tiny convolution that torch works on `device`; raises what `device_check.check_device` raises."""
        return check_device(device, self._python or find_python(), sys.path, keep_alive=keep_alive)

    def _child(self) -> list[str]:
        return worker_command(self._python or find_python(), sys.path)  # Slicer's packages, wherever they are

    def _request(self, job: Job) -> Request:
        problem = self.problemWith(job.given)
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
        return Request(
            {modality: volume_from_node(node) for modality, node in job.given.items()},
            job.device,
            job.reference or None,
            os.path.abspath(job.weights) if job.weights else None,  # noqa: PTH100 - the child starts elsewhere
            job.output.probabilities,
        )


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
