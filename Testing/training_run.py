"""A tiny prepared cohort and tiny runs on it, shared by the tests of the engine, the loop and the commands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import training_phantom as made

from training.augment import Augmentation
from training.cache import CachedCases, prepare_case
from training.config import OptimiserConfig, Phase, SamplingConfig, TrainingConfig
from training.crops import CropDataset
from training.discovery import find_cases

NAMES = ("Case_1", "Case_2")
TINY = TrainingConfig(
    phases=(Phase(2, (32, 32, 32), 2), Phase(2, (32, 32, 64), 1)),
    precision="fp32",
    optimiser=OptimiserConfig(warmup_steps=1, learning_rate=1e-3),
    sampling=SamplingConfig(workers=0),
    log_every=1,
)


def prepared_cases(folder: Path) -> CachedCases:
    """Two phantoms in the layout of BraTS 2018, prepared into `<folder>/cache`; their files stay in `<folder>/data`."""
    cache = folder / "cache"
    cache.mkdir()
    for seed, name in enumerate(NAMES):
        made.write_labelled_case(folder / "data", name, seed=seed)
    for case in find_cases(folder / "data"):
        prepare_case(case, cache)
    return CachedCases(cache, NAMES)


def dataset(cases: CachedCases, config: TrainingConfig = TINY, seed: int = 1, crop=(32, 32, 32)) -> CropDataset:
    return CropDataset(cases, crop, seed, config.sampling, Augmentation(config.augmentation))


def batch(cases: CachedCases, *numbers: int, config: TrainingConfig = TINY) -> dict[str, object]:
    return torch.utils.data.default_collate([dataset(cases, config)[number] for number in numbers])


def changed(**fields: object) -> TrainingConfig:
    return replace(TINY, **fields)
