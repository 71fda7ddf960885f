"""A run's configuration: types, unknown keys, overrides, files that build on others, schedules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("pydantic", reason="training needs the `train` extra")

from MSTKDSegmentLib.modalities import SUBSETS, subset_name

import training
from training.config import (
    ConfigError,
    OptimiserConfig,
    Phase,
    SamplingConfig,
    TrainingConfig,
    config_from_dict,
    differences,
    load_config,
    plain,
    written,
)
from training.export import read_texts

CONFIGS = sorted((Path(training.__file__).parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configurations_load(path):
    if path.stem.endswith("-card"):
        assert read_texts(path)["citations"]
    else:
        assert load_config(path).total_steps > 0


def test_the_papers_recipe_is_in_its_configuration():
    config = load_config(next(path for path in CONFIGS if path.stem == "paper-brats2024"))
    assert config.preset == "paper"
    assert config.phases[0].crop == (160, 192, 128)
    assert config.total_steps == 250 * 1080
    assert (config.optimiser.name, config.optimiser.learning_rate, config.optimiser.betas) == (
        "adam",
        1e-4,
        (0.9, 0.99),
    )
    assert (config.teacher.mode, config.teacher.teacher_share, config.distillation.tau) == ("joint", 0.4, 7.0)


def test_the_run_without_a_teacher_differs_in_the_teacher_alone():
    by_name = {path.stem: load_config(path) for path in CONFIGS if not path.stem.endswith("-card")}
    changed = differences(
        plain(by_name["compact-small-cohort"]), plain(by_name["compact-small-cohort-no-distillation"])
    )
    assert sorted(line.split(":")[0] for line in changed) == ["teacher.mode", "teacher.preset", "teacher.weights"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("preset: compact\nlearning_rat: 1\n", r"c\.yaml: unknown key learning_rat"),
        ("augmentation: {noize: 1}\n", "unknown key augmentation.noize"),
        ("teacher: {mode: frozen, weights: x.pt, preset: paper}\n", "paper cannot teach compact, the necks differ"),
        ("teacher: {mode: ema, preset: medium}\n", "mode ema has no use for `preset`"),
        ("phases: [{steps: 5, crop: [30, 32, 32]}]\n", r"phases\.0: crop needs three multiples of 32"),
        ("phases: [{steps: 5, crop: [32, 32]}]\n", "phases.0.crop"),
        ("preset: big\n", "preset: Input should be 'compact'"),
        ("optimiser: {learning_rate: fast}\n", "optimiser.learning_rate: Input should be a valid number"),
        ("teacher: {mode: frozen}\n", "teacher: a frozen teacher needs `weights`"),
        ("teacher: {mode: ema, weights: x.zip}\n", "mode ema has no use for `weights`"),
        ("preset: unetr\nteacher: {mode: ema}\n", "preset unetr is a baseline"),
        ("validation: {subsets: [FLAIR+T1]}\n", r"unknown subset FLAIR\+T1"),
        ("just words\n", "expected keys and values"),
        ("a: [1\n", "not YAML"),
        ("base: c.yaml\n", "leads back to itself"),
        ("log_every: 0\n", "log_every: Input should be greater than or equal to 1"),
        ("augmentation: {noise: 3}\n", "augmentation.noise: Input should be less than or equal to 1"),
        ("distillation: {tau: 0}\n", "distillation.tau: Input should be greater than 0"),
        ("teacher: {mode: joint}\ndistillation: {least_missing: 1}\n", "a joint teacher learns from every sample"),
        ("distillation: {least_missing: 4}\n", "least_missing: Input should be less than or equal to 3"),
        ("preset: segresnet\ngradient_checkpointing: true\n", "has no gradient checkpointing"),
    ],
)
def test_what_is_wrong_is_named(text, words, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(path)


def test_a_file_builds_on_another_group_by_group(tmp_path):
    (tmp_path / "base.yaml").write_text("seed: 5\naugmentation: {noise: 0, blur: 0.3}\n")
    (tmp_path / "top.yaml").write_text("base: base.yaml\naugmentation: {noise: 0.5}\n")
    config = load_config(tmp_path / "top.yaml")
    assert (config.seed, config.augmentation.noise, config.augmentation.blur) == (5, 0.5, 0.3)


def test_overrides_win_and_are_typed(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("seed: 1\n")
    config = load_config(path, ["seed=7", "augmentation.noise=0", "optimiser.learning_rate=1e-3"])
    # YAML 1.1 reads 1e-3 as text; the type makes a number of it.
    assert (config.seed, config.augmentation.noise, config.optimiser.learning_rate) == (7, 0.0, 1e-3)
    with pytest.raises(ConfigError, match="expected key=value"):
        load_config(path, ["seed"])
    with pytest.raises(ConfigError, match="seed is a value"):
        load_config(path, ["seed.x=1"])
    path.write_text("initial_weights: x.zip\n")
    assert load_config(path, ["initial_weights="]).initial_weights == ""


def test_a_configuration_survives_yaml_and_json(tmp_path):
    config = TrainingConfig(
        seed=9, phases=(Phase(3, (32, 64, 96), 2),), optimiser=OptimiserConfig("adam", betas=(0.8, 0.9))
    )
    path = tmp_path / "c.yaml"
    path.write_text(written(config))
    assert load_config(path) == config
    assert config_from_dict(json.loads(json.dumps(plain(config))), "x") == config
    assert differences(plain(config), plain(load_config(path))) == []


def rates(**optimiser):
    settings = {"learning_rate": 1.0, "final_learning_rate": 0.0, "warmup_steps": 10, **optimiser}
    config = TrainingConfig(phases=(Phase(110, (32, 32, 32)),), optimiser=OptimiserConfig(**settings))
    return [config.learning_rate_at(step) for step in range(110)]


def test_learning_rates_by_hand():
    """Ten steps of warm-up; half-way through the other hundred: cosine 1/2, poly (1/2)^0.9, constant 1."""
    for schedule, middle in (("cosine", 0.5), ("poly", 0.5**0.9), ("constant", 1.0)):
        found = rates(schedule=schedule)
        assert found[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
        assert found[60] == pytest.approx(middle)
    ends = rates(schedule="cosine", final_learning_rate=0.2)
    assert ends[60] == pytest.approx(0.6)
    assert ends[10:] == sorted(ends[10:], reverse=True)
    assert ends[-1] == pytest.approx(0.2, abs=1e-3)


def test_weights_of_subsets_are_in_the_order_of_the_subsets_and_known():
    assert set(SamplingConfig().weights) == {1.0}
    weights = SamplingConfig(subset_weights={"FLAIR": 2.0}).weights
    assert [weight for weight, subset in zip(weights, SUBSETS) if subset == ("FLAIR",)] == [2.0]
    assert sum(weights) == 16
    with pytest.raises(ValueError, match="unknown subset FLIAR"):
        SamplingConfig(subset_weights={"FLIAR": 2.0})
    with pytest.raises(ValueError, match="every subset has weight 0"):
        SamplingConfig(subset_weights={subset_name(subset): 0.0 for subset in SUBSETS})
