"""All figures of a segmentation against a reference, by region, with one policy for empty masks (`metrics.Status`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

import numpy as np
from scipy import ndimage

from ..metrics import RegionScore, Status, region_scores
from ..regions import REGION_KEYS, bounding_box, components, labels_to_regions, require_labels, voxel_volume_ml

# BraTS 2023 (Saluja et al., lesion-wise metrics): parts of the reference nearer than this to each other are one lesion,
# and lesions of at most 50 mm3 do not count.
LESION_MARGIN_MM = 3.0
LEAST_LESION_ML = 0.05


@dataclass(frozen=True)
class LesionScore:
    """Lesions of the reference, how many of them the prediction overlaps, and how many parts of it lie elsewhere.

    dice: the mean over lesions and false ones (those count 0), 1 where there is neither; f1: of detection.
    """

    reference: int
    found: int
    false: int
    dice: float

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN) of lesions; 1 where there are none and none is marked."""
        total = self.reference + self.found + self.false
        return 2 * self.found / total if total else 1.0


@dataclass(frozen=True)
class RegionReview:
    """One region: `score` (Dice, HD95, NSD, volumes), and share of the reference found, of the prediction right.

    sensitivity and precision are 1 where both masks are empty and 0 where one is.
    """

    score: RegionScore
    reference_ml: float
    prediction_ml: float
    sensitivity: float
    precision: float
    lesions: LesionScore

    @property
    def region(self) -> str:
        """WT, TC or ET."""
        return self.score.region

    @property
    def volume_error_percent(self) -> Optional[float]:
        """Of the reference's volume; None where that is empty."""
        return 100 * self.score.volume_error_ml / self.reference_ml if self.reference_ml else None

    def to_dict(self) -> dict[str, Any]:
        """One flat row: numbers and the status."""
        return {
            "region": self.region,
            "status": self.score.status,
            "dice": self.score.dice,
            "hd95_mm": self.score.hd95,
            "nsd_1mm": self.score.nsd1,
            "nsd_2mm": self.score.nsd2,
            "reference_ml": self.reference_ml,
            "prediction_ml": self.prediction_ml,
            "volume_error_ml": self.score.volume_error_ml,
            "volume_error_percent": self.volume_error_percent,
            "sensitivity": self.sensitivity,
            "precision": self.precision,
            "lesions_reference": self.lesions.reference,
            "lesions_found": self.lesions.found,
            "lesions_false": self.lesions.false,
            "lesion_f1": self.lesions.f1,
            "lesion_dice": self.lesions.dice,
        }


def review_scores(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    known: Sequence[str] = REGION_KEYS,
    direction: Optional[Sequence[float]] = None,
) -> list[RegionReview]:
    """Figures of WT, TC and ET (those of `known`) of two label maps (D, H, W), values 0 to 3.

    spacing: mm in the arrays' axis order; direction: the image's nine cosines where its axes may be sheared (volumes
    alone follow them). Raises ValueError for other labels, differing shapes or unusable spacing.
    """
    prediction, reference = require_labels(prediction), require_labels(reference)
    voxel_ml = voxel_volume_ml(spacing, direction)
    scores = {score.region: score for score in region_scores(prediction, reference, spacing)}
    box = bounding_box((prediction > 0) | (reference > 0)) or (slice(0, 0),) * 3
    found, true = labels_to_regions(prediction[box]), labels_to_regions(reference[box])
    return [_review(scores[key], found[key], true[key], spacing, voxel_ml) for key in scores if key in known]


def _review(
    score: RegionScore, found: np.ndarray, true: np.ndarray, spacing: Sequence[float], voxel_ml: float
) -> RegionReview:
    both = int(np.count_nonzero(found & true))
    # The voxel's volume where axes are sheared.
    score = replace(score, volume_error_ml=(score.n_pred - score.n_ref) * voxel_ml)
    empty = 1.0 if score.status == Status.BOTH_EMPTY else 0.0
    return RegionReview(
        score=score,
        reference_ml=score.n_ref * voxel_ml,
        prediction_ml=score.n_pred * voxel_ml,
        sensitivity=both / score.n_ref if score.n_ref else empty,
        precision=both / score.n_pred if score.n_pred else empty,
        lesions=lesion_score(found, true, spacing, voxel_ml),
    )


def lesion_score(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float], voxel_ml: Optional[float] = None
) -> LesionScore:
    """Lesion-wise detection and Dice of two masks (D, H, W); spacing: mm in that axis order.

    A lesion is what hangs together in the reference after it is widened by `LESION_MARGIN_MM`; parts of the prediction
    (26-connected) that reach into the widened lesion belong to it, all others are false. Of both, what has at most
    `LEAST_LESION_ML` does not count. Source: BraTS 2023, lesion-wise metrics; unlike there, a lesion is found only
    where the prediction overlaps it, not where it comes near.
    """
    voxel_ml = voxel_volume_ml(spacing) if voxel_ml is None else voxel_ml
    margin = [int(np.ceil(LESION_MARGIN_MM / one)) + 1 for one in spacing]
    box = bounding_box(prediction | reference)
    if box is None:
        return LesionScore(0, 0, 0, 1.0)
    pads = [(one, one) for one in margin]
    found, true = np.pad(prediction[box], pads), np.pad(reference[box], pads)
    parts, part_voxels = components(found)
    lesions, _ = components(_widened(true, spacing, margin))
    inside = true & (lesions > 0)
    lesion_voxels = np.bincount(lesions[inside], minlength=int(lesions.max()) + 1)
    counted = [n for n in range(1, len(lesion_voxels)) if lesion_voxels[n] * voxel_ml > LEAST_LESION_ML]
    # Which part of the prediction reaches into which widened lesion.
    touching = (parts > 0) & (lesions > 0)
    pairs = {(int(a), int(b)) for a, b in zip(parts[touching], lesions[touching])} if counted else set()
    pairs = {(part, lesion) for part, lesion in pairs if lesion in counted}
    of_lesion: dict[int, list[int]] = {}
    for part, lesion in pairs:
        of_lesion.setdefault(lesion, []).append(part)
    matched = {part for part, _lesion in pairs}
    false = [n for n in range(1, len(part_voxels)) if n not in matched and part_voxels[n] * voxel_ml > LEAST_LESION_ML]
    overlaps = []
    for lesion in counted:
        mine = of_lesion.get(lesion, [])
        common = int(np.count_nonzero(np.isin(parts[inside & (lesions == lesion)], mine))) if mine else 0
        total = int(lesion_voxels[lesion]) + int(part_voxels[mine].sum())
        overlaps.append(2 * common / total)
    number = len(counted) + len(false)
    return LesionScore(
        reference=len(counted),
        found=sum(value > 0 for value in overlaps),
        false=len(false),
        dice=sum(overlaps) / number if number else 1.0,
    )


def _widened(mask: np.ndarray, spacing: Sequence[float], margin: Sequence[int]) -> np.ndarray:
    """`mask` and all voxels within `LESION_MARGIN_MM` of it, which is at most `margin` voxels."""
    wide = np.zeros_like(mask)
    tight = bounding_box(mask)
    if tight is not None:  # the mask keeps `margin` from the array's edges
        box = tuple(slice(side.start - room, side.stop + room) for side, room in zip(tight, margin))
        distance = ndimage.distance_transform_edt(~mask[box], sampling=tuple(map(float, spacing)))
        wide[box] = distance <= LESION_MARGIN_MM
    return wide
