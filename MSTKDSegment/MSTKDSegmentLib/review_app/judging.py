"""The form of the verdict: what is typed and not saved yet, the time spent, and the words on what was said before."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ..review.verdicts import VERDICTS, Verdict
from .rows import case_rows, clock_text, error_text, verdict_text
from .stopwatch import Stopwatch

if TYPE_CHECKING:
    from .app import ReviewApp

START: dict[str, Any] = {
    "verdict": "", "comment": "", "reader": "", "verdict_said": "", "verdict_comment": "", "verdict_problem": "",
    "elapsed": "0:00",
}  # fmt: skip


class Judging:
    """The verdict on the prediction that `app` shows. Time counts while a page is open."""

    def __init__(self, app: ReviewApp) -> None:
        self._app, self._state = app, app.state
        self._drafts: dict[tuple[str, str], tuple[str, str]] = {}
        self._watches: dict[tuple[str, str], Stopwatch] = {}
        self._pages = 0

    @property
    def _key(self) -> tuple[str, str]:
        return self._app.case.name, self._state.prediction

    @property
    def _watch(self) -> Stopwatch:
        return self._watches.setdefault(self._key, Stopwatch())

    def leave(self) -> None:
        """Keep what was typed; call before another prediction is shown."""
        if self._state.prediction:
            self._drafts[self._key] = (self._state.verdict, self._state.comment)

    def enter(self) -> None:
        """Another prediction is shown: what was typed for it comes back, and its time goes on."""
        self._state.verdict, self._state.comment = self._drafts.get(self._key, ("", ""))
        self._state.verdict_problem = ""
        self._tell()
        for watch in self._watches.values():
            watch.pause()
        if self._state.prediction and self._pages:
            self._watch.run()

    def save(self, case: str, prediction: str, verdict: str, comment: str, reader: str) -> None:
        """Append the verdict to the file; where that fails say so, and keep what was typed.

        It is booked on what the reader saw on pressing the button, as the page tells it: meanwhile a run may have ended
        and shown its own result, or another case.
        """
        state, key = self._state, (str(case), str(prediction))
        if verdict not in VERDICTS or not self._app.session.knows(*key):
            return
        watch = self._watches.setdefault(key, Stopwatch())
        try:
            self._app.session.judge(
                Verdict(*key, verdict, watch.seconds, str(comment or "").strip(), str(reader or "").strip())
            )
        except Exception as error:
            state.verdict_problem = f"Not saved. {error_text(error)}"
            return
        if key == self._key:
            state.update({"verdict": "", "comment": ""})
        state.update({"verdict_problem": "", "cases": case_rows(self._app.session)})
        self._drafts.pop(key, None)
        watch.reset()
        self._tell()
        self._app.tell_predictions()

    @property
    def typing(self) -> bool:
        """Whether something is typed or chosen that is not saved yet."""
        return bool(self._state.prediction and (self._state.verdict or self._state.comment))

    def _tell(self) -> None:
        given = self._app.session.verdict(*self._key)
        self._state.verdict_said = verdict_text(given)
        self._state.verdict_comment = given.comment if given is not None else ""
        self._state.elapsed = clock_text(self._watch.seconds) if self._state.prediction else "0:00"

    # --- pages and time ---

    def page_opened(self) -> None:
        """A page is there: time counts."""
        self._pages += 1
        if self._state.prediction:
            self._watch.run()

    def page_closed(self) -> None:
        """A page is gone; without any, time stands still."""
        self._pages = max(self._pages - 1, 0)
        if not self._pages:
            for watch in self._watches.values():
                watch.pause()

    async def tick(self) -> None:
        """Show the time spent, every second, as long as the server runs."""
        while True:
            await asyncio.sleep(1)
            if self._pages and self._state.prediction:
                with self._state as state:
                    state.elapsed = clock_text(self._watch.seconds)
