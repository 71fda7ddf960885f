"""How cost grows, as one picture of four panels. matplotlib is imported when it is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_growth_plot(path: Path, growth: Mapping[str, Any]) -> None:
    """A PNG of the measurements of `growth.measure_growth`, seconds upwards from 0."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    size, batch, subsets, processes = figure.subplots(2, 2).flat
    lines = (
        (size, "network alone", growth["network"], "voxels", "seconds"),
        (size, "network in the command", growth["command"], "voxels", "network_seconds"),
        (size, "whole command", growth["command"], "voxels", "seconds"),
        (batch, "whole command", growth["batch"], "cases", "seconds"),
        (subsets, "read once, then each subset", growth["subsets"], "subsets", "seconds"),
        (processes, "evaluate --jobs", growth["processes"], "processes", "seconds"),
    )
    for axes, label, rows, across, upwards in lines:
        unit = 1e6 if across == "voxels" else 1
        axes.plot([row[across] / unit for row in rows], [row[upwards] for row in rows], "o-", label=label)
    titles = ("million voxels of network input", "cases in a batch", "subsets of one case", "processes")
    for axes, title in zip((size, batch, subsets, processes), titles):
        axes.set_xlabel(title)
        axes.set_ylabel("seconds")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend()
    processes.set_xticks([row["processes"] for row in growth["processes"]])
    figure.savefig(path, dpi=100, format="png")
