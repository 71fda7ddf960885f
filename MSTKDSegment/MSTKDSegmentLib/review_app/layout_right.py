"""The right of the page: predictions, figures, worst places, the verdict, and notices."""

from __future__ import annotations

from typing import Any

from trame.widgets import html

from ..regions import REGION_KEYS
from ..review.verdicts import VERDICTS
from .layout_parts import button, figures_body, figures_head, section


def right(app: Any) -> None:
    """Put it into the page; what is clicked calls `app` (an `app.ReviewApp`). The verdict is always in sight."""
    with html.Div(classes="panel", style="flex: 1; min-height: 0"):
        _predictions(app)
        _figures()
        _places(app)
        _notices()
    with html.Div(classes="panel pinned"):
        _verdict(app)


def _predictions(app: Any) -> None:
    with section("Predictions"), html.Div(v_if="has_truth && predictions.length", classes="row-heads"):
        for key in REGION_KEYS:
            html.Span(key, classes="number")
    html.Div("None yet: segment from the sequences that you choose, or start with --predictions.",
             v_if="!predictions.length && !busy", classes="quiet", id="no-predictions")  # fmt: skip
    with html.Div(classes="rows", id="predictions", style="max-height: 150px", v_if="predictions.length"), html.Div(
        v_for="row in predictions", key="row.name", click=(app.choose_prediction, "[row.name]"),
        classes=("['row', row.name === prediction ? 'chosen' : '']",), tabindex="0", title=("row.title",),
        raw_attrs=['@keydown.enter="$event.currentTarget.click()"'],
    ):  # fmt: skip
        html.Span("{{ row.mark }}", classes=("['mark', row.mark]",))
        html.Span("{{ row.name }}", classes="name")
        button("Save", "false", (app.save, "[row.name]"), v_if="row.unsaved",
               title="Write it to the folder of results")  # fmt: skip
        for key in REGION_KEYS:
            html.Span(f"{{{{ row.{key} }}}}", v_if="has_truth", classes="number dice")
    html.Div("{{ saved_said }}", v_if="saved_said", classes="said", id="saved-said")
    html.Div("{{ save_problem }}", v_if="save_problem", classes="problem", id="save-problem")


def _figures() -> None:
    with section("Figures"):
        html.Span("{{ measuring }}", id="measuring", classes="quiet", style="text-transform: none; letter-spacing: 0")
    with html.Table(classes="figures", id="figures", v_if="figures.length"):
        figures_head("")
        figures_body("figures")


def _places(app: Any) -> None:
    with section("Worst places", v_if="has_truth"), html.Div(classes="choices in-head"):
        button("By volume", "order === 'volume'", (app.measuring.choose_order, "['volume']"), id="by-volume")
        button("By distance", "order === 'distance'", (app.measuring.choose_order, "['distance']"), id="by-distance")
    with html.Div(classes="line", v_if="has_truth"):
        button(
            "Next worst place", "places.length", app.measuring.next_place, id="next-place", disabled=("!places.length",)
        )
        html.Span("{{ place >= 0 ? (place + 1) + ' of ' + places.length : places.length + ' places' }}",
                  id="place-text", classes="quiet", v_if="figures.length", style="flex: 1")  # fmt: skip
        button("Crosshair", "crosshair", "crosshair = !crosshair", id="crosshair", v_if="place >= 0")
    with html.Div(classes="rows", id="places", style="max-height: 150px", v_if="places.length"), html.Div(
        v_for="(row, index) in places", key="row.number", click=(app.measuring.go_to, "[index]"),
        classes=("['row', index === place ? 'chosen' : '']",), tabindex="0", title=("row.ras",),
        raw_attrs=['@keydown.enter="$event.currentTarget.click()"'],
    ):  # fmt: skip
        html.Span("{{ row.number }}", classes="number quiet", style="width: 18px")
        html.Span(classes="swatch", style=("'background: ' + (row.missed ? '#56b4e9' : '#e69f00')",))
        html.Span("{{ row.region }} {{ row.kind }}", classes="name")
        html.Span("{{ row.volume }} ml", classes="number")
        html.Span("{{ row.distance }} mm", classes="number", style="width: 52px")


def _verdict(app: Any) -> None:
    with section("Verdict"):
        html.Span("{{ elapsed }}", id="elapsed", classes="number", style="letter-spacing: 0")
    with html.Div(classes="choices", id="verdicts"):
        for one in VERDICTS:
            button(one.capitalize(), f"verdict === '{one}'", f"verdict = verdict === '{one}' ? '' : '{one}'",
                    id=f"verdict-{one.split()[0]}", disabled=("!prediction",))  # fmt: skip
    with html.Div(style="margin-top: 8px; display: grid; gap: 6px"):
        html.Textarea(v_model=("comment",), classes="text-in", rows="2", placeholder="Comment", id="comment",
                      raw_attrs=['aria-label="Comment"'])  # fmt: skip
        with html.Div(classes="d-flex", style="gap: 6px"):
            html.Input(v_model=("reader",), classes="text-in", placeholder="Reader", id="reader",
                       raw_attrs=['aria-label="Reader"'])  # fmt: skip
            seen = (app.judging.save, "[case_name, prediction, verdict, comment, reader]")
            button("Save verdict", "verdict", seen, id="save-verdict",
                   disabled=("!prediction || !verdict",), style="white-space: nowrap")  # fmt: skip
    html.Div("{{ verdict_problem }}", classes="problem", v_if="verdict_problem", id="verdict-problem")
    with html.Div(classes="said", v_if="verdict_said", id="verdict-said"):
        html.Div("Last: {{ verdict_said }}")
        html.Div("{{ verdict_comment }}", v_if="verdict_comment", style="white-space: pre-wrap")


def _notices() -> None:
    with section("Notices", v_if="notices.length"):
        pass
    html.Div("{{ text }}", v_for="(text, number) in notices", key="number", classes="notice")
