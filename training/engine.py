"""One training step: student, teacher, discriminator, their optimisers and averages; everything a resume needs."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from MSTKDSegmentLib.network import Features, MSTKDNet
from torch import Tensor, nn

from training import losses
from training.config import TrainingConfig, plain
from training.distributed import World
from training.networks import Discriminator, TrainedState, build_training_network, known_cases, load_into
from training.provenance import current_commit, describe_hardware, package_versions

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _weights_and_plain(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: norms and biases are not decayed."""
    every = [p for p in parameters if p.requires_grad]
    return [
        {"params": [p for p in every if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
    ]


class Trainer:
    """A student in training, with its teacher and discriminator where the configuration has them.

    `network` is the student, `average` its moving average, which is what gets evaluated and exported. `history` tells
    how the weights came to be: one entry for each stretch of steps under one configuration on one machine.
    `earlier_cases`: what the initial weights and the teacher were trained on, None where one of them does not say.
    """

    def __init__(self, config: TrainingConfig, world: World | None = None, resumed: bool = False) -> None:
        """`resumed`: `load_state_dict` follows, so that the configuration's initial weights are not read again."""
        self.config, self.world = config, world or World()
        self.device = self.world.device
        self.step, self.seconds, self.best_score = 0, 0.0, -math.inf
        self.sources: dict[str, str] = {}
        self.earlier_cases: list[str] | None = []
        torch.manual_seed(config.seed)
        self.network = self._on_device(build_training_network(config.preset, config.classes, self._checkpointing))
        if config.initial_weights and not resumed:
            self._learn_from("initial_weights", load_into(self.network, config.initial_weights))
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.teacher = self._make_teacher()
        self.weights = losses.term_weights(config.distillation)
        self.wanted = losses.needed_terms(config.distillation) if self.teacher is not None else ("segmentation",)
        self.discriminator = self._make_discriminator()
        self.parallel = self.world.wrap(self.network)
        self.parallel_teacher = self.teacher
        if self.teacher is not None and self._teacher_learns:
            self.parallel_teacher = self.world.wrap(self.teacher)
        self.optimiser = self._make_optimiser()
        # Only half precision needs its gradients scaled into range.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.history: list[dict[str, Any]] = []
        self._stretch_noted = False

    # --- parts ---

    @property
    def _checkpointing(self) -> bool:
        return self.config.gradient_checkpointing

    @property
    def _teacher_learns(self) -> bool:
        return self.config.teacher.mode == "joint"

    @property
    def _distils(self) -> bool:
        """Whether this step has a teacher."""
        until = self.config.distillation.until_step
        return self.teacher is not None and (until == 0 or self.step < until)

    def _on_device(self, network: nn.Module) -> nn.Module:
        return network.to(self.device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]

    def _make_teacher(self) -> nn.Module | None:
        settings = self.config.teacher
        if settings.mode == "none":
            return None
        if settings.mode == "ema":
            return self.average
        preset = settings.preset or self.config.preset
        teacher = self._on_device(build_training_network(preset, self.config.classes, self._checkpointing))
        if settings.weights:
            self._learn_from("teacher", load_into(teacher, settings.weights))
        return teacher if settings.mode == "joint" else teacher.requires_grad_(False).eval()

    def _learn_from(self, name: str, source: TrainedState) -> None:
        self.sources[f"{name}_sha256"] = source.sha256
        self.earlier_cases = known_cases(self.earlier_cases, source.cases)

    def _make_discriminator(self) -> Discriminator | None:
        if "adversarial" not in self.wanted:
            return None
        channels = cast(MSTKDNet, self.network).config.widths[-1]
        discriminator = Discriminator(channels).to(self.device)
        # One optimiser for the whole run: the published code makes a new one at every step.
        self.discriminator_optimiser = torch.optim.Adam(
            discriminator.parameters(), lr=self.config.distillation.discriminator_learning_rate, betas=(0.5, 0.99)
        )
        self.parallel_discriminator = self.world.wrap(discriminator)
        return discriminator

    def _make_optimiser(self) -> torch.optim.Optimizer:
        settings = self.config.optimiser
        self.learners = list(self.network.parameters())
        if self._teacher_learns:
            self.learners += list(cast(nn.Module, self.teacher).parameters())
        if settings.name == "adam":
            return torch.optim.Adam(
                self.learners, settings.learning_rate, settings.betas, weight_decay=settings.weight_decay
            )
        groups = _weights_and_plain(self.learners, settings.weight_decay)
        return torch.optim.AdamW(groups, settings.learning_rate, settings.betas)

    # --- one step ---

    def train_step(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """One optimiser step; returns loss, gradient norm, learning rate, each unweighted term and weighted share.

        batch: image (N, 4, D, H, W) with all sequences, availability (N, 4) of the student, label (N, D, H, W).
        Raises FloatingPointError before a NaN reaches a weight.
        """
        if not self._stretch_noted:
            self._note_stretch()
        rate = self.config.learning_rate_at(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        total, terms, weighted, fused = self._losses(batch)
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        self.scaler.unscale_(self.optimiser)
        clip = self.config.optimiser.gradient_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.learners, clip)
        names = list(terms)
        # One transfer for all figures: each one by itself would make a GPU wait.
        figures = torch.stack([total.detach(), norm, *terms.values(), *weighted.values()]).float()
        values = self.world.mean(figures).tolist()
        self._require_finite(values[0], values[1], batch)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self._require_sound_scale()
        if fused is not None:
            self._discriminator_step(*fused)
        self.step += 1
        self._update_average()
        share = losses.shares(dict(zip(names, values[2 + len(names) :])))
        return {
            "loss": values[0],
            "gradient_norm": values[1],
            "learning_rate": rate,
            **{f"term/{name}": value for name, value in zip(names, values[2:])},
            **{f"share/{name}": value for name, value in share.items()},
        }

    def _losses(
        self, batch: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor], tuple[Tensor, Tensor] | None]:
        """Total (eq. 12), terms, weighted terms, and what the discriminator learns from: fused features of both."""
        self.network.train()
        image = batch["image"].to(self.device, memory_format=torch.channels_last_3d, non_blocking=True)
        mask = batch["availability"].to(self.device, non_blocking=True)
        labels = batch["label"].to(self.device, non_blocking=True)
        precision = PRECISIONS[self.config.precision]
        with torch.autocast(self.device.type, precision, enabled=self.config.precision != "fp32"):
            incomplete = image * mask[:, :, None, None, None].to(image.dtype)
            if not self._distils:
                logits = self.parallel(incomplete, mask)
                terms = {"segmentation": self._region_loss(logits, labels)}
                total, weighted = losses.weighted_total(terms, {"segmentation": self._weight_alone})
                return total, _detached(terms), _detached(weighted), None
            everything = self.parallel(incomplete, mask, True)
            taught = self._taught(batch["availability"])
            # Where there is nothing to teach, the terms are computed with weight 0: every process has the same terms.
            samples = taught or list(range(len(image)))
            teacher = self._teacher_features(_only(image, samples))
        student = Features(*(_only(feature, samples) for feature in everything))
        terms = self._terms(everything.logits, student, teacher, labels)
        weights = self._ramped_weights(len(taught) / len(image))
        total, weighted = losses.weighted_total(terms, weights)
        fused = (teacher.f_fused.detach(), student.f_fused.detach()) if self.discriminator is not None else None
        return total, _detached(terms), _detached(weighted), fused

    @property
    def _weight_alone(self) -> float:
        """Of the student's segmentation loss in a step without teacher: what it was beside one."""
        if self.teacher is None:
            return 1.0
        share = 1 - self.config.teacher.teacher_share if self._teacher_learns else 1.0
        return share * self.weights["segmentation"]

    def _taught(self, availability: Tensor) -> list[int]:
        """The samples that the teacher teaches, of which enough sequences are missing."""
        missing = (availability == 0).sum(dim=1).tolist()
        return [i for i, count in enumerate(missing) if count >= self.config.distillation.least_missing]

    def _ramped_weights(self, share_taught: float) -> dict[str, float]:
        """`share_taught` of the batch makes the terms of distillation means over all samples, taught or not."""
        steps = self.config.distillation.ramp_steps
        ramp = min(1.0, (self.step + 1) / steps) if steps else 1.0
        distilled = ramp * share_taught
        return {name: value * (1.0 if name == "segmentation" else distilled) for name, value in self.weights.items()}

    def _teacher_features(self, image: Tensor) -> Features:
        complete = torch.ones(image.shape[0], image.shape[1], device=self.device)
        if self._teacher_learns:
            cast(nn.Module, self.teacher).train()
            return cast(nn.Module, self.parallel_teacher)(image, complete, True)
        with torch.no_grad():
            return cast(nn.Module, self.teacher)(image, complete, True)

    def _terms(self, logits: Tensor, student: Features, teacher: Features, labels: Tensor) -> dict[str, Tensor]:
        """The terms that have a weight, in the order of `losses.TERMS`.

        logits, labels: of the whole batch; student, teacher: of the samples that are taught.
        """
        settings = self.config.distillation
        compute = {
            "segmentation": lambda: self._segmentation(logits, teacher, labels),
            "evd": lambda: losses.evd_loss(student.attentions, teacher.attentions),
            "mst": lambda: losses.mst_loss(student.tokens, teacher.tokens),
            "logit_mse": lambda: losses.logit_mse(student.logits, teacher.logits),
            "logit_kl": lambda: losses.standardised_kl(student.logits, teacher.logits, settings.tau),
            "adversarial": lambda: self._adversarial(student.f_fused),
            "gram": lambda: losses.gram_loss(
                (student.f_enc, student.f_t, student.f_dec), (teacher.f_enc, teacher.f_t, teacher.f_dec)
            ),
        }
        return {name: compute[name]() for name in self.wanted}

    def _segmentation(self, logits: Tensor, teacher: Features, labels: Tensor) -> Tensor:
        mine = self._region_loss(logits, labels)
        if not self._teacher_learns:
            return mine
        share = self.config.teacher.teacher_share
        return (1 - share) * mine + share * self._region_loss(teacher.logits, labels)

    def _region_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return losses.segmentation_loss(logits, labels, self.config.absent_smoothing)

    def _adversarial(self, fused: Tensor) -> Tensor:
        discriminator = cast(Discriminator, self.discriminator)
        # The student's gradient passes through the discriminator and must leave none in it.
        discriminator.requires_grad_(False)
        value = losses.adversarial_loss(discriminator(fused))
        discriminator.requires_grad_(True)
        return value

    def _discriminator_step(self, on_teacher: Tensor, on_student: Tensor) -> None:
        # One pass over both: DistributedDataParallel allows one forward pass per backward pass.
        judged = self.parallel_discriminator(torch.cat((on_teacher.float(), on_student.float())))
        loss = losses.discriminator_loss(*judged.chunk(2))
        self.discriminator_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.discriminator_optimiser.step()

    def _require_finite(self, loss: float, norm: float, batch: Mapping[str, Any]) -> None:
        # Scaled half precision overflows now and then by design; the scaler skips such a step.
        overflow = self.config.precision == "fp16" and math.isfinite(loss)
        if math.isfinite(loss) and (math.isfinite(norm) or overflow):
            return
        cases = ", ".join(batch.get("case", ())) or "unknown"
        raise FloatingPointError(
            f"the loss became {loss} and its gradient {norm} at step {self.step} (cases: {cases}); the last "
            "checkpoint is untouched. Check these cases with `python -m training check`, or go on from the checkpoint "
            "with a lower optimiser.learning_rate or precision=fp32"
        )

    def _require_sound_scale(self) -> None:
        # From 65,536 downwards by halves: sixteen overflows in a row are no overflow but a NaN in every gradient.
        if self.scaler.is_enabled() and self.scaler.get_scale() < 1:
            raise FloatingPointError(
                f"the gradient stayed infinite or NaN up to step {self.step}, whatever its scale; the last checkpoint "
                "is untouched. Go on from it with precision=bf16 or precision=fp32"
            )

    @torch.no_grad()
    def _update_average(self) -> None:
        # Early on the average must forget the random start: its memory grows with the step count.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for mean, value in zip(self.average.state_dict().values(), self.network.state_dict().values()):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)

    # --- state ---

    def _note_stretch(self) -> None:
        """Add to the history from which step on this configuration, machine and code go on."""
        self._stretch_noted = True
        stretch = {
            "config": plain(self.config),
            "hardware": describe_hardware(self.device),
            "processes": self.world.size,
            "versions": package_versions(),
            "commit": current_commit(),
            **self.sources,
        }
        if not self.history or {**stretch, "from_step": self.history[-1]["from_step"]} != self.history[-1]:
            self.history.append({"from_step": self.step, **stretch})

    def _parts(self) -> dict[str, Any]:
        """Everything with a state by its name in a checkpoint; a frozen teacher has its file, ema is `average`."""
        parts: dict[str, Any] = {"network": self.network, "average": self.average, "optimiser": self.optimiser}
        if self.scaler.is_enabled():
            parts["scaler"] = self.scaler
        if self._teacher_learns:
            parts["teacher"] = self.teacher
        if self.discriminator is not None:
            parts["discriminator"] = self.discriminator
            parts["discriminator_optimiser"] = self.discriminator_optimiser
        return parts

    def state_dict(self) -> dict[str, Any]:
        return {
            "history": self.history,
            "config": plain(self.config),
            "step": self.step,
            "seconds": self.seconds,
            "best_score": self.best_score,
            "earlier_cases": self.earlier_cases,
            **{name: part.state_dict() for name, part in self._parts().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`; parts that it lacks (a changed configuration added them) start afresh.

        Settings of the optimisers are this configuration's, their memory is the state's. Raises ValueError for a state
        of another network or another kind of optimiser.
        """
        for name, part in self._parts().items():
            if name not in state:
                continue
            settings = _settings(part)
            try:
                part.load_state_dict(state[name])
            except (RuntimeError, ValueError, KeyError) as error:
                raise ValueError(
                    f"the checkpoint's {name} does not fit the configuration ({str(error).splitlines()[0]}); "
                    "start in another folder, with the checkpoint as initial_weights if the network is the same"
                ) from error
            for group, kept in zip(getattr(part, "param_groups", ()), settings):
                group.update(kept)
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self.best_score = float(state.get("best_score", -math.inf))
        self.history = list(state["history"])
        self.earlier_cases = known_cases(self.earlier_cases, state.get("earlier_cases", ()))
        if self.history and "initial_weights_sha256" in self.history[-1]:
            self.sources["initial_weights_sha256"] = self.history[-1]["initial_weights_sha256"]


def _settings(part: Any) -> list[dict[str, Any]]:
    """What an optimiser was told, group by group, without its parameters."""
    return [{k: v for k, v in group.items() if k != "params"} for group in getattr(part, "param_groups", ())]


def _only(feature: Any, samples: list[int]) -> Any:
    """A tensor's (or each tensor's) samples of these numbers, which go up; itself where they are all it has."""
    if isinstance(feature, tuple):
        return tuple(_only(part, samples) for part in feature)
    return feature if len(samples) == len(feature) else feature[samples]


def _detached(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().float() for name, value in values.items()}
