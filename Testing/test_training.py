"""The engine and the loop: steps, teachers, exact resume, stopping in every way, validation, logs."""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

torch = pytest.importorskip("torch")
pytest.importorskip("monai", reason="training needs the `train` extra")
pytest.importorskip("pydantic", reason="training needs the `train` extra")

import torch.nn.functional as F  # noqa: E402
import training_run as tiny  # noqa: E402
from MSTKDSegmentLib.errors import OutputError, WeightsError  # noqa: E402
from MSTKDSegmentLib.geometry import canonical_grid  # noqa: E402
from MSTKDSegmentLib.network import ResidualBlock, space_to_depth  # noqa: E402
from MSTKDSegmentLib.weights import default_bundle_path  # noqa: E402

from training import losses  # noqa: E402
from training.cache import CachedCases  # noqa: E402
from training.config import (  # noqa: E402
    AugmentationConfig,
    DistillationConfig,
    OptimiserConfig,
    Phase,
    SamplingConfig,
    TeacherConfig,
    ValidationConfig,
    plain,
)
from training.distributed import World, joined_world  # noqa: E402
from training.engine import Trainer  # noqa: E402
from training.loop import Stopped, run_training  # noqa: E402
from training.networks import build_training_network, factorised  # noqa: E402
from training.runlog import read_log  # noqa: E402
from training.validation import framed, predicted_labels, validation_dice  # noqa: E402


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return tiny.prepared_cases(tmp_path_factory.mktemp("cohort"))


@pytest.fixture(scope="module")
def teacher(cases, tmp_path_factory):
    """A checkpoint to be taught by, of another seed and two steps."""
    out = tmp_path_factory.mktemp("teacher")
    return run(tiny.changed(seed=5, phases=(Phase(2, (32, 32, 32)),)), cases, out)


def run(config, cases, out, **options):
    return run_training(config, cases, out, tensorboard=False, **options)


def loaded(path):
    return torch.load(path, weights_only=True)


def same_tensors(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def with_teacher(mode, teacher, **distillation):
    weights = str(teacher) if mode == "frozen" else ""
    return tiny.changed(teacher=TeacherConfig(mode, weights), distillation=DistillationConfig(**distillation))


def tensors_of(value, path=""):
    """Every tensor in nested dictionaries and lists, by its place."""
    if torch.is_tensor(value):
        return {path: value}
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {place: tensor for key, item in pairs for place, tensor in tensors_of(item, f"{path}/{key}").items()}


# --- steps ---


def test_half_precision_scales_its_gradients_and_takes_a_step(cases):
    trainer = Trainer(tiny.changed(precision="fp16"))
    before = trainer.network.stem.weight.clone()
    assert math.isfinite(trainer.train_step(tiny.batch(cases, 3))["loss"])
    assert trainer.scaler.get_scale() > 1
    assert "scaler" in trainer.state_dict()
    assert not torch.equal(before, trainer.network.stem.weight)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_few_steps_lower_the_loss_on_one_crop(cases, precision):
    trainer = Trainer(tiny.changed(precision=precision, optimiser=OptimiserConfig(learning_rate=2e-3, warmup_steps=1)))
    item = tiny.batch(cases, 3)
    found = [trainer.train_step(item)["loss"] for _ in range(12)]
    assert found[-1] < 0.75 * found[0]


@pytest.mark.parametrize("mode", ["frozen", "joint", "ema"])
def test_the_loss_is_the_weighted_sum_of_all_terms(cases, teacher, mode):
    trainer = Trainer(with_teacher(mode, teacher))
    figures = trainer.train_step(tiny.batch(cases, 0, 1))
    weights = losses.term_weights(trainer.config.distillation)
    total = sum(weights[name] * figures[f"term/{name}"] for name in losses.TERMS)
    assert figures["loss"] == pytest.approx(total, rel=1e-4)
    assert sum(figures[f"share/{name}"] for name in losses.TERMS) == pytest.approx(1, abs=1e-4)


def test_at_the_start_every_term_has_a_sensible_share(cases):
    """A random student and a trained teacher: no term is below a thousandth of the total, none above segmentation."""
    taught = tiny.changed(teacher=TeacherConfig("frozen", str(default_bundle_path())))
    figures = Trainer(taught).train_step(tiny.batch(cases, 0, 1, 2, 3))
    shares = {name: figures[f"share/{name}"] for name in losses.TERMS}
    assert min(shares.values()) > 1e-3
    assert max(shares, key=lambda name: shares[name]) == "segmentation"


def test_terms_without_a_weight_are_not_computed_and_the_ramp_spares_the_segmentation(cases, teacher):
    trainer = Trainer(with_teacher("frozen", teacher, lambda_1=0, lambda_3=0, ramp_steps=4))
    assert trainer.discriminator is None
    figures = trainer.train_step(tiny.batch(cases, 0))
    assert {name for name in figures if name.startswith("term/")} == {
        "term/segmentation",
        "term/logit_mse",
        "term/logit_kl",
    }
    weights = losses.term_weights(trainer.config.distillation)
    distilled = sum(weights[name] * figures[f"term/{name}"] for name in ("logit_mse", "logit_kl"))
    assert figures["loss"] == pytest.approx(figures["term/segmentation"] + distilled / 4, rel=1e-4)


def with_sequences(item, *counts):
    availability = torch.zeros(len(counts), 4)
    for row, count in zip(availability, counts):
        row[:count] = 1
    return {**item, "availability": availability}


def test_the_teacher_teaches_only_where_enough_sequences_are_missing(cases, teacher):
    taught = with_teacher("frozen", teacher, least_missing=2)
    item = with_sequences(tiny.batch(cases, 0, 1, 2), 4, 2, 3)
    figures = Trainer(taught).train_step(item)
    # The one sample of three that misses two sequences, by itself.
    alone = Trainer(taught).train_step({name: value[1:2] for name, value in item.items()})
    names = [name for name in losses.TERMS if name != "segmentation"]
    for name in names:
        assert figures[f"term/{name}"] == pytest.approx(alone[f"term/{name}"], rel=1e-3), name
    weights = losses.term_weights(taught.distillation)
    distilled = sum(weights[name] * alone[f"term/{name}"] for name in names)
    assert figures["loss"] == pytest.approx(figures["term/segmentation"] + distilled / 3, rel=1e-3)


def test_where_too_few_are_missing_only_the_labels_teach(cases, teacher):
    trainer = Trainer(with_teacher("frozen", teacher, least_missing=2))
    item = with_sequences(tiny.batch(cases, 0, 1), 4, 3)
    figures = trainer.train_step(item)
    assert figures["loss"] == pytest.approx(figures["term/segmentation"], rel=1e-6)
    without = Trainer(tiny.changed())
    without.train_step(item)
    for (name, mine), theirs in zip(trainer.network.named_parameters(), without.network.parameters()):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-6), name


def test_a_frozen_teacher_is_its_file_and_stays_as_it_was(cases, teacher):
    trainer = Trainer(with_teacher("frozen", teacher))
    trainer.train_step(tiny.batch(cases, 0))
    assert same_tensors(dict(trainer.teacher.state_dict()), loaded(teacher)["average"])
    assert not trainer.teacher.training
    assert all(p.grad is None for p in trainer.teacher.parameters())
    assert len(trainer.history[0]["teacher_sha256"]) == 64


def test_distillation_teaches_the_student_and_never_the_joint_teacher(cases):
    """Without a share in the Dice term, a joint teacher gets no gradient from any of the distillation losses."""
    config = tiny.changed(
        teacher=TeacherConfig("joint", teacher_share=0.0), optimiser=OptimiserConfig("adam", weight_decay=0)
    )
    trainer = Trainer(config)
    before, student = copy.deepcopy(trainer.teacher.state_dict()), copy.deepcopy(trainer.network.state_dict())
    trainer.train_step(tiny.batch(cases, 0))
    assert same_tensors(before, trainer.teacher.state_dict())
    assert not same_tensors(student, trainer.network.state_dict())
    learning = Trainer(replace(config, teacher=TeacherConfig("joint")))
    learning.train_step(tiny.batch(cases, 0))
    assert not same_tensors(before, learning.teacher.state_dict())


def test_the_ema_teacher_is_the_average_and_its_decay_grows(cases, teacher):
    trainer = Trainer(with_teacher("ema", teacher))
    assert trainer.teacher is trainer.average
    start = {name: value.clone() for name, value in trainer.average.state_dict().items()}
    trainer.train_step(tiny.batch(cases, 0))
    # After one step the decay is (1 + 1) / (10 + 1).
    for name, value in trainer.average.state_dict().items():
        expected = 2 / 11 * start[name] + 9 / 11 * trainer.network.state_dict()[name]
        assert torch.allclose(value, expected, atol=1e-6), name


def test_the_discriminator_learns_from_its_own_optimiser_alone(cases, teacher):
    trainer = Trainer(with_teacher("frozen", teacher))
    before = copy.deepcopy(trainer.discriminator.state_dict())
    optimiser = trainer.discriminator_optimiser
    for _ in range(2):
        trainer.train_step(tiny.batch(cases, 0))
    assert trainer.discriminator_optimiser is optimiser
    assert optimiser.state_dict()["state"][0]["step"] == 2
    assert not same_tensors(before, trainer.discriminator.state_dict())
    mine = {id(p) for group in trainer.optimiser.param_groups for p in group["params"]}
    assert not mine & {id(p) for p in trainer.discriminator.parameters()}


def test_gradient_checkpointing_gives_the_same_gradients(cases, teacher):
    gradients = []
    for saving in (False, True):
        trainer = Trainer(replace(with_teacher("frozen", teacher), gradient_checkpointing=saving))
        trainer.train_step(tiny.batch(cases, 1))
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.network.parameters()]))
    assert torch.allclose(*gradients, atol=1e-6)


def test_adam_is_the_papers_and_adamw_spares_norms_and_biases():
    adam = Trainer(tiny.changed(optimiser=OptimiserConfig("adam", weight_decay=1e-5))).optimiser
    assert type(adam) is torch.optim.Adam
    assert [group["weight_decay"] for group in adam.param_groups] == [1e-5]
    groups = Trainer(tiny.changed(optimiser=OptimiserConfig("adamw", weight_decay=0.1))).optimiser.param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert min(p.ndim for p in groups[0]["params"]) > 1
    assert max(p.ndim for p in groups[1]["params"]) == 1


def test_gradients_are_clipped_to_the_norm_asked_for(cases):
    trainer = Trainer(tiny.changed(optimiser=OptimiserConfig(gradient_clip=1e-3)))
    reported = trainer.train_step(tiny.batch(cases, 0))["gradient_norm"]
    left = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in trainer.network.parameters()]))
    assert reported > 1e-2
    assert float(left) == pytest.approx(1e-3, rel=1e-2)


def test_segresnet_trains_like_the_student(cases):
    trainer = Trainer(tiny.changed(preset="segresnet"))
    figures = trainer.train_step(tiny.batch(cases, 0))
    assert math.isfinite(figures["loss"])
    assert figures["share/segmentation"] == 1.0


def test_unetr_takes_its_own_crop_alone_and_whole_cases_in_windows(cases):
    pytest.importorskip("einops", reason="MONAI's UNETR needs it")
    network = build_training_network("unetr").eval()
    with pytest.raises(ValueError, match="crops of 96 voxels"):
        network(torch.zeros(1, 4, 32, 32, 32), torch.ones(1, 4))
    found, _ = predicted_labels(network, cases[0][0], ("FLAIR",), "cpu")
    assert found.shape == cases[0][1].shape


def test_a_network_with_a_cavity_class_learns_and_predicts_tumour_labels(cases):
    trainer = Trainer(tiny.changed(sampling=SamplingConfig(workers=0, resection_cavity="class")))
    item = tiny.batch(cases, 0)
    item["label"][:, :2] = 4
    assert math.isfinite(trainer.train_step(item)["loss"])
    assert trainer.network.config.classes == 5
    found, notices = predicted_labels(trainer.average, cases[0][0], ("FLAIR",), "cpu")
    assert found.shape == cases[0][1].shape
    assert found.max() <= 3
    assert notices == []


# --- initial weights and teachers from files ---


def test_a_run_starts_from_the_weights_of_a_checkpoint_and_says_which(cases, teacher):
    trainer = Trainer(tiny.changed(initial_weights=str(teacher)))
    assert same_tensors(dict(trainer.network.state_dict()), loaded(teacher)["average"])
    trainer.train_step(tiny.batch(cases, 0))
    assert len(trainer.history[0]["initial_weights_sha256"]) == 64


def test_weights_that_do_not_fit_are_refused(teacher, tmp_path):
    with pytest.raises(WeightsError, match="weights of preset 'compact', the run's preset is 'segresnet'"):
        Trainer(tiny.changed(preset="segresnet", initial_weights=str(teacher)))
    with pytest.raises(WeightsError, match="no such file"):
        Trainer(tiny.changed(initial_weights=str(tmp_path / "none.pt")))
    (tmp_path / "x.pt").write_bytes(b"junk")
    with pytest.raises(WeightsError, match="not a training checkpoint, or damaged"):
        Trainer(tiny.changed(initial_weights=str(tmp_path / "x.pt")))


def saved_medium(path):
    """A checkpoint of a `medium` network with random weights, and these."""
    torch.manual_seed(9)
    weights = build_training_network("medium").state_dict()
    state = {"config": plain(tiny.changed(preset="medium")), "average": weights, "step": 1}
    torch.save(state, path)
    return weights


def test_compact_starts_from_medium_without_its_further_blocks_but_not_the_other_way(teacher, tmp_path):
    weights = saved_medium(tmp_path / "medium.pt")
    network = Trainer(tiny.changed(initial_weights=str(tmp_path / "medium.pt"))).network
    mine, expected = dict(network.state_dict()), factorised(weights, network.state_dict())
    left_out = {name.split(".body")[0] for name in expected.keys() - mine.keys()}
    assert same_tensors(mine, {name: expected[name] for name in mine})
    assert left_out == {"decoder.0.0", "decoder.1.1"}
    with pytest.raises(WeightsError, match=r"the run's preset is 'medium'; \d+ of its tensors are not among them"):
        Trainer(tiny.changed(preset="medium", initial_weights=str(teacher)))


def test_whole_kernels_that_are_products_are_factorised_without_loss():
    """A stem that sees only the middle 4x4x4 voxels, and blocks whose kernels are products, compute the same."""
    torch.manual_seed(3)
    stem = torch.nn.Conv3d(4, 8, 4, stride=2, padding=1, bias=False)
    cells = torch.zeros(8, 4, 6, 6, 6)
    cells[..., 1:5, 1:5, 1:5] = stem.weight.detach()
    whole_stem = cells.reshape(8, 4, 3, 2, 3, 2, 3, 2).permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(8, 32, 3, 3, 3)
    separable, whole = ResidualBlock(8, 1, 4, separable=True), ResidualBlock(8, 1, 4)
    torch.nn.init.normal_(separable.body[0][2].weight)
    plane, line = separable.body[0][0].weight.detach(), separable.body[0][1].weight.detach()
    weights = {"stem.weight": whole_stem, **{f"b.{name}": value for name, value in whole.state_dict().items()}}
    weights["b.body.0.0.weight"] = torch.einsum("otz,tiyx->oizyx", line[..., 0, 0], plane[:, :, 0])
    weights["b.body.0.1.weight"] = separable.body[0][2].weight.detach()
    wanted = {"stem.weight": stem.weight, **{f"b.{name}": value for name, value in separable.state_dict().items()}}
    found = factorised(weights, wanted)
    assert torch.equal(found["stem.weight"], stem.weight)
    x = torch.randn(1, 4, 8, 8, 8)
    assert torch.allclose(F.conv3d(space_to_depth(x, 2), whole_stem, padding=1), stem(x), atol=1e-5)
    y, before = torch.randn(1, 8, 5, 6, 7), copy.deepcopy(separable)
    separable.load_state_dict({name.removeprefix("b."): found[name] for name in wanted if name.startswith("b.")})
    assert torch.allclose(separable(y), before(y), atol=1e-5)


def test_a_larger_teacher_until_the_labels_alone_count(cases, tmp_path):
    """`medium` teaches `compact` for two steps; the third is what a run without a teacher does."""
    saved_medium(tmp_path / "medium.pt")
    taught = Trainer(
        tiny.changed(
            teacher=TeacherConfig("frozen", str(tmp_path / "medium.pt"), "medium"),
            distillation=DistillationConfig(until_step=2),
        )
    )
    terms = [set(), set(), set()]
    for number in range(2):
        terms[number] = set(taught.train_step(tiny.batch(cases, number)))
    alone = Trainer(tiny.changed())
    alone.load_state_dict(copy.deepcopy(taught.state_dict()))
    items = tiny.batch(cases, 2)
    last, expected = taught.train_step(items), alone.train_step(items)
    assert all({f"term/{name}" for name in losses.TERMS} <= terms[number] for number in range(2))
    assert {name for name in last if name.startswith("term/")} == {"term/segmentation"}
    assert last == expected
    assert same_tensors(dict(taught.network.state_dict()), dict(alone.network.state_dict()))


def test_the_labels_alone_weigh_what_they_weighed_beside_a_teacher(cases, teacher):
    frozen = Trainer(with_teacher("frozen", teacher, lambda_4=0.5, until_step=1))
    joint = Trainer(with_teacher("joint", teacher, until_step=1))
    for trainer, weight in ((frozen, 0.5), (joint, 0.6)):
        trainer.step = 1
        figures = trainer.train_step(tiny.batch(cases, 1))
        assert figures["loss"] == pytest.approx(weight * figures["term/segmentation"], rel=1e-5)


# --- resume ---


@pytest.mark.parametrize(
    ("mode", "precision", "workers"),
    [("none", "fp32", 0), ("frozen", "bf16", 1), ("joint", "fp32", 0), ("ema", "bf16", 0)],
)
def test_resume_goes_on_bit_by_bit(cases, teacher, mode, precision, workers, tmp_path):
    """Ten steps are five and five more, over the border of two crop sizes, in everything that a checkpoint holds."""
    config = replace(
        with_teacher(mode, teacher, ramp_steps=6),
        phases=(Phase(7, (32, 32, 32)), Phase(3, (32, 32, 64), 2)),
        precision=precision,
        sampling=SamplingConfig(workers=workers),
        augmentation=AugmentationConfig(carve_mix=0.3),
    )
    whole = loaded(run(config, cases, tmp_path / "whole"))
    run(config, cases, tmp_path / "parts", stop_after=5)
    assert loaded(tmp_path / "parts" / "last.pt")["step"] == 5
    parts = loaded(run(config, cases, tmp_path / "parts"))
    assert whole["step"] == parts["step"] == 10
    ours, theirs = tensors_of(whole), tensors_of(parts)
    assert len(ours) > 500
    assert ours.keys() == theirs.keys()
    different = [place for place in ours if not torch.equal(ours[place], theirs[place])]
    assert different == []
    for kind in ("network", "average", *(["teacher"] if mode == "joint" else [])):
        assert f"/{kind}/stem.weight" in ours
    if mode != "none":
        assert any(place.startswith("/discriminator_optimiser/") for place in ours)


def test_another_configuration_is_refused_or_recorded(cases, tmp_path):
    run(tiny.TINY, cases, tmp_path)
    longer = tiny.changed(phases=(*tiny.TINY.phases, Phase(1, (32, 32, 32))))
    with pytest.raises(ValueError, match=r"another configuration \(phases: "):
        run(longer, cases, tmp_path)
    state = loaded(run(longer, cases, tmp_path, change_config=True))
    assert [entry["from_step"] for entry in state["history"]] == [0, 4]
    assert len(state["history"][1]["config"]["phases"]) == 3
    assert state["step"] == 5


def test_a_run_keeps_its_configuration_versions_and_commit(cases, tmp_path):
    from training.config import load_config

    run(tiny.TINY, cases, tmp_path, stop_after=1)
    assert load_config(tmp_path / "config.yaml") == tiny.TINY
    about = json.loads((tmp_path / "versions.json").read_text(encoding="utf-8"))
    assert about["versions"]["torch"] == torch.__version__
    assert about["commit"]


def test_a_changed_setting_of_the_optimiser_counts_from_then_on(cases, tmp_path):
    run(tiny.TINY, cases, tmp_path, stop_after=1)
    changed = tiny.changed(optimiser=replace(tiny.TINY.optimiser, weight_decay=0.5, betas=(0.8, 0.9)))
    state = loaded(run(changed, cases, tmp_path, change_config=True))
    group = state["optimiser"]["param_groups"][0]
    assert (group["weight_decay"], tuple(group["betas"])) == (0.5, (0.8, 0.9))
    assert state["optimiser"]["state"][0]["step"] == 4


def test_another_network_or_optimiser_in_an_old_folder_is_one_clear_line(cases, tmp_path):
    run(tiny.TINY, cases, tmp_path, stop_after=1)
    with pytest.raises(ValueError, match="checkpoint's network does not fit the configuration"):
        run(tiny.changed(preset="segresnet"), cases, tmp_path, change_config=True)
    with pytest.raises(ValueError, match="checkpoint's optimiser does not fit the configuration"):
        run(tiny.changed(optimiser=OptimiserConfig("adam")), cases, tmp_path, change_config=True)


def test_other_patients_or_another_teacher_are_a_change_too(cases, teacher, tmp_path):
    run(tiny.TINY, cases, tmp_path / "a", stop_after=1)
    with pytest.raises(ValueError, match="training cases: 1 fewer, 0 new"):
        run(tiny.TINY, CachedCases(cases.cache, ["Case_1"]), tmp_path / "a")
    mine = tmp_path / "teacher.pt"
    mine.write_bytes(teacher.read_bytes())
    config = with_teacher("frozen", mine)
    run(config, cases, tmp_path / "b", stop_after=1)
    run(tiny.changed(seed=8), cases, tmp_path / "other", stop_after=1)
    mine.write_bytes((tmp_path / "other" / "last.pt").read_bytes())
    with pytest.raises(ValueError, match=r"teacher\.weights: the file has other contents"):
        run(config, cases, tmp_path / "b")


def test_a_finished_run_is_left_as_it_is(cases, tmp_path):
    path = run(tiny.TINY, cases, tmp_path)
    before = path.read_bytes()
    assert run(tiny.TINY, cases, tmp_path) == path
    assert path.read_bytes() == before


# --- ways of ending early ---


class Hooked:
    """Cases that call `hook` when the `at`-th crop is drawn."""

    def __init__(self, cases, at, hook):
        self.cases, self.at, self.hook, self.drawn, self.names = cases, at, hook, 0, cases.names

    def __len__(self):
        return len(self.cases)

    def __getitem__(self, index):
        self.drawn += 1
        if self.drawn == self.at:
            self.hook()
        return self.cases[index]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_says_how_to_go_on_and_loses_nothing(cases, number, tmp_path):
    whole = loaded(run(tiny.TINY, cases, tmp_path / "whole"))
    before = signal.getsignal(number)
    stopping = Hooked(cases, 3, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Stopped, match=r"stopped at step \d of 4; .*last.pt is saved. Run the same command again"):
        run(tiny.TINY, stopping, tmp_path / "parts")
    assert signal.getsignal(number) is before
    assert 0 < loaded(tmp_path / "parts" / "last.pt")["step"] < 4
    parts = loaded(run(tiny.TINY, cases, tmp_path / "parts"))
    assert same_tensors(whole["network"], parts["network"])


def test_what_a_killed_run_left_half_written_is_cleared_away(cases, tmp_path):
    (tmp_path / ".last.4711.tmp.pt").write_bytes(b"half a checkpoint")
    run(tiny.TINY, cases, tmp_path, stop_after=1)
    assert [p.name for p in tmp_path.iterdir() if ".tmp" in p.name] == []


def test_a_nan_names_its_case_and_keeps_the_checkpoint(cases, tmp_path):
    run(tiny.TINY, cases, tmp_path, stop_after=1)
    before = (tmp_path / "last.pt").read_bytes()

    class Broken(Hooked):
        def __getitem__(self, index):
            images, labels = self.cases[index]
            return np.full_like(images, np.nan), labels

    with pytest.raises(FloatingPointError, match=r"at step 1 \(cases: Case_\d.*last checkpoint is untouched"):
        run(tiny.TINY, Broken(cases, 0, None), tmp_path)
    assert (tmp_path / "last.pt").read_bytes() == before
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".jsonl", ".pt", ".yaml"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_case_is_named_and_the_steps_so_far_are_kept(cases, workers, tmp_path):
    """A prepared file that went bad after the start; with a data worker there is no traceback in the message."""
    folder = tmp_path / "cache"
    folder.mkdir()
    for name in tiny.NAMES:
        (folder / f"{name}.npz").write_bytes((cases.cache / f"{name}.npz").read_bytes())
    config = tiny.changed(phases=(Phase(6, (32, 32, 32)),), sampling=SamplingConfig(workers=workers))
    reread = CachedCases(folder, tiny.NAMES, memory_limit_bytes=0)
    run(config, reread, tmp_path / "run", stop_after=1)
    broken = folder / "Case_2.npz"
    broken.write_bytes(broken.read_bytes()[:2000])
    with pytest.raises(ValueError) as caught:
        run(config, reread, tmp_path / "run")
    message = str(caught.value)
    assert str(broken) in message
    assert "are in" in message
    assert "Traceback" not in message
    assert "\n" not in message
    assert loaded(tmp_path / "run" / "last.pt")["step"] >= 1
    # The traceback still holds everything; a data worker that went on would keep the interpreter from ending.
    assert caught.tb is not None
    assert multiprocessing.active_children() == []


def test_endless_overflow_in_half_precision_ends_the_run(cases):
    trainer = Trainer(tiny.changed(precision="fp16"))
    # As if the gradients had been NaN at every step so far: the scale was halved down to one.
    trainer.scaler.load_state_dict({**trainer.scaler.state_dict(), "scale": 1.0})
    trainer.network.head.bias.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(FloatingPointError, match="whatever its scale"):
        trainer.train_step(tiny.batch(cases, 0))


def test_a_full_disk_keeps_the_earlier_checkpoint(cases, tmp_path):
    """The limit on the size of a file stands for a full disk: the write of a large checkpoint fails half-way."""
    resource = pytest.importorskip("resource", reason="needs file size limits")
    run(tiny.TINY, cases, tmp_path, stop_after=1)
    before = (tmp_path / "last.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(OutputError, match=r"cannot be written .* GB are free there, the earlier one is untouched"):
            run(tiny.TINY, cases, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "last.pt").read_bytes() == before
    assert not list(tmp_path.glob(".*tmp*"))
    assert loaded(run(tiny.TINY, cases, tmp_path))["step"] == 4


# --- validation and logs ---


def test_validation_keeps_the_best_checkpoint_and_goes_into_the_log(cases, tmp_path):
    config = tiny.changed(validation=ValidationConfig(every=2, subsets=("FLAIR",)))
    with pytest.raises(ValueError, match="no validation cases"):
        run(config, cases, tmp_path)
    run(config, cases, tmp_path, validation_cases=cases)
    scores = {r["step"]: r["validation/score"] for r in read_log(tmp_path / "log.jsonl") if "validation/score" in r}
    assert list(scores) == [2, 4]
    best = loaded(tmp_path / "best.pt")
    assert best["best_score"] == max(scores.values())
    assert scores[best["step"]] == best["best_score"]


def test_validation_dice_by_hand(cases):
    """A network that answers with a fixed label: Dice of "everything is oedema" is known from the voxel counts."""

    class Constant(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = copy.copy(Trainer(tiny.TINY).network.config)
            self.scale = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, availability):
            logits = torch.zeros(x.shape[0], 4, *x.shape[2:])
            logits[:, 2] = 50.0
            return logits

    found = validation_dice(Constant(), cases, ("FLAIR",), World())
    expected = []
    for images, labels in (cases[0], cases[1]):
        brain = np.count_nonzero(images[3])
        whole = np.count_nonzero(labels)
        expected.append(2 * whole / (brain + whole))
    assert found["FLAIR WT"] == pytest.approx(np.mean(expected), abs=2e-3)
    assert found["FLAIR TC"] == found["FLAIR ET"] == 0
    assert found["score"] == pytest.approx(np.mean(expected) / 3, abs=2e-3)


def test_a_prepared_case_is_framed_as_the_product_frames_it():
    images = np.ones((4, 61, 64, 93), np.float16)
    framed_images, (z, y, x) = framed(images)
    # 61 + 2 * 2 mm of margin needs 96; 93 + 4 needs 128: 17.5 and 17.5 around.
    assert framed_images.shape == (4, 96, 96, 128)
    assert [side.start for side in (z, y, x)] == [18, 16, 18]
    assert framed_images[:, z, y, x].min() == 1
    assert framed_images.sum() == images.size
    image = sitk.GetImageFromArray(np.pad(images[0].astype(np.float32), 7))
    grid = canonical_grid({"T1": image}, "T1")
    assert grid.shape == framed_images.shape[1:]
    assert [7 - round(first) for first in grid.origin[::-1]] == [side.start for side in (z, y, x)]


def test_the_log_has_each_step_once_whatever_was_redone(cases, tmp_path):
    run(tiny.TINY, cases, tmp_path, stop_after=2)
    checkpoint = (tmp_path / "last.pt").read_bytes()
    run(tiny.TINY, cases, tmp_path)
    # As after a crash: the log is ahead of the checkpoint, and its last line was cut.
    (tmp_path / "last.pt").write_bytes(checkpoint)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 5, "lo')
    run(tiny.TINY, cases, tmp_path)
    records = read_log(tmp_path / "log.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert records[0]["crop"] == [32, 32, 32]
    assert records[3]["crop"] == [32, 32, 64]
    assert all(record["crops_per_second"] > 0 for record in records)


def test_tensorboard_curves_are_written(cases, tmp_path):
    pytest.importorskip("tensorboard", reason="curves need tensorboard")
    run_training(tiny.TINY, cases, tmp_path, stop_after=2)
    events = list((tmp_path / "tensorboard").glob("events*"))
    assert len(events) == 1
    assert b"term/segmentation" in events[0].read_bytes()


def test_without_a_terminal_progress_is_a_line_with_speed_and_time_left(cases, tmp_path, capsys):
    run(tiny.TINY, cases, tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("step 2/4  loss ")
    assert "crops/s" in lines[1]
    assert "left" in lines[1]


# --- devices ---


def test_a_missing_gpu_is_an_error_and_not_the_cpu_in_silence():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="shows torch 0 CUDA GPUs"), joined_world("cuda"):
        pass
    with joined_world("auto") as world:
        assert (world.device.type, world.size, world.is_main) == ("cpu", 1, True)
