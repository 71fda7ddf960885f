"""Challenge-ready patients as a clinical scanner would have shown them, and what the product still makes of them.

The head is turned, sequences move against each other, two of them get thick slices with gaps, all are acquired on
oblique grids, and a skull-like shell can be put around the brain. As everything is known, errors can be measured.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Callable

import numpy as np
import SimpleITK as sitk
from MSTKDSegmentLib.alignment import rigid_matrix, samples
from MSTKDSegmentLib.geometry import array_to_image, to_native
from MSTKDSegmentLib.metrics import region_dice
from MSTKDSegmentLib.modalities import MODALITIES
from MSTKDSegmentLib.overlap import find_foreground
from MSTKDSegmentLib.pipeline import PreparedCase, Segmenter
from MSTKDSegmentLib.preparation_record import READY, Wishes
from MSTKDSegmentLib.preprocess import fill_holes
from MSTKDSegmentLib.registration import as_transform, centre, composed, distance_mm, inverted
from MSTKDSegmentLib.volumes import read_volume
from scipy import ndimage

from training.cases import LabelledCase
from training.labels import our_labels, read_label_values

HEAD_DEGREES = (10.0, 20.0)
MOTION_MM, MOTION_DEGREES = 10.0, 8.0
OBLIQUE_DEGREES = 20.0
SLICE_MM, THICKNESS_MM = 5, 4  # the rest is the gap
ROOM_MM = 30
# The shell: thickness in mm, and intensity as a multiple of the brain's median, of fluid, bone and scalp.
SHELL_MM = (3.0, 6.0, 8.0)
SHELL = {"T1": (0.3, 0.1, 1.9), "T1Gd": (0.3, 0.1, 1.9), "T2": (2.2, 0.1, 1.3), "FLAIR": (0.3, 0.1, 1.5)}
REFERENCE = "T1Gd"  # stays thin: what the others are measured against


@dataclass(frozen=True)
class ClinicalCase:
    """`images` as acquired; `matrices` (3, 4) take points of the untouched patient to each image's space (LPS mm).

    `labels` and `brain` lie on the untouched patient's grid, `thick` names the sequences with thick slices.
    """

    images: Mapping[str, sitk.Image]
    matrices: Mapping[str, np.ndarray]
    labels: sitk.Image
    brain: sitk.Image
    thick: tuple[str, ...]


def degraded(case: LabelledCase, seed: int, shell: bool, sequences: Sequence[str] = MODALITIES) -> ClinicalCase:
    """`case` in clinical form, or some of its `sequences`; the same seed gives the same movements, noise and grids."""
    rng = np.random.default_rng(seed)
    images = {name: read_volume(case.images[name]).image for name in {REFERENCE, *sequences}}
    first = images[REFERENCE]
    mask = fill_holes(find_foreground(first).mask)
    others = [pair for pair in combinations(MODALITIES, 2) if REFERENCE not in pair]
    thick = others[seed % len(others)]
    middle = centre(first, mask)
    head = rigid_matrix(np.r_[rng.uniform(-15, 15, 3), _along(rng, rng.uniform(*HEAD_DEGREES))], middle)
    matrices, acquired = {}, {}
    for name in sequences:
        there = head[:, :3] @ middle + head[:, 3]
        motion = np.r_[_along(rng, MOTION_MM), _along(rng, MOTION_DEGREES)]
        matrices[name] = head if name == REFERENCE else composed(rigid_matrix(motion, there), head)
        image = _with_shell(images[name], mask, SHELL[name], rng) if shell else images[name]
        turn = rigid_matrix(np.r_[np.zeros(3), _along(rng, rng.uniform(0, OBLIQUE_DEGREES))], np.zeros(3))[:, :3]
        axis = int(rng.integers(3)) if name in thick else None
        acquired[name] = _acquired(
            image, matrices[name], matrices[name][:, :3] @ middle + matrices[name][:, 3], turn, axis
        )
    labels = our_labels(case, read_label_values(case))
    return ClinicalCase(acquired, matrices, labels, array_to_image(mask, first), thick)


def _along(rng: np.random.Generator, length: float) -> np.ndarray:
    """A vector (3,) of this length in a random direction."""
    vector = rng.normal(size=3)
    return vector * (length / np.linalg.norm(vector))


def _with_shell(image: sitk.Image, mask: np.ndarray, levels: Sequence[float], rng: np.random.Generator) -> sitk.Image:
    """The brain in fluid, bone and scalp, with noise; the volume grows by `ROOM_MM` on every side (1 mm voxels)."""
    voxels = sitk.GetArrayFromImage(image)
    median = float(np.median(voxels[mask]))
    padded, inside = np.pad(np.where(mask, voxels, 0), ROOM_MM), np.pad(mask, ROOM_MM)
    distance = ndimage.distance_transform_edt(~inside)
    borders = np.cumsum(SHELL_MM)
    for level, low, high in zip(levels, (0.0, *borders[:-1]), borders):
        layer = (distance > low) & (distance <= high)
        padded[layer] = median * level * (1 + 0.1 * rng.standard_normal(np.count_nonzero(layer)))
    noise = 0.02 * median * rng.standard_normal((2, *padded.shape)).astype(np.float32)
    grown = sitk.GetImageFromArray(np.hypot(padded + noise[0], noise[1]).astype(np.float32))
    grown.SetDirection(image.GetDirection())
    grown.SetSpacing(image.GetSpacing())
    grown.SetOrigin(image.TransformContinuousIndexToPhysicalPoint([-float(ROOM_MM)] * 3))
    return grown


def _acquired(
    image: sitk.Image, matrix: np.ndarray, middle: np.ndarray, turn: np.ndarray, thick_axis: int | None
) -> sitk.Image:
    """`image` moved by `matrix`, on an oblique grid around `middle`; slices along `thick_axis` (0: x) get gaps."""
    side = 240
    fine = sitk.Image([side] * 3, sitk.sitkFloat32)
    fine.SetDirection(turn.ravel().tolist())
    fine.SetOrigin((middle - turn @ np.full(3, (side - 1) / 2)).tolist())
    moved = sitk.Resample(image, fine, as_transform(inverted(matrix)), sitk.sitkLinear, 0.0)
    if thick_axis is None:
        return moved
    voxels = np.moveaxis(sitk.GetArrayFromImage(moved), 2 - thick_axis, 0)
    slabs = voxels.reshape(side // SLICE_MM, SLICE_MM, side, side)[:, :THICKNESS_MM].mean(axis=1)
    thick = sitk.GetImageFromArray(np.ascontiguousarray(np.moveaxis(slabs, 0, 2 - thick_axis)))
    spacing, offset = [1.0] * 3, [0.0] * 3
    spacing[thick_axis], offset[thick_axis] = float(SLICE_MM), (THICKNESS_MM - 1) / 2
    thick.SetDirection(moved.GetDirection())
    thick.SetSpacing(spacing)
    thick.SetOrigin(moved.TransformContinuousIndexToPhysicalPoint(offset))
    return thick


def measure(case: LabelledCase, segmenter: Segmenter, seed: int, shell: bool) -> dict[str, Any]:
    """Dice of the untouched and of the degraded patient, registration errors (mm), Dice of the brain mask, seconds."""
    clinical = degraded(case, seed, shell)
    untouched = segmenter.segment(case.sources(), reference=REFERENCE, wishes=READY)
    started = time.perf_counter()
    result = segmenter.segment(dict(clinical.images), reference=REFERENCE, wishes=Wishes(extractor="own"))
    seconds = time.perf_counter() - started
    there = as_transform(inverted(clinical.matrices[REFERENCE]))
    truth = sitk.Resample(clinical.labels, result.reference_image, there, sitk.sitkNearestNeighbor, 0)
    before = region_dice(untouched.labels, sitk.GetArrayViewFromImage(clinical.labels))
    after = region_dice(result.labels, sitk.GetArrayViewFromImage(truth))
    return {
        "case": case.name,
        "shell": shell,
        "thick": list(clinical.thick),
        "dice_untouched": before,
        "dice": after,
        "lost": float(np.mean([before[key] - after[key] for key in before])),
        "registration_error_mm": _errors(clinical, result.case),
        "brain_dice": _brain_dice(clinical, result.case, there),
        "challenge_ready": result.case.record.challenge_ready,
        "seconds": {**result.case.record.seconds, "total": seconds},
        "notices": list(result.notices),
    }


def _errors(clinical: ClinicalCase, case: PreparedCase) -> dict[str, float]:
    mask = sitk.GetArrayViewFromImage(clinical.brain).astype(bool)
    points = samples(clinical.brain, mask, 2000).points
    to_reference = clinical.matrices[REFERENCE]
    here = points @ to_reference[:, :3].T + to_reference[:, 3]
    errors = {}
    for name in case.subset:
        if name == REFERENCE:
            continue
        true = composed(clinical.matrices[name], inverted(to_reference))
        found = case.matrix_from_reference(name)
        errors[name] = distance_mm(found, true, here.tolist())
    return errors


def _brain_dice(clinical: ClinicalCase, case: PreparedCase, there: sitk.Transform) -> float:
    reference = case.reference_image
    found = to_native(case.brain, case.grid, reference, is_label=True, matrix=case.matrix(REFERENCE)).astype(bool)
    image = sitk.Resample(clinical.brain, reference, there, sitk.sitkNearestNeighbor, 0)
    true = sitk.GetArrayViewFromImage(image).astype(bool)
    return float(2 * np.count_nonzero(found & true) / (np.count_nonzero(found) + np.count_nonzero(true)))


def run(cases: Sequence[LabelledCase], segmenter: Segmenter, told: Callable[[str], None]) -> dict[str, Any]:
    """`measure` of each case, with and without the shell, and the means."""
    rows = []
    for number, case in enumerate(cases):
        for shell in (False, True):
            row = measure(case, segmenter, number, shell)
            rows.append(row)
            errors = ", ".join(f"{name} {value:.2f}" for name, value in row["registration_error_mm"].items())
            what = f"{case.name}{' with a shell' if shell else ''}: thick {'+'.join(row['thick'])}"
            told(
                f"{what}; Dice lost {row['lost']:.3f}; registration error (mm) {errors}; "
                f"brain {row['brain_dice']:.3f}; {row['seconds']['total']:.0f} s"
            )
    return {"n": len(cases), "mean": _means(rows), "cases": rows}


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    means = {}
    for shell in (False, True):
        part = [row for row in rows if row["shell"] is shell]
        errors = [value for row in part for value in row["registration_error_mm"].values()]
        means["with shell" if shell else "without shell"] = {
            "lost": float(np.mean([row["lost"] for row in part])),
            "registration_error_mm": float(np.mean(errors)),
            "largest_registration_error_mm": float(np.max(errors)),
            "brain_dice": float(np.mean([row["brain_dice"] for row in part])),
            "seconds": float(np.median([row["seconds"]["total"] for row in part])),
        }
    return means
