"""One case on the command line: check outputs, read, segment, compare with a ground truth, write all files at once."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

import numpy as np
import SimpleITK as sitk

from .background import Ahead
from .case_inputs import CaseInputs
from .errors import OutputError
from .keep import ENDINGS as KEPT_ENDINGS
from .keep import kept_files, stale_files, write_kept
from .memory import peak_memory_mib
from .metrics import region_dice
from .modalities import subset_name
from .output_set import refuse_collisions, staged_outputs
from .pipeline import PreparedCase, Progress, Segmentation, Segmenter, read_case
from .preparation_record import Wishes
from .quality_report import QUALITY_ENDINGS, write_quality_report
from .regions import LABELS, REGIONS
from .report import REPORT_ENDINGS, write_report
from .review.label_maps import AUTO, on_grid, read_label_map
from .review.report_text import without_folders
from .segmentation_io import (
    PROBABILITY_ENDINGS,
    REGION_ENDINGS,
    SEGMENTATION_ENDINGS,
    check_output,
    output_ending,
    write_probabilities,
    write_segmentation,
)
from .terminal import RESEARCH_ONLY, print_line, print_table, region_text
from .volumes import read_volume

if TYPE_CHECKING:
    from .devices import DeviceChoice

# Share of the progress bar until the files are written.
SEGMENT_SHARE = 0.95


@dataclass(frozen=True)
class Settings:
    """How cases are prepared and results are written, the same for every case of a batch."""

    label_convention: str = "brats2023"
    segments: str = "labels"
    ground_truth_convention: str = AUTO
    overwrite: bool = False
    wishes: Wishes = field(default_factory=Wishes)


@dataclass(frozen=True)
class CaseRequest:
    """One case: its sequences, where its results go, and what it is compared with.

    brain_mask: of the reference. keep: folder for what lies between inputs and result. quality: reports of how the
    volumes were prepared.
    """

    title: str
    inputs: CaseInputs
    outputs: tuple[Path, ...]
    settings: Settings
    reference: Optional[str] = None
    reports: tuple[Path, ...] = ()
    probabilities: Optional[Path] = None
    ground_truth: Optional[Path] = None
    brain_mask: Optional[Path] = None
    keep: Optional[Path] = None
    quality: tuple[Path, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that will be written."""
        return (
            *self.outputs,
            *self.reports,
            *self.quality,
            *([self.probabilities] if self.probabilities is not None else []),
            *self.kept,
        )

    @property
    def kept(self) -> tuple[Path, ...]:
        """What goes into the folder `keep`."""
        return () if self.keep is None else tuple(kept_files(self.keep, self.inputs.sources))

    @property
    def stale(self) -> tuple[Path, ...]:
        """What an earlier run with other sequences left in the folder `keep`."""
        return () if self.keep is None else tuple(stale_files(self.keep, self.inputs.sources))


@dataclass(frozen=True)
class CaseResult:
    """What a case gave. `dice`: against the ground truth, by region; `expected_dice`: on validation, same sequences.

    seconds: by stage, with their "total". stages: the same in finer pieces; "load the network" is how long was waited
    for what was begun before. started, ended: UTC, to the microsecond.
    """

    request: CaseRequest
    segmentation: Segmentation
    device: DeviceChoice
    expected_dice: Optional[Mapping[str, float]]
    dice: Optional[Mapping[str, float]]
    notices: tuple[str, ...]
    seconds: Mapping[str, float]
    stages: Mapping[str, float]
    started: str
    ended: str
    loading: Mapping[str, float]

    @property
    def subset(self) -> str:
        return subset_name(self.segmentation.case.subset)

    @property
    def used_device(self) -> str:
        """The device's name, which differs from the one chosen where its memory ran out."""
        return self.segmentation.provenance["device"].partition(" (")[0]

    @property
    def accelerator(self) -> str:
        """What ran the network in the place of torch; "" where nothing did."""
        return self.segmentation.provenance.get("accelerator", "")

    def _diameters(self) -> dict[str, dict[str, float]]:
        from .diameters import measure  # its geometry library would slow down every start

        measured = measure(self.segmentation.labels, self.segmentation.reference_image)
        return {
            structure: {name[: -len("_mm")]: round(value, 1) for name, value in values.items() if name.endswith("_mm")}
            for structure, values in measured.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """The object that --json prints."""
        request, case = self.request, self.segmentation.case
        return {
            "case": request.title,
            "inputs": {
                name: {"source": str(path), "reason": request.inputs.reasons[name]}
                for name, path in request.inputs.sources.items()
            },
            "subset": self.subset,
            "reference": case.reference,
            "device": {
                "name": self.used_device,
                "chosen": self.device.name,
                "reason": self.device.reason,
                "accelerator": self.accelerator or None,
            },
            "volumes_ml": dict(self.segmentation.volumes_ml),
            "doubted_ml": self.segmentation.doubted_ml,
            "diameters_mm": self._diameters(),
            "expected_dice": None if self.expected_dice is None else dict(self.expected_dice),
            "dice": None if self.dice is None else dict(self.dice),
            "ground_truth": None if request.ground_truth is None else str(request.ground_truth),
            "outputs": {
                "segmentations": [str(path) for path in request.outputs],
                "reports": [str(path) for path in request.reports],
                "quality_reports": [str(path) for path in request.quality],
                "probabilities": None if request.probabilities is None else str(request.probabilities),
                "kept": [str(path) for path in request.kept],
            },
            "preparation": case.record.to_dict(),
            "notices": list(self.notices),
            "seconds": _rounded(self.seconds),
            "stages": _rounded(self.stages),
            "loading": _rounded(self.loading),
            "started": self.started,
            "ended": self.ended,
            "network_shape": list(case.grid.shape),
            "peak_memory_mib": peak_memory_mib(),
            "provenance": dict(self.segmentation.provenance),
        }


def segment_case(
    request: CaseRequest, load_segmenter: Callable[[], Segmenter], progress: Optional[Progress] = None
) -> CaseResult:
    """Segment one case and write its files, all of them or none.

    The network is loaded while the inputs are read, and errors of these come first. Raises the errors of `errors`.
    """
    started, start = utc_now(), time.perf_counter()
    request = _with_checked_outputs(request, None)
    step = _until_writing(progress)
    wishes = request.settings.wishes
    if request.brain_mask is not None:
        mask = read_volume(request.brain_mask, is_label=True)
        wishes = wishes.with_mask(mask.image, mask.source)
    # Most of it is importing torch, which takes one core; reading and preparing mostly runs outside the interpreter.
    load = Ahead(load_segmenter)
    case = read_case(request.inputs.sources, request.reference, step, None, wishes, lambda: load().device.name)
    _with_checked_outputs(request, case.reference_image)
    truth, known, notices = _ground_truth(request, case)
    prepared = time.perf_counter()
    segmenter = load()
    loaded = time.perf_counter()
    segmentation = segmenter.segment_prepared(
        case, want_probabilities=request.probabilities is not None, progress=step,
        seconds={"read and prepare": prepared - start, "load the network": loaded - prepared},
    )  # fmt: skip
    result = CaseResult(
        request=request,
        segmentation=segmentation,
        device=segmenter.device,
        expected_dice=segmenter.bundle.expected_dice(case.subset),
        dice=None if truth is None else _dice_of(known, segmentation.labels, truth),
        notices=(*segmentation.notices, *notices),
        seconds=segmentation.seconds,
        stages={},
        started=started,
        ended="",
        loading=segmenter.seconds,
    )
    before_writing = time.perf_counter()
    if progress is not None:
        progress(SEGMENT_SHARE, "writing")
    _write(result, truth)
    done = time.perf_counter()
    if progress is not None:
        progress(1.0, "done")
    seconds = {**segmentation.seconds, "write": done - before_writing, "total": done - start}
    stages = {
        **case.seconds,
        **{stage: seconds[stage] for stage in seconds if stage not in ("read and prepare", "total")},
    }
    return replace(result, seconds=seconds, stages=stages, ended=utc_now())


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {stage: round(value, 3) for stage, value in seconds.items()}


def utc_now() -> str:
    """The time as ISO 8601 in UTC, to the microsecond."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def _until_writing(progress: Optional[Progress]) -> Optional[Progress]:
    """The progress of the segmentation on a bar that ends when the files are written."""
    if progress is None:
        return None
    return lambda share, text: progress(SEGMENT_SHARE * share, text if share < 1.0 else "writing")


# --- before the computation ------------------------------------------------------------------------------------------


def _with_checked_outputs(request: CaseRequest, reference_image: Optional[sitk.Image]) -> CaseRequest:
    """The request with usable output paths (`~` expanded); given the reference, its geometry is checked as well."""
    overwrite = request.settings.overwrite

    if request.settings.segments == "regions":
        for path in request.outputs:
            if output_ending(path, SEGMENTATION_ENDINGS) not in REGION_ENDINGS:
                raise OutputError(f"{path}: overlapping regions can be written as {REGION_ENDINGS[0]} only")
    outputs = tuple(check_output(path, overwrite, reference_image=reference_image) for path in request.outputs)
    reports = tuple(check_output(path, overwrite, endings=REPORT_ENDINGS) for path in request.reports)
    quality = tuple(check_output(path, overwrite, endings=QUALITY_ENDINGS) for path in request.quality)
    probabilities = request.probabilities
    if probabilities is not None:
        endings = PROBABILITY_ENDINGS
        probabilities = check_output(probabilities, overwrite, endings=endings, reference_image=reference_image)
    keep = None if request.keep is None else request.keep.expanduser()
    request = replace(
        request, outputs=outputs, reports=reports, quality=quality, probabilities=probabilities, keep=keep
    )
    for path in request.kept:
        check_output(path, overwrite, endings=KEPT_ENDINGS)
    if request.stale and not overwrite:
        raise OutputError(
            f"{request.stale[0]} is of an earlier run with other sequences; choose another folder or allow overwriting."
        )
    others = [path for path in (request.ground_truth, request.brain_mask) if path is not None]
    refuse_collisions(request.files, [*request.inputs.sources.values(), *others])
    return request


def _ground_truth(request: CaseRequest, case: PreparedCase) -> tuple[Optional[np.ndarray], tuple[str, ...], list[str]]:
    """The ground truth's labels on the reference's grid, the regions that it knows, and notices; None without one."""
    path = request.ground_truth
    if path is None:
        return None, (), []
    truth = read_label_map(path, request.settings.ground_truth_convention)
    labels, notices = on_grid(truth, case.reference_image, case.reference)
    return labels, truth.known, [*truth.doubts, *notices]


def _dice_of(known: Sequence[str], labels: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    return {region: value for region, value in region_dice(labels, truth).items() if region in known}


# --- after it --------------------------------------------------------------------------------------------------------


def _write(result: CaseResult, truth: Optional[np.ndarray]) -> None:
    request, segmentation = result.request, result.segmentation
    settings, reference = request.settings, segmentation.reference_image
    metadata = _metadata(result)
    # Folders may be called by a patient's name.
    inputs = [*request.inputs.sources.values(), *([request.ground_truth] if request.ground_truth else [])]
    notices = [without_folders(notice, inputs) for notice in result.notices]
    with staged_outputs(request.files, settings.overwrite) as temporary:
        for path in request.outputs:
            write_segmentation(
                temporary[path], segmentation.labels, reference, segments=settings.segments,
                label_convention=settings.label_convention, metadata=metadata,
            )  # fmt: skip
        if request.probabilities is not None and segmentation.region_probabilities is not None:
            write_probabilities(
                temporary[request.probabilities], segmentation.region_probabilities, reference, metadata=metadata
            )
        if request.keep is not None:
            try:
                write_kept(segmentation.case, {path: temporary[path] for path in request.kept})
            except RuntimeError as error:  # ITK's kind of a full disk
                raise OutputError(f"{request.keep} could not be written; check free space and permissions.") from error
        for path in request.reports:
            write_report(
                temporary[path],
                images=segmentation.case.on_reference_grid(),
                labels=segmentation.labels,
                reference_image=reference,
                volumes_ml=segmentation.volumes_ml,
                title=request.title,
                subset=segmentation.case.subset,
                messages=notices,
                provenance=_report_provenance(result),
                ground_truth=truth,
                known=None if result.dice is None else tuple(result.dice),
            )
        for path in request.quality:
            write_quality_report(
                temporary[path],
                segmentation.case,
                segmentation.labels,
                title=request.title,
                notices=notices,
                seconds=segmentation.seconds,
                provenance=_report_provenance(result),
            )
    for path in request.stale:
        path.unlink()


def _provenance(result: CaseResult) -> dict[str, str]:
    """What made the result, as it may be handed on in headers and reports: input files by their names only."""
    names = {f"input {name}": source.name for name, source in result.request.inputs.sources.items()}
    return {**result.segmentation.provenance, **names}


def _metadata(result: CaseResult) -> dict[str, str]:
    """Provenance for a file's header."""
    texts = _provenance(result)
    texts["volumes_ml"] = json.dumps({key: round(value, 3) for key, value in result.segmentation.volumes_ml.items()})
    return {key.replace(" ", "_"): text for key, text in texts.items()}


def _report_provenance(result: CaseResult) -> dict[str, str]:
    expected = result.expected_dice
    if expected is None:
        return _provenance(result)
    text = ", ".join(f"{region} {value:.3f}" for region, value in expected.items())
    return {**_provenance(result), "mean Dice on validation with these sequences": text}


def print_result(result: CaseResult) -> None:
    """The result of one case for a person at a terminal."""
    for name, path in result.request.inputs.sources.items():
        print_line(f"{name:5} {path} ({result.request.inputs.reasons[name]})")
    headings = ["region", "volume (ml)", "Dice on validation"] + (["Dice here"] if result.dice else [])
    rows = []
    for item in (*REGIONS, *LABELS[:2]):
        volume = f"{result.segmentation.volumes_ml[item.key]:.2f}"
        scores = [result.expected_dice] + ([result.dice] if result.dice else [])
        rows.append([item.title, volume, *(region_text(score, item.key) for score in scores)])
    print_table(headings, rows)
    style = "yellow" if result.device.gpu_expected or result.used_device != result.device.name else ""
    used = " with ".join(filter(None, (result.used_device, result.accelerator)))
    print_line(f"device: {used}: {result.device.reason}", style)
    for notice in result.notices:
        print_line(f"note: {notice}", "yellow")
    for path in result.request.files:
        print_line(f"written: {path}")
    print_line(f"{result.seconds['total']:.1f} s. {RESEARCH_ONLY}")
