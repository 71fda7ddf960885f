"""What the page says about the looks of the views, done to the scene: sequence, grey values, overlays."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Optional

from trame.app import asynchronous
from vtkmodules.vtkCommonCore import vtkCommand

from .scene import ERRORS, PREDICTION, TRUTH

if TYPE_CHECKING:
    from .app import ReviewApp

BACKGROUNDS = ("T1Gd", "FLAIR", "T2", "T1")
"""Which sequence is shown first: the tumour is seen best on them in this order."""

START: dict[str, Any] = {
    "sequences": [], "background": "", "grey": [0, 1], "grey_least": 0, "grey_most": 1, "grey_step": 0.01,
    "overlay": "labels", "show_prediction": True, "prediction_filled": True, "prediction_opacity": 0.45,
    "show_truth": True, "truth_opacity": 1.0, "hidden": [], "error_region": "WT", "error_opacity": 0.8,
}  # fmt: skip
STYLES = (
    "show_prediction", "prediction_filled", "prediction_opacity", "show_truth", "truth_opacity", "hidden",
    "error_opacity",
)  # fmt: skip


class Display:
    """The looks of `app`'s scene and views, as its state says."""

    def __init__(self, app: ReviewApp) -> None:
        self._app, self._state = app, app.state
        self._observed: Optional[tuple[Any, int]] = None
        self._state.change("grey")(self._on_grey)
        self._state.change("overlay", "error_region")(self._on_overlay)
        self._state.change("slices_in_3d")(self._on_slices_in_3d)
        self._state.change(*STYLES)(self.restyle)

    # --- image ---

    def first_background(self) -> None:
        """Show the sequence that a reader looks at first."""
        volumes = self._app.scene.volumes
        self.choose_background(next((name for name in BACKGROUNDS if name in volumes), ""))

    def choose_background(self, name: str) -> None:
        """Show the sequence `name` under everything; nothing where there is none of that name."""
        scene = self._app.scene
        if self._observed is not None:
            self._observed[0].RemoveObserver(self._observed[1])
            self._observed = None
        node = scene.volumes.get(name)
        self._app.views.background(node)
        self._state.background = name if node is not None else ""
        if node is not None:
            lowest, highest, _low, _high = scene.windows[name]
            self._state.update(
                {
                    "grey_least": lowest,
                    "grey_most": highest,
                    "grey_step": (highest - lowest) / 500,
                    "grey": list(scene.window(name)),
                }
            )
            display = node.GetDisplayNode()
            self._observed = (display, display.AddObserver(vtkCommand.ModifiedEvent, self._greys_moved))

    def _greys_moved(self, *_: object) -> None:
        """The mouse changed them in a view."""
        now = [round(value, 3) for value in self._app.scene.window(self._state.background)]
        if any(abs(a - b) > 1e-2 for a, b in zip(now, self._state.grey)):
            with self._state as state:
                state.grey = now

    def _on_grey(self, grey: Any, **_: Any) -> None:
        name = self._state.background
        if name in self._app.scene.volumes and len(grey) == 2:
            self._app.scene.set_window(name, float(grey[0]), float(grey[1]))

    def _on_slices_in_3d(self, slices_in_3d: bool, **_: Any) -> None:
        self._app.views.slices_in_three_d(bool(slices_in_3d))

    # --- overlays ---

    def _on_overlay(self, **_: Any) -> None:
        """Labels or errors, or the errors of another region."""
        place = self._app.measuring.place
        if "overlay" in self._state.modified_keys and place is not None:
            self._state.error_region = place.region
        self.show_errors()
        self.restyle()
        if self._app.server.running:
            asynchronous.create_task(self.surfaces())

    def restyle(self, **_: Any) -> None:
        """Give the overlays the looks that the state says."""
        state, scene, errors = self._state, self._app.scene, self._state.overlay == "errors"
        hidden = [str(key) for key in state.hidden]
        scene.style(
            PREDICTION,
            visible=bool(state.show_prediction) and not errors,
            filled=bool(state.prediction_filled),
            opacity=_share(state.prediction_opacity),
            hidden=hidden,
        )
        scene.style(
            TRUTH,
            visible=bool(state.show_truth) and not errors,
            filled=False,
            opacity=_share(state.truth_opacity),
            hidden=hidden,
        )
        scene.style(ERRORS, visible=errors, filled=True, opacity=_share(state.error_opacity), hidden=hidden)
        self._app.views.render()

    def show_errors(self) -> None:
        """Lay the errors of the chosen region over the image, where that is wished and they are known."""
        found = self._app.case.reviews.get(self._state.prediction)
        errors = found.predictions[0].errors.get(self._state.error_region) if found is not None else None
        if self._state.overlay == "errors" and found is not None and errors is not None:
            self._app.scene.show(ERRORS, errors, found.image)
        else:
            self._app.scene.clear(ERRORS)

    async def surfaces(self) -> None:
        """Make the surfaces for the 3-D view, after the slices were drawn."""
        await asyncio.sleep(0.05)
        for role in (ERRORS,) if self._state.overlay == "errors" else (PREDICTION, TRUTH):
            self._app.scene.make_surface(role)
            await asyncio.sleep(0)
        self._app.views.render()


def _share(value: Any) -> float:
    return min(max(float(value), 0.0), 1.0)
