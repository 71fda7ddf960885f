"""The pictures of the quality and review reports: rows of slices with headings, captions and outlines.

matplotlib is imported when a picture is drawn.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .quality_slices import THICK, Cut
from .quality_views import OTHER_COLOUR, Row, View
from .report_picture import (
    Outline,
    draw_image,
    draw_letters,
    draw_mark,
    draw_outlines,
    draw_painted,
    draw_text,
    mask_outlines,
    new_page,
    page_png,
)
from .report_template import png_html

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Pixels: a view's three slices, the space between slices, between views and around all.
_COLUMN, _GAP, _BETWEEN, _MARGIN = 760, 12, 28, 18
_HEADING, _CAPTION, _TITLE, _BELOW = 28, 22, 20, 14
WIDTH = 2 * _COLUMN + _BETWEEN + 2 * _MARGIN
_ABOVE_ROWS = 2.6 * _HEADING  # a section's heading and explanation
_TEXT_WIDTH = 190  # letters of the page's texts in a line
_CAPTION_WIDTH = 112
_CLOSE_HEIGHT = 420  # of a row of close views alone
DASHES = (0, (3.0, 2.0))
_BARS_MM = (50, 20)  # the longest that takes less than _BAR_SHARE of the slice
_BAR_SHARE = 0.4


SECTIONS_STYLE = """
body { max-width: 1584px; }
.figures { display: grid; grid-template-columns: 1fr 1fr; gap: 28px; padding: 2px 14px 10px; text-align: left;
  color: #c9ced4; font-size: 14px; }
"""


class TextLine(NamedTuple):
    """A paragraph above the pictures."""

    text: str
    size: float = 10.0
    weight: str = "normal"
    colour: str = "#1b1f24"


class Section(NamedTuple):
    """Rows of views under a heading and a sentence or two."""

    heading: str
    explanation: str
    rows: Sequence[Row]


def scale_of(rows: Sequence[Row]) -> float:
    """Pixels per mm with which every whole brain in `rows` fits its column: one for all, so that sizes compare."""
    return min((_fitting(view) for row in rows for view in row if not view.close), default=1.0)


def _fitting(view: View) -> float:
    """The most pixels per mm with which the view fits its column."""
    return (_COLUMN - 2 * _GAP) / sum(_size_mm(cut)[1] for cut in view.cuts)


def row_png(row: Row, scale: float) -> bytes:
    """One row of views at `scale` pixels per mm as PNG, without the captions, which a page can show as text."""
    height = round(_row_height(row, scale, captions=False) + _MARGIN)
    figure, page = new_page(WIDTH, height)
    page.fill([0, WIDTH, WIDTH, 0], [0, 0, height, height], color="black", zorder=-1)
    _draw_row(page, row, _MARGIN / 2, scale, captions=False)
    return page_png(figure)


def sections_html(sections: Sequence[Section]) -> str:
    """The sections' views as pictures within a page that has `SECTIONS_STYLE`, their captions as text."""
    scale = scale_of([row for section in sections for row in section.rows])
    parts = []
    for section in sections:
        parts.append(f"<h2>{escape(section.heading)}</h2><p>{escape(section.explanation)}</p>")
        for row in section.rows:
            alt = "; ".join(f"{view.heading}. {view.caption}" for view in row)
            captions = "".join(f"<div>{escape(view.caption)}</div>" for view in row)
            caption = f'<figcaption class="figures">{captions}</figcaption>'
            parts.append(f"<figure>{png_html(row_png(row, scale), alt)}{caption}</figure>")
    return "\n".join(parts)


def sections_png(lines: Sequence[TextLine], sections: Sequence[Section]) -> bytes:
    """Everything on one picture: paragraphs, then the sections' views with their captions."""
    wrapped = [line._replace(text=text) for line in lines for text in _wrapped(line.text, _TEXT_WIDTH * 10 / line.size)]
    scale = scale_of([row for section in sections for row in section.rows])
    top = _MARGIN + sum(_line_height(line) for line in wrapped) + _MARGIN
    below = sum(_ABOVE_ROWS + sum(_row_height(row, scale, captions=True) for row in one.rows) for one in sections)
    height = round(top + below + _MARGIN)
    figure, page = new_page(WIDTH, height)
    page.fill([0, WIDTH, WIDTH, 0], [top, top, height, height], color="black", zorder=-1)
    y = float(_MARGIN)
    for line in wrapped:
        draw_text(page, _MARGIN, y + _line_height(line) / 2, line.text, **_style(line))
        y += _line_height(line)
    y = float(top)
    for section in sections:
        draw_text(page, _MARGIN, y + 0.9 * _HEADING, section.heading, color="white", size=15, weight="bold")
        draw_text(page, _MARGIN, y + 1.85 * _HEADING, section.explanation, color="#c9ced4", size=10)
        y += _ABOVE_ROWS
        for row in section.rows:
            _draw_row(page, row, y, scale, captions=True)
            y += _row_height(row, scale, captions=True)
    return page_png(figure)


def _wrapped(text: str, width: float) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), int(width)) or [""]


def _line_height(line: TextLine) -> float:
    return 2.0 * line.size


def _style(line: TextLine) -> dict[str, Any]:
    return {"size": line.size, "weight": line.weight, "color": line.colour}


def _size_mm(cut: Cut) -> tuple[float, float]:
    """Height and width."""
    return cut.grey.shape[0] * cut.voxel_mm[0], cut.grey.shape[1] * cut.voxel_mm[1]


def _slices_height(row: Row, scale: float) -> float:
    whole = [scale * _view_mm(view) for view in row if not view.close]
    return max(whole) if whole else min(_CLOSE_HEIGHT, max(_fitting(view) * _view_mm(view) for view in row))


def _view_mm(view: View) -> float:
    """Height of its highest slice."""
    return max(_size_mm(cut)[0] for cut in view.cuts)


def _captions_height(row: Row) -> float:
    return float(_CAPTION * max(len(_wrapped(view.caption, _CAPTION_WIDTH)) for view in row))


def _row_height(row: Row, scale: float, captions: bool) -> float:
    above = _HEADING + (_captions_height(row) if captions else 0) + _TITLE
    return above + _slices_height(row, scale) + _BELOW


def _draw_row(page: Axes, row: Row, top: float, scale: float, captions: bool) -> None:
    slices = top + _HEADING + (_captions_height(row) if captions else 0) + _TITLE
    for number, view in enumerate(row):
        left = _MARGIN + number * (_COLUMN + _BETWEEN)
        _draw_heading(page, view, left, top)
        for line, text in enumerate(_wrapped(view.caption, _CAPTION_WIDTH) if captions else []):
            draw_text(page, left, top + _HEADING + _CAPTION * (line + 0.5), text, color="#c9ced4", size=10)
        height = _slices_height(row, scale)
        own_scale = min(_fitting(view), height / _view_mm(view)) if view.close else scale
        _draw_slices(page, view, left, slices, height, own_scale)


def _draw_heading(page: Axes, view: View, left: float, top: float) -> None:
    draw_text(page, left, top + _HEADING / 2, view.heading, color="white", size=12, weight="bold")
    right = left + _COLUMN
    for text, colour in reversed(view.legend):
        draw_text(page, right, top + _HEADING / 2, text, color=colour, size=10, weight="bold", ha="right")
        right -= 18 + 8.2 * len(text)


def _draw_slices(page: Axes, view: View, left: float, top: float, height: float, scale: float) -> None:
    for cut in view.cuts:
        pixel = (cut.voxel_mm[0] * scale, cut.voxel_mm[1] * scale)
        high, wide = cut.grey.shape[0] * pixel[0], cut.grey.shape[1] * pixel[1]
        frame = (left, top + (height - high) / 2, wide, high)
        draw_text(page, left + wide / 2, top - _TITLE / 2, cut.title, color="#d7dce2", size=9, ha="center")
        # Thick slices are seen as they are, not as if there were something between them.
        thick = max(cut.voxel_mm) > THICK * min(cut.voxel_mm)
        draw_image(page, _coloured(cut), (0.0, 1.0), frame, "nearest" if thick else "bilinear")
        if cut.painted is not None and cut.painter is not None:
            draw_painted(page, cut.painted, cut.painter, frame)
        for masks, style in ((cut.outlined, "solid"), (cut.dashed, DASHES)):
            outlines: list[Outline] = [(colour, mask_outlines(mask, pixel)) for colour, mask in masks]
            draw_outlines(page, outlines, frame, style)
        if cut.mark is not None:
            draw_mark(page, left + (cut.mark[1] + 0.5) * pixel[1], frame[1] + (cut.mark[0] + 0.5) * pixel[0])
        draw_letters(page, cut.plane, frame)
        if cut is view.cuts[0]:
            _draw_bar(page, frame, scale)
        left += wide + _GAP


def _coloured(cut: Cut) -> np.ndarray:
    """The slice as it is, or (..., 3) with the other sequence's tiles in its colour."""
    if cut.tiles is None:
        return cut.grey
    tint = np.where(cut.tiles[..., None], np.array(OTHER_COLOUR, np.float32), np.float32(1.0))
    return np.asarray(cut.grey[..., None] * tint)


def _draw_bar(page: Axes, frame: Sequence[float], scale: float) -> None:
    """A scale at the bottom left of a slice's frame (left, top, width, height)."""
    left, bottom = frame[0] + 8, frame[1] + frame[3] - 8
    mm = next((mm for mm in _BARS_MM if mm * scale < _BAR_SHARE * frame[2]), _BARS_MM[-1])
    for colour, width in (("black", 4.0), ("white", 2.0)):
        page.plot([left, left + mm * scale], [bottom, bottom], color=colour, linewidth=width, solid_capstyle="butt")
    draw_text(page, left, bottom - 10, f"{mm} mm", color="white", size=8, halo=True)
