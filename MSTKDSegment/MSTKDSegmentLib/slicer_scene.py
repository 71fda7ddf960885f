"""MRML in and out, without Qt: a scene's volume as a `Volume`, a label map as a segmentation node.

Volumes are read in world coordinates, so that sequences under different parent transforms come together as they are
shown. A new segmentation node is put under the reference volume's transform and keeps that volume's own voxel grid:
it lies right, follows when the registration is corrected, and can be edited on the reference without resampling. A
segmentation node that exists stays where it is; the label map is then expressed in its coordinates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Optional

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from .errors import GeometryError, InputError, OutputError
from .regions import LABELS, REGIONS, Structure, require_labels
from .translation import _
from .volumes import Volume, volume_from_image

ATTRIBUTE_PREFIX = "MSTKDSegment."
SEGMENT_TAG = "MSTKDSegment.structure"
"""Marks the segments that this module made, and copies of them."""
SEGMENTS_MADE = f"{ATTRIBUTE_PREFIX}segments"
"""Attribute of a segmentation node: the ids of the segments that this module made in it, as a JSON list. Only these,
and of them only those that still have their name, are replaced when the node is used again.
"""

STRUCTURES: Mapping[str, Sequence[Structure]] = {"labels": LABELS, "regions": REGIONS}
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0])


# --- volumes in -----------------------------------------------------------------------------------------------------


def volume_from_node(node: Any) -> Volume:
    """A `vtkMRMLScalarVolumeNode` as a checked volume in world coordinates (LPS millimetres), its voxels copied.

    Linear parent transforms, also with scaling and shear, are composed into the geometry; no voxel is resampled.
    Raises InputError for a node that is no greyscale volume, holds no voxels, or stands under a non-linear transform,
    and what `volume_from_image` raises.
    """
    obstacle = volume_obstacle(node)
    if obstacle:
        raise InputError(obstacle)
    matrix = matrix_between(node.GetParentTransformNode(), None, node.GetName()) @ ijk_to_ras(node)
    return volume_from_image(image_of(voxels_of(node), matrix, node.GetName()), node.GetName())


def volume_obstacle(node: Any) -> str:
    """Why `node` is no greyscale volume with voxels, with what to do; "" where it is one."""
    name = node.GetName()
    if not node.IsA("vtkMRMLScalarVolumeNode") or node.IsA("vtkMRMLLabelMapVolumeNode"):
        return _("{name}: not a greyscale volume. Choose the MRI volume itself.").format(name=name)
    scalars = node.GetImageData().GetPointData().GetScalars() if node.GetImageData() else None
    if scalars is None or scalars.GetNumberOfTuples() == 0:
        return _("{name}: the volume holds no voxels. Load it again or choose another.").format(name=name)
    if scalars.GetNumberOfComponents() != 1:
        return _("{name}: a colour or vector volume. Choose a plain greyscale MRI volume.").format(name=name)
    return ""


def nodes_of(scene: Any, name: str) -> list[Any]:
    """The nodes of a class (and of those below it) in `scene`."""
    return [scene.GetNthNodeByClass(index, name) for index in range(scene.GetNumberOfNodesByClass(name))]


def voxels_of(node: Any) -> np.ndarray:
    """The voxels (D, H, W) of a volume node, shared with it."""
    image = node.GetImageData()
    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])


def image_of(voxels: np.ndarray, ijk_to_world: np.ndarray, name: str) -> sitk.Image:
    """Voxels (D, H, W) with the matrix (4, 4) from their indices to RAS mm as an image (LPS mm); `name` for errors.

    Raises GeometryError where the axes do not span a volume.
    """
    columns = LPS_FROM_RAS @ ijk_to_world[:3, :3]
    spacing = np.linalg.norm(columns, axis=0)
    # ITK refuses what cannot be inverted with a message that names no volume; nearly flat axes are checked later.
    if not (np.isfinite(ijk_to_world).all() and spacing.all() and np.linalg.det(columns / spacing)):
        raise GeometryError(
            _(
                "{name}: its axes, with its parent transforms, do not span a volume (singular matrix). Correct the "
                "spacing in the Volumes module or the transform."
            ).format(name=name)
        )
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((LPS_FROM_RAS @ ijk_to_world[:3, 3]).tolist())
    image.SetDirection((columns / spacing).ravel().tolist())
    return image


def ijk_to_ras(volume_node: Any) -> np.ndarray:
    """The matrix (4, 4) from voxel indices (i, j, k) to the coordinates that the node stands in, RAS mm."""
    matrix = vtk.vtkMatrix4x4()
    volume_node.GetIJKToRASMatrix(matrix)
    return as_array(matrix)


def matrix_between(source: Optional[Any], target: Optional[Any], name: str) -> np.ndarray:
    """From the coordinates under transform node `source` to those under `target` (4, 4); None is the world."""
    for transform in (source, target):
        bent = _non_linear(transform, name)
        if bent:
            raise InputError(bent)
    matrix = vtk.vtkMatrix4x4()
    if source is not target:
        slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(source, target, matrix)
    return as_array(matrix)


def non_linear_obstacle(node: Any) -> str:
    """What to say of a node under a transform that no matrix describes; "" where there is none."""
    return _non_linear(node.GetParentTransformNode(), node.GetName())


def _non_linear(transform: Optional[Any], name: str) -> str:
    if transform is None or transform.IsTransformToWorldLinear():
        return ""
    return _(
        "{name}: stands under the non-linear transform {transform}. Harden it (Data module, right click on the "
        "transform) and try again."
    ).format(name=name, transform=transform.GetName())


def has_plain_voxels(volume_node: Any) -> bool:
    """Whether a volume node holds voxels, of one value each."""
    image = volume_node.GetImageData()
    scalars = image.GetPointData().GetScalars() if image else None
    return scalars is not None and scalars.GetNumberOfTuples() > 0 and scalars.GetNumberOfComponents() == 1


def as_array(matrix: vtk.vtkMatrix4x4) -> np.ndarray:
    """VTK's matrix as an array (4, 4)."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def as_vtk_matrix(matrix: np.ndarray) -> vtk.vtkMatrix4x4:
    """A (4, 4) array as VTK's matrix."""
    result = vtk.vtkMatrix4x4()
    result.DeepCopy(matrix.ravel())
    return result


# --- segmentations out ----------------------------------------------------------------------------------------------


def check_output_node(node: Any) -> None:
    """Raises InputError for a segmentation node that `add_segmentation` could not write to; call before a long run."""
    if not node.IsA("vtkMRMLSegmentationNode"):
        raise InputError(
            _("{name}: not a segmentation. Choose another output or let a new one be made.").format(name=node.GetName())
        )
    matrix_between(node.GetParentTransformNode(), None, node.GetName())
    segmentation = node.GetSegmentation()
    if segmentation.GetNumberOfSegments() and segmentation.GetSourceRepresentationName() != labelmap_name():
        raise InputError(
            _(
                "{name}: its segments are {kind}s, and voxels would be turned into such. Choose "
                "another output or let a new one be made."
            ).format(name=node.GetName(), kind=segmentation.GetSourceRepresentationName().lower())
        )


def add_segmentation(
    labels: np.ndarray,
    reference_node: Any,
    *,
    output_node: Optional[Any] = None,
    segments: str = "labels",
    provenance: Optional[Mapping[str, str]] = None,
    name: str = "",
) -> Any:
    """Puts a label map on the voxel grid of `reference_node` into its scene; returns the segmentation node.

    labels: (D, H, W), 0 background, 1 NCR, 2 ED, 3 ET. segments: "labels" = NCR, ED, ET in one layer, "regions" = WT,
    TC, ET overlapping in three. provenance becomes node attributes that start with `ATTRIBUTE_PREFIX`.
    output_node: an existing segmentation; segments of an earlier result in it are replaced, all others are kept.
    Without one, a new node called `name` (default: the reference's name + " tumour") is made.
    If anything fails, every node made here is removed, and `output_node` is as it was.
    Raises InputError (see `check_output_node`), OutputError when a node has left the scene, ValueError for labels that
    do not fit the reference.
    """
    if segments not in STRUCTURES:
        raise ValueError(f"segments must be 'labels' or 'regions', not {segments!r}")
    for node in filter(None, (reference_node, output_node)):
        if node.GetScene() is None:
            raise OutputError(
                _("{name}: was removed from the scene meanwhile; the result has no place to go.").format(
                    name=node.GetName()
                )
            )
    labels = _labels_on(reference_node, labels)
    if output_node is not None:
        check_output_node(output_node)
    with all_or_nothing(reference_node.GetScene(), output_node):
        node = output_node or _new_node(reference_node, name or f"{reference_node.GetName()} tumour")
        made = _fill(node, labels, reference_node, STRUCTURES[segments])
        _set_provenance(node, provenance or {})
        node.SetAttribute(SEGMENTS_MADE, json.dumps(made))
    return node


@contextmanager
def all_or_nothing(scene: Any, output_node: Optional[Any] = None) -> Iterator[None]:
    """If what is done inside fails, every node that it added to `scene` goes, and `output_node` is as it was."""
    before = set(_node_ids(scene))
    restore = _restorer(output_node) if output_node is not None else None
    try:
        yield
    except BaseException:
        if restore is not None:
            restore()
        for node_id in _node_ids(scene):
            if node_id not in before:
                scene.RemoveNode(scene.GetNodeByID(node_id))
        raise


def _labels_on(reference_node: Any, labels: np.ndarray) -> np.ndarray:
    labels = require_labels(labels)
    shape = reference_node.GetImageData().GetDimensions()[::-1] if reference_node.GetImageData() else None
    if labels.shape != shape:
        raise ValueError(
            _("the labels' grid {shape} is not that of {name} ({other})").format(
                shape=labels.shape, name=reference_node.GetName(), other=shape
            )
        )
    return labels


def _new_node(reference_node: Any, name: str) -> Any:
    scene = reference_node.GetScene()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", scene.GenerateUniqueName(name))
    node.CreateDefaultDisplayNodes()
    node.SetAndObserveTransformNodeID(reference_node.GetTransformNodeID())
    return node


def _node_ids(scene: Any) -> list[str]:
    return [scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())]


def _restorer(node: Any) -> Callable[[], None]:
    """A function that gives the segmentation node back its segments, attributes and reference geometry of now."""
    segmentation = node.GetSegmentation()
    ids = segment_ids(segmentation)
    earlier = {key: _segment_copy(segmentation.GetSegment(key)) for key in earlier_result(node)}
    attributes = {key: node.GetAttribute(key) for key in node.GetAttributeNames()}
    role = node.GetReferenceImageGeometryReferenceRole()
    reference_id = node.GetNodeReferenceID(role)
    parameter = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    geometry = segmentation.GetConversionParameter(parameter)

    def restore() -> None:
        for segment_id in segment_ids(segmentation):
            if segment_id in earlier or segment_id not in ids:
                segmentation.RemoveSegment(segment_id)
        for segment_id, segment in earlier.items():
            segmentation.AddSegment(segment, segment_id)
        segmentation.ReorderSegments(ids)
        node.SetNodeReferenceID(role, reference_id)
        segmentation.SetConversionParameter(parameter, geometry)
        for key in {*node.GetAttributeNames(), *attributes}:
            node.SetAttribute(key, attributes.get(key))

    return restore


def _segment_copy(segment: Any) -> Any:
    """A segment with a label map of its own; removing a segment erases its voxels from the label map that it shares.

    `vtkSegmentation.DeepCopy` is no help: it loses the voxels where Slicer's converters are not registered.
    """
    labelmap = slicer.vtkOrientedImageData()
    labelmap.DeepCopy(segment.GetRepresentation(labelmap_name()))
    if labelmap.GetPointData().GetScalars() is not None:
        voxels = vtk_to_numpy(labelmap.GetPointData().GetScalars())
        voxels[voxels != segment.GetLabelValue()] = 0
    copy = slicer.vtkSegment()
    copy.DeepCopyMetadata(segment)
    copy.AddRepresentation(labelmap_name(), labelmap)
    return copy


def segment_ids(segmentation: Any) -> list[str]:
    """The ids of a `vtkSegmentation`'s segments, in their order."""
    return [segmentation.GetNthSegmentID(index) for index in range(segmentation.GetNumberOfSegments())]


def structure_of(segment: Any) -> str:
    """The key of the label or region that a segment of this module stands for; "" for any other segment."""
    key = vtk.reference("")
    return str(key) if segment.GetTag(SEGMENT_TAG, key) else ""


def earlier_result(node: Any) -> list[str]:
    """Ids of the segments that a new result in this node replaces: made here by this module, and not renamed since.

    A copy of one, here or in another node, and one that was given a name of its own are the user's work.
    """
    try:
        made = set(json.loads(node.GetAttribute(SEGMENTS_MADE) or "[]"))
    except (ValueError, TypeError):
        return []
    segmentation = node.GetSegmentation()
    titles = {structure.key: structure.title for structure in (*LABELS, *REGIONS)}
    found = []
    for segment_id in segment_ids(segmentation):
        segment = segmentation.GetSegment(segment_id)
        key = structure_of(segment)
        if segment_id in made and key and segment.GetName() == titles.get(key):
            found.append(segment_id)
    return found


def _fill(node: Any, labels: np.ndarray, reference_node: Any, structures: Sequence[Structure]) -> list[str]:
    to_node = matrix_between(
        reference_node.GetParentTransformNode(), node.GetParentTransformNode(), reference_node.GetName()
    )
    matrix = to_node @ ijk_to_ras(reference_node)
    segmentation = node.GetSegmentation()
    segmentation.SetSourceRepresentationName(labelmap_name())
    for segment_id in earlier_result(node):
        segmentation.RemoveSegment(segment_id)
    node.SetReferenceImageGeometryParameterFromVolumeNode(reference_node)
    # Labels exclude one another and share one label map; nested regions overlap and need one each.
    shared = oriented_labelmap(labels, matrix) if structures is LABELS else None
    made = []
    for structure in structures:
        if shared is not None:
            labelmap, value = shared, structure.labels[0]
        else:
            labelmap, value = oriented_labelmap(np.isin(labels, structure.labels).astype(np.uint8), matrix), 1
        segment = segment_of(structure)
        segment.SetLabelValue(value)
        segment.AddRepresentation(labelmap_name(), labelmap)
        taken = segmentation.GetSegment(structure.key) is not None
        segment_id = segmentation.GenerateUniqueSegmentID(structure.key) if taken else structure.key
        if not segmentation.AddSegment(segment, segment_id):
            raise OutputError(
                _("{name}: Slicer refused the segment {key}; see its error log.").format(
                    name=node.GetName(), key=structure.key
                )
            )
        made.append(segment_id)
    return made


def segment_of(structure: Structure) -> Any:
    """A new `vtkSegment` with the name, colour and terminology of `structure`, without voxels."""
    segment = slicer.vtkSegment()
    segment.SetName(structure.title)
    segment.SetNameAutoGenerated(False)
    segment.SetColor(*structure.colour)
    segment.SetColorAutoGenerated(False)
    segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), structure.terminology)
    segment.SetTag(SEGMENT_TAG, structure.key)
    return segment


def oriented_labelmap(labels: np.ndarray, ijk_to_node: np.ndarray) -> Any:
    """(D, H, W) uint8 as `vtkOrientedImageData` with the given matrix from voxel indices to the node's coordinates."""
    depth, height, width = labels.shape
    image = slicer.vtkOrientedImageData()
    image.SetExtent(0, width - 1, 0, height - 1, 0, depth - 1)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    image.SetImageToWorldMatrix(as_vtk_matrix(ijk_to_node))
    vtk_to_numpy(image.GetPointData().GetScalars())[:] = labels.ravel()
    return image


def _set_provenance(node: Any, provenance: Mapping[str, str]) -> None:
    """Stale entries of an earlier result go, so that attributes never mix two runs."""
    for key in list(node.GetAttributeNames()):
        if key.startswith(ATTRIBUTE_PREFIX):
            node.RemoveAttribute(key)
    for key, text in provenance.items():
        node.SetAttribute(ATTRIBUTE_PREFIX + key.replace(" ", "_"), str(text))


def labelmap_name() -> str:
    """What Slicer calls the representation of segments as voxels."""
    return slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
