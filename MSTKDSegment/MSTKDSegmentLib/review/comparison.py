"""One patient, one or several predictions, with a ground truth or without: everything that a front end shows of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import SimpleITK as sitk

from ..metrics import region_dice
from ..regions import REGION_KEYS, bounding_box, volumes_ml
from ..volume_checks import voxel_columns
from .label_maps import LabelMap, on_grid
from .places import Place, error_maps, worst_places
from .scores import RegionReview, review_scores

# A segmentation file may hold the box around its tumour only: what another marks beside it is compared too, unless the
# grid would become larger than any head, which two patients' tumours are apart.
LARGEST_GRID_MM = 400.0


@dataclass(frozen=True)
class Reviewed:
    """One prediction on the common grid: `labels` (D, H, W), volumes in ml of what it says anything about, and against
    the ground truth its scores, error maps (`places.error_map`) by region and worst places; empty without one.
    """

    name: str
    labels: np.ndarray
    volumes_ml: Mapping[str, float]
    scores: tuple[RegionReview, ...]
    errors: Mapping[str, np.ndarray]
    places: tuple[Place, ...]


@dataclass(frozen=True)
class Review:
    """Predictions on the grid of `image`, with the `ground_truth` (D, H, W) or None.

    known: the regions that the ground truth says anything about. agreement: Dice by region of each pair of
    predictions, by their names. notices: sentences to show.
    """

    image: sitk.Image
    predictions: tuple[Reviewed, ...]
    ground_truth: Optional[np.ndarray]
    known: tuple[str, ...]
    agreement: Mapping[tuple[str, str], Mapping[str, float]]
    notices: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without voxels."""
        return {
            "predictions": [
                {
                    "name": one.name,
                    "volumes_ml": dict(one.volumes_ml),
                    "scores": [score.to_dict() for score in one.scores],
                    "worst_places": [place.to_dict() for place in one.places],
                }
                for one in self.predictions
            ],
            "agreement": [
                {"first": first, "second": second, "dice": dict(dice)}
                for (first, second), dice in self.agreement.items()
            ],
            "notices": list(self.notices),
        }


def review(
    predictions: Mapping[str, LabelMap],
    ground_truth: Optional[LabelMap] = None,
    grid: Optional[sitk.Image] = None,
    order: str = "volume",
) -> Review:
    """Lay `predictions` (by name) and the ground truth on one grid and compare them.

    grid: image whose voxels are compared; default: see `common_grid`. order: of the worst
    places, see `places.worst_places`. Raises GeometryError where one lies outside the grid, ValueError without any
    prediction.
    """
    if not predictions:
        raise ValueError("no prediction to review")
    if grid is None:
        grid = common_grid([*(() if ground_truth is None else (ground_truth,)), *predictions.values()])
    notices: list[str] = []
    truth, known = None, REGION_KEYS
    if ground_truth is not None:
        truth, lost = on_grid(ground_truth, grid, "the grid of the comparison")
        known = ground_truth.known
        notices += [*ground_truth.doubts, *lost]
    labels = {}
    for name, one in predictions.items():
        labels[name], lost = on_grid(one, grid, "the grid of the comparison")
        notices += [*one.doubts, *lost]
    found = [
        _reviewed(name, labels[name], one.known, truth, [key for key in known if key in one.known], grid, order)
        for name, one in predictions.items()
    ]
    names = list(predictions)
    agreement = {}
    for n, first in enumerate(names):
        for second in names[n + 1 :]:
            both = [key for key in predictions[first].known if key in predictions[second].known]
            dice = region_dice(labels[first], labels[second])
            agreement[(first, second)] = {key: dice[key] for key in both}
    return Review(grid, tuple(found), truth, tuple(known), agreement, tuple(dict.fromkeys(notices)))


def common_grid(maps: Sequence[LabelMap]) -> sitk.Image:
    """The grid of the first of `maps`, made larger where the tumour of another reaches beyond it.

    It is the first's that marks anything: an empty map may stand on any voxels.
    """
    filled = [one for one in maps if one.labels.any()]
    image = (filled or maps)[0].image
    low, high = np.zeros(3), np.array(image.GetSize()) - 1.0
    for one in filled[1:]:
        corners = _tumour_corners(one, image)
        low, high = np.minimum(low, np.floor(corners.min(0) + 1e-3)), np.maximum(high, np.ceil(corners.max(0) - 1e-3))
    size = high - low + 1
    if tuple(size) == image.GetSize() or (size * image.GetSpacing()).max() > LARGEST_GRID_MM:
        return image
    larger = sitk.Image([int(side) for side in size], sitk.sitkUInt8)
    larger.SetSpacing(image.GetSpacing())
    larger.SetDirection(image.GetDirection())
    larger.SetOrigin(image.TransformContinuousIndexToPhysicalPoint(low.tolist()))
    return larger


def _tumour_corners(one: LabelMap, image: sitk.Image) -> np.ndarray:
    """(8, 3) the corners (voxel centres) of the box around the tumour as indices (x, y, z) of `image`."""
    box = bounding_box(one.labels > 0)
    assert box is not None  # asked of maps that mark something only
    ends = [(side.start, side.stop - 1) for side in box[::-1]]
    points = [one.image.TransformIndexToPhysicalPoint((x, y, z)) for x in ends[0] for y in ends[1] for z in ends[2]]
    return np.array([image.TransformPhysicalPointToContinuousIndex(point) for point in points])


def _reviewed(
    name: str,
    labels: np.ndarray,
    drawn: Sequence[str],
    truth: Optional[np.ndarray],
    known: Sequence[str],
    grid: sitk.Image,
    order: str,
) -> Reviewed:
    volumes = volumes_ml(labels, abs(float(np.linalg.det(voxel_columns(grid)))) / 1000.0)
    if len(drawn) < len(REGION_KEYS):
        volumes = {key: volumes[key] for key in drawn}
    if truth is None:
        return Reviewed(name, labels, volumes, (), {}, ())
    scores = review_scores(labels, truth, grid.GetSpacing()[::-1], known, grid.GetDirection())
    maps = {key: one for key, one in error_maps(labels, truth).items() if key in known}
    return Reviewed(name, labels, volumes, tuple(scores), maps, tuple(worst_places(labels, truth, grid, order, known)))
