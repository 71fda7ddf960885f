# ruff: noqa: N802, N803 - Slicer's names are camelCase
"""3D Slicer module: tumour segmentation from whichever of T1, T1Gd, T2 and FLAIR a patient has.

Thin on purpose: widgets, events and the scene are here, everything that can be thought out without Slicer's window is
in MSTKDSegmentLib.
"""

import hashlib
import logging
import sys
from pathlib import Path
from typing import Optional

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

REPOSITORY = "https://github.com/MSTKDSegment/SlicerMSTKDSegment"
SAMPLE_SHA256 = {
    "T1": "5f42923652b93f1c0b88a56bfd3d2cf1881e7c629cec1bb787279b9e0c3b93f1",
    "T1Gd": "1ca7c4cc9e27c6dc598227c742c412ac88235506abd4175c31845d5cd143e4ab",
    "T2": "20246c9c850a5fab1bcfcb8ee38927630be71af45448ad84e698b51a51365315",
    "FLAIR": "1f09ca6ffdf3c613b14342caefe438495f7af241111850aa794e71f25d218d53",
}
INPUTS = {"t1": "T1", "t1gd": "T1Gd", "t2": "T2", "flair": "FLAIR"}
"""Names of the parameters that hold the inputs, and the sequences that they are."""

TICK_MS, SETTLE_MS = 100, 200
PREPARED_OPACITY = 0.5
WARNING_ON_LIGHT, WARNING_ON_DARK, MIDDLE_LIGHTNESS = "#a04000", "#ffb070", 128


class MSTKDSegment(ScriptedLoadableModule):
    """What Slicer shows about the module."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("MSTKDSegment")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = ["Segmentations", "Volumes"]
        parent.contributors = ["MSTKDSegment contributors"]
        parent.helpText = _(
            "<p>Segments glioma on brain MRI from any non-empty subset of T1, T1Gd, T2 and FLAIR: leave empty what the "
            "patient does not have. The result is a segmentation with necrotic and non-enhancing core (NCR), oedema "
            "(ED) and enhancing tumour (ET), or with the nested regions whole tumour, tumour core and enhancing "
            "tumour, on the grid of one sequence, and a table of volumes and diameters.</p>"
            "<p>The sequences must belong to one patient. Where they need it, the skull is removed, the sequences are "
            "registered to each other, and the head is turned upright; they may differ in grid and stand under linear "
            "transforms. PyTorch comes from the PyTorch extension. Nothing leaves this computer.</p>"
            "<p><b>For research use only. Not a medical device: never decide on a patient's care by its result "
            "alone.</b></p>"
        ) + _('<p><a href="{url}">Documentation, tutorial and source code</a></p>').format(url=REPOSITORY)
        parent.acknowledgementText = _(
            "<p>The method follows: Zhu S., Chen Y., Chen W., Wang Y., Liu C., Jiang S., Qin F., Wang C.: "
            '"Bridging the Gap in Missing Modalities: Leveraging Knowledge Distillation and Style Matching for Brain '
            'Tumor Segmentation", MICCAI 2025. Please cite it when you publish results. This is an independent '
            "implementation, not the authors' code or weights.</p><p>For research use only.</p>"
        )
        slicer.app.connect("startupCompleted()", onStartupCompleted)


def onStartupCompleted():
    """Tell Slicer of the sample patient and of the segments' terminology, once all modules are there."""
    registerSampleData()
    terminologies = getattr(slicer.modules, "terminologies", None)
    file = Path(__file__).resolve().parent / "Resources" / "Terminologies" / "MSTKDSegment.term.json"
    if terminologies is not None and file.is_file():
        terminologies.logic().LoadTerminologyFromFile(str(file))


def registerSampleData():
    """Offer the synthetic sample patient in the Sample Data module: from this checkout, or as a download."""
    try:
        from SampleData import SampleDataLogic
    except ImportError:
        logging.info("MSTKDSegment: no Sample Data module, so the sample patient is not offered there")
        return
    names = {sequence: f"sample_{sequence.lower()}.nii.gz" for sequence in SAMPLE_SHA256}
    folder = MSTKDSegmentTest.sampleFolder()
    here = f"{REPOSITORY}/raw/main/Resources/sample" if folder is None else folder.as_uri()
    SampleDataLogic.registerCustomSampleDataSource(
        category="MSTKDSegment",
        sampleName="Synthetic glioma (T1, T1Gd, T2, FLAIR)",
        thumbnailFileName=str(Path(__file__).resolve().parent / "Resources" / "Icons" / "MSTKDSegment.png"),
        uris=[f"{here}/{name}" for name in names.values()],
        fileNames=[f"MSTKDSegment_{name}" for name in names.values()],
        nodeNames=[f"Sample {sequence}" for sequence in names],
        checksums=[f"SHA256:{digest}" for digest in SAMPLE_SHA256.values()],
        loadFileType=["VolumeFile"] * len(names),
    )


class MSTKDSegmentWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Shows the state that `MSTKDSegmentLib.panel` thinks out, and one run at a time."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self.task = None
        self._busy = False
        self._proposed = {}
        self._beforeImport = {}
        self._shown = None
        self._output = None
        self._result = None
        self._device = None
        self._parameterNode = None
        self._guiTag = None
        self._observed, self._tags = [], []

    # --- life ---

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/MSTKDSegment.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = MSTKDSegmentLogic()
        # Orange that can be read on a light panel is dark, and the other way round.
        dark = slicer.app.palette().color(qt.QPalette.Window).lightness() < MIDDLE_LIGHTNESS
        self._warningStyle = f"color: {WARNING_ON_DARK if dark else WARNING_ON_LIGHT};"
        for name in INPUTS:
            getattr(self.ui, f"{name}FlagLabel").styleSheet = self._warningStyle
        self.ui.noticeLabel.styleSheet = self._warningStyle

        self.review = self._addReview()

        self.ticker = qt.QTimer()
        self.ticker.setInterval(TICK_MS)
        self.ticker.connect("timeout()", self.onTick)
        self.settler = qt.QTimer()  # many events, one look at the scene
        self.settler.setSingleShot(True)
        self.settler.setInterval(SETTLE_MS)
        self.settler.connect("timeout()", self.onSceneSettled)

        self.ui.proposeButton.connect("clicked(bool)", self.onPropose)
        self.ui.segmentButton.connect("clicked(bool)", self.onSegment)
        self.ui.cancelButton.connect("clicked(bool)", self.onCancel)
        self.ui.installTorchButton.connect("clicked(bool)", self.onInstallTorch)
        self.ui.checkDeviceButton.connect("clicked(bool)", self.onCheckDevice)
        self.ui.weightsButton.connect("clicked(bool)", self.onChooseWeights)
        self.ui.showPreparedButton.connect("clicked(bool)", self.onShowPrepared)

        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(scene, scene.StartImportEvent, self.onSceneStartImport)
        self.addObserver(scene, scene.EndImportEvent, self.onSceneEndImport)
        for event in (scene.NodeAddedEvent, scene.NodeRemovedEvent):
            self.addObserver(scene, event, self.onSceneChanged)
        self.addObserver(scene, scene.NodeAboutToBeRemovedEvent, self.onNodeAboutToBeRemoved)
        slicer.app.connect("aboutToQuit()", self.onQuit)
        self.initializeParameterNode()

    def _addReview(self):
        from MSTKDSegmentLib.slicer_review_panel import ReviewPanel

        widget = slicer.util.loadUI(self.resourcePath("UI/MSTKDSegmentReview.ui"))
        self.ui.reviewCollapsibleButton.layout().addWidget(widget)
        return ReviewPanel(widget, self._warningStyle)

    def cleanup(self):
        """The application closes, or the module is reloaded: no process may stay behind."""
        self.onQuit()
        self.review.cleanup()
        slicer.app.disconnect("aboutToQuit()", self.onQuit)
        self.ticker.stop()
        self.settler.stop()
        self._observeInputs({})
        self.removeObservers()

    def onReload(self):
        """For developers: the library is loaded again too."""
        for name in [name for name in sys.modules if name.split(".")[0] == "MSTKDSegmentLib"]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def enter(self):
        self.review.refresh()
        self.initializeParameterNode()
        self.proposeWhereNobodyChose()

    def onQuit(self):
        if self.task is not None:
            self.task.cancel()

    # --- parameters ---

    def initializeParameterNode(self):
        """Follow this scene's parameter node; one that is followed already is kept (5.6 cannot disconnect a panel)."""
        raw = self.logic.rawParameterNode()
        if self._parameterNode is None or self._parameterNode.parameterNode is not raw:
            self.setParameterNode(self.logic.getParameterNode())
        else:
            self.refresh()

    def setParameterNode(self, parameterNode):
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._guiTag)
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.refresh)
        self._parameterNode = parameterNode
        self._guiTag = None
        if parameterNode is not None:
            self._guiTag = parameterNode.connectGui(self.ui)
            self.addObserver(parameterNode, vtk.vtkCommand.ModifiedEvent, self.refresh)
            self.refresh()

    def chosenVolumes(self):
        """The volume nodes chosen, by sequence; those left empty are not in it."""
        nodes = {sequence: getattr(self._parameterNode, name) for name, sequence in INPUTS.items()}
        return {sequence: node for sequence, node in nodes.items() if node is not None}

    def chosenPreparation(self):
        """What the user says of the preparation, as the logic's options."""
        parameters = self._parameterNode
        return {
            "registered": parameters.registered.value,
            "skull_stripped": parameters.skullStripped.value,
            "brain_mask": parameters.brainMask,
            "extractor": parameters.extractor.value,
            "bias_correction": parameters.biasCorrection,
        }

    # --- what is shown before a run ---

    def refresh(self, _caller=None, _event=None):
        """Show what the panel says of the present choice."""
        if self._parameterNode is None:
            return
        volumes, preparation = self.chosenVolumes(), self.chosenPreparation()
        mask = preparation["brain_mask"]
        self._observeInputs(volumes if mask is None else {**volumes, "brain mask": mask})
        state, weightsText = self.logic.panelState(
            volumes,
            self._parameterNode.reference.value,
            self._parameterNode.weights,
            self._parameterNode.outputSegmentation,
            **preparation,
        )
        if self._parameterNode.device is not self._device:  # what was said of another device
            self._device = self._parameterNode.device
            if not self._busy:
                self._tell(self.ui.deviceLabel, "")
        output = self._parameterNode.outputSegmentation
        chosenNow = output is not self._output and output is not None and self.logic.tableOf(output)[0] is not None
        if chosenNow or (self._shown is None and output is not None):
            self.showTableOf(output)
        self._output = output
        for name, sequence in INPUTS.items():
            getattr(self.ui, f"{name}Selector").toolTip = state.tips[sequence]
            self._tell(getattr(self.ui, f"{name}FlagLabel"), state.flags.get(sequence, ""))
        self._tell(self.ui.planLabel, state.plan)
        self._tell(self.ui.expectationLabel, state.expectation)
        self._tell(self.ui.weightsLabel, weightsText)
        self.ui.torchCollapsibleButton.visible = not self.logic.torchInstalled()
        running = self.task is not None or self._busy
        self.ui.segmentButton.enabled = not state.problem and not running
        self.ui.segmentButton.toolTip = state.problem or _("Segment the tumour from the sequences chosen")
        self._tell(self.ui.problemLabel, "" if running else state.problem)

    @staticmethod
    def _tell(label, text):
        label.text = text
        label.visible = bool(text)

    def _observeInputs(self, volumes):
        """Name, voxels and transforms of what is chosen may change while the panel is open."""
        nodes = list({node.GetID(): node for node in volumes.values()}.values())
        if [id(node) for node in nodes] == [id(node) for node in self._observed]:
            return
        # Not through the mixin, which would keep every volume ever chosen in memory.
        for node, tag in self._tags:
            node.RemoveObserver(tag)
        events = (vtk.vtkCommand.ModifiedEvent, slicer.vtkMRMLTransformableNode.TransformModifiedEvent)
        self._tags = [(node, node.AddObserver(event, self.onSceneChanged)) for node in nodes for event in events]
        self._observed = nodes

    def onSceneChanged(self, _caller=None, _event=None):
        self.settler.start()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAboutToBeRemoved(self, _caller, _event, node):
        """Empty its selector first: by itself the combo box would go on to some other volume without a word."""
        if self._parameterNode is None or slicer.mrmlScene.IsClosing():
            return
        for name in (*INPUTS, "outputSegmentation", "brainMask"):
            if getattr(self._parameterNode, name) is node:
                setattr(self._parameterNode, name, None)
        if self._shown is not None and node in (self._shown, self.logic.tableOf(self._shown)[0]):
            self.showTableOf(None)
            self._tell(self.ui.statusLabel, "")
        if self._result is not None and node is self._result.node:
            self._result = None  # and with it the prepared volumes

    def onSceneSettled(self):
        if slicer.mrmlScene.IsBatchProcessing():
            self.settler.start()
            return
        self.refresh()
        if self.parent.isEntered:
            self.proposeWhereNobodyChose()

    def onSceneStartClose(self, _caller, _event):
        if self.task is not None:
            self.task.cancel(_("The scene was closed; the segmentation was stopped."))
            self.onTick()
        else:
            self._tell(self.ui.statusLabel, "")
        self._tell(self.ui.noticeLabel, "")
        self._tell(self.ui.proposalLabel, "")
        self._observeInputs({})
        self._proposed = {}
        self._result = None
        self.showTableOf(None)

    def onSceneEndClose(self, _caller, _event):
        self.initializeParameterNode()

    def onSceneStartImport(self, _caller, _event):
        """The combo boxes lose what is chosen when a scene is added: Slicer fills them anew at the end of an import."""
        names = (*INPUTS, "outputSegmentation", "brainMask") if self._parameterNode is not None else ()
        self._beforeImport = {name: getattr(self._parameterNode, name) for name in names}

    def onSceneEndImport(self, _caller, _event):
        self.initializeParameterNode()
        # A file may name volumes before it holds them; the wrapper remembers that it found none until it is told.
        self._parameterNode.Modified()
        if not self.chosenVolumes():
            for name, node in self._beforeImport.items():
                if node is not None and node.GetScene() is slicer.mrmlScene:
                    setattr(self._parameterNode, name, node)
        self._beforeImport = {}

    # --- proposals ---

    def proposeWhereNobodyChose(self):
        """Fill the selectors while volumes arrive, one after another as they may.

        A choice that somebody made, also the choice of nothing for one sequence, is left alone.
        """
        if self._parameterNode is None or self.task is not None or self.review.reading.items:
            return  # who goes through a worklist did not come to segment each case
        chosen = self.chosenVolumes()
        if not chosen:
            self.onPropose()
            self._proposed = self.chosenVolumes()
        elif chosen == self._proposed:
            proposed, _sentence = self.logic.proposeFor({})
            if len(proposed) > len(chosen) and all(proposed.get(key) is node for key, node in chosen.items()):
                self._choose(proposed)
                self._proposed = self.chosenVolumes()

    def onPropose(self, _checked=False):
        chosen = self.chosenVolumes()
        if len(chosen) == len(INPUTS):
            self._tell(self.ui.proposalLabel, _("All four are chosen. Set one to None to have it proposed again."))
            return
        proposed, sentence = self.logic.proposeFor(chosen)
        self._choose({sequence: node for sequence, node in proposed.items() if sequence not in chosen})
        self._tell(self.ui.proposalLabel, sentence)

    def _choose(self, volumes):
        with slicer.util.NodeModify(self._parameterNode):
            for name, sequence in INPUTS.items():
                if sequence in volumes:
                    setattr(self._parameterNode, name, volumes[sequence])

    # --- a run ---

    def onSegment(self, _checked=False):
        if self.task is not None or self._busy:
            return
        parameters = self._parameterNode
        replace = False
        output = parameters.outputSegmentation
        doomed = [] if output is None else self.logic.segmentsToReplace(output)
        if doomed:
            replace = slicer.util.confirmOkCancelDisplay(
                _(
                    "{name} holds an earlier result. These segments will be replaced, edits included: {segments}. All "
                    "others in it stay. Replace them?"
                ).format(name=output.GetName(), segments=", ".join(doomed)),
                windowTitle=_("MSTKDSegment"),
            )
            if not replace:
                return
        self.ui.logTextEdit.plainText = ""
        for label in (self.ui.noticeLabel, self.ui.statusLabel, self.ui.deviceLabel):
            self._tell(label, "")
        try:
            self.task = self.logic.start(
                self.chosenVolumes(),
                parameters.outputSegmentation,
                parameters.device.value,
                segments=parameters.segments.value,
                reference=parameters.reference.value if parameters.reference.value in self.chosenVolumes() else "",
                weights=parameters.weights,
                surface=parameters.surface,
                probabilities=parameters.probabilities,
                replace=replace,
                keep=True,
                **self.chosenPreparation(),
            )
        except Exception as error:
            self.showFailure(error)
            return
        self._setRunning(True)
        self.onTick()
        if self.task is not None:
            self.ticker.start()

    def onCancel(self, _checked=False):
        if self.task is not None:
            self.task.cancel()
            self.onTick()

    def onTick(self):
        """Show how far the run is; called ten times a second while there is one."""
        task = self.task
        if task is None:
            return
        going = task.poll()
        for line in task.new_lines():
            self.ui.logTextEdit.appendPlainText(line)
        self.ui.progressBar.value = round(100 * task.fraction)
        self._tell(self.ui.noticeLabel, task.device_notice)
        if going:
            self._say(task.status)
            return
        self.ticker.stop()
        self.task = None
        self._setRunning(False)
        if task.outcome is not None:
            self.showResult(task.outcome, task.seconds, task.device_notice)
        elif task.error is not None:
            self.showFailure(task.error, task.message)
        else:
            self._say(task.message)

    def _setRunning(self, running):
        self.ui.cancelButton.enabled = running
        self.ui.progressBar.visible = running
        self.ui.progressBar.value = 0
        for section in (self.ui.inputsCollapsibleButton, self.ui.outputCollapsibleButton):
            section.enabled = not running
        self.ui.advancedCollapsibleButton.enabled = not running
        self.refresh()

    def showFailure(self, error, message=""):
        """In the panel, in the error log and in the status bar: a window over the images would only be in the way."""
        message = message or str(error)
        known = self.logic.isExpected(error)
        logging.error("MSTKDSegment: %s", message, exc_info=None if known else error)
        slicer.util.showStatusMessage(f"MSTKDSegment: {message}", 10000)
        self._say(message, warning=True)

    def showResult(self, result, seconds, deviceNotice):
        """The table, how long it took and what was said of the run."""
        self._result = result
        self.showTableOf(result.node)
        self._say(_("{name}: done in {seconds:.0f} s.").format(name=result.node.GetName(), seconds=seconds))
        self._tell(self.ui.noticeLabel, "\n".join(filter(None, (deviceNotice, *result.notices))))

    def showTableOf(self, segmentation):
        """The measurements that belong to a segmentation node; None, or one without any, takes the section away."""
        table, about = (None, "") if segmentation is None else self.logic.tableOf(segmentation)
        self._shown = segmentation if table is not None else None
        self.ui.resultCollapsibleButton.visible = table is not None
        self.ui.resultTableView.setMRMLTableNode(table)
        self._tell(self.ui.provenanceLabel, about)
        if table is not None:
            self.ui.resultTableView.resizeColumnsToContents()
        self._refreshPreparedButton()

    def _refreshPreparedButton(self):
        there = self._shown is not None and (
            self._resultOfShown() is not None or self.logic.preparedNodes(self._shown) is not None
        )
        self.ui.showPreparedButton.enabled = there
        self.ui.showPreparedButton.toolTip = (
            _("Show what the network saw: without skull, registered, upright; with the brain's outline")
            if there
            else _("What the network saw is kept for the latest result until the scene is closed; segment again")
        )

    def _resultOfShown(self):
        return self._result if self._result is not None and self._result.node is self._shown else None

    def onShowPrepared(self, _checked=False):
        """Half transparent over the native reference, so that the place and the brain's outline can be judged."""
        try:
            nodes = self.logic.preparedNodes(self._shown, self._resultOfShown())
        except Exception as error:
            self.showFailure(error)
            return
        if nodes is not None:
            slicer.util.setSliceViewerLayers(
                background=nodes.native, foreground=nodes.overlay, foregroundOpacity=PREPARED_OPACITY, fit=True
            )
        self._refreshPreparedButton()

    def _say(self, text, warning=False):
        """How a run goes or ended; a warning in the colour of warnings."""
        self.ui.statusLabel.styleSheet = self._warningStyle if warning else ""
        self._tell(self.ui.statusLabel, text)

    # --- PyTorch, device, weights ---

    def onInstallTorch(self, _checked=False):
        self._tryDevice(lambda: self.logic.installTorch(self._parameterNode.device.value))

    def onCheckDevice(self, _checked=False):
        self._tryDevice(lambda: self.logic.checkDevice(self._parameterNode.device.value))

    def _tryDevice(self, attempt):
        if self._busy or self.task is not None:  # events are processed meanwhile, clicks too
            return
        self._setBusy(True)
        self._tell(self.ui.deviceLabel, _("Trying; the first time this takes a while..."))
        slicer.app.processEvents()
        try:
            report = attempt()
        except Exception as error:
            self._tell(self.ui.deviceLabel, str(error))
            logging.error("MSTKDSegment: %s", error, exc_info=None if self.logic.isExpected(error) else error)
        else:
            self._tell(self.ui.deviceLabel, "" if report is None else report.sentence())
        finally:
            self._setBusy(False)

    def _setBusy(self, busy):
        self._busy = busy
        self.ui.installTorchButton.enabled = not busy
        self.ui.checkDeviceButton.enabled = not busy
        self.refresh()

    def onChooseWeights(self, _checked=False):
        path = qt.QFileDialog.getOpenFileName(slicer.util.mainWindow(), _("Weights"), "", _("Weights bundles (*.zip)"))
        if path:
            self._parameterNode.weights = path


class MSTKDSegmentLogic(ScriptedLoadableModuleLogic):
    """The way from volume nodes to a segmentation node, for the panel, the Python console and scripts.

    Its parts are in MSTKDSegmentLib, which is loaded when the first logic is made: Slicer reads every module's file at
    its start, and scipy would slow that down.
    """

    def __init__(self):
        ScriptedLoadableModuleLogic.__init__(self)
        from MSTKDSegmentLib.slicer_logic import SegmentLogic

        self.core = SegmentLogic(instance_value=_dicomValue)

    def rawParameterNode(self):
        return ScriptedLoadableModuleLogic.getParameterNode(self)

    def getParameterNode(self):
        from MSTKDSegmentLib.slicer_parameters import MSTKDSegmentParameterNode

        return MSTKDSegmentParameterNode(self.rawParameterNode())

    def segment(self, volumes, outputNode=None, device="auto", **options):
        """Segment the tumour from scalar volume nodes by "T1", "T1Gd", "T2", "FLAIR" (any subset) and wait for it.

        outputNode: a segmentation node, None for a new one. device: "auto", "cpu", "cuda", "cuda:N" or "mps". Options:
        segments ("labels" or "regions"), reference (a sequence), weights (path of a bundle), surface, probabilities,
        replace (an earlier result in outputNode), progress(fraction, text), cancel(), keep (for `preparedNodes`). Of
        the preparation: registered, skull_stripped (True, False, None to find out), brain_mask (a node: volume or
        segmentation), extractor ("auto", "own", "hd-bet", "synthstrip", "deepbet"), bias_correction. Returns a
        SegmentResult: node, table, probabilities, volumes_ml, notices, provenance, record, prepared. Whatever is
        raised, the scene is as it was. Raises MSTKDError and its kinds (MSTKDSegmentLib.errors), one line that says
        what to do.
        """
        return self.core.segment(volumes, outputNode, device, **options)

    def start(self, volumes, outputNode=None, device="auto", **options):
        """As `segment`, but returns at once a task that is to be polled; see MSTKDSegmentLib.run_task."""
        return self.core.start(volumes, outputNode, device, **options)

    def problemWith(self, volumes):
        """Why these volume nodes by sequence cannot be segmented, in one line; "" where nothing is in the way."""
        return self.core.problemWith(volumes)

    def proposeVolumes(self, volumeNodes):
        """Volume nodes by the sequence that their names or DICOM headers speak of, and the proposal for every node."""
        return self.core.proposeVolumes(volumeNodes)

    def proposeFor(self, chosen):
        """For the sequences that are not in `chosen`, proposals from the scene; and a sentence on what to decide."""
        used = {node.GetID() for node in chosen.values()}
        nodes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        free = [node for node in nodes if node.GetID() not in used and not node.GetHideFromEditors()]
        return self.core.proposeWith(free, list(chosen.values()))

    def panelState(self, volumes, reference, weights, outputNode=None, **preparation):
        """`MSTKDSegmentLib.panel.PanelState` for the choice, and a sentence on the weights."""
        return self.core.panelState(volumes, reference, weights, outputNode, **preparation)

    @staticmethod
    def tableOf(segmentationNode):
        """The table of a result's measurements and what was run, in a line; (None, "") for any other segmentation."""
        from MSTKDSegmentLib.slicer_output import measurements_of

        return measurements_of(segmentationNode)

    @staticmethod
    def preparedNodes(segmentationNode, result=None):
        """What the network saw, as nodes of the scene: a MSTKDSegmentLib.slicer_prepared.PreparedNodes.

        They are made from `result`, which a run with keep=True returned, unless they are there. None for neither.
        """
        from MSTKDSegmentLib.slicer_prepared import add_prepared, prepared_nodes

        if result is None or result.prepared is None:
            return prepared_nodes(segmentationNode)
        return add_prepared(result.prepared, segmentationNode)

    @staticmethod
    def segmentsToReplace(segmentationNode):
        """Names of the segments that a new result in this node would replace; see `slicer_scene.earlier_result`."""
        from MSTKDSegmentLib.slicer_scene import earlier_result

        segmentation = segmentationNode.GetSegmentation()
        return [segmentation.GetSegment(key).GetName() for key in earlier_result(segmentationNode)]

    @staticmethod
    def isExpected(error):
        from MSTKDSegmentLib.errors import MSTKDError

        return isinstance(error, MSTKDError)

    @staticmethod
    def torchInstalled():
        from MSTKDSegmentLib.torch_setup import torch_installed

        return torch_installed()

    def installTorch(self, device="auto"):
        """Install torch through the PyTorch extension, after asking, and prove it; None when the user declines."""
        from MSTKDSegmentLib.torch_setup import SetupDependencies, extension_logic, install_torch

        return install_torch(
            SetupDependencies(
                utils_logic=extension_logic,
                confirm=lambda text: slicer.util.confirmOkCancelDisplay(text, windowTitle=_("MSTKDSegment")),
                check=lambda: self.checkDevice(device),
                waiting=slicer.util.WaitCursor,
            )
        )

    def checkDevice(self, device="auto"):
        """Prove by a tiny convolution in a child process that torch works on `device`; raises MSTKDError if not."""
        return self.core.check_device(device, slicer.app.processEvents)


def _dicomValue(instanceUid, tag):
    database = getattr(slicer, "dicomDatabase", None)
    return database.instanceValue(instanceUid, tag) if database is not None and database.isOpen else ""


class MSTKDSegmentTest(ScriptedLoadableModuleTest):
    """Runs inside Slicer (Reload and Test): the whole way on the sample patient."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        for test in (self.test_problemsAreNamed, self.test_sampleIsWhatIsRegistered, self.test_samplePatient):
            self.setUp()
            test()

    def test_problemsAreNamed(self):
        logic = MSTKDSegmentLogic()
        self.assertIn("at least one", logic.problemWith({"T1": None}))
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "head")
        self.assertIn("no voxels", logic.problemWith({"FLAIR": node}))

    def test_sampleIsWhatIsRegistered(self):
        folder = self.sampleFolder()
        if folder is None:
            logging.warning("MSTKDSegmentTest skipped: the sample patient is part of the repository only")
            return
        for sequence, digest in SAMPLE_SHA256.items():
            data = (folder / f"sample_{sequence.lower()}.nii.gz").read_bytes()
            self.assertEqual(hashlib.sha256(data).hexdigest(), digest)

    def test_samplePatient(self):
        folder = self.sampleFolder()
        if folder is None or not MSTKDSegmentLogic.torchInstalled():
            missing = "the sample patient (part of the repository only)" if folder is None else "PyTorch"
            logging.warning("MSTKDSegmentTest.test_samplePatient skipped: %s is missing", missing)
            return
        loaded = [slicer.util.loadVolume(str(path)) for path in sorted(folder.glob("sample_*.nii.gz"))]
        truth = next(node for node in loaded if node.GetName().startswith("sample_seg"))
        volumes, _proposals = MSTKDSegmentLogic().proposeVolumes([node for node in loaded if node is not truth])
        self.assertEqual(set(volumes), set(SAMPLE_SHA256))
        fractions = []

        def showProgress(fraction, text):
            if not fractions or fraction > fractions[-1]:
                self.delayDisplay(f"{100 * fraction:.0f} % {text}", 10)
            fractions.append(fraction)
            slicer.app.processEvents()

        result = MSTKDSegmentLogic().segment(volumes, progress=showProgress)
        self.assertEqual(result.node.GetSegmentation().GetNumberOfSegments(), 3)
        self.assertEqual(result.table.GetNumberOfRows(), 5)
        self.assertEqual(fractions, sorted(fractions))
        spacing = truth.GetSpacing()
        truthMl = (slicer.util.arrayFromVolume(truth) > 0).sum() * spacing[0] * spacing[1] * spacing[2] / 1000
        # The sample is synthetic: this asks whether the tumour is found, not how well.
        self.assertLess(abs(result.volumes_ml["WT"] - truthMl), 0.5 * truthMl)

    @staticmethod
    def sampleFolder() -> Optional[Path]:
        folder = Path(__file__).resolve().parent.parent / "Resources" / "sample"
        return folder if (folder / "sample_t1.nii.gz").is_file() else None
