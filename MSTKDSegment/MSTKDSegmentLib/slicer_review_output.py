"""What a comparison leaves in the scene: a table of figures and a segmentation of right and wrong; and its texts."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from .errors import OutputError
from .metrics import Status
from .regions import REGIONS, bounding_box
from .review.places import INVENTED, MISSED, RIGHT, Place
from .review.scores import RegionReview
from .segmentation_io import atomic_output
from .slicer_review import Compared
from .slicer_scene import ATTRIBUTE_PREFIX, LPS_FROM_RAS, all_or_nothing, as_vtk_matrix, labelmap_name, segment_ids
from .translation import _

MADE = f"{ATTRIBUTE_PREFIX}review"
"""Attribute of the nodes that are made here: the name that they were given. One that was renamed is the user's, and
neither replaced nor removed any more.
"""
WISHED = f"{ATTRIBUTE_PREFIX}reviewName"
"""The same before it was made unique."""

PAIR = ("MSTKDSegment.reviewPrediction", "MSTKDSegment.reviewTruth")
"""Node reference roles from a table of figures to what was compared."""

FILL_OPACITY = 0.55
# Okabe and Ito's colours, told apart by the colour-blind: bluish green, orange, sky blue.
COLOURS = {
    RIGHT: (0.0, 158 / 255, 115 / 255),
    INVENTED: (230 / 255, 159 / 255, 0.0),
    MISSED: (86 / 255, 180 / 255, 233 / 255),
}
SHORT = {RIGHT: "TP", INVENTED: "FP", MISSED: "FN"}


def error_titles() -> dict[int, str]:
    """What the segments of right and wrong are called."""
    return {
        RIGHT: _("TP: in both"),
        INVENTED: _("FP: in the prediction only"),
        MISSED: _("FN: in the ground truth only"),
    }


# --- the table --------------------------------------------------------------------------------------------------------


def figures(compared: Compared) -> list[list[str]]:
    """Header and rows of texts: a figure in each row, a region in each column; volumes only without a ground truth."""
    scores = {score.region: score for score in compared.reviewed.scores}
    if compared.truth is None:
        volumes = compared.reviewed.volumes_ml
        keys = [structure.key for structure in REGIONS if structure.key in volumes]
        return [["", *keys], [_("Prediction (ml)"), *(f"{volumes[key]:.2f}" for key in keys)]]
    rows = [[title, *(text(score) for score in scores.values())] for title, text in _rows()]
    return [["", *scores], *rows]


def _rows() -> list[tuple[str, Any]]:
    return [
        (_("Dice"), lambda one: f"{one.score.dice:.3f}"),
        (_("HD95 (mm)"), _distance),
        (_("NSD at 1 mm"), lambda one: f"{one.score.nsd1:.3f}"),
        (_("NSD at 2 mm"), lambda one: f"{one.score.nsd2:.3f}"),
        (_("Ground truth (ml)"), lambda one: f"{one.reference_ml:.2f}"),
        (_("Prediction (ml)"), lambda one: f"{one.prediction_ml:.2f}"),
        (_("Volume error (ml)"), lambda one: f"{one.prediction_ml - one.reference_ml:+.2f}"),
        (_("Volume error (%)"), lambda one: _percent(one.volume_error_percent)),
        (_("Sensitivity"), lambda one: f"{one.sensitivity:.3f}"),
        (_("Precision"), lambda one: f"{one.precision:.3f}"),
        (_("Lesions found"), lambda one: f"{one.lesions.found} / {one.lesions.reference}"),
        (_("False lesions"), lambda one: f"{one.lesions.false}"),
        (_("Dice by lesion"), lambda one: f"{one.lesions.dice:.3f}"),
        (_("Empty masks"), lambda one: status_text(one.score.status)),
    ]


def _distance(one: RegionReview) -> str:
    """Where one mask is empty there is no distance: the figure is the penalty that the policy sets."""
    return f"{one.score.hd95:.1f}" + ("*" if one.score.status in (Status.MISSED, Status.FP_ONLY) else "")


def _percent(value: Optional[float]) -> str:
    return "-" if value is None else f"{value:+.1f}"


def status_text(status: str) -> str:
    """Which masks are empty, in words."""
    return {
        Status.OK: _("none"),
        Status.BOTH_EMPTY: _("both"),
        Status.MISSED: _("prediction"),
        Status.FP_ONLY: _("ground truth"),
    }[status]


def tab_separated(rows: Sequence[Sequence[str]]) -> str:
    """For the clipboard: a spreadsheet takes it as cells."""
    return "".join("\t".join(row) + "\n" for row in rows)


def write_csv(compared: Compared, path: Path) -> None:
    """One line for each region, full numbers, with the names of what was compared; `path` ends with .csv.

    Raises OutputError.
    """
    said = {"prediction": compared.prediction.GetName()}
    if compared.truth is not None:
        said["ground_truth"] = compared.truth.GetName()
        rows: list[dict[str, Any]] = [{**said, **score.to_dict()} for score in compared.reviewed.scores]
    else:
        volumes = compared.reviewed.volumes_ml
        rows = [{**said, "region": one.key, "prediction_ml": volumes[one.key]} for one in REGIONS if one.key in volumes]
    if not rows:
        raise OutputError(_("The two have no region in common: there is nothing to write."))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_output(path, overwrite=True, ending=".csv") as temporary:
        temporary.write_bytes(text.getvalue().encode("utf-8"))


def put_table(compared: Compared, scene: Any, earlier: Optional[Any] = None) -> Any:
    """The figures as a table node; `earlier`, if it is one of ours, is filled anew."""
    name = _title(compared, _("figures"))
    rows = figures(compared)
    with all_or_nothing(scene):
        table = earlier if is_ours(earlier, scene) else None
        if table is None:
            table = scene.AddNewNodeByClass("vtkMRMLTableNode")
        _name(table, name)
        filled = vtk.vtkTable()
        for index, title in enumerate(rows[0]):
            column = vtk.vtkStringArray()
            column.SetName(title or _("Figure"))
            for row in rows[1:]:
                column.InsertNextValue(row[index])
            filled.AddColumn(column)
        table.SetLocked(False)
        table.SetAndObserveTable(filled)
        for title in rows[0]:
            table.SetColumnTitle(title or _("Figure"), title or _("Figure"))
        table.SetUseColumnTitleAsColumnHeader(True)
        table.SetLocked(True)
        for role, node in zip(PAIR, (compared.prediction, compared.truth)):
            table.SetNodeReferenceID(role, node.GetID() if node is not None else None)
    return table


def table_of(table: Optional[Any], prediction: Optional[Any], truth: Optional[Any]) -> Optional[Any]:
    """`table`, if it holds the figures of this very pair; None else."""
    if table is None or prediction is None:
        return None
    return table if [table.GetNodeReference(role) for role in PAIR] == [prediction, truth] else None


def is_ours(node: Optional[Any], scene: Any) -> bool:
    """Whether `node` was made here, is still in `scene`, and was not made somebody's own: by a name, or by segments."""
    if node is None or node.GetScene() is not scene or node.GetAttribute(MADE) != node.GetName():
        return False
    return not node.IsA("vtkMRMLSegmentationNode") or set(segment_ids(node.GetSegmentation())) <= set(SHORT.values())


def _name(node: Any, name: str) -> None:
    if node.GetAttribute(MADE) is None or node.GetAttribute(WISHED) != name:
        node.SetName(node.GetScene().GenerateUniqueName(name))
        node.SetAttribute(MADE, node.GetName())
        node.SetAttribute(WISHED, name)


def _title(compared: Compared, what: str = "") -> str:
    prediction = compared.prediction.GetName()
    if compared.truth is None:
        return f"{prediction} {what}".strip()
    pair = _("{prediction} against {truth}").format(prediction=prediction, truth=compared.truth.GetName())
    return f"{pair} {what}".strip()


# --- right and wrong --------------------------------------------------------------------------------------------------


def put_overlay(compared: Compared, region: str, scene: Any, earlier: Optional[Any] = None) -> Any:
    """Right and wrong in `region` as a segmentation node with the segments TP, FP and FN, in world coordinates.

    `earlier`, if it is one of ours, is filled anew. Raises OutputError where the comparison says nothing of the region.
    """
    errors = compared.reviewed.errors.get(region)
    if errors is None:
        raise OutputError(_("There is nothing to compare in {region}: choose another.").format(region=region))
    name = _title(compared)
    with all_or_nothing(scene):
        node = earlier if is_ours(earlier, scene) else None
        if node is None:
            node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
            node.CreateDefaultDisplayNodes()
        _name(node, name)
        node.SetAndObserveTransformNodeID(None)
        _fill(node, errors, compared.review.image)
    return node


def _fill(node: Any, errors: np.ndarray, image: Any) -> None:
    segmentation = node.GetSegmentation()
    was = node.StartModify()
    for key in segment_ids(segmentation):
        segmentation.RemoveSegment(key)
    segmentation.SetSourceRepresentationName(labelmap_name())
    labelmap = _labelmap(errors, image)
    for value, title in error_titles().items():
        segment = slicer.vtkSegment()
        segment.SetName(title)
        segment.SetNameAutoGenerated(False)
        segment.SetColor(*COLOURS[value])
        segment.SetColorAutoGenerated(False)
        segment.SetLabelValue(value)
        segment.AddRepresentation(labelmap_name(), labelmap)
        if not segmentation.AddSegment(segment, SHORT[value]):
            raise OutputError(
                _("{name}: Slicer refused the segment {key}; see its error log.").format(
                    name=node.GetName(), key=SHORT[value]
                )
            )
    node.EndModify(was)
    display = node.GetDisplayNode()
    if display is not None:
        for key in SHORT.values():
            display.SetSegmentOpacity2DFill(key, FILL_OPACITY)
        display.SetVisibility3D(False)


def _labelmap(errors: np.ndarray, image: Any) -> Any:
    """Of the box around what is marked only: Slicer's views are quicker with less."""
    box = bounding_box(errors > 0) or (slice(0, 1),) * 3
    (z, y, x) = box
    matrix = np.eye(4)
    columns = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    matrix[:3, :3], matrix[:3, 3] = LPS_FROM_RAS @ columns, LPS_FROM_RAS @ np.array(image.GetOrigin())
    labelmap = slicer.vtkOrientedImageData()
    labelmap.SetExtent(x.start, x.stop - 1, y.start, y.stop - 1, z.start, z.stop - 1)
    labelmap.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    labelmap.SetImageToWorldMatrix(as_vtk_matrix(matrix))
    vtk_to_numpy(labelmap.GetPointData().GetScalars())[:] = errors[box].ravel()
    return labelmap


# --- places -----------------------------------------------------------------------------------------------------------


def place_text(place: Place, number: int, total: int) -> str:
    """Such as "3 of 12: FN in ET, 0.9 ml, reaches 6 mm"."""
    said: Mapping[str, Any] = {
        "number": number,
        "total": total,
        "kind": SHORT[place.kind],
        "region": place.region,
        "volume": f"{place.volume_ml:.2f}" if place.volume_ml < 1 else f"{place.volume_ml:.1f}",
        "distance": f"{place.distance_mm:.0f}",
    }
    if not np.isfinite(place.distance_mm):
        other = _("the prediction has no {region}") if place.kind == MISSED else _("the ground truth has no {region}")
        return _("{number} of {total}: {kind} in {region}, {volume} ml, {other}").format(
            **said, other=other.format(region=place.region)
        )
    return _("{number} of {total}: {kind} in {region}, {volume} ml, reaches {distance} mm").format(**said)
