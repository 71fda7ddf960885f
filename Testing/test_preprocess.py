"""Normalisation inside the brain."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from MSTKDSegmentLib.preprocess import Z_RANGE, fill_holes, normalise
from scipy import ndimage


def brain():
    rng = np.random.default_rng(3)
    array = np.zeros((20, 24, 22), np.float32)
    mask = np.zeros(array.shape, bool)
    mask[4:16, 5:20, 4:18] = True
    array[mask] = rng.normal(300, 40, int(mask.sum()))
    return array, mask


def test_zero_outside_mean_zero_and_unit_deviation_inside():
    array, mask = brain()
    z = normalise(array, mask)
    assert z.dtype == np.float32
    assert not z[~mask].any()
    assert z[mask].mean() == pytest.approx(0, abs=0.01)
    assert z[mask].std() == pytest.approx(1, abs=0.05)


def test_by_hand():
    array = np.array([[[0, 10, 20, 30, 40]]], np.float32)
    mask = array > 0
    z = normalise(array, mask)
    # Percentiles 0.5 and 99.5 of (10, 20, 30, 40) are 10.15 and 39.85: mean 25, deviation sqrt((2*14.85^2 + 2*25)/4).
    deviation = np.sqrt((2 * 14.85**2 + 2 * 5**2) / 4)
    np.testing.assert_allclose(z[0, 0], [0, -15 / deviation, -5 / deviation, 5 / deviation, 15 / deviation], rtol=1e-5)


@settings(deadline=None, max_examples=25)
@given(scale=st.floats(0.01, 100), offset=st.floats(-1000, 1000))
def test_scanner_units_do_not_matter(scale, offset):
    array, mask = brain()
    moved = np.where(mask, array * scale + offset, 0).astype(np.float32)
    np.testing.assert_allclose(normalise(moved, mask), normalise(array, mask), atol=0.02)


def test_one_bright_artefact_changes_nothing_else():
    array, mask = brain()
    spoilt = array.copy()
    spoilt[10, 10, 10] = 1e6
    z, expected = normalise(spoilt, mask), normalise(array, mask)
    assert z[10, 10, 10] == Z_RANGE[1]
    z[10, 10, 10] = expected[10, 10, 10]
    np.testing.assert_allclose(z, expected, atol=0.05)


def test_empty_mask_and_constant_brain_are_errors():
    array, mask = brain()
    with pytest.raises(ValueError, match="empty"):
        normalise(array, np.zeros_like(mask))
    with pytest.raises(ValueError, match="constant"):
        normalise(np.ones_like(array), mask)


def test_cavities_are_filled_and_the_outside_is_not():
    mask = np.zeros((9, 9, 9), bool)
    mask[1:8, 1:8, 1:8] = True
    mask[3:6, 3:6, 3:6] = False  # closed cavity
    filled = fill_holes(mask)
    assert filled[4, 4, 4]
    assert filled.sum() == 7**3
    mask[4, 4, 5:] = False  # a channel to the outside: no cavity any more
    assert not fill_holes(mask)[4, 4, 4]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**16), share=st.floats(0.5, 0.95), low=st.integers(0, 3), high=st.integers(5, 9))
def test_holes_are_those_of_the_whole_volume(seed, share, low, high):
    mask = np.zeros((8, 9, 8), bool)
    box = mask[low:high, : high - low, low:]  # touches none, one or more borders
    box[...] = np.random.default_rng(seed).random(box.shape) < share
    before = mask.copy()
    np.testing.assert_array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))
    np.testing.assert_array_equal(mask, before)


def test_an_empty_mask_has_no_holes():
    assert not fill_holes(np.zeros((3, 4, 5), bool)).any()
