"""Heads to learn brain extraction from, the network's input and loss, and a training that goes on where it stopped."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("torch")

import torch
from MSTKDSegmentLib import brain_extraction
from MSTKDSegmentLib.brain_network import BRIGHTEST, SIDE, BrainNet, brain_loss, network_input
from MSTKDSegmentLib.errors import InputError, WeightsError
from MSTKDSegmentLib.weights import read_bundle

from training.brain.export import export_brain_network
from training.brain.heads import AIR, FLUID, POOL_MM, TISSUES, Brain, Head, HeadMaker, read_head
from training.brain.train import BrainConfig, check, train
from training.distributed import World

SMALL = (4, 4, 4, 4, 4)


def ball(radius: float, side: int = 60) -> torch.Tensor:
    z, y, x = np.indices((side,) * 3) - (side - 1) / 2
    return torch.from_numpy((z**2 + y**2 + x**2 < radius**2).astype(np.float32))


@pytest.fixture(scope="module")
def brain() -> Brain:
    mask = ball(25)
    return Brain(torch.stack([mask * 1.0, mask * 0.5]).half(), mask.half())


@pytest.fixture(scope="module")
def head(brain) -> Head:
    labels = (ball(29) * 6).long()
    labels[brain.mask > 0] = FLUID
    return Head(brain, labels.byte())


# --- what the network sees -------------------------------------------------------------------------------------------


def test_the_input_runs_from_0_to_1_between_the_percentiles():
    cube = np.zeros((10, 10, 10), np.float32)
    cube[5:] = np.linspace(1, 501, 500).reshape(5, 10, 10)
    seen = network_input(cube)
    assert seen.dtype == np.float32 and seen[0].max() == 0
    assert seen.max() == pytest.approx(501 / np.percentile(cube[5:], 99), rel=1e-5)
    assert seen.max() <= BRIGHTEST
    np.testing.assert_allclose(network_input(cube * 7), seen, rtol=1e-5)


def test_a_cube_without_contrast_is_refused():
    with pytest.raises(ValueError, match="no contrast"):
        network_input(np.zeros((8, 8, 8), np.float32))


def test_negative_values_are_lifted():
    cube = np.random.default_rng(0).normal(0, 100, (20, 20, 20)).astype(np.float32)
    assert network_input(cube).min() == 0.0 and network_input(cube).mean() > 0.2


def test_the_loss_is_dice_plus_cross_entropy():
    mask = torch.zeros(1, 1, 2, 2, 2)
    mask[0, 0, 0] = 1
    even = torch.zeros(1, 1, 2, 2, 2)  # probability 1/2 everywhere
    assert float(brain_loss(even, mask)) == pytest.approx(1 - (2 * 2 + 1) / (4 + 4 + 1) + np.log(2))
    sure = (mask * 2 - 1) * 50
    assert float(brain_loss(sure, mask)) == pytest.approx(0, abs=1e-6)


def test_logits_have_the_inputs_shape():
    network = BrainNet(SMALL)
    assert network(torch.rand(2, 1, 32, 48, 16)).shape == (2, 1, 32, 48, 16)


# --- heads -----------------------------------------------------------------------------------------------------------


def test_heads_are_what_the_network_sees_and_always_different(brain, head):
    make = HeadMaker([brain], [head], seed=3)
    pairs = [make() for _ in range(4)]
    for image, mask in pairs:
        assert image.shape == mask.shape == (1, SIDE, SIDE, SIDE)
        assert image.min() >= 0 and image.max() <= BRIGHTEST
        assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(pairs[0][0], pairs[1][0])
    again = HeadMaker([brain], [head], seed=3)()
    torch.testing.assert_close(again[0], pairs[0][0])


def test_the_mask_is_where_the_brain_went(brain, head):
    """Its volume is the brain's times the scaling (0.88 to 1.15, each axis 6 % more or less), unless it was cut."""
    make = HeadMaker([brain], [head], seed=0)
    volumes = [float(make()[1].sum()) * 2.5**3 for _ in range(12)]
    true = float(brain.mask.float().sum()) * POOL_MM**3
    assert max(volumes) < true * (1.15 * 1.06) ** 3 * 1.3
    assert np.median(volumes) > true * 0.25


def test_without_a_head_nothing_can_be_learnt(brain):
    with pytest.raises(InputError, match="no head"):
        HeadMaker([brain], [], seed=0)


def test_an_atlas_is_read_with_its_tissues(tmp_path):
    side = 60
    mask, skull = ball(20, side).numpy(), ball(27, side).numpy()
    rng = np.random.default_rng(0)
    head_image = sitk.GetImageFromArray(
        (100 * mask + (skull - mask) * rng.uniform(30, 300, mask.shape)).astype(np.float32)
    )
    brain_image = sitk.GetImageFromArray((100 * mask + rng.uniform(0, 5, mask.shape) * mask).astype(np.float32))
    paths = []
    for name, image in (("head", head_image), ("brain", brain_image)):
        image.SetSpacing((2.0, 2.0, 2.0))
        paths.append(tmp_path / f"{name}.nii.gz")
        sitk.WriteImage(image, str(paths[-1]))
    found = read_head(*paths)
    labels = found.labels.numpy()
    assert found.brain.mask.sum() == pytest.approx(mask.sum(), rel=0.05)
    assert set(np.unique(labels)) == {AIR, *range(1, TISSUES + 1), FLUID}
    assert (labels[mask > 0] == FLUID).mean() > 0.95 and labels[0].max() == AIR


# --- training and export ---------------------------------------------------------------------------------------------


def test_training_goes_on_and_ends_in_a_bundle(brain, head, tmp_path, monkeypatch):
    monkeypatch.setattr("training.brain.train.BrainNet", lambda: BrainNet(SMALL))
    monkeypatch.setattr("training.brain.export.WIDTHS", SMALL)
    monkeypatch.setattr("training.brain.train.SAVE_EVERY", 1)
    told: list[str] = []
    train(BrainConfig(steps=1, workers=0), [brain], [head], tmp_path / "run", World(), told.append)
    network = train(BrainConfig(steps=2, workers=0), [brain], [head], tmp_path / "run", World(), told.append)
    assert [line.split(":")[0] for line in told] == ["step 1 of 1", "step 2 of 2"]
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2]
    with pytest.raises(InputError, match="other settings"):
        train(BrainConfig(steps=2, seed=9, workers=0), [brain], [head], tmp_path / "run", World(), told.append)
    scores = check(network, [brain], [head], count=1)
    assert scores["n"] == 1 and 0 <= scores["lowest"] <= scores["mean"] <= 1
    export_brain_network(tmp_path / "brain.zip", network, {"config": {}}, scores)
    card = read_bundle(tmp_path / "brain.zip").card
    assert card["preset"] == "brain-extraction" and card["metrics"]["dice_on_synthetic_heads"] == scores
    assert "SRI24" in card["licence"] and "BraTS" in card["licence"]


# --- the weights that ship -------------------------------------------------------------------------------------------


def test_the_shipped_network_says_what_it_learnt_from():
    card = read_bundle(brain_extraction.bundle_path()).card
    assert card["training"]["brains"]["n"] > 0 and card["training"]["heads"]
    assert card["metrics"]["dice_on_synthetic_heads"]["mean"] > 0.9
    assert brain_extraction.bundle_path().stat().st_size < 4e6


def test_weights_of_another_network_are_refused(monkeypatch, tmp_path):
    from MSTKDSegmentLib.weights import default_bundle_path

    monkeypatch.setattr(brain_extraction, "bundle_path", default_bundle_path)
    brain_extraction._network.cache_clear()
    try:
        with pytest.raises(WeightsError, match="not for brain-extraction"):
            brain_extraction._network()
    finally:
        brain_extraction._network.cache_clear()
