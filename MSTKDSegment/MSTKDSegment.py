# ruff: noqa: N802, N803, N815 - Slicer's names are camelCase
"""3D Slicer module: tumour segmentation from whichever of T1, T1Gd, T2 and FLAIR a patient has."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from pathlib import Path
from typing import NamedTuple, Optional

import ctk
import qt
import slicer
from MSTKDSegmentLib.errors import Cancelled, MSTKDError, RoleError
from MSTKDSegmentLib.modalities import MODALITIES
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

HELP = """
<p>Segments glioma on brain MRI from any non-empty subset of T1, T1Gd, T2 and FLAIR: leave empty what the patient does
not have. The result is a segmentation with necrotic and non-enhancing core (NCR), oedema (ED) and enhancing tumour
(ET) on the grid of the finest sequence, and a table of volumes.</p>
<p>The sequences must belong to one patient and be skull-stripped; they may differ in grid and stand under linear
transforms. PyTorch comes from the PyTorch extension.</p>
<p><b>For research use only. Not a medical device: never decide on a patient's care by its result alone.</b></p>
<p><a href="https://github.com/MSTKDSegment/SlicerMSTKDSegment">Documentation, tutorial and source code</a></p>
"""

ACKNOWLEDGEMENT = """
<p>The method follows: Zhu S., Chen Y., Chen W., Wang Y., Liu C., Jiang S., Qin F., Wang C.: "Bridging the Gap in
Missing Modalities: Leveraging Knowledge Distillation and Style Matching for Brain Tumor Segmentation", MICCAI 2025.
Please cite it when you publish results. This is an independent implementation, not the authors' code or weights.</p>
<p>For research use only.</p>
"""

TORCH_MISSING = (
    "PyTorch is not installed in this Slicer. Install the PyTorch extension (View > Extensions Manager), restart "
    "Slicer, install torch in the PyTorch Utils module, and press Segment again."
)


class MSTKDSegment(ScriptedLoadableModule):
    """What Slicer shows about the module."""

    def __init__(self, parent):
        super().__init__(parent)
        parent.title = "MSTKDSegment"
        parent.categories = ["Segmentation"]
        parent.dependencies = ["Segmentations", "Volumes"]
        parent.contributors = ["MSTKDSegment contributors"]
        parent.helpText = HELP
        parent.acknowledgementText = ACKNOWLEDGEMENT


class MSTKDSegmentWidget(ScriptedLoadableModuleWidget):
    """The panel: four inputs, an output, a device, one button, and the volumes of the last result."""

    def setup(self):
        super().setup()
        self.logic = MSTKDSegmentLogic()
        self.inputSelectors = {}
        self.layout.addWidget(self._createInputs())
        self.layout.addWidget(self._createOutput())
        self.segmentButton = qt.QPushButton("Segment")
        self.layout.addWidget(self.segmentButton)
        self.statusLabel = self._createTextLabel()
        self.layout.addWidget(self.statusLabel)
        self.layout.addWidget(self._createResult())
        self.layout.addStretch(1)
        self.segmentButton.connect("clicked(bool)", self.onSegment)
        self.onInputChanged()

    def enter(self):
        # A choice that somebody made, also the choice of nothing for one sequence, is left alone.
        if not self.chosenVolumes():
            self.onPropose()

    def _createInputs(self):
        box, form = self._createSection("Sequences (leave empty what is missing)")
        for modality in MODALITIES:
            selector = self._createSelector("vtkMRMLScalarVolumeNode", "None")
            selector.addEnabled = False
            selector.toolTip = f"The {modality} volume, if the patient has one"
            selector.connect("currentNodeChanged(vtkMRMLNode*)", self.onInputChanged)
            self.inputSelectors[modality] = selector
            form.addRow(f"{modality}:", selector)
        self.proposeButton = qt.QPushButton("Fill in from the volumes' names")
        self.proposeButton.toolTip = "Fills the empty inputs; what is chosen already stays"
        self.proposeButton.connect("clicked(bool)", self.onPropose)
        form.addRow(self.proposeButton)
        self.proposalLabel = self._createTextLabel()
        form.addRow(self.proposalLabel)
        return box

    def _createOutput(self):
        box, form = self._createSection("Output")
        self.outputSelector = self._createSelector("vtkMRMLSegmentationNode", "New segmentation")
        self.outputSelector.addEnabled = True
        self.outputSelector.renameEnabled = True
        self.outputSelector.toolTip = (
            "In an existing segmentation, the segments of an earlier result of this module are replaced, edits "
            "included; all others are kept"
        )
        form.addRow("Segmentation:", self.outputSelector)
        self.deviceSelector = qt.QComboBox()
        self.deviceSelector.addItems(["auto", "cpu", "cuda"])
        self.deviceSelector.toolTip = "auto takes the GPU with the most free memory and says so when it finds none"
        form.addRow("Device:", self.deviceSelector)
        return box

    def _createResult(self):
        box, form = self._createSection("Result")
        self.volumesTable = qt.QTableWidget()
        self.volumesTable.setColumnCount(2)
        self.volumesTable.setHorizontalHeaderLabels(["Structure", "Volume (ml)"])
        self.volumesTable.setEditTriggers(qt.QAbstractItemView.NoEditTriggers)
        self.volumesTable.horizontalHeader().setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        self.volumesTable.verticalHeader().setVisible(False)
        form.addRow(self.volumesTable)
        self.noticesLabel = self._createTextLabel()
        self.noticesLabel.styleSheet = "color: #c05000; font-weight: bold"
        form.addRow(self.noticesLabel)
        self.resultBox = box
        box.visible = False
        return box

    @staticmethod
    def _createSection(title):
        box = ctk.ctkCollapsibleButton()
        box.text = title
        return box, qt.QFormLayout(box)

    @staticmethod
    def _createSelector(nodeClass, textForNone):
        selector = slicer.qMRMLNodeComboBox()
        selector.nodeTypes = [nodeClass]
        selector.noneEnabled = True
        selector.noneDisplay = textForNone
        selector.removeEnabled = False
        selector.showHidden = False
        selector.showChildNodeTypes = False
        # Volumes that are loaded later must not slip into an input that was left empty on purpose.
        selector.selectNodeUponCreation = nodeClass == "vtkMRMLSegmentationNode"
        selector.setMRMLScene(slicer.mrmlScene)
        return selector

    @staticmethod
    def _createTextLabel():
        label = qt.QLabel()
        label.wordWrap = True
        label.textFormat = qt.Qt.PlainText
        label.setTextInteractionFlags(qt.Qt.TextSelectableByMouse)
        return label

    def chosenVolumes(self):
        """The volume nodes chosen, by sequence; those left empty are not in it."""
        nodes = {modality: selector.currentNode() for modality, selector in self.inputSelectors.items()}
        return {modality: node for modality, node in nodes.items() if node is not None}

    def onInputChanged(self, _node=None):
        problem = self.logic.problemWith(self.chosenVolumes())
        self.segmentButton.enabled = not problem
        self.segmentButton.toolTip = problem or "Segment the tumour from the sequences chosen"
        self.statusLabel.text = problem

    def onPropose(self, _checked=False):
        chosen = self.chosenVolumes()
        used = {node.GetID() for node in chosen.values()}
        volumes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        free = [node for node in volumes if node.GetID() not in used and not node.GetHideFromEditors()]
        proposed, reasons = self.logic.proposeVolumes(free)
        for modality, node in proposed.items():
            if modality not in chosen:
                self.inputSelectors[modality].setCurrentNode(node)
        self.proposalLabel.text = "\n".join(reasons)

    def onSegment(self, _checked=False):
        # Modal: while events are processed, nobody can start a second run or close the scene under this one.
        dialog = slicer.util.createProgressDialog(
            windowTitle="MSTKDSegment",
            labelText="starting",
            autoClose=False,
            autoReset=False,
            windowModality=qt.Qt.ApplicationModal,
        )

        def showProgress(fraction, text):
            dialog.labelText = text
            dialog.value = round(100 * fraction)
            slicer.app.processEvents()

        result, failure = None, ""
        try:
            result = self.logic.segment(
                self.chosenVolumes(),
                self.outputSelector.currentNode(),
                self.deviceSelector.currentText,
                progress=showProgress,
                cancel=lambda: dialog.wasCanceled,
            )
        except Cancelled:
            self.statusLabel.text = "Cancelled; the scene is as it was."
        except MSTKDError as error:
            failure = str(error)
        except Exception as error:  # anything else would end as a text in the Python console that nobody sees
            logging.exception("MSTKDSegment failed")
            failure = f"Unexpected {type(error).__name__}: {error}. The error log (View > Error Log) has the details."
        finally:
            dialog.close()
            dialog.deleteLater()
        if failure:
            self.statusLabel.text = failure
            slicer.util.errorDisplay(failure, windowTitle="MSTKDSegment")
        if result is not None:
            self.showResult(result)

    def showResult(self, result):
        from MSTKDSegmentLib.regions import LABELS, REGIONS  # scipy would slow down Slicer's start
        from MSTKDSegmentLib.report_template import format_ml

        titles = {structure.key: structure.title for structure in (*REGIONS, *LABELS)}
        self.volumesTable.setRowCount(len(titles))
        self.tableItems = []  # PythonQt would delete items that Python no longer refers to
        for row, (key, title) in enumerate(titles.items()):
            for column, text in enumerate((title, format_ml(result.volumesMl[key]))):
                item = qt.QTableWidgetItem(text)
                self.tableItems.append(item)
                self.volumesTable.setItem(row, column, item)
        self.noticesLabel.text = "\n".join(result.notices)
        self.noticesLabel.visible = bool(result.notices)
        self.resultBox.visible = True
        self.statusLabel.text = f"{result.node.GetName()}: done on {result.provenance['device']}."


class SegmentResult(NamedTuple):
    """The segmentation node, volumes in ml by NCR, ED, ET, WT and TC, sentences to show, and how it was made."""

    node: object
    volumesMl: dict
    notices: tuple
    provenance: dict


class MSTKDSegmentLogic(ScriptedLoadableModuleLogic):
    """The way from volume nodes to a segmentation node, for the panel, the Python console and scripts."""

    def problemWith(self, volumes):
        """Why these volume nodes by sequence cannot be segmented, in one line; "" where nothing is wrong."""
        given = {modality: node for modality, node in volumes.items() if node is not None}
        unknown = [modality for modality in given if modality not in MODALITIES]
        if unknown:
            return f"Unknown sequence {', '.join(unknown)}; the sequences are {', '.join(MODALITIES)}."
        if not given:
            return f"Choose at least one of {', '.join(MODALITIES)}."
        firstUse = {}
        for modality, node in given.items():
            other = firstUse.setdefault(node.GetID(), modality)
            if other != modality:
                return f"{node.GetName()} is chosen as {other} and as {modality}; choose it once."
        return ""

    def proposeVolumes(self, volumeNodes):
        """Volume nodes by the sequence that their names speak of, and a sentence for every node.

        A node that could be one sequence or another is in the sentences only: the person decides.
        """
        from MSTKDSegmentLib.case_roles import propose_roles

        # Label maps and colour volumes are kinds of scalar volumes in MRML, but no inputs.
        nodes = [node for node in volumeNodes if node.GetClassName() == "vtkMRMLScalarVolumeNode"]
        proposals = propose_roles([Path(node.GetName() or "unnamed") for node in nodes])
        proposed = {proposal.modality: node for proposal, node in zip(proposals, nodes) if proposal.modality}
        reasons = [
            f"{node.GetName()} → {proposal.modality or 'not chosen'}: {proposal.reason}"
            for proposal, node in zip(proposals, nodes)
        ]
        return proposed, reasons

    def segment(
        self, volumes: dict, outputNode=None, device: str = "auto", progress=None, cancel=None
    ) -> SegmentResult:
        """Segment the tumour from `volumes`, scalar volume nodes by "T1", "T1Gd", "T2", "FLAIR" (any subset).

        outputNode: a segmentation node, or None for a new one. device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        progress(fraction, text) is called along the way; a true cancel() ends the run with `Cancelled`. Whatever is
        raised, the scene is as it was. Raises MSTKDError (and its kinds) with one line that says what to do.
        """
        problem = self.problemWith(volumes)
        if problem:
            raise RoleError(problem)
        self.requireTorch()
        # Slicer reads every module at its start: what brings scipy and torch waits until it is needed.
        from MSTKDSegmentLib import pipeline, slicer_scene

        given = {modality: node for modality, node in volumes.items() if node is not None}
        if outputNode is not None:
            slicer_scene.check_output_node(outputNode)
        sources = {modality: slicer_scene.volume_from_node(node) for modality, node in given.items()}
        segmentation = pipeline.Segmenter(device=device).segment(sources, progress=progress, cancel=cancel)
        node = slicer_scene.add_segmentation(
            segmentation.labels,
            given[segmentation.case.reference],
            output_node=outputNode,
            provenance=segmentation.provenance,
        )
        return SegmentResult(
            node, dict(segmentation.volumes_ml), tuple(segmentation.notices), dict(segmentation.provenance)
        )

    @staticmethod
    def torchInstalled() -> bool:
        return importlib.util.find_spec("torch") is not None

    def requireTorch(self):
        """Raises MSTKDError, with what to do, where torch is missing or its installation is damaged."""
        if not self.torchInstalled():
            raise MSTKDError(TORCH_MISSING)
        try:
            importlib.import_module("torch")
        except (ImportError, OSError) as error:
            raise MSTKDError(
                f"PyTorch is installed, but cannot be loaded ({error}). Uninstall torch in the PyTorch Utils module, "
                "restart Slicer and install it again."
            ) from error


class MSTKDSegmentTest(ScriptedLoadableModuleTest):
    """Runs inside Slicer: the whole way on the sample patient."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_problemsAreNamed()
        self.setUp()
        self.test_samplePatient()

    def test_problemsAreNamed(self):
        logic = MSTKDSegmentLogic()
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "head")
        self.assertIn("at least one", logic.problemWith({"T1": None}))
        self.assertIn("T1 and as T2", logic.problemWith({"T1": node, "T2": node}))
        self.assertEqual(logic.problemWith({"FLAIR": node}), "")

    def test_samplePatient(self):
        folder = self.sampleFolder()
        if folder is None or not MSTKDSegmentLogic.torchInstalled():
            missing = "the sample patient (part of the repository only)" if folder is None else "PyTorch"
            logging.warning("MSTKDSegmentTest.test_samplePatient skipped: %s is missing", missing)
            return
        loaded = [slicer.util.loadVolume(str(path)) for path in sorted(folder.glob("sample_*.nii.gz"))]
        truth = next(node for node in loaded if node.GetName().startswith("sample_seg"))
        volumes, _ = MSTKDSegmentLogic().proposeVolumes([node for node in loaded if node is not truth])
        self.assertEqual(set(volumes), set(MODALITIES))
        fractions = []
        result = MSTKDSegmentLogic().segment(volumes, progress=lambda fraction, _text: fractions.append(fraction))
        self.assertEqual(result.node.GetSegmentation().GetNumberOfSegments(), 3)
        self.assertEqual(fractions, sorted(fractions))
        spacing = truth.GetSpacing()
        truthMl = (slicer.util.arrayFromVolume(truth) > 0).sum() * spacing[0] * spacing[1] * spacing[2] / 1000
        # The sample is synthetic: this asks whether the tumour is found, not how well.
        self.assertLess(abs(result.volumesMl["WT"] - truthMl), 0.5 * truthMl)

    @staticmethod
    def sampleFolder() -> Optional[Path]:
        folder = Path(__file__).resolve().parent.parent / "Resources" / "sample"
        return folder if (folder / "sample_t1.nii.gz").is_file() else None
