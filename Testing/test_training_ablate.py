"""Ablations: what each variant changes, which comparisons are refused, and the whole command on two phantoms."""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("monai", reason="training needs the `train` extra")
pytest.importorskip("yaml", reason="training needs the `train` extra")

from training_phantom import write_labelled_case  # noqa: E402

from training.ablate import DEFAULT_VARIANTS, VARIANTS, require_same_sources, run_ablation, variants  # noqa: E402
from training.cache import CachedCases, prepare_case  # noqa: E402
from training.checkpoint import LAST  # noqa: E402
from training.commands import ablate as command  # noqa: E402
from training.config import (  # noqa: E402
    ConfigError,
    DistillationConfig,
    Phase,
    SamplingConfig,
    TeacherConfig,
    TrainingConfig,
    differences,
    load_config,
    plain,
    written,
)
from training.discovery import find_case  # noqa: E402
from training.loop import Stopped  # noqa: E402
from training.networks import read_checkpoint  # noqa: E402

PHASES = (Phase(7, (96, 96, 96), 2), Phase(3, (96, 96, 96), 1))
FROZEN = TrainingConfig(phases=PHASES, seed=5, teacher=TeacherConfig(mode="frozen", weights="teacher.pt"))
EMA = replace(FROZEN, teacher=TeacherConfig(mode="ema"))
TINY = replace(EMA, phases=(Phase(2, (32, 32, 32)),), sampling=SamplingConfig(workers=0), precision="fp32")
NO_TEACHER = ["teacher.mode: frozen -> none", "teacher.weights: teacher.pt -> "]


# --- what differs ---


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("full", []),
        ("without-ms-tkd", ["distillation.lambda_1: 1.0 -> 0.0"]),
        ("without-gsme", ["distillation.lambda_3: 1.0 -> 0.0"]),
        ("without-slkd", ["distillation.lambda_kd: 2.0 -> 0.0"]),
        ("no-distillation", NO_TEACHER),
        ("segresnet", ["preset: compact -> segresnet", *NO_TEACHER]),
        ("unetr", ["preset: compact -> unetr", *NO_TEACHER]),
    ],
)
def test_a_variant_changes_its_keys_and_no_other(name, changes):
    (config,) = variants(FROZEN, [name]).values()
    assert differences(plain(FROZEN), plain(config)) == changes


@pytest.mark.parametrize("base", [FROZEN, EMA, replace(EMA, teacher=TeacherConfig(mode="joint"))])
def test_budgets_and_seeds_are_equal(base):
    every = variants(base, VARIANTS)
    assert tuple(every) == VARIANTS
    for config in every.values():
        for key in ("seed", "phases", "optimiser", "sampling", "augmentation", "precision", "ema_decay"):
            assert getattr(config, key) == getattr(base, key)
        assert config.total_steps == 10


def test_the_shipped_configuration_of_the_real_run_has_every_variant():
    base = load_config(Path(__file__).parents[1] / "training" / "configs" / "compact-small-cohort.yaml")
    without = variants(base, DEFAULT_VARIANTS)["no-distillation"]
    assert (without.teacher.mode, without.teacher.preset) == ("none", "")


def test_the_default_is_the_papers_table_and_a_student_without_teacher():
    assert tuple(variants(FROZEN)) == DEFAULT_VARIANTS
    assert len(DEFAULT_VARIANTS) == 5


def test_a_name_given_twice_counts_once_and_the_order_is_kept():
    assert list(variants(FROZEN, ["segresnet", "full", "segresnet"])) == ["segresnet", "full"]


# --- what is refused ---


@pytest.mark.parametrize(
    ("base", "name", "words"),
    [
        (FROZEN, "without-everything", r"unknown variant 'without-everything'; there are full, "),
        (replace(FROZEN, teacher=TeacherConfig()), "without-gsme", r"without-gsme: the base has no teacher"),
        (replace(FROZEN, teacher=TeacherConfig()), "full", r"full: the base has no teacher"),
        (replace(FROZEN, initial_weights="x.zip"), "segresnet", r"starts from x\.zip.*initial_weights=\"\""),
        (replace(FROZEN, phases=(*PHASES, Phase(1, (96, 128, 96)))), "unetr", r"96 x 128 x 96.*phases=\[\{steps: 11"),
        (replace(FROZEN, distillation=DistillationConfig(lambda_3=0)), "without-gsme", r"computes nothing.*lambda_3"),
        (replace(FROZEN, distillation=DistillationConfig(lambda_2=0)), "without-slkd", r"computes nothing.*lambda_kd"),
    ],
)
def test_unfair_or_empty_comparisons_are_refused(base, name, words):
    with pytest.raises(ConfigError, match=words):
        variants(base, ["no-distillation", name])


def test_no_variant_is_refused():
    with pytest.raises(ConfigError, match="no variant is named"):
        variants(FROZEN, [])


def test_a_base_without_a_teacher_still_gives_what_needs_none():
    plain_base = replace(FROZEN, teacher=TeacherConfig())
    assert variants(plain_base, ["no-distillation"])["no-distillation"] == plain_base


def test_variants_of_different_teachers_cannot_be_compared():
    def state(digest):
        return {"history": [{"teacher_sha256": digest}]}

    none = {"history": [{}]}
    require_same_sources({"full": state("a" * 64), "no-distillation": none, "without-gsme": state("a" * 64)})
    with pytest.raises(ValueError, match=r"full and without-gsme cannot be compared: teacher_sha256 is aaaa.*bbbb"):
        require_same_sources({"full": state("a" * 64), "no-distillation": none, "without-gsme": state("b" * 64)})


# --- the whole command ---


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two labelled phantoms, their cache, splits and a configuration."""
    root = tmp_path_factory.mktemp("ablate")
    for seed, name in enumerate(("BraTS2021_00001", "BraTS2021_00002")):
        prepare_case(find_case(write_labelled_case(root / "data", name, seed=seed)), root / "cache")
    (root / "splits.json").write_text(json.dumps({"train": ["BraTS2021_00001"], "val": ["BraTS2021_00002"]}))
    (root / "base.yaml").write_text(written(TINY))
    return root


def run(place, out, *more):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    files = ["--config", "base.yaml", "--splits", "splits.json", "--cache", "cache", "--data", "data"]
    texts = [text if text.startswith("--") else str(place / text) for text in files]
    command.run(parser.parse_args([*texts, "--out", str(out), "--device", "cpu", *more]))


def rows(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_one_command_trains_scores_and_compares_and_again_does_nothing_twice(place, tmp_path, capsys):
    run(place, tmp_path, "--variants", "full,no-distillation")
    assert {path.name for path in tmp_path.iterdir()} == {"full", "no-distillation", "tables"}
    table = rows(tmp_path / "tables" / "val" / "table4.csv")
    assert [row["method"] for row in table] == ["full", "no-distillation"]
    assert all(0 <= float(table[0][f"dice {region}"]) <= 100 for region in ("WT", "TC", "ET"))
    budgets = rows(tmp_path / "tables" / "val" / "variants.csv")
    assert [row["changes"] for row in budgets] == ["none", "teacher.mode: ema -> none"]
    assert {(row["seed"], row["steps"], row["crops"]) for row in budgets} == {("5", "2", "2")}
    for name in ("full", "no_distillation"):
        (tested, *_) = rows(tmp_path / "tables" / "val" / f"comparison_dice_with_{name}.csv")
        assert tested["reference"] == name.replace("_", "-")
        assert {"ci95_low", "ci95_high", "p", "p_holm"} <= set(tested)
    assert len(rows(tmp_path / "tables" / "val" / "subsets_dice.csv")[0]) == 2 + 15 + 1
    assert "Table 4, ablations" in (tmp_path / "tables" / "val" / "tables.md").read_text(encoding="utf-8")

    before = {name: (tmp_path / name / LAST).read_bytes() for name in ("full", "no-distillation")}
    capsys.readouterr()
    run(place, tmp_path, "--variants", "no-distillation,segresnet", "--no-evaluate")
    said = capsys.readouterr().out
    assert "variant 1 of 2, no-distillation: trained already" in said
    assert "variant 2 of 2, segresnet: training" in said
    assert before == {name: (tmp_path / name / LAST).read_bytes() for name in before}
    assert read_checkpoint(tmp_path / "segresnet" / LAST)["step"] == 2


def test_what_cannot_work_is_refused_before_anything_is_trained(place, tmp_path):
    with pytest.raises(ValueError, match="shares patients with the training part"):
        run(place, tmp_path, "shares patients with the training part", "train")
    with pytest.raises(FileNotFoundError, match=r"full: teacher\.weights: missing\.pt: no such file"):
        run(place, tmp_path, "--variants", "no-distillation,full", "teacher.mode=frozen", "teacher.weights=missing.pt")
    assert not list(tmp_path.iterdir())
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    texts = ["--config", "c.yaml", "--splits", "s.json", "--cache", "c", "--out", "o"]
    with pytest.raises(ValueError, match="--data is missing"):
        command.run(parser.parse_args(texts))


class Interrupting:
    """Cases that send Ctrl-C to this process when the first crop is drawn."""

    def __init__(self, cases):
        self.cases, self.names = cases, cases.names

    def __len__(self):
        return len(self.cases)

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGINT)
        return self.cases[index]


def test_ctrl_c_ends_the_command_and_the_next_one_goes_on(place, tmp_path):
    cases = CachedCases(place / "cache", ["BraTS2021_00001"])
    names = ["no-distillation", "full"]
    with pytest.raises(Stopped, match="stopped at step 1 of 2"):
        run_ablation(TINY, names, Interrupting(cases), tmp_path, told=lambda _text: None)
    assert [path.name for path in tmp_path.iterdir()] == ["no-distillation"]

    with pytest.raises(ValueError, match=r"no-distillation/last\.pt was trained with .*\(seed: 5 -> 6\)"):
        run_ablation(replace(TINY, seed=6), ["full", "no-distillation"], cases, tmp_path)
    assert not (tmp_path / "full").exists()

    told: list[str] = []
    run_ablation(TINY, names, cases, tmp_path, told=told.append)
    assert told == ["variant 1 of 2, no-distillation: training", "variant 2 of 2, full: training"]
    assert [read_checkpoint(tmp_path / name / LAST)["step"] for name in names] == [2, 2]


def test_the_help_names_every_variant():
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    said = "".join(parser.format_help().split())  # lines break behind hyphens
    assert all(name in said for name in VARIANTS)
