"""A reader's way through a worklist in one scene: which case is shown, since when, and what was said of it."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, Optional

from .background import Background
from .errors import InputError, MSTKDError
from .review.verdicts import Verdict, append_verdict, read_verdicts
from .review.worklist import WorkItem, read_worklist
from .slicer_review import state_of, voxels_changed_at
from .slicer_review_cases import (
    CASE_OF,
    PREDICTION_OF,
    LoadedCase,
    as_written,
    default_verdicts_file,
    last_verdict,
    load_steps,
    next_open,
    remove,
    with_verdict,
)
from .slicer_review_choices import OVERLAY, PREDICTION, TABLE, TRUTH, ReviewChoices
from .slicer_review_output import is_ours
from .translation import _


class Reading:
    """Cases, the one that is loaded and verdicts; what must survive a saved scene is in `choices`."""

    def __init__(self, scene: Any) -> None:
        self.scene = scene
        self.choices = ReviewChoices(scene)
        self.items: list[WorkItem] = []
        self.case: Optional[LoadedCase] = None
        self._states: dict[str, Any] = {}
        self._since = time.monotonic()
        self._read: tuple[tuple[str, float], list[Verdict]] = (("", -1.0), [])

    # --- the worklist ---

    @property
    def index(self) -> int:
        """Number of the present case in `items`; -1 for none."""
        return self._number(self.choices.text("case"))

    @property
    def place(self) -> int:
        """Where the reader goes on from: `index`, and without a case the one that was left; -1 before the first."""
        return self.index if self.index >= 0 else self._number(self.choices.text("caseLeft"))

    def _number(self, name: str) -> int:
        return next((n for n, item in enumerate(self.items) if item.name == name), -1)

    def open_steps(self, source: str, predictions: str) -> Generator[str, None, None]:
        """Read the worklist step by step; what was open before stays where that fails. Raises InputError."""
        items = yield from self.read_steps(source, predictions)
        self.take(items, source, predictions)

    def read_steps(self, source: str, predictions: str) -> Generator[str, None, list[WorkItem]]:
        """The cases of a worklist, read step by step; what is open stays so. Raises InputError."""
        folders = [Path(predictions)] if predictions else []
        read = Background(lambda: read_worklist(Path(source), folders))
        while read.poll():
            yield _("reading the worklist")
        if read.error is not None:
            raise read.error
        items: list[WorkItem] = read.outcome
        return items

    def take(self, items: list[WorkItem], source: str, predictions: str) -> None:
        """From now on these are the cases, and verdicts go to their file."""
        self.items = items
        self.choices.say("worklist", source)
        self.choices.say("predictionsFolder", predictions)

    def close(self) -> None:
        """The scene was closed or another one loaded."""
        self.items, self.case, self._states = [], None, {}
        self.shown_now()

    def position(self) -> str:
        """Such as "4 of 17, 3 with a verdict: NAME"; "" without a worklist."""
        if not self.items:
            return ""
        said = {"total": len(self.items), "done": len(with_verdict(self.items, self.verdicts()))}
        if self.index < 0:
            return _("{total} cases, {done} with a verdict").format(**said)
        return _("{number} of {total}, {done} with a verdict: {name}").format(
            **said, number=self.index + 1, name=self.items[self.index].name
        )

    def next_open(self) -> Optional[int]:
        """Number of the next case without a verdict; None where there is none."""
        return next_open(self.items, self.place, self.verdicts())

    # --- one case ---

    def unsaved(self) -> list[str]:
        """Names of the nodes that a change of case would take away although somebody's work on them is not saved."""
        return [node.GetName() for node in self.choices.loaded if self._has_unsaved_work(node)]

    def _has_unsaved_work(self, node: Any) -> bool:
        before, now = self._states.get(node.GetID()), state_of(node)
        if before is None or before[:-1] != now[:-1]:  # a name or a place is not saved with the node's file
            return True
        return before != now and not _is_saved(node)

    def settle(self) -> None:
        """What changes from now on in what has just been loaded is somebody's work; what was there before stays it."""
        self._states = {node.GetID(): self._states.get(node.GetID(), state_of(node)) for node in self.choices.loaded}

    def load_steps(self, index: int) -> Generator[str, None, None]:
        """Take away what was loaded before, and load case number `index` step by step."""
        item, before = self.items[index], self.choices.get(PREDICTION)
        same = before.GetAttribute(PREDICTION_OF) or "" if before is not None else ""
        self.unload()
        case = LoadedCase(item)
        try:
            yield from load_steps(self.scene, item, case)
        except BaseException:  # also where the reader cancels
            remove(self.scene, case.nodes)
            raise
        self.case = case
        self._states = {}
        self.choices.loaded = case.nodes
        self.choices.say("case", item.name)
        self.choices.choose(PREDICTION, case.predictions.get(same) or next(iter(case.predictions.values()), None))
        self.choices.choose(TRUTH, case.truth)
        self.settle()
        self.shown_now()

    def unload(self) -> None:
        """Take away what was loaded for the present case, and what was made of it; all else stays."""
        loaded = self.choices.loaded
        made = [self.choices.get(role) for role in (OVERLAY, TABLE)]
        for role in (PREDICTION, TRUTH, OVERLAY, TABLE):
            chosen = self.choices.get(role)
            if chosen in loaded or chosen in made:
                self.choices.choose(role, None)
        self.choices.loaded = []
        if self.choices.text("case"):
            self.choices.say("caseLeft", self.choices.text("case"))
        self.choices.say("case", "")
        self.case = None
        remove(self.scene, [*loaded, *(node for node in made if is_ours(node, self.scene))])

    def shown_now(self) -> None:
        """The reader's seconds begin."""
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the prediction was shown, or since the last verdict on it."""
        return time.monotonic() - self._since

    # --- verdicts ---

    @property
    def verdicts_file(self) -> Path:
        """Chosen, else beside the worklist, else in the user's documents."""
        chosen = self.choices.text("verdictsFile")
        return Path(chosen) if chosen else default_verdicts_file(self.choices.text("worklist"))

    def verdicts(self) -> list[Verdict]:
        """All that are in the file, read again when it changed; [] where it cannot be read (`verdicts_problem`)."""
        try:
            return self._verdicts()
        except MSTKDError:
            return []

    def verdicts_problem(self) -> str:
        """Why verdicts cannot be read from the file; "" where they can."""
        try:
            self._verdicts()
        except MSTKDError as error:
            return str(error)
        return ""

    def _verdicts(self) -> list[Verdict]:
        path = self.verdicts_file
        try:
            state = (str(path), path.stat().st_mtime)
        except OSError:
            return []
        if self._read[0] != state:
            self._read = (state, read_verdicts(path))
        return self._read[1]

    def subject(self) -> Optional[tuple[str, str]]:
        """(case, prediction) that a verdict would be on; None without a prediction.

        What the reader made himself is on the loaded case, and by itself where none is loaded.
        """
        node = self.choices.get(PREDICTION)
        if node is None:
            return None
        name = node.GetName()
        case = node.GetAttribute(CASE_OF) or self.choices.text("case") or name
        return as_written(case), as_written(node.GetAttribute(PREDICTION_OF) or name)

    def last_verdict(self) -> Optional[Verdict]:
        """The newest on what is shown."""
        subject = self.subject()
        return None if subject is None else last_verdict(self.verdicts(), *subject)

    def give(self, verdict: str, comment: str = "") -> Verdict:
        """Append a verdict on the prediction; the seconds begin anew. Raises InputError without one, OutputError."""
        subject = self.subject()
        if subject is None:
            raise InputError(_("Choose the prediction to review."))
        reader = self.choices.text("reader")
        given = append_verdict(self.verdicts_file, Verdict(*subject, verdict, self.seconds, comment, reader))
        self.shown_now()
        return given


def _is_saved(node: Any) -> bool:
    """Whether the node's file holds what the node does.

    GetModifiedSinceRead alone would not notice voxels that were changed in place.
    """
    storage = node.GetStorageNode()
    if storage is None or not storage.GetFileName() or node.GetModifiedSinceRead():
        return False
    return storage.GetStoredTime().GetMTime() > voxels_changed_at(node)
