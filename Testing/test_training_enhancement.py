"""Tumours that do not enhance: what T1Gd shows then, what the labels say, and when there is nothing to take away."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("monai", reason="training needs the `train` extra")

from MSTKDSegmentLib.modalities import MODALITIES

from training.augment import Augmentation
from training.config import AugmentationConfig, SamplingConfig
from training.crops import CropDataset
from training.enhancement import without_enhancement
from training.losses import UNENHANCED

T1, GD = MODALITIES.index("T1"), MODALITIES.index("T1Gd")
MIDDLE = 20


def patient() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """images (4, 30, 36, 41) of which T1Gd is 2 T1 + 1 and 5 brighter in ET; labels; T1Gd without the enhancement."""
    z, y, x = np.meshgrid(np.arange(30), np.arange(36), np.arange(41), indexing="ij")
    brain = ((z - 15) / 13) ** 2 + ((y - 18) / 16) ** 2 + ((x - MIDDLE) / 17) ** 2 < 1
    t1 = np.where(brain, 1 + y / 36 + z / 60, 0)
    labels = np.zeros(brain.shape, np.uint8)
    labels[12:19, 15:22, 25:32] = 2
    labels[13:18, 16:21, 26:31] = 3
    labels[15, 18, 28] = 1
    plain = np.where(brain, 2 * t1 + 1, 0)
    images = np.stack([t1, plain + 5 * (labels == 3), t1, t1]).astype(np.float32)
    return images, labels, plain.astype(np.float32)


def test_t1_with_the_contrast_of_healthy_t1gd_stands_where_the_enhancement_was():
    images, labels, plain = patient()
    before = images.copy()
    made, relabelled = without_enhancement(images, labels)
    assert made[GD] == pytest.approx(plain, abs=1e-5)
    others = [T1, MODALITIES.index("T2"), MODALITIES.index("FLAIR")]
    assert np.array_equal(made[others], images[others])
    assert np.array_equal(relabelled == UNENHANCED, (labels == 1) | (labels == 3))
    assert np.array_equal(relabelled == 2, labels == 2)
    assert np.array_equal(images, before)
    assert (made.dtype, relabelled.dtype) == (images.dtype, labels.dtype)


def test_what_is_fine_at_the_mirrored_place_is_added_and_what_lies_elsewhere_stays():
    images, labels, plain = patient()
    column = 2 * MIDDLE - 28
    images[GD, 15, 18, column] += 3  # a vessel opposite the tumour
    images[GD, 5, 18, MIDDLE] += 3  # and one far from it
    made, _ = without_enhancement(images, labels)
    added = made[GD] - plain
    assert added[15, 18, 28] == pytest.approx(3 * (1 - 1 / 7**3), abs=0.02)
    assert added[15, 18, column] == pytest.approx(3, abs=1e-5)
    assert added[5, 18, MIDDLE] == pytest.approx(3, abs=1e-5)


def test_without_enhancement_or_either_sequence_there_is_nothing_to_take_away():
    images, labels, _ = patient()
    assert without_enhancement(images, np.where(labels == 3, 2, labels)) is None
    for channel in (T1, GD):
        absent = images.copy()
        absent[channel] = 0
        assert without_enhancement(absent, labels) is None
    flat = images.copy()
    flat[T1] = flat[T1] != 0  # no contrast in T1 that could be scaled
    assert without_enhancement(flat, labels) is None


class OnePatient:
    names = ("Case_1",)

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return patient()[:2]


def test_crops_lose_the_enhancement_only_where_t1gd_is_seen():
    off = Augmentation(AugmentationConfig(flip=0, affine=0, shift_scale=0, gamma=0, noise=0, blur=0, low_resolution=0))
    data = CropDataset(OnePatient(), (30, 36, 41), 3, SamplingConfig(unenhanced_share=1.0), off)
    seen = set()
    for number in range(16):
        item = data[number]
        with_t1gd = bool(item["availability"][GD])
        assert item["case"].endswith("without enhancement") == with_t1gd
        assert bool((item["label"] == 3).any()) != with_t1gd
        assert bool((item["label"] == UNENHANCED).any()) == with_t1gd
        seen.add(with_t1gd)
    assert seen == {True, False}
