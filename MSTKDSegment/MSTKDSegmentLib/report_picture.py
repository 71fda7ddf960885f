"""The picture of a report: axial, coronal and sagittal slices with outlines, drawn with matplotlib's object interface.

matplotlib is imported when a picture is drawn.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Optional, Union

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from .regions import LABELS, bounding_box
from .report_case import PLANES, OrientedCase, Plane
from .report_template import DISCLAIMER, ReportContent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 100
# Pixels: the slices side by side, the text beside them, and the space around both.
_SLICES_WIDTH, _PANEL_WIDTH, _MARGIN, _GAP, _HEADER = 1180, 480, 20, 8, 34
_CROP_MARGIN_MM = 5.0
_SIDES = ("SI", "PA", "LR")  # what a positive and a negative LPS coordinate means along z, y and x
_INK, _QUIET, _ALERT = "#1b1f24", "#4a525c", "#9a5b00"


# A colour, and the lines in it: (n, 2) page points (x, y).
Outline = tuple[Any, list[np.ndarray]]
Painter = Callable[[np.ndarray], np.ndarray]
"""Takes values (rows, columns) at the picture's pixels, gives colours and opacity (rows, columns, 4), 0 to 1."""


class _Row(NamedTuple):
    """One row of slices: caption, image, its grey levels, and the labels whose outlines it shows."""

    caption: str
    image: np.ndarray
    window: tuple[float, float]
    labels: np.ndarray


class _Layout(NamedTuple):
    """What part of the volume is shown, at how many pixels per mm (in all planes), in rows of which height."""

    box: Sequence[slice]
    scale: float
    row_height: float


class _Line(NamedTuple):
    """One line of the panel: text, columns of numbers on the right, height in pixels, and how it looks."""

    text: str
    height: int = 20
    size: float = 9.5
    colour: str = _INK
    weight: str = "normal"
    swatch: Optional[tuple[float, float, float]] = None
    columns: Sequence[str] = ()


def picture_png(case: OrientedCase, content: Optional[ReportContent] = None) -> bytes:
    """The slices as PNG; with `content` its texts and numbers stand beside them."""
    rows = _rows(case)
    layout = _layout(case, rows)
    panel = [] if content is None else _panel_lines(content)
    slices_height = _HEADER + len(rows) * (layout.row_height + _GAP) + _GAP
    height = round(max(slices_height, sum(line.height for line in panel) + 2 * _MARGIN))
    black_width = _SLICES_WIDTH + 2 * _MARGIN
    width = black_width + (_PANEL_WIDTH if panel else 0)
    figure, page = new_page(width, height)
    page.fill([0, black_width, black_width, 0], [0, 0, height, height], color="black", zorder=-1)
    _draw_slices(page, case, rows, layout)
    _draw_panel(page, panel, black_width + _MARGIN, width - _MARGIN)
    return page_png(figure)


def new_page(width: int, height: int) -> tuple[Figure, Axes]:
    """An empty white page of `width` x `height` pixels to draw on, and the figure that `page_png` takes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    page = figure.add_axes((0, 0, 1, 1))
    page.set_axis_off()
    return figure, page


def page_png(figure: Figure) -> bytes:
    """The page as PNG."""
    width, height = figure.get_size_inches() * _DPI
    # Page coordinates are pixels from the top left; drawing a picture changes the limits, so they are set last.
    figure.axes[0].set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", dpi=_DPI, metadata={"Description": DISCLAIMER}, pil_kwargs={"compress_level": 4}
    )
    return buffer.getvalue()


def _rows(case: OrientedCase) -> list[_Row]:
    rows = [_Row(name, image, grey_window(image), case.labels) for name, image in case.images.items()]
    if case.ground_truth is not None:
        # The core's outline is best judged on T1Gd, the oedema's on FLAIR.
        preferred = [row for name in ("T1Gd", "FLAIR", "T2") for row in rows if row.caption == name] or rows
        base = preferred[0]
        rows.append(base._replace(caption=f"Reference\non {base.caption}", labels=case.ground_truth))
    return rows


def grey_window(image: np.ndarray) -> tuple[float, float]:
    """Grey levels to show: around the tissue's median, so that neither bright vessels nor dark edges cost contrast."""
    values = image[tuple(slice(None, None, max(1, n // 100)) for n in image.shape)]  # a sample will do
    values = values[np.isfinite(values)]
    tissue = values[values > values.mean()] if values.size else values  # the mean separates head from air
    if not tissue.size:
        return 0.0, 1.0
    lowest, median, highest = np.percentile(tissue, (0.5, 50, 99.8))
    sigma = 1.4826 * np.median(np.abs(tissue - median))
    low, high = max(lowest, median - 4 * sigma), min(highest, median + 7 * sigma)
    return float(low), float(high if high > low else low + 1)


def _shown_box(case: OrientedCase, rows: Sequence[_Row]) -> list[slice]:
    """The box around head and lesions with a margin, so that the picture is not mostly air."""
    shown = np.zeros(case.labels.shape, bool)
    for row in rows:
        low, high = row.window
        shown |= (row.image > low + 0.1 * (high - low)) | (row.labels > 0)
    return box_with_margin(shown, case.spacing)


def box_with_margin(mask: np.ndarray, spacing: Sequence[float], margin_mm: float = _CROP_MARGIN_MM) -> list[slice]:
    """The box around `mask` (D, H, W) with a margin, inside the array; the whole of it where the mask is empty."""
    box = bounding_box(mask) or tuple(slice(0, size) for size in mask.shape)
    margins = [int(np.ceil(margin_mm / one)) for one in spacing]
    return [
        slice(max(0, side.start - margin), min(size, side.stop + margin))
        for side, margin, size in zip(box, margins, mask.shape)
    ]


def _layout(case: OrientedCase, rows: Sequence[_Row]) -> _Layout:
    box = _shown_box(case, rows)
    sides_mm = [(side.stop - side.start) * spacing for side, spacing in zip(box, case.spacing)]
    widths_mm = [sides_mm[plane.in_plane_axes[1]] for plane in PLANES]
    heights_mm = [sides_mm[plane.in_plane_axes[0]] for plane in PLANES]
    scale = (_SLICES_WIDTH - _GAP * (len(PLANES) - 1)) / sum(widths_mm)
    return _Layout(box, scale, scale * max(heights_mm))


def _draw_slices(page: Axes, case: OrientedCase, rows: Sequence[_Row], layout: _Layout) -> None:
    box, scale, row_height = layout
    indices, left = case.lesion_slices(), float(_MARGIN)
    for plane in PLANES:
        down, across = plane.in_plane_axes
        pixel = (case.spacing[down] * scale, case.spacing[across] * scale)  # one voxel's height and width on the page
        width = (box[across].stop - box[across].start) * pixel[1]
        height = (box[down].stop - box[down].start) * pixel[0]
        title = f"{plane.name}, {slice_position(case.grid, plane.axis, indices)}"
        draw_text(page, left + width / 2, _HEADER / 2, title, color="white", ha="center", size=10)
        outlines: dict[int, Any] = {}
        for number, row in enumerate(rows):
            top = _HEADER + number * (row_height + _GAP) + (row_height - height) / 2
            frame = (left, top, width, height)
            if id(row.labels) not in outlines:
                outlines[id(row.labels)] = label_outlines(plane.cut(row.labels, indices[plane.axis], box), pixel)
            draw_image(page, plane.cut(row.image, indices[plane.axis], box), row.window, frame)
            draw_outlines(page, outlines[id(row.labels)], frame)
            draw_letters(page, plane, frame)
            if plane is PLANES[0]:
                draw_text(page, left, top + 16, row.caption, color="white", size=12, weight="bold", halo=True)
        left += width + _GAP


def slice_position(grid: sitk.Image, axis: int, indices: Sequence[int]) -> str:
    """Where the slice lies, as Slicer's slice views say it: "S 34.0 mm"."""
    along = 2 - axis
    millimetres = grid.TransformIndexToPhysicalPoint([int(index) for index in indices[::-1]])[along]
    return f"{_SIDES[axis][0 if millimetres >= 0 else 1]} {abs(millimetres):.1f} mm"


def label_outlines(labels: np.ndarray, pixel: tuple[float, float]) -> list[Outline]:
    """The outline of each label in a slice (rows, columns) of labels, as `mask_outlines`."""
    masks = ((item.colour, labels == item.labels[0]) for item in LABELS)
    return [(colour, mask_outlines(mask, pixel)) for colour, mask in masks if mask.any()]


def mask_outlines(mask: np.ndarray, pixel: tuple[float, float]) -> list[np.ndarray]:
    """Outlines of a slice's mask (rows, columns), (n, 2) page points (x, y) from the slice's top left corner.

    `pixel`: one voxel's height and width on the page. The outline runs 0.4 voxel inside the mask: those of neighbours
    lie side by side, and what is one voxel wide still has one.
    """
    import contourpy

    box = bounding_box(mask)
    if box is None:
        return []
    inner = np.pad(mask[box], 1)  # closes outlines at the slice's edge; farther away nothing decides
    inside, outside = (ndimage.distance_transform_edt(part, sampling=pixel) for part in (inner, ~inner))
    # Twice the inset: across a border this difference grows twice as fast as the distance does.
    lines = contourpy.contour_generator(z=inside - outside).lines(0.8 * min(pixel))
    # Voxel centres are at whole numbers; the unpadded slice's corner is at (0.5, 0.5).
    corner = (box[1].start - 0.5, box[0].start - 0.5)
    return [(np.asarray(line) + corner) * pixel[::-1] for line in lines]


def draw_image(
    page: Axes,
    plane: np.ndarray,
    window: tuple[float, float],
    frame: Sequence[float],
    interpolation: str = "bilinear",
) -> None:
    """A slice (rows, columns) between the grey levels `window`, or in colours (..., 3), in its frame on the page."""
    left, top, width, height = frame
    extent = (left, left + width, top + height, top)
    low, high = window
    page.imshow(plane, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation=interpolation, aspect="auto")


def draw_painted(page: Axes, painted: np.ndarray, painter: Painter, frame: Sequence[float]) -> None:
    """Colours over a slice: `painter` gets the values `painted` (rows, columns), repeated for the frame's pixels."""
    left, top, width, height = frame
    sides = [max(1, round(pixels)) for pixels in (height, width)]
    at = [(np.arange(side) * size) // side for side, size in zip(sides, painted.shape)]
    extent = (left, left + width, top + height, top)
    page.imshow(painter(painted[np.ix_(*at)]), extent=extent, interpolation="nearest", aspect="auto")


def draw_mark(page: Axes, x: float, y: float, inner: float = 7.0, outer: float = 16.0) -> None:
    """Four strokes around a page point, which stays free itself."""
    for colour, width in (("black", 3.0), ("white", 1.4)):
        for across, down in ((1, 0), (-1, 0), (0, 1), (0, -1)):
            ends = ((x + across * inner, x + across * outer), (y + down * inner, y + down * outer))
            page.plot(*ends, color=colour, linewidth=width, solid_capstyle="butt")


def draw_outlines(
    page: Axes, outlines: Sequence[Outline], frame: Sequence[float], style: Union[str, tuple[int, Any]] = "solid"
) -> None:
    """Outlines of a slice in its frame (left, top, width, height), each on a dark seam; style: matplotlib's."""
    from matplotlib.collections import LineCollection

    placed = [(colour, [line + frame[:2] for line in lines]) for colour, lines in outlines]
    # All the dark seams first: one drawn later would cover the line beside it.
    for _, lines in placed:
        page.add_collection(LineCollection(lines, colors="black", linewidths=2.2, alpha=0.5), autolim=False)
    for colour, lines in placed:
        page.add_collection(LineCollection(lines, colors=[colour], linewidths=1.0, linestyles=[style]), autolim=False)


def draw_letters(page: Axes, plane: Plane, frame: Sequence[float]) -> None:
    """Which side of the patient is where, at the frame's edges."""
    left, top, width, height = frame
    style: dict[str, Any] = {"color": "#d7dce2", "size": 9, "ha": "center", "halo": True}
    draw_text(page, left + 9, top + height / 2, plane.left, **style)
    draw_text(page, left + width - 9, top + height / 2, plane.right, **style)
    draw_text(page, left + width / 2, top + 10, plane.top, **style)
    draw_text(page, left + width / 2, top + height - 10, plane.bottom, **style)


def _panel_lines(content: ReportContent) -> list[_Line]:
    """The content as lines, from the title down to the disclaimer."""
    lines = [_Line(text, 28, 14, weight="bold") for text in _wrapped(content.title, 42)]
    lines += [_Line(text, colour=_QUIET) for text in _wrapped(f"Sequences used: {content.subset}", 62)]
    lines += [_Line(text) for text in _wrapped(content.finding, 64)]
    for message in content.messages:
        wrapped = _wrapped(message, 56)
        lines += [_Line(("!  " if text is wrapped[0] else "    ") + text, colour=_ALERT) for text in wrapped]
    lines += [_Line("", 12), _Line("Volumes", 26, 11, weight="bold", columns=content.headings)]
    short = len(content.headings) > 1  # three columns leave no room for the long names
    for row in content.rows:
        label = row.key if short else f"{row.key}   {row.name}"
        lines.append(_Line(label, 22, swatch=row.colour, columns=row.cells()))
    lines += [_Line("", 12)]
    lines += [_Line(text, 19, 9, weight="bold") for text in _wrapped(DISCLAIMER, 56)]
    lines += [_Line("", 12)]
    for key, value in content.provenance.items():
        lines += [_Line(text, 15, 7.5, colour=_QUIET) for text in _wrapped(f"{key}: {value}", 80)]
    return lines


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(" ".join(str(text).split()), width) or [""]


def _draw_panel(page: Axes, lines: Sequence[_Line], left: float, right: float) -> None:
    y = float(_MARGIN)
    for line in lines:
        middle = y + line.height / 2
        if line.swatch:
            page.plot([left, left + 20], [middle, middle], color=line.swatch, linewidth=3.5, solid_capstyle="butt")
        indent = 30 if line.columns and line.weight == "normal" else 0
        style: dict[str, Any] = {"color": line.colour, "size": line.size, "weight": line.weight}
        draw_text(page, left + indent, middle, line.text, **style)
        for number, text in enumerate(reversed(line.columns)):
            draw_text(page, right - 110 * number, middle, text, **{**style, "size": 9.5, "ha": "right"})
        y += line.height


def draw_text(page: Axes, x: float, y: float, text: str, *, halo: bool = False, **style: Any) -> None:
    """`text` at a page point; `style` as matplotlib's `Axes.text` takes it."""
    from matplotlib.patheffects import withStroke

    effects = [withStroke(linewidth=2.5, foreground="black")] if halo else None
    # parse_math: a "$" in a file name is no formula.
    page.text(x, y, text, va="center_baseline", parse_math=False, path_effects=effects, **style)
