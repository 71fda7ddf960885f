"""The page's runs of the network: progress, cancel, and what comes of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Optional

from trame.app import asynchronous

from .rows import carried_text, error_text, what_if_rows
from .segmenting import Engine, Run

if TYPE_CHECKING:
    from .app import ReviewApp

LOOK_SECONDS = 0.15
QUIET: dict[str, Any] = {"run_problem": "", "run_said": "", "subsets": [], "subsets_title": "", "subsets_text": ""}
START: dict[str, Any] = {"chosen": [], "running": False, "run_percent": 0, "run_text": "", **QUIET}


class Runs:
    """At most one run at a time, on behalf of `app`; its case may be left meanwhile."""

    def __init__(self, app: ReviewApp, engine: Engine, autosave: bool) -> None:
        self._app, self._engine, self._autosave = app, engine, autosave
        self._run: Optional[Run] = None
        self._cancelled = False

    def segment(self) -> None:
        """Segment from the chosen sequences."""
        self._start(what_if=False)

    def what_if(self) -> None:
        """Segment from every subset of the chosen sequences."""
        self._start(what_if=True)

    def _start(self, what_if: bool) -> None:
        state = self._app.state
        if self._run is not None:
            return
        try:
            self._run = Run(self._engine, self._app.case, list(state.chosen), what_if=what_if)
        except Exception as error:
            state.run_problem = error_text(error)
            return
        self._cancelled = False
        state.update({**QUIET, "running": True, "run_percent": 0, "run_text": "starting"})
        asynchronous.create_task(self._watch(self._run))

    def cancel(self) -> None:
        """End the run; nothing of it is kept."""
        if self._run is not None:
            self._cancelled = True
            self._app.state.run_text = "cancelling"

    def close(self) -> None:
        """At the server's end: no child is left behind."""
        if self._run is not None:
            self._run.close()

    async def _watch(self, run: Run) -> None:
        said: dict[str, Any] = {"run_said": "Cancelled; nothing was kept."}
        try:
            while run.poll() and not self._cancelled:
                with self._app.state as state:
                    state.update({"run_percent": int(100 * run.fraction), "run_text": run.text})
                await asyncio.sleep(LOOK_SECONDS)
            if not self._cancelled:
                said = self._take(run, run.result())
        except Exception as error:
            said = {"run_problem": error_text(error)}
        finally:
            await asyncio.get_running_loop().run_in_executor(None, run.close)
            self._run = None
            with self._app.state as state:
                state.update({**said, "running": False})

    def _take(self, run: Run, found: dict[str, Any]) -> dict[str, Any]:
        """Keep a result and show it; gives what is to be said."""
        app = self._app
        here = app.case.index == run.index
        if run.what_if:
            table = found["what_if"]
            title = f"Dice to the {table['against']}"
            rows = {"subsets": what_if_rows(table), "subsets_title": title, "subsets_text": carried_text(table)}
            return rows if here else {}
        name = app.session.add(run.index, run.name, found["labels"], found["image"], found["provenance"])
        said = f"{name}: done." if here else f"{run.case}, {name}: done."
        with app.state as state:
            if here:
                state.notices = list(dict.fromkeys([*state.notices, *found["notices"]]))
            app.show_made(run.index, name)
        if self._autosave:
            try:
                said += f" Written: {app.session.save(run.case, name)}"
            except Exception as error:  # the result is there all the same
                return {"run_said": said, "run_problem": error_text(error)}
            with app.state:
                app.tell_predictions()
        return {"run_said": said}
