"""The charts of the review reports, as PNG: subset by region, and the distribution of a metric over many cases.

Colours are cividis and Okabe and Ito's set, with a marker of its own for each prediction: nothing hangs on colour
alone. matplotlib is imported when a chart is drawn, without pyplot: nothing global is touched, no window can open.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from ..metrics import Status
from ..modalities import MODALITIES
from ..regions import REGION_KEYS
from ..report_template import DISCLAIMER
from .what_if import WhatIf

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 110
# Okabe and Ito 2008, without yellow, which is too pale for points.
SERIES_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
SERIES_MARKERS = "osD^vP*"
# Points whose score is a convention and no measurement.
_EMPTY_MARKER = "x"


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Description": DISCLAIMER})
    return buffer.getvalue()


# --- what if ---------------------------------------------------------------------------------------------------------


def subset_chart(what_if: WhatIf) -> bytes:
    """Left: Dice of each subset of sequences by region. Right: the Dice lost when one sequence alone is missing."""
    present = [name for name in MODALITIES if name in what_if.results[-1].subset]
    results = what_if.results[::-1]  # all sequences on top
    figure = _figure(9.5, 1.5 + 0.3 * max(len(results), 6))
    left, right = figure.subplots(1, 2, width_ratios=(len(REGION_KEYS) + 0.6 * len(present), 3.2))
    values = np.array([[one.dice.get(key, np.nan) for key in REGION_KEYS] for one in results])
    _heat(left, values, (0.0, 1.0), "cividis", "{:.2f}")
    dots = -1.0 - 0.55 * np.arange(len(present))[::-1]
    for row, one in enumerate(results):
        filled = [name in one.subset for name in present]
        faces = ["#1b1f24" if there else "white" for there in filled]
        left.scatter(dots, [row] * len(present), s=52, c=faces, edgecolors="#1b1f24", clip_on=False, zorder=3)
    left.set_xlim(dots.min() - 0.5, len(REGION_KEYS) - 0.5)
    left.set_xticks([*dots, *range(len(REGION_KEYS))], [*present, *REGION_KEYS])
    for label in left.get_xticklabels()[: len(present)]:
        label.set(rotation=60, ha="left", rotation_mode="anchor")
    left.set_title(f"Dice to the {what_if.against}", fontsize=11, fontweight="bold")
    lost = {key: what_if.carried_by(key) for key in REGION_KEYS}
    losses = np.array([[lost[key].get(name, np.nan) for key in REGION_KEYS] for name in present])
    limit = max(0.05, float(np.nanmax(np.abs(losses)))) if np.isfinite(losses).any() else 0.05
    _heat(right, losses, (-limit, limit), "PuOr_r", "{:+.3f}")
    right.set_xticks(range(len(REGION_KEYS)), REGION_KEYS)
    right.set_yticks(range(len(present)), [f"without {name}" for name in present])
    right.set_title("Dice lost without one sequence", fontsize=11, fontweight="bold")
    return _png(figure)


def _heat(axes: Axes, values: np.ndarray, limits: tuple[float, float], colours: str, text: str) -> None:
    """A heat map with its figures in the cells, without a frame; NaN stays white with a dash."""
    from matplotlib import colormaps

    picture = axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1], aspect="auto")
    picture.set_extent((-0.5, values.shape[1] - 0.5, values.shape[0] - 0.5, -0.5))
    for (row, column), value in np.ndenumerate(values):
        if not np.isfinite(value):
            axes.text(column, row, "-", ha="center", va="center", fontsize=9)
            continue
        red, green, blue, _ = colormaps[colours]((value - limits[0]) / (limits[1] - limits[0]))
        dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
        ink = "white" if dark else "black"
        axes.text(column, row, text.format(value), ha="center", va="center", color=ink, fontsize=9)
    axes.set_yticks([])
    axes.tick_params(length=0, labelsize=9, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)


# --- many cases ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Series:
    """One prediction's values of a metric by region, with the status (`metrics.Status`) of each."""

    name: str
    values: Mapping[str, Sequence[float]]
    statuses: Mapping[str, Sequence[str]]


def distribution_chart(title: str, series: Sequence[Series], limits: Optional[tuple[float, float]] = None) -> bytes:
    """Every case as a point beside a box (quartiles, whiskers to 1.5 times their distance), by region and prediction.

    limits: of the axis; points of cases with an empty mask are crosses.
    """
    regions = [key for key in REGION_KEYS if any(key in one.values for one in series)]
    figure = _figure(5.4, 3.3)
    axes = figure.subplots()
    width = 0.8 / len(series)
    for number, one in enumerate(series):
        colour = SERIES_COLOURS[number % len(SERIES_COLOURS)]
        marker = SERIES_MARKERS[number % len(SERIES_MARKERS)]
        for place, key in enumerate(regions):
            values = np.asarray(one.values.get(key, ()), float)
            if values.size:
                middle = place + (number - (len(series) - 1) / 2) * width
                _strip(axes, values, one.statuses[key], middle, width, colour, marker)
        axes.plot([], [], marker=marker, color=colour, linestyle="", markersize=5, label=one.name)
    if any(status != Status.OK for one in series for found in one.statuses.values() for status in found):
        axes.plot([], [], marker=_EMPTY_MARKER, color="#4a525c", linestyle="", markersize=5, label="a mask is empty")
    axes.set_xticks(range(len(regions)), regions)
    axes.set_xlim(-0.6, len(regions) - 0.4)
    if limits:
        margin = 0.03 * (limits[1] - limits[0])
        axes.set_ylim(limits[0] - margin, limits[1] + margin)
    axes.set_title(title, fontsize=11, fontweight="bold")
    axes.grid(axis="y", color="#e2e5e9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return _png(figure)


def _strip(
    axes: Axes, values: np.ndarray, statuses: Sequence[str], middle: float, width: float, colour: str, marker: str
) -> None:
    line: dict[str, Any] = {"color": colour, "linewidth": 1.0}
    axes.boxplot(
        [values], positions=[middle], widths=0.7 * width, showfliers=False, boxprops=line, whiskerprops=line,
        capprops=line, medianprops={"color": colour, "linewidth": 2.2},
    )  # fmt: skip
    # The same cases lie at the same places in every chart and every run.
    jitter = np.random.default_rng(0).uniform(-0.25, 0.25, values.size) * width
    measured = np.array([status == Status.OK for status in statuses])
    for mask, shape, alpha in ((measured, marker, 0.65), (~measured, _EMPTY_MARKER, 0.95)):
        axes.scatter(
            middle + jitter[mask], values[mask], s=15, marker=shape, color=colour, alpha=alpha, linewidths=0.8, zorder=3
        )
