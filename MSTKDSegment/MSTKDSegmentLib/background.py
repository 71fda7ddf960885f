"""Work in a thread: polled from the timer of a front end with an event loop, or begun before its result is needed."""

from __future__ import annotations

import threading
from typing import Any, Callable, Generic, Optional, TypeVar

WAIT_S = 0.02
Result = TypeVar("Result")


class Background:
    """Runs `work()` once. It must not touch what belongs to the main thread (Qt, MRML).

    In Slicer the event loop keeps Python's lock, so that a thread gets on only while the main thread waits for it:
    `poll` does that for `WAIT_S` seconds and is to be called again and again.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self.outcome: Any = None
        self.error: Optional[Exception] = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.outcome = self._work()
        except Exception as error:  # told in the window by whoever polls
            self.error = error

    def poll(self, wait: float = WAIT_S) -> bool:
        """Let it work for `wait` seconds; True while it has not ended, then `outcome` or `error` is there."""
        self._thread.join(wait)
        return self._thread.is_alive()


class Ahead(Generic[Result]):
    """Begins `work()` at once; a call waits for its end and gives the result, or raises its error, as often as asked.

    A program that ends earlier waits for the work.
    """

    def __init__(self, work: Callable[[], Result]) -> None:
        self._work = work
        self._results: list[Result] = []
        self._error: Optional[BaseException] = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._results.append(self._work())
        except BaseException as error:
            self._error = error

    def __call__(self) -> Result:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._results[0]
