"""Looking over labelled cases before training: what is wrong with which file, what looks odd, what occurs twice."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from MSTKDSegmentLib.errors import InputError
from MSTKDSegmentLib.overlap import check_overlap, default_reference, find_foreground
from MSTKDSegmentLib.pipeline import Source
from MSTKDSegmentLib.preprocess import fill_holes
from MSTKDSegmentLib.volume_checks import voxel_columns
from MSTKDSegmentLib.volumes import Volume, read_volume

from training.cases import LabelledCase
from training.files import write_text
from training.labels import convention_of, our_labels, read_label_values
from training.parallel import each

ERROR, WARNING, INFO = "error", "warning", "info"
# Annotators draw a little beyond the stripped brain; more than that hints at a shifted or foreign segmentation.
LEAST_INSIDE, EXPECTED_INSIDE = 0.5, 0.95
# Grids closer than this hold the same voxels: headers are rounded, and 0.01 mm is far below a voxel.
GRID_TOLERANCE_MM = 0.01


@dataclass(frozen=True)
class Finding:
    """`severity` is "error" (the case cannot be used), "warning" (look at it) or "info"; `text` is one line."""

    severity: str
    text: str


@dataclass(frozen=True)
class CaseReport:
    """What was found in one case. `voxel_sha256`: of each sequence's voxels; `label_sha256`: of our labels."""

    name: str
    patient: str
    layout: str
    convention: str = ""
    reason: str = ""
    label_voxels: Mapping[str, int] = field(default_factory=dict)
    voxel_sha256: Mapping[str, str] = field(default_factory=dict)
    label_sha256: str = ""
    findings: tuple[Finding, ...] = ()

    @property
    def usable(self) -> bool:
        return not any(finding.severity == ERROR for finding in self.findings)


def check_cases(
    cases: Sequence[LabelledCase], processes: int = 1, told: Callable[[str], None] | None = None
) -> list[CaseReport]:
    """A report for each case, in order, with what only the comparison of all of them shows (copies, patients).

    Nothing is raised for a bad case. `told` gets a line a case as it is done.
    """
    reports = []
    for number, report in enumerate(each(check_case, cases, processes), start=1):
        reports.append(report)
        if told is not None:
            worst = [finding.text for finding in report.findings if finding.severity != INFO]
            told(f"{number}/{len(cases)} {report.name}: {'; '.join(worst) or 'ok'}")
    return _compared(reports)


def check_case(case: LabelledCase) -> CaseReport:
    """One case by itself: files, geometry, intensities, label values."""
    findings: list[Finding] = []
    volumes = _volumes(case, findings)
    hashes = {modality: voxel_sha256(volume.image) for modality, volume in volumes.items()}
    for digest, count in Counter(hashes.values()).items():
        if count > 1:
            same = " and ".join(modality for modality, other in hashes.items() if other == digest)
            findings.append(Finding(ERROR, f"{same} hold the same voxels; one of the files is misnamed or copied"))
    report = CaseReport(case.name, case.patient, case.layout, voxel_sha256=hashes)
    brain = _brain(volumes, findings)
    try:
        values = read_label_values(case)
        convention, reason = convention_of(case, np.unique(sitk.GetArrayViewFromImage(values)).tolist())
        labels = our_labels(case, values, keep_cavity=True)
    except InputError as error:
        return replace(report, findings=(*findings, Finding(ERROR, str(error))))
    counts = np.bincount(sitk.GetArrayViewFromImage(labels).ravel(), minlength=5).tolist()
    if not any(counts[1:4]):
        findings.append(Finding(WARNING, f"{case.segmentation}: no tumour is labelled"))
    elif brain is not None:
        findings += _label_place(case, labels, brain, volumes)
    return replace(
        report,
        convention=convention,
        reason=reason,
        label_voxels=dict(zip(("NCR", "ED", "ET", "RC"), counts[1:])),
        label_sha256=voxel_sha256(labels),
        findings=tuple(findings),
    )


def voxel_sha256(image: sitk.Image) -> str:
    """sha256 of shape and voxels, so that a copy under another name or with another header is recognised."""
    array = np.ascontiguousarray(sitk.GetArrayViewFromImage(image))
    digest = hashlib.sha256(f"{array.shape} {array.dtype}".encode())
    digest.update(array.data)
    return digest.hexdigest()


def voxel_hashes(case: LabelledCase) -> dict[str, str]:
    """sha256 by sequence, and "labels" of our labels; InputError for a case that cannot be read."""
    hashes = {modality: voxel_sha256(_volume(source).image) for modality, source in case.sources().items()}
    return {**hashes, "labels": voxel_sha256(our_labels(case, read_label_values(case), keep_cavity=True))}


# --- one case -------------------------------------------------------------------------------------------------------


def _volume(source: Source) -> Volume:
    return source if isinstance(source, Volume) else read_volume(str(source))


def _volumes(case: LabelledCase, findings: list[Finding]) -> dict[str, Volume]:
    """The sequences that can be read; the readers refuse damaged, empty, constant and NaN-holding volumes."""
    volumes = {}
    try:
        for modality, source in case.sources().items():
            try:
                volumes[modality] = _volume(source)
            except InputError as error:
                findings.append(Finding(ERROR, f"{modality}: {error}"))
    except InputError as error:  # the file that holds all four
        findings.append(Finding(ERROR, str(error)))
    return volumes


def _brain(volumes: Mapping[str, Volume], findings: list[Finding]) -> sitk.Image | None:
    """The brain on the reference sequence, uint8; notes what is wrong with the geometry of the sequences."""
    if not volumes:
        return None
    found = {modality: find_foreground(volume.image) for modality, volume in volumes.items()}
    unstripped = [modality for modality, foreground in found.items() if not foreground.stripped]
    if unstripped:
        findings.append(Finding(WARNING, f"{', '.join(unstripped)}: the skull seems to be still there"))
    reference = default_reference({modality: volume.image for modality, volume in volumes.items()})
    others = [m for m, volume in volumes.items() if not same_grid(volume.image, volumes[reference].image)]
    if others:
        findings.append(Finding(WARNING, f"{', '.join(others)}: on another grid than {reference}; will be resampled"))
    try:
        warnings = check_overlap(volumes, {modality: foreground.mask for modality, foreground in found.items()})
        findings += [Finding(WARNING, text) for text in warnings]
    except InputError as error:
        findings.append(Finding(ERROR, str(error)))
    image = sitk.GetImageFromArray(fill_holes(found[reference].mask).astype(np.uint8))
    image.CopyInformation(volumes[reference].image)
    return image


def same_grid(first: sitk.Image, second: sitk.Image) -> bool:
    """Whether the corners of two images lie in the same place, and their voxels with them."""
    if first.GetSize() != second.GetSize():
        return False
    size = np.array(first.GetSize())
    shift = np.array(first.GetOrigin()) - second.GetOrigin()
    turned = (voxel_columns(first) - voxel_columns(second)) * (size - 1)
    return bool(np.abs(shift).max() < GRID_TOLERANCE_MM and np.abs(turned).max() < GRID_TOLERANCE_MM)


def _label_place(
    case: LabelledCase, labels: sitk.Image, brain: sitk.Image, volumes: Mapping[str, Volume]
) -> list[Finding]:
    findings = []
    if not any(same_grid(labels, volume.image) for volume in volumes.values()):
        text = f"{case.segmentation}: on a grid of its own; will be resampled"
        findings.append(Finding(WARNING, text))
    tumour = sitk.GetArrayViewFromImage(labels) > 0
    same = same_grid(labels, brain)
    moved = brain if same else sitk.Resample(brain, labels, sitk.Transform(), sitk.sitkNearestNeighbor)
    inside = float(np.mean(sitk.GetArrayViewFromImage(moved)[tumour] > 0))
    if inside < EXPECTED_INSIDE:
        severity = ERROR if inside < LEAST_INSIDE else WARNING
        text = f"{case.segmentation}: only {100 * inside:.0f} % of the labelled voxels lie inside the brain"
        findings.append(Finding(severity, f"{text}; check that it belongs to these images"))
    return findings


# --- all cases ------------------------------------------------------------------------------------------------------


def _compared(reports: Sequence[CaseReport]) -> list[CaseReport]:
    extra: dict[str, list[Finding]] = defaultdict(list)
    for names in shared_voxels({report.name: report.voxel_sha256 for report in reports}):
        for name in names:
            others = ", ".join(other for other in names if other != name)
            text = f"holds a sequence with the very voxels of {others}; a split counts them as one patient"
            extra[name].append(Finding(WARNING, text))
    patients: dict[str, list[str]] = defaultdict(list)
    for report in reports:
        patients[report.patient].append(report.name)
    for patient, names in patients.items():
        for name in names if len(names) > 1 else []:
            others = ", ".join(other for other in names if other != name)
            extra[name].append(Finding(INFO, f"of the same patient ({patient}) as {others}"))
    for report in _thinly_decided(reports):
        extra[report.name].append(
            Finding(WARNING, f"read as {report.convention} ({report.reason}), unlike others of this set; name one")
        )
    return [replace(r, findings=(*r.findings, *extra[r.name])) for r in reports]


def shared_voxels(hashes: Mapping[str, Mapping[str, str]]) -> list[list[str]]:
    """Groups of two or more case names that hold a sequence with identical voxels, sorted."""
    owners: dict[str, set[str]] = defaultdict(set)
    for name, digests in hashes.items():
        for key, digest in digests.items():
            if key != "labels":  # empty segmentations are alike without being copies
                owners[digest].add(name)
    return sorted({tuple(sorted(names)): sorted(names) for names in owners.values() if len(names) > 1}.values())


def _thinly_decided(reports: Iterable[CaseReport]) -> list[CaseReport]:
    """Cases of no known collection whose label 4 was read as ET while others of the set were read with ET = 3."""
    own = [report for report in reports if report.layout in ("folder", "datalist") and report.convention]
    with_3 = any(r.convention in ("brats2023", "brats2024") and r.label_voxels.get("ET") for r in own)
    return [r for r in own if with_3 and r.convention == "brats2021" and r.reason.startswith("holds")]


# --- report ---------------------------------------------------------------------------------------------------------


def write_report(reports: Sequence[CaseReport], folder: Path, problems: Sequence[str] = ()) -> Path:
    """Write `checks.json` and `checks.md` into `folder`; gives the path of the latter. OutputError if it cannot be.

    `problems` are those of the discovery: what looks like a case and could not be taken up.
    """
    data = {"format": 1, "problems": list(problems), "cases": [asdict(report) for report in reports]}
    write_text(folder / "checks.json", json.dumps(data, indent=1))
    write_text(folder / "checks.md", report_markdown(reports, problems))
    return folder / "checks.md"


def read_hashes(path: Path) -> dict[str, dict[str, str]]:
    """Usable case -> sha256 by sequence and "labels" from `checks.json` (or its folder), for `splits.make_splits`.

    Raises FileNotFoundError, and ValueError for a file that is no such report.
    """
    file = path / "checks.json" if path.is_dir() else path
    try:
        cases = json.loads(file.read_text(encoding="utf-8"))["cases"]
        usable = [case for case in cases if all(finding["severity"] != ERROR for finding in case["findings"])]
        return {case["name"]: {**case["voxel_sha256"], "labels": case["label_sha256"]} for case in usable}
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: not a report of `check` ({error!r}); run that command again") from error


def report_markdown(reports: Sequence[CaseReport], problems: Sequence[str] = ()) -> str:
    """Counts, then the findings by severity, then a table of conventions."""
    unusable = [report for report in reports if not report.usable]
    lines = ["# Check of the labelled cases", ""]
    lines += [f"{len(reports)} cases, {len(unusable)} of them unusable; {len(problems)} could not be taken up.", ""]
    if problems:
        lines += ["## Not taken up", "", *(f"- {problem}" for problem in problems), ""]
    for severity, title in ((ERROR, "Errors"), (WARNING, "Warnings"), (INFO, "Notes")):
        found = [f"- **{r.name}**: {f.text}" for r in reports for f in r.findings if f.severity == severity]
        lines += [f"## {title}", "", *found, ""] if found else []
    counts = Counter((r.convention, r.reason) for r in reports if r.convention)
    lines += ["## Label conventions", "", "| convention | why | cases |", "|---|---|---|"]
    lines += [f"| {convention} | {reason} | {n} |" for (convention, reason), n in sorted(counts.items())]
    return "\n".join(lines) + "\n"
