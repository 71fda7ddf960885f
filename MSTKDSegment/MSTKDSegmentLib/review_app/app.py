"""The application: holds a `ReviewSession`, Slicer's scene and the page's state together.

One reader for each server: all pages (tabs) show the same state, views included. Everything of Slicer's, VTK's and the
state's is touched in the event loop's thread only; reading and measuring run in one other thread, the network in a
process of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from trame.app import TrameApp, asynchronous, get_server
from trame_slicer import module as trame_slicer_module
from trame_slicer.core import SlicerApp
from vtkmodules.vtkCommonCore import vtkObject

from . import display, judging, layout, measuring, runs
from .rows import case_rows, error_text, prediction_rows
from .scene import PREDICTION, TRUTH, Scene
from .segmenting import Engine
from .session import OpenCase, ReviewSession
from .views import Views

START: dict[str, Any] = {
    "trame__title": "MSTKD Review", "busy": "", "case_index": -1, "case_name": "", "notices": [], "has_truth": False,
    "known": [], "predictions": [], "prediction": "", "saved_said": "", "save_problem": "",
}  # fmt: skip


class ReviewApp(TrameApp):
    """What the page can do. picture: of the views, "jpeg" or "png"; autosave: write every prediction that is made."""

    def __init__(self, session: ReviewSession, engine: Engine, picture: str = "jpeg", autosave: bool = False) -> None:
        super().__init__(get_server())
        self.server.enable_module(trame_slicer_module)
        parts = (START, display.START, judging.START, measuring.START, runs.START)
        self.state.update({key: value for part in parts for key, value in part.items()})
        self.state.cases = case_rows(session)
        self.session, self.case = session, OpenCase(-1, session.items[0])
        self._thread = ThreadPoolExecutor(1, "review")
        # VTK 9.6 says at each view that another of its own methods is old.
        vtkObject.GlobalWarningDisplayOff()
        slicer = SlicerApp()
        self.scene = Scene(slicer.scene)
        self.views = Views(self.server, slicer, picture)
        vtkObject.GlobalWarningDisplayOn()
        self.display = display.Display(self)
        self.measuring = measuring.Measuring(self)
        self.judging = judging.Judging(self)
        self.runs = runs.Runs(self, engine, autosave)
        layout.build(self.server, self)

    async def elsewhere(self, work: Callable[[], Any]) -> Any:
        """What `work()` gives, done in the other thread; it must not touch the scene or the state."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # --- cases ---

    def open_first(self) -> None:
        """Begin with the first case that has no verdict, else with the first."""
        first = self.session.next_open(-1)
        self.open_case(0 if first is None else first)

    def go(self, step: int) -> None:
        """To the case before (-1) or after (1)."""
        if step in (-1, 1):
            self.open_case(self.session.neighbour(self.state.case_index, step))

    def go_to_open(self) -> None:
        """To the next case without a verdict."""
        found = self.session.next_open(self.state.case_index)
        if found is None:
            self.state.notices = list(dict.fromkeys([*self.state.notices, "Every case has a verdict."]))
        else:
            self.open_case(found)

    def open_case(self, index: int) -> None:
        """Show the case `index` of the worklist."""
        if isinstance(index, int) and 0 <= index < len(self.session.items):
            asynchronous.create_task(self._open(index))

    async def _open(self, index: int) -> None:
        with self.state as state:
            state.update({"busy": f"reading {self.session.items[index].name} ...", "case_index": index})
        try:
            case = await self.elsewhere(partial(self.session.open, index))
        except Exception as error:
            with self.state as state:
                state.update({"busy": "", "notices": [error_text(error)]})
            return
        if self.state.case_index != index:  # another one was chosen meanwhile
            return
        self.judging.leave()
        with self.state as state:
            self._show(case)
            state.busy = ""
        await self.display.surfaces()
        self.views.fit_three_d()
        await self.measuring.run()

    def _show(self, case: OpenCase) -> None:
        self.case = case
        self.views.background(None)
        self.scene.load(case.volumes)
        sequences = list(case.volumes)
        self.state.update({
            "case_name": case.name, "notices": list(case.notices), "sequences": sequences, "chosen": sequences,
            "has_truth": case.truth is not None, "known": list(case.truth.known) if case.truth else [],
            "saved_said": "", "save_problem": "", "overlay": "labels", **runs.QUIET,
        })  # fmt: skip
        if case.truth is not None:
            self.scene.show(TRUTH, case.truth.labels, case.truth.image)
            if case.truth.known and self.state.error_region not in case.truth.known:
                self.state.error_region = case.truth.known[0]
        self.display.first_background()
        self.views.set_box(*self.scene.box())
        self._show_prediction(next(iter(case.predictions), ""))
        self.views.fit()
        self.views.jump(self.scene.centre())

    # --- predictions ---

    def choose_prediction(self, name: str) -> None:
        """Show and judge another prediction of the case."""
        if name in self.case.predictions and name != self.state.prediction:
            self.judging.leave()
            self._show_prediction(name)
            asynchronous.create_task(self._after_choice())

    async def _after_choice(self) -> None:
        await self.display.surfaces()
        self.views.fit_three_d(from_front=False)
        await self.measuring.run()

    def _show_prediction(self, name: str) -> None:
        self.state.prediction = name
        if name:
            one = self.case.predictions[name]
            self.scene.show(PREDICTION, one.labels, one.image)
        else:
            self.scene.clear(PREDICTION)
        self.measuring.clear()
        self.display.show_errors()
        self.display.restyle()
        self.judging.enter()
        self.tell_predictions()

    def show_made(self, index: int, name: str) -> None:
        """A prediction was made here: add it to its case and show it, if the reader still looks at that case and is not
        writing a verdict.
        """
        if index == self.case.index:
            self.case.predictions[name] = self.session.made(self.case.name)[name].label_map
            if self.case.truth is None:
                self.case.reviews.clear()  # they told the agreement of all
            if self.judging.typing:  # what stands in the form is about what is shown
                self.tell_predictions()
            else:
                self.choose_prediction(name)

    def tell_predictions(self) -> None:
        """The list of predictions, with what is known of each."""
        self.state.predictions = prediction_rows(self.session, self.case)

    def save(self, name: str) -> None:
        """Write a prediction that was made here."""
        try:
            said, problem = f"Written: {self.session.save(self.case.name, name)}", ""
        except Exception as error:
            said, problem = "", error_text(error)
        self.state.update({"saved_said": said, "save_problem": problem})
        self.tell_predictions()
