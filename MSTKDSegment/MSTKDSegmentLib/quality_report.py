"""The quality report of a case: what was recognised and done to its volumes, in figures and pictures to check it by."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from . import __version__
from .pipeline import PreparedCase
from .preparation_record import PreparationRecord
from .quality_pictures import SECTIONS_STYLE, Section, TextLine, sections_html, sections_png
from .quality_slices import shown_sequences
from .quality_views import native_rows, other_pair_rows, registration_rows
from .regions import require_labels, voxel_volume_ml
from .regions import volumes_ml as counted_volumes_ml
from .report_template import DISCLAIMER, html_page, provenance_html, table_html, warnings_html
from .segmentation_io import atomic_output, check_output, output_ending

QUALITY_ENDINGS = (".html", ".png", ".json")

_REGISTRATION = (
    "Registration",
    "Tiles of one sequence (grey) and of another (amber), on the common grid. Where the two lie on each other, edges "
    "run on from tile to tile: ventricles, sulci, the brain's border.",
)
_NATIVE = (
    "Brain and tumour on each sequence",
    "Each sequence on its own voxels, as it was taken; the outlines were brought there.",
)
_ALERT, _QUIET = "#9a5b00", "#4a525c"


@dataclass(frozen=True)
class _Content:
    """What a report says besides its pictures; all files by their names only."""

    title: str
    notices: Sequence[str]
    findings: Mapping[str, str]
    table: Sequence[Sequence[str]]
    made: Mapping[str, str]


def write_quality_report(
    path: Union[str, os.PathLike[str]],
    case: PreparedCase,
    labels: Optional[np.ndarray] = None,
    *,
    title: str,
    notices: Optional[Sequence[str]] = None,
    seconds: Optional[Mapping[str, float]] = None,
    provenance: Optional[Mapping[str, str]] = None,
    overwrite: bool = False,
) -> None:
    """Writes how a case was prepared as `.html` (one self-contained page), `.png` (one picture) or `.json`.

    labels: (D, H, W) 0 to 3 on the reference's grid, drawn on every sequence; None: the tumour is left out. notices:
    sentences to show on top (default: the case's). seconds: of the run by stage. provenance: what made the result.
    Input files are named without their folders, which may be called by a patient's name.
    Raises OutputError as `segmentation_io.check_output`, ValueError if the labels are not on the reference's grid.
    """
    path = check_output(path, overwrite, endings=QUALITY_ENDINGS)
    ending = output_ending(path, QUALITY_ENDINGS)
    if labels is not None and require_labels(labels).shape != case.reference_image.GetSize()[::-1]:
        raise ValueError(f"labels of shape {labels.shape} are not on the grid of {case.reference}")
    shown_notices = [without_folders(text, case) for text in (case.notices if notices is None else notices)]
    if ending == ".json":
        report = _report_dict(case, labels, title, shown_notices, seconds or {}, provenance or {})
        data = json.dumps(report, indent=2).encode("utf-8")
    else:
        made = {"software": f"MSTKDSegment {__version__}", **(provenance or {})}
        made.update(_seconds_text(seconds or {}, case.record.seconds))
        content = _Content(
            f"{title}: quality report", shown_notices, findings(case.record), _sequence_table(case), made
        )
        sections = _sections(case, labels)
        data = _png(content, sections) if ending == ".png" else _html(content, sections).encode("utf-8")
    with atomic_output(path, overwrite, ending) as temporary:
        temporary.write_bytes(data)


def without_folders(text: str, case: PreparedCase) -> str:
    """`text` with the case's files by name only."""
    for volume in case.volumes.values():
        text = text.replace(volume.source, _file_name(volume.source))
    return text


def _file_name(source: str) -> str:
    return Path(source).name or source


# --- what it says ----------------------------------------------------------------------------------------------------


def _report_dict(
    case: PreparedCase,
    labels: Optional[np.ndarray],
    title: str,
    notices: Sequence[str],
    seconds: Mapping[str, float],
    provenance: Mapping[str, str],
) -> dict[str, Any]:
    """What `.json` holds. matrices: rows of (3, 4), from the common space to each sequence's (LPS mm)."""
    record = case.record.to_dict()
    sequences = {}
    for name, one in record.pop("sequences").items():
        image = case.volumes[name].image
        sequences[name] = {
            **one, "source": _file_name(one["source"]), "voxels": image.GetSize(), "spacing_mm": image.GetSpacing()
        }  # fmt: skip
    record.pop("seconds")
    reference = case.reference_image
    voxel_ml = voxel_volume_ml(reference.GetSpacing(), reference.GetDirection())
    volumes = None if labels is None else counted_volumes_ml(labels, voxel_ml)
    return {
        "title": title,
        "software": f"MSTKDSegment {__version__}",
        **record,
        "sequences": sequences,
        "common_grid": {"origin_mm": case.grid.origin, "voxels": case.grid.size, "spacing_mm": (1.0, 1.0, 1.0)},
        "matrices": {name: matrix.tolist() for name, matrix in case.matrices.items()},
        "volumes_ml": None if volumes is None else {key: round(value, 3) for key, value in volumes.items()},
        "notices": list(notices),
        "findings": findings(case.record),
        "seconds": {"run": _rounded(seconds), "preparation": _rounded(case.record.seconds)},
        "provenance": dict(provenance),
    }


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {stage: round(value, 3) for stage, value in seconds.items()}


def _seconds_text(run: Mapping[str, float], preparation: Mapping[str, float]) -> dict[str, str]:
    stages = {"seconds": run, "seconds of the preparation": preparation}
    return {
        name: ", ".join(f"{stage} {value:.1f}" for stage, value in values.items())
        for name, values in stages.items()
        if values
    }


def findings(record: PreparationRecord) -> dict[str, str]:
    """What was recognised and done, a sentence or two to each heading."""
    return {
        "Preparation": "None: the volumes were left alone." if record.challenge_ready else "Done here, see below.",
        "Skull": _skull(record),
        "Brain": f"{record.brain_ml:.0f} ml.",
        "Registration": _registration(record),
        "Head": _head(record),
        **({"Bias field": "Corrected (N4)."} if record.bias_corrected else {}),
    }


def _as_told(record: PreparationRecord, what: str) -> str:
    return ", as you said" if what in record.told or f"not {what}" in record.told else ""


def _skull(record: PreparationRecord) -> str:
    told = _as_told(record, "skull-stripped")
    shares = ", ".join(f"{name} {100 * one.background:.0f} %" for name, one in record.sequences.items())
    evidence = f"Voxels that are exactly background: {shares}."
    with_skull = [name for name, one in record.sequences.items() if not one.stripped]
    if not with_skull:
        return f"Removed before{told}. {evidence}"
    where = "" if len(with_skull) == len(record.sequences) else f" on {', '.join(with_skull)}"
    return f"Still there{where}{told}; removed here: {record.extractor}. {evidence}"


def _registration(record: PreparationRecord) -> str:
    told = _as_told(record, "registered")
    others = [name for name in record.sequences if name != record.reference]
    if not others:
        return "One sequence: nothing to register."
    if record.registered:
        return f"The sequences lie on each other already{told}: left alone."
    moved = [name for name in others if record.sequences[name].moved]
    failed = [name for name in others if record.sequences[name].failed]
    right = [name for name in others if name not in (*moved, *failed)]
    parts = []
    if moved:
        parts.append(f"{', '.join(moved)} moved to lie on {record.reference}{told}")
    if right:
        parts.append(f"{', '.join(right)} found to lie right")
    if failed:
        parts.append(f"{', '.join(failed)} could not be registered and left in place: check by eye")
    text = "; ".join(parts)
    return f"{text}." if moved else f"Looked for{told}: {text}."


def _head(record: PreparationRecord) -> str:
    sides = "Left and right are the headers': they cannot be told from the images."
    return f"{_pose(record)} {sides}"


def _pose(record: PreparationRecord) -> str:
    if record.turned_degrees:
        return f"Turned by {record.turned_degrees:.1f} degrees to the pose that the network knows."
    if record.head_degrees is None:
        return f"Taken as upright{_as_told(record, 'upright')}: not turned."
    return f"{record.head_degrees:.1f} degrees from the template's pose: not turned."


_HEADINGS = (
    "Sequence", "File", "Voxels", "Spacing (mm)", "Background (%)", "Similarity before (bits)", "after", "Moved (mm)",
    "Turned (degrees)", "Registration began at",
)  # fmt: skip
_TEXT_COLUMNS = (0, 1, 9)
_STARTS = {"scanner": "its coordinates", "centres": "the brains' centres", "heads": "how the heads lie"}


def _sequence_table(case: PreparedCase) -> list[list[str]]:
    """Cells under `_HEADINGS`, a row to each sequence."""
    rows = []
    for name, one in case.record.sequences.items():
        image = case.volumes[name].image
        similarity = [
            "" if value is None else f"{value:.2f}" for value in (one.similarity_before, one.similarity_after)
        ]
        rows.append([
            name + (" (reference)" if name == case.reference else ""),
            _file_name(one.source),
            " x ".join(str(side) for side in image.GetSize()),
            " x ".join(f"{side:.2f}" for side in image.GetSpacing()),
            f"{100 * one.background:.0f}",
            *similarity,
            f"{one.moved_mm:.1f}" if one.moved else "-",
            f"{one.degrees:.1f}" if one.moved else "-",
            "failed: left in place" if one.failed else _STARTS.get(one.start, one.start),
        ])  # fmt: skip
    return rows


# --- what it shows ---------------------------------------------------------------------------------------------------


def _sections(case: PreparedCase, labels: Optional[np.ndarray]) -> list[Section]:
    shown = shown_sequences(case)
    pairs = [*registration_rows(case, shown), *other_pair_rows(case, shown)] if len(shown) > 1 else []
    sections = [Section(*_REGISTRATION, pairs)] if pairs else []
    return [*sections, Section(*_NATIVE, native_rows(case, shown, labels))]


def _png(content: _Content, sections: Sequence[Section]) -> bytes:
    lines = [TextLine(content.title, 15, "bold")]
    lines += [TextLine(f"!  {text}", colour=_ALERT) for text in content.notices]
    lines += [TextLine(f"{key}: {text}") for key, text in content.findings.items()]
    lines += [TextLine(DISCLAIMER, weight="bold")]
    lines += [TextLine("; ".join(f"{key}: {text}" for key, text in content.made.items()), 8, colour=_QUIET)]
    return sections_png(lines, sections)


def _html(content: _Content, sections: Sequence[Section]) -> str:
    parts = [warnings_html(content.notices), "<h2>What was found and done</h2>", provenance_html(content.findings)]
    parts += ["<h2>Sequences</h2>", table_html(_HEADINGS, content.table, _TEXT_COLUMNS)]
    parts += [sections_html(sections)]
    parts += [f'<p class="disclaimer">{escape(DISCLAIMER)}</p>', "<h2>How this was made</h2>"]
    return html_page(content.title, "\n".join([*parts, provenance_html(content.made)]), SECTIONS_STYLE)
