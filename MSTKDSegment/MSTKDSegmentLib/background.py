"""Work in a thread, for a front end with an event loop: start it, poll it from a timer, take or drop its outcome."""

from __future__ import annotations

import threading
from typing import Any, Callable, Optional

WAIT_S = 0.02


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
