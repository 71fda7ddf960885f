"""Review in Slicer, without Qt: what is in nodes of the scene as the engine's label maps, and a comparison of two.

The voxels are copied in the main thread; everything that takes time is done with the copies in a thread.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import SimpleITK as sitk
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from .background import WAIT_S, Background
from .errors import Cancelled, InputError, MSTKDError
from .review.comparison import Review, Reviewed, review
from .review.label_maps import LabelMap, Segment, label_map_from_segments, label_map_from_values
from .review.places import Place, worst_places
from .slicer_scene import (
    as_array,
    has_plain_voxels,
    ijk_to_ras,
    image_of,
    labelmap_name,
    matrix_between,
    non_linear_obstacle,
    voxels_of,
)
from .translation import _

SAME_LATTICE = 1e-4
"""In voxels: how far the corners of two label maps of one segmentation may be off whole voxels of each other."""


# --- nodes in ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """Voxels (D, H, W) and the matrix (4, 4) from their indices to RAS mm in the world."""

    voxels: np.ndarray = field(repr=False)
    to_world: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Taken:
    """A copy of what a node holds: one layer of label values, or segments, each a value in one of the layers."""

    name: str
    layers: tuple[Layer, ...]
    segments: Optional[tuple[tuple[int, int, Segment], ...]] = None
    """(layer, value, all that is known of the segment but its mask); None for label values."""

    def label_map(self) -> LabelMap:
        """In our labels. Raises InputError where it is not known what the values or the segments are."""
        if self.segments is None:
            (layer,) = self.layers
            return label_map_from_values(layer.voxels, _grid(layer, self.name), self.name)
        layers, used = self._on_one_lattice()
        found = [
            Segment(one.name, layers[index] == value, one.identifier, one.colour, one.tags)
            for index, value, one in self.segments
        ]
        return label_map_from_segments(found, _grid(used, self.name), self.name)

    def _on_one_lattice(self) -> tuple[list[np.ndarray], Layer]:
        """All layers on the smallest grid, of the first layer's voxels, that holds them all; and that grid."""
        filled = [one for one in self.layers if one.voxels.size]
        if not filled:  # nothing is drawn in any segment
            empty = Layer(np.zeros((1, 1, 1), np.uint8), np.eye(4))
            return [empty.voxels for _one in self.layers], empty
        first = np.linalg.inv(filled[0].to_world)
        corners = np.concatenate([_corners(one, first @ one.to_world) for one in filled])
        low, high = np.floor(corners.min(0) + SAME_LATTICE), np.ceil(corners.max(0) - SAME_LATTICE)
        start = np.eye(4)
        start[:3, 3] = low
        shape = tuple(int(side) + 1 for side in (high - low)[::-1])
        union = Layer(np.zeros(shape, np.uint8), filled[0].to_world @ start)
        return [_laid(one, union, self.name) for one in self.layers], union


def take(node: Any) -> Taken:
    """Copy a segmentation node or a label map volume. Raises InputError for a node that is neither; see `obstacle`."""
    problem = obstacle(node)
    if problem:
        raise InputError(problem)
    name, to_world = node.GetName(), matrix_between(node.GetParentTransformNode(), None, node.GetName())
    if not node.IsA("vtkMRMLSegmentationNode"):
        return Taken(name, (Layer(voxels_of(node).copy(), to_world @ ijk_to_ras(node)),))
    layers: list[Layer] = []
    seen: list[Any] = []
    segments = []
    for identifier, segment in segments_of(node):
        labelmap = segment.GetRepresentation(labelmap_name())
        if labelmap not in seen:
            seen.append(labelmap)
            layers.append(_layer(labelmap, to_world))
        known = Segment(
            segment.GetName() or "", np.zeros((0, 0, 0), bool), identifier, segment.GetColor(), _terminology(segment)
        )
        segments.append((seen.index(labelmap), segment.GetLabelValue(), known))
    return Taken(name, tuple(layers), tuple(segments))


def obstacle(node: Any) -> str:
    """Why `node` cannot be compared, with what to do; "" where its kind and place are right."""
    name, bent = node.GetName(), non_linear_obstacle(node)
    if bent:
        return bent
    if node.IsA("vtkMRMLSegmentationNode"):
        return _obstacle_of_segments(node)
    if not node.IsA("vtkMRMLLabelMapVolumeNode"):
        return _("{name}: neither a segmentation nor a label map. Choose one of these.").format(name=name)
    if not has_plain_voxels(node):
        return _("{name}: holds no voxels of one value each. Load it again or choose another.").format(name=name)
    return ""


def _obstacle_of_segments(node: Any) -> str:
    name = node.GetName()
    if not node.GetSegmentation().GetNumberOfSegments():
        return _("{name}: has no segments. Choose a segmentation of the tumour.").format(name=name)
    if any(one.GetRepresentation(labelmap_name()) is None for _id, one in segments_of(node)):
        return _(
            "{name}: its segments have no voxels. Make a binary label map of them (Segmentations module, "
            "Representations)."
        ).format(name=name)
    return ""


def segments_of(node: Any) -> list[tuple[str, Any]]:
    """(id, segment) of a segmentation node, in their order."""
    segmentation = node.GetSegmentation()
    ids = [segmentation.GetNthSegmentID(index) for index in range(segmentation.GetNumberOfSegments())]
    return [(key, segmentation.GetSegment(key)) for key in ids]


def state_of(node: Any) -> tuple[Any, ...]:
    """Differs from an earlier one where voxels, segments' names or the place of `node` changed since; looks do not."""
    place: tuple[Any, ...] = ()
    transform = node.GetParentTransformNode()
    if transform is not None:
        matrix = vtk.vtkMatrix4x4()
        transform.GetMatrixTransformToWorld(matrix)
        place = tuple(as_array(matrix).ravel().tolist())
    if node.IsA("vtkMRMLSegmentationNode"):
        voxels: tuple[Any, ...] = tuple(
            (key, one.GetName(), one.GetLabelValue(), _voxels_time(one.GetRepresentation(labelmap_name())))
            for key, one in segments_of(node)
        )
    else:
        voxels = (_voxels_time(node.GetImageData()), *ijk_to_ras(node).ravel().tolist())
    return (node.GetName(), transform.GetID() if transform is not None else "", place, voxels)


def voxels_changed_at(node: Any) -> int:
    """When voxels of `node`, of any of its segments, changed last, on VTK's clock."""
    if not node.IsA("vtkMRMLSegmentationNode"):
        return _voxels_time(node.GetImageData())
    return max((_voxels_time(one.GetRepresentation(labelmap_name())) for _, one in segments_of(node)), default=0)


def _voxels_time(image: Any) -> int:
    scalars = image.GetPointData().GetScalars() if image is not None else None
    return int(scalars.GetMTime()) if scalars is not None else 0


def _layer(labelmap: Any, to_world: np.ndarray) -> Layer:
    matrix, start = vtk.vtkMatrix4x4(), np.eye(4)
    labelmap.GetImageToWorldMatrix(matrix)
    scalars = labelmap.GetPointData().GetScalars()
    if scalars is None or not scalars.GetNumberOfTuples():
        return Layer(np.zeros((0, 0, 0), np.uint8), np.eye(4))
    start[:3, 3] = labelmap.GetExtent()[::2]
    voxels = vtk_to_numpy(scalars).reshape(labelmap.GetDimensions()[::-1]).copy()
    return Layer(voxels, to_world @ as_array(matrix) @ start)


def _terminology(segment: Any) -> str:
    text = vtk.reference("")
    return str(text) if segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), text) else ""


def _grid(layer: Layer, name: str) -> sitk.Image:
    return image_of(np.zeros(layer.voxels.shape, np.uint8), layer.to_world, name)


def _corners(layer: Layer, matrix: np.ndarray) -> np.ndarray:
    """(8, 3) indices (i, j, k) of the corner voxels' centres of `layer`, taken through `matrix`."""
    last = np.array(layer.voxels.shape[::-1]) - 1
    corners = np.array([(i, j, k) for i in (0, last[0]) for j in (0, last[1]) for k in (0, last[2])], float)
    return np.asarray(corners @ matrix[:3, :3].T + matrix[:3, 3])


def _laid(layer: Layer, union: Layer, name: str) -> np.ndarray:
    """The voxels of `layer` on the grid of `union`: moved by whole voxels where that fits, else the nearest ones."""
    if not layer.voxels.size:
        return np.zeros(union.voxels.shape, np.uint8)
    offset = np.linalg.inv(union.to_world) @ layer.to_world
    moved = _corners(layer, offset) - _corners(layer, np.eye(4))
    whole = np.round(moved[0])
    if np.abs(moved - whole).max() > SAME_LATTICE:
        image = image_of(layer.voxels, layer.to_world, name)
        return sitk.GetArrayFromImage(
            sitk.Resample(image, _grid(union, name), sitk.Transform(), sitk.sitkNearestNeighbor, 0)
        )
    result = np.zeros(union.voxels.shape, layer.voxels.dtype)
    x, y, z = (int(one) for one in whole)
    depth, height, width = layer.voxels.shape
    result[z : z + depth, y : y + height, x : x + width] = layer.voxels
    return result


# --- the comparison ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compared:
    """A prediction and a ground truth (None: volumes only) of the scene, compared.

    places: by the order that they are ranked in, the worst first; {} without a ground truth.
    """

    prediction: Any
    truth: Optional[Any]
    review: Review
    places: dict[str, tuple[Place, ...]]
    states: tuple[Any, ...]
    seconds: float

    @property
    def reviewed(self) -> Reviewed:
        """The prediction on the common grid, with its scores and error maps."""
        return self.review.predictions[0]

    @property
    def nodes(self) -> tuple[Any, ...]:
        """The nodes that were compared."""
        return (self.prediction,) if self.truth is None else (self.prediction, self.truth)

    def require_nodes(self) -> None:
        """Raises Cancelled where one of the nodes has left the scene."""
        for node in self.nodes:
            if node.GetScene() is None:
                raise Cancelled(
                    _("{name} was removed from the scene; the comparison was dropped.").format(name=node.GetName())
                )

    def stale(self) -> str:
        """What to tell where one of the nodes changed or went since; "" where all is as it was compared."""
        for node, state in zip(self.nodes, self.states):
            if node.GetScene() is None:
                return _("{name} was removed; compare again.").format(name=node.GetName())
            if state_of(node) != state:
                return _("{name} has changed since; compare again.").format(name=node.GetName())
        return ""


class Comparing:
    """A comparison that goes on in a thread. Raises InputError at once where a node cannot be compared.

    Poll it from a timer; when it has ended, `take` gives the outcome.
    """

    def __init__(self, prediction: Any, truth: Optional[Any] = None) -> None:
        nodes = require_pair(prediction, truth)
        self._prediction, self._truth = prediction, truth
        self._states = tuple(map(state_of, nodes))
        copies = [take(node) for node in nodes]
        self._began = time.monotonic()
        self._background = Background(lambda: _compare(copies))

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began

    def poll(self, wait: float = WAIT_S) -> bool:
        """True while it goes on."""
        return self._background.poll(wait)

    def take(self) -> Compared:
        """The outcome. Raises what the comparison raised, and Cancelled where a node has left the scene meanwhile."""
        if self._background.error is not None:
            raise self._background.error
        found, places = self._background.outcome
        compared = Compared(self._prediction, self._truth, found, places, self._states, self.seconds)
        compared.require_nodes()
        return compared


def compare(prediction: Any, truth: Optional[Any] = None) -> Compared:
    """As `Comparing`, and wait: for scripts. Raises InputError, GeometryError."""
    task = Comparing(prediction, truth)
    while task.poll():
        pass
    return task.take()


def require_pair(prediction: Any, truth: Optional[Any]) -> list[Any]:
    """The nodes to compare. Raises InputError where one cannot be, or both are the same."""
    problem = pair_problem(prediction, truth)
    if problem:
        raise InputError(problem)
    return [prediction] if truth is None else [prediction, truth]


def pair_problem(prediction: Optional[Any], truth: Optional[Any]) -> str:
    """Why these two cannot be compared, in one line; "" where nothing is in the way."""
    if prediction is None:
        return _("Choose the prediction to review.")
    if prediction is truth:
        return _("{name} is chosen as prediction and as ground truth; choose another.").format(name=truth.GetName())
    return next(filter(None, (obstacle(one) for one in (prediction, truth) if one is not None)), "")


def _compare(copies: Sequence[Taken]) -> tuple[Review, dict[str, tuple[Place, ...]]]:
    maps = [copy.label_map() for copy in copies]
    found = review({copies[0].name: maps[0]}, maps[1] if len(maps) > 1 else None)
    if found.ground_truth is None:
        return found, {}
    one = found.predictions[0]
    regions = [key for key in found.known if key in maps[0].known]
    further = worst_places(one.labels, found.ground_truth, found.image, "distance", regions)
    return found, {"volume": tuple(one.places), "distance": tuple(further)}


def failure(error: Exception) -> str:
    """An error in one line, for the panel."""
    if isinstance(error, MSTKDError):
        return str(error)
    return _("Unexpected {kind}: {error}. The error log has the details.").format(
        kind=type(error).__name__, error=error
    )
