"""A page that shows a result at a glance: three planes through the largest lesion, outlines, volumes, warnings."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Optional, Union

import numpy as np
import SimpleITK as sitk

from .metrics import region_dice
from .modalities import MODALITIES, subset_name
from .regions import LABELS, REGION_KEYS, components, voxel_volume_ml
from .regions import volumes_ml as counted_volumes_ml
from .report_case import OrientedCase
from .report_picture import picture_png
from .report_template import TABLE_ORDER, ReportContent, VolumeRow, format_ml, render_html
from .segmentation_io import atomic_output, check_output, output_ending

REPORT_ENDINGS = (".html", ".png")


def write_report(
    path: Union[str, os.PathLike[str]],
    *,
    images: Mapping[str, np.ndarray],
    labels: np.ndarray,
    reference_image: sitk.Image,
    volumes_ml: Mapping[str, float],
    title: str,
    subset: Iterable[str],
    messages: Sequence[str] = (),
    provenance: Optional[Mapping[str, str]] = None,
    ground_truth: Optional[np.ndarray] = None,
    known: Optional[Sequence[str]] = None,
    overwrite: bool = False,
) -> None:
    """Writes the report of one case as `.png` (one picture) or `.html` (one self-contained page).

    images: sequences, (D, H, W) each, drawn in the mapping's order; labels and ground_truth: (D, H, W), 0 to 3; all on
    the grid of `reference_image`, which gives spacing and direction. volumes_ml: millilitres of NCR, ED, ET, WT, TC.
    subset: the sequences that the network saw. messages: warnings to show. provenance: what made the result.
    known: the regions that the ground truth says anything about (default: all).
    Oblique images are shown along those axes of their own grid that are closest to axial, coronal and sagittal.
    Raises OutputError as `segmentation_io.check_output`, ValueError if an array is not on the grid.
    """
    path = check_output(path, overwrite, endings=REPORT_ENDINGS)
    case = OrientedCase.from_arrays(images, labels, ground_truth, reference_image)
    content = ReportContent(
        title=title,
        finding=_finding(case),
        subset=_subset_text(subset),
        rows=_volume_rows(case, volumes_ml, REGION_KEYS if known is None else known),
        messages=list(messages),
        provenance=dict(provenance or {}),
    )
    ending = output_ending(path, REPORT_ENDINGS)
    with_text = content if ending == ".png" else None
    picture = picture_png(case, with_text)
    data = picture if with_text else render_html(content, picture).encode("utf-8")
    with atomic_output(path, overwrite, ending) as temporary:
        temporary.write_bytes(data)


def _subset_text(subset: Iterable[str]) -> str:
    used = subset_name(subset).split("+")
    absent = [name for name in MODALITIES if name not in used]
    return ", ".join(used) + (f" (without {', '.join(absent)})" if absent else "")


def _voxel_ml(case: OrientedCase) -> float:
    return voxel_volume_ml(case.grid.GetSpacing(), case.grid.GetDirection())


def _volume_rows(case: OrientedCase, volumes: Mapping[str, float], known: Sequence[str]) -> list[VolumeRow]:
    reference: Mapping[str, float] = {}
    scores: Mapping[str, float] = {}
    if case.ground_truth is not None:
        reference = counted_volumes_ml(case.ground_truth, _voxel_ml(case))
        if len(known) < len(REGION_KEYS):
            reference = {key: value for key, value in reference.items() if key in known}
        scores = {key: value for key, value in region_dice(case.labels, case.ground_truth).items() if key in known}
    return [
        VolumeRow(
            key=item.key,
            name=item.name,
            ml=volumes[item.key],
            colour=item.colour if item in LABELS else None,
            reference_ml=reference.get(item.key),
            dice=scores.get(item.key),
        )
        for item in TABLE_ORDER
    ]


def _finding(case: OrientedCase) -> str:
    if not case.labels.any():
        with_lesion = case.ground_truth is not None and case.ground_truth.any()
        shown = "slices through the reference's lesion" if with_lesion else "central slices"
        return f"No tumour is marked; {shown} are shown."
    _, counts = components(case.labels > 0)
    number = int(np.count_nonzero(counts))
    largest = format_ml(counts.max() * _voxel_ml(case))
    if number == 1:
        return f"One connected lesion ({largest} ml); slices through it."
    return f"{number} separate lesions; slices through the largest ({largest} ml)."
