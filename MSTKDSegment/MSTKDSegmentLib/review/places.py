"""Where a segmentation is wrong: maps of right and wrong voxels, and the connected errors, the worst first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from ..metrics import ROUNDING_MM, nearest_mm, surface_voxels
from ..regions import REGION_KEYS, bounding_box, labels_to_regions, require_labels
from ..volume_checks import voxel_columns

RIGHT, INVENTED, MISSED = 1, 2, 3
"""Values of an error map: true positive, false positive, false negative."""
ORDERS = ("volume", "distance")
LEAST_PLACE_ML = 0.02


@dataclass(frozen=True)
class Place:
    """One connected error of a region (`kind` INVENTED or MISSED): its volume and how far it reaches.

    distance_mm: of its furthest voxel from what the other segmentation shows of the region; inf where it shows none.
    voxel: (z, y, x) of the voxel deepest inside the error; point: the same in LPS mm.
    """

    region: str
    kind: int
    volume_ml: float
    distance_mm: float
    voxel: tuple[int, int, int]
    point: tuple[float, float, float]

    @property
    def kind_text(self) -> str:
        """ "missed" or "invented"."""
        return "missed" if self.kind == MISSED else "invented"

    @property
    def point_ras(self) -> tuple[float, float, float]:
        """The point in Slicer's coordinates (RAS mm)."""
        x, y, z = self.point
        return -x, -y, z

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a distance of inf is None."""
        return {
            "region": self.region,
            "kind": self.kind_text,
            "volume_ml": self.volume_ml,
            "distance_mm": self.distance_mm if np.isfinite(self.distance_mm) else None,
            "voxel_zyx": self.voxel,
            "point_lps_mm": self.point,
        }


def error_map(prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(D, H, W) uint8 of two masks: 0, or RIGHT, INVENTED (in the prediction only), MISSED (in the reference only)."""
    result = np.zeros(prediction.shape, np.uint8)
    result[prediction & reference] = RIGHT
    result[prediction & ~reference] = INVENTED
    result[~prediction & reference] = MISSED
    return result


def error_maps(prediction: np.ndarray, reference: np.ndarray) -> dict[str, np.ndarray]:
    """`error_map` of WT, TC and ET of two label maps (D, H, W), values 0 to 3."""
    found, true = labels_to_regions(prediction), labels_to_regions(reference)
    return {key: error_map(found[key], true[key]) for key in found}


def worst_places(
    prediction: np.ndarray,
    reference: np.ndarray,
    image: sitk.Image,
    order: str = "volume",
    regions: Sequence[str] = REGION_KEYS,
    count: int = 20,
    least_ml: float = LEAST_PLACE_ML,
) -> list[Place]:
    """The worst connected errors (6-connected, at least `least_ml`) of two label maps (D, H, W) on the grid of `image`.

    order: "volume" or "distance" (furthest first; by volume where equal). An error that is the same in several regions
    is named once, with the outermost or, by distance, with the one in which it reaches furthest. Raises ValueError for
    an unknown order or labels that are not on the grid.
    """
    if order not in ORDERS:
        raise ValueError(f"unknown order {order!r}; use one of {', '.join(ORDERS)}")
    prediction, reference = require_labels(prediction), require_labels(reference)
    if not prediction.shape == reference.shape == image.GetSize()[::-1]:
        raise ValueError("the label maps are not on the image's grid")
    whole = bounding_box((prediction > 0) | (reference > 0))
    if whole is None:
        return []
    found, true = labels_to_regions(prediction[whole]), labels_to_regions(reference[whole])
    low = np.array([side.start for side in whole])
    voxel_ml = abs(float(np.linalg.det(voxel_columns(image)))) / 1000.0
    spacing = image.GetSpacing()[::-1]
    places: list[tuple[Place, tuple[int, ...]]] = []
    for key in regions:
        for kind, errors, other in (
            (INVENTED, found[key] & ~true[key], true[key]),
            (MISSED, true[key] & ~found[key], found[key]),
        ):
            for part in _worst_parts(errors, other, spacing, least_ml / voxel_ml, count, order):
                z, y, x = (int(n) for n in low + part.deepest)
                point = image.TransformIndexToPhysicalPoint((x, y, z))
                place = Place(key, kind, part.voxels * voxel_ml, part.furthest_mm, (z, y, x), point)
                places.append((place, part.box))
    return _ranked(places, order)[:count]


def _ranked(places: Sequence[tuple[Place, tuple[int, ...]]], order: str) -> list[Place]:
    def rank(place: Place) -> tuple[float, float]:
        by = (place.volume_ml, place.distance_mm)
        return by if order == "volume" else (by[1], by[0])

    kept: dict[tuple[int, float, tuple[int, ...]], Place] = {}
    for place, box in places:  # regions come from the outermost to the innermost
        same = kept.setdefault((place.kind, place.volume_ml, box), place)
        if order == "distance" and place.distance_mm > same.distance_mm:
            kept[(place.kind, place.volume_ml, box)] = place
    return sorted(kept.values(), key=rank, reverse=True)


class _Part(NamedTuple):
    """A connected error: voxels, furthest distance in mm, index (3,) of its deepest voxel, box (starts, stops)."""

    voxels: int
    furthest_mm: float
    deepest: np.ndarray
    box: tuple[int, ...]


def _worst_parts(
    errors: np.ndarray, other: np.ndarray, spacing: Sequence[float], least_voxels: float, count: int, order: str
) -> list[_Part]:
    """The `count` worst of the connected parts of the mask `errors`; `other`: what their distance is measured to."""
    numbered, number = ndimage.label(errors)
    voxels = np.bincount(numbered.ravel(), minlength=number + 1)
    large = [n for n in range(1, number + 1) if voxels[n] >= least_voxels]
    if not large:
        return []
    furthest = _furthest(numbered, large, other, spacing)
    boxes = ndimage.find_objects(numbered)
    worst = sorted(large, key=lambda n: (voxels[n], furthest[n]) if order == "volume" else (furthest[n], voxels[n]))
    parts = []
    for n in worst[::-1][:count]:
        box = boxes[n - 1]
        mask = np.pad(numbered[box] == n, 1)
        starts, stops = np.array([side.start for side in box]), [side.stop for side in box]
        deepest = starts + _deepest(mask, spacing) - 1
        parts.append(_Part(int(voxels[n]), float(furthest[n]), deepest, (*starts.tolist(), *stops)))
    return parts


def _deepest(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Index (3,) of the voxel of `mask` that lies furthest from its outside; of several the one in their middle."""
    depth = ndimage.distance_transform_edt(mask, sampling=spacing)
    candidates = np.argwhere(depth >= depth.max() - ROUNDING_MM)
    apart = np.linalg.norm((candidates - candidates.mean(axis=0)) * spacing, axis=1)
    return np.asarray(candidates[int(apart.argmin())])


def _furthest(numbered: np.ndarray, large: Sequence[int], other: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """By number of a part: the largest distance in mm of its voxels to the mask `other`, inf where that is empty."""
    if not other.any():
        return np.full(int(numbered.max()) + 1, np.inf)
    wanted = np.isin(numbered, large)
    furthest = np.zeros(int(numbered.max()) + 1)
    np.maximum.at(furthest, numbered[wanted], nearest_mm(wanted, surface_voxels(other), spacing))
    return furthest
