"""How well a segmentation agrees with a reference: Dice, HD95, NSD and volume error per region.

Empty masks follow one stated policy, `Status`: nothing is dropped and no NaN is returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from .regions import REGIONS, bounding_box, labels_to_regions, require_labels, voxel_volume_ml

HD95_PENALTY_MM = 373.13  # BraTS: the diagonal of its 240 x 240 x 155 mm volume
NSD_TOLERANCES_MM = (1.0, 2.0)
ROUNDING_MM = 1e-6


class Status:
    """Which of the two masks of a region are empty, and what the scores then are.

    "ok": neither; "both_empty": Dice 1, NSD 1, HD95 0; "missed" (prediction empty) and "fp_only" (reference empty):
    Dice 0, NSD 0, HD95 373.13 mm.
    """

    OK = "ok"
    BOTH_EMPTY = "both_empty"
    MISSED = "missed"
    FP_ONLY = "fp_only"

    @classmethod
    def of(cls, n_ref: int, n_pred: int) -> str:
        """The status for these voxel counts."""
        if n_ref and n_pred:
            return cls.OK
        if n_ref:
            return cls.MISSED
        return cls.FP_ONLY if n_pred else cls.BOTH_EMPTY


@dataclass(frozen=True)
class RegionScore:
    """Scores of one region. n_ref, n_pred: voxels; hd95: mm; nsd1, nsd2: at 1 and 2 mm; volume error: pred - ref."""

    region: str
    n_ref: int
    n_pred: int
    status: str
    dice: float
    hd95: float
    nsd1: float
    nsd2: float
    volume_error_ml: float


def dice(pred: np.ndarray, ref: np.ndarray) -> float:
    """Dice coefficient 2 |P and R| / (|P| + |R|) of two masks of one shape; 1 if both are empty."""
    pred, ref = _same_shape(np.asarray(pred, bool), np.asarray(ref, bool))
    total = int(np.count_nonzero(pred)) + int(np.count_nonzero(ref))
    return 2.0 * int(np.count_nonzero(pred & ref)) / total if total else 1.0


def region_dice(pred_labels: np.ndarray, ref_labels: np.ndarray) -> dict[str, float]:
    """Dice by region (WT, TC, ET) of two label maps (D, H, W), values 0 to 3; ValueError for other labels or shapes."""
    preds, refs = labels_to_regions(pred_labels), labels_to_regions(ref_labels)
    return {region.key: dice(preds[region.key], refs[region.key]) for region in REGIONS}


def surface_distances(pred: np.ndarray, ref: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Distances in mm from each surface voxel of `pred` to the surface of `ref`, and the reverse.

    pred, ref: non-empty masks (D, H, W); spacing: mm in that same order. A surface voxel is one that erosion with the
    6-neighbourhood removes, the outside of the array counting as background. Distances are between voxel centres.
    """
    surfaces = [surface_voxels(mask) for mask in (pred, ref)]
    return nearest_mm(surfaces[0], surfaces[1], spacing), nearest_mm(surfaces[1], surfaces[0], spacing)


def surface_voxels(mask: np.ndarray) -> np.ndarray:
    """(D, H, W) bool: those of `mask` that erosion with the 6-neighbourhood removes; outside lies background."""
    return np.asarray(mask & ~ndimage.binary_erosion(mask))


def nearest_mm(voxels: np.ndarray, target: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Distance in mm from the centre of each voxel of the mask `voxels` (in C order) to the nearest of `target`.

    Masks (D, H, W), `target` not empty; spacing: mm in that order. By a k-d tree: the cost grows with the voxels that
    are asked for and not with how far apart they lie, as a distance transform's does.
    """
    lengths = np.array(_require_spacing(spacing))
    from scipy.spatial import cKDTree  # Dice alone does not need it, and its import takes its time

    tree = cKDTree(np.argwhere(target) * lengths)
    return np.asarray(tree.query(np.argwhere(voxels) * lengths, workers=-1)[0])


def hd95(distances: tuple[np.ndarray, np.ndarray]) -> float:
    """Symmetric HD95 in mm of `surface_distances`: the larger of the two directed 95th percentiles (linear)."""
    return float(max(np.percentile(directed, 95) for directed in distances))


def nsd(distances: tuple[np.ndarray, np.ndarray], tolerance_mm: float) -> float:
    """Normalised surface Dice of `surface_distances`: the share of both surfaces' voxels within the tolerance."""
    # A distance that is the tolerance but for rounding (2 mm as 1.2 and 1.6) is within it.
    within = sum(int(np.count_nonzero(directed <= tolerance_mm + ROUNDING_MM)) for directed in distances)
    return within / sum(directed.size for directed in distances)


def region_scores(pred_labels: np.ndarray, ref_labels: np.ndarray, spacing: Sequence[float]) -> list[RegionScore]:
    """Scores of WT, TC and ET, in that order, of a predicted against a reference label map.

    pred_labels, ref_labels: (D, H, W), values 0 to 3; spacing: mm in the same axis order, that is the reverse of
    SimpleITK's GetSpacing(). Raises ValueError for other labels, differing shapes or unusable spacing.
    """
    pred_labels, ref_labels = _same_shape(require_labels(pred_labels), require_labels(ref_labels))
    spacing = _require_spacing(spacing)
    # Everything is measured inside the box around both tumours: the rest of the volume cannot change a score.
    box = bounding_box((pred_labels > 0) | (ref_labels > 0)) or (slice(0, 0),) * 3
    preds, refs = labels_to_regions(pred_labels[box]), labels_to_regions(ref_labels[box])
    return [_region_score(region.key, preds[region.key], refs[region.key], spacing) for region in REGIONS]


def _region_score(key: str, pred: np.ndarray, ref: np.ndarray, spacing: Sequence[float]) -> RegionScore:
    n_pred, n_ref = int(np.count_nonzero(pred)), int(np.count_nonzero(ref))
    status = Status.of(n_ref, n_pred)
    return RegionScore(
        region=key,
        n_ref=n_ref,
        n_pred=n_pred,
        status=status,
        dice=dice(pred, ref),
        volume_error_ml=(n_pred - n_ref) * voxel_volume_ml(spacing),
        **_surface_scores(pred, ref, spacing, status),
    )


def _surface_scores(pred: np.ndarray, ref: np.ndarray, spacing: Sequence[float], status: str) -> dict[str, float]:
    if status == Status.BOTH_EMPTY:
        return {"hd95": 0.0, "nsd1": 1.0, "nsd2": 1.0}
    if status != Status.OK:
        return {"hd95": HD95_PENALTY_MM, "nsd1": 0.0, "nsd2": 0.0}
    box = bounding_box(pred | ref)
    distances = surface_distances(pred[box], ref[box], spacing)
    nsd1, nsd2 = (nsd(distances, tolerance) for tolerance in NSD_TOLERANCES_MM)
    return {"hd95": hd95(distances), "nsd1": nsd1, "nsd2": nsd2}


def _same_shape(pred: np.ndarray, ref: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if pred.shape != ref.shape:
        raise ValueError(f"prediction {pred.shape} and reference {ref.shape} differ in shape")
    return pred, ref


def _require_spacing(spacing: Sequence[float]) -> tuple[float, ...]:
    values = tuple(float(value) for value in spacing)
    if len(values) != 3 or not all(np.isfinite(value) and value > 0 for value in values):
        raise ValueError(f"spacing must be three positive lengths in mm, not {values}")
    return values
