"""The Review section over time: real scene and engine; the window's widgets are strict stand-ins."""

from __future__ import annotations

import importlib
import time
import types
from pathlib import Path

import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
from MSTKDSegmentLib.review.verdicts import read_verdicts  # noqa: E402 - needs slicer
from MSTKDSegmentLib.slicer_review_choices import OVERLAY, PREDICTION, TABLE, TRUTH  # noqa: E402
from panel_stand_ins import Application, Clipboard, FileDialog, install_qt, loaded_ui, widgets_of  # noqa: E402
from review_nodes import label_volume, predicted_labels, segmentation, truth_labels, write_worklist  # noqa: E402
from scene_nodes import make_volume, node_ids, segment_ids  # noqa: E402

UI = Path(__file__).parents[1] / "MSTKDSegment" / "Resources" / "UI" / "MSTKDSegmentReview.ui"


@pytest.fixture
def panel(scene, monkeypatch):
    """The section as the module makes it, in a scene with a crosshair and one slice view."""
    install_qt(monkeypatch)
    scene.RegisterNodeClass(slicer.vtkMRMLScriptedModuleNode())
    slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene)
    monkeypatch.setattr(slicer, "mrmlScene", scene, raising=False)
    monkeypatch.setattr(slicer, "app", Application(), raising=False)
    layers, asked = [], []
    for name, value in {
        "childWidgetVariables": lambda widget: widgets_of(widget.file),
        "mainWindow": lambda: None,
        "setSliceViewerLayers": lambda **shown: layers.append(shown),
        "confirmOkCancelDisplay": lambda text, windowTitle="": asked.append(text) or False,  # noqa: N803
    }.items():
        monkeypatch.setattr(slicer.util, name, value, raising=False)
    logic = slicer.vtkMRMLLayoutLogic()
    logic.SetMRMLScene(scene)
    logic.GetLayoutNode().SetViewArrangement(slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView)
    crosshair = slicer.vtkMRMLCrosshairNode()
    crosshair.SetCrosshairName("default")
    scene.AddNode(crosshair)
    result = importlib.import_module("MSTKDSegmentLib.slicer_review_panel").ReviewPanel(
        loaded_ui(UI), "color: #a04000;"
    )
    result.layers, result.asked, result.crosshair, result.layout = layers, asked, crosshair, logic.GetLayoutNode()
    yield result
    result.cleanup()
    logic.SetMRMLScene(None)


def run_to_the_end(panel, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while panel.jobs.running:
        assert time.monotonic() < end
        panel.jobs._ticker.fire()


@pytest.fixture
def pair(panel, scene):
    """Both chosen, as a person does it."""
    prediction, truth = segmentation(scene, predicted_labels()), label_volume(scene, truth_labels())
    panel.ui.predictionSelector.setCurrentNode(prediction)
    panel.ui.truthSelector.setCurrentNode(truth)
    return types.SimpleNamespace(prediction=prediction, truth=truth)


@pytest.fixture
def compared(panel, pair):
    panel.ui.compareButton.click()
    run_to_the_end(panel)
    return pair


@pytest.fixture
def reading(panel, tmp_path):
    """A worklist of three cases, opened through the button."""
    FileDialog.answers = [str(write_worklist(tmp_path / "cases"))]
    panel.ui.worklistFileButton.click()
    run_to_the_end(panel)
    return tmp_path / "cases"


# --- comparing --------------------------------------------------------------------------------------------------------


def test_nothing_can_be_pressed_before_something_is_chosen(panel):
    ui = panel.ui
    for button in ("compare", "stop", "copy", "csv", "previousPlace", "nextPlace", "sideBySide", "restoreLayout"):
        assert not getattr(ui, f"{button}Button").enabled, button
    for button in ("previousCase", "nextCase", "nextOpenCase", "accept", "minor", "major", "reject"):
        assert not getattr(ui, f"{button}Button").enabled, button
    assert not ui.reviewProblemLabel.visible
    assert not ui.verdictLabel.visible


def test_from_click_to_figures_errors_and_places(panel, scene, pair):
    ui = panel.ui
    ui.compareButton.click()
    assert panel.jobs.running
    assert ui.reviewStatusLabel.text == "0:00 comparing"
    assert (ui.compareButton.enabled, ui.stopButton.enabled, ui.predictionSelector.enabled) == (False, True, False)
    run_to_the_end(panel)
    assert ui.reviewStatusLabel.text.startswith("Compared in ")
    assert ui.figuresTableView.table.GetCellText(0, 1) == "0.982"
    assert ui.placeLabel.text == "2 places, the worst first."
    overlay = panel.choices.get(OVERLAY)
    assert segment_ids(overlay) == ["TP", "FP", "FN"]
    assert overlay.GetDisplayNode().GetVisibility()
    assert not pair.prediction.GetDisplayNode().GetVisibility()
    assert (ui.compareButton.enabled, ui.stopButton.enabled) == (True, False)
    before = node_ids(scene)
    ui.compareButton.click()
    run_to_the_end(panel)
    assert node_ids(scene) == before  # the second comparison takes the place of the first


def test_cancelling_leaves_the_scene_as_it_was(panel, scene, pair):
    before = node_ids(scene)
    panel.ui.compareButton.click()
    panel.ui.stopButton.click()
    assert panel.ui.reviewStatusLabel.text == "Cancelled."
    assert not panel.jobs._ticker.active
    assert node_ids(scene) == before
    assert panel.ui.compareButton.enabled


def test_a_node_deleted_meanwhile_ends_the_comparison_with_a_word(panel, scene, pair):
    panel.ui.compareButton.click()
    scene.RemoveNode(pair.truth)
    run_to_the_end(panel)
    assert panel.ui.reviewStatusLabel.text == "truth was removed from the scene; the comparison was dropped."
    assert panel.ui.truthSelector.currentNode() is None
    assert panel.choices.get(TABLE) is None


def test_what_cannot_be_compared_is_said_before_and_what_fails_after(panel, scene, pair):
    ui = panel.ui
    ui.truthSelector.setCurrentNode(pair.prediction)
    assert "chosen as prediction and as ground truth" in ui.reviewProblemLabel.text
    assert not ui.compareButton.enabled
    ui.truthSelector.setCurrentNode(label_volume(scene, truth_labels(), "atlas", values=(0, 17, 53, 80)))
    ui.compareButton.click()
    run_to_the_end(panel)
    assert ui.reviewStatusLabel.text.startswith("atlas: it holds the values 17, 53, 80")
    assert ui.reviewStatusLabel.styleSheet


def test_volumes_only_without_a_ground_truth(panel, scene, pair):
    panel.ui.truthSelector.setCurrentNode(None)
    panel.ui.compareButton.click()
    run_to_the_end(panel)
    assert panel.ui.figuresTableView.table.GetNumberOfRows() == 1
    assert panel.choices.get(OVERLAY) is None
    assert not panel.ui.nextPlaceButton.enabled
    assert not panel.ui.regionComboBox.enabled


def test_another_choice_drops_what_was_said_of_the_former(panel, scene, compared):
    panel.ui.predictionSelector.setCurrentNode(segmentation(scene, truth_labels(), "another"))
    assert panel.compared is None
    assert panel.ui.figuresTableView.table is None
    assert not panel.ui.copyButton.enabled
    assert not panel.ui.placeLabel.visible
    assert not panel.choices.get(OVERLAY).GetDisplayNode().GetVisibility()
    panel.ui.predictionSelector.setCurrentNode(compared.prediction)
    assert panel.ui.figuresTableView.table.GetCellText(0, 1) == "0.982"  # the figures of this pair are still there


def test_a_prediction_that_was_edited_since_is_told_on_return(panel, compared):
    from MSTKDSegmentLib.slicer_scene import labelmap_name

    labelmap = compared.prediction.GetSegmentation().GetSegment("ET").GetRepresentation(labelmap_name())
    labelmap.GetPointData().GetScalars().Modified()
    panel.refresh()
    assert panel.ui.reviewProblemLabel.text == "prediction has changed since; compare again."
    panel.ui.compareButton.click()
    run_to_the_end(panel)
    assert not panel.ui.reviewProblemLabel.visible


def test_copy_and_save(panel, compared, tmp_path):
    panel.ui.copyButton.click()
    assert Clipboard.text.startswith("\tWT\tTC\tET\nDice\t0.982\t0.957\t0.954\n")
    FileDialog.answers = ["", str(tmp_path / "figures.csv")]
    panel.ui.csvButton.click()
    assert not list(tmp_path.iterdir())
    panel.ui.csvButton.click()
    assert (tmp_path / "figures.csv").read_text().startswith("prediction,ground_truth,region,")
    assert FileDialog.confirms == [True, True]
    FileDialog.answers = [str(tmp_path / "figures.csv" / "no folder.csv")]
    panel.ui.csvButton.click()
    assert "could not be written" in panel.ui.reviewStatusLabel.text


# --- where it is wrong ------------------------------------------------------------------------------------------------


def test_places_go_round_and_bring_their_region(panel, compared):
    ui = panel.ui
    ui.nextPlaceButton.click()
    first = panel.crosshair.GetCrosshairRAS()
    assert ui.placeLabel.text.startswith("1 of 2: FP in WT, 0.14 ml")
    ui.nextPlaceButton.click()
    assert ui.placeLabel.text.startswith("2 of 2: FN in TC, 0.06 ml")
    assert ui.regionComboBox.currentIndex == 1
    assert panel.crosshair.GetCrosshairRAS() != first
    ui.nextPlaceButton.click()
    assert panel.crosshair.GetCrosshairRAS() == first
    assert ui.regionComboBox.currentIndex == 0
    ui.previousPlaceButton.click()
    assert ui.placeLabel.text.startswith("2 of 2")
    ui.orderComboBox.currentIndex = 1
    assert ui.placeLabel.text == "2 places, the worst first."
    assert panel.choices.order == "distance"
    ui.previousPlaceButton.click()
    assert ui.placeLabel.text.startswith("2 of 2")


def test_what_is_shown_and_of_which_region(panel, compared):
    ui, overlay = panel.ui, panel.choices.get(OVERLAY)
    ui.showComboBox.currentIndex = 1
    assert compared.prediction.GetDisplayNode().GetVisibility()
    assert not overlay.GetDisplayNode().GetVisibility()
    ui.regionComboBox.currentIndex = 2
    assert panel.choices.region == "ET"
    assert overlay.GetDisplayNode().GetVisibility()  # who asks for a region wants to see its errors
    assert ui.showComboBox.currentIndex == 0


def test_side_by_side_and_back_by_button_by_menu_and_by_choice(panel, scene, compared):
    make_volume(scene, name="T1Gd")
    ui, red = panel.ui, slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView
    display = compared.prediction.GetDisplayNode()
    for way in ("button", "menu", "choice"):
        ui.sideBySideButton.click()
        assert panel.layout.GetViewArrangement() != red
        assert display.GetNumberOfViewNodeIDs() == 2
        assert (ui.sideBySideButton.enabled, ui.restoreLayoutButton.enabled) == (False, True)
        panel.settler.fire()
        assert {name: one.fitted for name, one in slicer.app.slices.items()} != {}
        if way == "button":
            ui.restoreLayoutButton.click()
        elif way == "menu":
            panel.layout.SetViewArrangement(red)
        else:
            ui.predictionSelector.setCurrentNode(None)
        assert panel.layout.GetViewArrangement() == red
        assert display.GetNumberOfViewNodeIDs() == 0
        assert not ui.restoreLayoutButton.enabled


def test_a_scene_saved_side_by_side_is_not_blank_in_a_new_slicer(panel, scene, compared, monkeypatch):
    make_volume(scene, name="T1Gd")
    panel.ui.sideBySideButton.click()
    display = compared.prediction.GetDisplayNode()
    scene.InvokeEvent(scene.EndImportEvent)
    assert display.GetNumberOfViewNodeIDs() == 2  # this one knows the layout
    module = importlib.import_module("MSTKDSegmentLib.slicer_review_panel")
    monkeypatch.setattr(module, "knows_side_by_side", lambda _scene: False)
    scene.InvokeEvent(scene.EndImportEvent)
    assert display.GetNumberOfViewNodeIDs() == 0
    assert not panel.ui.restoreLayoutButton.enabled


def test_deleted_nodes_leave_the_panel(panel, scene, compared):
    scene.RemoveNode(panel.choices.get(TABLE))
    assert panel.ui.figuresTableView.table is None
    scene.RemoveNode(panel.choices.get(OVERLAY))
    panel.ui.nextPlaceButton.click()  # still known where; the errors are shown again when the region changes
    panel.ui.nextPlaceButton.click()
    assert panel.choices.get(OVERLAY) is not None
    scene.RemoveNode(compared.prediction)
    assert panel.ui.predictionSelector.currentNode() is None
    assert panel.compared is None
    assert not panel.ui.nextPlaceButton.enabled


# --- cases and verdicts -----------------------------------------------------------------------------------------------


def test_a_worklist_from_case_to_case(panel, scene, reading):
    ui = panel.ui
    assert ui.worklistLineEdit.text == str(reading / "list.csv")
    assert ui.caseLabel.text == "1 of 3, 0 with a verdict: A"
    assert ui.predictionSelector.currentNode().GetName() == "A prediction"
    assert ui.truthSelector.currentNode().GetName() == "A ground truth"
    assert panel.layers[0]["background"].GetName() == "A T1Gd"
    assert ui.reviewStatusLabel.text == "A is loaded."
    assert (ui.previousCaseButton.enabled, ui.nextCaseButton.enabled) == (False, True)
    ui.compareButton.click()
    run_to_the_end(panel)
    ui.sideBySideButton.click()
    ui.nextCaseButton.click()
    run_to_the_end(panel)
    assert ui.caseLabel.text == "2 of 3, 0 with a verdict: B"
    assert ui.figuresTableView.table is None
    assert panel.compared is None
    assert ui.restoreLayoutButton.enabled  # and side by side is side by side again
    assert panel.choices.get(PREDICTION).GetDisplayNode().GetNumberOfViewNodeIDs() == 2
    ui.previousCaseButton.click()
    run_to_the_end(panel)
    assert ui.caseLabel.text.endswith(": A")


def test_verdicts_at_a_click(panel, reading):
    ui = panel.ui
    assert ui.verdictLabel.text == "No verdict on A (prediction) yet."
    ui.readerLineEdit.type("AB")
    ui.commentLineEdit.text = "rim missed"
    ui.majorButton.click()
    assert ui.reviewStatusLabel.text.startswith("Written: major edits, after ")
    (given,) = read_verdicts(reading / "list-verdicts.csv")
    assert (given.case, given.verdict, given.comment, given.reader) == ("A", "major edits", "rim missed", "AB")
    assert ui.verdictLabel.text == f"Last verdict on A (prediction): major edits, {given.time}, AB: rim missed"
    assert ui.caseLabel.text == "1 of 3, 1 with a verdict: A"
    ui.nextOpenCaseButton.click()
    run_to_the_end(panel)
    assert ui.caseLabel.text == "2 of 3, 1 with a verdict: B"
    assert ui.commentLineEdit.text == ""
    ui.acceptButton.click()
    panel.ui.nextOpenCaseButton.click()
    run_to_the_end(panel)
    ui.rejectButton.click()
    assert ui.caseLabel.text == "3 of 3, 3 with a verdict: C"
    assert not ui.nextOpenCaseButton.enabled


def test_a_comment_and_its_seconds_are_written_once(panel, scene, reading):
    ui = panel.ui
    panel.reading._since -= 1000  # so long it was looked at
    ui.commentLineEdit.text = "rim missed"
    ui.minorButton.click()
    assert ui.commentLineEdit.text == ""
    ui.majorButton.click()  # on second thoughts
    panel.reading._since -= 1000
    ui.commentLineEdit.text = "begun"
    ui.predictionSelector.setCurrentNode(segmentation(scene, predicted_labels(), "mine"))
    assert ui.commentLineEdit.text == ""
    ui.acceptButton.click()
    given = read_verdicts(reading / "list-verdicts.csv")
    assert [(one.prediction, one.comment) for one in given] == [
        ("prediction", "rim missed"),
        ("prediction", ""),
        ("mine", ""),
    ]
    assert [one.seconds >= 1000 for one in given] == [True, False, False]


def test_a_comment_stays_where_its_verdict_could_not_be_written(panel, reading):
    (reading / "list-verdicts.csv").write_text("x,y\n")
    panel.reading._since -= 1000
    panel.ui.commentLineEdit.text = "rim missed"
    panel.ui.minorButton.click()
    assert "not a table of verdicts" in panel.ui.reviewStatusLabel.text
    assert panel.ui.commentLineEdit.text == "rim missed"
    assert panel.reading.seconds >= 1000


def test_a_comment_that_was_begun_is_kept_for_its_prediction_of_its_case(panel, scene, reading, tmp_path):
    ui, found = panel.ui, panel.choices.get(PREDICTION)
    mine = segmentation(scene, predicted_labels(), "mine")
    ui.commentLineEdit.type("of the prediction")
    ui.predictionSelector.setCurrentNode(mine)
    ui.commentLineEdit.type("of mine")
    mine.SetName("mine, renamed")
    panel.refresh()
    assert ui.commentLineEdit.text == "of mine"
    ui.predictionSelector.setCurrentNode(None)
    assert (ui.commentLineEdit.text, ui.commentLineEdit.enabled) == ("", False)
    ui.predictionSelector.setCurrentNode(found)
    assert (ui.commentLineEdit.text, ui.commentLineEdit.enabled) == ("of the prediction", True)
    ui.nextCaseButton.click()
    ui.stopButton.click()  # the case was taken away already
    assert ui.commentLineEdit.text == ""
    ui.nextCaseButton.click()
    run_to_the_end(panel)
    assert ui.commentLineEdit.text == ""
    ui.commentLineEdit.type("of B")
    ui.previousCaseButton.click()
    run_to_the_end(panel)
    assert ui.commentLineEdit.text == "of the prediction"
    ui.acceptButton.click()
    ui.predictionSelector.setCurrentNode(mine)
    assert ui.commentLineEdit.text == "of mine"
    panel.cases.openWorklist(str(write_worklist(tmp_path / "others", 2)))  # its A is another
    run_to_the_end(panel)
    assert ui.commentLineEdit.text == ""
    panel.cases.openWorklist(str(reading / "list.csv"))
    run_to_the_end(panel)
    assert ui.commentLineEdit.text == ""  # it is written
    ui.nextCaseButton.click()
    run_to_the_end(panel)
    assert ui.commentLineEdit.text == "of B"


def test_another_file_for_verdicts_and_one_that_is_not_ours(panel, reading, tmp_path):
    foreign = tmp_path / "foreign.csv"
    foreign.write_text("x,y\n")
    FileDialog.answers = [str(foreign), str(tmp_path / "mine.csv")]
    panel.ui.verdictsFileButton.click()
    assert "not a table of verdicts" in panel.ui.verdictLabel.text
    panel.ui.acceptButton.click()
    assert "not a table of verdicts" in panel.ui.reviewStatusLabel.text
    panel.ui.verdictsFileButton.click()
    assert FileDialog.confirms == [False, False]  # it is appended to: nothing is overwritten
    panel.ui.minorButton.click()
    assert [one.verdict for one in read_verdicts(tmp_path / "mine.csv")] == ["minor edits"]


def test_who_worked_on_a_loaded_node_is_asked_first(panel, scene, reading, monkeypatch):
    truth = panel.choices.get(TRUTH)
    truth.SetName("A corrected")
    panel.ui.nextCaseButton.click()
    assert panel.asked == ["A corrected changed since it was loaded. Go on without saving it?"]
    assert not panel.jobs.running
    assert panel.ui.caseLabel.text.endswith(": A")
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text, windowTitle="": True)  # noqa: N803
    panel.ui.nextCaseButton.click()
    run_to_the_end(panel)
    assert panel.ui.caseLabel.text.endswith(": B")
    assert truth.GetScene() is None


def test_who_keeps_the_old_case_keeps_its_worklist_too(panel, scene, reading, tmp_path, monkeypatch):
    ui, other = panel.ui, write_worklist(tmp_path / "others", 2)
    truth = panel.choices.get(TRUTH)
    truth.SetName("A corrected")
    FileDialog.answers = [str(other), str(other)]
    ui.worklistFileButton.click()
    run_to_the_end(panel)
    assert panel.asked == ["A corrected changed since it was loaded. Go on without saving it?"]
    assert truth.GetScene() is scene
    assert ui.worklistLineEdit.text == str(reading / "list.csv")
    assert ui.caseLabel.text == "1 of 3, 0 with a verdict: A"
    ui.acceptButton.click()
    assert [one.case for one in read_verdicts(reading / "list-verdicts.csv")] == ["A"]
    assert not (tmp_path / "others" / "list-verdicts.csv").exists()
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text, windowTitle="": True)  # noqa: N803
    ui.worklistFileButton.click()
    run_to_the_end(panel)
    assert truth.GetScene() is None
    assert ui.worklistLineEdit.text == str(other)
    assert ui.caseLabel.text == "1 of 2, 0 with a verdict: A"


def test_who_cancels_the_loading_of_a_case_goes_on_from_the_one_that_was_left(panel, reading):
    ui = panel.ui
    ui.nextCaseButton.click()
    run_to_the_end(panel)
    for button, shown in ((ui.nextCaseButton, "C"), (ui.previousCaseButton, "A")):
        button.click()
        ui.stopButton.click()
        assert ui.caseLabel.text == "3 cases, 0 with a verdict"
        assert (ui.previousCaseButton.enabled, ui.nextCaseButton.enabled) == (True, True)
        button.click()
        ui.stopButton.click()  # a second time
        button.click()
        run_to_the_end(panel)
        assert ui.caseLabel.text.endswith(f": {shown}")
        panel.cases.showCase(1)
        run_to_the_end(panel)
    ui.nextCaseButton.click()
    ui.stopButton.click()
    ui.nextOpenCaseButton.click()
    run_to_the_end(panel)
    assert ui.caseLabel.text.endswith(": C")


def test_a_worklist_that_cannot_be_read_changes_nothing(panel, reading, tmp_path):
    FileDialog.answers = ["", str(tmp_path / "cases" / "A" / "nothing")]
    panel.ui.worklistFolderButton.click()  # declined
    panel.ui.worklistFolderButton.click()
    run_to_the_end(panel)
    assert "no such folder" in panel.ui.reviewStatusLabel.text
    assert panel.ui.caseLabel.text.endswith(": A")
    assert panel.ui.worklistLineEdit.text == str(reading / "list.csv")


def test_a_folder_of_predictions_for_a_folder_of_cases(panel, tmp_path):
    write_worklist(tmp_path / "cases", 2)
    for name in ("A", "B"):
        found = tmp_path / "cases" / name / f"{name}_found.nii.gz"
        (tmp_path / "net").mkdir(exist_ok=True)
        found.rename(tmp_path / "net" / f"{name}.nii.gz")
        (tmp_path / "cases" / name / f"{name}_truth.nii.gz").rename(tmp_path / "cases" / name / f"{name}_seg.nii.gz")
    FileDialog.answers = [str(tmp_path / "net"), str(tmp_path / "cases")]
    panel.ui.predictionsFolderButton.click()
    panel.ui.worklistFolderButton.click()
    run_to_the_end(panel)
    assert panel.ui.caseLabel.text == "1 of 2, 0 with a verdict: A"
    assert panel.ui.predictionSelector.currentNode().GetName() == "A net"
    assert panel.ui.verdictsFileLineEdit.text == str(tmp_path / "cases" / "review-verdicts.csv")


def test_closing_the_scene_at_any_time_empties_the_section(panel, scene, reading):
    panel.ui.compareButton.click()  # while it compares
    scene.Clear(0)
    assert not panel.jobs.running
    assert panel.ui.predictionSelector.currentNode() is None
    assert (panel.ui.caseLabel.text, panel.ui.worklistLineEdit.text) == ("", "")
    panel.cases.openWorklist(str(reading / "list.csv"))
    panel.jobs._ticker.fire()
    scene.Clear(0)  # while it loads
    assert not panel.jobs.running
    panel.cases.openWorklist(str(reading / "list.csv"))
    run_to_the_end(panel)
    assert panel.ui.caseLabel.text == "1 of 3, 0 with a verdict: A"


def test_a_saved_scene_comes_back_with_its_choices_and_its_worklist(panel, scene, reading, tmp_path):
    panel.ui.orderComboBox.currentIndex = 1
    panel.ui.readerLineEdit.type("AB")
    panel.ui.compareButton.click()
    run_to_the_end(panel)
    path = str(tmp_path / "scene.mrml")
    for node in (scene.GetNodeByID(key) for key in node_ids(scene)):
        if node.IsA("vtkMRMLStorableNode") and node.GetName() and node.GetStorageNode() is None:
            node.AddDefaultStorageNode(
                str(tmp_path / f"{node.GetID()}.{'tsv' if node.IsA('vtkMRMLTableNode') else 'seg.nrrd'}")
            )
            assert node.GetStorageNode().WriteData(node)
    scene.SetURL(path)
    assert scene.Commit(path)
    scene.Clear(0)
    assert panel.ui.orderComboBox.currentIndex == 0
    scene.SetURL(path)
    scene.Import()
    run_to_the_end(panel)
    assert panel.ui.orderComboBox.currentIndex == 1
    assert panel.ui.readerLineEdit.text == "AB"
    assert panel.ui.predictionSelector.currentNode().GetName() == "A prediction"
    assert panel.ui.caseLabel.text == "1 of 3, 0 with a verdict: A"
    assert panel.ui.figuresTableView.table.GetCellText(0, 1) == "0.982"
    panel.ui.nextCaseButton.click()
    run_to_the_end(panel)
    assert panel.asked == []
    assert panel.ui.caseLabel.text.endswith(": B")


def test_a_scene_that_is_added_leaves_prediction_and_truth(panel, scene, pair):
    before = panel.choices.get("prediction"), panel.choices.get("truth")
    assert None not in before
    scene.InvokeEvent(scene.StartImportEvent)
    for role in ("prediction", "truth"):  # as the combo boxes do it
        panel.choices.choose(role, None)
    scene.InvokeEvent(scene.EndImportEvent)
    assert (panel.choices.get("prediction"), panel.choices.get("truth")) == before


def test_cleanup_ends_everything(panel, scene, pair):
    panel.ui.compareButton.click()
    panel.cleanup()
    assert not panel.jobs.running
    assert not panel.jobs._ticker.active
    scene.RemoveNode(pair.truth)  # nobody listens any more
    assert panel.ui.truthSelector.currentNode() is pair.truth
