"""One run of the worker as a front end with an event loop sees it: poll it from a timer, cancel it, ask how it ended.

What is segmented, where the result goes, and whether its inputs are still there come from outside, so that this knows
neither Qt nor MRML.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Callable, Optional, Protocol

from .errors import Cancelled, MSTKDError
from .panel import elapsed
from .translation import _
from .worker_process import WorkerResult

RUNNING, DONE, FAILED, CANCELLED = "running", "done", "failed", "cancelled"


class Run(Protocol):
    """What is used of `WorkerRun`."""

    fraction: float
    text: str
    device: Optional[Mapping[str, Any]]
    log: deque[str]
    logged: int

    @property
    def seconds(self) -> float: ...
    def poll(self) -> bool: ...
    def result(self) -> WorkerResult: ...
    def close(self) -> None: ...


class SegmentationTask:
    """Watches `run` until it has ended, then puts its result where `deliver` says; nothing is delivered otherwise.

    lost: asked at every poll, tells in words which input is gone, "" while all are there. deliver: takes the result,
    gives what `outcome` will be; it may raise MSTKDError.
    """

    def __init__(self, run: Run, deliver: Callable[[WorkerResult], Any], lost: Callable[[], str]) -> None:
        self._run, self._deliver, self._lost = run, deliver, lost
        self.state = RUNNING
        self.outcome: Any = None
        self.error: Optional[Exception] = None
        self.message = ""
        self._shown, self._stage = 0, ""

    @property
    def fraction(self) -> float:
        """0 to 1; never falls."""
        return self._run.fraction

    @property
    def text(self) -> str:
        """What is being done, in the user's language."""
        return stage_text(self._run.text)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return self._run.seconds

    @property
    def status(self) -> str:
        """Time and stage in one line."""
        return f"{elapsed(self.seconds)} {self.text}"

    @property
    def device_notice(self) -> str:
        """Why the CPU is used where a GPU was to be expected; "" otherwise."""
        device = self._run.device
        if device is None or not device.get("gpu_expected"):
            return ""
        return _("The CPU is used although a GPU was expected: {reason}.").format(reason=device["reason"])

    def new_lines(self) -> list[str]:
        """What the worker printed since the last call, and the stage that it has come to, with the time."""
        fresh = self._run.logged - self._shown
        lines = list(self._run.log)[-fresh:] if fresh else []
        self._shown = self._run.logged
        if self.text != self._stage:
            self._stage = self.text
            lines.append(self.status)
        return lines

    def poll(self) -> bool:
        """Take in what happened; True while the run goes on. Never raises: see `state`, `error` and `message`."""
        if self.state != RUNNING:
            return False
        try:
            gone = self._lost()
            if gone:
                self.cancel(gone)
                return False
            if self._run.poll():
                return True
            result = self._run.result()
            gone = self._lost()  # while the result was read
            if gone:
                raise Cancelled(gone)
            self.outcome = self._deliver(result)
            self.state = DONE
        except Cancelled as cancelled:
            self.state, self.message = CANCELLED, str(cancelled)
        except MSTKDError as error:
            self.state, self.error, self.message = FAILED, error, str(error)
        except Exception as error:  # said in the window, not only in a console that nobody looks at
            self.state, self.error = FAILED, error
            self.message = _("Unexpected {kind}: {error}. The error log has the details.").format(
                kind=type(error).__name__, error=error
            )
        self._run.close()
        return False

    def cancel(self, reason: str = "") -> None:
        """End the run within a second or two, leaving no process, no file and no node behind."""
        if self.state != RUNNING:
            return
        self.state = CANCELLED
        self.message = reason or _("Cancelled; the scene is as it was.")
        self._run.close()


@lru_cache(maxsize=64)
def stage_text(text: str) -> str:
    """The worker's words for a stage, in the user's language; what is unknown stays as it is."""
    fixed = {
        "starting": _("starting"),
        "loading the network": _("loading the network"),
        "finding how the head lies": _("finding how the head lies"),
        "bringing all to the common grid": _("bringing all to the common grid"),
        "running the network": _("running the network"),
        "bringing the result to the reference's grid": _("bringing the result to the reference's grid"),
        "done": _("done"),
    }
    if text in fixed:
        return fixed[text]
    for pattern, words in (
        (r"reading (?P<sequence>\w+)", _("reading {sequence}")),
        (r"finding the brain on (?P<sequence>\w+)", _("finding the brain on {sequence}")),
        (r"extracting the brain with (?P<program>.+)", _("extracting the brain with {program}")),
        (r"registering (?P<sequence>\w+) to (?P<reference>\w+)", _("registering {sequence} to {reference}")),
        (r"normalising (?P<sequence>\w+)", _("normalising {sequence}")),
        (r"bringing (?P<sequence>\w+) to the common grid", _("bringing {sequence} to the common grid")),
    ):
        match = re.fullmatch(pattern, text)
        if match:
            return words.format(**match.groupdict())
    return text
