"""Many cases, one network: results and `summary.csv` in one folder; a run that was stopped goes on where it stopped."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Optional

from .accelerator import NONE
from .batch_cases import BatchCase, read_cases
from .case_inputs import CaseInputs, find_inputs
from .errors import BatchError, Cancelled, InputError, MSTKDError, OutputError
from .file_checks import file_stamp, os_errors_as_input_errors
from .modalities import subset_name
from .pipeline import Progress, Segmenter
from .segment_command import CaseRequest, CaseResult, Settings, segment_case
from .segmentation_io import atomic_output, check_output
from .terminal import RESEARCH_ONLY, print_line, print_table

SUMMARY = "summary.csv"
REGION_KEYS = ("NCR", "ED", "ET", "WT", "TC")
DICE_KEYS = ("WT", "TC", "ET")
COLUMNS = (
    "case", "status", "error", "sequences", "reference", "device", *(f"{key}_ml" for key in REGION_KEYS), "seconds",
    *(f"dice_{key}" for key in DICE_KEYS), "notices", "bundle_sha256", "fingerprint", "output",
)  # fmt: skip

QUALITY_ENDING = "-quality.html"

Row = dict[str, str]


@dataclass(frozen=True)
class BatchRequest:
    """What to run. `cases`: a folder of case folders or a CSV file; `output`: the folder of all results."""

    cases: Path
    output: Path
    settings: Settings
    ending: str = ".seg.nrrd"
    reports: bool = False
    reference: Optional[str] = None
    without: Collection[str] = ()
    keep: Optional[Path] = None
    by_look: bool = False


@dataclass(frozen=True)
class BatchResult:
    """Names of cases by what became of them in this run."""

    ok: Sequence[str]
    failed: Mapping[str, str]
    skipped: Sequence[str]
    summary: Path

    def to_dict(self) -> dict[str, Any]:
        return {
            "ok": list(self.ok),
            "failed": dict(self.failed),
            "skipped": list(self.skipped),
            "summary": str(self.summary),
        }


def run_batch(
    request: BatchRequest, load_segmenter: Callable[[], Segmenter], progress: Optional[Progress] = None
) -> BatchResult:
    """Segment every case; a case that fails is noted in `summary.csv` and the run goes on.

    A case is skipped when its outputs exist and its line there says ok for the same bundle, inputs and settings. It
    fails when they exist and the line says otherwise, or when there is none. With `settings.overwrite` every case is
    done again. A case that fails keeps its earlier line as long as that line's result is there.

    Raises InputError for a list that cannot be read, OutputError when the folder cannot be written, Cancelled on
    Ctrl-C.
    """
    cases = read_cases(request.cases, request.output, keep=None if request.keep is None else request.keep.expanduser())
    if request.reports:
        _refuse_names_of_reports([case.name for case in cases])
    path = request.output / SUMMARY
    rows = read_summary(path)
    _check_folder(request.output)
    segmenter = load_segmenter()
    ok: list[str] = []
    skipped: list[str] = []
    failed: dict[str, str] = {}
    try:
        for index, case in enumerate(cases):
            before = rows.get(case.name)
            row = _run_case(case, request, segmenter, before, _case_progress(progress, index, cases))
            if row is None:
                skipped.append(case.name)
                continue
            if row["status"] == "ok":
                ok.append(case.name)
            else:
                failed[case.name] = row["error"]
            if row["status"] == "ok" or not _has_result(before, request.output):
                rows[case.name] = row
                write_summary(path, rows)
    except KeyboardInterrupt:
        finished = len(ok) + len(failed) + len(skipped)
        raise Cancelled(
            f"cancelled after {finished} of {len(cases)} cases; run the same command again to go on where it stopped"
        ) from None
    return BatchResult(ok, failed, skipped, path)


def _refuse_names_of_reports(names: Sequence[str]) -> None:
    for name in names:
        other = f"{name}.html".removesuffix(QUALITY_ENDING)
        if other in names:
            raise InputError(
                f"the report of the case {name!r} and the quality report of {other!r} would be one file; rename one of "
                "the cases"
            )


def _case_progress(progress: Optional[Progress], index: int, cases: Sequence[BatchCase]) -> Optional[Progress]:
    if progress is None:
        return None
    name, total = cases[index].name, len(cases)
    return lambda share, text: progress((index + share) / total, f"{name} ({index + 1} of {total}): {text}")


def _check_folder(folder: Path) -> None:
    try:
        is_file = folder.exists() and not folder.is_dir()
    except OSError as error:
        raise OutputError(f"{folder}: cannot be used ({error.strerror or error}); choose another folder") from error
    if is_file:
        raise OutputError(f"{folder} is a file; give a folder for the results of a batch")
    check_output(folder / SUMMARY, overwrite=True, endings=(".csv",))


# --- one case --------------------------------------------------------------------------------------------------------


def _run_case(
    case: BatchCase, request: BatchRequest, segmenter: Segmenter, before: Optional[Row], progress: Optional[Progress]
) -> Optional[Row]:
    """The case's line for the summary, or None where the one from before still holds."""
    try:
        _check_files(case)
        without = request.without if case.folder else ()
        inputs = find_inputs(case.folder, _kept_files(case, request), without, by_look=request.by_look)
        if not inputs.sources:
            raise InputError("no sequence is given; give at least one of T1, T1Gd, T2 and FLAIR")
        one = _case_request(case, request, inputs)
        fingerprint = _fingerprint(one, segmenter)
        if not request.settings.overwrite and _is_done(before, one, fingerprint, segmenter):
            return None
        result = segment_case(one, lambda: segmenter, progress)
    except MSTKDError as error:
        return _failed_row(case, str(error), segmenter)
    except Exception as error:  # a bug in one case must not cost the results of the others
        return _failed_row(case, f"a bug of this program: {type(error).__name__}: {error}", segmenter)
    return _ok_row(result, fingerprint, segmenter)


def _check_files(case: BatchCase) -> None:
    for path in (*case.files.values(), *([case.ground_truth] if case.ground_truth else [])):
        with os_errors_as_input_errors(path):
            if not path.exists():
                raise InputError(f"{path}: no such file or folder; check the path")


def _kept_files(case: BatchCase, request: BatchRequest) -> dict[str, Path]:
    return {name: path for name, path in case.files.items() if name not in request.without}


def _case_request(case: BatchCase, request: BatchRequest, inputs: CaseInputs) -> CaseRequest:
    return CaseRequest(
        title=case.name,
        inputs=inputs,
        outputs=(request.output / f"{case.name}{request.ending}",),
        settings=request.settings,
        reference=case.reference or request.reference,
        reports=(request.output / f"{case.name}.html",) if request.reports else (),
        quality=(request.output / f"{case.name}{QUALITY_ENDING}",) if request.reports else (),
        ground_truth=case.ground_truth,
        keep=None if request.keep is None else request.keep.expanduser() / case.name,
    )


def _is_done(before: Optional[Row], one: CaseRequest, fingerprint: str, segmenter: Segmenter) -> bool:
    """Whether all files are there and the line from before says that the same would come out again.

    Raises OutputError where only some files are there, or where they are not known to be the same.
    """
    there = [path for path in one.files if os.path.lexists(path)]
    if not there:
        return False
    if before is None or before["status"] != "ok":
        # As after a run that was killed between writing the result and noting it.
        reason = f"{there[0]} exists already, but {SUMMARY} does not say what made it"
    elif before["bundle_sha256"] != segmenter.bundle.sha256 or before["fingerprint"] != fingerprint:
        reason = f"{there[0]} was made from other inputs, weights or settings"
    elif len(there) < len(one.files):
        missing = next(path for path in one.files if path not in there)
        reason = f"{there[0]} exists already, but {missing.name} is missing"
    else:
        return True
    raise OutputError(f"{reason}; move it away, or run with --overwrite to do all cases again")


def _has_result(before: Optional[Row], folder: Path) -> bool:
    """Whether the line from before describes a result that is still there."""
    return before is not None and before["status"] == "ok" and os.path.lexists(folder / before["output"])


def _fingerprint(one: CaseRequest, segmenter: Segmenter) -> str:
    """Changes with the input files (path, size, time of change) and with whatever decides what is written."""
    settings = {key: value for key, value in asdict(one.settings).items() if key != "overwrite"}
    inputs = {name: file_stamp(path) for name, path in one.inputs.sources.items()}
    truth = None if one.ground_truth is None else file_stamp(one.ground_truth)
    outputs = [path.name for path in one.outputs]
    parts = [inputs, truth, one.reference, settings, outputs, segmenter.bundle.identity]
    if segmenter.accelerator != NONE:
        parts.append(segmenter.accelerator)
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# --- summary.csv -----------------------------------------------------------------------------------------------------


def _ok_row(result: CaseResult, fingerprint: str, segmenter: Segmenter) -> Row:
    volumes, scores = result.segmentation.volumes_ml, result.dice or {}
    return {
        "case": result.request.title,
        "status": "ok",
        "error": "",
        "sequences": result.subset,
        "reference": result.segmentation.case.reference,
        "device": " with ".join(filter(None, (result.used_device, result.accelerator))),
        **{f"{key}_ml": f"{volumes[key]:.3f}" for key in REGION_KEYS},
        "seconds": f"{result.seconds['total']:.2f}",
        **{f"dice_{key}": f"{scores[key]:.4f}" if key in scores else "" for key in DICE_KEYS},
        "notices": " | ".join(result.notices),
        "bundle_sha256": segmenter.bundle.sha256,
        "fingerprint": fingerprint,
        "output": result.request.outputs[0].name,
    }


def _failed_row(case: BatchCase, message: str, segmenter: Segmenter) -> Row:
    where = "" if case.folder else f"{case.where}: "
    row = dict.fromkeys(COLUMNS, "")
    row.update(
        case=case.name, status="failed", error=where + " ".join(message.split()),
        sequences=subset_name(case.files) if case.files else "", bundle_sha256=segmenter.bundle.sha256,
    )  # fmt: skip
    return row


def read_summary(path: Path) -> dict[str, Row]:
    """Lines of an earlier run by case; empty where there is none. Raises OutputError for a file that is not ours."""
    try:
        if not path.is_file():
            return {}
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise OutputError(f"{path} is not a summary of this program; choose another output folder")
            # A line that someone shortened has no text in its last cells.
            return {row["case"]: {column: row[column] or "" for column in COLUMNS} for row in reader}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise OutputError(f"{path} cannot be read ({error}); choose another output folder") from error


def write_summary(path: Path, rows: Mapping[str, Row]) -> None:
    """Write all lines, in the order in which cases first ended; the file is whole at any time."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows.values())
    with atomic_output(path, overwrite=True, ending=".csv") as temporary:
        temporary.write_bytes(text.getvalue().encode("utf-8"))


def print_batch(result: BatchResult) -> None:
    """What became of the cases, for a person at a terminal."""
    if result.failed:
        print_table(("failed case", "error"), result.failed.items(), text_columns=2)
    print_line(f"{len(result.ok)} segmented, {len(result.skipped)} kept from before, {len(result.failed)} failed")
    print_line(f"written: {result.summary}")
    print_line(RESEARCH_ONLY)


def batch_error(result: BatchResult) -> Optional[BatchError]:
    """The error that the run ends with where a case failed."""
    if not result.failed:
        return None
    names = ", ".join(list(result.failed)[:5]) + (", ..." if len(result.failed) > 5 else "")
    total = len(result.ok) + len(result.skipped) + len(result.failed)
    first, reason = next(iter(result.failed.items()))
    # The summary alone would not do: a case with an earlier result keeps its line there.
    return BatchError(
        f"{len(result.failed)} of {total} cases failed ({names}); {first}: {reason}; results are in {result.summary}"
    )
