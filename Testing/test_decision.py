"""Thresholds and calibration: what they do to probabilities, how they are chosen, and that they reach the result."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from MSTKDSegmentLib.decision import EVIDENCE_VOXELS, NO_DECISION, Decision, calibrated
from MSTKDSegmentLib.geometry import CanonicalGrid, labels_to_native

ROW = {"WT": 0.2, "TC": 0.4, "ET": 0.6}
CURVE = {"WT": [1.0, 1.0], "TC": [0.8, -1.0], "ET": [2.0, 0.0]}


def probabilities(*voxels):
    """(4, 1, 1, N) of background, NCR, ED, ET."""
    return np.array(voxels, np.float32).T.reshape(4, 1, 1, -1)


def image_of(array):
    return sitk.GetImageFromArray(np.zeros(array.shape[1:], np.float32))


def test_a_voxel_belongs_to_a_region_from_its_threshold_on_and_only_inside_the_regions_around_it():
    p = probabilities(
        (0.85, 0.05, 0.05, 0.05),  # WT 0.15: background
        (0.75, 0.05, 0.15, 0.05),  # WT 0.25, TC 0.10: oedema
        (0.5, 0.4, 0.05, 0.05),  # TC 0.45: necrosis
        (0.1, 0.1, 0.1, 0.7),  # ET 0.7
        (1.0, 0.0, 0.0, 0.0),
    )
    grid = CanonicalGrid((0.0, 0.0, 0.0), (5, 1, 1))
    found = labels_to_native(p, grid, image_of(p), thresholds=(0.2, 0.4, 0.6))
    assert found.ravel().tolist() == [0, 2, 1, 3, 0]
    # The inner region alone is not enough.
    assert labels_to_native(p, grid, image_of(p), thresholds=(0.95, 0.4, 0.6)).ravel().tolist() == [0] * 5
    assert labels_to_native(p, grid, image_of(p)).ravel().tolist() == [0, 0, 0, 3, 0]  # the most probable class


def test_thresholds_are_applied_after_interpolation():
    p = probabilities((1.0, 0, 0, 0), (0.0, 0, 1.0, 0))
    reference = sitk.GetImageFromArray(np.zeros((1, 1, 4), np.float32))
    reference.SetSpacing((0.25, 1.0, 1.0))  # at x = 0, 0.25, 0.5, 0.75: WT 0, 0.25, 0.5, 0.75
    found = labels_to_native(p, CanonicalGrid((0.0, 0.0, 0.0), (2, 1, 1)), reference, thresholds=(0.2, 0.5, 0.5))
    assert found.ravel().tolist() == [0, 2, 2, 2]


def test_nothing_is_drawn_where_half_a_millilitre_is_nowhere_sure_and_everything_where_it_is():
    p = np.zeros((4, 10, 10, 10), np.float32)
    p[0] = 0.7  # WT 0.3 everywhere: above the threshold
    p[2] = 0.3
    decision = Decision({"T1": ROW}, {}, {"T1": 0.95})
    grid = CanonicalGrid((0.0, 0.0, 0.0), (10, 10, 10))
    for sure, drawn in ((0, False), (EVIDENCE_VOXELS - 1, False), (EVIDENCE_VOXELS, True)):
        flat = p.reshape(4, -1).copy()
        flat[:, :sure] = np.array([[0.04], [0.0], [0.96], [0.0]])
        q = flat.reshape(p.shape)
        found = decision.labels_to_native(q, "T1", grid, image_of(q))
        assert found.shape == (10, 10, 10)
        assert np.count_nonzero(found) == (1000 if drawn else 0)
        assert decision.doubted_ml(q, "T1") == pytest.approx(0 if drawn else 1.0)
        # A set of sequences without this rule, and a brain with nothing above the threshold.
        assert decision.doubted_ml(q, "T2") == 0
    assert decision.doubted_ml(np.concatenate([np.ones_like(p[:1]), np.zeros_like(p[1:])]), "T1") == 0


def test_a_decision_survives_json_and_refuses_what_it_does_not_understand():
    decision = Decision({"T1": ROW}, {"T1": CURVE}, {"T1": 0.9})
    assert Decision.from_dict(json.loads(json.dumps(decision.to_dict()))) == decision
    assert Decision.from_dict({}) == NO_DECISION
    assert decision.thresholds_of("T1") == (0.2, 0.4, 0.6)
    assert decision.thresholds_of("T2") is None
    for wrong, words in (
        ({"rule": 1}, "unknown entries: rule"),
        ({"thresholds": {"T3": ROW}}, "unknown set of sequences: T3"),
        ({"thresholds": {"T1": {"WT": 0.5}}}, "one entry for each of WT, TC, ET"),
        ({"thresholds": {"T1": {**ROW, "ET": 1.0}}}, "between 0 and 1, not 1.0"),
        ({"calibration": {"T1": {**CURVE, "ET": [-1, 0]}}}, "positive slope"),
        ({"thresholds": {"T1": ROW}, "evidence": {"T3": 0.9}}, "unknown set of sequences: T3"),
        ({"thresholds": {"T1": ROW}, "evidence": {"T1": 0.1}}, "evidence for T1 needs a threshold of WT"),
        ({"evidence": {"T1": 0.9}}, "evidence for T1 needs a threshold of WT"),
    ):
        with pytest.raises(ValueError, match=words):
            Decision.from_dict(wrong)


def test_the_curve_is_the_logistic_one_computed_by_hand():
    # logit(0.2) = ln(0.25); slope 2, offset 1: 1 / (1 + exp(-(2 * -1.386294 + 1))) = 0.145218
    assert calibrated(np.array([0.2]), (2.0, 1.0))[0] == pytest.approx(0.145218, abs=1e-5)
    assert calibrated(np.array([0.2, 0.7]), (1.0, 0.0)) == pytest.approx([0.2, 0.7], abs=1e-5)
    assert calibrated(np.array([0.0]), (1.0, 3.0))[0] == 0


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3))
def test_calibrated_regions_stay_nested_and_between_0_and_1(values):
    wt, tc, et = sorted(values, reverse=True)
    found = Decision({}, {"T1": CURVE}).calibrated(np.array([wt, tc, et]).reshape(3, 1, 1, 1), "T1").ravel()
    assert 1 >= found[0] >= found[1] >= found[2] >= 0


def test_a_subset_without_a_curve_keeps_its_probabilities():
    p = np.random.default_rng(0).random((3, 2, 2, 2))
    assert Decision({}, {"T1": CURVE}).calibrated(p, "T2") is p
