"""Figures beside the tables: heat map, Dice against the number of sequences, dots of each case, a panel of slices.

Every function writes one PNG and returns its path. Colours are from viridis, cividis and Okabe and Ito's set, which
people with any colour vision tell apart; the panel alone has the paper's red, yellow and green, drawn with outlines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk
from MSTKDSegmentLib.metrics import region_dice
from MSTKDSegmentLib.regions import LABELS
from MSTKDSegmentLib.statistics import estimate

from training.files import replacing
from training.methods import DICE, DOT_ROWS, Method, sample_size
from training.scores import REGIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 160
# Okabe and Ito 2008, without yellow, which is too pale for lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = "osD^vP*"


def new_figure(width: float, height: float, **options: Any) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Without pyplot: nothing global is touched, and no window can open.
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", **options)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")
    return path


def _dot_axis(axes: Axes, subsets: Sequence[str]) -> None:
    """Below `axes`: a column of dots for each subset, filled where the sequence is there, as in the paper's tables."""
    transform = axes.get_xaxis_transform()
    axes.set_xticks(range(len(subsets)), [""] * len(subsets))
    axes.tick_params(axis="x", length=0)
    step = 0.17 / axes.get_figure().get_figheight() / axes.get_position().height  # type: ignore[union-attr]
    for line, modality in enumerate(DOT_ROWS):
        y = -step * (line + 0.9)
        axes.annotate(
            modality,
            (0, y),
            (-14, 0),
            xycoords=transform,
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8,
        )
        for column, subset in enumerate(subsets):
            filled = modality in subset.split("+")
            axes.plot(
                [column],
                [y],
                "o",
                transform=transform,
                clip_on=False,
                markersize=5.5,
                color="#222222",
                markerfacecolor="#222222" if filled else "white",
                markeredgewidth=0.8,
            )


def dice_heat_map(method: Method, path: Path) -> Path:
    """Mean Dice, 15 subsets by three regions, the figure in every cell."""
    subsets = method.subsets
    means = np.array([[method.values(DICE, region, (s,)).mean() for s in subsets] for region in REGIONS])
    figure = new_figure(0.62 * len(subsets) + 2.2, 3.1)
    axes = figure.add_subplot()
    image = axes.imshow(means, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(means):
        shade = "white" if value < 60 else "black"
        axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=shade, fontsize=9)
    axes.set_yticks(range(len(REGIONS)), REGIONS)
    axes.set_title(f"{method.name}: mean Dice (%), {sample_size(method)}", fontsize=10)
    figure.colorbar(image, ax=axes, pad=0.01, label="Dice (%)")
    _dot_axis(axes, subsets)
    return save_figure(figure, path)


def dice_by_sequences(methods: Sequence[Method], path: Path) -> Path:
    """Dice against how many sequences there are: mean over those subsets and 95 % interval by patient, each region."""
    figure = new_figure(3.3 * len(REGIONS) + 0.6, 3.6)
    panels = figure.subplots(1, len(REGIONS), sharey=True)
    counts = sorted({len(s.split("+")) for s in methods[0].subsets})
    for axes, region in zip(panels, REGIONS):
        for number, method in enumerate(methods):
            groups = [[s for s in method.subsets if len(s.split("+")) == count] for count in counts]
            found = [estimate(method.values(DICE, region, group), method.patients) for group in groups]
            mean = np.array([e.value for e in found])
            bars = [mean - [e.low for e in found], np.array([e.high for e in found]) - mean]
            # Side by side, so that the bars of several methods can be told apart.
            shift = 0.08 * (number - (len(methods) - 1) / 2)
            axes.errorbar(
                np.array(counts) + shift,
                mean,
                np.maximum(bars, 0),
                color=COLOURS[number % len(COLOURS)],
                marker=MARKERS[number % len(MARKERS)],
                markersize=5,
                capsize=3,
                linewidth=1.5,
                label=method.name,
            )
        axes.set_title(region)
        axes.set_xticks(counts)
        axes.set_xlim(counts[0] - 0.4, counts[-1] + 0.4)
        axes.set_xlabel("sequences available")
        _tidy(axes)
    panels[0].set_ylabel("Dice (%)")
    panels[0].set_ylim(0, 100)
    if len(methods) > 1:
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(methods), 4), frameon=False)
    name = f"{methods[0].name}. " if len(methods) == 1 else ""
    figure.suptitle(f"{name}Mean Dice and 95 % interval by patient, {sample_size(methods[0])}", fontsize=10)
    return save_figure(figure, path)


def _tidy(axes: Axes) -> None:
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def case_dots(method: Method, path: Path) -> Path:
    """Every case as a dot, by subset and region, with the median as a line: means hide who is missed."""
    subsets = method.subsets
    figure = new_figure(0.55 * len(subsets) + 1.8, 7.2)
    panels = figure.subplots(len(REGIONS), 1, sharex=True)
    jitter = np.random.default_rng(0).uniform(-0.22, 0.22, len(method.cases))
    for number, (axes, region) in enumerate(zip(panels, REGIONS)):
        for column, subset in enumerate(subsets):
            values = method.values(DICE, region, (subset,))
            axes.scatter(column + jitter, values, s=12, color=COLOURS[number], alpha=0.55, linewidths=0, clip_on=False)
            axes.hlines(np.median(values), column - 0.32, column + 0.32, color="black", linewidth=1.6)
        axes.set_ylim(-3, 103)
        axes.set_xlim(-0.6, len(subsets) - 0.4)
        axes.set_ylabel(f"{region} Dice (%)")
        axes.tick_params(axis="x", length=0)
        _tidy(axes)
    panels[0].set_title(f"{method.name}: each case, line: median, {sample_size(method)}", fontsize=10)
    _dot_axis(panels[-1], subsets)
    return save_figure(figure, path)


@dataclass(frozen=True)
class PanelCase:
    """A row of the panel: arrays (D, H, W) on one LPS grid; `predictions` by subset name, `spacing` z, y, x in mm."""

    name: str
    image: np.ndarray
    truth: np.ndarray
    predictions: Mapping[str, np.ndarray]
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)


def panel_case(name: str, image: sitk.Image, truth: sitk.Image, predictions: Mapping[str, sitk.Image]) -> PanelCase:
    """A row of the panel from volumes, label maps of ours; all are brought to the truth's grid, axes to LPS."""
    grid = sitk.DICOMOrient(truth, "LPS")

    def array(volume: sitk.Image, interpolator: int) -> np.ndarray:
        return sitk.GetArrayFromImage(sitk.Resample(volume, grid, sitk.Transform(), interpolator, 0.0))

    labels = {subset: array(volume, sitk.sitkNearestNeighbor) for subset, volume in predictions.items()}
    background = array(sitk.Cast(image, sitk.sitkFloat32), sitk.sitkLinear)
    truth_array = sitk.GetArrayFromImage(grid)
    return PanelCase(name, background, truth_array, labels, tuple(grid.GetSpacing()[::-1]))


def case_panel(cases: Sequence[PanelCase], path: Path) -> Path:
    """Like the paper's Fig. 2: an axial slice through the largest tumour area; image, ground truth, each subset.

    On each prediction stands the Dice of the whole volume. Raises ValueError without cases or with differing subsets.
    """
    if not cases:
        raise ValueError("a panel needs at least one case")
    subsets = list(cases[0].predictions)
    if any(list(case.predictions) != subsets for case in cases):
        raise ValueError("the cases of a panel need predictions for the same subsets")
    titles = ["image", "ground truth", *subsets]
    crops = [_brain_slice(case) for case in cases]
    heights = [(crop[1].stop - crop[1].start) * case.spacing[1] for case, crop in zip(cases, crops)]
    widths = [(crop[2].stop - crop[2].start) * case.spacing[2] for case, crop in zip(cases, crops)]
    tile = 2.0
    rows = [tile * height / max(widths) for height in heights]
    figure = new_figure(tile * len(titles) + 0.3, sum(rows) + 0.75)
    tiles = figure.subplots(len(cases), len(titles), squeeze=False, gridspec_kw={"height_ratios": rows})
    for case, crop, line in zip(cases, crops, tiles):
        _panel_row(case, crop, line, subsets)
    for axes, title in zip(tiles[0], titles):
        # Two sequences a line: four names in one are wider than a tile.
        parts = title.split("+")
        axes.set_title("\n+ ".join(" + ".join(parts[i : i + 2]) for i in range(0, len(parts), 2)), fontsize=9)
    _label_legend(figure)
    return save_figure(figure, path)


def _brain_slice(case: PanelCase) -> tuple[int, slice, slice]:
    """The slice with the largest reference tumour (else the middle one), and the box around the brain in it."""
    areas = np.count_nonzero(case.truth, axis=(1, 2))
    z = int(areas.argmax()) if areas.any() else len(areas) // 2
    inside = (case.image[z] != case.image.flat[0]) | (case.truth[z] > 0)
    y, x = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    if not y.size:
        return z, slice(0, inside.shape[0]), slice(0, inside.shape[1])
    return z, slice(max(int(y[0]) - 3, 0), int(y[-1]) + 4), slice(max(int(x[0]) - 3, 0), int(x[-1]) + 4)


def _panel_row(case: PanelCase, crop: tuple[int, slice, slice], line: Sequence[Axes], subsets: Sequence[str]) -> None:
    background = case.image[crop]
    brain = background[background > background.min()] if np.ptp(background) else background
    low, high = np.percentile(brain, (1, 99.5))
    aspect = case.spacing[1] / case.spacing[2]
    shown = [None, case.truth, *(case.predictions[subset] for subset in subsets)]
    for axes, labels in zip(line, shown):
        axes.imshow(background, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="bilinear")
        if labels is not None:
            axes.imshow(_overlay(labels[crop]), aspect=aspect, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_facecolor("black")
    for axes, subset in zip(line[2:], subsets):
        dice = region_dice(case.predictions[subset], case.truth)
        text = "  ".join(f"{region} {100 * dice[region]:.0f}" for region in REGIONS)
        # The dark ground keeps the figures legible where the image or an overlay is bright.
        ground = {"facecolor": "black", "alpha": 0.7, "linewidth": 0, "pad": 1.5}
        place: dict[str, Any] = {"transform": axes.transAxes, "ha": "center", "va": "bottom", "bbox": ground}
        axes.text(0.5, 0.02, text, color="white", fontsize=7.5, **place)
    line[0].set_ylabel(case.name if len(case.name) < 22 else case.name[:20] + "...", fontsize=8)


def _overlay(labels: np.ndarray) -> np.ndarray:
    """(H, W, 4): the paper's colours, see-through enough for the image below."""
    table = np.zeros((4, 4))
    for structure in LABELS:
        table[structure.labels[0]] = (*structure.colour, 0.65)
    return table[labels]


def _label_legend(figure: Figure) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=structure.colour, label=structure.title) for structure in LABELS]
    options: dict[str, Any] = {"loc": "outside lower center", "ncols": len(handles), "frameon": False, "fontsize": 8}
    figure.legend(handles=handles, title="on the tiles: Dice of the whole volume (%)", title_fontsize=8, **options)


def all_figures(methods: Sequence[Method], out: Path) -> list[Path]:
    """Every figure that scores alone give: one comparison, and a heat map and dots for each method."""
    written = [dice_by_sequences(methods, out / "dice_by_sequences.png")]
    for method in methods:
        stem = "".join(c if c.isalnum() or c in "-." else "_" for c in method.name)
        written.append(dice_heat_map(method, out / f"heat_map_{stem}.png"))
        written.append(case_dots(method, out / f"cases_{stem}.png"))
    return written
