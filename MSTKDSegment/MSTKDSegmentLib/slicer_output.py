"""What a run leaves in the scene: segmentation, table of volumes and diameters, probability volumes; or nothing.

Everything is placed beside the reference volume in the subject hierarchy, so that a DICOM export finds the study.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Union

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from .errors import OutputError
from .regions import LABELS, REGIONS
from .slicer_scene import (
    ATTRIBUTE_PREFIX,
    add_segmentation,
    all_or_nothing,
    as_vtk_matrix,
    earlier_result,
    ijk_to_ras,
    nodes_of,
    structure_of,
)
from .translation import _
from .worker_process import WorkerResult

TABLE_OF = "MSTKDSegment.table"
"""Node reference role from a segmentation to the table of its measurements."""

PROBABILITIES_OF = "MSTKDSegment.probabilities"
"""Node reference role from a segmentation to its probability volumes."""

PROBABILITY_OF = f"{ATTRIBUTE_PREFIX}probability"
"""Attribute of a probability volume: the region that it is of. Such volumes are never proposed as inputs."""

PREPARED_OF = f"{ATTRIBUTE_PREFIX}prepared"
"""Attribute of a prepared volume and of its transform: the sequence. Nor are such volumes ever proposed as inputs."""

GIVEN_NAME = f"{ATTRIBUTE_PREFIX}name"
"""Attribute of what was made beside a result: the name that it got. What has another one now is somebody's own."""

PREPARED_VOLUMES, PREPARED_TRANSFORMS = "MSTKDSegment.preparedVolumes", "MSTKDSegment.preparedTransforms"
PREPARED_BRAIN = "MSTKDSegment.preparedBrain"
"""Node reference roles from a segmentation to what `slicer_prepared` made of the same run."""

# As in the paper's figures the oedema lets the core shine through; the outline of each is drawn full.
FILL_OPACITY, OUTLINE_OPACITY = 0.45, 1.0
SURFACE_OPACITY = {"ED": 0.3, "WT": 0.3, "TC": 0.6}


@dataclass(frozen=True)
class OutputChoice:
    """What is to be written. segments: "labels" (NCR, ED, ET) or "regions" (WT, TC, ET); node: None for a new one.

    replace: whether an earlier result in `node` may be replaced.
    """

    node: Optional[Any] = None
    segments: str = "labels"
    surface: bool = False
    probabilities: bool = False
    replace: bool = False


@dataclass(frozen=True)
class SegmentResult:
    """The nodes made (probabilities by region, {} where not asked for), and what the run said.

    record: what was found and done about the volumes, as `PreparationRecord.to_dict` gives it. prepared: a
    `slicer_prepared.PreparedVolumes`, None where it was not asked for.
    """

    node: Any
    table: Any
    probabilities: Mapping[str, Any]
    volumes_ml: Mapping[str, float]
    notices: tuple[str, ...]
    provenance: Mapping[str, str]
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)
    prepared: Optional[Any] = field(default=None, repr=False)


def made_here(node: Any) -> bool:
    """Whether a volume came out of a run, so that it is no input of the next one."""
    return any(node.GetAttribute(attribute) for attribute in (PROBABILITY_OF, PREPARED_OF))


def require_replaceable(choice: OutputChoice) -> None:
    """Raises OutputError where the chosen segmentation holds an earlier result that must not be replaced."""
    if choice.node is not None and not choice.replace and earlier_result(choice.node):
        raise OutputError(
            _("{name} holds an earlier result. Choose another output, or allow it to be replaced.").format(
                name=choice.node.GetName()
            )
        )


def deliver(result: WorkerResult, reference: Any, choice: OutputChoice) -> SegmentResult:
    """Put `result` on the grid of the volume node `reference` into its scene; if that fails, the scene is as before.

    Raises OutputError and InputError as `add_segmentation` does, and OutputError where one may not be replaced.
    """
    require_replaceable(choice)
    with all_or_nothing(reference.GetScene(), choice.node):
        node = add_segmentation(
            result.labels,
            reference,
            output_node=choice.node,
            segments=choice.segments,
            provenance={**result.provenance, "preparation": json.dumps(result.record)},
        )
        probabilities = {}
        if choice.probabilities and result.region_probabilities is not None:
            for structure, array in zip(REGIONS, result.region_probabilities):
                name = _probability_name(node, structure.key)
                probabilities[structure.key] = scalar_volume(
                    array, ijk_to_ras(reference), reference.GetTransformNodeID(), name, reference.GetScene()
                )
                probabilities[structure.key].SetAttribute(PROBABILITY_OF, structure.key)
        table = _table(node, result.measurements)
        _show(node)
        notices = list(result.notices)
        if choice.surface and not show_surface(node):
            notices.append(_("The 3-D surface could not be made; the segments themselves are complete."))
        for made in (node, table, *probabilities.values()):
            place_beside(reference, made)
    _take_over(node, table, probabilities)
    return SegmentResult(
        node, table, probabilities, result.volumes_ml, tuple(notices), dict(result.provenance), dict(result.record)
    )


def _take_over(node: Any, table: Any, probabilities: Mapping[str, Any]) -> None:
    """What was made of the result that has just been replaced goes; what was made now takes its names."""
    scene = node.GetScene()
    roles = (TABLE_OF, PROBABILITIES_OF, PREPARED_VOLUMES, PREPARED_TRANSFORMS)
    node.RemoveNodeReferenceIDs(PREPARED_BRAIN)  # it stays: somebody may have corrected it to give it back to us
    stale = [node.GetNthNodeReference(role, n) for role in roles for n in range(node.GetNumberOfNodeReferences(role))]
    for role in roles:
        node.RemoveNodeReferenceIDs(role)
    remove_unused(scene, [old for old in stale if old is not None])
    names = {_table_name(node): table, **{_probability_name(node, key): made for key, made in probabilities.items()}}
    for name, made in names.items():
        if made.GetName() != name and scene.GetFirstNodeByName(name) is None:
            made.SetName(name)
        note_name(made)
    node.SetNodeReferenceID(TABLE_OF, table.GetID())
    for made in probabilities.values():
        node.AddNodeReferenceID(PROBABILITIES_OF, made.GetID())


def note_name(node: Any) -> None:
    """Remember what a node is called, so that `remove_unused` can tell whether somebody made it their own."""
    node.SetAttribute(GIVEN_NAME, node.GetName())


def remove_unused(scene: Any, nodes: Sequence[Any]) -> None:
    """Remove those of `nodes` that nobody renamed, and of the transforms those under which nothing else stands."""
    own = [node for node in nodes if node.GetAttribute(GIVEN_NAME) in (None, node.GetName())]
    for node in sorted(own, key=lambda one: bool(one.IsA("vtkMRMLTransformNode"))):  # first what stands under them
        if not (node.IsA("vtkMRMLTransformNode") and _carries(scene, node)):
            scene.RemoveNode(node)


def _carries(scene: Any, transform: Any) -> bool:
    standing = nodes_of(scene, "vtkMRMLTransformableNode")
    return any(node.GetTransformNodeID() == transform.GetID() for node in standing)


def measurements_of(node: Any) -> tuple[Optional[Any], str]:
    """The table of a result's measurements, and whose they are and what made them; (None, "") for others."""
    table = node.GetNodeReference(TABLE_OF)
    if table is None:
        return None, ""
    said = {key: node.GetAttribute(ATTRIBUTE_PREFIX + key) or "?" for key in ("sequences", "device", "bundle")}
    return table, _("{name}: {sequences} on {device}, {bundle}").format(name=node.GetName(), **said)


def _table_name(node: Any) -> str:
    return f"{node.GetName()} measurements"


def _probability_name(node: Any, key: str) -> str:
    return f"{node.GetName()} {key} probability"


# --- the segmentation's looks ---------------------------------------------------------------------------------------


def _show(node: Any) -> None:
    display = node.GetDisplayNode()
    if display is None:
        node.CreateDefaultDisplayNodes()
        display = node.GetDisplayNode()
    segmentation = node.GetSegmentation()
    for index in range(segmentation.GetNumberOfSegments()):
        segment_id = segmentation.GetNthSegmentID(index)
        structure = structure_of(segmentation.GetSegment(segment_id))
        if display is not None and structure:  # the user's own segments keep their looks
            display.SetSegmentOpacity2DFill(segment_id, FILL_OPACITY)
            display.SetSegmentOpacity2DOutline(segment_id, OUTLINE_OPACITY)
            display.SetSegmentOpacity3D(segment_id, SURFACE_OPACITY.get(structure, 1.0))


def show_surface(node: Any) -> bool:
    """Make the closed surfaces that 3-D views show; the voxels stay the source. False where that fails."""
    made = bool(node.CreateClosedSurfaceRepresentation())
    if made and node.GetDisplayNode() is not None:
        node.GetDisplayNode().SetVisibility3D(True)
    return made


# --- the table ------------------------------------------------------------------------------------------------------


def _table(node: Any, measurements: Mapping[str, Mapping[str, float]]) -> Any:
    scene = node.GetScene()
    table = scene.AddNewNodeByClass("vtkMRMLTableNode", scene.GenerateUniqueName(_table_name(node)))
    names = {structure.key: structure.name for structure in (*REGIONS, *LABELS)}
    _add_column(table, _("Structure"), "", list(measurements))
    for name, title, key, digits in (
        (_("Volume (ml)"), _("ml"), "volume_ml", 3),
        (_("Longest diameter, 3-D (mm)"), _("3-D mm"), "longest_mm", 1),
        (_("Longest axial diameter (mm)"), _("axial mm"), "axial_longest_mm", 1),
        (_("Axial diameter at right angles (mm)"), _("across mm"), "axial_perpendicular_mm", 1),
    ):
        _add_column(table, name, title, [round(values[key], digits) for values in measurements.values()])
    _add_column(table, _("Name"), "", [names[key] for key in measurements])
    table.SetUseColumnTitleAsColumnHeader(True)
    table.SetLocked(True)
    table.SetAttribute(f"{ATTRIBUTE_PREFIX}segmentation", node.GetName())
    return table


def _add_column(table: Any, name: str, title: str, values: Sequence[Union[str, float]]) -> None:
    """name: in saved files; title: the short one that a narrow panel shows, "" for the name itself."""
    column = vtk.vtkStringArray() if isinstance(values[0], str) else vtk.vtkDoubleArray()
    column.SetName(name)
    for value in values:
        column.InsertNextValue(value)
    table.AddColumn(column)
    table.SetColumnTitle(name, title or name)


# --- volumes --------------------------------------------------------------------------------------------------------


def scalar_volume(array: np.ndarray, to_ras: np.ndarray, transform_id: Optional[str], name: str, scene: Any) -> Any:
    """A new volume node of `array` (D, H, W) as float32 under a transform; to_ras (4, 4): from indices to there."""
    image = vtk.vtkImageData()
    image.SetDimensions(*array.shape[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(array, np.float32).ravel(), deep=True))
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", scene.GenerateUniqueName(name))
    node.SetIJKToRASMatrix(as_vtk_matrix(to_ras))
    node.SetAndObserveImageData(image)
    node.SetAndObserveTransformNodeID(transform_id)
    node.CreateDefaultDisplayNodes()
    return node


# --- the subject hierarchy ------------------------------------------------------------------------------------------


def place_beside(reference: Any, node: Any) -> None:
    """Put `node` where `reference` is in the subject hierarchy."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(reference.GetScene())
    if hierarchy is None:
        return
    nowhere = slicer.vtkMRMLSubjectHierarchyNode.GetInvalidItemID()
    beside, item = hierarchy.GetItemByDataNode(reference), hierarchy.GetItemByDataNode(node)
    if beside == nowhere:
        return
    if item == nowhere:  # without Slicer's window nobody makes items by themselves
        hierarchy.CreateItem(hierarchy.GetItemParent(beside), node)
    else:
        hierarchy.SetItemParent(item, hierarchy.GetItemParent(beside))
