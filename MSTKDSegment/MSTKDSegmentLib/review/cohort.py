"""Many reviewed cases as one table of means and as a page: distributions, intervals, the worst cases, what failed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Optional, Union
from urllib.parse import quote

import numpy as np

from ..metrics import Status
from ..patients import patient_of
from ..regions import REGION_KEYS
from ..report_template import DISCLAIMER, Html, html_page, png_html, provenance_html, table_html
from ..segmentation_io import atomic_output, check_output
from ..statistics import CONFIDENCE, estimate
from .charts import Series, distribution_chart
from .report_text import EMPTY_POLICY, STATUS_TEXT

Row = Mapping[str, Any]
"""One case, prediction and region: `case`, `prediction` and what `RegionReview.to_dict` gives."""
WORST = 10
STATUSES = (Status.OK, Status.BOTH_EMPTY, Status.MISSED, Status.FP_ONLY)


@dataclass(frozen=True)
class Measure:
    """A column of the rows: its name there, its title, decimals, and the range of its axis (None: the values')."""

    key: str
    title: str
    digits: int = 3
    limits: Optional[tuple[float, float]] = (0.0, 1.0)


MEASURES = (
    Measure("dice", "Dice"),
    Measure("hd95_mm", "HD95 (mm)", 1, None),
    Measure("nsd_1mm", "NSD 1 mm"),
    Measure("nsd_2mm", "NSD 2 mm"),
    Measure("volume_error_ml", "Volume error (ml)", 2, None),
    Measure("sensitivity", "Sensitivity"),
    Measure("precision", "Precision"),
    Measure("lesion_f1", "F1 of lesions"),
    Measure("lesion_dice", "Dice by lesion"),
)
_STYLE = """
.charts { display: flex; flex-wrap: wrap; gap: 8px; }
.charts img { width: 500px; max-width: 100%; }
.wide { overflow-x: auto; }
body { max-width: 1584px; }
small { color: #4a525c; }
"""


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """By prediction and region: `cases`, `patients`, `statuses` (counts), and for each measure its mean with the 95 %
    bootstrap interval by patient (`low`, `high`), `median` and `n`. Empty for no rows.

    Nothing is left out of a mean: where masks are empty the values are those of `metrics.Status`.
    """
    summary: dict[str, Any] = {}
    for (prediction, region), mine in _groups(rows).items():
        summary.setdefault(prediction, {})[region] = _of_group(mine)
    return summary


def _groups(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by prediction, in the order of their first, and region, from the outermost to the innermost."""
    names = list(dict.fromkeys(str(row["prediction"]) for row in rows))
    groups: dict[tuple[str, str], list[Row]] = {(name, key): [] for name in names for key in REGION_KEYS}
    for row in rows:
        groups[str(row["prediction"]), str(row["region"])].append(row)
    return {key: mine for key, mine in groups.items() if mine}


def _of_group(rows: Sequence[Row]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "cases": len(rows),
        "patients": len({patient_of(str(row["case"])) for row in rows}),
        "statuses": {status: sum(row["status"] == status for row in rows) for status in STATUSES},
    }
    for measure in MEASURES:
        values = np.array([row[measure.key] for row in rows], float)
        found = estimate(values, [patient_of(str(row["case"])) for row in rows])
        entry[measure.key] = {
            "mean": found.value, "low": found.low, "high": found.high, "median": float(np.median(values)),
            "n": found.cases,
        }  # fmt: skip
    return entry


# --- the page --------------------------------------------------------------------------------------------------------


def write_cohort_report(
    path: Union[str, os.PathLike[str]],
    rows: Sequence[Row],
    *,
    title: str,
    failed: Optional[Mapping[str, str]] = None,
    pages: Optional[Mapping[str, str]] = None,
    notices: Optional[Mapping[str, Sequence[str]]] = None,
    provenance: Optional[Mapping[str, str]] = None,
    overwrite: bool = False,
) -> None:
    """Writes one self-contained `.html` page on many cases.

    failed: cases that could not be reviewed, with the reason. pages: by case the page on it, relative to `path`.
    notices: by case, sentences to show.
    Raises OutputError as `segmentation_io.check_output`.
    """
    path = check_output(path, overwrite, endings=(".html",))
    body = _body(rows, failed or {}, pages or {}, notices or {}, provenance or {})
    with atomic_output(path, overwrite, ".html") as temporary:
        temporary.write_bytes(html_page(title, body, _STYLE).encode("utf-8"))


def _body(
    rows: Sequence[Row],
    failed: Mapping[str, str],
    pages: Mapping[str, str],
    notices: Mapping[str, Sequence[str]],
    provenance: Mapping[str, str],
) -> str:
    cases = list(dict.fromkeys(str(row["case"]) for row in rows))
    patients = len({patient_of(case) for case in cases})
    parts = [f"<p>{len(cases)} cases of {patients} patients; {len(failed)} failed.</p>"]
    if rows:
        parts += ["<h2>Figures</h2>", _figures(rows), *_differences(rows), "<h2>Distributions</h2>", _charts(rows)]
        parts += ["<h2>Empty masks</h2>", _empty_masks(rows)]
        parts += [f"<h2>The worst cases</h2><p>By their mean Dice over the regions, at most {WORST}.</p>"]
        parts += [_case_table(rows, pages, WORST)]
    if failed:
        parts += ["<h2>Cases that failed</h2>", table_html(("Case", "Why"), list(failed.items()), (0, 1))]
    if rows:
        parts += ["<h2>All cases</h2>", _case_table(rows, pages, None)]
    told = [[case, text] for case, texts in notices.items() for text in texts]
    if told:
        parts += ["<h2>Notices</h2>", table_html(("Case", "Notice"), told, (0, 1))]
    parts += [f'<p class="disclaimer">{escape(DISCLAIMER)}</p>', "<h2>How this was made</h2>"]
    return "\n".join([*parts, provenance_html(provenance)])


def _figures(rows: Sequence[Row]) -> str:
    shown = []
    for prediction, regions in summarise(rows).items():
        for region, entry in regions.items():
            cells = [_estimate_cell(entry[measure.key], measure.digits) for measure in MEASURES]
            shown.append([prediction, region, str(entry["cases"]), *cells])
    table = table_html(("Prediction", "Region", "n", *(one.title for one in MEASURES)), shown, (0, 1))
    words = (
        f"Mean over cases, its {CONFIDENCE:.0%} interval (bootstrap by patient), and the median. {EMPTY_POLICY} "
        "The median of HD95 shows the rest better where the penalty is in the mean."
    )
    return f'<div class="wide">{table}</div><p class="quiet">{escape(words)}</p>'


def _estimate_cell(found: Mapping[str, float], digits: int) -> Html:
    mean, low, high, median = (f"{found[key]:.{digits}f}" for key in ("mean", "low", "high", "median"))
    return Html(f"{mean}<br><small>[{low}, {high}]<br>median {median}</small>")


def _differences(rows: Sequence[Row]) -> list[str]:
    """Each two predictions on the cases that both have."""
    groups = _groups(rows)
    names = list(dict.fromkeys(name for name, _region in groups))
    shown = []
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            for region in REGION_KEYS:
                pairs = _paired(groups.get((first, region), []), groups.get((second, region), []))
                if pairs:
                    shown.append([f"{first} - {second}", region, str(len(pairs)), *_difference_cells(pairs)])
    if not shown:
        return []
    words = f"Mean differences on the cases that both have, with their {CONFIDENCE:.0%} intervals."
    headings = ("Predictions", "Region", "n", "Dice", "HD95 (mm)", "NSD 1 mm")
    return ["<h2>Differences</h2>", f"<p>{words}</p>", table_html(headings, shown, (0, 1))]


def _paired(first: Sequence[Row], second: Sequence[Row]) -> list[tuple[Row, Row]]:
    others = {row["case"]: row for row in second}
    return [(row, others[row["case"]]) for row in first if row["case"] in others]


def _difference_cells(pairs: Sequence[tuple[Row, Row]]) -> list[str]:
    cells = []
    patients = [patient_of(str(one["case"])) for one, _other in pairs]
    for key, digits in (("dice", 3), ("hd95_mm", 1), ("nsd_1mm", 3)):
        found = estimate(np.array([one[key] - other[key] for one, other in pairs], float), patients)
        cells.append(f"{found.value:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]")
    return cells


def _charts(rows: Sequence[Row]) -> str:
    groups = _groups(rows)
    names = list(dict.fromkeys(name for name, _region in groups))
    pictures = []
    for measure in MEASURES:
        series = []
        for name in names:
            mine = {key: groups[name, key] for key in REGION_KEYS if (name, key) in groups}
            values = {key: [float(row[measure.key]) for row in found] for key, found in mine.items()}
            series.append(Series(name, values, {key: [row["status"] for row in found] for key, found in mine.items()}))
        alt = f"{measure.title} of every case by region; the figures are in the table above."
        pictures.append(png_html(distribution_chart(measure.title, series, measure.limits), alt))
    return f'<div class="charts">{"".join(pictures)}</div>'


def _empty_masks(rows: Sequence[Row]) -> str:
    shown = [
        [prediction, region, *(str(entry["statuses"][status]) for status in STATUSES)]
        for prediction, regions in summarise(rows).items()
        for region, entry in regions.items()
    ]
    return table_html(("Prediction", "Region", *(STATUS_TEXT[status] for status in STATUSES)), shown, (0, 1))


def _case_table(rows: Sequence[Row], pages: Mapping[str, str], count: Optional[int]) -> str:
    """Cases and predictions, the lowest mean Dice first; `count`: how many, None for all by name."""
    by_case: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        by_case.setdefault((str(row["case"]), str(row["prediction"])), {})[str(row["region"])] = row
    mean = {key: float(np.mean([row["dice"] for row in found.values()])) for key, found in by_case.items()}
    order = sorted(by_case) if count is None else sorted(by_case, key=lambda key: (mean[key], key))[:count]
    shown = []
    for case, prediction in order:
        found = by_case[case, prediction]
        numbers = [
            f"{found[key][measure]:.{digits}f}" if key in found else "-"
            for measure, digits in (("dice", 3), ("hd95_mm", 1))
            for key in REGION_KEYS
        ]
        empty = [f"{key} {STATUS_TEXT[row['status']]}" for key, row in found.items() if row["status"] != Status.OK]
        shown.append([_linked(case, pages), prediction, f"{mean[case, prediction]:.3f}", *numbers, "; ".join(empty)])
    headings = ("Case", "Prediction", "Mean Dice", *(f"Dice {key}" for key in REGION_KEYS))
    headings += (*(f"HD95 {key}" for key in REGION_KEYS), "Empty masks")
    return f'<div class="wide">{table_html(headings, shown, (0, 1, len(headings) - 1))}</div>'


def _linked(case: str, pages: Mapping[str, str]) -> Html:
    if case not in pages:
        return Html(escape(case))
    return Html(f'<a href="{escape(quote(pages[case]))}">{escape(case)}</a>')
