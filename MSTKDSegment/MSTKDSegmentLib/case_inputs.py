"""Which files a case consists of: named one by one, found in a folder, or both; and why each is what it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

import numpy as np
import SimpleITK as sitk

from .appearance import Look, look
from .brain_extraction import brain_of
from .case_roles import Settler, roles_in_folder
from .dicom import DICOM_TAGS
from .errors import InputError, RoleError
from .file_checks import is_unicode, os_errors_as_input_errors, printable, require_unicode
from .look_roles import settled_by_look
from .modalities import MODALITIES
from .roles import RoleProposal
from .volumes import read_volume

BrainFinder = Callable[[sitk.Image], Optional[np.ndarray]]
"""Takes a volume, gives the mask (D, H, W) bool of its brain; None where it finds none."""

# What tells sequences apart beside the tags that a Volume carries (roles.propose_from_dicom).
ROLE_TAGS = {
    **DICOM_TAGS,
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
    by_look: bool = False,
    brain_of: BrainFinder = brain_of,
) -> CaseInputs:
    """The sequences found in `folder`, overridden and completed by those `named`, less those `without`.

    Where names do not tell which volume is which, their looks inside the brain that `brain_of` finds propose it; that
    is accepted with `by_look` and told in the error without. Raises InputError for a folder that is not there or cannot
    be read, and RoleError where it is not clear which volume is which, and where a sequence is both named and left out.
    """
    both = [name for name in named if name in without]
    if both:
        raise RoleError(f"{both[0]} ({named[both[0]]}) is given and left out at once; do one of the two")
    sources: dict[str, Path] = {}
    reasons: dict[str, str] = {}
    if folder is not None:
        sources, reasons = _in_folder(folder, named, without, by_look, brain_of)
    sources.update(named)
    reasons.update(dict.fromkeys(named, why_named))
    if folder is not None and not sources:
        raise RoleError(f"{folder}: no sequence is left to segment; leave out fewer with --without")
    order = [name for name in MODALITIES if name in sources]
    return CaseInputs({name: sources[name] for name in order}, {name: reasons[name] for name in order})


def _in_folder(
    folder: Path, named: Mapping[str, Path], without: Collection[str], by_look: bool, brain_of: BrainFinder
) -> tuple[dict[str, Path], dict[str, str]]:
    require_unicode(folder)
    with os_errors_as_input_errors(folder):
        is_file = folder.is_file()
    if is_file:
        raise RoleError(f"{folder}: a file, not a case folder; say which sequence it is: --t1, --t1gd, --t2 or --flair")
    taken = {path.resolve() for path in named.values()}
    settler = _settler(taken, brain_of)
    found, proposals = roles_in_folder(folder, dicom_tags, {*named, *without}, settler, accept_looks=by_look)
    # A file that the user named as one sequence is not used as another one too.
    kept = {name: path for name, path in found.items() if name not in without and path.resolve() not in taken}
    why = {proposal.source: proposal.reason for proposal in proposals}
    return kept, {name: why[str(path)] for name, path in kept.items()}


def _settler(named: Collection[Path], brain_of: BrainFinder) -> Settler:
    """Looks at the files of proposals, save those that the user `named`."""

    def settle(proposals: Sequence[RoleProposal], settled: Collection[str]) -> list[RoleProposal]:
        def look_of(index: int) -> Optional[Look]:
            path = Path(proposals[index].source)
            return None if path.resolve() in named else _look_at(path, brain_of)

        return settled_by_look(proposals, look_of, settled, ambiguous_too=True)

    return settle


def _look_at(path: Path, brain_of: BrainFinder) -> Optional[Look]:
    try:
        image = read_volume(path).image
    except InputError:  # whichever is chosen as an input is read, and refused, later
        return None
    brain = brain_of(image)
    return None if brain is None else look(image, brain)


def dicom_tags(folder: Path) -> dict[str, str]:
    """The `ROLE_TAGS` that the first readable slice in `folder` carries; none where there is no readable slice.

    Unreadable series are not reported here: whichever is chosen as an input is read, and refused, later.
    """
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        for path in sorted(item for item in folder.iterdir() if item.is_file() and is_unicode(item))[:3]:
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
