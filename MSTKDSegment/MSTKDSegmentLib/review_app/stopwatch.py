"""How long a reader looks at a prediction: it runs only while a page is open."""

from __future__ import annotations

import time
from typing import Callable, Optional


class Stopwatch:
    """Counts seconds while it runs; `clock` gives seconds from any start."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._before = 0.0
        self._since: Optional[float] = None

    @property
    def seconds(self) -> float:
        """Counted so far."""
        return self._before + (0.0 if self._since is None else self._clock() - self._since)

    def run(self) -> None:
        """Go on counting."""
        if self._since is None:
            self._since = self._clock()

    def pause(self) -> None:
        """Stop counting and keep what was counted."""
        self._before, self._since = self.seconds, None

    def reset(self) -> None:
        """Begin at zero, running or paused as it is."""
        self._before = 0.0
        if self._since is not None:
            self._since = self._clock()
