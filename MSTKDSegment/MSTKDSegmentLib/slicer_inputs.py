"""Volume nodes as facts for the panel: grid, transforms, what their names and DICOM headers say, how they look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
import SimpleITK as sitk

from .appearance import Look, look
from .case_roles import propose_roles
from .dicom import DICOM_TAGS
from .look_roles import settled_by_look
from .overlap import brain_alone
from .panel import InputFacts
from .roles import RoleProposal, written_out
from .slicer_scene import ijk_to_ras, matrix_between, volume_obstacle, voxels_of
from .translation import _

STUDY = {"StudyInstanceUID": "0020|000d"}

InstanceValue = Callable[[str, str], str]
"""Slicer's `dicomDatabase.instanceValue(instance UID, "gggg,eeee")`."""


def proposals_for(nodes: Sequence[Any], instance_value: Optional[InstanceValue] = None) -> list[RoleProposal]:
    """A proposal for each volume node of one patient, in their order: from the DICOM header where the node has one.

    Of the nodes that could be one sequence, none is proposed: the person decides.
    """
    return _proposals(nodes, [dicom_tags(node, instance_value) for node in nodes])


def _proposals(nodes: Sequence[Any], headers: Sequence[Mapping[str, str]]) -> list[RoleProposal]:
    sources: list[Path] = []
    tags = {}
    for node, header in zip(nodes, headers):
        source = Path(written_out((node.GetName() or "unnamed").replace("\0", " ")))
        while str(source) in map(str, sources):  # nodes may share a name, proposals are told apart by it
            source = Path(f"{source} ")
        sources.append(source)
        if header:
            tags[str(source)] = header
    return propose_roles(sources, tags)


def dicom_tags(node: Any, instance_value: Optional[InstanceValue]) -> dict[str, str]:
    """Those of `dicom.DICOM_TAGS` that the volume's first DICOM slice carries; {} for volumes from other files."""
    return _tags(node, instance_value, DICOM_TAGS)


def _tags(node: Any, instance_value: Optional[InstanceValue], wanted: Mapping[str, str]) -> dict[str, str]:
    uids = (node.GetAttribute("DICOM.instanceUIDs") or "").split()
    if not uids or instance_value is None:
        return {}
    found = {keyword: instance_value(uids[0], tag.replace("|", ",")) for keyword, tag in wanted.items()}
    return {keyword: value for keyword, value in found.items() if value}


def study_of(node: Any, instance_value: Optional[InstanceValue]) -> str:
    """The StudyInstanceUID of the volume's first DICOM slice; "" for volumes from other files."""
    return _tags(node, instance_value, STUDY).get("StudyInstanceUID", "")


def of_one_examination(
    nodes: Sequence[Any], chosen: Sequence[Any], instance_value: Optional[InstanceValue] = None
) -> tuple[list[Any], str]:
    """Those of `nodes` that may be proposed together with those `chosen`, and a sentence where some may not.

    Two patients, or two dates of one, may be in the scene at once. Volumes belong together by their DICOM study or, of
    other files, by their folder, where that holds more than one of them; what came from nowhere fits everywhere.
    With several examinations, and none chosen yet, the person decides.
    """
    everything = [*chosen, *nodes]
    folders = [_folder_of(node) for node in everything]
    found: dict[str, str] = {}
    for node, folder in zip(everything, folders):
        study = study_of(node, instance_value)
        shared = folder if folder and folders.count(folder) > 1 else ""
        found[node.GetID()] = f"study {study}" if study else shared
    mine = {found[node.GetID()] for node in chosen} - {""}
    first: dict[str, str] = {}
    for node in everything:
        if found[node.GetID()]:
            first.setdefault(found[node.GetID()], node.GetName())
    if len(first) < 2:
        return list(nodes), ""
    if mine:
        return [node for node in nodes if found[node.GetID()] in mine | {""}], ""
    sentence = _(
        "Volumes of {count} examinations are loaded (with {names}). Choose one volume of the right one, then press "
        "Propose."
    )
    return [], sentence.format(count=len(first), names=", ".join(first.values()))


def _folder_of(node: Any) -> str:
    """The folder that a volume was loaded from; "" for one that was made in the scene or came from DICOM."""
    storage = node.GetStorageNode()
    name = (storage.GetFileName() or "") if storage is not None else ""
    return str(Path(name).parent) if name else ""


class InputReader:
    """Gives `InputFacts` of nodes, remembering what is slow to find out until a node's voxels change."""

    def __init__(self, instance_value: Optional[InstanceValue] = None) -> None:
        self._instance_value = instance_value
        self._looks: dict[str, tuple[int, bool, Optional[Look]]] = {}
        self._by_look: dict[str, tuple[int, RoleProposal]] = {}

    def propose(self, nodes: Sequence[Any]) -> list[RoleProposal]:
        """As `proposals_for`; nodes of which nothing is known are proposed by their look, where the skull is gone."""
        headers = [dicom_tags(node, self._instance_value) for node in nodes]

        def look_of(index: int) -> Optional[Look]:
            return None if volume_obstacle(nodes[index]) else self._look(nodes[index])[1]

        by_name = _proposals(nodes, headers)
        proposals = settled_by_look(by_name, look_of)
        for node, before, after in zip(nodes, by_name, proposals):
            if after != before:
                self._by_look[node.GetID()] = node.GetImageData().GetMTime(), after
        return proposals

    def facts(self, nodes: Mapping[str, Any]) -> dict[str, InputFacts]:
        """Facts by sequence of the nodes chosen; None is left out."""
        chosen = {modality: node for modality, node in nodes.items() if node is not None}
        return {modality: self._facts(node) for modality, node in chosen.items()}

    def _facts(self, node: Any) -> InputFacts:
        transform = node.GetParentTransformNode()
        header = dicom_tags(node, self._instance_value)
        facts = InputFacts(
            node.GetID(),
            node.GetName() or "unnamed",
            transform=transform.GetName() if transform is not None else "",
            linear=transform is None or bool(transform.IsTransformToWorldLinear()),
            obstacle=volume_obstacle(node),
            patient=header.get("PatientID", ""),
            study=study_of(node, self._instance_value),
            proposal=_proposals([node], [header])[0],
        )
        if facts.obstacle or not facts.linear:
            return facts
        matrix = matrix_between(transform, None, facts.name) @ ijk_to_ras(node)
        x, y, z = (float(length) for length in np.linalg.norm(matrix[:3, :3], axis=0))
        size = node.GetImageData().GetDimensions()
        stripped, found = self._look(node)
        return replace(
            facts,
            size=size,
            spacing=(x, y, z),
            voxel_mm3=float(abs(np.linalg.det(matrix[:3, :3]))),
            stripped=stripped,
            look=found,
            proposal=self._remembered(node, facts.proposal),
            grid=(*size, *np.round(matrix[:3], 3).ravel().tolist()),
        )

    def _remembered(self, node: Any, proposal: Optional[RoleProposal]) -> Optional[RoleProposal]:
        """The proposal by look that was made of these very voxels, where nothing else is known of the node."""
        changed, by_look = self._by_look.get(node.GetID(), (None, None))
        unknown = proposal is not None and proposal.certainty == "unknown"
        return by_look if unknown and changed == node.GetImageData().GetMTime() else proposal

    def _look(self, node: Any) -> tuple[bool, Optional[Look]]:
        changed = node.GetImageData().GetMTime()
        known = self._looks.get(node.GetID())
        if known is None or known[0] != changed:
            known = changed, *_look_at(voxels_of(node), node.GetSpacing())
            self._looks[node.GetID()] = known
        return known[1:]


def _look_at(voxels: np.ndarray, spacing: Sequence[float]) -> tuple[bool, Optional[Look]]:
    """Whether the skull is gone, and what the volume looks like."""
    image = sitk.GetImageFromArray(voxels.astype(np.float32))
    image.SetSpacing(spacing)
    brain = brain_alone(image)
    return brain is not None, None if brain is None else look(image, brain)
