"""Pieces that the page is made of. Texts come from the state and are never HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from trame.widgets import html
from trame.widgets import vuetify3 as v3

from ..regions import REGION_KEYS


def button(text: str, shown: str, click: Any, **more: Any) -> None:
    """A button that looks pressed where the expression `shown` holds."""
    html.Button(text, classes=(f"['choice', ({shown}) ? 'on' : '']",), click=click, type="button", **more)


@contextmanager
def section(title: str, **more: Any) -> Iterator[None]:
    """A heading; what is made inside stands at its right."""
    with html.Div(classes="section", **more):
        html.Span(title)
        v3.VSpacer()
        yield


def slider(name: str, label: str) -> None:
    """A line with a slider from 0 to 1 for the state `name`; `label` is read to those who do not see it."""
    with html.Div(classes="line", style="min-height: 22px"):
        html.Span("Opacity", classes="what quiet")
        html.Input(
            type="range", min="0", max="1", step="0.05", classes="slider", value=(name,), id=name.replace("_", "-"),
            input=f"{name} = Number($event.target.value)", raw_attrs=[f'aria-label="{label}"'],
        )  # fmt: skip


def figures_head(first: str) -> None:
    """The head of a table with a column for each region; `first`: of the column before them."""
    with html.Thead(), html.Tr():
        html.Th(first)
        for key in REGION_KEYS:
            html.Th(key)


def figures_body(rows: str) -> None:
    """The body of such a table, from the state's variable `rows`."""
    with html.Tbody(), html.Tr(v_for=f"row in {rows}", key="row.name"):
        html.Td("{{ row.name }}")
        for key in REGION_KEYS:
            html.Td(f"{{{{ row.{key} }}}}")


def css(colour: Sequence[float]) -> str:
    """An RGB colour (0 to 1) as "#rrggbb"."""
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in colour)
