"""The case as nodes of Slicer's scene: volumes, and what lies over them. Only the event loop's thread comes here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np
import SimpleITK as sitk
import slicer

from ..regions import LABELS, bounding_box
from ..review.places import INVENTED, MISSED, RIGHT
from ..slicer_output import scalar_volume
from ..slicer_scene import LPS_FROM_RAS, labelmap_name, oriented_labelmap, voxels_of
from ..slicer_scene import ijk_to_ras as as_ijk_to_ras
from ..volume_checks import voxel_columns
from ..volumes import Volume

PREDICTION, TRUTH, ERRORS = "prediction", "truth", "errors"
FILLED, OUTLINE = "filled", "outline"
# (label value, id, colour) of the segments. The errors are in colours of Okabe and Ito, which the colour-blind tell
# apart: bluish green, orange, sky blue.
STRUCTURES = tuple((item.labels[0], item.key, item.colour) for item in LABELS)
ERROR_KINDS = (
    (RIGHT, "right", (0.0, 158 / 255, 115 / 255)),
    (INVENTED, "invented", (230 / 255, 159 / 255, 0.0)),
    (MISSED, "missed", (86 / 255, 180 / 255, 233 / 255)),
)
# The ground truth's outlines are drawn in paler colours than the prediction's, so that both are seen where they cross.
PALE = 0.55
SURFACE_OPACITY = {"ED": 0.25, "NCR": 0.6, "ET": 1.0, "right": 0.15, "invented": 1.0, "missed": 1.0}
# What is right lies behind what is wrong.
QUIET_ERRORS = {"right": 0.4}
OUTLINE_PIXELS = {PREDICTION: 2, TRUTH: 2, ERRORS: 1}
# Of the voxels above zero, those of the first window (bright vessels are beyond it) and of the whole range.
WINDOW_PERCENTILES = (0.5, 99.2)
RANGE_PERCENTILES = (0.0, 99.98)
MARGIN_VOXELS = 2


def ijk_to_ras(image: sitk.Image) -> np.ndarray:
    """The matrix (4, 4) from voxel indices (i, j, k) of an image to RAS mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = LPS_FROM_RAS @ voxel_columns(image)
    matrix[:3, 3] = LPS_FROM_RAS @ np.array(image.GetOrigin())
    return matrix


def window_of(array: np.ndarray) -> tuple[float, float, float, float]:
    """(lowest, highest, low, high) of grey values: the range that can be chosen, and a window that shows the brain."""
    inside = array[array > 0] if array.min() == 0 else array.ravel()
    if not inside.size:
        return 0.0, 1.0, 0.0, 1.0
    some = inside[:: max(1, inside.size // 200_000)]
    low, high = (float(value) for value in np.percentile(some, WINDOW_PERCENTILES))
    lowest, highest = (float(value) for value in np.percentile(some, RANGE_PERCENTILES))
    lowest, low = min(lowest, 0.0 if array.min() == 0 else lowest), min(low, high - 1e-6)
    if array.min() == 0:
        low = 0.6 * low  # the background stays black and the darkest tissue does not
    return lowest, max(highest, high), low, high


class Scene:
    """Nodes of the open case in `scene`, Slicer's."""

    def __init__(self, scene: Any) -> None:
        self.scene = scene
        self.volumes: dict[str, Any] = {}
        self.windows: dict[str, tuple[float, float, float, float]] = {}
        self._shown: dict[str, Any] = {}
        self._pending_surface: set[str] = set()

    # --- volumes ---

    def load(self, volumes: Mapping[str, Volume]) -> None:
        """Replace everything by these volumes, by sequence."""
        for role in list(self._shown):
            self.clear(role)
        for node in self.volumes.values():
            self._remove(node)
        self.volumes, self.windows = {}, {}
        for name, volume in volumes.items():
            array = sitk.GetArrayViewFromImage(volume.image)
            node = scalar_volume(array, ijk_to_ras(volume.image), None, name, self.scene)
            self.windows[name] = window_of(array)
            self.volumes[name] = node
            self.set_window(name, *self.windows[name][2:])

    def set_window(self, name: str, low: float, high: float) -> None:
        """Show grey values from `low` (black) to `high` (white)."""
        display = self.volumes[name].GetDisplayNode()
        display.SetAutoWindowLevel(False)
        display.SetWindowLevelMinMax(low, max(high, low + 1e-3))

    def window(self, name: str) -> tuple[float, float]:
        """The grey values that are black and white now, also after the mouse changed them."""
        display = self.volumes[name].GetDisplayNode()
        return float(display.GetWindowLevelMin()), float(display.GetWindowLevelMax())

    # --- label maps ---

    def show(self, role: str, labels: np.ndarray, image: sitk.Image) -> None:
        """Put `labels` (D, H, W), the structures' or an error map's, on the grid of `image` in place of the earlier."""
        self.clear(role)
        node = self.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", role)
        node.CreateDefaultDisplayNodes()
        self._shown[role] = node
        box = bounding_box(labels > 0)
        if box is not None:
            self._fill(role, node, labels, image, box)
        if role == PREDICTION and TRUTH in self._shown:
            # What comes last is drawn on top: the outlines of the ground truth.
            truth = self._shown[TRUTH]
            display = truth.GetDisplayNode()
            self._remove(truth)
            self.scene.AddNode(display)
            self.scene.AddNode(truth)
            truth.SetAndObserveDisplayNodeID(display.GetID())

    def _fill(self, role: str, node: Any, labels: np.ndarray, image: sitk.Image, box: Sequence[slice]) -> None:
        box = tuple(slice(max(s.start - MARGIN_VOXELS, 0), s.stop + MARGIN_VOXELS) for s in box)
        matrix = ijk_to_ras(image)
        matrix[:3, 3] += matrix[:3, :3] @ [side.start for side in box[::-1]]
        labelmap = oriented_labelmap(np.ascontiguousarray(labels[box]), matrix)
        segmentation, display = node.GetSegmentation(), node.GetDisplayNode()
        segmentation.SetSourceRepresentationName(labelmap_name())
        for value, key, colour in ERROR_KINDS if role == ERRORS else STRUCTURES:
            segment = slicer.vtkSegment()
            segment.SetName(key)
            segment.SetColor(*(_pale(colour) if role == TRUTH else colour))
            segment.SetLabelValue(value)
            segment.AddRepresentation(labelmap_name(), labelmap)
            segmentation.AddSegment(segment, key)
            opacity = 0.2 if role == TRUTH else SURFACE_OPACITY[key]
            display.SetSegmentOpacity3D(key, opacity)
            if key in QUIET_ERRORS:
                display.SetSegmentOpacity2DFill(key, QUIET_ERRORS[key])
                display.SetSegmentOpacity2DOutline(key, 0.0)
        display.SetSliceIntersectionThickness(OUTLINE_PIXELS[role])
        self._pending_surface.add(role)

    def clear(self, role: str) -> None:
        """Remove what is shown as `role`."""
        node = self._shown.pop(role, None)
        self._pending_surface.discard(role)
        if node is not None:
            self._remove(node)

    def style(self, role: str, *, visible: bool, filled: bool, opacity: float, hidden: Sequence[str] = ()) -> None:
        """How `role` looks: filled or outlines only, 0 to 1 opaque, without the segments `hidden`."""
        node = self._shown.get(role)
        if node is None:
            return
        display = node.GetDisplayNode()
        modified = display.StartModify()
        display.SetVisibility(visible)
        display.SetVisibility2DFill(filled)
        display.SetVisibility2DOutline(not filled or role == ERRORS)
        display.SetOpacity2DFill(opacity)
        display.SetOpacity2DOutline(opacity**0.5)  # thin lines need more of it to be seen
        display.SetVisibility3D(True)
        segmentation = node.GetSegmentation()
        for index in range(segmentation.GetNumberOfSegments()):
            key = segmentation.GetNthSegmentID(index)
            display.SetSegmentVisibility(key, key not in hidden)
        display.EndModify(modified)

    def make_surface(self, role: str) -> None:
        """The surfaces for the 3-D view, unless they are there."""
        if role in self._pending_surface:
            self._pending_surface.discard(role)
            self._shown[role].CreateClosedSurfaceRepresentation()

    def _remove(self, node: Any) -> None:
        display: Optional[Any] = node.GetDisplayNode()
        self.scene.RemoveNode(node)
        if display is not None and display.GetScene() is not None:
            self.scene.RemoveNode(display)

    # --- a place ---

    def centre(self) -> tuple[float, float, float]:
        """RAS mm of the middle of the ground truth, else of the prediction, else of the first volume."""
        for role in (TRUTH, PREDICTION):
            node = self._shown.get(role)
            if node is not None and node.GetSegmentation().GetNumberOfSegments():
                return _middle(node)
        first = next(iter(self.volumes.values()), None)
        return (0.0, 0.0, 0.0) if first is None else _middle(first)

    def box(self) -> tuple[np.ndarray, np.ndarray]:
        """Two corners (RAS mm) of the box around what the volumes show, that is around the brain where it is alone."""
        corners = [corner for node in self.volumes.values() for corner in _corners(node)]
        return (
            (np.min(corners, axis=0), np.max(corners, axis=0)) if corners else (np.full(3, -100.0), np.full(3, 100.0))
        )

    def mark(self, ras: Sequence[float]) -> None:
        """The crosshair to this point; `show_crosshair` says whether it is seen."""
        self.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode").SetCrosshairRAS(*ras)

    def show_crosshair(self, shown: bool) -> None:
        """Whether the slices show where the crosshair is."""
        modes = slicer.vtkMRMLCrosshairNode
        crosshair = self.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        crosshair.SetCrosshairMode(modes.ShowIntersection if shown else modes.NoCrosshair)


def _pale(colour: Sequence[float]) -> tuple[float, ...]:
    return tuple(channel + PALE * (1 - channel) for channel in colour)


def _corners(node: Any) -> np.ndarray:
    """(8, 3) RAS mm: the corners of the box around the voxels that are not zero."""
    found = bounding_box(voxels_of(node) != 0) or tuple(slice(0, side) for side in voxels_of(node).shape)
    ends = [(side.start, side.stop - 1) for side in found[::-1]]
    indices = np.array([(i, j, k, 1) for i in ends[0] for j in ends[1] for k in ends[2]])
    return np.asarray((indices @ as_ijk_to_ras(node).T)[:, :3])


def _middle(node: Any) -> tuple[float, float, float]:
    bounds = [0.0] * 6
    node.GetRASBounds(bounds)
    return tuple((bounds[2 * axis] + bounds[2 * axis + 1]) / 2 for axis in range(3))  # type: ignore[return-value]
