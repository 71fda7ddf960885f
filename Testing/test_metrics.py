"""Scores on shapes whose answers are known by hand, the empty-mask policy, and agreement with MONAI."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from MSTKDSegmentLib.metrics import (
    HD95_PENALTY_MM,
    Status,
    dice,
    hd95,
    nsd,
    region_dice,
    region_scores,
    surface_distances,
)
from MSTKDSegmentLib.regions import labels_to_regions

ISOTROPIC = (1.0, 1.0, 1.0)


def make_box(start: int = 4, side: int = 10, grid: int = 24) -> np.ndarray:
    mask = np.zeros((grid, grid, grid), bool)
    mask[4 : 4 + side, 4 : 4 + side, start : start + side] = True
    return mask


def make_sphere(radius: float, grid: int = 48) -> np.ndarray:
    z, y, x = np.indices((grid,) * 3) - (grid - 1) / 2
    return x**2 + y**2 + z**2 <= radius**2


def make_tumour(shift: int = 0) -> np.ndarray:
    labels = np.zeros((20, 22, 24), np.uint8)
    labels[4:14, 4:16, 4 + shift : 16 + shift] = 2
    labels[6:11, 6:13, 6 + shift : 13 + shift] = 1
    labels[7:9, 8:11, 7 + shift : 10 + shift] = 3
    return labels


def test_dice_of_shifted_boxes():
    # 10 x 10 x 10 boxes shifted by 4: the intersection is 600 of 1000 voxels each.
    assert dice(make_box(4), make_box(8)) == pytest.approx(0.6)
    assert dice(make_box(4), make_box(4)) == 1.0
    assert dice(make_box(4, 5), make_box(12, 5)) == 0.0


def test_dice_of_empty_masks():
    nothing = np.zeros((24, 24, 24), bool)
    assert dice(nothing, nothing) == 1.0
    assert dice(nothing, make_box()) == dice(make_box(), nothing) == 0.0


@pytest.mark.parametrize("spacing", [ISOTROPIC, (5.0, 2.0, 0.5)])
def test_hd95_of_shifted_boxes_uses_the_spacing_of_its_axis(spacing):
    # Shifted by 4 along x: the face that moved is 100 of 488 surface voxels, more than 5 %, all of it 4 voxels away.
    distances = surface_distances(make_box(4), make_box(8), spacing)
    assert distances[0].size == distances[1].size == 10**3 - 8**3
    assert max(distances[0].max(), distances[1].max()) == pytest.approx(4 * spacing[2])
    assert hd95(distances) == pytest.approx(4 * spacing[2])


def test_hd95_and_nsd_of_concentric_spheres():
    distances = surface_distances(make_sphere(20), make_sphere(15), ISOTROPIC)
    assert hd95(distances) == pytest.approx(5.0, abs=0.6)  # voxels: within about half of one
    assert nsd(distances, 3.5) == 0.0
    assert nsd(distances, 6.5) == 1.0


def test_nsd_by_hand():
    distances = (np.array([0.0, 1.0, 1.5, 3.0]), np.array([0.5, 2.0]))
    assert nsd(distances, 1.0) == pytest.approx(3 / 6)
    assert nsd(distances, 2.0) == pytest.approx(5 / 6)


def test_voxels_at_the_arrays_edge_are_surface():
    full = np.ones((3, 3, 3), bool)
    distances = surface_distances(full, full, ISOTROPIC)
    assert distances[0].size == 26
    assert hd95(distances) == 0.0


def test_region_scores_of_a_shifted_tumour():
    scores = region_scores(make_tumour(1), make_tumour(), (2.0, 1.0, 3.0))
    assert [score.region for score in scores] == ["WT", "TC", "ET"]
    wt, tc, et = scores
    assert (wt.n_ref, wt.n_pred, wt.status) == (1440, 1440, "ok")
    assert wt.dice == pytest.approx(11 / 12)
    assert tc.dice == pytest.approx(6 / 7)
    assert et.dice == pytest.approx(2 / 3)
    assert [score.hd95 for score in scores] == pytest.approx([3.0, 3.0, 3.0])
    assert [score.volume_error_ml for score in scores] == [0, 0, 0]
    assert wt.nsd2 < 1.0


def test_region_dice_agrees_with_the_scores():
    assert region_dice(make_tumour(1), make_tumour()) == pytest.approx({"WT": 11 / 12, "TC": 6 / 7, "ET": 2 / 3})


def test_volume_error_is_signed_and_in_ml():
    pred, ref = make_tumour(), make_tumour()
    pred[0, 0, :5] = 3
    assert region_scores(pred, ref, (2.0, 1.0, 3.0))[2].volume_error_ml == pytest.approx(5 * 0.006)
    assert region_scores(ref, pred, (2.0, 1.0, 3.0))[2].volume_error_ml == pytest.approx(-5 * 0.006)


@pytest.mark.parametrize(
    ("pred_et", "ref_et", "status", "expected"),
    [
        (False, False, Status.BOTH_EMPTY, (1.0, 0.0, 1.0)),
        (False, True, Status.MISSED, (0.0, HD95_PENALTY_MM, 0.0)),
        (True, False, Status.FP_ONLY, (0.0, HD95_PENALTY_MM, 0.0)),
        (True, True, Status.OK, (1.0, 0.0, 1.0)),
    ],
)
def test_empty_masks_follow_the_policy(pred_et, ref_et, status, expected):
    with_et, without_et = make_tumour(), np.where(make_tumour() == 3, 1, make_tumour())
    pred, ref = with_et if pred_et else without_et, with_et if ref_et else without_et
    score = region_scores(pred, ref, ISOTROPIC)[2]
    assert score.status == status
    assert (score.dice, score.hd95, score.nsd1) == expected


def test_two_empty_segmentations_are_scored_for_every_region():
    nothing = np.zeros((4, 5, 6), np.uint8)
    scores = region_scores(nothing, nothing, ISOTROPIC)
    assert [score.status for score in scores] == ["both_empty"] * 3


@pytest.mark.parametrize("spacing", [(1, 1), (1, 1, 0), (1, 1, float("nan"))])
def test_unusable_spacing_is_refused(spacing):
    with pytest.raises(ValueError, match="spacing must be"):
        region_scores(make_tumour(), make_tumour(), spacing)


def test_different_shapes_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        region_scores(make_tumour(), make_tumour()[1:], ISOTROPIC)


MAPS = hnp.arrays(np.uint8, (5, 6, 7), elements=st.sampled_from([0, 0, 0, 1, 2, 3]))


@settings(deadline=None, max_examples=25)
@given(MAPS, MAPS)
def test_swapping_prediction_and_reference_swaps_only_what_it_should(pred, ref):
    swapped = {Status.MISSED: Status.FP_ONLY, Status.FP_ONLY: Status.MISSED}
    for one, other in zip(region_scores(pred, ref, (3, 1, 2)), region_scores(ref, pred, (3, 1, 2))):
        assert (one.dice, one.hd95, one.nsd1, one.nsd2) == (other.dice, other.hd95, other.nsd1, other.nsd2)
        assert one.volume_error_ml == -other.volume_error_ml
        assert other.status == swapped.get(one.status, one.status)
        assert 0 <= one.nsd1 <= one.nsd2 <= 1


@settings(deadline=None, max_examples=10)
@given(MAPS, MAPS)
def test_empty_space_around_the_tumour_changes_nothing(pred, ref):
    padded = region_scores(np.pad(pred, 4), np.pad(ref, 4), (3, 1, 2))
    assert padded == region_scores(pred, ref, (3, 1, 2))


def test_agreement_with_monai():
    metrics = pytest.importorskip("monai.metrics")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(3)
    pred, ref = make_tumour(2), make_tumour()
    pred[rng.random(pred.shape) < 0.01] = 2  # speckles make the percentile matter
    spacing = (2.5, 1.0, 0.8)
    masks = [
        torch.from_numpy(np.stack(list(labels_to_regions(labels).values()))[None]).float() for labels in (pred, ref)
    ]
    ours = region_scores(pred, ref, spacing)
    theirs = metrics.compute_dice(*masks, include_background=True)[0].tolist()
    assert [score.dice for score in ours] == pytest.approx(theirs, abs=1e-6)
    theirs = metrics.compute_hausdorff_distance(*masks, include_background=True, percentile=95, spacing=spacing)[0]
    assert [score.hd95 for score in ours] == pytest.approx(theirs.tolist(), abs=1e-4)
