"""Tumour labels and the nested regions WT, TC and ET: conversions, conventions, volumes, clean-up, terminology.

Labels are mutually exclusive: 0 background, 1 NCR, 2 ED, 3 ET. Regions are nested: ET in TC = NCR + ET in
WT = NCR + ED + ET. Arrays are numpy (D, H, W). Source of the definitions: the BraTS challenges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
from scipy import ndimage

from .errors import InputError

BACKGROUND, NCR, ED, ET = 0, 1, 2, 3
CAVITY = 4  # the resection cavity, no part of the tumour: a fifth class that a network may have, never in a result


@dataclass(frozen=True)
class Structure:
    """One label or region: short and full name, the label values it covers, RGB colour in 0..1, SNOMED CT type."""

    key: str
    name: str
    labels: tuple[int, ...]
    colour: tuple[float, float, float]
    type_code: str
    type_meaning: str

    @property
    def title(self) -> str:
        """Name for a list or a legend, for example "Enhancing tumour (ET)"."""
        return f"{self.name} ({self.key})"

    @property
    def terminology(self) -> str:
        """Slicer's serialised `TerminologyEntry`: contexts, category, type and anatomic region, all SNOMED CT."""
        return (
            "Segmentation category and type - DICOM master list"
            "~SCT^49755003^Morphologically Altered Structure"
            f"~SCT^{self.type_code}^{self.type_meaning}~^^"
            "~Anatomic codes - DICOM master list~SCT^12738006^Brain~^^"
        )


RED, YELLOW, GREEN = (0.95, 0.15, 0.15), (1.0, 0.85, 0.1), (0.2, 0.8, 0.25)  # the paper's ET, NCR and ED
_NEOPLASM = ("86049000", "Neoplasm, Primary")
_ENHANCING = Structure("ET", "Enhancing tumour", (ET,), RED, *_NEOPLASM)

LABELS: tuple[Structure, ...] = (
    Structure("NCR", "Necrotic and non-enhancing tumour core", (NCR,), YELLOW, "6574001", "Necrosis"),
    Structure("ED", "Peritumoural oedema", (ED,), GREEN, "79654002", "Edema"),
    _ENHANCING,
)
# A region takes the colour of the label that only it adds, so that its outline looks the same either way.
REGIONS: tuple[Structure, ...] = (
    Structure("WT", "Whole tumour", (NCR, ED, ET), GREEN, *_NEOPLASM),
    Structure("TC", "Tumour core", (NCR, ET), YELLOW, *_NEOPLASM),
    _ENHANCING,
)

REGION_KEYS: tuple[str, ...] = tuple(region.key for region in REGIONS)

# For each convention: its value -> our label. RC, the resection cavity of BraTS 2024, is no part of the tumour.
CONVENTIONS: Mapping[str, Mapping[int, int]] = {
    "brats2023": {0: BACKGROUND, 1: NCR, 2: ED, 3: ET},
    "brats2021": {0: BACKGROUND, 1: NCR, 2: ED, 4: ET},
    "brats2024": {0: BACKGROUND, 1: NCR, 2: ED, 3: ET, 4: BACKGROUND},
    "msd": {0: BACKGROUND, 1: ED, 2: NCR, 3: ET},
}


def _convention(name: str) -> Mapping[int, int]:
    if name not in CONVENTIONS:
        raise InputError(f"Unknown label convention '{name}'; choose one of {', '.join(CONVENTIONS)}.")
    return CONVENTIONS[name]


def from_convention(labels: np.ndarray, convention: str) -> np.ndarray:
    """Labels of a known convention (integer values in any dtype) as ours, uint8 of the same shape.

    Raises InputError for an unknown convention and for values that it does not have (all are named).
    """
    table = _convention(convention)
    unknown = [value for value in np.unique(labels).tolist() if value not in table]
    if unknown:
        shown = ", ".join(f"{value:g}" for value in unknown[:8]) + (", ..." if len(unknown) > 8 else "")
        raise InputError(
            f"The segmentation holds the values {shown}, which the label convention '{convention}' "
            f"({', '.join(map(str, table))}) does not have; choose the convention that it was made in."
        )
    lookup = np.zeros(max(table) + 1, np.uint8)
    lookup[list(table)] = list(table.values())
    return lookup[np.asarray(labels).astype(np.uint8)]


def convention_values(convention: str) -> dict[int, int]:
    """Our tumour labels -> the values that stand for them in `convention`. Raises InputError if it is unknown."""
    return {label: value for value, label in _convention(convention).items() if label != BACKGROUND}


def to_convention(labels: np.ndarray, convention: str) -> np.ndarray:
    """Our labels in the values of a convention ("brats2021": ET = 4), uint8 of the same shape.

    Raises InputError for an unknown convention, ValueError if `labels` are not ours.
    """
    values = convention_values(convention)
    lookup = np.zeros(ET + 1, np.uint8)
    lookup[list(values)] = list(values.values())
    return lookup[require_labels(labels)]


def require_labels(labels: np.ndarray) -> np.ndarray:
    """`labels` as uint8, after checking that it is a 3-D integer array of 0 to 3; ValueError otherwise."""
    labels = np.asarray(labels)
    if labels.ndim != 3 or labels.dtype.kind not in "iub":
        raise ValueError(f"labels must be a 3-D integer array, not {labels.ndim}-D {labels.dtype}")
    if labels.size and (labels.min() < BACKGROUND or labels.max() > ET):
        raise ValueError(f"labels must be 0 to 3, not {labels.min()} to {labels.max()}")
    return labels.astype(np.uint8, copy=False)


def labels_to_regions(labels: np.ndarray) -> dict[str, np.ndarray]:
    """The nested regions of a label map: {"WT", "TC", "ET"} -> bool (D, H, W). ValueError if not our labels."""
    labels = require_labels(labels)
    return {"WT": labels != BACKGROUND, "TC": (labels == NCR) | (labels == ET), "ET": labels == ET}


def regions_to_labels(wt: np.ndarray, tc: np.ndarray, et: np.ndarray) -> np.ndarray:
    """Label map, uint8 (D, H, W), of three region masks of that shape.

    The outer region decides: tumour core outside the whole tumour, and enhancing tumour outside the tumour core,
    are dropped, so that ET in TC in WT holds whatever the masks were.
    """
    wt, tc, et = (np.asarray(mask, bool) for mask in (wt, tc, et))
    if not wt.shape == tc.shape == et.shape:
        raise ValueError(f"region masks differ in shape: {wt.shape}, {tc.shape}, {et.shape}")
    labels = np.where(wt, np.uint8(ED), np.uint8(BACKGROUND))
    core = wt & tc
    labels[core] = NCR
    labels[core & et] = ET
    return labels


def region_probabilities(class_probabilities: np.ndarray) -> np.ndarray:
    """Probabilities of WT, TC and ET, (3, D, H, W), from those of background, NCR, ED and ET, (4, D, H, W)."""
    if class_probabilities.ndim != 4 or class_probabilities.shape[0] != 4:
        raise ValueError(f"class probabilities must be (4, D, H, W), not {class_probabilities.shape}")
    p = class_probabilities
    return np.stack([1 - p[BACKGROUND], p[NCR] + p[ET], p[ET]])


def voxel_volume_ml(spacing: Sequence[float], direction: Optional[Sequence[float]] = None) -> float:
    """Volume of a voxel in millilitres, from spacing (mm, any order) and, where sheared, the 3x3 direction cosines."""
    volume_mm3 = float(np.prod(spacing))
    if direction is not None:
        volume_mm3 *= abs(float(np.linalg.det(np.reshape(direction, (3, 3)))))
    return volume_mm3 / 1000.0


def volumes_ml(labels: np.ndarray, voxel_ml: float) -> dict[str, float]:
    """Volumes in millilitres of NCR, ED, ET, WT and TC, from a label map and the volume of one voxel."""
    counts = np.bincount(require_labels(labels).ravel(), minlength=ET + 1)
    structures = {structure.key: structure for structure in (*LABELS, *REGIONS)}
    return {key: float(counts[list(item.labels)].sum() * voxel_ml) for key, item in structures.items()}


@dataclass(frozen=True)
class CleanUp:
    """Thresholds of `remove_small_components`, in millilitres; 0 or a missing region switches a rule off.

    min_component_ml: the least volume of a connected component of WT, TC or ET.
    min_total_et_ml: the least volume of ET as a whole.
    """

    min_component_ml: Mapping[str, float] = field(default_factory=dict)
    min_total_et_ml: float = 0.0

    def __post_init__(self) -> None:
        thresholds = {str(key): float(value) for key, value in self.min_component_ml.items()}
        unknown = sorted(set(thresholds) - {region.key for region in REGIONS})
        if unknown:
            raise ValueError(f"clean-up names unknown regions: {', '.join(unknown)}")
        if not all(math.isfinite(value) and value >= 0 for value in (*thresholds.values(), self.min_total_et_ml)):
            raise ValueError("clean-up volumes must be finite and not negative")
        object.__setattr__(self, "min_component_ml", thresholds)

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        return {"min_component_ml": dict(self.min_component_ml), "min_total_et_ml": self.min_total_et_ml}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CleanUp:
        """The inverse of `to_dict`; ValueError for unknown entries, so that none is silently without effect."""
        unknown = sorted(set(data) - {"min_component_ml", "min_total_et_ml"})
        if unknown:
            raise ValueError(f"clean-up has unknown entries: {', '.join(unknown)}")
        return cls(data.get("min_component_ml", {}), float(data.get("min_total_et_ml", 0.0)))


NO_CLEAN_UP = CleanUp()


def bounding_box(mask: np.ndarray) -> Optional[tuple[slice, ...]]:
    """The smallest box around the True voxels as slices, one per axis; None if there are none."""
    box: list[slice] = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not filled.size:
            return None
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)


def components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """26-connected components: their numbers 1, 2, ... on the grid (0 outside) and voxel counts, counts[0] = 0."""
    numbered = np.zeros(mask.shape, np.int32)
    box = bounding_box(mask)
    if box is None:
        return numbered, np.zeros(1, np.intp)
    numbered[box], _ = ndimage.label(mask[box], structure=np.ones((3,) * mask.ndim))
    counts = np.bincount(numbered[box].ravel())
    counts[0] = 0
    return numbered, counts


def _least_voxels(least_ml: float, voxel_ml: float) -> int:
    # The margin keeps what is exactly at the threshold in spite of rounding.
    return math.ceil(least_ml / voxel_ml - 1e-6)


def _small_components(mask: np.ndarray, least_voxels: int) -> np.ndarray:
    numbered, counts = components(mask)
    small = counts < least_voxels
    small[0] = False
    return small[numbered]


def remove_small_components(labels: np.ndarray, clean_up: CleanUp, voxel_ml: float) -> np.ndarray:
    """A cleaned copy of a label map, uint8 (D, H, W); `voxel_ml` is the volume of one voxel.

    26-connected components below their region's threshold take the label around them: WT becomes background, TC
    becomes ED, ET becomes NCR. Then, if ET as a whole is below its own threshold, all of it becomes NCR. Regions go
    from the outside in; an inner rule never changes an outer region, so cleaning twice equals cleaning once.
    """
    labels = require_labels(labels).copy()
    box = bounding_box(labels != BACKGROUND)
    if box is None:
        return labels
    inside = labels[box]  # a view: changing it changes `labels`
    for key, replacement in (("WT", BACKGROUND), ("TC", ED), ("ET", NCR)):
        least_ml = clean_up.min_component_ml.get(key, 0.0)
        if least_ml > 0:
            mask = labels_to_regions(inside)[key]
            inside[_small_components(mask, _least_voxels(least_ml, voxel_ml))] = replacement
    enhancing = inside == ET
    if np.count_nonzero(enhancing) < _least_voxels(clean_up.min_total_et_ml, voxel_ml):
        inside[enhancing] = NCR
    return labels
