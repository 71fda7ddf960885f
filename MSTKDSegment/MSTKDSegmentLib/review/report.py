"""The review of one patient as a page: figures, pictures of right and wrong, the worst places, what if."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Optional, Union

from .. import __version__
from ..quality_pictures import SECTIONS_STYLE, Section, TextLine, sections_html, sections_png
from ..regions import LABELS, REGION_KEYS
from ..report_template import (
    DISCLAIMER,
    html_page,
    png_html,
    provenance_html,
    swatch_html,
    table_html,
    warnings_html,
)
from ..segmentation_io import atomic_output, check_output, output_ending
from .charts import subset_chart
from .comparison import Review, Reviewed
from .pictures import ERROR_LEGEND, ImageLike, Scene, change_text, doubt_section, prediction_sections
from .report_text import (
    EMPTY_POLICY,
    PLACE_HEADINGS,
    SCORE_HEADINGS,
    agreement_rows,
    carrier_sentences,
    place_cells,
    score_cells,
    subset_rows,
    volume_cells,
    without_folders,
)
from .what_if import WhatIf

REVIEW_ENDINGS = (".html", ".png", ".json")
REVIEW_STYLE = (
    SECTIONS_STYLE
    + """
h2.prediction { border-top: 2px solid #1b1f24; padding-top: 12px; font-size: 19px; }
.chart { background: none; text-align: left; }
.chart img { margin: 0; }
.legend span { margin-right: 18px; white-space: nowrap; }
.wide { overflow-x: auto; }
.wide table { font-size: 14px; }
"""
)
_QUIET, _ALERT = "#4a525c", "#9a5b00"


def write_review_report(
    path: Union[str, os.PathLike[str]],
    review: Review,
    images: Mapping[str, ImageLike],
    *,
    title: str,
    provenance: Optional[Mapping[str, str]] = None,
    what_if: Optional[WhatIf] = None,
    files: Sequence[Path] = (),
    overwrite: bool = False,
) -> None:
    """Writes the review of one patient as `.html` (one self-contained page), `.png` (one picture) or `.json`.

    images: by sequence, SimpleITK images anywhere in the patient's space or arrays (D, H, W) on the review's grid; may
    be empty. provenance: what was run and compared (`report_text.what_was_compared`). what_if: of the same patient,
    on any grid. files: those that notices may name; their folders, which may be called by a patient's name, are left
    out. Raises OutputError as `segmentation_io.check_output`, ValueError if an array is not on the grid.
    """
    path = check_output(path, overwrite, endings=REVIEW_ENDINGS)
    ending = output_ending(path, REVIEW_ENDINGS)
    notices = [without_folders(text, files) for text in review.notices]
    made = {"software": f"MSTKDSegment {__version__}", **(provenance or {})}
    if ending == ".json":
        data = json.dumps(_report_dict(review, title, notices, made, what_if), indent=2).encode("utf-8")
    else:
        scene = Scene.of(review, images)
        if ending == ".png":
            data = _png(review, scene, title, notices, made, what_if)
        else:
            body = _body(review, scene, notices, made, what_if)
            data = html_page(f"{title}: review", body, REVIEW_STYLE).encode("utf-8")
    with atomic_output(path, overwrite, ending) as temporary:
        temporary.write_bytes(data)


def _report_dict(
    review: Review, title: str, notices: Sequence[str], made: Mapping[str, str], what_if: Optional[WhatIf]
) -> dict[str, Any]:
    return {
        "title": title,
        **review.to_dict(),
        "known": list(review.known),
        "notices": list(notices),
        "what_if": None if what_if is None else what_if.to_dict(),
        "provenance": dict(made),
    }


# --- HTML ------------------------------------------------------------------------------------------------------------


def _body(
    review: Review, scene: Scene, notices: Sequence[str], made: Mapping[str, str], what_if: Optional[WhatIf]
) -> str:
    parts = [warnings_html(notices), "<h2>Figures</h2>", _figures(review), _legend(review)]
    if review.agreement:
        parts += ["<h2>Agreement of the predictions</h2>", "<p>Dice between each two of them, by region.</p>"]
        parts.append(table_html(("First", "Second", *REGION_KEYS), agreement_rows(review), (0, 1)))
    for one in review.predictions:
        parts += [f'<h2 class="prediction">{escape(one.name)}</h2>']
        parts += [sections_html(prediction_sections(review, one, scene)), _places(one)]
    if what_if is not None:
        parts += ['<h2 class="prediction">What if a sequence were missing?</h2>', _what_if(review, what_if, scene)]
    parts += [f'<p class="disclaimer">{escape(DISCLAIMER)}</p>', "<h2>How this was made</h2>", provenance_html(made)]
    return "\n".join(parts)


def _figures(review: Review) -> str:
    if review.ground_truth is None:
        rows = [[one.name, *volume_cells(one)] for one in review.predictions]
        return "<p>There is no ground truth: volumes in ml.</p>" + table_html(("Prediction", *REGION_KEYS), rows)
    rows = []
    for one in review.predictions:
        rows += [[one.name, *score_cells(score)] for score in one.scores]
    several = len(review.predictions) > 1
    headings = ("Prediction", *SCORE_HEADINGS) if several else SCORE_HEADINGS
    shown = rows if several else [row[1:] for row in rows]
    table = table_html(headings, shown, (0, 1, 2) if several else (0, 1))
    return f'<div class="wide">{table}</div><p class="quiet">{escape(EMPTY_POLICY)}</p>'


def _legend(review: Review) -> str:
    entries = [(item.title, item.colour) for item in LABELS]
    if review.ground_truth is not None:
        entries += list(ERROR_LEGEND)
    spans = "".join(f"<span>{swatch_html(colour)}{escape(text)}</span>" for text, colour in entries)
    return f'<p class="legend">{spans}</p>'


def _places(one: Reviewed) -> str:
    if not one.scores:
        return ""
    if not one.places:
        return "<p>No connected error is large enough to be listed.</p>"
    rows = [place_cells(rank + 1, place) for rank, place in enumerate(one.places)]
    return "<h2>All worst places</h2>" + table_html(PLACE_HEADINGS, rows, (1, 2, 5, 6))


def _what_if(review: Review, what_if: WhatIf, scene: Scene) -> str:
    headings, rows = subset_rows(what_if)
    sentences = "".join(f"<li>{escape(text)}</li>" for text in carrier_sentences(what_if))
    alt = "Dice of each subset of the sequences by region, and the Dice that is lost without each one sequence."
    return "\n".join([
        f"<ul>{sentences}</ul>" if sentences else "",
        f'<figure class="chart">{png_html(subset_chart(what_if), alt)}</figure>',
        table_html(headings, rows),
        sections_html([doubt_section(review, what_if, scene)]),
    ])  # fmt: skip


# --- PNG -------------------------------------------------------------------------------------------------------------


def _png(
    review: Review,
    scene: Scene,
    title: str,
    notices: Sequence[str],
    made: Mapping[str, str],
    what_if: Optional[WhatIf],
) -> bytes:
    lines = [TextLine(f"{title}: review", 15, "bold")]
    lines += [TextLine(f"!  {text}", colour=_ALERT) for text in notices]
    sections: list[Section] = []
    for one in review.predictions:
        lines.append(TextLine(one.name, 11, "bold"))
        for score in one.scores:
            cells = dict(zip(SCORE_HEADINGS, score_cells(score)))
            region = cells.pop("Region")
            lines.append(TextLine(f"{region}: " + "; ".join(f"{key} {text}" for key, text in cells.items())))
        if not one.scores:
            lines.append(TextLine("; ".join(f"{k} {ml} ml" for k, ml in zip(REGION_KEYS, volume_cells(one)))))
        sections += [
            section._replace(heading=f"{one.name}: {section.heading}")
            for section in prediction_sections(review, one, scene)
        ]
    for first, second, *dices in agreement_rows(review):
        lines.append(TextLine(f"{first} and {second} agree: Dice of WT, TC, ET {', '.join(dices)}"))
    if what_if is not None:
        lines += [TextLine(text) for text in carrier_sentences(what_if)]
        lines += [TextLine(f"{key}: {change_text(what_if, key)}") for key in REGION_KEYS]
        sections.append(doubt_section(review, what_if, scene))
    lines += [TextLine(EMPTY_POLICY, colour=_QUIET), TextLine(DISCLAIMER, weight="bold")]
    lines += [TextLine("; ".join(f"{key}: {text}" for key, text in made.items()), 8, colour=_QUIET)]
    return sections_png(lines, sections)
