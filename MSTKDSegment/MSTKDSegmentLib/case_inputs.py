"""Which files a case consists of: named one by one, found in a folder, or both; and why each is what it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import SimpleITK as sitk

from .case_roles import roles_in_folder
from .dicom import DICOM_TAGS
from .errors import RoleError
from .file_checks import os_errors_as_input_errors, printable
from .modalities import MODALITIES

# What tells sequences apart beside the tags that a Volume carries (roles.propose_from_dicom).
ROLE_TAGS = {
    **DICOM_TAGS,
    "ImageType": "0008|0008",
    "RepetitionTime": "0018|0080",
    "EchoTime": "0018|0081",
    "InversionTime": "0018|0082",
}


@dataclass(frozen=True)
class CaseInputs:
    """A file (or DICOM folder) for each sequence that is used, and one sentence for each that says why it is that."""

    sources: Mapping[str, Path]
    reasons: Mapping[str, str]


def find_inputs(
    folder: Optional[Path],
    named: Mapping[str, Path],
    without: Collection[str] = (),
    why_named: str = "named by the user",
) -> CaseInputs:
    """The sequences found in `folder`, overridden and completed by those `named`, less those `without`.

    Raises InputError for a folder that is not there or cannot be read, and RoleError where it is not clear
    which volume is which, and where a sequence is both named and left out.
    """
    both = [name for name in named if name in without]
    if both:
        raise RoleError(f"{both[0]} ({named[both[0]]}) is given and left out at once; do one of the two")
    sources, reasons = _in_folder(folder, named, without) if folder is not None else ({}, {})
    sources.update(named)
    reasons.update(dict.fromkeys(named, why_named))
    if folder is not None and not sources:
        raise RoleError(f"{folder}: no sequence is left to segment; leave out fewer with --without")
    order = [name for name in MODALITIES if name in sources]
    return CaseInputs({name: sources[name] for name in order}, {name: reasons[name] for name in order})


def _in_folder(
    folder: Path, named: Mapping[str, Path], without: Collection[str]
) -> tuple[dict[str, Path], dict[str, str]]:
    with os_errors_as_input_errors(folder):
        is_file = folder.is_file()
    if is_file:
        raise RoleError(f"{folder}: a file, not a case folder; say which sequence it is: --t1, --t1gd, --t2 or --flair")
    found, proposals = roles_in_folder(folder, dicom_tags, settled={*named, *without})
    taken = {path.resolve() for path in named.values()}
    # A file that the user named as one sequence is not used as another one too.
    kept = {name: path for name, path in found.items() if name not in without and path.resolve() not in taken}
    why = {proposal.source: proposal.reason for proposal in proposals}
    return kept, {name: why[str(path)] for name, path in kept.items()}


def dicom_tags(folder: Path) -> dict[str, str]:
    """The `ROLE_TAGS` that the first readable slice in `folder` carries; none where there is no readable slice.

    Unreadable series are not reported here: whichever is chosen as an input is read, and refused, later.
    """
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        for path in sorted(item for item in folder.iterdir() if item.is_file())[:3]:
            reader = sitk.ImageFileReader()
            reader.SetImageIO("GDCMImageIO")
            reader.SetFileName(str(path))
            try:
                reader.ReadImageInformation()
            except RuntimeError:
                continue
            return {
                tag: printable(reader.GetMetaData(key)) for tag, key in ROLE_TAGS.items() if reader.HasMetaDataKey(key)
            }
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
    return {}
