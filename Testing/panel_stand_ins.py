"""What the panel needs of Slicer's window, in Python: widgets as the .ui file names them, timers, the module's bases.

Each widget has the properties and methods that the code may use of its class and raises AttributeError for all others;
MRML, the logic and the worker are real.
"""

from __future__ import annotations

import enum
import sys
import types
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import ClassVar

import vtk
from MSTKDSegmentLib import translation  # noqa: F401 - before a stand-in of slicer.app makes it look for a translator

COMMON = {"visible": True, "enabled": True, "toolTip": ""}
PROPERTIES = {
    "QLabel": {"text": "", "styleSheet": ""},
    "QLineEdit": {"text": "", "styleSheet": ""},
    "QComboBox": {"currentIndex": 0},
    "QPlainTextEdit": {"plainText": ""},
    "QProgressBar": {"value": 0},
}


class Widget:
    def __init__(self, kind: str, name: str) -> None:
        values = {**COMMON, **PROPERTIES.get(kind, {})}
        self.__dict__.update(values, kind=kind, name=name, _slots=[], _known=set(values))

    def __setattr__(self, name: str, value: object) -> None:
        if name not in self._known:
            raise AttributeError(f"{self.kind} {self.name} has no property {name}")
        if isinstance(self.__dict__[name], bool) and not isinstance(value, bool):
            raise TypeError(f"{self.name}.{name} must be bool, not {value!r}")
        if isinstance(self.__dict__[name], str) and not isinstance(value, str):
            raise TypeError(f"{self.name}.{name} must be str, not {value!r}")
        self.__dict__[name] = value


class Button(Widget):
    def connect(self, signal: str, slot) -> None:
        assert signal == "clicked(bool)"
        self._slots.append(slot)

    def click(self) -> None:
        assert self.enabled, f"{self.name} cannot be clicked"
        for slot in self._slots:
            slot(False)


class Log(Widget):
    def appendPlainText(self, line: str) -> None:  # noqa: N802
        self.plainText = f"{self.plainText}{line}\n"


class TableView(Widget):
    def __init__(self, kind: str, name: str) -> None:
        super().__init__(kind, name)
        self.__dict__["table"] = None

    def setMRMLTableNode(self, node) -> None:  # noqa: N802
        self.__dict__["table"] = node

    def resizeColumnsToContents(self) -> None:  # noqa: N802
        assert self.table is not None


class Changing(Widget):
    """A widget whose `signal` is sent when what it holds changes, by a person or by the program."""

    signal = ""

    def connect(self, signal: str, slot) -> None:
        assert signal == self.signal
        self._slots.append(slot)

    def _changed(self, value: object) -> None:
        for slot in self._slots:
            slot(value)


class ComboBox(Changing):
    signal = "currentIndexChanged(int)"

    def __setattr__(self, name: str, value: object) -> None:
        before = self.__dict__.get(name)
        super().__setattr__(name, value)
        if name == "currentIndex" and value != before:
            self._changed(value)


class NodeComboBox(Changing):
    signal = "currentNodeChanged(vtkMRMLNode*)"

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(kind, name)
        self.__dict__["node"] = None

    def currentNode(self):  # noqa: N802
        return self.node

    def setCurrentNode(self, node) -> None:  # noqa: N802
        if node is not self.node:
            self.__dict__["node"] = node
            self._changed(node)


class LineEdit(Changing):
    """Its signal is sent only for what a person types."""

    signal = "textEdited(QString)"

    def type(self, text: str) -> None:
        assert self.enabled, f"{self.name} cannot be typed in"
        self.text = text
        self._changed(text)


class Section(Widget):
    def layout(self):
        return types.SimpleNamespace(addWidget=lambda widget: None)


KINDS = {
    "QPushButton": Button,
    "QPlainTextEdit": Log,
    "qMRMLTableView": TableView,
    "QComboBox": ComboBox,
    "qMRMLNodeComboBox": NodeComboBox,
    "QLineEdit": LineEdit,
    "ctkCollapsibleButton": Section,
}


def widgets_of(ui_file: Path) -> types.SimpleNamespace:
    """Every widget of a .ui file by name, in the state that the file gives it."""
    found = {}
    for element in ET.parse(ui_file).getroot().iter("widget"):
        kind, name = element.get("class"), element.get("name")
        found[name] = KINDS.get(kind, Widget)(kind, name)
        for prop in element.findall("property"):
            if prop.get("name") in ("visible", "enabled"):
                setattr(found[name], prop.get("name"), prop.findtext("bool") == "true")
    return types.SimpleNamespace(**found)


class Timer:
    """`qt.QTimer` that fires when it is told to."""

    def __init__(self) -> None:
        self.active, self.single, self._slot = False, False, None

    def setInterval(self, _milliseconds: int) -> None:  # noqa: N802
        pass

    def setSingleShot(self, single: bool) -> None:  # noqa: N802
        self.single = single

    def connect(self, signal: str, slot) -> None:
        assert signal == "timeout()"
        self._slot = slot

    def start(self) -> None:
        self.active = True

    def stop(self) -> None:
        self.active = False

    def fire(self) -> None:
        if self.active:
            self.active = not self.single
            self._slot()


class FileDialog:
    """`qt.QFileDialog` that answers what `answers` holds, the next first; "" for a person who declines."""

    AcceptSave, DontConfirmOverwrite = 1, 4
    answers: ClassVar[list] = []
    confirms: ClassVar[list] = []

    def __init__(self, _parent, title: str, start: str, pattern: str) -> None:
        assert title and "*.csv" in pattern
        self.answer = ""

    def setAcceptMode(self, mode: int) -> None:  # noqa: N802
        assert mode == self.AcceptSave

    def setDefaultSuffix(self, suffix: str) -> None:  # noqa: N802
        assert suffix == "csv"

    def setOption(self, option: int, on: bool) -> None:  # noqa: N802
        assert option == self.DontConfirmOverwrite
        self.confirms.append(not on)

    def selectFile(self, name: str) -> None:  # noqa: N802
        assert name

    def exec_(self) -> int:
        self.answer = self.answers.pop(0)
        return int(bool(self.answer))

    def selectedFiles(self) -> tuple:  # noqa: N802
        return (self.answer,)

    @classmethod
    def getExistingDirectory(cls, _parent, _title: str, _start: str) -> str:  # noqa: N802
        return cls.answers.pop(0)

    @classmethod
    def getOpenFileName(cls, _parent, _title: str, _start: str, _pattern: str) -> str:  # noqa: N802
        return cls.answers.pop(0)


class Clipboard:
    text = ""

    @classmethod
    def setText(cls, text: str) -> None:  # noqa: N802
        cls.text = text


def qt_module() -> types.ModuleType:
    """What is used of `qt`."""
    qt = types.ModuleType("qt")
    qt.QTimer = Timer
    qt.QPalette = types.SimpleNamespace(Window=10)
    qt.QFileDialog = FileDialog
    qt.QApplication = types.SimpleNamespace(clipboard=lambda: Clipboard)
    FileDialog.answers, FileDialog.confirms = [], []
    return qt


def install_qt(monkeypatch) -> None:
    """Make `import qt` find the stand-in, in the library's files too that were imported with an earlier one."""
    monkeypatch.setitem(sys.modules, "qt", qt_module())
    for name in ("panel", "cases_panel", "widgets"):
        monkeypatch.delitem(sys.modules, f"MSTKDSegmentLib.slicer_review_{name}", raising=False)


def loaded_ui(path: str) -> types.SimpleNamespace:
    """As `slicer.util.loadUI`; `slicer.util.childWidgetVariables` of it is `widgets_of(widget.file)`."""
    return types.SimpleNamespace(file=Path(path), setMRMLScene=lambda scene: None)


class SliceWidget:
    fitted = 0

    def sliceController(self):  # noqa: N802
        return types.SimpleNamespace(fitSliceToBackground=self._fit)

    def _fit(self) -> None:
        self.fitted += 1


class Application:
    """The part of `slicer.app` that is used."""

    def __init__(self) -> None:
        self.connected = []
        self.slices = {}

    def layoutManager(self):  # noqa: N802
        return types.SimpleNamespace(sliceWidget=lambda name: self.slices.setdefault(name, SliceWidget()))

    def connect(self, signal: str, slot) -> None:
        self.connected.append((signal, slot))

    def disconnect(self, signal: str, slot) -> None:
        self.connected.remove((signal, slot))

    def palette(self):
        return types.SimpleNamespace(color=lambda _role: types.SimpleNamespace(lightness=lambda: 240))

    def processEvents(self) -> None:  # noqa: N802
        pass


class Choice(enum.Enum):
    """As the enums of `slicer_parameters`: what is used of them is their value."""

    LABELS = "labels"
    REGIONS = "regions"
    FINEST = ""
    T1 = "T1"
    CPU = "cpu"
    FIND_OUT = None
    YES = True
    NO = False
    AUTO = "auto"
    OWN = "own"


class Parameters:
    """A parameter node wrapper with the trait of Slicer's that bites: nodes are read again on ModifiedEvent only."""

    NODES = ("t1", "t1gd", "t2", "flair", "outputSegmentation", "brainMask")

    def __init__(self, node) -> None:
        self.__dict__.update(
            parameterNode=node,
            nodes={},
            segments=Choice.LABELS,
            reference=Choice.FINEST,
            device=Choice.CPU,
            weights="",
            surface=False,
            probabilities=False,
            registered=Choice.FIND_OUT,
            skullStripped=Choice.FIND_OUT,
            extractor=Choice.AUTO,
            biasCorrection=False,
        )
        node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_event: self._read())
        self._read()

    def _read(self) -> None:
        self.nodes.update({name: self.parameterNode.GetNodeReference(name) for name in self.NODES})

    def __getattr__(self, name: str):
        if name in self.NODES:
            return self.nodes[name]
        raise AttributeError(name)

    def __setattr__(self, name: str, value: object) -> None:
        if name in self.NODES:
            self.parameterNode.SetNodeReferenceID(name, value.GetID() if value is not None else None)
        else:
            assert name in self.__dict__
            self.__dict__[name] = value
        self.parameterNode.Modified()

    def connectGui(self, _gui) -> None:  # noqa: N802 - no tag, as in Slicer 5.6
        return None

    def disconnectGui(self, _tag) -> None:  # noqa: N802
        pass

    def AddObserver(self, event, callback, priority=0.0):  # noqa: N802
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag) -> None:  # noqa: N802
        self.parameterNode.RemoveObserver(tag)

    def Modified(self) -> None:  # noqa: N802
        self.parameterNode.Modified()

    def StartModify(self):  # noqa: N802
        return self.parameterNode.StartModify()

    def EndModify(self, was) -> None:  # noqa: N802
        self.parameterNode.EndModify(was)
