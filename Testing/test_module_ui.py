"""The panel's .ui file against the code that uses it, the parameters that it sets, and PythonQt's rules."""

from __future__ import annotations

import ast
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "MSTKDSegment"
UI = FOLDER / "Resources" / "UI" / "MSTKDSegment.ui"
REVIEW_UI = FOLDER / "Resources" / "UI" / "MSTKDSegmentReview.ui"
REVIEW = [FOLDER / "MSTKDSegmentLib" / f"slicer_review_{name}.py" for name in ("panel", "cases_panel", "widgets")]
MODULE = FOLDER / "MSTKDSegment.py"
PARAMETERS = FOLDER / "MSTKDSegmentLib" / "slicer_parameters.py"
INPUTS = ("t1", "t1gd", "t2", "flair")
MASK = "Optional[Union[vtkMRMLLabelMapVolumeNode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode]]"
# Never spoken to by code: captions, layouts, and what only groups others.
ONLY_SHOWN = re.compile(
    r".*Caption$|.*Layout$|^(MSTKDSegment|verticalSpacer|torchLabel|researchLabel|logCollapsibleButton|"
    r"preparationGroupBox)$"
)


@pytest.fixture(scope="module")
def ui() -> ET.Element:
    return ET.parse(UI).getroot()


@pytest.fixture(scope="module")
def source() -> str:
    return MODULE.read_text(encoding="utf-8")


def names_in(ui: ET.Element) -> list:
    return [element.get("name") for tag in ("widget", "layout", "spacer") for element in ui.iter(tag)]


def names_used(source: str) -> set:
    found = set(re.findall(r"self\.ui\.(\w+)", source))
    for pattern in re.findall(r'getattr\(self\.ui, f"\{name\}(\w+)"\)', source):
        found |= {f"{name}{pattern}" for name in INPUTS}
    return found


def parameters_set(ui: ET.Element) -> dict:
    return {
        prop.findtext("string"): widget.get("class")
        for widget in ui.iter("widget")
        for prop in widget.findall("property")
        if prop.get("name") == "SlicerParameterName"
    }


def fields() -> dict:
    """Names and types of the parameter node."""
    tree = ast.parse(PARAMETERS.read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "MSTKDSegmentParameterNode")
    return {n.target.id: ast.unparse(n.annotation) for n in node.body if isinstance(n, ast.AnnAssign)}


@pytest.fixture(scope="module", params=[UI, REVIEW_UI], ids=["segment", "review"])
def any_ui(request) -> ET.Element:
    return ET.parse(request.param).getroot()


@pytest.fixture(scope="module", params=[MODULE, *REVIEW], ids=lambda path: path.stem)
def any_source(request) -> str:
    return request.param.read_text(encoding="utf-8")


def test_names_are_given_once(any_ui):
    names = names_in(any_ui)
    assert len(names) == len(set(names))


def test_the_review_section_names_what_exists_and_uses_what_is_there():
    """Nothing of it is tied to parameters: every widget that is not a caption or a frame is spoken to."""
    named = names_in(ET.parse(REVIEW_UI).getroot())
    sources = "".join(path.read_text(encoding="utf-8") for path in REVIEW)
    used = set(re.findall(r"\bui\.(\w+)", sources))
    shown_only = re.compile(r".*Caption$|.*Layout$|.*GroupBox$|^MSTKDSegmentReview$")
    assert {name for name in named if not shown_only.match(name)} == used


def test_the_review_sections_combo_boxes_hold_what_their_code_counts():
    from MSTKDSegmentLib.regions import REGION_KEYS
    from MSTKDSegmentLib.review.places import ORDERS

    widgets = {one.get("name"): one for one in ET.parse(REVIEW_UI).getroot().iter("widget")}

    def items(name: str) -> list:
        return [one.findtext("string") for one in widgets[name].iterfind("item/property")]

    assert items("regionComboBox") == list(REGION_KEYS)
    assert [one.lower() for one in items("orderComboBox")] == list(ORDERS)
    assert items("showComboBox") == ["Errors (TP, FP, FN)", "Prediction", "Ground truth"]
    for name in ("predictionSelector", "truthSelector"):
        types = [one.text for one in widgets[name].find("property[@name='nodeTypes']/stringlist")]
        assert types == ["vtkMRMLSegmentationNode", "vtkMRMLLabelMapVolumeNode"]


def test_every_object_that_the_code_names_exists_and_the_reverse(ui, source):
    named = set(names_in(ui))
    assert names_used(source) <= named
    untouched = {name for name in named - names_used(source) if not ONLY_SHOWN.match(name)}
    # These are tied to the scene's parameters and need no code.
    tied = {
        widget.get("name")
        for widget in ui.iter("widget")
        if any(prop.get("name") == "SlicerParameterName" for prop in widget.findall("property"))
    }
    assert untouched <= tied


def test_every_parameter_has_its_widget_and_the_widgets_type_fits(ui):
    widgets = {
        "vtkMRMLScalarVolumeNode": "qMRMLNodeComboBox",
        "vtkMRMLSegmentationNode": "qMRMLNodeComboBox",
        "bool": "QCheckBox",
        "str": "QLineEdit",
        "Segments": "QComboBox",
        "Reference": "QComboBox",
        "Device": "QComboBox",
        "Answer": "QComboBox",
        "Extractor": "QComboBox",
        MASK: "qMRMLNodeComboBox",
    }
    assert parameters_set(ui) == {name: widgets[kind] for name, kind in fields().items()}


def test_every_node_selector_gets_the_scene_and_lets_a_sequence_be_missing(any_ui):
    ui = any_ui
    receivers = {
        connection.findtext("receiver")
        for connection in ui.iter("connection")
        if connection.findtext("signal") == "mrmlSceneChanged(vtkMRMLScene*)"
        and connection.findtext("slot") == "setMRMLScene(vtkMRMLScene*)"
        and connection.findtext("sender") == ui.findtext("class")
    }
    selectors = [widget for widget in ui.iter("widget") if widget.get("class") == "qMRMLNodeComboBox"]
    assert receivers == {widget.get("name") for widget in selectors}
    for widget in selectors:
        values = {prop.get("name"): prop.findtext("bool") for prop in widget.findall("property")}
        assert values["noneEnabled"] == "true"
        if widget.get("name") != "outputSelector":
            # A volume that is loaded later must not slip into an input that was left empty.
            assert (values["selectNodeUponCreation"], values["addEnabled"]) == ("false", "false")


def test_the_brain_mask_is_chosen_from_the_types_that_the_parameter_takes(ui):
    """Slicer's wrapper sets the selector's types by the parameter's; the file must not say anything else."""
    selector = next(widget for widget in ui.iter("widget") if widget.get("name") == "brainMaskSelector")
    types = [node.text for node in selector.find("property[@name='nodeTypes']/stringlist")]
    assert fields()["brainMask"] == MASK == f"Optional[Union[{', '.join(types)}]]"


def test_custom_classes_are_declared_and_all_texts_can_be_translated(any_ui):
    ui = any_ui
    classes = {widget.get("class") for widget in ui.iter("widget") if not widget.get("class").startswith("Q")}
    assert classes == {
        custom.findtext("class") for custom in ui.iter("customwidget") if custom.find("class") is not None
    }
    for widget in ui.iter("widget"):
        for prop in widget.findall("property"):
            text = prop.find("string")
            if (
                prop.get("name") in ("text", "title", "toolTip", "placeholderText", "noneDisplay")
                and text is not None
                and text.text
            ):
                assert text.get("notr") != "true", widget.get("name")


def test_no_text_for_the_user_escapes_translation(any_source):
    """Every sentence that reaches a widget is in _(), and none is an f-string, which lupdate cannot read."""
    tree = ast.parse(any_source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_":
            assert all(not isinstance(part, ast.JoinedStr) for part in ast.walk(node.args[0])), node.lineno
        called = getattr(node.func, "attr", getattr(node.func, "id", "")) if isinstance(node, ast.Call) else ""
        if called in ("_tell", "tell"):
            text = node.args[1]
            assert not (isinstance(text, ast.Constant) and text.value), node.lineno
            assert not isinstance(text, ast.JoinedStr), node.lineno


def test_no_qt_property_is_called(any_source):
    """In PythonQt these are plain values: calling one raises "not callable" only when somebody presses the button."""
    values = {"currentText", "currentIndex", "text", "enabled", "visible", "checked", "value", "toolTip", "plainText"}
    tree = ast.parse(any_source)
    ui_calls = [
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and re.search(r"\bui\.\w+$", ast.unparse(node.func.value))
    ]
    assert not values & set(ui_calls)


@pytest.mark.parametrize("path", [MODULE, *REVIEW[:2]], ids=lambda path: path.stem)
def test_slots_that_are_connected_exist(path):
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    methods = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    connected = re.findall(r'connect\("(?:[^"]+)", (?:self\.)?(\w+)\)', source)
    assert len(connected) > 8
    assert set(connected) <= methods
