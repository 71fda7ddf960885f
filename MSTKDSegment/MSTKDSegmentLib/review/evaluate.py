"""`mstkd evaluate`: many cases with ground truth, scored one by one, in several processes or on several machines.

Each case leaves one note in OUT/.cases; the tables and the page are made from all notes that are there, by every
process that ends, and are the same whoever wrote them last. So the ranks of `torchrun` need not talk to each other:
each takes its share of the cases and writes into the same folder.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Callable, Optional

from .. import __version__
from ..accelerator import NONE, choose_accelerated
from ..errors import BatchError, Cancelled, DeviceError, InputError, OutputError
from ..pipeline import Progress, Segmenter
from ..segmentation_io import atomic_output, check_output
from ..weights import read_bundle
from .cohort import summarise, write_cohort_report
from .evaluate_case import (
    NOTES,
    OURS,
    PAGES,
    SEGMENTED,
    Record,
    Task,
    failed_record,
    is_done,
    read_record,
    run_case,
    write_record,
)
from .label_maps import AUTO
from .processes import in_processes
from .report_text import EMPTY_POLICY
from .worklist import WorkItem, named_sets, read_worklist

SCORES, FAILED, SUMMARY, COHORT = "scores.csv", "failed.csv", "summary.json", "cohort.html"
COLUMNS = (
    "case", "prediction", "region", "status", "dice", "hd95_mm", "nsd_1mm", "nsd_2mm", "reference_ml", "prediction_ml",
    "volume_error_ml", "volume_error_percent", "sensitivity", "precision", "lesions_reference", "lesions_found",
    "lesions_false", "lesion_f1", "lesion_dice",
)  # fmt: skip


@dataclass(frozen=True)
class EvaluateRequest:
    """What to evaluate, see `worklist.read_worklist`, and how.

    convention: of the ground truths; prediction_convention: of the predictions given.
    """

    source: Path
    output: Path
    predictions: Sequence[Path] = ()
    convention: str = AUTO
    prediction_convention: str = AUTO
    device: str = "auto"
    accelerator: str = NONE
    weights: Optional[Path] = None
    jobs: int = 1
    reports: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class EvaluateResult:
    """Names of this process's cases by what became of them; pending: those of all that nobody has done yet."""

    done: Sequence[str]
    kept: Sequence[str]
    failed: Mapping[str, str]
    pending: Sequence[str]
    summary: Mapping[str, Any]
    files: Mapping[str, Path]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "done": list(self.done),
            "kept": list(self.kept),
            "failed": dict(self.failed),
            "pending": list(self.pending),
            "predictions": self.summary["predictions"],
            "files": {name: str(path) for name, path in self.files.items()},
        }


def rank_and_ranks(environment: Optional[Mapping[str, str]] = None) -> tuple[int, int]:
    """This process's number among those that `torchrun` started, and how many there are; (0, 1) without it.

    Raises InputError where the two make no sense.
    """
    environment = os.environ if environment is None else environment
    texts = environment.get("RANK", "0"), environment.get("WORLD_SIZE", "1")
    try:
        rank, ranks = int(texts[0]), int(texts[1])
    except ValueError:
        rank, ranks = -1, 0
    if not 0 <= rank < ranks:
        raise InputError(f"RANK={texts[0]} and WORLD_SIZE={texts[1]} make no sense; unset both, or start by torchrun")
    return rank, ranks


def evaluate(request: EvaluateRequest, progress: Optional[Progress] = None) -> EvaluateResult:
    """Score every case; one that fails is noted and the run goes on. What is done already is kept.

    Raises InputError for a list that cannot be read, WeightsError and DeviceError before anything is done, OutputError
    when the folder cannot be written, Cancelled on Ctrl-C.
    """
    rank, ranks = rank_and_ranks()
    tasks = _tasks(request)
    _check_folder(request.output)
    mine = tasks[rank::ranks]
    kept: list[str] = []
    left: list[Task] = []
    for task in mine:
        if not request.overwrite and is_done(task):
            kept.append(task.item.name)
        else:
            left.append(task)
    if any(task.segmented_here for task in left):
        choose_accelerated(request.accelerator, request.device)  # not there: said once, before anything is done
    _make_ours(request.output)
    done: list[str] = []
    failed: dict[str, str] = {}
    try:
        with closing(_records(request, left, progress)) as records:
            for task, record in records:
                if record["status"] == "ok":
                    done.append(task.item.name)
                else:
                    failed[task.item.name] = record["error"]
    except KeyboardInterrupt:
        _write_tables(request, tasks)
        finished = len(done) + len(failed) + len(kept)
        raise Cancelled(
            f"cancelled after {finished} of {len(mine)} cases; run the same command again to go on where it stopped"
        ) from None
    summary, pending = _write_tables(request, tasks)
    names = (SCORES, SUMMARY, COHORT, *([FAILED] if summary["failed"] else []))
    files = {name: request.output / name for name in names}
    return EvaluateResult(done, kept, failed, pending, summary, files)


def _tasks(request: EvaluateRequest) -> list[Task]:
    items = read_worklist(request.source, request.predictions, request.output)
    _require_used(request.predictions, items)
    bundle = "" if all(item.predictions for item in items) else read_bundle(request.weights).identity
    if bundle and request.accelerator != NONE:
        bundle += f" {request.accelerator}"
    return [
        Task(
            item, request.output, request.convention, request.reports, request.overwrite,
            "" if item.predictions else bundle, request.prediction_convention,
        )
        for item in items
    ]  # fmt: skip


def _require_used(folders: Sequence[Path], items: Sequence[WorkItem]) -> None:
    """Raises InputError for a folder of predictions in which none of the cases is found.

    Else all of them would be segmented here, as if no prediction had been given.
    """
    for name, folder in named_sets(folders).items():
        if not any(name in item.predictions for item in items):
            raise InputError(
                f"{folder}: holds no prediction of any of the {len(items)} cases; they are looked for as "
                f"CASE.seg.nrrd, CASE.nii.gz (such as {items[0].name}.nii.gz) ... or in a sub-folder CASE"
            )


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; give a folder for the results")
    for name, ending in ((SCORES, ".csv"), (SUMMARY, ".json"), (COHORT, ".html"), (FAILED, ".csv")):
        check_output(folder / name, overwrite=True, endings=(ending,))
        if (folder / name).exists() and not (folder / NOTES).is_dir():
            raise OutputError(f"{folder / name} is not of an evaluation by this program; choose another output folder")


def _make_ours(folder: Path) -> None:
    """By its notes a folder is known as ours, also where the run ends before the first case does."""
    try:
        (folder / NOTES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error}); choose another folder") from error


# --- the cases -------------------------------------------------------------------------------------------------------


def _records(
    request: EvaluateRequest, tasks: Sequence[Task], progress: Optional[Progress]
) -> Generator[tuple[Task, Record], None, None]:
    """Do the tasks; gives each with what was noted, in the order in which they end."""
    total = len(tasks)
    if request.jobs == 1:
        load = lru_cache(maxsize=None)(
            partial(load_segmenter, request.weights, request.device, _local_rank(), request.accelerator)
        )
        for number, task in enumerate(tasks):
            yield task, run_case(task, load, _case_progress(progress, number, total, task.item.name))
        return
    work = partial(
        _work,
        weights=request.weights,
        device=request.device,
        first=_local_rank() * request.jobs,
        accelerator=request.accelerator,
    )
    with closing(in_processes(work, tasks, request.jobs)) as answers:
        for number, answer in enumerate(answers):
            if progress is not None:
                progress((number + 1) / total, f"{answer.task.item.name} ({number + 1} of {total})")
            if isinstance(answer.error, OutputError):
                raise answer.error
            record = answer.result
            if answer.error is not None:
                record = failed_record(answer.task, f"{answer.task.item.name}: {answer.error}")
                write_record(answer.task, record)
            yield answer.task, record


def _case_progress(progress: Optional[Progress], number: int, total: int, name: str) -> Optional[Progress]:
    if progress is None:
        return None
    return lambda share, text: progress((number + share) / total, f"{name} ({number + 1} of {total}): {text}")


def _local_rank() -> int:
    """This process's number on its machine."""
    text = os.environ.get("LOCAL_RANK", "0")
    return int(text) if text.isdigit() else 0


def _work(task: Task, number: int, weights: Optional[Path], device: str, first: int, accelerator: str = NONE) -> Record:
    """One case in a process of its own, which keeps its network from case to case."""
    return run_case(task, _loader(weights, device, first + number, accelerator))


@lru_cache(maxsize=1)
def _loader(weights: Optional[Path], device: str, number: int, accelerator: str) -> Callable[[], Segmenter]:
    return lru_cache(maxsize=None)(partial(load_segmenter, weights, device, number, accelerator))


def load_segmenter(weights: Optional[Path], device: str, number: int, accelerator: str = NONE) -> Segmenter:
    """The network for the process `number` on this machine: where there are several GPUs each takes its own."""
    if device in ("auto", "cuda") and accelerator == NONE:
        import torch

        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if gpus > 1:
            try:
                return Segmenter(weights, f"cuda:{number % gpus}")
            except DeviceError:
                if device == "cuda":
                    raise
    return Segmenter(weights, device, accelerator=accelerator)


# --- tables ----------------------------------------------------------------------------------------------------------


def _write_tables(request: EvaluateRequest, tasks: Sequence[Task]) -> tuple[dict[str, Any], list[str]]:
    """Write tables and page from all notes; gives the summary and the names of cases without a note.

    Another rank may end meanwhile: what was written last is what all notes say only if they are still the same
    afterwards, so that is looked at.
    """
    while True:
        records = _finished(tasks)
        summary = _write_once(request, {name: record for name, record in records.items() if record is not None})
        pending = [name for name, record in records.items() if record is None]
        if _finished(tasks) == records:
            return {**summary, "pending": pending}, pending


def _finished(tasks: Sequence[Task]) -> dict[str, Optional[Record]]:
    """By case its note, None where it is not done yet."""
    finished: dict[str, Optional[Record]] = {}
    for task in tasks:
        record = read_record(task)
        finished[task.item.name] = None if record is None or record["status"] == SEGMENTED else record
    return finished


def _write_once(request: EvaluateRequest, records: Mapping[str, Record]) -> dict[str, Any]:
    folder = request.output
    good = {name: record for name, record in records.items() if record["status"] == "ok"}
    failed = {name: str(record["error"]) for name, record in records.items() if record["status"] != "ok"}
    rows = [row for record in good.values() for row in record["rows"]]
    bundles = sorted({record["made"].get(f"{OURS}: bundle", "") for record in good.values()} - {""})
    made = {
        "software": f"MSTKDSegment {__version__}",
        "label convention of the ground truths": request.convention,
        "label convention of the predictions": request.prediction_convention,
        **({"segmented here with": "; ".join(bundles)} if bundles else {}),
    }
    summary: dict[str, Any] = {
        "cases": len(good),
        "failed": failed,
        "predictions": summarise(rows),
        "empty_masks": EMPTY_POLICY,
        "made": made,
    }
    _write_text(folder / SCORES, ".csv", _csv(COLUMNS, rows))
    _write_text(folder / SUMMARY, ".json", json.dumps(summary, indent=1))
    if failed:
        lines = [{"case": name, "error": error} for name, error in failed.items()]
        _write_text(folder / FAILED, ".csv", _csv(("case", "error"), lines))
    else:
        (folder / FAILED).unlink(missing_ok=True)
    pages = {name: f"{PAGES}/{name}.html" for name, record in good.items() if record["page"]}
    notices = {name: record["notices"] for name, record in good.items()}
    write_cohort_report(
        folder / COHORT,
        rows,
        title=f"Evaluation of {request.source.resolve().name}",
        failed=failed,
        pages=pages,
        notices=notices,
        provenance=made,
        overwrite=True,
    )
    return summary


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows({key: _cell(row[key]) for key in columns} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _write_text(path: Path, ending: str, text: str) -> None:
    with atomic_output(path, overwrite=True, ending=ending) as temporary:
        temporary.write_bytes(text.encode("utf-8"))


def evaluation_error(result: EvaluateResult) -> Optional[BatchError]:
    """The error that the run ends with where a case of this process failed.

    Not under torchrun: it would end the other ranks, whose cases have nothing to do with it.
    """
    if not result.failed or rank_and_ranks()[1] > 1:
        return None
    names = ", ".join(list(result.failed)[:5]) + (", ..." if len(result.failed) > 5 else "")
    first, reason = next(iter(result.failed.items()))
    total = len(result.done) + len(result.kept) + len(result.failed)
    return BatchError(
        f"{len(result.failed)} of {total} cases failed ({names}); {first}: {reason}; results are in "
        f"{result.files[SCORES]}"
    )
