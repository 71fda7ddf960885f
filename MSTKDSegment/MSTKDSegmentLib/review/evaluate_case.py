"""One case of `mstkd evaluate`: segmented where it has no prediction, scored, shown on a page, and noted in one file.

The note, `.cases/NAME.json`, is written at once when the case is done, so that a run that is killed loses one case.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
import SimpleITK as sitk

from ..case_inputs import CaseInputs
from ..errors import InputError, MSTKDError, OutputError
from ..file_checks import file_stamp, os_errors_as_input_errors
from ..geometry import array_to_image
from ..pipeline import Progress, Segmenter
from ..registration import as_transform
from ..segment_command import CaseRequest, CaseResult, Settings, segment_case
from ..segmentation_io import atomic_output, read_provenance
from ..volume_checks import same_grid
from ..volumes import read_volume
from .comparison import Review, review
from .label_maps import AUTO, read_label_map
from .report import write_review_report
from .report_text import what_was_compared, without_folders
from .worklist import WorkItem

OURS = "segmented here"
"""What the prediction of a case is called that had none."""
NOTES, PREDICTIONS, PAGES = ".cases", "predictions", "cases"
FORMAT = 1
OK, FAILED_STATUS, SEGMENTED = "ok", "failed", "segmented"
"""What a note says of a case; the last one: segmented, and not scored yet."""

Record = dict[str, Any]
Load = Callable[[], Segmenter]


@dataclass(frozen=True)
class Task:
    """One case and how it is done.

    bundle: identity of the bundle, and accelerator, by which it is segmented; or "". prediction_convention: of the
    label values of predictions that were given.
    """

    item: WorkItem
    output: Path
    convention: str
    reports: bool
    overwrite: bool
    bundle: str
    prediction_convention: str = AUTO

    @property
    def note(self) -> Path:
        return self.output / NOTES / f"{self.item.name}.json"

    @property
    def page(self) -> Path:
        return self.output / PAGES / f"{self.item.name}.html"

    @property
    def segmentation(self) -> Path:
        return self.output / PREDICTIONS / f"{self.item.name}.seg.nrrd"

    @property
    def segmented_here(self) -> bool:
        return not self.item.predictions

    def files(self) -> list[Path]:
        """Every file of the user's that it reads."""
        item = self.item
        truth = [] if item.ground_truth is None else [item.ground_truth]
        return [*truth, *item.predictions.values(), *item.images.values()]


# --- what is done already --------------------------------------------------------------------------------------------


def fingerprint(task: Task) -> str:
    """Changes with the files that are scored (path, size, time of change), the convention and the weights; "" where a
    file of the user's is not there.
    """
    item = task.item
    try:
        truth = None if item.ground_truth is None else file_stamp(item.ground_truth)
        scored: Any = {name: file_stamp(path) for name, path in item.predictions.items()}
        if task.segmented_here:
            scored = [_segmentation_print(task), _segmentation_stamp(task)]
    except InputError:
        return ""
    values = [FORMAT, item.name, truth, scored, task.convention]
    if task.prediction_convention != AUTO or item.missing:  # notes from before there were these still hold
        values.append([task.prediction_convention, *item.missing])
    return _digest(values)


def _segmentation_print(task: Task) -> str:
    images = {name: file_stamp(path) for name, path in task.item.images.items()}
    return _digest([images, task.item.reference, task.bundle])


def _segmentation_stamp(task: Task) -> Optional[list[Any]]:
    """What changes with the segmentation's file; not with the folder of results, which may be moved."""
    return file_stamp(task.segmentation)[1:] if task.segmentation.is_file() else None


def _page_print(task: Task) -> str:
    return _digest([fingerprint(task), {name: file_stamp(path) for name, path in task.item.images.items()}])


def _digest(values: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def read_record(task: Task) -> Optional[Record]:
    """What was noted of the case as it is now; None where there is nothing, or where something has changed since."""
    record = _noted(task)
    return record if record is not None and record.get("fingerprint") == fingerprint(task) else None


def _noted(task: Task) -> Optional[Record]:
    try:
        record = json.loads(task.note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("format") == FORMAT else None


def is_done(task: Task) -> bool:
    """Whether the case need not be done again: it went well, nothing has changed, and its files are there."""
    record = read_record(task)
    if record is None or record["status"] != OK:
        return False
    if task.segmented_here and not task.segmentation.is_file():
        return False
    try:
        return not task.reports or (record["page"] == _page_print(task) and task.page.is_file())
    except InputError:
        return False


# --- doing it --------------------------------------------------------------------------------------------------------


def run_case(task: Task, load: Load, progress: Optional[Progress] = None) -> Record:
    """Do the case and note what came of it. A case that cannot be done is noted with its error.

    load: gives the network; called only where the case is segmented. Raises OutputError where the note cannot be
    written.
    """
    try:
        record = _done(task, load, progress)
    except MSTKDError as error:
        record = failed_record(task, " ".join(str(error).split()))
    except Exception as error:  # a bug in one case must not cost the results of the others
        record = failed_record(task, f"a bug of this program: {type(error).__name__}: {error}")
    write_record(task, record)
    return record


def failed_record(task: Task, error: str) -> Record:
    """The note on a case that could not be done."""
    return _record(task, FAILED_STATUS, error=error)


def write_record(task: Task, record: Record) -> None:
    """Note what came of the case, whole or not at all. Raises OutputError."""
    with atomic_output(task.note, overwrite=True, ending=".json") as temporary:
        temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")


def _record(task: Task, status: str, **found: Any) -> Record:
    """A note; what it says of the files that were written stays as it was before where `found` says nothing of them."""
    before = _noted(task) or {}
    return {
        "format": FORMAT,
        "case": task.item.name,
        "fingerprint": fingerprint(task),
        "status": status,
        "error": "",
        "rows": [],
        "notices": [],
        "made": {},
        "page": "",
        "segmentation": before.get("segmentation"),
        "page_sha256": before.get("page_sha256", ""),
        **found,
    }


def _done(task: Task, load: Load, progress: Optional[Progress]) -> Record:
    item = task.item
    if item.ground_truth is None:
        raise InputError(
            f"{item.name}: it has no ground truth that is recognised by its name, or several; name it ..._seg, or give "
            "a CSV with the column ground_truth"
        )
    if task.reports:
        _refuse_foreign_page(task)
    truth = read_label_map(item.ground_truth, task.convention)
    result, told = _segmented(task, load, progress) if task.segmented_here else (None, [])
    files = {OURS: task.segmentation} if task.segmented_here else item.predictions
    convention = AUTO if task.segmented_here else task.prediction_convention
    maps = {name: read_label_map(path, convention) for name, path in files.items()}
    found = review(maps, truth)
    absent = [f"{name} has no prediction of this case, which is not in its means." for name in item.missing]
    found = replace(found, notices=tuple(dict.fromkeys((*told, *absent, *found.notices))))
    rows = [
        {"case": item.name, "prediction": one.name, **score.to_dict()}
        for one in found.predictions
        for score in one.scores
    ]
    if not rows:
        raise InputError(f"{item.ground_truth}: it and the predictions have no region in common; nothing to score")
    made = what_was_compared(maps, truth)
    page = _write_page(task, found, result, made) if task.reports else {}
    notices = [without_folders(text, task.files()) for text in found.notices]
    return _record(task, OK, rows=rows, notices=notices, made=made, **page)


def _segmented(task: Task, load: Load, progress: Optional[Progress]) -> tuple[Optional[CaseResult], Sequence[str]]:
    """The case segmented, its result in its file, and notices; no result where that file is kept from before."""
    item, path = task.item, task.segmentation
    if item.problem:
        raise InputError(item.problem)
    if not item.images:
        raise InputError(f"{item.name}: it has neither a prediction nor a sequence to segment; give at least one")
    if path.exists():
        before = (_noted(task) or {}).get("segmentation")
        if not task.overwrite and before is not None and _is_segmentation_of(task, before):
            return None, before["notices"]
        _refuse_foreign_segmentation(path)
    request = CaseRequest(
        title=item.name,
        inputs=CaseInputs(item.images, dict.fromkeys(item.images, "of the list of cases")),
        outputs=(path,),
        settings=Settings(overwrite=True),
        reference=item.reference,
    )
    result = segment_case(request, load, progress)
    case = result.segmentation.case
    # Noted now: scoring may fail, or the run be killed, and the segmentation need not be done again.
    made = {
        "fingerprint": _segmentation_print(task),
        "stamp": _segmentation_stamp(task),
        "notices": list(result.notices),
        "matrices": {name: case.matrix_from_reference(name).tolist() for name in case.volumes},
    }
    write_record(task, _record(task, SEGMENTED, segmentation=made))
    return result, result.notices


def _is_segmentation_of(task: Task, made: Mapping[str, Any]) -> bool:
    """Whether the file is still the one that was noted as `made`, of these sequences and weights."""
    return made["fingerprint"] == _segmentation_print(task) and made.get("stamp") == _segmentation_stamp(task)


def _refuse_foreign_segmentation(path: Path) -> None:
    """Raises OutputError where the file was not made by this program, or is damaged so that it cannot be told."""
    try:
        ours = "bundle" in read_provenance(path)
    except InputError:
        ours = False
    if not ours:
        raise OutputError(
            f"{path} was not made by this program, or was changed since; move it away, or choose another output folder"
        )


# --- its page --------------------------------------------------------------------------------------------------------


def _write_page(task: Task, found: Review, result: Optional[CaseResult], made: Mapping[str, str]) -> Record:
    """Write the page on the case; gives what the note says of it."""
    images, notices = _images(task, result, found.image)
    write_review_report(
        task.page,
        replace(found, notices=(*found.notices, *notices)),
        images,
        title=task.item.name,
        provenance=made,
        files=task.files(),
        overwrite=True,
    )
    return {"page": _page_print(task), "page_sha256": _sha256(task.page)}


def _refuse_foreign_page(task: Task) -> None:
    """Raises OutputError where a file is in the place of the page that no note says was written by this program."""
    if task.page.is_file() and _sha256(task.page) != (_noted(task) or {}).get("page_sha256"):
        raise OutputError(
            f"{task.page} was not made by this program, or was changed since; move it away, or choose another output "
            "folder"
        )


def _sha256(path: Path) -> str:
    with os_errors_as_input_errors(path):
        return hashlib.sha256(path.read_bytes()).hexdigest()


def _images(task: Task, result: Optional[CaseResult], grid: sitk.Image) -> tuple[dict[str, sitk.Image], list[str]]:
    """The sequences to show on `grid`, the review's, and notices; where they were registered here, as they were laid,
    now (`result`) or in an earlier run (its note).
    """
    if result is not None:
        case = result.segmentation.case
        moved = case.on_reference_grid()
        return {name: array_to_image(array, case.reference_image) for name, array in moved.items()}, []
    made = (_noted(task) or {}).get("segmentation") if task.segmented_here else None
    matrices = (made or {}).get("matrices", {})
    images: dict[str, sitk.Image] = {}
    notices, apart = [], []
    for name, path in task.item.images.items():
        try:
            image = read_volume(path).image
        except MSTKDError as error:
            notices.append(f"{name} is not shown: {error}")
            continue
        if name in matrices:
            there = as_transform(np.array(matrices[name]))
            image = sitk.Resample(image, grid, there, sitk.sitkLinear, 0.0)
        elif not same_grid(image, grid):
            apart.append(name)
        images[name] = image
    if apart:
        notices.append(
            f"{', '.join(apart)}: shown where the file's header says, on another grid, and not registered here; the "
            "pictures may lie beside the outlines."
        )
    return images, notices
