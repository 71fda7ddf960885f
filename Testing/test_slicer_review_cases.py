"""A worklist in a scene: cases loaded and taken away again, what was worked on, views, and verdicts."""

from __future__ import annotations

import numpy as np
import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
vtk = pytest.importorskip("vtk")
import SimpleITK as sitk  # noqa: E402 - needs slicer
from MSTKDSegmentLib.errors import InputError, OutputError  # noqa: E402
from MSTKDSegmentLib.review.verdicts import Verdict, read_verdicts  # noqa: E402
from MSTKDSegmentLib.segmentation_io import write_segmentation  # noqa: E402
from MSTKDSegmentLib.slicer_review import compare  # noqa: E402
from MSTKDSegmentLib.slicer_review_cases import default_verdicts_file, next_open  # noqa: E402
from MSTKDSegmentLib.slicer_review_choices import OVERLAY, PREDICTION, TABLE, TRUTH  # noqa: E402
from MSTKDSegmentLib.slicer_review_output import put_overlay, put_table  # noqa: E402
from MSTKDSegmentLib.slicer_review_reading import Reading  # noqa: E402
from MSTKDSegmentLib.slicer_review_views import (  # noqa: E402
    LEFT,
    RIGHT,
    SIDE_BY_SIDE,
    background_of,
    is_side_by_side,
    jump,
    restore,
    show,
    side_by_side,
)
from MSTKDSegmentLib.slicer_scene import labelmap_name  # noqa: E402
from review_nodes import image_of, label_volume, predicted_labels, segmentation, truth_labels, write_worklist  # noqa: E402
from scene_nodes import make_transform, make_volume, node_ids, rotation, segment_ids, shift  # noqa: E402


def run(steps) -> list:
    return list(steps)


@pytest.fixture
def reading(scene, tmp_path):
    """Three cases, the first loaded."""
    scene.RegisterNodeClass(slicer.vtkMRMLScriptedModuleNode())
    result = Reading(scene)
    run(result.open_steps(str(write_worklist(tmp_path / "cases")), ""))
    run(result.load_steps(0))
    return result


def names(scene) -> list:
    return sorted(node.GetName() for node in (scene.GetNodeByID(key) for key in node_ids(scene)) if node.GetName())


def chosen(reading) -> tuple:
    return tuple(
        node.GetName() if node is not None else None
        for node in (reading.choices.get(PREDICTION), reading.choices.get(TRUTH))
    )


# --- cases ------------------------------------------------------------------------------------------------------------


def test_a_case_is_loaded_with_all_that_belongs_to_it(scene, reading):
    assert sorted(reading.case.images) == ["FLAIR", "T1Gd"]
    assert reading.case.background is reading.case.images["T1Gd"]
    assert chosen(reading) == ("A prediction", "A ground truth")
    assert reading.case.notices == []
    assert reading.position() == "1 of 3, 0 with a verdict: A"
    image = sitk.ReadImage(str(reading.items[0].images["T1Gd"]))
    node = reading.case.images["T1Gd"]
    assert np.allclose(node.GetSpacing(), image.GetSpacing())
    assert node.GetName() == "A T1Gd"
    found = compare(reading.choices.get(PREDICTION), reading.choices.get(TRUTH))
    assert found.reviewed.scores[0].score.dice == pytest.approx(2 * 1680 / (1680 + 1740))
    assert found.reviewed.volumes_ml["ET"] == pytest.approx(248 * 2.4e-3)  # the place is right, too: no voxel is lost


def test_the_next_case_takes_away_what_was_loaded_and_nothing_else(scene, reading):
    mine, _array = make_volume(scene, name="my volume")
    found = compare(reading.choices.get(PREDICTION), reading.choices.get(TRUTH))
    reading.choices.choose(TABLE, put_table(found, scene))
    reading.choices.choose(OVERLAY, put_overlay(found, "WT", scene))
    assert "A prediction against A ground truth" in names(scene)
    run(reading.load_steps(1))
    assert chosen(reading) == ("B prediction", "B ground truth")
    assert not [name for name in names(scene) if name.startswith("A ")]
    assert mine.GetScene() is scene
    count = len(node_ids(scene))
    run(reading.load_steps(2))
    run(reading.load_steps(1))
    assert len(node_ids(scene)) == count  # no storage or display node is left behind either
    assert (reading.choices.get(TABLE), reading.choices.get(OVERLAY)) == (None, None)


def test_what_the_reader_made_own_stays(scene, reading):
    found = compare(reading.choices.get(PREDICTION), reading.choices.get(TRUTH))
    overlay = put_overlay(found, "WT", scene)
    reading.choices.choose(OVERLAY, overlay)
    overlay.SetName("kept")
    reading.unload()
    assert "kept" in names(scene)
    assert reading.position() == "3 cases, 0 with a verdict"


def test_work_on_a_loaded_node_is_noticed(scene, reading):
    prediction = reading.choices.get(PREDICTION)
    assert reading.unsaved() == []
    prediction.GetDisplayNode().SetVisibility(False)  # looks are no work
    assert reading.unsaved() == []
    labelmap = prediction.GetSegmentation().GetSegment("ET").GetRepresentation(labelmap_name())
    labelmap.GetPointData().GetScalars().SetTuple1(0, 3)
    labelmap.GetPointData().GetScalars().Modified()
    assert reading.unsaved() == ["A prediction"]
    reading.case.images["FLAIR"].SetAndObserveTransformNodeID(make_transform(scene, shift(1, 0, 0)).GetID())
    assert reading.unsaved() == ["A FLAIR", "A prediction"]


def test_work_that_is_in_the_nodes_file_is_saved(scene, reading, tmp_path):
    prediction = reading.choices.get(PREDICTION)
    labelmap = prediction.GetSegmentation().GetSegment("ET").GetRepresentation(labelmap_name())
    scalars = labelmap.GetPointData().GetScalars()
    scalars.Modified()
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    prediction.SetAndObserveStorageNodeID(storage.GetID())
    assert reading.unsaved() == ["A prediction"]  # no file yet
    storage.SetFileName(str(tmp_path / "corrected.seg.nrrd"))
    assert storage.WriteData(prediction)
    assert reading.unsaved() == []
    scalars.Modified()
    assert reading.unsaved() == ["A prediction"]
    assert storage.WriteData(prediction)
    assert reading.unsaved() == []
    prediction.SetName("another")  # a file does not hold that
    assert reading.unsaved() == ["another"]


def test_a_scene_that_is_added_leaves_work_what_it_is(scene, reading):
    """As the panel does it after each import."""
    prediction = reading.choices.get(PREDICTION)
    labelmap = prediction.GetSegmentation().GetSegment("ET").GetRepresentation(labelmap_name())
    labelmap.GetPointData().GetScalars().Modified()
    reading.settle()
    assert reading.unsaved() == ["A prediction"]
    run(reading.load_steps(1))
    assert reading.unsaved() == []


def test_slicers_own_files_keep_their_names_and_know_their_file(scene, tmp_path):
    folder = tmp_path / "cases" / "P"
    folder.mkdir(parents=True)
    volume = image_of(np.random.default_rng(0).integers(1, 99, truth_labels().shape).astype(np.int16))
    sitk.WriteImage(volume, str(folder / "P_flair.nii.gz"))
    sitk.WriteImage(image_of((truth_labels() > 0).astype(np.uint8)), str(folder / "P_seg.nii.gz"))
    (tmp_path / "net").mkdir()
    path = write_segmentation(tmp_path / "net" / "P.seg.nrrd", predicted_labels(), volume, segments="regions")
    reading = Reading(scene)
    run(reading.open_steps(str(tmp_path / "cases"), str(tmp_path / "net")))
    run(reading.load_steps(0))
    prediction, truth = reading.choices.get(PREDICTION), reading.choices.get(TRUTH)
    assert prediction.GetSegmentation().GetSegment("WT").GetName() == "Whole tumour (WT)"
    assert prediction.GetStorageNode().GetFileName() == str(path)
    assert segment_ids(truth) == ["WT"]  # a mask of the whole tumour is told so, and only that is compared
    assert "mask of the whole tumour" in reading.case.notices[0]
    found = compare(prediction, truth)
    assert [one.region for one in found.reviewed.scores] == ["WT"]
    assert found.reviewed.scores[0].score.dice == pytest.approx(2 * 1680 / (1680 + 1740))
    assert reading.subject() == ("P", "net")


def test_bad_files_and_missing_predictions_are_told_and_the_rest_is_loaded(scene, tmp_path):
    path = write_worklist(tmp_path / "cases")
    (tmp_path / "cases" / "A" / "A_flair.nii.gz").unlink()
    (tmp_path / "cases" / "A" / "A_truth.nii.gz").write_bytes(b"no image")
    text = path.read_text().replace("B/B_found.nii.gz", "")
    path.write_text(text)
    reading = Reading(scene)
    run(reading.open_steps(str(path), ""))
    run(reading.load_steps(0))
    assert chosen(reading) == ("A prediction", None)
    assert len(reading.case.notices) == 2
    assert "A_flair.nii.gz: no such file" in reading.case.notices[0]
    assert "A_truth.nii.gz" in reading.case.notices[1]
    run(reading.load_steps(1))
    assert chosen(reading) == (None, "B ground truth")
    assert reading.case.notices == ["B: has no prediction. Choose the folder of predictions, or segment it."]
    with pytest.raises(InputError):
        run(reading.open_steps(str(tmp_path / "nowhere"), ""))
    assert len(reading.items) == 3  # what was open stays


def test_cancelling_takes_back_what_was_loaded(scene, reading):
    run(reading.load_steps(1))
    steps = reading.load_steps(2)
    for _step in range(2):
        next(steps)
    steps.close()
    assert not [name for name in names(scene) if name[:2] in ("B ", "C ")]
    assert chosen(reading) == (None, None)


def test_a_scene_that_was_saved_knows_the_case_and_what_is_new(scene, reading):
    """As the panel does it after loading: what came with the scene is as it was saved."""
    again = Reading(scene)
    again.settle()
    run(again.open_steps(reading.choices.text("worklist"), ""))
    assert again.index == 0
    assert again.unsaved() == []
    again.choices.get(TRUTH).SetName("corrected")
    assert again.unsaved() == ["corrected"]
    run(again.load_steps(1))
    assert not [name for name in names(scene) if name.startswith("A ")]


def test_a_closed_scene_ends_the_reading(scene, reading):
    scene.Clear(0)
    reading.close()
    assert (reading.position(), reading.choices.loaded, reading.unsaved()) == ("", [], [])


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_verdicts_are_appended_beside_the_worklist_and_counted(scene, reading, tmp_path):
    path = tmp_path / "cases" / "list-verdicts.csv"
    assert reading.verdicts_file == path
    reading.choices.say("reader", "AB")
    given = reading.give("minor edits", "rim of ET,\nfrontal")
    assert given.seconds < 60
    assert reading.position() == "1 of 3, 1 with a verdict: A"
    assert reading.next_open() == 1
    reading.give("accept")
    assert [one.verdict for one in read_verdicts(path)] == ["minor edits", "accept"]
    assert reading.last_verdict().verdict == "accept"
    run(reading.load_steps(1))
    assert reading.last_verdict() is None
    reading.give("reject")
    again = Reading(scene)  # after a restart
    run(again.open_steps(reading.choices.text("worklist"), ""))
    assert again.position() == "2 of 3, 2 with a verdict: B"
    (first, *_rest) = read_verdicts(path)
    assert (first.case, first.prediction, first.reader, first.comment) == (
        "A",
        "prediction",
        "AB",
        "rim of ET, frontal",
    )


def test_the_next_open_case_is_looked_for_round_the_end(reading):
    items = reading.items
    said = [Verdict("B", "x", "accept", 1.0), Verdict("C", "x", "accept", 1.0)]
    assert next_open(items, 1, said) == 0
    assert next_open(items, 0, said) == 0
    assert next_open(items, 0, [*said, Verdict("A", "x", "reject", 1.0)]) is None
    assert next_open(items, -1, []) == 0


def test_a_foreign_file_is_never_written_to(reading, tmp_path):
    foreign = tmp_path / "table.csv"
    foreign.write_text("a,b\n1,2\n")
    reading.choices.say("verdictsFile", str(foreign))
    assert "not a table of verdicts" in reading.verdicts_problem()
    assert reading.last_verdict() is None
    with pytest.raises(OutputError):
        reading.give("accept")
    assert foreign.read_text() == "a,b\n1,2\n"


def test_a_verdict_needs_a_prediction_and_a_node_by_itself_is_its_own_case(scene, tmp_path):
    scene.RegisterNodeClass(slicer.vtkMRMLScriptedModuleNode())
    reading = Reading(scene)
    with pytest.raises(InputError, match="Choose the prediction"):
        reading.give("accept")
    reading.choices.choose(PREDICTION, segmentation(scene, predicted_labels(), "FLAIR tumour"))
    assert reading.subject() == ("FLAIR tumour", "FLAIR tumour")
    reading.choices.get(PREDICTION).SetName("FLAIR  tumour\t2 ")  # the file holds it with single blanks
    reading.choices.say("verdictsFile", str(tmp_path / "verdicts.csv"))
    reading.give("accept")
    assert reading.last_verdict().case == "FLAIR tumour 2"


def test_a_verdict_on_what_the_reader_drew_is_on_the_loaded_case(scene, reading):
    run(reading.load_steps(1))
    reading.choices.choose(PREDICTION, segmentation(scene, predicted_labels(), "drawn by hand"))
    assert reading.subject() == ("B", "drawn by hand")
    reading.give("accept")
    assert reading.position() == "2 of 3, 1 with a verdict: B"
    assert reading.last_verdict().case == "B"
    reading.unload()
    assert reading.subject() == ("drawn by hand", "drawn by hand")  # no case is there any more that it could be of


def test_where_verdicts_go_by_themselves(tmp_path, monkeypatch):
    assert default_verdicts_file(str(tmp_path)) == tmp_path / "review-verdicts.csv"
    assert default_verdicts_file(str(tmp_path / "cases.csv")) == tmp_path / "cases-verdicts.csv"
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)
    assert default_verdicts_file("") == tmp_path / "MSTKDSegment-review-verdicts.csv"
    (tmp_path / "Documents").mkdir()
    assert default_verdicts_file("") == tmp_path / "Documents" / "MSTKDSegment-review-verdicts.csv"


# --- views ------------------------------------------------------------------------------------------------------------


def slice_view(scene, name: str, turn=None):
    node = slicer.vtkMRMLSliceNode()
    node.SetLayoutName(name)
    node.SetSingletonTag(name)
    node = scene.AddNode(node)
    node.SetFieldOfView(200, 200, 1)
    node.SetDimensions(100, 100, 1)
    if turn is not None:
        for row in range(3):
            for column in range(3):
                node.GetSliceToRAS().SetElement(row, column, turn[row, column])
    node.UpdateMatrices()
    composite = slicer.vtkMRMLSliceCompositeNode()
    composite.SetLayoutName(name)
    composite.SetSingletonTag(name)
    return node, scene.AddNode(composite)


def place_in(node, ras) -> np.ndarray:
    matrix = vtk.vtkMatrix4x4()
    vtk.vtkMatrix4x4.Invert(node.GetSliceToRAS(), matrix)
    return np.array(matrix.MultiplyPoint((*ras, 1.0)))[:3]


def test_every_view_goes_to_the_place_and_shows_it(scene):
    crosshair = slicer.vtkMRMLCrosshairNode()
    crosshair.SetCrosshairName("default")
    crosshair = scene.AddNode(crosshair)
    views = [slice_view(scene, "Red")[0], slice_view(scene, "Green", rotation(0, 70) @ rotation(2, 30))[0]]
    for ras in ((12.0, -30.0, 44.0), (400.0, -7.0, 5.0)):
        jump(scene, ras)
        for node in views:
            x, y, off = place_in(node, ras)
            assert off == pytest.approx(0, abs=1e-6)
            assert max(abs(x), abs(y)) <= 100  # within the field of view
        assert crosshair.GetCrosshairRAS() == pytest.approx(ras)
    assert crosshair.GetCrosshairMode() != slicer.vtkMRMLCrosshairNode.NoCrosshair
    crosshair.SetCrosshairMode(slicer.vtkMRMLCrosshairNode.ShowSmallBasic)  # as somebody chose it
    jump(scene, (1.0, 2.0, 3.0))
    assert crosshair.GetCrosshairMode() == slicer.vtkMRMLCrosshairNode.ShowSmallBasic


def test_a_view_that_shows_the_place_keeps_its_field_of_view(scene):
    node, _composite = slice_view(scene, "Red")
    jump(scene, (30.0, 20.0, 9.0))
    assert [node.GetSliceToRAS().GetElement(row, 3) for row in (0, 1)] == [0, 0]
    assert node.GetSliceOffset() == pytest.approx(9)


def test_one_thing_is_shown_at_a_time(scene):
    _node, composite = slice_view(scene, "Red")
    found, errors = segmentation(scene, predicted_labels()), segmentation(scene, truth_labels(), "errors")
    truth = label_volume(scene, truth_labels())
    shown = {"errors": errors, "prediction": found, "truth": truth}

    def seen():
        return (
            errors.GetDisplayNode().GetVisibility(),
            found.GetDisplayNode().GetVisibility(),
            composite.GetLabelVolumeID(),
        )

    show(scene, "truth", shown)
    assert seen() == (0, 0, truth.GetID())
    show(scene, "prediction", shown)
    assert seen() == (0, 1, None)
    show(scene, "errors", {**shown, "prediction": None})
    assert seen()[0] == 1
    other = label_volume(scene, truth_labels(), "atlas")
    composite.SetLabelVolumeID(other.GetID())
    show(scene, "prediction", shown)
    assert composite.GetLabelVolumeID() == other.GetID()  # somebody else's


@pytest.fixture
def layout(scene):
    """Slicer's own logic of layouts, which makes the views that a layout describes."""
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene)
    logic = slicer.vtkMRMLLayoutLogic()
    logic.SetMRMLScene(scene)
    node = logic.GetLayoutNode()
    node.SetViewArrangement(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    for name in (*LEFT, *RIGHT):
        composite = slicer.vtkMRMLSliceCompositeNode()
        composite.SetLayoutName(name)
        composite.SetSingletonTag(name)
        scene.AddNode(composite)
    yield node
    logic.SetMRMLScene(None)


def composite_of(scene, name):
    return scene.GetSingletonNode(name, "vtkMRMLSliceCompositeNode")


def test_side_by_side_and_back(scene, layout):
    background, _array = make_volume(scene, name="T1Gd")
    prediction, truth = segmentation(scene, predicted_labels()), label_volume(scene, truth_labels())
    errors = segmentation(scene, truth_labels(), "errors")
    display = prediction.GetDisplayNode()
    display.SetVisibility(False)
    display.AddViewNodeID("vtkMRMLSliceNodeRed")
    before = side_by_side(scene, prediction, truth, background, [errors])
    assert layout.GetViewArrangement() == SIDE_BY_SIDE
    assert is_side_by_side(scene)
    for name, orientation in zip((*LEFT, *RIGHT), ("Axial", "Coronal") * 2):
        view = scene.GetNodeByID(f"vtkMRMLSliceNode{name}")
        assert view.GetOrientation() == orientation
        assert display.IsDisplayableInView(view.GetID()) == (name in LEFT)
        composite = composite_of(scene, name)
        assert composite.GetBackgroundVolumeID() == background.GetID()
        assert composite.GetLabelVolumeID() == (truth.GetID() if name in RIGHT else None)
        assert composite.GetLinkedControl()
    assert (display.GetVisibility(), errors.GetDisplayNode().GetVisibility()) == (1, 0)
    restore(scene, before)
    assert layout.GetViewArrangement() == slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView
    assert list(display.GetViewNodeIDs()) == ["vtkMRMLSliceNodeRed"]
    assert (display.GetVisibility(), errors.GetDisplayNode().GetVisibility()) == (0, 1)


def test_back_after_something_went_or_another_layout_was_chosen(scene, layout):
    prediction, truth = segmentation(scene, predicted_labels()), segmentation(scene, truth_labels(), "truth")
    before = side_by_side(scene, prediction, truth, None)
    scene.RemoveNode(truth.GetDisplayNode())
    layout.SetViewArrangement(slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView)
    restore(scene, before)
    assert layout.GetViewArrangement() == slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView
    assert prediction.GetDisplayNode().GetNumberOfViewNodeIDs() == 0  # seen everywhere again
    restore(scene, {})


def test_the_background_is_what_the_views_show_else_what_was_drawn_on(scene):
    assert background_of(scene) is None
    drawn_on, _array = make_volume(scene, name="T2")
    other, _array = make_volume(scene, name="FLAIR")
    node = segmentation(scene, predicted_labels())
    assert background_of(scene, node) is drawn_on  # the first there is
    node.SetReferenceImageGeometryParameterFromVolumeNode(other)
    assert background_of(scene, node) is other
    _view, composite = slice_view(scene, "Red")
    composite.SetBackgroundVolumeID(drawn_on.GetID())
    assert background_of(scene, node) is drawn_on
