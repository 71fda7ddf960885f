"""Review on Slicer's real MRML: what is compared, what stands in the table, where the errors and the places lie."""

from __future__ import annotations

import csv
import time

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
vtk = pytest.importorskip("vtk")
from MSTKDSegmentLib.errors import Cancelled, GeometryError, InputError, OutputError  # noqa: E402
from MSTKDSegmentLib.review.places import INVENTED, MISSED, RIGHT, Place, error_maps  # noqa: E402
from MSTKDSegmentLib.review.scores import review_scores  # noqa: E402
from MSTKDSegmentLib.slicer_review import Comparing, compare, pair_problem, state_of, take  # noqa: E402
from MSTKDSegmentLib.slicer_review_choices import OVERLAY, PREDICTION, TRUTH, ReviewChoices  # noqa: E402
from MSTKDSegmentLib.slicer_review_output import (  # noqa: E402
    figures,
    is_ours,
    place_text,
    put_overlay,
    put_table,
    tab_separated,
    write_csv,
)
from MSTKDSegmentLib.slicer_scene import labelmap_name, oriented_labelmap  # noqa: E402
from review_nodes import (  # noqa: E402
    SPACING,
    image_of,
    label_volume,
    matrix_of,
    predicted_labels,
    segmentation,
    truth_labels,
)
from scene_nodes import (  # noqa: E402
    REGISTRATION,
    add_user_segment,
    as_vtk,
    binary,
    make_transform,
    make_warp,
    node_ids,
    rotation,
    segment_ids,
    shift,
)


def expected():
    return review_scores(predicted_labels(), truth_labels(), SPACING[::-1])


def dice(compared) -> dict:
    return {one.region: one.score.dice for one in compared.reviewed.scores}


EXPECTED_DICE = {"WT": 2 * 1680 / (1680 + 1740), "TC": 2 * 264 / (264 + 288), "ET": 2 * 248 / (248 + 272)}


# --- nodes in ---------------------------------------------------------------------------------------------------------


def test_the_figures_are_the_engines(scene):
    found = compare(segmentation(scene, predicted_labels()), label_volume(scene, truth_labels()))
    assert found.reviewed.scores == tuple(expected())
    assert dice(found) == pytest.approx(EXPECTED_DICE)  # counted by hand from how the labels are drawn
    assert found.review.notices == ()
    assert {order: len(places) for order, places in found.places.items()} == {"volume": 2, "distance": 2}


@pytest.mark.parametrize("values", [(0, 1, 2, 4), (0, 2, 1, 3)])
def test_label_values_of_other_conventions_are_recognised(scene, values):
    truth = label_volume(scene, truth_labels(), values=values)
    assert dice(compare(segmentation(scene, predicted_labels()), truth)) == pytest.approx(EXPECTED_DICE)


def test_segments_are_recognised_by_name_terminology_and_colour(scene):
    truth = label_volume(scene, truth_labels())
    by_name = segmentation(
        scene, predicted_labels(), names={"NCR": "necrosis", "ED": "SNFH", "ET": "active tumour, enhancing"}
    )
    nameless = {"NCR": "Segment_1", "ED": "Segment_2", "ET": "Segment_3"}
    by_colour = segmentation(scene, predicted_labels(), names=nameless)
    grey = dict.fromkeys(nameless, (0.5, 0.5, 0.5))
    unknown = segmentation(scene, predicted_labels(), names=nameless, colours=grey)
    for node in (by_name, by_colour):
        assert dice(compare(node, truth)) == pytest.approx(EXPECTED_DICE)
    with pytest.raises(InputError, match="rename them"):
        compare(unknown, truth)


def test_a_prediction_drawn_on_another_grid_and_turned_is_compared_where_it_lies(scene):
    """On the truth's lattice, but stored under a transform that its own coordinates undo."""
    transform = make_transform(scene, REGISTRATION)
    matrix = np.linalg.inv(REGISTRATION) @ matrix_of(image_of(predicted_labels()))
    node = segmentation(scene, predicted_labels(), matrix=matrix)
    node.SetAndObserveTransformNodeID(transform.GetID())
    found = compare(node, label_volume(scene, truth_labels()))
    assert dice(found) == pytest.approx(EXPECTED_DICE, abs=1e-6)
    node.SetAndObserveTransformNodeID(None)  # now it lies elsewhere
    assert dice(compare(node, label_volume(scene, truth_labels())))["WT"] < 0.5
    node.SetAndObserveTransformNodeID(make_transform(scene, shift(900, 0, 0)).GetID())
    with pytest.raises(GeometryError, match="lies outside"):
        compare(node, label_volume(scene, truth_labels()))


def test_a_finer_oblique_prediction_agrees_with_its_own_truth(scene):
    """A ball drawn twice on grids that are turned to each other: what is left is the voxels' size."""

    def ball(shape, spacing, centre, matrix):
        index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)[..., ::-1]
        points = index @ matrix[:3, :3].T + matrix[:3, 3]
        return (np.linalg.norm(points - centre, axis=-1) < 12).astype(np.uint8) * 3

    centre = np.array([3.0, -4.0, 10.0])
    coarse = shift(-25, -30, -20) @ np.diag([1.0, 1.1, 2.0, 1.0])
    fine = shift(-20, -25, -18) @ rotation(0, 20) @ rotation(2, 15) @ np.diag([0.7, 0.7, 0.7, 1.0])
    truth = segmentation(scene, ball((40, 60, 60), None, centre, coarse), "truth", matrix=coarse)
    prediction = segmentation(scene, ball((90, 90, 90), None, centre, fine), matrix=fine)
    found = compare(prediction, truth)
    assert found.reviewed.scores[2].score.dice > 0.94
    assert found.reviewed.volumes_ml["ET"] == pytest.approx(4 / 3 * np.pi * 12**3 / 1000, rel=0.02)


def test_segments_in_several_layers_and_cropped_ones_come_together(scene):
    """Each in a box of its own, as the Segment Editor leaves them; the last on another lattice."""
    labels = predicted_labels()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "layers")
    node.GetSegmentation().SetSourceRepresentationName(labelmap_name())
    base = matrix_of(image_of(labels))
    for key, value, low in (("NCR", 1, (8, 10, 11)), ("ED", 2, (4, 1, 6)), ("ET", 3, (6, 8, 9))):
        part = (labels == value)[low[0] :, low[1] :, low[2] :].astype(np.uint8)
        full = oriented_labelmap(part, base)
        matrix, start = vtk.vtkMatrix4x4(), shift(*low[::-1])
        full.SetImageToWorldMatrix(as_vtk(base @ start))
        if key != "ET":  # the same place said by an extent
            full.SetImageToWorldMatrix(as_vtk(base))
            full.SetExtent(*(n for a, b in zip(low[::-1], part.shape[::-1]) for n in (a, a + b - 1)))
        full.GetImageToWorldMatrix(matrix)
        segment = slicer.vtkSegment()
        segment.SetName(key)
        segment.SetLabelValue(1)
        segment.AddRepresentation(labelmap_name(), full)
        node.GetSegmentation().AddSegment(segment, key)
    assert dice(compare(node, label_volume(scene, truth_labels()))) == pytest.approx(EXPECTED_DICE)


def test_an_empty_prediction_misses_everything(scene):
    node = segmentation(scene, np.zeros((2, 2, 2), np.uint8))
    found = compare(node, label_volume(scene, truth_labels()))
    assert {one.score.status for one in found.reviewed.scores} == {"missed"}
    assert place_text(found.places["volume"][0], 1, 3).endswith("the prediction has no WT")


def test_without_a_ground_truth_there_are_volumes_only(scene):
    found = compare(segmentation(scene, predicted_labels()))
    assert figures(found)[1][1:] == ["4.18", "0.63", "0.60"]  # 1740, 264 and 248 voxels of 2.4 mm3
    assert found.places == {}
    table = put_table(found, scene)
    assert (table.GetNumberOfRows(), table.GetNumberOfColumns()) == (1, 4)
    with pytest.raises(OutputError, match="nothing to compare"):
        put_overlay(found, "WT", scene)


def test_regions_that_nobody_drew_are_in_no_table(scene, tmp_path):
    """A prediction of the whole tumour only, alone and against a truth of the enhancing tumour only."""
    whole = segmentation(scene, predicted_labels(), "whole")
    for key in ("NCR", "ET"):
        whole.GetSegmentation().RemoveSegment(key)
    whole.GetSegmentation().GetSegment("ED").SetName("whole tumour")
    alone = compare(whole)
    assert figures(alone)[0] == ["", "WT"]
    write_csv(alone, tmp_path / "alone.csv")
    assert (tmp_path / "alone.csv").read_text().splitlines()[1].startswith("whole,WT,")
    rim = segmentation(scene, truth_labels(), "rim")
    for key in ("NCR", "ED"):
        rim.GetSegmentation().RemoveSegment(key)
    both = compare(whole, rim)
    assert figures(both)[0] == [""]
    assert put_table(both, scene).GetNumberOfColumns() == 1
    with pytest.raises(OutputError, match="no region in common"):
        write_csv(both, tmp_path / "both.csv")
    with pytest.raises(OutputError, match="nothing to compare in WT"):
        put_overlay(both, "WT", scene)


def test_what_cannot_be_compared_is_named(scene):
    good, truth = segmentation(scene, predicted_labels()), label_volume(scene, truth_labels())
    assert pair_problem(good, truth) == ""
    assert pair_problem(good, None) == ""
    assert pair_problem(None, truth) == "Choose the prediction to review."
    assert "choose another" in pair_problem(good, good)
    empty = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "empty")
    assert "has no segments" in pair_problem(good, empty)
    hollow = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "hollow")
    assert "holds no voxels" in pair_problem(hollow, truth)
    volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "T1")
    assert "neither a segmentation nor a label map" in pair_problem(volume, truth)
    surface = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "surface")
    segment = slicer.vtkSegment()
    surface.GetSegmentation().SetSourceRepresentationName("Closed surface")
    segment.AddRepresentation("Closed surface", vtk.vtkPolyData())
    surface.GetSegmentation().AddSegment(segment, "a")
    assert "have no voxels" in pair_problem(surface, truth)
    truth.SetAndObserveTransformNodeID(make_warp(scene).GetID())
    assert "non-linear transform warp" in pair_problem(good, truth)
    with pytest.raises(InputError, match="warp"):
        take(truth)


def test_values_that_are_no_tumours_are_told_by_the_comparison(scene):
    atlas = label_volume(scene, truth_labels(), "atlas", values=(0, 17, 53, 80))
    with pytest.raises(InputError, match="atlas: it holds the values 17, 53, 80"):
        compare(segmentation(scene, predicted_labels()), atlas)


# --- while it goes on -------------------------------------------------------------------------------------------------


def test_voxels_that_change_meanwhile_do_not_count_and_are_told(scene):
    node, truth = segmentation(scene, predicted_labels()), label_volume(scene, truth_labels())
    task = Comparing(node, truth)
    labelmap = node.GetSegmentation().GetSegment("ET").GetRepresentation(labelmap_name())
    labelmap.GetPointData().GetScalars().Fill(0)
    labelmap.GetPointData().GetScalars().Modified()
    while task.poll():
        time.sleep(0.001)
    found = task.take()
    assert dice(found) == pytest.approx(EXPECTED_DICE)
    assert found.stale() == "prediction has changed since; compare again."


def test_looks_do_not_make_a_comparison_stale_but_a_transform_does(scene):
    node, truth = segmentation(scene, predicted_labels()), label_volume(scene, truth_labels())
    found, before = compare(node, truth), state_of(node)
    node.GetDisplayNode().SetVisibility(False)
    node.GetSegmentation().GetSegment("ET").SetColor(0, 0, 1)
    assert (found.stale(), state_of(node)) == ("", before)
    transform = make_transform(scene, REGISTRATION)
    node.SetAndObserveTransformNodeID(transform.GetID())
    assert found.stale()
    moved = state_of(node)
    transform.SetMatrixTransformToParent(as_vtk(shift(1, 2, 3)))
    assert state_of(node) != moved
    scene.RemoveNode(truth)
    node.SetAndObserveTransformNodeID(None)
    assert found.stale() == "truth was removed; compare again."


def test_a_node_that_is_deleted_meanwhile_ends_it(scene):
    node, truth = segmentation(scene, predicted_labels()), label_volume(scene, truth_labels())
    task = Comparing(node, truth)
    scene.RemoveNode(truth)
    while task.poll():
        pass
    with pytest.raises(Cancelled, match="truth was removed"):
        task.take()


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_holds_the_scores_and_is_filled_anew(scene):
    node, truth = segmentation(scene, predicted_labels()), label_volume(scene, truth_labels())
    table = put_table(compare(node, truth), scene)
    assert table.GetName() == "prediction against truth figures"
    cells = {
        table.GetCellText(row, 0): [table.GetCellText(row, column) for column in (1, 2, 3)]
        for row in range(table.GetNumberOfRows())
    }
    scores = expected()
    assert cells["Dice"] == [f"{one.score.dice:.3f}" for one in scores]
    assert cells["HD95 (mm)"] == [f"{one.score.hd95:.1f}" for one in scores]
    assert cells["NSD at 1 mm"] == [f"{one.score.nsd1:.3f}" for one in scores]
    assert cells["NSD at 2 mm"] == [f"{one.score.nsd2:.3f}" for one in scores]
    assert cells["Ground truth (ml)"] == ["4.03", "0.69", "0.65"]
    assert cells["Prediction (ml)"] == ["4.18", "0.63", "0.60"]
    assert cells["Volume error (ml)"] == ["+0.14", "-0.06", "-0.06"]
    assert cells["Sensitivity"] == ["1.000", f"{264 / 288:.3f}", f"{248 / 272:.3f}"]
    assert cells["Precision"] == [f"{1680 / 1740:.3f}", "1.000", "1.000"]
    assert cells["False lesions"] == ["1", "0", "0"]
    assert table.GetColumnTitle("WT") == "WT"
    before = node_ids(scene)
    again = put_table(compare(node, None), scene, table)
    assert again is table
    assert node_ids(scene) == before
    assert table.GetNumberOfRows() == 1
    table.SetName("my table")  # now it is the user's
    assert put_table(compare(node, truth), scene, table) is not table
    assert table.GetNumberOfRows() == 1


def test_the_penalty_for_an_empty_mask_is_marked(scene):
    labels = predicted_labels()
    labels[labels == 3] = 1
    rows = {
        row[0]: row[1:] for row in figures(compare(segmentation(scene, labels), label_volume(scene, truth_labels())))
    }
    assert rows["HD95 (mm)"][2] == "373.1*"
    assert rows["Empty masks"] == ["none", "none", "prediction"]
    assert rows["Volume error (%)"][2] == "-100.0"


def test_copy_and_csv(scene, tmp_path):
    found = compare(segmentation(scene, predicted_labels()), label_volume(scene, truth_labels()))
    lines = tab_separated(figures(found)).splitlines()
    assert lines[0] == "\tWT\tTC\tET"
    assert lines[1] == "Dice\t0.982\t0.957\t0.954"
    path = tmp_path / "figures.csv"
    path.write_text("an older file")
    write_csv(found, path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["region"] for row in rows] == ["WT", "TC", "ET"]
    assert {(row["prediction"], row["ground_truth"]) for row in rows} == {("prediction", "truth")}
    for row, score in zip(rows, expected()):
        assert float(row["dice"]) == score.score.dice  # to the last digit
        assert float(row["hd95_mm"]) == score.score.hd95
    assert [one.name for one in tmp_path.iterdir()] == ["figures.csv"]
    with pytest.raises(OutputError):
        write_csv(found, tmp_path / "figures.csv" / "below.csv")


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("region", ["WT", "TC", "ET"])
def test_right_and_wrong_lie_where_they_are(scene, region):
    transform = make_transform(scene, REGISTRATION)
    node = segmentation(scene, predicted_labels())
    truth = label_volume(scene, truth_labels())
    for one in (node, truth):  # both moved: the errors lie in the world, under no transform
        one.SetAndObserveTransformNodeID(transform.GetID())
    overlay = put_overlay(compare(node, truth), region, scene)
    assert overlay.GetName() == "prediction against truth"
    assert overlay.GetTransformNodeID() is None
    errors = error_maps(predicted_labels(), truth_labels())[region]
    to_world = REGISTRATION @ matrix_of(image_of(errors))
    for key, value in (("TP", RIGHT), ("FP", INVENTED), ("FN", MISSED)):
        mask, matrix = binary(overlay, key)
        index = np.argwhere(mask)[:, ::-1] @ matrix[:3, :3].T + matrix[:3, 3]
        points = np.argwhere(errors == value)[:, ::-1] @ to_world[:3, :3].T + to_world[:3, 3]
        assert len(index) == len(points)
        if len(points):
            assert np.allclose(index, points, atol=1e-4)


def test_the_colours_can_be_told_apart_by_the_colour_blind(scene):
    overlay = put_overlay(
        compare(segmentation(scene, predicted_labels()), label_volume(scene, truth_labels())), "WT", scene
    )
    colours = [
        np.round(255 * np.array(overlay.GetSegmentation().GetSegment(key).GetColor())) for key in segment_ids(overlay)
    ]
    assert [tuple(one.astype(int)) for one in colours] == [(0, 158, 115), (230, 159, 0), (86, 180, 233)]  # Okabe, Ito


def test_an_overlay_replaces_its_own_only(scene):
    found = compare(segmentation(scene, predicted_labels()), label_volume(scene, truth_labels()))
    first = put_overlay(found, "WT", scene)
    before = node_ids(scene)
    assert put_overlay(found, "ET", scene, first) is first
    assert node_ids(scene) == before
    assert segment_ids(first) == ["TP", "FP", "FN"]
    assert not binary(first, "FP")[0].any()
    first.SetName("errors for the tumour board")
    second = put_overlay(found, "WT", scene, first)
    assert second is not first
    add_user_segment(second, "mine")
    assert not is_ours(second, scene)
    third = put_overlay(found, "WT", scene, second)
    assert third is not second
    assert "mine" in segment_ids(second)
    prediction = found.prediction  # a user's node that somebody passes by mistake
    assert put_overlay(found, "WT", scene, prediction) is not prediction
    assert segment_ids(prediction) == ["NCR", "ED", "ET"]


def test_places_are_in_the_coordinates_of_the_views(scene):
    transform = make_transform(scene, REGISTRATION)
    node, truth = segmentation(scene, predicted_labels()), label_volume(scene, truth_labels())
    for one in (node, truth):
        one.SetAndObserveTransformNodeID(transform.GetID())
    found = compare(node, truth)
    invented, missed = found.places["volume"]
    assert [(one.region, one.kind) for one in (invented, missed)] == [("WT", INVENTED), ("TC", MISSED)]
    to_voxel = np.linalg.inv(REGISTRATION @ matrix_of(image_of(truth_labels())))
    i, j, k = (to_voxel @ [*invented.point_ras, 1])[:3]
    assert (16 <= round(k) < 19, 1 <= round(j) < 5, 22 <= round(i) < 27) == (True, True, True)
    assert place_text(invented, 1, 2) == f"1 of 2: FP in WT, 0.14 ml, reaches {invented.distance_mm:.0f} mm"


def test_a_places_words():
    place = Place("ET", MISSED, 1.26, 6.4, (1, 2, 3), (0.0, 0.0, 0.0))
    assert place_text(place, 3, 12) == "3 of 12: FN in ET, 1.3 ml, reaches 6 mm"
    nowhere = Place("TC", INVENTED, 0.9, float("inf"), (1, 2, 3), (0.0, 0.0, 0.0))
    assert place_text(nowhere, 1, 1) == "1 of 1: FP in TC, 0.90 ml, the ground truth has no TC"


# --- choices ----------------------------------------------------------------------------------------------------------


def test_choices_survive_a_saved_scene_and_end_with_it(scene, tmp_path):
    scene.RegisterNodeClass(slicer.vtkMRMLScriptedModuleNode())
    choices = ReviewChoices(scene)
    node, truth = label_volume(scene, predicted_labels(), "P"), label_volume(scene, truth_labels(), "T")
    choices.choose(PREDICTION, node)
    choices.choose(TRUTH, truth)
    choices.set("region", "ET")
    choices.set("order", "distance")
    choices.say("worklist", "/cases/of me.csv")
    choices.looks = {"layout": 3, "displays": {"a": {"visible": True, "views": ["x"]}}}
    choices.loaded = [node]
    path = str(tmp_path / "scene.mrml")
    scene.SetURL(path)
    assert scene.Commit(path)
    scene.Clear(0)
    empty = ReviewChoices(scene)
    assert (empty.get(PREDICTION), empty.region, empty.order, empty.text("worklist")) == (None, "WT", "volume", "")
    assert (empty.loaded, empty.looks) == ([], {})
    scene.SetURL(path)
    scene.Import()
    again = ReviewChoices(scene)
    assert (again.get(PREDICTION).GetName(), again.get(TRUTH).GetName()) == ("P", "T")
    assert (again.region, again.order, again.text("worklist")) == ("ET", "distance", "/cases/of me.csv")
    assert again.looks["displays"]["a"]["views"] == ["x"]
    assert [one.GetName() for one in again.loaded] == ["P"]


def test_choices_of_nodes_that_went_are_none_and_nonsense_is_the_first(scene):
    choices = ReviewChoices(scene)
    node = label_volume(scene, truth_labels())
    choices.choose(OVERLAY, node)
    choices.forget(node)
    assert choices.get(OVERLAY) is None
    choices.choose(TRUTH, node)
    scene.RemoveNode(node)
    assert choices.get(TRUTH) is None
    choices.set("region", "brain")
    choices.say("formerLooks", "{broken")
    assert (choices.region, choices.looks) == ("WT", {})
    assert ReviewChoices(scene).node is choices.node
