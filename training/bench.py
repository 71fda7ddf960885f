"""How fast this machine trains: seconds of a step for each preset, the teacher's part of it, and making its crops.

A step is `Trainer.train_step` with a frozen teacher and every loss, as a distillation runs it. All pieces take turns in
one process, so that a busy moment meets all of them alike, with a matrix product of the same precision, which is taken
for the device's peak.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Callable

import torch
from MSTKDSegmentLib.bench.forward import PRODUCT_SIDES, product_step
from MSTKDSegmentLib.bench.hardware import header
from MSTKDSegmentLib.bench.phantom import CASE_SHAPE, write_phantom, write_phantom_labels
from MSTKDSegmentLib.bench.tables import Table
from MSTKDSegmentLib.bench.timing import clock_of
from MSTKDSegmentLib.modalities import MODALITIES
from MSTKDSegmentLib.network import count_macs
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
from training.provenance import describe_hardware, package_versions

PAPER = "paper"
# Multiply-accumulates of a step in forward passes: the student's own, twice that for its gradients, the teacher's.
STUDENT_PASSES, TEACHER_PASSES = 3, 1
CROPS_A_ROUND = 4
Told = Callable[[str], object]


def run_bench(
    presets: Sequence[str],
    config: TrainingConfig,
    steps: int,
    world: World,
    cases: tuple[Path, Sequence[str]] | None = None,
    told: Told = print,
    command: str = "python -m training bench",
) -> dict[str, Any]:
    """Medians of `steps` rounds (at least 1; one more, which pays for caches and the like, is not counted).

    `config` gives crop and batch (its first phase), precision, losses and augmentation; its preset and teacher are
    replaced. `cases`: cache and names of prepared cases; None: a phantom of the size of a BraTS volume. `command` is
    what the result says it was made by. Raises ValueError for no step or preset, and FileNotFoundError or ValueError
    where the cache cannot be used.
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
        side = PRODUCT_SIDES[world.device.type]
        times = _interleaved(trainers, crops, config.phases[0].batch, steps, side, told)
        memory = {name: _gpu_memory_mib(trainer, crops, config.phases[0].batch) for name, trainer in trainers.items()}
        macs = {name: step_macs(trainer) for name, trainer in trainers.items()}
    known = header(command)
    about = {
        **known,
        "device": {"name": str(world.device), "reason": describe_hardware(world.device)},
        "versions": {**known["versions"], **package_versions()},
        "crop": list(config.phases[0].crop),
        "batch": config.phases[0].batch,
        "precision": config.precision,
        "data": data,
    }
    return {**about, **summary(times, config.phases[0].batch, macs, side, memory)}


def summary(
    times: Mapping[str, Mapping[str, Sequence[float]]],
    batch: int = 1,
    macs: Mapping[str, float] | None = None,
    side: int = 0,
    memory: Mapping[str, float | None] | None = None,
) -> dict[str, Any]:
    """Medians and their ratios from seconds: `times` holds "step" and "teacher" by preset, and "crop" by "worker".

    step_speedup_vs_paper: how many steps of the first other preset fit into one of the paper's; None where either is
    not measured. loading_over_step: seconds in which one worker makes a batch over those of a step; below 1 one worker
    keeps up, and loading hides behind computing. share_of_peak: of the matrix product of `side` voxels a side, whose
    seconds are `times["product"]["device"]`; `macs` are those of a step with one crop. memory: MiB on a GPU.
    """
    crop = statistics.median(times["crop"]["worker"])
    median = {name: statistics.median(seconds) for name, seconds in times["step"].items()}
    peak = side**3 / statistics.median(times["product"]["device"]) if "product" in times else None
    presets: dict[str, Any] = {}
    for name, step in median.items():
        teacher = statistics.median(times["teacher"][name])
        rate = batch * macs[name] / step if macs else None
        presets[name] = {
            "step_seconds": step,
            "steps_per_second": 1 / step,
            "teacher_seconds": teacher,
            "teacher_share": teacher / step,
            "loading_over_step": crop * batch / step,
            "speedup_vs_paper": median[PAPER] / step if PAPER in median else None,
            "gmac_per_s": None if rate is None else rate / 1e9,
            "share_of_peak": rate / peak if rate is not None and peak else None,
            "gpu_memory_mib": memory[name] if memory else None,
        }
    others = [name for name in presets if name != PAPER]
    return {
        "step_speedup_vs_paper": presets[others[0]]["speedup_vs_paper"] if others else None,
        "presets": presets,
        "crop_seconds": crop,
        "peak_gmac_per_s": None if peak is None else peak / 1e9,
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
    trainers: Mapping[str, Trainer], crops: CropDataset, batch: int, steps: int, side: int, told: Told
) -> dict[str, dict[str, list[float]]]:
    times: dict[str, dict[str, list[float]]] = {
        "step": {name: [] for name in trainers},
        "teacher": {name: [] for name in trainers},
        "crop": {"worker": []},
        "product": {"device": []},
    }
    drawn = default_collate([crops[index] for index in range(batch)])
    one = next(iter(trainers.values()))
    device, precision = str(one.device), one.config.precision
    clock, on_cpu = clock_of(device), clock_of("cpu")
    product = product_step(side, device, precision)
    for number in range(steps + 1):
        told(f"round {number} of {steps}" if number else "warming up")
        first = batch + number * CROPS_A_ROUND
        with _one_thread():
            seconds = {("crop", "worker"): on_cpu(partial(_make, crops, first)) / CROPS_A_ROUND}
        seconds["product", "device"] = clock(product)
        for name, trainer in trainers.items():
            seconds["step", name] = clock(partial(trainer.train_step, drawn))
            seconds["teacher", name] = clock(partial(teacher_forward, trainer, drawn["image"]))
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


def step_macs(trainer: Trainer) -> float:
    """Multiply-accumulates of a step with one crop: networks alone, without losses, discriminator and optimiser."""
    shape = trainer.config.phases[0].crop
    passes = STUDENT_PASSES + (TEACHER_PASSES if trainer.teacher is not None else 0)
    return float(passes * count_macs(trainer.network, (shape[0], shape[1], shape[2])))


def _gpu_memory_mib(trainer: Trainer, crops: CropDataset, batch: int) -> float | None:
    """The most that a step takes of a CUDA GPU beyond what lies there before it; None elsewhere."""
    if trainer.device.type != "cuda":
        return None
    before = torch.cuda.memory_allocated(trainer.device)
    torch.cuda.reset_peak_memory_stats(trainer.device)
    trainer.train_step(default_collate([crops[index] for index in range(batch)]))
    return (torch.cuda.max_memory_allocated(trainer.device) - before) / 2**20


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


def shown(measured: Mapping[str, Any]) -> Table:
    """Lines above the table, and its rows: preset, seconds a step, steps a second, shares, loading over step, speed."""
    peak = measured["peak_gmac_per_s"]
    rows = []
    for name, row in measured["presets"].items():
        speed, share, memory = row["speedup_vs_paper"], row["share_of_peak"], row["gpu_memory_mib"]
        rows.append(
            [
                name,
                f"{row['step_seconds']:.3f}",
                f"{row['steps_per_second']:.2f}",
                f"{100 * row['teacher_share']:.0f} %",
                f"{row['loading_over_step']:.2f}",
                "-" if speed is None else f"{speed:.2f}",
                "-" if share is None else f"{100 * share:.0f} %",
                "-" if memory is None else f"{memory:.0f} MiB",
            ]
        )
    return Table(
        f"A step with frozen teacher and all losses, crop {' x '.join(map(str, measured['crop']))}, batch "
        f"{measured['batch']}, {measured['precision']}; medians of {len(measured['rounds']['crop']['worker'])} rounds",
        ("preset", "seconds", "steps/s", "teacher", "loading/step", "against paper", "of peak", "GPU memory"),
        rows,
        (
            f"one worker makes a crop in {measured['crop_seconds']:.3f} s ({measured['data']}, read again each time)",
            f"matrix product: {'not measured' if peak is None else f'{peak:.0f} GMAC/s'}",
        ),
    )
