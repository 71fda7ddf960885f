"""What a report says, in words and numbers, and the same as a self-contained HTML page."""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Optional

from .regions import LABELS, REGIONS, Structure

DISCLAIMER = "For research use only. Not a medical device: not for diagnosis or treatment decisions."
TABLE_ORDER: tuple[Structure, ...] = (*LABELS, *REGIONS[1::-1])  # NCR, ED, ET, then TC and WT


@dataclass(frozen=True)
class VolumeRow:
    """One row of the volume table. colour: of the outline, None where none is drawn; dice: None without reference."""

    key: str
    name: str
    ml: float
    colour: Optional[tuple[float, float, float]] = None
    reference_ml: Optional[float] = None
    dice: Optional[float] = None

    def cells(self) -> list[str]:
        """The numbers as text: volume, and with a reference its volume and the Dice coefficient."""
        texts = [format_ml(self.ml)]
        if self.reference_ml is not None:
            texts += [format_ml(self.reference_ml), "" if self.dice is None else f"{self.dice:.3f}"]
        return texts


@dataclass(frozen=True)
class ReportContent:
    """Everything in a report but its picture. finding: one sentence on what the picture shows."""

    title: str
    finding: str
    subset: str
    rows: Sequence[VolumeRow]
    messages: Sequence[str]
    provenance: Mapping[str, str]

    @property
    def headings(self) -> list[str]:
        """Column titles that go with `VolumeRow.cells`."""
        with_reference = any(row.reference_ml is not None for row in self.rows)
        return ["ml", "reference ml", "Dice"] if with_reference else ["ml"]


def format_ml(volume: float) -> str:
    """A volume in ml: one decimal, three below 1 ml, where a decimal would hide small lesions."""
    return f"{volume:.1f}" if volume >= 1 or volume == 0 else f"{volume:.3f}"


_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; color: #1b1f24; background: #fff;
  max-width: 1240px; margin: 24px auto; padding: 0 20px; }
h1 { font-size: 24px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 22px 0 6px; }
p { margin: 4px 0; }
figure { margin: 16px 0; background: #000; text-align: center; }
figure img { max-width: 100%; height: auto; display: block; margin: auto; }
table { border-collapse: collapse; }
th, td { padding: 3px 14px 3px 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e2e5e9; }
th { font-weight: 600; color: #4a525c; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.value { overflow-wrap: anywhere; }
.swatch { display: inline-block; width: 18px; border-top: 4px solid; margin-right: 8px; vertical-align: 4px; }
.warnings { background: #fff6dd; border-left: 4px solid #e0a100; padding: 8px 14px; margin: 12px 0; }
.warnings ul { margin: 0; padding-left: 18px; }
.disclaimer { border: 1px solid #c9ced4; padding: 6px 12px; margin: 20px 0; font-weight: 600; }
.quiet { color: #4a525c; font-size: 13px; }
@media print { body { margin: 0; max-width: none; font-size: 11px; } figure, table { break-inside: avoid;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""

_BODY = """<p class="quiet">Sequences used: {subset}</p>
{warnings}
<p>{finding}</p>
<figure>{picture}</figure>
<h2>Volumes</h2>
{volumes}
<p class="disclaimer">{disclaimer}</p>
<h2>How this was made</h2>
{provenance}"""


def render_html(content: ReportContent, picture_png: bytes) -> str:
    """The report as one HTML page without any reference to the outside; all texts are escaped."""
    body = _BODY.format(
        subset=escape(content.subset),
        finding=escape(content.finding),
        picture=png_html(picture_png, f"Axial, coronal and sagittal slices with outlines. {content.finding}"),
        warnings=warnings_html(content.messages),
        volumes=_volumes(content),
        provenance=provenance_html(content.provenance),
        disclaimer=escape(DISCLAIMER),
    )
    return html_page(content.title, body)


def html_page(title: str, body: str, style: str = "") -> str:
    """A page in the style of the reports; `body` is HTML, `style` further CSS. Nothing outside it can be loaded."""
    return _PAGE.format(style=_STYLE + style, title=escape(title), body=body)


def warnings_html(messages: Sequence[str]) -> str:
    """A box of sentences that a reader must see; nothing where there are none."""
    if not messages:
        return ""
    items = "".join(f"<li>{escape(message)}</li>" for message in messages)
    return f'<div class="warnings"><ul>{items}</ul></div>'


def _volumes(content: ReportContent) -> str:
    heads = "".join(f'<th class="number">{escape(text)}</th>' for text in content.headings)
    rows = []
    for row in content.rows:
        swatch = swatch_html(row.colour) if row.colour else ""
        cells = "".join(f'<td class="number">{escape(text)}</td>' for text in row.cells())
        rows.append(f"<tr><td>{swatch}{escape(row.key)}</td><td>{escape(row.name)}</td>{cells}</tr>")
    return f"<table><tr><th>Outline</th><th>Structure</th>{heads}</tr>{''.join(rows)}</table>"


def png_html(picture: bytes, alt: str) -> str:
    """A PNG within the page; alt: what it shows, in words."""
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(picture).decode("ascii")}">'


class Html(str):
    """A cell of `table_html` that is HTML already and not escaped again."""


def table_html(headings: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Collection[int] = (0,)) -> str:
    """A table; the columns that are not in `text_columns` hold numbers and stand to the right."""
    kinds = ["" if column in text_columns else ' class="number"' for column in range(len(headings))]
    head = "".join(f"<th{kind}>{escape(text)}</th>" for kind, text in zip(kinds, headings))
    body = "".join(
        f"<tr>{''.join(f'<td{kind}>{_cell(text)}</td>' for kind, text in zip(kinds, row))}</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(text: str) -> str:
    return text if isinstance(text, Html) else escape(text)


def swatch_html(colour: Sequence[float]) -> str:
    """A short line in a colour (RGB, 0 to 1), as it is drawn in the pictures."""
    rgb = ",".join(str(round(255 * channel)) for channel in colour)
    return f'<span class="swatch" style="border-color:rgb({rgb})"></span>'


def provenance_html(provenance: Mapping[str, str]) -> str:
    """A table of two columns."""
    rows = (
        f'<tr><td>{escape(str(key))}</td><td class="value">{escape(str(text))}</td></tr>'
        for key, text in provenance.items()
    )
    return f"<table>{''.join(rows)}</table>"
