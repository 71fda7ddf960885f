"""The figures and the worst places of the prediction that is shown."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Optional

from trame.app import asynchronous

from ..review.comparison import Review
from ..review.places import ORDERS, Place
from .rows import error_text, metric_rows, place_rows

if TYPE_CHECKING:
    from .app import ReviewApp

START: dict[str, Any] = {
    "figures": [],
    "measuring": "",
    "places": [],
    "place": -1,
    "order": ORDERS[0],
    "crosshair": True,
}


class Measuring:
    """Measures the case of `app`, in its other thread, and goes from one worst place to the next."""

    def __init__(self, app: ReviewApp) -> None:
        self._app, self._state = app, app.state
        self._places: list[Place] = []
        self._state.change("crosshair", "place")(self._show_crosshair)

    def _show_crosshair(self, **_: Any) -> None:
        """At a worst place, where the reader wishes it."""
        self._app.scene.show_crosshair(bool(self._state.crosshair) and self.place is not None)

    def clear(self) -> None:
        """Another prediction is shown."""
        self._places = []
        self._state.update({"figures": [], "places": [], "place": -1, "measuring": ""})

    async def run(self) -> None:
        """Measure the prediction that is shown, then the others of the case, for the list."""
        case = self._app.case
        await self._measure_shown()
        for name in list(case.predictions):
            if self._app.case is not case:
                return
            if name not in case.reviews:
                problems = []
                try:
                    await self._app.elsewhere(partial(self._app.session.measure, case, name))
                except Exception as error:
                    problems = [error_text(error)]
                if self._app.case is case:  # another one may have been opened meanwhile
                    self._tell(problems)

    async def _measure_shown(self) -> None:
        app, state = self._app, self._state
        case, name, order = app.case, state.prediction, state.order
        if not name:
            return
        with state:
            state.measuring = "measuring ..."
        found: Optional[Review] = None
        places: list[Place] = []
        try:
            found = await app.elsewhere(partial(app.session.measure, case, name))
            places = await app.elsewhere(partial(app.session.places, case, name, order))
            notices = list(found.notices)
        except Exception as error:
            notices = [error_text(error)]
        if app.case is not case:
            return
        with state:
            state.measuring = ""
        self._tell(notices)
        if found is None or (name, order) != (state.prediction, state.order):
            return
        with state:
            self._places = places
            state.update({"figures": metric_rows(found), "places": place_rows(places), "place": -1})
            app.display.show_errors()
            app.display.restyle()

    def _tell(self, notices: list[str]) -> None:
        with self._state as state:
            state.notices = list(dict.fromkeys([*state.notices, *notices]))
            self._app.tell_predictions()

    # --- worst places ---

    @property
    def place(self) -> Optional[Place]:
        """The one that the reader looks at."""
        number = self._state.place
        return self._places[number] if 0 <= number < len(self._places) else None

    def choose_order(self, order: str) -> None:
        """Rank them by "volume" or "distance"."""
        if order in ORDERS and order != self._state.order:
            self._state.order = order
            asynchronous.create_task(self._measure_shown())

    def next_place(self) -> None:
        """To the next one, after the last to the first."""
        if self._places:
            self.go_to((self._state.place + 1) % len(self._places))

    def go_to(self, number: int) -> None:
        """All slices to it, and, where errors are shown, those of its region."""
        if isinstance(number, int) and 0 <= number < len(self._places):
            place = self._places[number]
            self._state.place = number
            if self._state.overlay == "errors":
                self._state.error_region = place.region
            self._app.views.jump(place.point_ras)
            self._app.scene.mark(place.point_ras)
