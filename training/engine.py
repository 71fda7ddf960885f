"""The training loop: progressive crop sizes, bf16 autocast, AdamW with warm-up and cosine decay, EMA, exact resume."""

from __future__ import annotations

import copy
import json
import math
import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from MSTKDSegmentLib.network import MSTKDNet, build_network
from MSTKDSegmentLib.weights import load_network, read_bundle
from torch.utils.data import DataLoader

from training.augment import Augmentation, AugmentationConfig
from training.data import CropDataset, load_case
from training.losses import segmentation_loss


@dataclass(frozen=True)
class Phase:
    """`steps` optimiser steps at one crop size (D, H, W, multiples of 32) and batch size."""

    steps: int
    crop: tuple[int, int, int]
    batch: int = 1


@dataclass(frozen=True)
class TrainingConfig:
    """One run. `full_share`: probability that a crop keeps all four sequences, before the uniform draw over 15."""

    preset: str = "compact"
    initial_weights: str = ""  # a bundle to start from; empty: random
    phases: tuple[Phase, ...] = (Phase(100, (64, 64, 64)),)
    seed: int = 1
    learning_rate: float = 6e-4
    final_learning_rate: float = 1e-5
    warmup_steps: int = 200
    weight_decay: float = 1e-2
    gradient_clip: float = 1.0
    ema_decay: float = 0.998
    tumour_share: float = 0.8
    full_share: float = 0.2
    workers: int = 1
    bfloat16: bool = True
    checkpoint_every: int = 100
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)

    @property
    def total_steps(self) -> int:
        return sum(phase.steps for phase in self.phases)

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine from `learning_rate` to `final_learning_rate`."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        share = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        span = self.learning_rate - self.final_learning_rate
        return self.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def _on_device(network: MSTKDNet, device: torch.device) -> MSTKDNet:
    return network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def describe_hardware(device: torch.device) -> str:
    """The processor that computes, in words: GPU name, or CPU model and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads"


def current_commit() -> str:
    """The checkout's commit, or "unknown" outside a git checkout."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


class Trainer:
    """One network in training, with everything that a resume needs in `state_dict`.

    `history` tells how the weights came to be: one entry for each stretch of steps under one configuration on one
    machine.
    """

    def __init__(self, config: TrainingConfig, device: str = "cpu") -> None:
        self.config, self.device = config, torch.device(device)
        self.history: list[dict[str, Any]] = []
        torch.manual_seed(config.seed)
        self.network = _on_device(build_network(config.preset), self.device)
        if config.initial_weights:
            self.network.load_state_dict(load_network(read_bundle(config.initial_weights)).state_dict())
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        plain = [p for p in self.network.parameters() if p.ndim <= 1]
        self.optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=config.learning_rate,
            betas=(0.9, 0.99),
        )
        self.step = 0
        self.seconds = 0.0
        self._begin_stretch()

    def _begin_stretch(self) -> None:
        stretch = {
            "config": asdict(self.config),
            "hardware": describe_hardware(self.device),
            "torch": str(torch.__version__),
            "commit": current_commit(),
        }
        if not self.history or {**stretch, "from_step": self.history[-1]["from_step"]} != self.history[-1]:
            self.history.append({"from_step": self.step, **stretch})

    def state_dict(self) -> dict[str, object]:
        return {
            "history": self.history,
            "config": asdict(self.config),
            "step": self.step,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.history = list(state["history"])
        self._begin_stretch()

    def train_step(self, batch: dict[str, torch.Tensor]) -> dict[str, float]:
        """One optimiser step; returns loss and gradient norm. Raises FloatingPointError before NaN reaches a weight."""
        rate = self.config.learning_rate_at(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.network.train()
        image = batch["image"].to(self.device, memory_format=torch.channels_last_3d)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bfloat16):
            logits = self.network(image, batch["availability"].to(self.device))
        loss = segmentation_loss(logits, batch["label"].to(self.device))
        value = float(loss.detach())
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip))
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise FloatingPointError(
                f"the loss became {value} and its gradient {norm} at step {self.step}; the last checkpoint is untouched"
            )
        self.optimiser.step()
        self.step += 1
        self._update_average()
        return {"loss": value, "gradient_norm": norm, "learning_rate": rate}

    @torch.no_grad()
    def _update_average(self) -> None:
        # Early on the average must forget the random start: its memory grows with the step count.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for mean, value in zip(self.average.state_dict().values(), self.network.state_dict().values()):
            mean.lerp_(value, 1 - decay)

    def save(self, path: Path) -> None:
        temporary = path.with_suffix(".tmp")
        torch.save(self.state_dict(), temporary)
        temporary.replace(path)


def run_training(
    config: TrainingConfig,
    cache: Path,
    cases: list[str],
    out: Path,
    device: str = "cpu",
    stop_after: int | None = None,
    change_config: bool = False,
) -> Path:
    """Train, resuming from `<out>/last.pt` when it is there; returns the checkpoint's path.

    `stop_after` ends this call after so many steps (the run goes on at the next call). Raises ValueError when the
    configuration is not the one that the run was started with, unless `change_config`; the change stays in the history.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "last.pt"
    trainer = Trainer(config, device)
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["config"] != asdict(config) and not change_config:
            raise ValueError(
                f"{checkpoint} was trained with another configuration "
                f"({_difference(state['config'], asdict(config))}); "
                "use another folder, or --change-config to go on with the new one"
            )
        trainer.load_state_dict(state)
    (out / "config.json").write_text(json.dumps(asdict(config), indent=1))
    volumes = [load_case(cache, name) for name in cases]
    end = config.total_steps if stop_after is None else min(config.total_steps, trainer.step + stop_after)
    with (out / "log.jsonl").open("a") as log:
        first = 0
        for phase in config.phases:
            last = first + phase.steps
            if trainer.step < min(last, end):
                _run_phase(trainer, phase, first, min(last, end), volumes, checkpoint, log)
            first = last
    trainer.save(checkpoint)
    return checkpoint


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {before.get(key)} -> {now[key]}" for key in now if before.get(key) != now[key])


def _yield_to_computing(_worker: int) -> None:
    """Data workers run at a lower priority: on few cores they would otherwise stall the threads of each operation."""
    if hasattr(os, "nice"):
        os.nice(5)


def _run_phase(
    trainer: Trainer,
    phase: Phase,
    first: int,
    end: int,
    volumes: list[tuple[np.ndarray, np.ndarray]],
    checkpoint: Path,
    log: TextIO,
) -> None:
    """Steps up to `end` of a phase whose first step is number `first`."""
    config = trainer.config
    dataset = CropDataset(
        volumes,
        phase.crop,
        config.seed,
        config.tumour_share,
        config.full_share,
        Augmentation(config.augmentation),
    )
    # Item numbers go on where the phase's steps stand, so a resumed run sees what an unbroken one would have seen.
    offset = first * 4
    loader = DataLoader(
        dataset,
        batch_size=phase.batch,
        sampler=range(offset + trainer.step * phase.batch, offset + end * phase.batch),
        num_workers=config.workers,
        prefetch_factor=4 if config.workers else None,
        worker_init_fn=_yield_to_computing,
    )
    losses: list[float] = []
    start = time.perf_counter()
    for batch in loader:
        figures = trainer.train_step(batch)
        losses.append(figures["loss"])
        now = time.perf_counter()
        trainer.seconds += now - start
        start = now
        if trainer.step % 50 == 0:
            record = {
                "step": trainer.step,
                "crop": list(phase.crop),
                "loss": round(float(np.mean(losses)), 4),
                "gradient_norm": round(figures["gradient_norm"], 3),
                "learning_rate": figures["learning_rate"],
                "seconds": round(trainer.seconds, 1),
            }
            log.write(json.dumps(record) + "\n")
            log.flush()
            losses.clear()
        if trainer.step % config.checkpoint_every == 0:
            trainer.save(checkpoint)
