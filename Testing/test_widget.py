"""The panel's behaviour over time: real scene, logic and worker; the window's widgets are strict stand-ins."""

from __future__ import annotations

import importlib.util
import sys
import time
import types
from pathlib import Path

import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
pytest.importorskip("torch")
from conftest import brain_image  # noqa: E402 - needs slicer
from panel_stand_ins import Application, Choice, Parameters, install_qt, loaded_ui, widgets_of  # noqa: E402
from scene_nodes import add_user_segment, node_ids, volume_of_image  # noqa: E402

FOLDER = Path(__file__).parents[1] / "MSTKDSegment"


class WidgetBase:
    def __init__(self, parent=None) -> None:
        self.parent, self.layout = parent, types.SimpleNamespace(addWidget=lambda widget: None)

    def setup(self) -> None:
        pass

    def resourcePath(self, name: str) -> str:  # noqa: N802
        return str(FOLDER / "Resources" / name)


class LogicBase:
    def __init__(self, parent=None) -> None:
        pass

    def getParameterNode(self):  # noqa: N802
        return slicer.mrmlScene.GetSingletonNode("MSTKDSegment", "vtkMRMLScriptedModuleNode") or self._new()

    @staticmethod
    def _new():
        node = slicer.vtkMRMLScriptedModuleNode()
        node.SetSingletonTag("MSTKDSegment")
        return slicer.mrmlScene.AddNode(node)


@pytest.fixture
def panel(scene, monkeypatch, random_bundle):
    """The widget after setup, with two sequences in the scene and weights that take no time."""
    bases = types.ModuleType("slicer.ScriptedLoadableModule")
    bases.ScriptedLoadableModuleWidget, bases.ScriptedLoadableModuleLogic = WidgetBase, LogicBase
    bases.ScriptedLoadableModule = bases.ScriptedLoadableModuleTest = type("Base", (), {})
    i18n = types.ModuleType("slicer.i18n")
    i18n.tr, i18n.translate = (lambda text: text), (lambda _context, text: text)
    install_qt(monkeypatch)
    parameters = types.ModuleType("MSTKDSegmentLib.slicer_parameters")
    parameters.MSTKDSegmentParameterNode = Parameters
    for stand_in in (bases, i18n, parameters):
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    scene.RegisterNodeClass(slicer.vtkMRMLScriptedModuleNode())
    monkeypatch.setattr(slicer, "mrmlScene", scene, raising=False)
    monkeypatch.setattr(slicer, "app", Application(), raising=False)
    told, layers = [], []
    for name, value in {
        "loadUI": loaded_ui,
        "childWidgetVariables": lambda widget: widgets_of(widget.file),
        "showStatusMessage": lambda text, _milliseconds=0: told.append(text),
        "confirmOkCancelDisplay": lambda text, windowTitle="": False,  # noqa: N803
        "setSliceViewerLayers": lambda **shown: layers.append(shown),
    }.items():
        monkeypatch.setattr(slicer.util, name, value, raising=False)
    spec = importlib.util.spec_from_file_location("MSTKDSegment", FOLDER / "MSTKDSegment.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "MSTKDSegment", module)
    spec.loader.exec_module(module)
    widget = module.MSTKDSegmentWidget(types.SimpleNamespace(isEntered=True))
    widget.setup()
    widget.told, widget.layers = told, layers
    for seed, name in ((2, "T1 post"), (4, "FLAIR")):
        volume_of_image(scene, brain_image(seed), name)
    widget.settler.fire()
    widget._parameterNode.weights = str(random_bundle)
    yield widget
    widget.cleanup()


def run_to_the_end(panel, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while panel.task is not None:
        assert time.monotonic() < end
        panel.ticker.fire()
        time.sleep(0.02)


def settle(panel) -> None:
    while panel.settler.active:
        panel.settler.fire()


def test_the_selectors_are_filled_when_volumes_come_and_segment_can_be_pressed(panel):
    assert {key: node.GetName() for key, node in panel.chosenVolumes().items()} == {
        "T1Gd": "T1 post",
        "FLAIR": "FLAIR",
    }
    assert panel.ui.segmentButton.enabled
    assert not panel.ui.problemLabel.visible
    assert "lies on the grid of T1Gd" in panel.ui.planLabel.text
    assert "T1Gd+FLAIR: mean Dice WT 0.90" in panel.ui.expectationLabel.text
    assert "after gadolinium" in panel.ui.t1gdSelector.toolTip


def test_a_run_from_click_to_table_and_its_words_stay(panel, scene):
    panel.ui.segmentButton.click()
    assert not panel.ui.segmentButton.enabled
    assert panel.ui.cancelButton.enabled
    assert panel.ui.progressBar.visible
    assert not panel.ui.inputsCollapsibleButton.enabled
    run_to_the_end(panel)
    settle(panel)  # the new nodes were noticed, and nothing that was said is gone
    assert panel.ui.statusLabel.text.startswith("T1 post tumour: done in ")
    assert panel.ui.statusLabel.visible
    assert panel.ui.resultTableView.table.GetNumberOfRows() == 5
    assert panel.ui.provenanceLabel.text.startswith("T1 post tumour: T1Gd+FLAIR on cpu")
    assert "0:00 starting" in panel.ui.logTextEdit.plainText
    assert "done" in panel.ui.logTextEdit.plainText
    assert panel.ui.segmentButton.enabled
    assert not panel.ui.progressBar.visible
    assert not panel.ticker.active


def test_what_the_network_saw_is_shown_after_any_run(panel, scene):
    button = panel.ui.showPreparedButton
    assert not button.enabled
    panel.ui.segmentButton.click()
    run_to_the_end(panel)
    assert button.enabled
    assert button.toolTip.startswith("Show what the network saw")
    button.click()
    settle(panel)
    (shown,) = panel.layers
    assert shown["background"] is panel.chosenVolumes()["T1Gd"]
    assert shown["foreground"].GetName() == "T1 post preprocessed"
    assert 0 < shown["foregroundOpacity"] < 1
    assert scene.GetFirstNodeByName("FLAIR preprocessed") is not None
    assert scene.GetFirstNodeByName("T1 post brain").IsA("vtkMRMLSegmentationNode")
    # Nothing that came was taken for an input, an output or a mask; a second click makes nothing new.
    assert {node.GetName() for node in panel.chosenVolumes().values()} == {"T1 post", "FLAIR"}
    assert panel._parameterNode.outputSegmentation is None
    before = node_ids(scene)
    button.click()
    assert node_ids(scene) == before


def test_what_the_network_saw_is_forgotten_with_the_result_and_with_the_scene(panel, scene):
    panel.ui.segmentButton.click()
    run_to_the_end(panel)
    first = panel._shown
    panel.ui.segmentButton.click()
    run_to_the_end(panel)
    assert panel._result.node is not first
    panel.showTableOf(first)  # an earlier result, of which nothing was put into the scene
    assert not panel.ui.showPreparedButton.enabled
    assert panel.ui.showPreparedButton.toolTip.startswith("What the network saw is kept for the latest result")
    panel.showTableOf(panel._result.node)
    assert panel.ui.showPreparedButton.enabled
    scene.Clear(0)
    assert panel._result is None
    assert not panel.ui.showPreparedButton.enabled


def test_volumes_shown_before_are_shown_again_without_the_run(panel, scene):
    """As after loading a scene that was saved with them."""
    panel.ui.segmentButton.click()
    run_to_the_end(panel)
    panel.ui.showPreparedButton.click()
    shown, panel._result = panel._shown, None
    panel.showTableOf(shown)
    assert panel.ui.showPreparedButton.enabled
    panel.ui.showPreparedButton.click()
    assert panel.layers[1] == panel.layers[0]
    scene.RemoveNode(scene.GetFirstNodeByName("T1 post preprocessed"))
    scene.RemoveNode(scene.GetFirstNodeByName("FLAIR preprocessed"))
    panel.ui.showPreparedButton.click()
    assert len(panel.layers) == 2
    assert not panel.ui.showPreparedButton.enabled


def test_a_reference_that_was_deleted_since_is_told_when_its_preparation_is_asked_for(panel, scene):
    panel.ui.segmentButton.click()
    run_to_the_end(panel)
    scene.RemoveNode(panel.chosenVolumes()["T1Gd"])
    panel.ui.showPreparedButton.click()
    assert panel.ui.statusLabel.text.startswith("T1 post was removed from the scene; segment again")
    assert panel.layers == []
    scene.RemoveNode(panel._result.node)
    assert panel._result is None  # and its volumes with it


def test_what_the_user_says_of_the_preparation_goes_into_the_plan_and_the_run(panel, scene, monkeypatch):
    assert "They are skull-stripped and registered already" in panel.ui.planLabel.text
    panel._parameterNode.biasCorrection = True
    assert "The bias field of each is corrected" in panel.ui.planLabel.text
    assert "here it may be less" in panel.ui.expectationLabel.text
    panel._parameterNode.skullStripped = Choice.NO
    assert "The skull on T1Gd, FLAIR is removed here" in panel.ui.planLabel.text
    panel._parameterNode.registered = Choice.YES
    panel._parameterNode.extractor = Choice.OWN
    asked = {}

    def start(volumes, *_more, **options):
        asked.update(options)
        raise ValueError("enough")

    monkeypatch.setattr(panel.logic, "start", start)
    panel.ui.segmentButton.click()
    said = {name: asked[name] for name in ("registered", "skull_stripped", "brain_mask", "extractor", "keep")}
    assert said == {"registered": True, "skull_stripped": False, "brain_mask": None, "extractor": "own", "keep": True}
    assert asked["bias_correction"] is True


def test_a_brain_mask_is_checked_and_leaves_its_selector_when_it_is_deleted(panel, scene):
    panel._parameterNode.brainMask = panel.chosenVolumes()["FLAIR"]
    assert panel.ui.problemLabel.text == "FLAIR is chosen as FLAIR and as brain mask; choose it once."
    mask = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "brain")
    panel._parameterNode.brainMask = mask
    assert "brain: holds no voxels" in panel.ui.problemLabel.text
    assert not panel.ui.segmentButton.enabled
    volume = volume_of_image(scene, brain_image(2), "carrier")
    mask.SetAndObserveImageData(volume.GetImageData())  # noticed: the mask is observed as the inputs are
    settle(panel)
    assert panel.ui.problemLabel.text == ""
    assert "The brain is taken from brain." in panel.ui.planLabel.text
    scene.RemoveNode(mask)
    settle(panel)
    assert panel._parameterNode.brainMask is None
    assert "brain is taken" not in panel.ui.planLabel.text


def test_a_deleted_table_is_not_shown_any_more(panel, scene):
    panel.ui.segmentButton.click()
    run_to_the_end(panel)
    scene.RemoveNode(panel.ui.resultTableView.table)
    assert panel.ui.resultTableView.table is None
    assert not panel.ui.resultCollapsibleButton.visible


def test_cancelling_gives_the_scene_back_and_says_so(panel, scene):
    before = node_ids(scene)
    panel.ui.segmentButton.click()
    panel.ui.cancelButton.click()
    settle(panel)
    assert panel.task is None
    assert panel.ui.statusLabel.text == "Cancelled; the scene is as it was."
    assert node_ids(scene) == before
    assert not panel.ui.cancelButton.enabled


def test_an_input_deleted_during_the_run_is_told_and_stays_told(panel, scene):
    panel.ui.segmentButton.click()
    scene.RemoveNode(panel.chosenVolumes()["FLAIR"])
    panel.ticker.fire()
    settle(panel)
    assert panel.task is None
    assert panel.ui.statusLabel.text == "FLAIR was removed from the scene; the segmentation was stopped."


def test_a_deleted_input_leaves_its_selector_empty(panel, scene):
    scene.RemoveNode(panel._parameterNode.flair)
    settle(panel)
    assert panel._parameterNode.flair is None
    assert list(panel.chosenVolumes()) == ["T1Gd"]


def test_a_scene_closed_during_the_run_is_told(panel, scene):
    panel.ui.segmentButton.click()
    scene.Clear(0)
    settle(panel)
    assert panel.task is None
    assert panel.ui.statusLabel.text == "The scene was closed; the segmentation was stopped."
    assert panel.ui.problemLabel.text.startswith("Choose at least one")
    assert not panel.ui.segmentButton.enabled
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_a_failed_run_is_told_in_the_panel_and_the_status_bar(panel, tmp_path):
    broken = tmp_path / "broken.zip"
    panel.logic.core._weights.card = lambda path: ({"metrics": {}}, "", "")  # it breaks after it was looked at
    panel._parameterNode.weights = str(broken)
    panel.ui.segmentButton.click()
    run_to_the_end(panel)
    settle(panel)
    assert "broken.zip: no such weights file" in panel.ui.statusLabel.text
    assert panel.told == [f"MSTKDSegment: {panel.ui.statusLabel.text}"]


def test_weights_that_cannot_be_used_are_said_before_a_run(panel, tmp_path):
    panel._parameterNode.weights = str(tmp_path / "gone.zip")
    assert "gone.zip: no such weights file" in panel.ui.problemLabel.text
    assert not panel.ui.segmentButton.enabled


def test_an_earlier_result_is_replaced_only_after_a_yes(panel, monkeypatch):
    panel.ui.segmentButton.click()
    run_to_the_end(panel)
    panel._parameterNode.outputSegmentation = panel.ui.resultTableView.table.GetScene().GetFirstNodeByClass(
        "vtkMRMLSegmentationNode"
    )
    panel.ui.segmentButton.click()  # the stand-in answers no
    assert panel.task is None
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text, windowTitle="": True)  # noqa: N803
    panel.ui.segmentButton.click()
    run_to_the_end(panel)
    assert panel.ui.statusLabel.text.startswith("T1 post tumour: done in ")
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLTableNode") == 1


def test_a_reference_that_is_not_chosen_gives_the_default_as_the_panel_says(panel):
    panel._parameterNode.reference = Choice.T1
    assert panel.ui.planLabel.text.startswith("T1 is not chosen, so another reference is taken.")
    panel.ui.segmentButton.click()
    run_to_the_end(panel)
    assert "done in" in panel.ui.statusLabel.text


def test_inputs_that_come_after_the_parameters_of_a_loaded_scene_are_found(panel, scene):
    """The wrapper has read the references before the volumes were there; nothing must be proposed over them."""
    parameters = panel._parameterNode
    flair = parameters.flair
    parameters.nodes.update(t1gd=None, flair=None)  # what a wrapper remembers after such an import
    parameters.parameterNode.SetNodeReferenceID("t1gd", None)
    parameters.nodes.update(t1gd=None, flair=None)
    scene.InvokeEvent(scene.EndImportEvent)
    assert panel.chosenVolumes() == {"FLAIR": flair}
    settle(panel)
    assert panel.chosenVolumes() == {"FLAIR": flair}  # T1Gd was empty on purpose


def test_a_scene_that_is_added_leaves_the_choices(panel, scene):
    """At the end of an import Slicer's combo boxes are filled anew and lose what was chosen."""
    by_hand = {"T1": panel.chosenVolumes()["FLAIR"]}
    for name in ("t1gd", "flair"):
        setattr(panel._parameterNode, name, None)
    panel._parameterNode.t1 = by_hand["T1"]
    scene.InvokeEvent(scene.StartImportEvent)
    panel._parameterNode.t1 = None  # as the combo box does it
    scene.InvokeEvent(scene.EndImportEvent)
    settle(panel)
    assert panel.chosenVolumes() == by_hand


def test_volumes_that_come_one_after_another_are_all_proposed(panel, scene):
    volume_of_image(scene, brain_image(1), "T1 pre")
    settle(panel)
    assert list(panel.chosenVolumes()) == ["T1", "T1Gd", "FLAIR"]
    volume_of_image(scene, brain_image(5), "T2")
    settle(panel)
    assert list(panel.chosenVolumes()) == ["T1", "T1Gd", "T2", "FLAIR"]
    # The next patient's volumes change nothing by themselves, and the button says why.
    before = panel.chosenVolumes()
    volume_of_image(scene, brain_image(6), "other T2")
    settle(panel)
    assert panel.chosenVolumes() == before
    panel.ui.proposeButton.click()
    assert panel.ui.proposalLabel.text.startswith("All four are chosen.")


def test_after_a_choice_by_hand_nothing_is_proposed_any_more(panel, scene):
    panel._parameterNode.flair = None
    volume_of_image(scene, brain_image(1), "T1 pre")
    settle(panel)
    assert list(panel.chosenVolumes()) == ["T1Gd"]


def test_the_table_of_a_chosen_result_is_shown_and_stays_when_a_run_is_cancelled(panel, scene):
    panel.ui.segmentButton.click()
    run_to_the_end(panel)
    table = panel.ui.resultTableView.table
    panel.ui.segmentButton.click()
    panel.ui.cancelButton.click()
    assert panel.ui.resultTableView.table is table
    panel.showTableOf(None)  # as after loading a scene
    panel._parameterNode.outputSegmentation = scene.GetFirstNodeByClass("vtkMRMLSegmentationNode")
    assert panel.ui.resultTableView.table is table
    assert panel.ui.provenanceLabel.text.startswith("T1 post tumour: T1Gd+FLAIR on cpu")
    scene.RemoveNode(panel._parameterNode.outputSegmentation)
    assert panel.ui.resultTableView.table is None
    assert not panel.ui.resultCollapsibleButton.visible


def test_the_table_is_that_of_the_result_that_is_chosen_and_says_whose_it_is(panel, scene):
    results = []
    for name in ("first", "second"):
        panel._parameterNode.outputSegmentation = None
        panel.ui.segmentButton.click()
        run_to_the_end(panel)
        panel._result.node.SetName(name)
        results.append((panel._result.node, panel.ui.resultTableView.table))
    for (node, table), name in zip(results, ("first", "second")):
        panel._parameterNode.outputSegmentation = node
        assert panel.ui.resultTableView.table is table
        assert panel.ui.provenanceLabel.text.startswith(f"{name}: T1Gd+FLAIR on cpu")
    panel._parameterNode.outputSegmentation = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "new")
    assert panel.ui.provenanceLabel.text.startswith("second: ")  # still the figures of what it names


def test_volumes_of_two_examinations_are_not_mixed(panel, scene):
    def came_from(node, folder):
        storage = scene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
        storage.SetFileName(f"/patients/{folder}/{node.GetName()}.nii.gz")
        node.SetAndObserveStorageNodeID(storage.GetID())

    for node in panel.chosenVolumes().values():
        came_from(node, "P001")
    before = panel.chosenVolumes()
    for seed, name in ((1, "T1 pre"), (5, "T2")):
        came_from(volume_of_image(scene, brain_image(seed), name), "P002")
    settle(panel)
    assert panel.chosenVolumes() == before
    panel.ui.proposeButton.click()
    assert panel.chosenVolumes() == before
    for name in ("t1gd", "flair"):
        setattr(panel._parameterNode, name, None)
    panel.ui.proposeButton.click()
    assert panel.chosenVolumes() == {}
    assert panel.ui.proposalLabel.text.startswith("Volumes of 2 examinations are loaded (with T1 post, T1 pre).")
    panel._parameterNode.t2 = scene.GetFirstNodeByName("T2")
    panel.ui.proposeButton.click()
    assert {key: node.GetName() for key, node in panel.chosenVolumes().items()} == {"T1": "T1 pre", "T2": "T2"}


def test_an_output_that_cannot_take_the_result_is_said_before_the_run(panel, scene):
    surface = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "surface")
    add_user_segment(surface, "a")
    surface.GetSegmentation().SetSourceRepresentationName("Closed surface")
    panel._parameterNode.outputSegmentation = surface
    assert "surface: its segments are closed surfaces" in panel.ui.problemLabel.text
    assert not panel.ui.segmentButton.enabled


def test_a_failure_looks_like_one(panel):
    panel.showFailure(ValueError("no"))
    assert panel.ui.statusLabel.styleSheet == panel._warningStyle != ""
    panel.ui.segmentButton.click()
    assert panel.ui.statusLabel.styleSheet == ""


def test_what_somebody_emptied_stays_empty(panel):
    panel._parameterNode.t1gd = None
    panel.enter()
    settle(panel)
    assert list(panel.chosenVolumes()) == ["FLAIR"]
    panel.ui.proposeButton.click()
    assert list(panel.chosenVolumes()) == ["T1Gd", "FLAIR"]


def test_testing_the_device_takes_no_second_click_and_no_run_meanwhile(panel, monkeypatch):
    clicked = []

    def check(_device):
        panel.onCheckDevice()  # a click while events are processed
        panel.onSegment()
        clicked.append((panel.ui.checkDeviceButton.enabled, panel.ui.segmentButton.enabled, panel.task))
        return types.SimpleNamespace(sentence=lambda: "PyTorch works")

    monkeypatch.setattr(panel.logic, "checkDevice", check)
    panel.ui.checkDeviceButton.click()
    assert clicked == [(False, False, None)]
    assert panel.ui.deviceLabel.text == "PyTorch works"
    assert panel.ui.deviceLabel.visible
    assert panel.ui.checkDeviceButton.enabled
    assert panel.ui.segmentButton.enabled


def test_a_device_that_does_not_work_is_told(panel, monkeypatch):
    def check(_device):
        raise ValueError("no kernel image")

    monkeypatch.setattr(panel.logic, "checkDevice", check)
    panel.ui.checkDeviceButton.click()
    assert panel.ui.deviceLabel.text == "no kernel image"
    assert panel.ui.checkDeviceButton.enabled


def test_quitting_ends_the_run_and_the_widget_lets_go_of_everything(panel):
    panel.ui.segmentButton.click()
    run = panel.task._run
    run._starter.join()
    process = run._process
    signal, slot = slicer.app.connected[0]
    assert signal == "aboutToQuit()"
    slot()
    assert process.poll() is not None
    panel.cleanup()
    assert slicer.app.connected == []
    assert panel.Observations == []
    slicer.app.connect("aboutToQuit()", panel.onQuit)  # the fixture cleans up once more
