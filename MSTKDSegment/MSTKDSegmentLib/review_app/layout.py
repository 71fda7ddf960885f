"""The page: worklist and display at the left, views in the middle, figures, places and verdict at the right.

Everything that a test or a reader's script may want to find has an id. Texts come from the state and are never HTML.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trame.ui.vuetify3 import VAppLayout
from trame.widgets import client, html
from trame.widgets import vuetify3 as v3

from .layout_left import left
from .layout_parts import button
from .layout_right import right
from .pages import SCRIPT, STYLE

DISCLAIMER = "For research use only. Not a medical device."
DARK = {
    "theme": {
        "defaultTheme": "review",
        "themes": {
            "review": {
                "dark": True,
                "colors": {"background": "#0d1014", "surface": "#14181e", "primary": "#6ea8d8", "error": "#cf5b45"},
            }
        },
    }
}


def build(server: Any, app: Any) -> Any:
    """The page on `server`; what is clicked calls `app` (an `app.ReviewApp`), whose views fill the middle."""
    _gone(server)
    with VAppLayout(server, vuetify_config=DARK, full_height=True) as page:
        client.Style(STYLE)
        client.Script(SCRIPT)
        _top(app)
        with _drawer("left", 270):
            left(app)
        with _drawer("right", 350):
            right(app)
        with v3.VMain(style="height: 100vh"), html.Div(classes="d-flex", style="width: 100%; height: 100%"):
            app.views.place(page)
    return page


@contextmanager
def _drawer(side: str, width: int) -> Iterator[None]:
    with v3.VNavigationDrawer(model_value=True, permanent=True, width=width, location=side, color="surface"):  # noqa: SIM117
        with html.Div(classes="column", id=side):
            yield


def _gone(server: Any) -> None:
    """What trame's client puts in the place of the page once the server does not answer; the state is still known."""
    with VAppLayout(server, template_name="error", vuetify_config=DARK):
        client.Style(STYLE)
        with html.Div(classes="gone", id="server-gone"):
            html.H1("The review server does not answer any more")
            html.P(
                "Verdicts that were saved are on its disk. Start mstkd review again if it has ended, then open the "
                "address that it prints."
            )
            with html.Div(v_if="comment", style="margin-top: 12px"):
                html.Div("What you had typed and not saved:")
                html.Textarea(v_model=("comment",), classes="text-in", id="unsaved", readonly=True)
            html.A("Try again", href="/", classes="choice", style="margin-top: 12px; text-decoration: none")


def _top(app: Any) -> None:
    bar = v3.VAppBar(height=44, flat=True, color="surface", style="border-bottom: 1px solid #242b34")
    with bar, html.Div(classes="d-flex align-center", style="gap: 12px; width: 100%; padding: 0 12px"):
        html.Span("MSTKD Review", style="font-weight: 600; font-size: 15px; white-space: nowrap")
        html.Span(
            "{{ case_name }}", id="case-name",
            style="font-size: 15px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap",
        )  # fmt: skip
        html.Span("{{ busy }}", id="busy", classes="quiet", style="white-space: nowrap")
        v3.VSpacer()
        with html.Div(classes="choices", style="flex-wrap: nowrap"):
            button("Previous", "false", (app.go, "[-1]"), id="previous", disabled=("case_index <= 0",))
            button("Next", "false", (app.go, "[1]"), id="next", disabled=("case_index >= cases.length - 1",))
            button("Next without verdict", "false", app.go_to_open, id="next-open")
        html.Span(DISCLAIMER, id="disclaimer", style="color: #e3b45b; font-size: 12px; white-space: nowrap")
