"""Training of the brain-extraction network on heads that `heads` makes; it goes on from its last checkpoint."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch
from MSTKDSegmentLib.brain_network import BrainNet, brain_loss
from MSTKDSegmentLib.errors import InputError
from torch.utils.data import DataLoader, IterableDataset

from training.brain.heads import Brain, Head, HeadMaker
from training.checkpoint import LAST, save_checkpoint
from training.distributed import World

LOG = "log.jsonl"
SAVE_EVERY, LOG_EVERY = 200, 50
CHECK_SEED = 10_000_019  # heads of the validation brains, always the same


@dataclass(frozen=True)
class BrainConfig:
    """How the network is trained; `seed` decides weights and heads. Learning rate: one cycle down by a cosine."""

    steps: int = 5000
    batch: int = 2
    learning_rate: float = 2e-3
    ema_decay: float = 0.998
    seed: int = 0
    workers: int = 1


class _Heads(IterableDataset):  # type: ignore[type-arg]
    def __init__(self, brains: Sequence[Brain], heads: Sequence[Head], seed: int) -> None:
        self._brains, self._heads, self._seed = brains, heads, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        info = torch.utils.data.get_worker_info()
        torch.set_num_threads(1)
        make = HeadMaker(self._brains, self._heads, self._seed + (info.id if info is not None else 0))
        while True:
            yield make()


def train(
    config: BrainConfig,
    brains: Sequence[Brain],
    heads: Sequence[Head],
    folder: Path,
    world: World,
    told: Callable[[str], None] = print,
) -> BrainNet:
    """The averaged network after `config.steps`; `folder` gets `last.pt` and a log.

    A run that goes on may be given another length; the learning rate follows it from there. Raises InputError where
    `folder` holds a run with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    network, average = BrainNet().to(world.device), BrainNet().to(world.device)
    average.load_state_dict(network.state_dict())
    optimiser = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda n: min(1.0, (n + 1) / 100) * (0.01 + 0.99 * (1 + math.cos(math.pi * n / config.steps)) / 2)
    )
    done = _restore(folder / LAST, config, network, average, optimiser, schedule)
    batches = iter(
        DataLoader(
            _Heads(brains, heads, config.seed * 1_000_003 + done),
            batch_size=config.batch,
            num_workers=config.workers,
            prefetch_factor=4 if config.workers else None,
        )
    )
    started, losses = time.monotonic(), []
    for step in range(done + 1, config.steps + 1):
        image, mask = (tensor.to(world.device) for tensor in next(batches))
        with torch.autocast(world.device.type, dtype=torch.bfloat16):
            logits = network(image)
        loss = brain_loss(logits.float(), mask)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        _follow(average, network, min(config.ema_decay, step / (step + 20)))
        losses.append(loss.item())
        if step % LOG_EVERY == 0 or step == config.steps:
            line = {"step": step, "loss": float(np.mean(losses)), "seconds": round(time.monotonic() - started, 1)}
            with (folder / LOG).open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
            told(f"step {step} of {config.steps}: loss {line['loss']:.4f}, {line['seconds']:.0f} s")
            losses = []
        if step % SAVE_EVERY == 0 or step == config.steps:
            state = {"step": step, "config": vars(config), "network": network.state_dict()}
            state |= {"average": average.state_dict(), "optimiser": optimiser.state_dict()}
            save_checkpoint(state | {"schedule": schedule.state_dict()}, folder / LAST)
    del batches
    return average.eval()


def _restore(path: Path, config: BrainConfig, network: Any, average: Any, optimiser: Any, schedule: Any) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    if {**state["config"], "steps": config.steps} != vars(config):  # its length may change, nothing else
        raise InputError(f"{path}: a run with other settings ({state['config']}); choose another --run")
    network.load_state_dict(state["network"])
    average.load_state_dict(state["average"])
    optimiser.load_state_dict(state["optimiser"])
    schedule.load_state_dict(state["schedule"])
    return int(state["step"])


@torch.no_grad()
def _follow(average: BrainNet, network: BrainNet, decay: float) -> None:
    for kept, new in zip(average.state_dict().values(), network.state_dict().values()):
        kept.lerp_(new, 1 - decay)


@torch.no_grad()
def check(network: BrainNet, brains: Sequence[Brain], heads: Sequence[Head], count: int = 64) -> dict[str, float]:
    """Dice of the masks on `count` heads made of `brains`: mean, median and lowest."""
    make = HeadMaker(brains, heads, CHECK_SEED)
    scores = []
    for _ in range(count):
        image, mask = make()
        found = network(image[None]).squeeze() > 0
        truth = mask[0] > 0.5
        scores.append(float(2 * (found & truth).sum() / (found.sum() + truth.sum())))
    return {"mean": float(np.mean(scores)), "median": float(np.median(scores)), "lowest": min(scores), "n": count}
