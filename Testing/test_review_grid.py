"""The grid that a comparison takes by itself: of the ground truth, and no error is lost beyond its edge."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from MSTKDSegmentLib.errors import GeometryError
from MSTKDSegmentLib.review.comparison import common_grid, review
from MSTKDSegmentLib.review.label_maps import LabelMap

REGIONS = ("WT", "TC", "ET")


def label_map(array: np.ndarray, origin=(0.0, 0.0, 0.0)) -> LabelMap:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((1.0, 1.0, 2.0))
    image.SetOrigin(origin)
    return LabelMap(array, image, "labels", REGIONS, "made here")


def whole() -> np.ndarray:
    labels = np.zeros((20, 30, 40), np.uint8)
    labels[5:10, 5:10, 5:10] = 2
    return labels


def test_what_is_invented_beside_a_cropped_ground_truth_counts():
    prediction = whole()
    prediction[15:18, 20:25, 30:35] = 2
    cropped = label_map(whole()[5:10, 5:10, 5:10].copy(), (5.0, 5.0, 10.0))
    found, full = (
        review({"p": label_map(prediction)}, cropped),
        review({"p": label_map(prediction)}, label_map(whole())),
    )
    for one in (found, full):
        score = one.predictions[0].scores[0]
        assert score.score.dice == pytest.approx(2 * 125 / (125 + 200))
        assert score.prediction_ml == pytest.approx(0.4)
        (place,) = one.predictions[0].places
        assert (place.kind_text, place.point) == ("invented", (32.0, 22.0, 32.0))
    assert found.image.GetSize() == (30, 20, 13)  # from voxel 5 on to the furthest that either marks
    assert found.image.GetOrigin() == (5.0, 5.0, 10.0)


def test_a_grid_that_holds_all_stays_as_it_is():
    truth = label_map(whole())
    assert common_grid([truth, label_map(whole())]) is truth.image
    with pytest.raises(GeometryError, match="lies outside"):  # metres away: another patient
        review({"p": label_map(whole(), (5000.0, 0.0, 0.0))}, truth)


def test_an_empty_ground_truth_takes_the_predictions_grid():
    empty = label_map(np.zeros((1, 1, 1), np.uint8))
    found = review({"p": label_map(whole())}, empty)
    assert found.image.GetSize() == (40, 30, 20)
    assert [one.score.status for one in found.predictions[0].scores] == ["fp_only", "both_empty", "both_empty"]
    nothing = review({"p": empty}, empty)
    assert {one.score.status for one in nothing.predictions[0].scores} == {"both_empty"}
