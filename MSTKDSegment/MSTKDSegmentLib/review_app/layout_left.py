"""The left of the page: worklist, image, overlays, and what is to be segmented."""

from __future__ import annotations

from typing import Any

from trame.widgets import html
from trame.widgets import vuetify3 as v3

from ..regions import LABELS, REGION_KEYS
from .layout_parts import button, css, figures_body, figures_head, section, slider
from .scene import ERROR_KINDS

KIND_WORDS = {"right": "right", "invented": "invented (FP)", "missed": "missed (FN)"}


def left(app: Any) -> None:
    """Put it into the page; what is clicked calls `app` (an `app.ReviewApp`)."""
    with html.Div(classes="panel", style="flex: 1"):
        _worklist(app)
        _image(app)
        _overlays()
        _segment(app)


def _worklist(app: Any) -> None:
    with section("Worklist"):
        html.Span(
            "{{ cases.filter(c => c.mark).length }} of {{ cases.length }}", id="done", style="text-transform: none"
        )
    with html.Div(classes="rows", id="cases", style="max-height: 190px"), html.Div(
        v_for="row in cases", key="row.index", click=(app.open_case, "[row.index]"),
        classes=("['row', row.index === case_index ? 'chosen' : '']",), tabindex="0", title=("row.name",),
        raw_attrs=['@keydown.enter="$event.currentTarget.click()"'],
    ):  # fmt: skip
        html.Span("{{ row.mark }}", classes=("['mark', row.mark]",), title=("row.verdict || 'no verdict'",))
        html.Span("{{ row.name }}", classes="name")
        html.Span("{{ row.problem ? '!' : '' }}", style="color: #cf5b45; font-weight: 700", title=("row.problem",))


def _image(app: Any) -> None:
    with section("Image"):
        pass
    with html.Div(classes="choices", id="sequences"):
        button("{{ name }}", "name === background", (app.display.choose_background, "[name]"),
                v_for="name in sequences", key="name")  # fmt: skip
    with html.Div(classes="line", v_if="sequences.length", style="padding: 0 6px"):
        v3.VRangeSlider(
            v_model=("grey",), min=("grey_least",), max=("grey_most",), step=("grey_step",), strict=True,
            density="compact", hide_details=True, color="primary", thumb_size=12, track_size=2, id="grey",
            aria_label="Darkest and brightest grey value",
        )  # fmt: skip
        html.Span("{{ Math.round(grey[0]) }} – {{ Math.round(grey[1]) }}", classes="number quiet",  # noqa: RUF001
                  style="min-width: 84px", id="grey-text")  # fmt: skip


def _overlays() -> None:
    with section("Overlay"), html.Div(classes="choices in-head"):
        button("Labels", "overlay === 'labels'", "overlay = 'labels'", id="overlay-labels")
        button("Errors", "overlay === 'errors'", "overlay = 'errors'", id="overlay-errors", disabled=("!has_truth",))
    with html.Div(v_show="overlay === 'labels'"):
        with html.Div(classes="line"):
            html.Span("Prediction", classes="what")
            button("Filled", "show_prediction && prediction_filled",
                    "show_prediction = !(show_prediction && prediction_filled); prediction_filled = true",
                    id="prediction-filled", disabled=("!prediction",))  # fmt: skip
            button("Outline", "show_prediction && !prediction_filled",
                    "show_prediction = !(show_prediction && !prediction_filled); prediction_filled = false",
                    id="prediction-outline", disabled=("!prediction",))  # fmt: skip
        slider("prediction_opacity", "Opacity of the prediction")
        with html.Div(classes="line"):
            html.Span("Ground truth", classes="what")
            button("Outline", "show_truth", "show_truth = !show_truth", id="truth-outline", disabled=("!has_truth",))
            html.Span("paler", classes="quiet", v_if="has_truth")
        slider("truth_opacity", "Opacity of the ground truth")
        with html.Div(classes="choices under"):
            for item in LABELS:
                expression = f"hidden.includes('{item.key}')"
                with html.Button(
                    classes=(f"['choice', {expression} ? '' : 'on']",), title=item.name, id=f"show-{item.key}",
                    click=f"hidden = {expression} ? hidden.filter(k => k !== '{item.key}') : [...hidden, '{item.key}']",
                ):  # fmt: skip
                    html.Span(classes="swatch", style=f"background: {css(item.colour)}")
                    html.Span(item.key)
    with html.Div(v_show="overlay === 'errors'"):
        with html.Div(classes="line"):
            html.Span("Region", classes="what")
            for key in REGION_KEYS:
                button(key, f"error_region === '{key}'", f"error_region = '{key}'", id=f"errors-{key}",
                        disabled=(f"!known.includes('{key}')",))  # fmt: skip
        slider("error_opacity", "Opacity of the errors")
        with html.Div(classes="choices under"):
            for _value, key, colour in ERROR_KINDS:
                expression = f"hidden.includes('{key}')"
                with html.Button(
                    classes=(f"['choice', {expression} ? '' : 'on']",), id=f"show-{key}",
                    click=f"hidden = {expression} ? hidden.filter(k => k !== '{key}') : [...hidden, '{key}']",
                ):  # fmt: skip
                    html.Span(classes="swatch", style=f"background: {css(colour)}")
                    html.Span(KIND_WORDS[key])


def _segment(app: Any) -> None:
    with section("Segment"):
        pass
    with html.Div(classes="choices", id="segment-sequences"):
        button(
            "{{ name }}", "chosen.includes(name)", v_for="name in sequences", key="name", disabled=("running",),
            click="chosen = chosen.includes(name) ? chosen.filter(n => n !== name) : [...chosen, name]",
        )  # fmt: skip
    with html.Div(classes="line under"):
        button("Segment", "chosen.length && !running", app.runs.segment, id="segment",
               disabled=("running || !chosen.length",), title="Segment from the chosen sequences")  # fmt: skip
        button("What if", "false", app.runs.what_if, id="what-if", disabled=("running || chosen.length < 2",),
                title="Segment from every subset of the chosen sequences: which one carries which region")  # fmt: skip
        v3.VSpacer()
        button("Cancel", "false", app.runs.cancel, id="cancel", v_if="running")
    with html.Div(v_if="running"):
        with html.Div(classes="bar"):
            html.Div(id="bar", style=("'width: ' + run_percent + '%'",))
        html.Div("{{ run_percent }} %  {{ run_text }}", id="run-text", classes="quiet")
    html.Div("{{ run_problem }}", classes="problem", v_if="run_problem", id="run-problem")
    html.Div("{{ run_said }}", classes="said", v_if="run_said", id="run-said")
    with html.Table(classes="figures", v_if="subsets.length", id="subsets"):
        figures_head("{{ subsets_title }}")
        figures_body("subsets")
    html.Div("{{ subsets_text }}", v_if="subsets_text", classes="quiet", id="subsets-text")
