"""What both halves of the Review section need of Qt: jobs done in short steps by a timer, labels, a file to write."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from typing import Any, Callable, Optional

import qt
import slicer

from .panel import elapsed
from .translation import _

Job = Generator[str, None, Any]
"""Gives what it is doing, step by step, and at last what to say when it is done."""

TICK_MS = 10


class Jobs:
    """One job at a time. say(text), failed(error) and changed() tell how it goes, and that it began or ended."""

    def __init__(
        self, say: Callable[[str], None], failed: Callable[[Exception], None], changed: Callable[[], None]
    ) -> None:
        self._say, self._failed, self._changed = say, failed, changed
        self._job: Optional[Job] = None
        self._began, self._stepping = 0.0, False
        self._ticker = qt.QTimer()
        self._ticker.setInterval(TICK_MS)
        self._ticker.connect("timeout()", self.onTick)

    @property
    def running(self) -> bool:
        """Whether there is one."""
        return self._job is not None

    def start(self, job: Job) -> None:
        """Begin, unless another goes on."""
        if self._job is None:
            self._job, self._began = job, time.monotonic()
            self._changed()
            self._ticker.start()
            self.onTick()

    def onTick(self) -> None:  # noqa: N802
        """One step; called by the timer."""
        if self._job is None or self._stepping:  # a step may process events
            return
        self._stepping = True
        try:
            text = next(self._job)
            if self._job is not None:
                self._say(f"{elapsed(time.monotonic() - self._began)} {text}")
        except StopIteration as ended:
            self._end()
            self._say(ended.value or "")
        except Exception as error:
            self._end()
            self._failed(error)
        finally:
            self._stepping = False

    def stop(self, told: bool = True) -> None:
        """What was begun is dropped: nothing more of it reaches the scene."""
        if self._job is None:
            return
        with contextlib.suppress(ValueError):  # the step that is going on asks for it itself
            self._job.close()
        self._end()
        if told:
            self._say(_("Cancelled."))

    def _end(self) -> None:
        self._job = None
        self._ticker.stop()
        self._changed()


class Drafts:
    """What was typed in one line and not used yet, by what it is on: put away and shown again with that."""

    def __init__(self, line: Any) -> None:
        self._line = line
        self._texts: dict[tuple[str, ...], str] = {}
        self._key: Optional[tuple[str, ...]] = None
        self._node = ""

    def show(self, key: Optional[tuple[str, ...]], node: str = "") -> None:
        """What was typed on `key` before; None: nothing is there to type on. node: ID of a node that may be renamed."""
        renamed = key is not None and self._key is not None and node == self._node
        if key != self._key and not renamed:
            if self._key is not None and self._line.text:
                self._texts[self._key] = self._line.text
            self._line.text = self._texts.pop(key, "") if key is not None else ""
        self._key, self._node = key, node
        self._line.enabled = key is not None


def tell(label: Any, text: str) -> None:
    """Show a text, or take the label away where there is none."""
    label.text = text
    label.visible = bool(text)


def save_path(title: str, start: str, confirm: bool) -> str:
    """Ask for a CSV file to write, "" where the user declines; confirm: whether an existing one is asked about."""
    dialog = qt.QFileDialog(slicer.util.mainWindow(), title, start, _("CSV files (*.csv)"))
    dialog.setAcceptMode(qt.QFileDialog.AcceptSave)
    dialog.setDefaultSuffix("csv")
    dialog.setOption(qt.QFileDialog.DontConfirmOverwrite, not confirm)
    dialog.selectFile(start)
    return str(dialog.selectedFiles()[0]) if dialog.exec_() else ""
