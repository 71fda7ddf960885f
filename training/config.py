"""One YAML file describes a run: typed, unknown keys are errors, `key=value` overrides win.

`base: other.yaml` starts from another file beside it, so that an ablation states only what it changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from MSTKDSegmentLib.modalities import SUBSETS, subset_name
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid")
SIDE_MULTIPLE = 32
WITH_FEATURES = ("compact", "medium", "paper")  # the presets of MST-KDNet; the others are baselines

Count = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Factor = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


class ConfigError(ValueError):
    """A key that does not exist or a value that does not fit."""


def _require_subsets(names: Iterable[str]) -> None:
    known = {subset_name(subset) for subset in SUBSETS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"unknown subset {', '.join(unknown)}; the subsets are {', '.join(sorted(known))}")


@dataclass(frozen=True, config=STRICT)
class Phase:
    """`steps` optimiser steps at one crop size (D, H, W, multiples of 32) and global batch size."""

    steps: Count
    crop: tuple[int, int, int]
    batch: Count = 1

    def __post_init__(self) -> None:
        if any(side % SIDE_MULTIPLE or side < SIDE_MULTIPLE for side in self.crop):
            raise ValueError("crop needs three multiples of 32")


@dataclass(frozen=True, config=STRICT)
class OptimiserConfig:
    """adam as in the paper (weight decay added to the gradient), adamw (decoupled, none on norms and biases).

    schedule: after a linear warm-up, `constant`, `poly` ((1 - t)^power, as the published code) or `cosine`, both down
    to `final_learning_rate`. gradient_clip: largest norm, 0 for none.
    """

    name: Literal["adam", "adamw"] = "adamw"
    learning_rate: Positive = 6e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: Factor = 1e-2
    gradient_clip: Factor = 1.0
    schedule: Literal["constant", "poly", "cosine"] = "cosine"
    final_learning_rate: Factor = 1e-5
    warmup_steps: Steps = 200
    power: Positive = 0.9


@dataclass(frozen=True, config=STRICT)
class SamplingConfig:
    """Where crops come from and which sequences the student sees.

    tumour_share: probability that a crop is centred on a tumour label (each label that is present equally often).
    full_share: probability of all four sequences, before a draw over the 15 subsets.
    subset_weights: how often that draw takes a subset ("T1+T2": 3), 1 where none is given: more for those that lag.
    healthy_share: probability of a brain without tumour: the patient's own, the tumour's half replaced by the mirror
    image of the other one (`mirror.without_tumour`); patients with tumour in both halves stay as they are.
    place_only_share: of those, how many have only the tumour's place replaced, and so keep the halves' differences.
    unenhanced_share: where the student sees T1Gd, probability of a tumour that does not enhance
    (`enhancement.without_enhancement`). Not without T1Gd, where nobody could tell.
    resection_cavity: label 4 of BraTS 2024 is `background`, `ignore`d by the segmentation loss, or a fifth `class`.
    memory_gb: prepared cases kept in a computer's memory; further ones are read again when they are drawn.
    """

    tumour_share: Share = 0.8
    full_share: Share = 0.2
    subset_weights: dict[str, Factor] = field(default_factory=dict)
    healthy_share: Share = 0.0
    place_only_share: Share = 0.0
    unenhanced_share: Share = 0.0
    centre_jitter: Steps = 8
    resection_cavity: Literal["background", "ignore", "class"] = "background"
    workers: Steps = 1
    memory_gb: Factor = 8.0

    def __post_init__(self) -> None:
        _require_subsets(self.subset_weights)
        if not any(self.weights):
            raise ValueError("subset_weights: every subset has weight 0")

    @property
    def weights(self) -> tuple[float, ...]:
        """Of each subset, in the order of `SUBSETS`."""
        return tuple(self.subset_weights.get(subset_name(subset), 1.0) for subset in SUBSETS)


@dataclass(frozen=True, config=STRICT)
class AugmentationConfig:
    """Probabilities (per crop, or per sequence for intensities) and ranges; 0 switches a transform off.

    flip: of each of `flip_axes` (0 feet to head, 1 front to back, 2 left to right). Upside down no brain is scanned:
    where crops hold the whole of it, [2] leaves the network its knowledge of where things are.
    shear: largest tangent of the affine map's. histogram: a random monotone curve through the intensities.
    carve_mix: probability of pasting another patient's lesion (CarveMix, Zhang et al. 2023), for small cohorts.
    """

    flip: Share = 0.5
    flip_axes: tuple[Literal[0, 1, 2], ...] = (0, 1, 2)
    affine: Share = 0.4
    rotate_degrees: Factor = 20.0
    scale: Factor = 0.15
    shear: Factor = 0.0
    histogram: Share = 0.0
    shift_scale: Share = 0.5
    gamma: Share = 0.2
    bias_field: Share = 0.1
    noise: Share = 0.15
    blur: Share = 0.1
    low_resolution: Share = 0.1
    carve_mix: Share = 0.0


@dataclass(frozen=True, config=STRICT)
class TeacherConfig:
    """Who teaches. none: plain modality dropout. frozen: a trained network from `weights` (bundle or checkpoint).

    joint: a second network learns beside the student, as in the published code (Dice: teacher_share of it, the student
    the rest). ema: the moving average of the student with all four sequences (needs no `weights`).
    preset: the teacher's network, empty for the student's; both need necks of one size (compact and medium have).
    """

    mode: Literal["none", "frozen", "joint", "ema"] = "none"
    weights: str = ""
    preset: Literal["", "compact", "medium", "paper"] = ""
    teacher_share: Share = 0.4  # the published code's 0.4 / 0.6

    def __post_init__(self) -> None:
        if self.mode == "frozen" and not self.weights:
            raise ValueError("a frozen teacher needs `weights`: a bundle or a checkpoint")
        for name in ("weights", "preset"):
            if self.mode in ("none", "ema") and getattr(self, name):
                raise ValueError(f"mode {self.mode} has no use for `{name}`")


@dataclass(frozen=True, config=STRICT)
class DistillationConfig:
    """Factors of eq. 4 (alpha, beta), 8 (lambda_mse, lambda_kd, tau), 11 (epsilon, theta) and 12 (lambda_1 to 4).

    The paper names none of their values. tau is the published code's; the others are ours, set so that no term is
    below a thousandth or above the segmentation loss at the start (`training/README.md` shows the shares). A factor of
    0 switches a term off, and it is not computed. All but lambda_4 grow from 0 over `ramp_steps`; from `until_step` on
    (0: never) the student learns from the labels alone, so that Dice has the last word: the logit terms ask for honest
    probabilities, which stay below one half where a sequence that shows a region is missing. The teacher teaches those
    samples alone in which at least `least_missing` sequences are missing.
    """

    lambda_1: Factor = 1.0  # MS-TKD
    lambda_2: Factor = 1.0  # DMLD
    lambda_3: Factor = 1.0  # GSME
    lambda_4: Factor = 1.0  # Dice and cross entropy
    alpha: Factor = 0.1
    beta: Factor = 0.1
    lambda_mse: Factor = 0.01
    lambda_kd: Factor = 2.0
    tau: Positive = 7.0
    epsilon: Factor = 0.02
    theta: Factor = 1.0
    discriminator_learning_rate: Positive = 1e-4
    ramp_steps: Steps = 0
    until_step: Steps = 0
    least_missing: Annotated[int, Field(ge=0, le=3)] = 0


@dataclass(frozen=True, config=STRICT)
class ValidationConfig:
    """Dice of the averaged student on the validation split every so many steps (0: never); the best is kept.

    On the prepared 1 mm grid, for these subsets; the figures of a paper come from `evaluate`, in native space.
    """

    every: Steps = 0
    subsets: tuple[str, ...] = ("T1+T1Gd+T2+FLAIR", "T1Gd+FLAIR", "FLAIR")

    def __post_init__(self) -> None:
        _require_subsets(self.subsets)


@dataclass(frozen=True, config=STRICT)
class TrainingConfig:
    """One run. `initial_weights`: a bundle or checkpoint to start from; empty: random, from `seed`.

    absent_smoothing: voxels of smoothing in the Dice loss of regions that a crop does not have; 1 is as for those that
    it has, and hardly speaks against what is made up (`losses.region_dice_loss`).
    """

    preset: Literal["compact", "medium", "paper", "segresnet", "unetr"] = "compact"
    initial_weights: str = ""
    seed: int = 1
    phases: tuple[Phase, ...] = (Phase(100, (64, 64, 64)),)
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    gradient_checkpointing: bool = False
    ema_decay: Share = 0.998
    absent_smoothing: Positive = 1.0
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    checkpoint_every: Count = 100
    log_every: Count = 50

    def __post_init__(self) -> None:
        if self.teacher.mode != "none" and self.preset not in WITH_FEATURES:
            raise ValueError(
                f"preset {self.preset} is a baseline: it has no features to distil, set teacher.mode: none"
            )
        if self.teacher.mode == "joint" and self.distillation.least_missing:
            raise ValueError("a joint teacher learns from every sample: set distillation.least_missing: 0")
        sizes = {self.preset, self.teacher.preset or self.preset}
        if len(sizes) > 1 and "paper" in sizes:
            raise ValueError(f"a teacher of preset {self.teacher.preset} cannot teach {self.preset}, the necks differ")
        if self.gradient_checkpointing and self.preset not in WITH_FEATURES:
            raise ValueError(f"preset {self.preset} is a baseline: it has no gradient checkpointing")

    @property
    def total_steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def classes(self) -> int:
        """Channels of the network's output: background, NCR, ED, ET, and the cavity where it is a class."""
        return 5 if self.sampling.resection_cavity == "class" else 4

    def learning_rate_at(self, step: int) -> float:
        """Of optimiser step number `step`, counted from 0."""
        o = self.optimiser
        if step < o.warmup_steps:
            return o.learning_rate * (step + 1) / o.warmup_steps
        share = min((step - o.warmup_steps) / max(self.total_steps - o.warmup_steps, 1), 1.0)
        left = {
            "constant": 1.0,
            "poly": (1 - share) ** o.power,
            "cosine": 0.5 * (1 + math.cos(math.pi * share)),
        }[o.schedule]
        return o.final_learning_rate + (o.learning_rate - o.final_learning_rate) * left


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainingConfig:
    """The configuration in `path` with `overrides` such as `seed=3` or `augmentation.noise=0`.

    Raises ConfigError naming the file and the key for anything unknown or unfit.
    """
    data = _read(path)
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator:
            raise ConfigError(f"override {text!r}: expected key=value")
        *parents, last = key.split(".")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"override {text!r}: {parent} is a value, not a group of keys")
        place[last] = yaml.safe_load(value) if value else ""
    return config_from_dict(data, str(path))


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's data over its `base`'s."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML ({error})") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected keys and values")
    base = data.pop("base", None)
    if base is None:
        return data
    place = (path.parent / base).resolve()
    if place in (*seen, path.resolve()):
        raise ConfigError(f"{path}: base {base} leads back to itself")
    return _merged(_read(place, (*seen, path.resolve())), data)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        both_groups = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both_groups else value
    return result


def config_from_dict(data: Mapping[str, Any], source: str) -> TrainingConfig:
    """Plain data (YAML, JSON, a checkpoint's copy) as a TrainingConfig; ConfigError names `source` and the key."""
    try:
        return TypeAdapter(TrainingConfig).validate_python(dict(data))
    except ValidationError as error:
        raise ConfigError(f"{source}: {'; '.join(_problem(item) for item in error.errors())}") from error


def _problem(item: Mapping[str, Any]) -> str:
    place = ".".join(map(str, item["loc"]))
    if item["type"] == "unexpected_keyword_argument":
        return f"unknown key {place}"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def plain(config: TrainingConfig) -> dict[str, Any]:
    """As JSON would give it back (lists, no tuples), so that two configurations compare whatever they came through."""
    return TypeAdapter(TrainingConfig).dump_python(config, mode="json")


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` for every value of two plain configurations that differs."""
    found: list[str] = []
    for key in sorted(set(before) | set(now)):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {old} -> {new}")
    return found


def written(config: TrainingConfig) -> str:
    """The whole configuration as YAML, defaults included."""
    return yaml.safe_dump(plain(config), sort_keys=False)
