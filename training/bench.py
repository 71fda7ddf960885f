"""How fast this machine trains: seconds of a step for each preset, the teacher's part of it, and making its crops.

A step is `Trainer.train_step` with a frozen teacher and every loss, as a distillation runs it. All pieces take turns in
one process, so that a busy moment meets all of them alike.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Callable

import torch
from MSTKDSegmentLib.bench.phantom import CASE_SHAPE, write_phantom, write_phantom_labels
from MSTKDSegmentLib.modalities import MODALITIES
from torch import Tensor
from torch.utils.data import default_collate

from training.augment import Augmentation
from training.cache import CachedCases, prepare_case
from training.cases import LabelledCase
from training.checkpoint import save_checkpoint
from training.config import TeacherConfig, TrainingConfig, config_from_dict, plain
from training.crops import CropDataset
from training.distributed import World
from training.engine import PRECISIONS, Trainer
from training.networks import build_training_network
from training.provenance import current_commit, describe_hardware, package_versions

PAPER = "paper"
CROPS_A_ROUND = 4
Told = Callable[[str], object]


def run_bench(
    presets: Sequence[str],
    config: TrainingConfig,
    steps: int,
    world: World,
    cases: tuple[Path, Sequence[str]] | None = None,
    told: Told = print,
) -> dict[str, Any]:
    """Medians of `steps` rounds (at least 1; one more, which pays for caches and the like, is not counted).

    `config` gives crop and batch (its first phase), precision, losses and augmentation; its preset and teacher are
    replaced. `cases`: cache and names of prepared cases; None: a phantom of the size of a BraTS volume. Raises
    ValueError for no step or preset, and FileNotFoundError or ValueError where the cache cannot be used.
    """
    if steps < 1 or not presets:
        raise ValueError("a measurement needs at least one step and one preset")
    with tempfile.TemporaryDirectory(prefix="mstkd-training-bench-") as folder:
        data = "prepared cases"
        if cases is None:
            told("preparing a synthetic case")
            data, cases = "synthetic case", (Path(folder) / "cache", phantom_cache(Path(folder)))
        crops = _crops(config, *cases)
        told("making the networks")
        trainers = {name: _trainer(name, config, world, Path(folder)) for name in dict.fromkeys(presets)}
        times = _interleaved(trainers, crops, config.phases[0].batch, steps, told)
    about = {
        "hardware": describe_hardware(world.device),
        "device": str(world.device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "versions": package_versions(),
        "commit": current_commit(),
        "crop": list(config.phases[0].crop),
        "batch": config.phases[0].batch,
        "precision": config.precision,
        "data": data,
    }
    return {**about, **summary(times, config.phases[0].batch)}


def summary(times: Mapping[str, Mapping[str, Sequence[float]]], batch: int = 1) -> dict[str, Any]:
    """Medians and their ratios from seconds: `times` holds "step" and "teacher" by preset, and "crop" by "worker".

    step_speedup_vs_paper: how many steps of the first other preset fit into one of the paper's; None where either is
    not measured. loading_over_step: seconds in which one worker makes a batch over those of a step; below 1 one worker
    keeps up, and loading hides behind computing.
    """
    crop = statistics.median(times["crop"]["worker"])
    median = {name: statistics.median(seconds) for name, seconds in times["step"].items()}
    presets: dict[str, Any] = {}
    for name, step in median.items():
        teacher = statistics.median(times["teacher"][name])
        presets[name] = {
            "step_seconds": step,
            "teacher_seconds": teacher,
            "teacher_share": teacher / step,
            "loading_over_step": crop * batch / step,
            "speedup_vs_paper": median[PAPER] / step if PAPER in median else None,
        }
    others = [name for name in presets if name != PAPER]
    return {
        "step_speedup_vs_paper": presets[others[0]]["speedup_vs_paper"] if others else None,
        "presets": presets,
        "crop_seconds": crop,
        "rounds": {kind: {name: list(seconds) for name, seconds in of.items()} for kind, of in times.items()},
    }


# --- what is measured ---


def _trainer(preset: str, config: TrainingConfig, world: World, folder: Path) -> Trainer:
    """A student with a frozen teacher of the same preset, both with random weights of different seeds."""
    weights = folder / f"{preset}.pt"
    teacher = TeacherConfig(mode="frozen", weights=str(weights))
    config = replace(config, preset=preset, initial_weights="", teacher=teacher)  # type: ignore[arg-type]
    torch.manual_seed(config.seed + 1)
    network = build_training_network(preset, config.classes)
    save_checkpoint({"config": plain(config), "average": network.state_dict(), "step": 0}, weights)
    return Trainer(config, world)


def _crops(config: TrainingConfig, cache: Path, names: Sequence[str]) -> CropDataset:
    # No case is kept in memory: reading them again each time is the slowest that loading can be.
    cases = CachedCases(cache, names, memory_limit_bytes=0)
    return CropDataset(cases, config.phases[0].crop, config.seed, config.sampling, Augmentation(config.augmentation))


def _interleaved(
    trainers: Mapping[str, Trainer], crops: CropDataset, batch: int, steps: int, told: Told
) -> dict[str, dict[str, list[float]]]:
    times: dict[str, dict[str, list[float]]] = {
        "step": {name: [] for name in trainers},
        "teacher": {name: [] for name in trainers},
        "crop": {"worker": []},
    }
    drawn = default_collate([crops[index] for index in range(batch)])
    for number in range(steps + 1):
        told(f"round {number} of {steps}" if number else "warming up")
        first = batch + number * CROPS_A_ROUND
        with _one_thread():
            seconds = {("crop", "worker"): _seconds(partial(_make, crops, first)) / CROPS_A_ROUND}
        for name, trainer in trainers.items():
            seconds["step", name] = _seconds(partial(trainer.train_step, drawn), trainer.device)
            seconds["teacher", name] = _seconds(partial(teacher_forward, trainer, drawn["image"]), trainer.device)
        for (kind, name), value in seconds.items() if number else ():
            times[kind][name].append(value)
    return times


def _make(crops: CropDataset, first: int) -> list[dict[str, object]]:
    return [crops[index] for index in range(first, first + CROPS_A_ROUND)]


def teacher_forward(trainer: Trainer, image: Tensor) -> Any:
    """The features of the frozen teacher, as a step computes them from `image` (N, 4, D, H, W)."""
    precision = trainer.config.precision
    image = image.to(trainer.device, memory_format=torch.channels_last_3d)
    complete = torch.ones(image.shape[:2], device=trainer.device)
    assert trainer.teacher is not None
    with torch.no_grad(), torch.autocast(trainer.device.type, PRECISIONS[precision], enabled=precision != "fp32"):
        return trainer.teacher(image, complete, True)


def _seconds(work: Callable[[], object], device: torch.device | None = None) -> float:
    """Seconds until `work` is done, on a GPU too."""
    synchronise = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.type if device else "cpu")
    start = time.perf_counter()
    work()
    if synchronise is not None:
        synchronise()
    return time.perf_counter() - start


@contextmanager
def _one_thread() -> Iterator[None]:
    """As a data worker computes (`loop`)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- a case where none is given ---


def phantom_cache(folder: Path, shape: tuple[int, int, int] = CASE_SHAPE) -> list[str]:
    """Prepare a noisy ellipsoid (D, H, W) of 1 mm voxels with a lesion into `<folder>/cache`; gives its name."""
    files = write_phantom(folder, shape, 1.0)
    segmentation = write_phantom_labels(folder, shape, 1.0)
    images = {name: files[name] for name in MODALITIES}
    case = LabelledCase("phantom", "phantom", images, segmentation, "folder", convention="brats2023")
    prepare_case(case, folder / "cache")
    return [case.name]


def bench_config(crop: int, batch: int, precision: str = "bf16") -> TrainingConfig:
    """The default configuration with cubic crops of `crop` voxels a side; ConfigError where that cannot be."""
    phase = {"steps": 1, "crop": [crop] * 3, "batch": batch}
    return config_from_dict({"phases": [phase], "precision": precision}, "bench")


# --- for people ---


def shown(measured: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Lines above the table, and its rows: preset, seconds a step, teacher's share, loading over step, speed."""
    lines = [
        f"{measured['hardware']}, torch {measured['versions']['torch']}, commit {measured['commit'][:12]}",
        f"a step with frozen teacher and all losses, crop {' x '.join(map(str, measured['crop']))}, batch "
        f"{measured['batch']}, {measured['precision']}; medians of {len(measured['rounds']['crop']['worker'])} rounds",
        f"one worker makes a crop in {measured['crop_seconds']:.3f} s ({measured['data']}, read again each time)",
    ]
    rows = []
    for name, row in measured["presets"].items():
        speed = row["speedup_vs_paper"]
        rows.append(
            [
                name,
                f"{row['step_seconds']:.3f}",
                f"{100 * row['teacher_share']:.0f} %",
                f"{row['loading_over_step']:.2f}",
                "-" if speed is None else f"{speed:.2f}",
            ]
        )
    return lines, rows
