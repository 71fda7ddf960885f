"""The cases that a reader goes through: volumes, predictions and ground truth of each, from a folder or a CSV file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from ..batch_cases import BatchCase, read_cases
from ..case_inputs import find_inputs
from ..errors import InputError, MSTKDError
from ..file_checks import VOLUME_ENDINGS, os_errors_as_input_errors
from ..segmentation_io import SEGMENTATION_ENDINGS, read_provenance
from ..sequence_words import read_words

PREDICTION = "prediction"
_BRAIN_MASK = re.compile(r"(?:brain|skull|head|bet)[ _.-]*mask|mask[ _.-]*(?:brain|skull|head)(?![a-z])")


@dataclass(frozen=True)
class WorkItem:
    """One case: files of its sequences, of its predictions by name, and of its ground truth.

    problem: why its volumes could not be told apart, "" where they could. reference: the sequence on whose grid it is
    segmented, where the list names one. missing: the sets of predictions in which it is not.
    """

    name: str
    images: Mapping[str, Path] = field(default_factory=dict)
    predictions: Mapping[str, Path] = field(default_factory=dict)
    ground_truth: Optional[Path] = None
    problem: str = ""
    reference: Optional[str] = None
    missing: tuple[str, ...] = ()


def read_worklist(
    source: Path, predictions: Sequence[Path] = (), output_folder: Optional[Path] = None
) -> list[WorkItem]:
    """The cases in `source`: a CSV file (see `batch_cases.read_cases`), a folder of case folders, or one case folder.

    predictions: folders with a segmentation for each case, NAME.seg.nrrd (or another ending) or in a sub-folder NAME;
    each folder is one set of predictions, called by its name. A case folder's own segmentation is its ground truth.
    Raises InputError for a source without cases and for prediction folders that are not there.
    """
    source = Path(source)
    sets = named_sets(predictions)
    with os_errors_as_input_errors(source):
        if source.is_dir() and _is_one_case(source):
            cases = [BatchCase(source.resolve().name, str(source), folder=source)]
        else:
            cases = read_cases(source, output_folder, predictions=True)
    return [_item(case, sets) for case in cases]


def named_sets(folders: Sequence[Path]) -> dict[str, Path]:
    """Folders of predictions by what their set is called. Raises InputError for one that is not there."""
    sets: dict[str, Path] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder of predictions; give a folder with one segmentation a case")
        parts = folder.resolve().parts
        # Two folders of one name are told apart by what they lie in.
        names = ("/".join(parts[-length:]) for length in range(1, len(parts) + 1))
        sets[next((name for name in names if name not in sets), str(folder))] = folder
    return sets


def _item(case: BatchCase, sets: Mapping[str, Path]) -> WorkItem:
    images, problem = dict(case.files), ""
    truth = case.ground_truth
    if case.folder is not None:
        try:
            images = dict(find_inputs(case.folder, {}).sources)
        except MSTKDError as error:
            problem = str(error)
        if truth is None:
            drawn = _drawn_in(case.folder)
            truth = drawn[0] if len(drawn) == 1 else None
            if len(drawn) > 1:
                names = ", ".join(path.name for path in drawn)
                problem = f"{case.folder}: {names}: which is the ground truth? Name it in a CSV file. {problem}".strip()
    found = dict(case.predictions)
    for name, folder in sets.items():
        path = find_prediction(folder, case.name)
        if path is not None:
            found[name] = path
    missing = tuple(name for name in sets if name not in found)
    return WorkItem(case.name, images, found, truth, problem, case.reference, missing)


def find_prediction(folder: Path, case: str) -> Optional[Path]:
    """The segmentation of `case` in `folder`: CASE with an ending, else the only file in the sub-folder CASE, or the
    only one there that is called a segmentation.
    """
    wanted = [f"{case}{ending}".casefold() for ending in SEGMENTATION_ENDINGS]
    here = {path.name.casefold(): path for path in _volumes_in(folder)}
    named = [here[name] for name in wanted if name in here]
    if named:
        return named[0]
    inside = _volumes_in(folder / case)
    if len(inside) > 1:
        inside = _segmentations_in(folder / case)
    return inside[0] if len(inside) == 1 else None


def find_ground_truth(folder: Path) -> Optional[Path]:
    """The only segmentation among the files of a case folder; None where there is none or more than one."""
    found = _drawn_in(folder)
    return found[0] if len(found) == 1 else None


def _is_one_case(folder: Path) -> bool:
    """Whether a folder holds the volumes of one case, as files or as folders of DICOM series, and not cases."""
    if _volumes_in(folder):
        return True
    inner = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if any(_volumes_in(path) for path in inner) or not any(_slices_in(path) for path in inner):
        return False
    try:
        return bool(find_inputs(folder, {}).sources)
    except MSTKDError:
        return False


def _slices_in(folder: Path) -> bool:
    return any(path.is_file() and not path.name.startswith(".") for path in folder.iterdir())


def _segmentations_in(folder: Path) -> list[Path]:
    return [path for path in _volumes_in(folder) if _is_segmentation(path)]


def _drawn_in(folder: Path) -> list[Path]:
    """The segmentations in a case folder that may be its ground truth: no brain masks, and no results of ours."""
    drawn = [path for path in _segmentations_in(folder) if not _BRAIN_MASK.search(path.name.lower())]
    return [path for path in drawn if not _is_our_result(path)]


def _is_our_result(path: Path) -> bool:
    try:
        return "bundle" in read_provenance(path)
    except InputError:  # said when it is read
        return False


def _is_segmentation(path: Path) -> bool:
    return read_words(path.name).not_input_kind.startswith("a segmentation")


def _volumes_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".") and path.name.lower().endswith(VOLUME_ENDINGS)
    )
