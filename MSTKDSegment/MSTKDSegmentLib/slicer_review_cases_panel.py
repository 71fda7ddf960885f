# ruff: noqa: N802 - Slicer's names are camelCase
"""The worklist and the reader's verdict in the Review section."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qt
import slicer

from .review.verdicts import ACCEPT, MAJOR, MINOR, REJECT
from .slicer_review_choices import PREDICTION
from .slicer_review_widgets import Drafts, Job, save_path, tell
from .translation import _


class CasesPanel:
    """Goes from case to case in `panel`, the `ReviewPanel` that it is a part of, and takes down verdicts."""

    def __init__(self, panel: Any, warningStyle: str) -> None:  # noqa: N803
        self.panel, self.ui, self.reading = panel, panel.ui, panel.reading
        self._warningStyle = warningStyle
        self._comments = Drafts(self.ui.commentLineEdit)
        ui = self.ui
        ui.worklistFolderButton.connect("clicked(bool)", self.onWorklistFolder)
        ui.worklistFileButton.connect("clicked(bool)", self.onWorklistFile)
        ui.predictionsFolderButton.connect("clicked(bool)", self.onPredictionsFolder)
        ui.previousCaseButton.connect("clicked(bool)", self.onPreviousCase)
        ui.nextCaseButton.connect("clicked(bool)", self.onNextCase)
        ui.nextOpenCaseButton.connect("clicked(bool)", self.onNextOpenCase)
        ui.readerLineEdit.connect("textEdited(QString)", self.onReader)
        ui.acceptButton.connect("clicked(bool)", self.onAccept)
        ui.minorButton.connect("clicked(bool)", self.onMinor)
        ui.majorButton.connect("clicked(bool)", self.onMajor)
        ui.rejectButton.connect("clicked(bool)", self.onReject)
        ui.verdictsFileButton.connect("clicked(bool)", self.onVerdictsFile)

    @property
    def choices(self) -> Any:
        """What was chosen, in the scene."""
        return self.reading.choices

    def refresh(self) -> None:
        """Show how far the reader is, and the last verdict."""
        ui, idle = self.ui, not self.panel.jobs.running
        ui.worklistLineEdit.text = self.choices.text("worklist")
        ui.predictionsLineEdit.text = self.choices.text("predictionsFolder")
        if ui.readerLineEdit.text != self.choices.text("reader"):  # the cursor stays where it is
            ui.readerLineEdit.text = self.choices.text("reader")
        ui.verdictsFileLineEdit.text = str(self.reading.verdicts_file)
        tell(ui.caseLabel, self.reading.position())
        number, place = len(self.reading.items), self.reading.place
        ui.previousCaseButton.enabled = idle and place > 0
        ui.nextCaseButton.enabled = idle and place + 1 < number
        ui.nextOpenCaseButton.enabled = idle and self.reading.next_open() is not None
        for button in (ui.worklistFolderButton, ui.worklistFileButton, ui.predictionsFolderButton):
            button.enabled = idle
        for button in (ui.acceptButton, ui.minorButton, ui.majorButton, ui.rejectButton):
            button.enabled = idle and self.choices.get(PREDICTION) is not None
        self._refreshComment()
        self._refreshVerdict()

    def _refreshComment(self) -> None:
        node, subject = self.choices.get(PREDICTION), self.reading.subject()
        if subject is None:
            self._comments.show(None)
        else:
            self._comments.show((self.choices.text("worklist"), *subject), node.GetID())

    def _refreshVerdict(self) -> None:
        problem, last = self.reading.verdicts_problem(), self.reading.last_verdict()
        text, subject = problem, self.reading.subject()
        if last is not None:
            text = _("Last verdict on {what}: {verdict}, {time}").format(
                what=_named(last.case, last.prediction), verdict=verdictTexts()[last.verdict], time=last.time
            )
            text += f", {last.reader}" if last.reader else ""
            text += f": {last.comment}" if last.comment else ""
        elif not problem and subject is not None:
            text = _("No verdict on {what} yet.").format(what=_named(*subject))
        self.ui.verdictLabel.styleSheet = self._warningStyle if problem else ""
        tell(self.ui.verdictLabel, text)

    # --- cases ---

    def onWorklistFolder(self, _checked: bool = False) -> None:
        path = qt.QFileDialog.getExistingDirectory(slicer.util.mainWindow(), _("Folder of cases"), self._startFolder())
        if path:
            self.openWorklist(path, self.choices.text("predictionsFolder"))

    def onWorklistFile(self, _checked: bool = False) -> None:
        path = qt.QFileDialog.getOpenFileName(
            slicer.util.mainWindow(), _("List of cases"), self._startFolder(), _("CSV files (*.csv)")
        )
        if path:
            self.openWorklist(path, self.choices.text("predictionsFolder"))

    def onPredictionsFolder(self, _checked: bool = False) -> None:
        path = qt.QFileDialog.getExistingDirectory(
            slicer.util.mainWindow(), _("Folder of predictions"), self._startFolder()
        )
        if path and self.choices.text("worklist"):
            self.openWorklist(self.choices.text("worklist"), path)
        elif path:
            self.choices.say("predictionsFolder", path)
            self.panel.refresh()

    def _startFolder(self) -> str:
        source = self.choices.text("worklist")
        return str(Path(source).parent) if source else ""

    def openWorklist(self, source: str, predictions: str = "") -> None:
        """Read the cases and show the present one, else the first."""
        self.panel.jobs.start(self._openSteps(source, predictions))

    def _openSteps(self, source: str, predictions: str) -> Job:
        items = yield from self.reading.read_steps(source, predictions)
        if not self._mayUnload():  # else the case that stays would be taken for one of the new worklist
            return ""
        self._comments.show(None)  # what is typed belongs to the old worklist
        self.reading.take(items, source, predictions)
        return (yield from self._caseSteps(max(self.reading.place, 0)))

    def onPreviousCase(self, _checked: bool = False) -> None:
        self.showCase(self.reading.place - 1)

    def onNextCase(self, _checked: bool = False) -> None:
        self.showCase(self.reading.place + 1)

    def onNextOpenCase(self, _checked: bool = False) -> None:
        index = self.reading.next_open()
        if index is not None:
            self.showCase(index)

    def onSceneRenewed(self) -> None:
        """Closed, or loaded from a file: what came with it is as it was saved, and its worklist is read again."""
        self.reading.settle()
        source = self.choices.text("worklist")
        if source and not self.reading.items:
            self.panel.jobs.start(self.reading.open_steps(source, self.choices.text("predictionsFolder")))

    def showCase(self, index: int) -> None:
        """Load a case of the worklist in place of the one before, unless the reader wants to keep a change."""
        if not self.panel.jobs.running and 0 <= index < len(self.reading.items) and self._mayUnload():
            self.panel.jobs.start(self._caseSteps(index))

    def _mayUnload(self) -> bool:
        changed = self.reading.unsaved()
        return not changed or slicer.util.confirmOkCancelDisplay(
            _("{names} changed since it was loaded. Go on without saving it?").format(names=", ".join(changed)),
            windowTitle=_("MSTKDSegment"),
        )

    def _caseSteps(self, index: int) -> Job:
        again = bool(self.choices.looks)
        self.panel.onRestoreLayout()
        self.panel.forgetComparison()
        self.ui.figuresTableView.setMRMLTableNode(None)
        self._comments.show(None)
        yield from self.reading.load_steps(index)
        case = self.reading.case
        assert case is not None
        if case.background is not None:
            slicer.util.setSliceViewerLayers(background=case.background, foreground=None, label=None, fit=True)
        self.panel.showWhat(PREDICTION)
        if again:
            self.panel.onSideBySide()
        tell(self.ui.reviewNoticeLabel, "\n".join(case.notices))
        self.reading.shown_now()
        return _("{name} is loaded.").format(name=case.item.name)

    # --- the verdict ---

    def onReader(self, text: str) -> None:
        self.choices.say("reader", text.strip())

    def onAccept(self, _checked: bool = False) -> None:
        self._give(ACCEPT)

    def onMinor(self, _checked: bool = False) -> None:
        self._give(MINOR)

    def onMajor(self, _checked: bool = False) -> None:
        self._give(MAJOR)

    def onReject(self, _checked: bool = False) -> None:
        self._give(REJECT)

    def _give(self, verdict: str) -> None:
        try:
            given = self.reading.give(verdict, self.ui.commentLineEdit.text)
        except Exception as error:
            self.panel.fail(error)
            return
        self.ui.commentLineEdit.text = ""  # it is written; the next verdict has its own
        self.panel.say(
            _("Written: {verdict}, after {seconds:.0f} s.").format(
                verdict=verdictTexts()[given.verdict], seconds=given.seconds
            )
        )
        self.panel.refresh()

    def onVerdictsFile(self, _checked: bool = False) -> None:
        path = save_path(_("Append verdicts to"), str(self.reading.verdicts_file), confirm=False)
        if path:
            self.choices.say("verdictsFile", path)
            self.panel.refresh()


def verdictTexts() -> dict[str, str]:
    """The verdicts in the user's language."""
    return {ACCEPT: _("accept"), MINOR: _("minor edits"), MAJOR: _("major edits"), REJECT: _("reject")}


def _named(case: str, prediction: str) -> str:
    return case if prediction == case else f"{case} ({prediction})"
