"""The volumes that the network saw, in the scene: over the patient, with the brain's outline and the transforms back.

The prepared volumes keep their own coordinates (1 mm, the head upright) and stand under the transform that takes them
to the reference volume; there is one such transform for every sequence that lies elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import slicer

from .errors import OutputError
from .handover import Prepared
from .slicer_output import (
    PREPARED_BRAIN,
    PREPARED_OF,
    PREPARED_TRANSFORMS,
    PREPARED_VOLUMES,
    note_name,
    place_beside,
    remove_unused,
    scalar_volume,
)
from .slicer_scene import (
    ATTRIBUTE_PREFIX,
    all_or_nothing,
    as_vtk_matrix,
    labelmap_name,
    matrix_between,
    oriented_labelmap,
)
from .translation import _

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
BRAIN_COLOUR = (0.1, 0.8, 1.0)  # none of the tumour's
BRAIN_TERMINOLOGY = (
    "Segmentation category and type - DICOM master list~SCT^123037004^Anatomical Structure~SCT^12738006^Brain~^^"
    "~Anatomic codes - DICOM master list~^^~^^"
)
# Z-scores: what lies further out is vessels and enhancing tumour.
WINDOW, LEVEL = 7.0, 1.0
SAME = 1e-6


@dataclass(frozen=True)
class PreparedVolumes:
    """What a run prepared. inputs: the volume nodes by sequence; `matrices` (4, 4) take points of the prepared volumes'
    coordinates to those that each input stands in, RAS mm.
    """

    prepared: Prepared = field(repr=False)
    inputs: Mapping[str, Any]
    reference: str
    matrices: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class PreparedNodes:
    """Volumes by sequence, the brain as a segmentation, and transforms by sequence (none where nothing was moved).

    overlay: the prepared reference, which lies on the volume node `native`. brain, native: None where they are gone.
    """

    volumes: Mapping[str, Any]
    brain: Optional[Any]
    transforms: Mapping[str, Any]
    overlay: Any
    native: Optional[Any]

    @property
    def names(self) -> tuple[set[str], set[str], bool]:
        """Sequences of which there is a volume, those of which there is a transform, and whether there is a brain."""
        return set(self.volumes), set(self.transforms), self.brain is not None


def places_of(nodes: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """By sequence the matrix (4, 4) from the world to the coordinates that the volume node stands in, RAS mm."""
    return {name: matrix_between(None, node.GetParentTransformNode(), node.GetName()) for name, node in nodes.items()}


def prepared_volumes(
    prepared: Prepared, inputs: Mapping[str, Any], reference: str, places: Mapping[str, np.ndarray]
) -> PreparedVolumes:
    """Of what the worker gave back; `places`: as `places_of` gave them when the volumes were handed over."""
    matrices = {}
    for name, matrix in prepared.matrices.items():
        to_world = LPS_TO_RAS @ np.vstack([matrix, [0.0, 0.0, 0.0, 1.0]]) @ LPS_TO_RAS
        matrices[name] = places[name] @ to_world
    return PreparedVolumes(prepared, inputs, reference, matrices)


def prepared_nodes(segmentation: Any) -> Optional[PreparedNodes]:
    """What was put into the scene for this result before and is still there; None where no volume is."""
    volumes = _by_sequence(segmentation, PREPARED_VOLUMES)
    if not volumes:
        return None
    overlay = volumes.get(segmentation.GetAttribute(f"{ATTRIBUTE_PREFIX}reference")) or next(iter(volumes.values()))
    native = segmentation.GetNodeReference(segmentation.GetReferenceImageGeometryReferenceRole())
    brain, transforms = segmentation.GetNodeReference(PREPARED_BRAIN), _by_sequence(segmentation, PREPARED_TRANSFORMS)
    return PreparedNodes(volumes, brain, transforms, overlay, native)


def _by_sequence(segmentation: Any, role: str) -> dict[str, Any]:
    nodes = [segmentation.GetNthNodeReference(role, n) for n in range(segmentation.GetNumberOfNodeReferences(role))]
    return {node.GetAttribute(PREPARED_OF): node for node in nodes if node is not None}


def add_prepared(found: PreparedVolumes, segmentation: Any) -> PreparedNodes:
    """Put the prepared volumes of the result `segmentation` into the scene, or nothing if that fails.

    What is there already, if it is complete, is given back. Raises OutputError where the reference volume or the result
    has left the scene.
    """
    reference = found.inputs[found.reference]
    scene = reference.GetScene()
    if scene is None or segmentation.GetScene() is not scene:
        raise OutputError(
            _("{name} was removed from the scene; segment again to see what was prepared.").format(
                name=reference.GetName()
            )
        )
    elsewhere = {
        name: node
        for name, node in found.inputs.items()
        if node.GetScene() is scene and not np.allclose(found.matrices[name], np.eye(4), atol=SAME)
    }
    there = prepared_nodes(segmentation)
    if there is not None and there.names == (set(found.prepared.images), set(elsewhere), True):
        return there
    with all_or_nothing(scene):
        transforms = {name: _transform(node, found.matrices[name], name) for name, node in elsewhere.items()}
        volumes = {
            name: _volume(found, name, transforms.get(found.reference, reference.GetParentTransformNode()))
            for name in found.prepared.images
        }
        brain = _brain(found)
        brain.SetReferenceImageGeometryParameterFromVolumeNode(volumes[found.reference])
        for made in (*transforms.values(), *volumes.values(), brain):
            place_beside(reference, made)
    _refer(segmentation, PREPARED_VOLUMES, volumes)
    _refer(segmentation, PREPARED_TRANSFORMS, transforms)
    segmentation.SetNodeReferenceID(PREPARED_BRAIN, brain.GetID())
    made_now = prepared_nodes(segmentation)
    assert made_now is not None
    return made_now


def _refer(segmentation: Any, role: str, nodes: Mapping[str, Any]) -> None:
    """Point to `nodes` only; what is left of an earlier set, of which the user deleted a part, goes."""
    stale = list(_by_sequence(segmentation, role).values())
    segmentation.RemoveNodeReferenceIDs(role)
    remove_unused(segmentation.GetScene(), stale)
    for node in nodes.values():
        note_name(node)
        segmentation.AddNodeReferenceID(role, node.GetID())


def _transform(node: Any, matrix: np.ndarray, sequence: str) -> Any:
    scene = node.GetScene()
    name = scene.GenerateUniqueName(_("preprocessed to {name}").format(name=node.GetName()))
    transform = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    transform.SetMatrixTransformToParent(as_vtk_matrix(matrix))
    transform.SetAndObserveTransformNodeID(node.GetTransformNodeID())
    transform.SetAttribute(PREPARED_OF, sequence)
    return transform


def _volume(found: PreparedVolumes, sequence: str, parent: Optional[Any]) -> Any:
    name = _("{name} preprocessed").format(name=found.inputs[sequence].GetName())
    scene = found.inputs[found.reference].GetScene()
    parent_id = parent.GetID() if parent is not None else None
    node = scalar_volume(found.prepared.images[sequence], _to_ras(found.prepared), parent_id, name, scene)
    node.SetAttribute(PREPARED_OF, sequence)
    display = node.GetScalarVolumeDisplayNode()
    if display is not None:
        display.SetAutoWindowLevel(False)
        display.SetWindowLevel(WINDOW, LEVEL)
    return node


def _to_ras(prepared: Prepared) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = prepared.origin
    return LPS_TO_RAS @ matrix


def _brain(found: PreparedVolumes) -> Any:
    """Where the reference stands, and not under our transform: it can be corrected and given back as a brain mask."""
    reference = found.inputs[found.reference]
    scene = reference.GetScene()
    name = scene.GenerateUniqueName(_("{name} brain").format(name=reference.GetName()))
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.SetAndObserveTransformNodeID(reference.GetTransformNodeID())
    matrix = found.matrices[found.reference] @ _to_ras(found.prepared)
    segment = slicer.vtkSegment()
    segment.SetName(_("Brain"))
    segment.SetNameAutoGenerated(False)
    segment.SetColor(*BRAIN_COLOUR)
    segment.SetColorAutoGenerated(False)
    segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), BRAIN_TERMINOLOGY)
    segment.AddRepresentation(labelmap_name(), oriented_labelmap(found.prepared.brain.astype(np.uint8), matrix))
    segmentation = node.GetSegmentation()
    segmentation.SetSourceRepresentationName(labelmap_name())
    if not segmentation.AddSegment(segment, "brain"):
        raise OutputError(_("{name}: Slicer refused the segment of the brain; see its error log.").format(name=name))
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    if display is not None:
        display.SetSegmentOpacity2DFill("brain", 0.0)
        display.SetVisibility3D(False)
    return node
