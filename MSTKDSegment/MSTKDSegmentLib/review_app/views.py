"""Slicer's views in the page: three slices and 3-D, with a slider, the sides of the patient and the place in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from trame.widgets import html
from trame_slicer.core import LayoutManager, SlicerApp
from trame_slicer.rca_view import register_rca_factories
from trame_slicer.views import Layout, LayoutDirection, ViewDirection, ViewLayoutDefinition
from vtkmodules.vtkCommonCore import vtkCommand

from ..slicer_scene import as_array

THREE_D = "ThreeD"
LAYOUT = "review"
# Room around the brain, for the letters and the slider.
FIT_MARGIN = 1.25


@dataclass(frozen=True)
class Plane:
    """A slice view: Slicer's name of it, its title, the axis (of RAS) that it moves along, the sides of the patient at
    its left, right, top and bottom, and the letters of the axis' two ends.
    """

    tag: str
    title: str
    axis: int
    sides: tuple[str, str, str, str]
    ends: tuple[str, str]

    @property
    def key(self) -> str:
        """Prefix of its state."""
        return self.title.lower()


PLANES = (
    Plane("Red", "Axial", 2, ("R", "L", "A", "P"), ("S", "I")),
    Plane("Green", "Coronal", 1, ("R", "L", "S", "I"), ("A", "P")),
    Plane("Yellow", "Sagittal", 0, ("A", "P", "S", "I"), ("R", "L")),
)


class Views:
    """The views of a `SlicerApp` on a trame server. picture: "jpeg", or "png" where colours have to be exact."""

    def __init__(self, server: Any, app: SlicerApp, picture: str) -> None:
        self._state, self._app = server.state, app
        register_rca_factories(
            app.view_manager,
            server,
            self._slice_words,
            self._three_d_words,
            rca_encoder=picture,
            interactive_quality=70,
        )
        for plane in PLANES:
            server.state.update({f"{plane.key}_{name}": 0.0 for name in ("slice", "least", "most")})
            server.state.update({f"{plane.key}_step": 1.0, f"{plane.key}_where": ""})
        server.state.slices_in_3d = False
        self.layouts = LayoutManager(app.scene, app.view_manager, server)
        axial, coronal, sagittal = (ViewLayoutDefinition.slice_view(one.title, label=one.tag) for one in PLANES)
        three_d = ViewLayoutDefinition.threed_view(name=THREE_D, background_color=("#11151a", "#1d232b"))
        left = Layout(LayoutDirection.Vertical, [axial, coronal])
        right = Layout(LayoutDirection.Vertical, [three_d, sagittal])
        self.layouts.register_layout(LAYOUT, Layout(LayoutDirection.Horizontal, [left, right]))
        for view in app.view_manager.get_views():
            # Smoothing by eight samples a pixel makes software rendering several times slower.
            view.render_window().SetMultiSamples(0)
            # So does sorting what is translucent for each pixel, and the difference is hardly seen.
            view.renderer().SetUseDepthPeeling(False)
        self._slices = {plane.tag: app.view_manager.get_view(plane.tag) for plane in PLANES}
        self._three_d = app.view_manager.get_view(THREE_D)
        self._box = np.array([[-100.0] * 3, [100.0] * 3])
        for plane in PLANES:
            view = self._slices[plane.tag]
            view.modified.connect(lambda *_, plane=plane: self._tell(plane))
            # After the view's own observer: a page has another size than the view had before.
            view.interactor().AddObserver(vtkCommand.WindowResizeEvent, partial(self._fit_slice, plane))
        interaction = app.scene.GetFirstNodeByClass("vtkMRMLInteractionNode")
        if interaction is not None:  # dragging with the left button changes the contrast
            interaction.SetCurrentInteractionMode(interaction.AdjustWindowLevel)

    def place(self, page: Any) -> None:
        """Put the views into the page (a trame layout)."""
        self.layouts.initialize_layout_grid(page)
        self.layouts.set_layout(LAYOUT)

    # --- what they show ---

    def background(self, node: Any) -> None:
        """The volume node under everything; None for none."""
        self._app.display_manager.show_volume_in_slice_background(node)

    def set_box(self, low: Any, high: Any) -> None:
        """What `fit` shows: the box between two corners, (3,) each, RAS mm."""
        self._box = np.array([low, high], float)

    def fit(self) -> None:
        """The whole box in all slices, in their own orientation, and 3-D from the front."""
        for plane in PLANES:
            self._slices[plane.tag].set_orientation(plane.title)
            self._fit_slice(plane)
        self.fit_three_d()

    def _fit_slice(self, plane: Plane, *_: object) -> None:
        """Fill the view with the box; the slice stays where it is."""
        view = self._slices[plane.tag]
        node = view.get_view_node()
        pixels = np.maximum(view.render_window().GetSize(), 1)
        across = [axis for axis in range(3) if axis != plane.axis]  # R, A, S: the first goes to the side
        side = (self._box[1] - self._box[0])[across] * FIT_MARGIN
        field = pixels * float(np.max(side / pixels))
        centre = self._box.mean(axis=0)
        centre[plane.axis] = as_array(node.GetSliceToRAS())[plane.axis, 3]
        with view.trigger_modified_once():
            node.SetFieldOfView(*field, node.GetFieldOfView()[2])
            node.JumpSliceByCentering(*centre)

    def fit_three_d(self, from_front: bool = True) -> None:
        """Everything into the 3-D view, seen from the front or from where it is seen now."""
        if from_front:
            self._three_d.rotate_to_view_direction(ViewDirection.ANTERIOR)
        self._three_d.fit_view_to_content()
        self._three_d.schedule_render()

    def jump(self, ras: Sequence[float]) -> None:
        """All slices to the point (RAS mm); one that would not show it is centred on it, others keep their field."""
        for view in self._slices.values():
            node = view.get_view_node()
            with view.trigger_modified_once():
                if _in_field(node, ras):
                    node.JumpSliceByOffsetting(*ras)
                else:
                    node.JumpSliceByCentering(*ras)

    def slices_in_three_d(self, shown: bool) -> None:
        """Whether the 3-D view shows the slices too."""
        for view in self._slices.values():
            view.set_visible_in_3d(shown)
        self._three_d.schedule_render()

    def render(self) -> None:
        """Draw all views again, soon."""
        for view in (*self._slices.values(), self._three_d):
            view.schedule_render()

    # --- slices ---

    def set_slice(self, tag: str, value: Any) -> None:
        """Move the slice `tag` to an offset in mm, as its slider says it; anything else is ignored."""
        view = self._slices.get(tag)
        try:
            offset = float(value)
        except (TypeError, ValueError):
            return
        if view is not None and np.isfinite(offset):
            view.set_slice_value(offset)

    def _tell(self, plane: Plane) -> None:
        view = self._slices[plane.tag]
        least, most = view.get_slice_range()
        here = as_array(view.get_view_node().GetSliceToRAS())[plane.axis, 3]
        with self._state as state:
            state.update(
                {
                    f"{plane.key}_least": round(float(least), 3),
                    f"{plane.key}_most": round(float(most), 3),
                    f"{plane.key}_step": round(float(view.get_slice_step()), 3),
                    f"{plane.key}_slice": round(float(view.get_slice_value()), 3),
                    f"{plane.key}_where": f"{plane.ends[0] if here >= 0 else plane.ends[1]} {abs(here):.1f} mm",
                }
            )

    # --- in the page ---

    def _slice_words(self, _server: Any, view_id: str, view: Any) -> None:
        plane = next(one for one in PLANES if one.tag == view.get_singleton_tag())
        with html.Div(classes="view-words", raw_attrs=[f'data-view="{view_id}"']):
            html.Span(plane.title, classes="title")
            html.Span(f"{{{{ {plane.key}_where }}}}", classes="where", id=f"{plane.key}-where")
            for side, name in zip(plane.sides, ("left", "right", "top", "bottom")):
                html.Span(side, classes=name)
        with html.Div(classes="view-slider"):
            html.Input(
                type="range",
                id=f"{plane.key}-slider",
                min=(f"{plane.key}_least",),
                max=(f"{plane.key}_most",),
                step=(f"{plane.key}_step",),
                value=(f"{plane.key}_slice",),
                input=(self.set_slice, f"['{plane.tag}', $event.target.value]"),
                raw_attrs=[f'aria-label="{plane.title} slice"'],
            )

    def _three_d_words(self, _server: Any, view_id: str, _view: Any) -> None:
        with html.Div(classes="view-words", raw_attrs=[f'data-view="{view_id}"']):
            html.Span("3-D", classes="title")
        with html.Div(style="position: absolute; bottom: 6px; right: 6px", classes="choices over-picture"):
            html.Button(
                "Slices", id="slices-in-3d", classes=("['choice', slices_in_3d ? 'on' : '']",),
                click="slices_in_3d = !slices_in_3d",
            )  # fmt: skip
            html.Button("Fit all views", id="fit", classes="choice", click=self.fit)


def _in_field(slice_node: Any, ras: Sequence[float]) -> bool:
    to_slice = np.linalg.inv(as_array(slice_node.GetSliceToRAS()))
    field = np.array(slice_node.GetFieldOfView()[:2])
    place = to_slice @ np.array([*ras, 1.0])
    return bool((np.abs(place[:2] - np.array(slice_node.GetXYZOrigin()[:2])) <= 0.45 * field).all())
