"""Crops: where they lie, which sequences the student sees, what the cavity becomes, and that they repeat exactly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("monai", reason="training needs the `train` extra")

import training_run as tiny  # noqa: E402
from MSTKDSegmentLib.modalities import SUBSETS  # noqa: E402

from training.augment import Augmentation, crop_around  # noqa: E402
from training.config import AugmentationConfig, SamplingConfig  # noqa: E402
from training.crops import CropDataset, choose_centre, choose_subset, kept_inside, trained_labels  # noqa: E402
from training.losses import IGNORE  # noqa: E402


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return tiny.prepared_cases(tmp_path_factory.mktemp("cohort"))


def test_crops_leave_the_volume_with_zeros():
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6) + 1
    crop = crop_around(array, (0, 2, 5), (4, 4, 4))
    assert crop.shape == (4, 4, 4)
    assert not crop[:2].any()
    assert not crop[..., 3:].any()
    assert crop[2, 2, 2] == array[0, 2, 5]


@pytest.mark.parametrize(("centre", "expected"), [((0, 50, 99), (16, 50, 84)), ((99, 0, 50), (84, 16, 50))])
def test_crops_stay_inside_where_they_fit(centre, expected):
    assert kept_inside(np.array(centre), (32, 32, 32), (100, 100, 100)).tolist() == list(expected)
    # Larger than the volume: all of it is in the crop, wherever the centre was drawn.
    assert kept_inside(np.array(centre), (128, 128, 128), (100, 100, 100)).tolist() == [50, 50, 50]


def test_centres_visit_every_label_and_subsets_are_as_likely_as_stated():
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[5, 5, 5], labels[10:14, 10:14, 10:14], labels[2, 2, 2] = 1, 2, 3
    rng = np.random.default_rng(0)
    hit = [labels[tuple(choose_centre(labels, rng, tumour_share=1.0))] for _ in range(600)]
    assert np.bincount(hit, minlength=4)[1:].min() > 150
    drawn = [choose_subset(rng, 0.2, SamplingConfig().weights) for _ in range(6000)]
    assert set(drawn) == set(SUBSETS)
    assert drawn.count(SUBSETS[-1]) / 6000 == pytest.approx(0.2 + 0.8 / 15, abs=0.03)
    assert drawn.count(("FLAIR",)) / 6000 == pytest.approx(0.8 / 15, abs=0.02)


def test_a_subset_is_drawn_as_often_as_its_weight_says():
    sampling = SamplingConfig(subset_weights={"T1": 5.0, "T1+T2": 0.0})
    rng = np.random.default_rng(0)
    drawn = [choose_subset(rng, 0.1, sampling.weights) for _ in range(6000)]
    assert drawn.count(("T1",)) / 6000 == pytest.approx(0.9 * 5 / 18, abs=0.02)
    assert drawn.count(("FLAIR",)) / 6000 == pytest.approx(0.9 / 18, abs=0.01)
    assert drawn.count(SUBSETS[-1]) / 6000 == pytest.approx(0.1 + 0.9 / 18, abs=0.02)
    assert ("T1", "T2") not in drawn


def test_without_a_teacher_absent_sequences_are_zero_and_the_others_are_augmented(cases):
    config = replace(tiny.TINY, augmentation=AugmentationConfig(affine=1.0))
    data = tiny.dataset(cases, config)
    alone = CropDataset(cases, data.crop, data.seed, data.sampling, data.augmentation, complete=False)
    seen = set()
    for number in range(12):
        taught, item = data[number], alone[number]
        assert torch.equal(item["label"], taught["label"])
        assert torch.equal(item["availability"], taught["availability"])
        filled = item["image"].flatten(1).any(1)
        assert torch.equal(filled, item["availability"] > 0)
        assert taught["image"].flatten(1).any(1).all()
        # The same places of the same patient: the brain's outline is the teacher's.
        assert torch.equal(item["image"][filled] != 0, taught["image"][filled] != 0)
        seen.add(tuple(filled.tolist()))
    assert len(seen) > 3


def test_a_number_gives_the_same_crop_again_and_others_differ(cases):
    config = replace(tiny.TINY, augmentation=AugmentationConfig(affine=1.0, carve_mix=0.5))
    first, again, other = (tiny.dataset(cases, config)[number] for number in (7, 7, 8))
    for name in ("image", "label", "availability"):
        assert torch.equal(first[name], again[name])
    assert first["case"] == again["case"]
    assert not torch.equal(first["image"], other["image"])
    assert not torch.equal(first["image"], tiny.dataset(cases, config, seed=2)[7]["image"])


def test_data_workers_change_nothing(cases):
    data = tiny.dataset(cases)
    alone, shared = (
        list(torch.utils.data.DataLoader(data, sampler=range(6), num_workers=workers)) for workers in (0, 2)
    )
    for one, other in zip(alone, shared):
        assert one["case"] == other["case"]
        for name in ("image", "label", "availability"):
            assert torch.equal(one[name], other[name])


def test_crops_hold_what_the_networks_expect(cases):
    items = [tiny.dataset(cases)[i] for i in range(12)]
    for item in items:
        assert item["image"].shape == (4, 32, 32, 32)
        assert item["image"].dtype == torch.float32
        assert item["label"].dtype == torch.int64
        assert set(item["label"].unique().tolist()) <= {0, 1, 2, 3}
        # The teacher sees all four sequences, whatever the student sees.
        assert (item["image"].abs().flatten(1).sum(1) > 0).all()
        assert item["case"] in tiny.NAMES
    assert len({tuple(item["availability"].tolist()) for item in items}) > 4
    assert {item["case"] for item in items} == set(tiny.NAMES)


def test_mixed_crops_say_so_and_can_be_switched_off(cases):
    always = replace(tiny.TINY, augmentation=AugmentationConfig(carve_mix=1.0))
    assert all("with the lesion of" in tiny.dataset(cases, always)[i]["case"] for i in range(4))
    assert all("lesion" not in tiny.dataset(cases)[i]["case"] for i in range(4))


def only(**values):
    """The transforms named, with these values, and no other."""
    off = dict.fromkeys(AugmentationConfig.__dataclass_fields__, 0.0)
    return Augmentation(AugmentationConfig(**{**off, "flip_axes": (2,), **values}))


def test_augmentation_off_gives_the_voxels_as_they_are(cases):
    config = replace(tiny.TINY, augmentation=only().config, sampling=SamplingConfig(workers=0))
    images, labels = cases[0]
    item = next(item for item in (tiny.dataset(cases, config)[i] for i in range(20)) if item["case"] == "Case_1")
    # A phantom of 28 x 32 x 30 fits into the crop, so it lies in its middle.
    middle = [side // 2 for side in labels.shape]
    assert np.array_equal(item["label"].numpy(), crop_around(labels, middle, (32, 32, 32)))
    assert np.allclose(item["image"].numpy(), crop_around(images, middle, (32, 32, 32)), atol=1e-2)


@pytest.mark.parametrize("axes", [(2,), (0, 1)])
def test_flips_are_along_the_chosen_axes_only(axes):
    augmentation = only(flip=1.0, flip_axes=axes)
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 8)).astype(np.float16)
    labels = np.random.default_rng(1).integers(0, 4, (8, 8, 8)).astype(np.uint8)
    cut = augmentation(images, labels, (4, 4, 4), (8, 8, 8), seed=3)
    assert np.allclose(cut["image"], np.flip(images, [axis + 1 for axis in axes]), atol=1e-5)
    assert np.array_equal(cut["label"], np.flip(labels, axes))


def test_the_histogram_is_bent_by_a_rising_curve_for_each_sequence():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, 12, 12, 12)).astype(np.float32)
    images[:, :2] = 0  # outside the brain
    labels = rng.integers(0, 4, (12, 12, 12)).astype(np.uint8)
    cut = only(histogram=1.0)(images, labels, (6, 6, 6), (12, 12, 12), seed=5)
    assert np.array_equal(cut["label"], labels)
    changes = []
    for before, after in zip(images, cut["image"].numpy()):
        assert not after[:2].any()
        order = np.argsort(before[2:].ravel())
        assert (np.diff(after[2:].ravel()[order]) >= -1e-5).all()
        changes.append(np.abs(after - before).max())
    assert min(changes) > 0.05
    assert len({round(float(change), 4) for change in changes}) == 4


def test_shearing_moves_image_and_label_together_and_keeps_the_middle():
    labels = np.zeros((32, 32, 32), np.uint8)
    labels[4:28, 10:22, 10:22] = 2
    images = np.repeat(labels[None].astype(np.float32), 4, axis=0)
    cut = only(affine=1.0, shear=0.3)(images, labels, (16, 16, 16), (32, 32, 32), seed=2)
    image, label = cut["image"].numpy()[0], cut["label"].numpy()
    assert ((image > 1) == (label == 2)).mean() > 0.99
    # Slices far from the middle have moved sideways, the one in the middle has not.
    middles = [np.argwhere(label[z] == 2).mean(axis=0) for z in (8, 16, 24)]
    assert np.abs(middles[1] - 15.5).max() < 1
    assert np.abs(middles[0] - middles[2]).max() > 1


def test_the_cavity_is_background_ignored_or_a_class():
    labels = torch.tensor([0, 1, 2, 3, 4])
    assert trained_labels(labels, "background").tolist() == [0, 1, 2, 3, 0]
    assert trained_labels(labels, "ignore").tolist() == [0, 1, 2, 3, IGNORE]
    assert trained_labels(labels, "class").tolist() == [0, 1, 2, 3, 4]
