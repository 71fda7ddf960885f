"""Thresholds and calibration: what they do to probabilities, how they are chosen, and that they reach the result."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from MSTKDSegmentLib.decision import NO_DECISION, Decision, calibrated, surest_background
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


def test_the_surest_tenth_of_what_is_more_likely_tumour():
    """Of 25 voxels below one half of background the third smallest is the last of the surest tenth."""
    background = np.concatenate([np.full(1000, 0.6), np.linspace(0.01, 0.25, 25)]).astype(np.float32)
    np.random.default_rng(0).shuffle(background)
    assert surest_background(background.reshape(5, 5, 41)) == pytest.approx(0.03)
    assert surest_background(background[background > 0.5]) == 1.0
    assert surest_background(np.array([1.0, 1e-9], np.float32)) == pytest.approx(1e-9)  # no less sure for being small


@given(st.integers(1, 40), st.integers(1, 5))
def test_a_small_tumour_is_as_sure_as_a_large_one(voxels, times):
    one = np.random.default_rng(voxels).random(10 * voxels) * 0.49
    assert surest_background(np.tile(one, times)) == pytest.approx(surest_background(one))


def test_a_network_that_is_nowhere_sure_is_doubted_by_the_rule_of_its_subset():
    decision = Decision({"T1": ROW}, {}, {"T1": 0.95})
    p = np.zeros((4, 10, 10, 10), np.float32)
    p[0], p[2] = 0.4, 0.6
    assert decision.doubts(p, "T1")
    assert not decision.doubts(p, "T2")  # a set without a rule
    sure = p.copy()
    sure[:, 0] = np.array([0.04, 0, 0.96, 0], np.float32).reshape(4, 1, 1)  # exactly a tenth
    assert not decision.doubts(sure, "T1")
    sure[:, 0, 0, 0] = p[:, 0, 0, 0]
    assert decision.doubts(sure, "T1")


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
        ({"thresholds": {"T1": ROW}, "evidence": {"T1": 1}}, "between 0 and 1, not 1"),
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
