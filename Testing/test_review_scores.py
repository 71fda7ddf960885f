"""Figures of the review on shapes with known answers, against MONAI, and as properties; and where the errors are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from MSTKDSegmentLib.metrics import HD95_PENALTY_MM, nearest_mm, region_scores
from MSTKDSegmentLib.review.comparison import review
from MSTKDSegmentLib.review.label_maps import label_map_from_values
from MSTKDSegmentLib.review.places import INVENTED, MISSED, RIGHT, error_map, error_maps, worst_places
from MSTKDSegmentLib.review.scores import lesion_score, review_scores
from scipy import ndimage

ONE = (1.0, 1.0, 1.0)
small_labels = hnp.arrays(np.uint8, (6, 7, 8), elements=st.integers(0, 3))


def ball(shape, centre, radius, spacing=ONE) -> np.ndarray:
    points = np.moveaxis(np.indices(shape), 0, -1) * spacing
    return ((points - np.array(centre) * spacing) ** 2).sum(-1) <= radius**2


def box(low, high, shape=(30, 40, 50)) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high))] = True
    return mask


def image_for(labels: np.ndarray, spacing=ONE) -> sitk.Image:
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing(tuple(reversed(spacing)))
    return image


# --- scores ----------------------------------------------------------------------------------------------------------


def test_shares_and_volumes_by_hand():
    true = np.where(box((5, 5, 5), (15, 15, 15)), 2, 0).astype(np.uint8)  # 1000 voxels
    found = np.where(box((5, 5, 9), (15, 15, 17)), 2, 0).astype(np.uint8)  # 800, of which 600 are right
    wt = review_scores(found, true, (2.0, 1.0, 0.5))[0]
    assert (wt.region, wt.sensitivity, wt.precision) == ("WT", 0.6, 0.75)
    assert (wt.reference_ml, wt.prediction_ml) == pytest.approx((1.0, 0.8))
    assert wt.score.volume_error_ml == pytest.approx(-0.2)
    assert wt.volume_error_percent == pytest.approx(-20.0)
    assert wt.score.dice == pytest.approx(2 * 600 / 1800)
    assert wt.to_dict()["dice"] == wt.score.dice and wt.to_dict()["lesions_found"] == 1


def test_sheared_axes_change_volumes_alone():
    true = np.where(box((5, 5, 5), (15, 15, 15)), 2, 0).astype(np.uint8)
    sheared = (1, 0.6, 0, 0, 0.8, 0, 0, 0, 1)
    plain, tilted = (review_scores(true, true, ONE, direction=one)[0] for one in (None, sheared))
    assert tilted.reference_ml == pytest.approx(0.8 * plain.reference_ml)
    assert tilted.score == plain.score
    larger = np.where(box((5, 5, 5), (15, 15, 16)), 2, 0).astype(np.uint8)
    assert review_scores(larger, true, ONE, direction=sheared)[0].volume_error_percent == pytest.approx(10.0)


def test_empty_masks_follow_one_policy():
    some = np.where(box((5, 5, 5), (9, 9, 9)), 3, 0).astype(np.uint8)
    none = np.zeros_like(some)
    both = review_scores(none, none, ONE)[2]
    assert (both.score.status, both.score.dice, both.sensitivity, both.precision) == ("both_empty", 1, 1, 1)
    assert (both.lesions.f1, both.lesions.dice, both.volume_error_percent) == (1.0, 1.0, None)
    missed = review_scores(none, some, ONE)[2]
    assert (missed.score.status, missed.score.hd95, missed.sensitivity) == ("missed", HD95_PENALTY_MM, 0)
    assert (missed.lesions.reference, missed.lesions.found, missed.lesions.f1) == (1, 0, 0.0)
    invented = review_scores(some, none, ONE)[2]
    assert (invented.score.status, invented.precision, invented.lesions.false) == ("fp_only", 0, 1)


def test_only_what_the_ground_truth_knows_is_scored():
    labels = np.where(box((5, 5, 5), (9, 9, 9)), 3, 0).astype(np.uint8)
    assert [one.region for one in review_scores(labels, labels, ONE, known=("WT",))] == ["WT"]


def test_distances_are_those_of_a_distance_transform():
    """However far apart the masks lie, and whatever the spacing."""
    rng = np.random.default_rng(0)
    near, far = rng.random((12, 13, 14)) < 0.1, rng.random((12, 13, 14)) < 0.02
    spacing = (2.0, 0.7, 1.3)
    expected = ndimage.distance_transform_edt(~far, sampling=spacing)[near]
    np.testing.assert_allclose(nearest_mm(near, far, spacing), expected)


def test_agreement_with_monai_on_shapes():
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    shape, spacing = (40, 44, 48), (1.0, 1.2, 0.8)
    true = np.where(ball(shape, (20, 22, 24), 12.0, spacing), 2, 0).astype(np.uint8)
    true[ball(shape, (20, 22, 24), 7.0, spacing)] = 1
    true[ball(shape, (18, 22, 24), 4.0, spacing)] = 3
    found = np.roll(true, (1, -2, 3), (0, 1, 2))
    found[5:8, 5:8, 5:8] = 2
    for one in review_scores(found, true, spacing):
        masks = {"WT": (found > 0, true > 0), "TC": (found % 2 == 1, true % 2 == 1), "ET": (found == 3, true == 3)}
        pair = [torch.from_numpy(np.ascontiguousarray(mask))[None, None].float() for mask in masks[one.region]]
        dice = metrics.compute_dice(*pair).item()
        distance = metrics.compute_hausdorff_distance(*pair, percentile=95, spacing=spacing).item()
        nsd = metrics.compute_surface_dice(*pair, class_thresholds=[2.0], spacing=spacing).item()
        confusion = metrics.get_confusion_matrix(*pair)
        sensitivity = metrics.compute_confusion_matrix_metric("sensitivity", confusion).item()
        precision = metrics.compute_confusion_matrix_metric("precision", confusion).item()
        ours = (one.score.dice, one.score.hd95, one.score.nsd2, one.sensitivity, one.precision)
        assert ours == pytest.approx((dice, distance, nsd, sensitivity, precision), abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(small_labels, small_labels)
def test_scores_of_any_labels_are_within_their_ranges_and_turn_around(found, true):
    for one, other in zip(review_scores(found, true, ONE), review_scores(true, found, ONE)):
        assert 0 <= one.score.dice <= 1 and 0 <= one.sensitivity <= 1 and 0 <= one.precision <= 1
        assert one.sensitivity == other.precision and one.score.dice == other.score.dice
        assert one.score.volume_error_ml == -other.score.volume_error_ml
        assert 0 <= one.lesions.dice <= 1 and one.lesions.found <= one.lesions.reference


@settings(max_examples=20, deadline=None)
@given(small_labels, st.tuples(*[st.integers(0, 9)] * 3))
def test_room_around_the_tumour_changes_nothing(labels, room):
    other = np.roll(labels, 1, 0)
    padded = [np.pad(one, [(n, 9 - n) for n in room]) for one in (labels, other)]
    assert region_scores(*padded, (1.0, 2.0, 0.5)) == region_scores(labels, other, (1.0, 2.0, 0.5))


# --- lesions ---------------------------------------------------------------------------------------------------------


def test_lesions_found_missed_and_false():
    a, b = box((2, 2, 2), (8, 8, 8)), box((20, 30, 40), (26, 36, 46))
    invented = box((2, 30, 2), (7, 35, 7))
    found = lesion_score(a | invented, a | b, ONE)
    assert (found.reference, found.found, found.false) == (2, 1, 1)
    assert found.dice == pytest.approx((1 + 0 + 0) / 3)
    assert found.f1 == pytest.approx(2 / (2 + 1 + 1))


def test_pieces_nearer_than_two_margins_are_one_lesion():
    whole = box((2, 2, 2), (8, 8, 8)) | box((2, 2, 12), (8, 8, 18))  # 4 voxels of nothing between
    apart = box((2, 2, 2), (8, 8, 8)) | box((2, 2, 18), (8, 8, 24))
    assert lesion_score(whole, whole, ONE).reference == 1
    assert lesion_score(apart, apart, ONE).reference == 2
    # In millimetres: the same voxels with a spacing of 0.5 lie nearer.
    assert lesion_score(apart, apart, (0.5, 0.5, 0.5)).reference == 1


def test_specks_do_not_count():
    speck = box((2, 2, 2), (5, 6, 6))  # 48 mm3
    lesion = box((15, 15, 15), (20, 20, 20))
    assert lesion_score(speck | lesion, lesion, ONE).false == 0
    assert lesion_score(lesion, speck | lesion, ONE).reference == 1
    assert lesion_score(speck, speck, (2.0, 1.0, 1.0)).reference == 1  # 96 mm3


def test_a_part_that_touches_a_speck_alone_is_false():
    speck, huge = box((2, 2, 2), (5, 5, 5)), box((2, 2, 2), (25, 25, 25))
    found = lesion_score(huge, speck, ONE)
    assert (found.reference, found.found, found.false, found.dice, found.f1) == (0, 0, 1, 0.0, 0.0)


def test_parts_that_touch_a_widened_lesion_belong_to_it():
    lesion = box((10, 10, 10), (16, 16, 16))
    beside = box((10, 10, 18), (16, 16, 24))  # 2 mm beside: no voxel in common, but no invention elsewhere
    found = lesion_score(beside, lesion, ONE)
    assert (found.found, found.false, found.dice) == (0, 0, 0.0)


# --- where the errors are --------------------------------------------------------------------------------------------


def test_the_map_of_errors_has_its_three_values():
    found, true = np.array([[[1, 1, 0, 0]]], bool), np.array([[[1, 0, 1, 0]]], bool)
    assert error_map(found, true).tolist() == [[[RIGHT, INVENTED, MISSED, 0]]]
    labels = np.array([[[1, 2, 3, 0]]], np.uint8)
    assert {key: one.tolist() for key, one in error_maps(labels, labels[..., ::-1]).items()} == {
        "WT": [[[2, 1, 1, 3]]], "TC": [[[2, 3, 2, 3]]], "ET": [[[0, 3, 2, 0]]],
    }  # fmt: skip


def test_worst_places_by_volume_and_by_distance():
    true = np.where(box((5, 5, 5), (15, 15, 15)), 2, 0).astype(np.uint8)
    found = true.copy()
    found[5:15, 5:15, 13:15] = 0  # 200 voxels missed, 2 mm deep
    found[20:23, 30:33, 40:43] = 2  # 27 voxels invented, far away
    image = image_for(true)
    by_volume = worst_places(found, true, image)
    assert [(one.region, one.kind_text) for one in by_volume] == [("WT", "missed"), ("WT", "invented")]
    assert by_volume[0].volume_ml == pytest.approx(0.2) and by_volume[0].distance_mm == 2.0
    assert by_volume[1].voxel == (21, 31, 41)  # the middle of the cube
    assert by_volume[1].point == (41.0, 31.0, 21.0) and by_volume[1].point_ras == (-41.0, -31.0, 21.0)
    # To the voxel (14, 14, 12), which is the nearest of what remains, from its far corner.
    by_distance = worst_places(found, true, image, "distance")
    assert by_distance[0] == by_volume[1]
    assert by_distance[0].distance_mm == pytest.approx(math.dist((22, 32, 42), (14, 14, 14)))
    with pytest.raises(ValueError, match="unknown order"):
        worst_places(found, true, image, "size")


def test_an_error_of_several_regions_is_named_once_and_specks_not_at_all():
    true = np.zeros((20, 20, 20), np.uint8)
    found = true.copy()
    found[5:9, 5:9, 5:9] = 3  # wrong in WT, TC and ET alike
    found[15, 15, 15] = 3
    places = worst_places(found, true, image_for(true))
    assert [(one.region, one.kind, one.distance_mm) for one in places] == [("WT", INVENTED, math.inf)]
    assert places[0].to_dict()["distance_mm"] is None
    assert not worst_places(found, found, image_for(true))


def test_by_distance_an_error_has_the_region_in_which_it_reaches_furthest():
    true = np.where(box((5, 5, 5), (15, 15, 15)), 2, 0).astype(np.uint8)
    true[5:7, 5:7, 5:7] = 3
    found = true.copy()
    found[14:17, 14:17, 14:17] = 3  # beside the oedema, far from the enhancing tumour
    found[14, 14, 14] = 2
    (place,) = worst_places(found, true, image_for(true), "distance")[:1]
    assert place.region == "TC" and place.distance_mm == pytest.approx(math.dist((16, 16, 16), (6, 6, 6)))


def test_places_lie_in_the_patient_wherever_the_image_does():
    true = np.zeros((10, 12, 14), np.uint8)
    found = true.copy()
    found[4:7, 6:9, 8:11] = 2
    image = image_for(true, (3.0, 2.0, 1.0))
    image.SetOrigin((-7.0, 5.0, 11.0))
    image.SetDirection((0, 1, 0, 0, 0, 1, 1, 0, 0))
    place = worst_places(found, true, image)[0]
    assert place.voxel == (5, 7, 9)
    assert place.point == pytest.approx(image.TransformIndexToPhysicalPoint((9, 7, 5)))


@settings(max_examples=30, deadline=None)
@given(small_labels, small_labels)
def test_every_place_lies_in_its_error_and_all_errors_are_counted(found, true):
    image = image_for(true)
    places = worst_places(found, true, image, count=1000, least_ml=0.0)
    maps = error_maps(found, true)
    for place in places:
        assert maps[place.region][place.voxel] == place.kind
    whole = sum(place.volume_ml for place in places if place.region == "WT")
    assert whole == pytest.approx(np.count_nonzero((found > 0) != (true > 0)) / 1000)


# --- everything of a case --------------------------------------------------------------------------------------------


def test_predictions_are_compared_with_the_truth_and_each_other():
    true = np.where(box((5, 5, 5), (15, 15, 15)), 2, 0).astype(np.uint8)
    worse = np.where(box((5, 5, 9), (15, 15, 17)), 2, 0).astype(np.uint8)
    image = image_for(true)
    maps = {name: label_map_from_values(one, image, name) for name, one in (("good", true), ("worse", worse))}
    found = review(maps, label_map_from_values(true, image, "truth"))
    good, other = found.predictions
    assert good.scores[0].score.dice == 1.0 and not good.places
    assert other.scores[0].score.dice == pytest.approx(2 * 600 / 1800) and len(other.places) == 2
    assert found.agreement[("good", "worse")]["WT"] == pytest.approx(2 * 600 / 1800)
    assert other.volumes_ml["WT"] == pytest.approx(0.8)
    assert found.to_dict()["predictions"][1]["worst_places"][0]["kind"] == "missed"
    without = review(maps)
    assert without.ground_truth is None and not without.predictions[0].scores and without.agreement
    with pytest.raises(ValueError, match="no prediction"):
        review({})


def test_a_mask_as_ground_truth_scores_the_whole_tumour_alone():
    true = np.where(box((5, 5, 5), (15, 15, 15)), 1, 0).astype(np.uint8)
    labels = np.where(true, 3, 0).astype(np.uint8)
    image = image_for(true)
    found = review({"a": label_map_from_values(labels, image, "a")}, label_map_from_values(true, image, "t"))
    assert [one.region for one in found.predictions[0].scores] == ["WT"]
    assert set(found.predictions[0].errors) == {"WT"}
    pair = {"a": label_map_from_values(labels, image, "a"), "mask": label_map_from_values(true, image, "t")}
    both = review(pair)
    assert both.agreement[("a", "mask")] == {"WT": 1.0}
    assert set(both.predictions[1].volumes_ml) == {"WT"} and set(both.predictions[0].volumes_ml) > {"WT", "NCR"}
    assert found.notices == ("t: it holds one value (1) and was taken as a mask of the whole tumour.",)
