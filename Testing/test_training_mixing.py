"""CarveMix: the lesion of one case in another."""

from __future__ import annotations

import numpy as np
import pytest
import training_phantom as made
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from training import mixing
from training.mixing import carve_mix, carved_region

SIDES = st.tuples(*[st.integers(20, 36)] * 3)


def case(shape, seed, lesion=True):
    """fp16 z-scores, zero outside the brain, every value telling case, sequence and voxel apart; and labels."""
    images, labels = made.phantom(seed, shape)
    brain = images.any(axis=0)
    z = np.random.default_rng(seed).normal(10 * (seed + 1), 1, images.shape) * brain
    return z.astype(np.float16), labels * lesion


@settings(deadline=None, max_examples=25)
@given(SIDES, SIDES, st.integers(0, 2**32 - 1))
def test_every_voxel_is_of_one_case_with_its_own_label(shape_a, shape_b, seed):
    images_a, labels_a = case(shape_a, 0)
    images_b, labels_b = case(shape_b, 1)
    before = [array.copy() for array in (images_a, labels_a, images_b, labels_b)]
    images, labels = carve_mix(images_a, labels_a, images_b, labels_b, np.random.default_rng(seed))
    for array, copy in zip((images_a, labels_a, images_b, labels_b), before):
        assert np.array_equal(array, copy)
    assert (images.shape, images.dtype, labels.dtype) == (images_a.shape, np.float16, np.uint8)
    # B, its middle laid on A's.
    shift = [(a - b) // 2 for a, b in zip(shape_a, shape_b)]
    laid_images, laid_labels = np.zeros_like(images_a), np.zeros_like(labels_a)
    into = tuple(slice(max(s, 0), min(s + b, a)) for s, a, b in zip(shift, shape_a, shape_b))
    out_of = tuple(slice(i.start - s, i.stop - s) for i, s in zip(into, shift))
    laid_images[:, into[0], into[1], into[2]] = images_b[:, out_of[0], out_of[1], out_of[2]]
    laid_labels[into] = labels_b[out_of]
    foreign = (images != images_a).any(axis=0)
    assert foreign.any()
    assert np.array_equal(images[:, foreign], laid_images[:, foreign])
    assert np.array_equal(labels[foreign], laid_labels[foreign])
    assert np.array_equal(labels[~foreign], labels_a[~foreign])
    # The brain's outline is A's.
    assert np.array_equal(images != 0, images_a != 0)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_the_region_lies_within_half_the_depth_inside_and_the_whole_depth_outside(seed, coarse):
    lesion = np.zeros((40, 44, 42), bool)
    z, y, x = np.mgrid[:40, :44, :42]
    lesion[(z - 20) ** 2 + (y - 21) ** 2 + (x - 18) ** 2 < 8.2**2] = True
    distance = np.sqrt((z - 20) ** 2 + (y - 21) ** 2 + (x - 18) ** 2)
    with pytest.MonkeyPatch.context() as patch:
        if coarse:
            patch.setattr(mixing, "COARSE_FROM_VOXELS", 0)
        mask, corner = carved_region(lesion, np.random.default_rng(seed))
    place = tuple(slice(c, c + side) for c, side in zip(corner, mask.shape))
    region = np.zeros_like(lesion)
    region[place] = mask
    # The carved ball: between half the radius and twice the radius, in the middle of the lesion.
    radius = distance[region].max()
    assert 8.2 / 2 - 2 < radius < 2 * 8.2 + 2
    assert region[distance < radius - 2.5].all()
    assert (region <= lesion).all() or (region >= lesion).all()


def test_lambda_shrinks_and_grows_the_region_as_often_as_the_paper_says():
    """Depth d: U(-d/2, 0) leaves all voxels down to -1, U(0, d) adds none below 1; each is drawn half of the time."""
    lesion = made.phantom(0)[1] > 0
    depth = ndimage.distance_transform_edt(lesion).max()
    rng = np.random.default_rng(0)
    sizes = np.array([np.count_nonzero(carved_region(lesion, rng)[0]) for _ in range(600)])
    assert np.mean(sizes < np.count_nonzero(lesion)) == pytest.approx(0.5 * (1 - 2 / depth), abs=0.06)
    assert np.mean(sizes > np.count_nonzero(lesion)) == pytest.approx(0.5 * (1 - 1 / depth), abs=0.06)


def test_the_coarse_distance_is_that_of_every_voxel_within_a_voxel():
    z, y, x = np.mgrid[:31, :36, :33]
    ball = (z - 15) ** 2 + (y - 18) ** 2 + (x - 16) ** 2 < 12**2
    fine, coarse = mixing._distance(ball, 1), mixing._distance(ball, 2)
    assert coarse.shape == fine.shape
    assert np.abs(fine - coarse).max() < 2
    assert np.abs(fine - coarse).mean() < 0.6


def test_without_a_lesion_or_a_common_place_the_result_is_a_copy():
    a, b = case((24, 24, 24), 0), case((24, 24, 24), 1, lesion=False)
    images, labels = carve_mix(*a, *b, np.random.default_rng(0))
    assert np.array_equal(images, a[0])
    assert np.array_equal(labels, a[1])
    assert not np.shares_memory(images, a[0])
    # A lesion at the rim of a large box lies outside a small one.
    images_b, labels_b = np.ones((4, 60, 60, 60), np.float16), np.zeros((60, 60, 60), np.uint8)
    labels_b[1, 1, 1] = 3
    images, _ = carve_mix(*a, images_b, labels_b, np.random.default_rng(0))
    assert np.array_equal(images, a[0])


def test_a_sequence_that_the_first_case_lacks_stays_absent():
    (images_a, labels_a), b = case((28, 30, 26), 0), case((28, 30, 26), 1)
    images_a[2] = 0
    images, labels = carve_mix(images_a, labels_a, *b, np.random.default_rng(3))
    assert not images[2].any()
    assert (images[0] != images_a[0]).any()
    assert labels.any()


def test_the_same_generator_state_gives_the_same_mixture():
    a, b = case((28, 30, 26), 0), case((26, 30, 28), 1)
    first, again, other = (carve_mix(*a, *b, np.random.default_rng(seed))[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
