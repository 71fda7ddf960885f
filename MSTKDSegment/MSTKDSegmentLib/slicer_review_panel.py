# ruff: noqa: N802, N803 - Slicer's names are camelCase
"""The Review section of the panel: widgets and events; what they do is in the other `slicer_review` files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Optional

import qt
import slicer
import vtk

from .errors import MSTKDError
from .regions import REGION_KEYS
from .review.places import ORDERS
from .slicer_review import Compared, Comparing, failure, pair_problem
from .slicer_review_cases_panel import CasesPanel
from .slicer_review_choices import OVERLAY, PREDICTION, TABLE, TRUTH
from .slicer_review_output import (
    figures,
    is_ours,
    place_text,
    put_overlay,
    put_table,
    tab_separated,
    table_of,
    write_csv,
)
from .slicer_review_reading import Reading
from .slicer_review_views import (
    ERRORS,
    LEFT,
    RIGHT,
    background_of,
    is_side_by_side,
    jump,
    knows_side_by_side,
    restore,
    show,
    side_by_side,
)
from .slicer_review_widgets import Job, Jobs, save_path, tell
from .translation import _

SETTLE_MS = 100
SHOWN = (ERRORS, PREDICTION, TRUTH)
"""What the items of the combo box "Show" stand for, in their order."""


class ReviewPanel:
    """The pair and what its comparison shows; worklist and verdicts are in `cases`."""

    def __init__(self, widget: Any, warningStyle: str) -> None:
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.reading = Reading(slicer.mrmlScene)
        self.compared: Optional[Compared] = None
        self._place = -1
        self._beforeImport: dict[str, Any] = {}
        self._showing = False
        self._warningStyle = warningStyle
        self.ui.reviewProblemLabel.styleSheet = warningStyle
        self.ui.reviewNoticeLabel.styleSheet = warningStyle
        self.jobs = Jobs(self.say, self.fail, self.refresh)
        self.cases = CasesPanel(self, warningStyle)
        self.settler = qt.QTimer()  # new views have their size only when they have been drawn
        self.settler.setSingleShot(True)
        self.settler.setInterval(SETTLE_MS)
        self.settler.connect("timeout()", self.onViewsSettled)
        self._connect()
        self._observe()
        self.refresh()
        self._leaveUnknownLayout()

    def _connect(self) -> None:
        ui = self.ui
        ui.predictionSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onPrediction)
        ui.truthSelector.connect("currentNodeChanged(vtkMRMLNode*)", self.onTruth)
        ui.compareButton.connect("clicked(bool)", self.onCompare)
        ui.stopButton.connect("clicked(bool)", self.onStop)
        ui.copyButton.connect("clicked(bool)", self.onCopy)
        ui.csvButton.connect("clicked(bool)", self.onSaveCsv)
        ui.showComboBox.connect("currentIndexChanged(int)", self.onShow)
        ui.regionComboBox.connect("currentIndexChanged(int)", self.onRegion)
        ui.orderComboBox.connect("currentIndexChanged(int)", self.onOrder)
        ui.previousPlaceButton.connect("clicked(bool)", self.onPreviousPlace)
        ui.nextPlaceButton.connect("clicked(bool)", self.onNextPlace)
        ui.sideBySideButton.connect("clicked(bool)", self.onSideBySide)
        ui.restoreLayoutButton.connect("clicked(bool)", self.onRestoreLayout)

    def _observe(self) -> None:
        scene = self.scene
        pairs = [
            (scene.StartCloseEvent, self.onSceneStartClose),
            (scene.EndCloseEvent, self.onSceneRenewed),
            (scene.StartImportEvent, self.onSceneStartImport),
            (scene.EndImportEvent, self.onSceneEndImport),
            (scene.NodeAboutToBeRemovedEvent, self.onNodeAboutToBeRemoved),
        ]
        self._tags = [(scene, scene.AddObserver(event, slot)) for event, slot in pairs]
        self._layout: Optional[Any] = None

    def cleanup(self) -> None:
        """The application closes, or the module is reloaded."""
        self.settler.stop()
        self.jobs.stop(told=False)
        self._followLayout(False)
        for node, tag in self._tags:
            node.RemoveObserver(tag)
        self._tags = []

    @property
    def scene(self) -> Any:
        """The scene that is reviewed."""
        return self.reading.scene

    @property
    def choices(self) -> Any:
        """What was chosen, in the scene."""
        return self.reading.choices

    # --- what is shown ---

    def refresh(self) -> None:
        """Show what was chosen and found; what has changed in the scene since is told."""
        if self.scene.IsClosing() or self.scene.IsImporting():
            return
        self._showing = True
        try:
            self._refreshChoices()
        finally:
            self._showing = False
        self._refreshButtons()
        pair = self.choices.get(PREDICTION), self.choices.get(TRUTH)
        self.ui.figuresTableView.setMRMLTableNode(table_of(self.choices.get(TABLE), *pair))
        self.cases.refresh()

    def _refreshChoices(self) -> None:
        ui, choices = self.ui, self.choices
        ui.predictionSelector.setCurrentNode(choices.get(PREDICTION))
        ui.truthSelector.setCurrentNode(choices.get(TRUTH))
        ui.regionComboBox.currentIndex = REGION_KEYS.index(choices.region)
        ui.orderComboBox.currentIndex = ORDERS.index(choices.order)

    def _refreshButtons(self) -> None:
        ui, idle = self.ui, not self.jobs.running
        prediction, truth = self.choices.get(PREDICTION), self.choices.get(TRUTH)
        problem = pair_problem(prediction, truth)
        stale = self.compared.stale() if self.compared is not None else ""
        tell(ui.reviewProblemLabel, (problem if prediction is not None else "") or stale)
        ui.compareButton.enabled = idle and not problem
        ui.stopButton.enabled = not idle
        compared, places = self.compared is not None, bool(self._places())
        ui.copyButton.enabled = ui.csvButton.enabled = compared
        ui.previousPlaceButton.enabled = ui.nextPlaceButton.enabled = idle and places
        ui.regionComboBox.enabled = compared and truth is not None
        both = prediction is not None and truth is not None and prediction is not truth
        ui.sideBySideButton.enabled = idle and both and not self.choices.looks
        ui.restoreLayoutButton.enabled = bool(self.choices.looks)
        for selector in (ui.predictionSelector, ui.truthSelector):
            selector.enabled = idle

    def say(self, text: str, warning: bool = False) -> None:
        """How a job goes or ended."""
        self.ui.reviewStatusLabel.styleSheet = self._warningStyle if warning else ""
        tell(self.ui.reviewStatusLabel, text)

    def fail(self, error: Exception) -> None:
        """Told in the panel, and in the error log."""
        known = isinstance(error, MSTKDError)
        logging.error("MSTKDSegment: %s", error, exc_info=None if known else error)
        self.say(failure(error), warning=True)

    # --- the pair ---

    def onPrediction(self, node: Any) -> None:
        self._choose(PREDICTION, node)

    def onTruth(self, node: Any) -> None:
        self._choose(TRUTH, node)

    def _choose(self, role: str, node: Optional[Any]) -> None:
        if self._showing or self.scene.IsClosing() or self.scene.IsImporting():
            return
        if self.choices.get(role) is node:
            return
        self.onRestoreLayout()
        self.choices.choose(role, node)
        self.forgetComparison()
        if role == PREDICTION:
            self.reading.shown_now()
        self.refresh()

    def forgetComparison(self) -> None:
        """Its figures, places and errors are of another pair."""
        self.compared, self._place = None, -1
        node = self.choices.get(OVERLAY)
        if is_ours(node, self.scene) and node.GetDisplayNode() is not None:
            node.GetDisplayNode().SetVisibility(False)
        tell(self.ui.placeLabel, "")
        self.say("")

    def onCompare(self, _checked: bool = False) -> None:
        tell(self.ui.reviewNoticeLabel, "")
        self.jobs.start(self._compareSteps())

    def onStop(self, _checked: bool = False) -> None:
        self.jobs.stop()

    def _compareSteps(self) -> Job:
        task = Comparing(self.choices.get(PREDICTION), self.choices.get(TRUTH))
        yield _("comparing")
        while task.poll():
            yield _("comparing")
        compared = task.take()
        yield _("showing the figures")
        compared.require_nodes()
        self.compared, self._place = compared, -1
        self.choices.choose(TABLE, put_table(compared, self.scene, self.choices.get(TABLE)))
        if compared.truth is not None:
            yield _("showing the errors")
            compared.require_nodes()
            if self.choices.region not in compared.reviewed.errors:
                self.choices.set("region", next(iter(compared.reviewed.errors), self.choices.region))
            self._putOverlay()
        tell(self.ui.reviewNoticeLabel, "\n".join(compared.review.notices))
        tell(self.ui.placeLabel, self._placesText())
        return _("Compared in {seconds:.1f} s.").format(seconds=compared.seconds)

    def _putOverlay(self) -> None:
        if self.compared is None or self.compared.truth is None:
            return
        self.choices.choose(
            OVERLAY, put_overlay(self.compared, self.choices.region, self.scene, self.choices.get(OVERLAY))
        )
        if not self.choices.looks:
            self.showWhat(ERRORS)

    def onCopy(self, _checked: bool = False) -> None:
        if self.compared is not None:
            qt.QApplication.clipboard().setText(tab_separated(figures(self.compared)))
            self.say(_("The table is on the clipboard."))

    def onSaveCsv(self, _checked: bool = False) -> None:
        if self.compared is None:
            return
        start = self.reading.verdicts_file.with_name(f"{self.compared.prediction.GetName()}.csv")
        path = save_path(_("Save the figures"), str(start), confirm=True)
        if path:
            self._do(lambda: write_csv(self.compared, Path(path)), _("Written: {path}").format(path=path))  # type: ignore[arg-type]

    def _do(self, action: Any, done: str = "") -> bool:
        try:
            action()
        except Exception as error:
            self.fail(error)
            return False
        if done:
            self.say(done)
        return True

    # --- where it is wrong ---

    def onShow(self, index: int) -> None:
        if not self._showing:
            self.showWhat(SHOWN[index])

    def showWhat(self, what: str) -> None:
        """One of `SHOWN` in the views; side by side goes on showing both."""
        if self.choices.looks:
            return
        self._showing = True
        self.ui.showComboBox.currentIndex = SHOWN.index(what)
        self._showing = False
        overlay = self.choices.get(OVERLAY)
        pair = {PREDICTION: self.choices.get(PREDICTION), TRUTH: self.choices.get(TRUTH)}
        show(self.scene, what, {ERRORS: overlay if is_ours(overlay, self.scene) else None, **pair})

    def onRegion(self, index: int) -> None:
        if self._showing:
            return
        self.choices.set("region", REGION_KEYS[index])
        self._do(self._putOverlay)
        self.refresh()

    def onOrder(self, index: int) -> None:
        if self._showing:
            return
        self.choices.set("order", ORDERS[index])
        self._place = -1
        tell(self.ui.placeLabel, self._placesText())

    def _places(self) -> tuple[Any, ...]:
        return () if self.compared is None else self.compared.places.get(self.choices.order, ())

    def _placesText(self) -> str:
        if self.compared is None or self.compared.truth is None:
            return ""
        number = len(self._places())
        if not number:
            return _("No connected error is large enough to be named.")
        return _("{number} places, the worst first.").format(number=number)

    def onNextPlace(self, _checked: bool = False) -> None:
        self._goTo(self._place + 1)

    def onPreviousPlace(self, _checked: bool = False) -> None:
        self._goTo(self._place - 1 if self._place >= 0 else -1)

    def _goTo(self, number: int) -> None:
        places = self._places()
        if not places:
            return
        self._place = number % len(places)
        place = places[self._place]
        if self.choices.region != place.region:
            self.choices.set("region", place.region)
            self._do(self._putOverlay)
        jump(self.scene, place.point_ras)
        tell(self.ui.placeLabel, place_text(place, self._place + 1, len(places)))
        self.refresh()

    # --- side by side ---

    def onSideBySide(self, _checked: bool = False) -> None:
        prediction, truth = self.choices.get(PREDICTION), self.choices.get(TRUTH)
        if prediction is None or truth is None or self.choices.looks:
            return
        overlay = self.choices.get(OVERLAY)
        hidden = [overlay] if is_ours(overlay, self.scene) else []
        background = background_of(self.scene, prediction, truth)
        self.choices.looks = side_by_side(self.scene, prediction, truth, background, hidden)
        self._followLayout(True)
        self.settler.start()
        self.refresh()

    def onViewsSettled(self) -> None:
        """Fit the two sides, at the place that the other views showed."""
        if not is_side_by_side(self.scene):
            return
        manager = slicer.app.layoutManager()
        for tag in (*LEFT, *RIGHT):
            widget = manager.sliceWidget(tag) if manager is not None else None
            if widget is not None:
                widget.sliceController().fitSliceToBackground()
        crosshair = self.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        if self._place >= 0:
            jump(self.scene, self._places()[self._place].point_ras)
        elif crosshair is not None and any(crosshair.GetCrosshairRAS()):
            jump(self.scene, crosshair.GetCrosshairRAS())

    def onRestoreLayout(self, _checked: bool = False) -> None:
        looks = self.choices.looks
        if looks:
            self._followLayout(False)
            self.choices.looks = {}
            restore(self.scene, looks)
            self.refresh()

    def _leaveUnknownLayout(self) -> None:
        """A scene that was saved side by side holds the number of our layout, not what it is.

        In a new Slicer the segmentations would be seen in none of its views.
        """
        if self.choices.looks and not knows_side_by_side(self.scene):
            self.onRestoreLayout()

    def _followLayout(self, follow: bool) -> None:
        """Where another layout is chosen from the menu, the segmentations are to be seen there, too."""
        if self._layout is not None:
            node, tag = self._layout
            node.RemoveObserver(tag)
            self._layout = None
        node = self.scene.GetFirstNodeByClass("vtkMRMLLayoutNode")
        if follow and node is not None:
            self._layout = (node, node.AddObserver(vtk.vtkCommand.ModifiedEvent, self.onLayoutModified))

    def onLayoutModified(self, _caller: Any = None, _event: str = "") -> None:
        if not is_side_by_side(self.scene) and not self.scene.IsClosing():
            self.onRestoreLayout()

    # --- the scene ---

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAboutToBeRemoved(self, _caller: Any, _event: str, node: Any) -> None:
        """Empty its selector first: by itself the combo box would go on to some other node without a word."""
        if self.scene.IsClosing() or node is None or node.IsA("vtkMRMLScriptedModuleNode"):
            return
        if node not in [self.choices.get(role) for role in (PREDICTION, TRUTH, OVERLAY, TABLE)]:
            return
        if self.compared is not None and node in self.compared.nodes:
            self.compared, self._place = None, -1
            tell(self.ui.placeLabel, "")
        self.choices.forget(node)
        self.refresh()

    def onSceneStartClose(self, _caller: Any = None, _event: str = "") -> None:
        self.jobs.stop(told=False)
        self._followLayout(False)
        self.compared, self._place = None, -1
        self.reading.close()
        self.ui.figuresTableView.setMRMLTableNode(None)
        for label in (self.ui.placeLabel, self.ui.reviewNoticeLabel, self.ui.caseLabel):
            tell(label, "")
        self.say("")

    def onSceneStartImport(self, _caller: Any = None, _event: str = "") -> None:
        self._beforeImport = {role: self.choices.get(role) for role in (PREDICTION, TRUTH)}

    def onSceneEndImport(self, _caller: Any = None, _event: str = "") -> None:
        """The combo boxes lose what is chosen when a scene is added: Slicer fills them anew at the end of an import."""
        for role, node in self._beforeImport.items():
            if self.choices.get(role) is None and node is not None and node.GetScene() is self.scene:
                self.choices.choose(role, node)
        self._beforeImport = {}
        self.onSceneRenewed()

    def onSceneRenewed(self, _caller: Any = None, _event: str = "") -> None:
        """Closed, or loaded from a file: show its choices; its worklist is read again."""
        self.refresh()
        self._leaveUnknownLayout()
        self._followLayout(bool(self.choices.looks))
        self.cases.onSceneRenewed()
