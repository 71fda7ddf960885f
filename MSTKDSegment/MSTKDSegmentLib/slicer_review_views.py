"""What the slice views show of a review: a place, errors or one of the two segmentations, or both side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import slicer

from .slicer_scene import as_array, nodes_of

ERRORS, PREDICTION, TRUTH = "errors", "prediction", "truth"
LABEL_MAP = "vtkMRMLLabelMapVolumeNode"
SIDE_BY_SIDE = 5641
"""Number of the layout that is registered here; Slicer's own are below 1000."""
LEFT = ("ReviewPredictionAxial", "ReviewPredictionCoronal")
RIGHT = ("ReviewTruthAxial", "ReviewTruthCoronal")
_ORIENTATIONS = ("Axial", "Coronal")
_COLOURS = ("#F34A33", "#6EB04B")  # Slicer's for these orientations


# --- a place ----------------------------------------------------------------------------------------------------------


def jump(scene: Any, ras: Sequence[float]) -> None:
    """All slice views to the point (RAS mm in the world), and the crosshair on it.

    A view that would not show the point is centred on it; the others keep their field of view.
    """
    for node in nodes_of(scene, "vtkMRMLSliceNode"):
        if _in_field(node, ras):
            node.JumpSliceByOffsetting(*ras)
        else:
            node.JumpSliceByCentering(*ras)
    crosshair = scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    if crosshair is not None:
        crosshair.SetCrosshairRAS(*ras)
        if crosshair.GetCrosshairMode() == slicer.vtkMRMLCrosshairNode.NoCrosshair:
            crosshair.SetCrosshairMode(slicer.vtkMRMLCrosshairNode.ShowBasic)  # its middle is left free


def _in_field(slice_node: Any, ras: Sequence[float]) -> bool:
    to_slice = np.linalg.inv(as_array(slice_node.GetSliceToRAS()))
    half = np.array(slice_node.GetFieldOfView()[:2]) / 2 + np.zeros(2)
    centre = np.array(slice_node.GetXYZOrigin()[:2])
    place = to_slice @ np.array([*ras, 1.0])
    return bool((np.abs(place[:2] - centre) <= half).all())


# --- one of the segmentations, or the errors --------------------------------------------------------------------------


def show(scene: Any, what: str, shown: dict[str, Optional[Any]]) -> None:
    """Show one of `shown` (by `ERRORS`, `PREDICTION`, `TRUTH`) and hide the others; label maps in all slice views."""
    label: Optional[Any] = None
    for name, node in shown.items():
        if node is None:
            continue
        if node.IsA("vtkMRMLSegmentationNode"):
            display = displayed(node)
            if display is not None:
                display.SetVisibility(name == what)
        elif name == what:
            label = node
    ours = {node.GetID() for node in shown.values() if node is not None}
    for composite in nodes_of(scene, "vtkMRMLSliceCompositeNode"):
        if label is not None:
            composite.SetLabelVolumeID(label.GetID())
        elif composite.GetLabelVolumeID() in ours:
            composite.SetLabelVolumeID(None)


def displayed(node: Any) -> Any:
    """The display node of a segmentation, made where there is none yet."""
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
    return node.GetDisplayNode()


def background_of(scene: Any, *segmentations: Optional[Any]) -> Optional[Any]:
    """The volume that lies under the segmentations in the views, else the one that one of them was drawn on."""
    for composite in nodes_of(scene, "vtkMRMLSliceCompositeNode"):
        volume = scene.GetNodeByID(composite.GetBackgroundVolumeID() or "")
        if volume is not None and not volume.IsA("vtkMRMLLabelMapVolumeNode"):
            return volume
    for node in segmentations:
        if node is not None and node.IsA("vtkMRMLSegmentationNode"):
            volume = node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())
            if volume is not None:
                return volume
    return next((one for one in nodes_of(scene, "vtkMRMLScalarVolumeNode") if not one.IsA(LABEL_MAP)), None)


# --- side by side -----------------------------------------------------------------------------------------------------


def side_by_side(
    scene: Any, prediction: Any, truth: Any, background: Optional[Any], hidden: Sequence[Any] = ()
) -> dict[str, Any]:
    """Prediction left and ground truth right in linked views, on the same background; `hidden` segmentations nowhere.

    Gives what `restore` needs, as plain data: the layout and the looks of before.
    """
    layout = scene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    before: dict[str, Any] = {"layout": layout.GetViewArrangement(), "displays": {}}
    if not layout.IsLayoutDescription(SIDE_BY_SIDE):
        layout.AddLayoutDescription(SIDE_BY_SIDE, _description())
    layout.SetViewArrangement(SIDE_BY_SIDE)
    for node, tags in ((prediction, LEFT), (truth, RIGHT)):
        _fill_views(scene, tags, background, node)
        if node.IsA("vtkMRMLSegmentationNode"):
            display = displayed(node)
            before["displays"][display.GetID()] = _looks(display)
            display.SetVisibility(True)
            _only_in(display, [f"vtkMRMLSliceNode{tag}" for tag in tags])
    for node in hidden:
        display = displayed(node)
        before["displays"][display.GetID()] = _looks(display)
        display.SetVisibility(False)
    return before


def _fill_views(scene: Any, tags: Sequence[str], background: Optional[Any], node: Any) -> None:
    label = node.GetID() if node.IsA(LABEL_MAP) else None
    for composite in nodes_of(scene, "vtkMRMLSliceCompositeNode"):
        if composite.GetLayoutName() in tags:
            composite.SetLinkedControl(False)  # else it would pass its label map on to its neighbours
            composite.SetBackgroundVolumeID(background.GetID() if background is not None else None)
            composite.SetForegroundVolumeID(None)
            composite.SetLabelVolumeID(label)
            composite.SetLinkedControl(True)
            composite.SetHotLinkedControl(True)


def _looks(display: Any) -> dict[str, Any]:
    return {"visible": bool(display.GetVisibility()), "views": list(display.GetViewNodeIDs() or ())}


def _only_in(display: Any, views: Sequence[str]) -> None:
    display.RemoveAllViewNodeIDs()
    for view in views:
        display.AddViewNodeID(view)


def restore(scene: Any, before: dict[str, Any]) -> None:
    """Undo `side_by_side`: the looks of what is still there, and the layout unless another was chosen meanwhile."""
    for identifier, looks in before.get("displays", {}).items():
        display = scene.GetNodeByID(identifier)
        if display is not None:
            display.SetVisibility(looks["visible"])
            _only_in(display, looks["views"])
    layout = scene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    if layout is not None and "layout" in before and layout.GetViewArrangement() == SIDE_BY_SIDE:
        layout.SetViewArrangement(before["layout"])


def is_side_by_side(scene: Any) -> bool:
    """Whether the layout of now is ours."""
    layout = scene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    return layout is not None and layout.GetViewArrangement() == SIDE_BY_SIDE


def knows_side_by_side(scene: Any) -> bool:
    """Whether this Slicer knows what our layout is, as it does from the first time that it was shown."""
    layout = scene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    return layout is not None and bool(layout.IsLayoutDescription(SIDE_BY_SIDE))


def _description() -> str:
    def view(tag: str, index: int, label: str) -> str:
        return (
            f'<item><view class="vtkMRMLSliceNode" singletontag="{tag}">'
            f'<property name="orientation" action="default">{_ORIENTATIONS[index]}</property>'
            f'<property name="viewlabel" action="default">{label}</property>'
            f'<property name="viewcolor" action="default">{_COLOURS[index]}</property>'
            "</view></item>"
        )

    rows = [f"{view(LEFT[n], n, 'P')}{view(RIGHT[n], n, 'GT')}" for n in range(len(LEFT))]
    items = "".join(f'<item><layout type="horizontal">{row}</layout></item>' for row in rows)
    return f'<layout type="vertical">{items}</layout>'
