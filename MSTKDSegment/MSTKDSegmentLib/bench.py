"""`mstkd bench`: how fast this machine runs the published and the shipped network, and what one whole case costs."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional, Union

import numpy as np
import SimpleITK as sitk

from .errors import MSTKDError
from .modalities import MODALITIES
from .terminal import Progress, print_line, print_table
from .weights import Bundle, read_bundle

if TYPE_CHECKING:
    from .network import MSTKDNet

FORWARD_SHAPE = (160, 192, 128)  # the crop of the paper, (D, H, W)
CASE_SHAPE, CASE_SPACING_MM = (155, 240, 240), 1.0  # a BraTS volume, (D, H, W)
PRODUCT_SIDE = 2048
QUICK_FORWARD_SHAPE, QUICK_CASE_SHAPE, QUICK_SPACING_MM, QUICK_PRODUCT_SIDE = (32, 64, 64), (36, 40, 38), 2.0, 256
FORWARD_SHARE = 0.5


def run_bench(
    files: Mapping[str, Path],
    weights: Union[str, Path, None],
    device: str,
    runs: int,
    quick: bool,
    progress: Optional[Progress] = None,
) -> dict[str, Any]:
    """Measure `runs` times (once if `quick`) and give medians. `files`: a case of one's own instead of the phantom.

    Raises WeightsError, DeviceError, and MSTKDError when the measured command fails.
    """
    bundle = read_bundle(weights)
    report = progress or (lambda _fraction, _text: None)
    runs = 1 if quick else runs
    # The whole case comes first: on Linux a child's peak memory is never counted below what its parent has used.
    case = _bench_case(files, bundle, device, runs, quick, lambda f, text: report((1 - FORWARD_SHARE) * f, text))
    forward = _bench_forward(bundle, device, runs, quick, lambda f, text: report(1 + FORWARD_SHARE * (f - 1), text))
    return {"quick": quick, "hardware": _hardware(), "segment": case, **forward}


# --- (a) the network alone -------------------------------------------------------------------------------------------


def _bench_forward(bundle: Bundle, device: str, runs: int, quick: bool, progress: Progress) -> dict[str, Any]:
    import torch

    from .devices import choose_device
    from .network import build_network, count_macs

    chosen = choose_device(device)
    shape = QUICK_FORWARD_SHAPE if quick else FORWARD_SHAPE
    shipped = str(bundle.card["preset"])
    names = list(dict.fromkeys(("paper", shipped)))
    steps: dict[str, Callable[[], object]] = {}
    macs: dict[str, float] = {}
    for name in names:
        torch.manual_seed(0)
        network = build_network(name).requires_grad_(False).eval()
        with torch.device("meta"):
            macs[name] = float(count_macs(build_network(name), shape))
        steps[name] = _forward_step(network, shape, chosen.name)
    steps["product"] = _product_step(QUICK_PRODUCT_SIDE if quick else PRODUCT_SIDE, chosen.name)
    seconds = _interleaved_seconds(steps, runs, chosen.name, progress)
    side = QUICK_PRODUCT_SIDE if quick else PRODUCT_SIDE
    peak = side**3 / 1e9 / statistics.median(seconds.pop("product"))
    networks = {name: _speed(seconds[name], macs[name], peak) for name in names}
    return {
        "device": {"name": chosen.name, "reason": chosen.reason},
        "peak_gmac_per_s": round(peak, 2),
        "forward": {"shape": list(shape), "shipped_preset": shipped, **networks},
        "speedup_vs_paper": round(networks["paper"]["median_seconds"] / networks[shipped]["median_seconds"], 2),
    }


def _forward_step(network: MSTKDNet, shape: Sequence[int], device: str) -> Callable[[], object]:
    """One forward pass as `inference.predict` runs it, without the softmax."""
    import torch

    network.to(torch.device(device), memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    volume = torch.randn(1, len(MODALITIES), *shape, device=device)
    mask = torch.ones(1, len(MODALITIES), device=device)
    return lambda: network(volume, mask)


def _product_step(side: int, device: str) -> Callable[[], object]:
    import torch

    a, b = torch.randn(side, side, device=device), torch.randn(side, side, device=device)
    return lambda: a @ b


def _interleaved_seconds(
    steps: Mapping[str, Callable[[], object]], runs: int, device: str, progress: Progress
) -> dict[str, list[float]]:
    """Seconds of each step, round by round, so that a busy moment or a hot processor meets all of them alike.

    A first round, which pays for caches and the choice of algorithms, is not counted.
    """
    import torch

    synchronise = {"cuda": torch.cuda.synchronize, "mps": torch.mps.synchronize}.get(device.partition(":")[0])
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    with torch.inference_mode():
        for index in range(runs + 1):
            for number, (name, step) in enumerate(steps.items()):
                progress((index + number / len(steps)) / (runs + 1), f"forward pass of {name}")
                start = time.perf_counter()
                step()
                if synchronise is not None:
                    synchronise()
                if index:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def _speed(seconds: Sequence[float], macs: float, peak: float) -> dict[str, Any]:
    median = statistics.median(seconds)
    rate = macs / 1e9 / median
    return {
        "seconds": [round(value, 4) for value in seconds],
        "median_seconds": round(median, 4),
        "gmac": round(macs / 1e9, 2),
        "gmac_per_s": round(rate, 2),
        "share_of_peak": round(rate / peak, 3),
    }


# --- (b) a whole case, in a process of its own -----------------------------------------------------------------------


def _bench_case(
    files: Mapping[str, Path], bundle: Bundle, device: str, runs: int, quick: bool, progress: Progress
) -> dict[str, Any]:
    walls, stages, peaks = [], [], []
    with tempfile.TemporaryDirectory(prefix="mstkd-bench-") as folder:
        if not files:
            progress(0.0, "making the synthetic case")
            shape, spacing = (QUICK_CASE_SHAPE, QUICK_SPACING_MM) if quick else (CASE_SHAPE, CASE_SPACING_MM)
            sources = write_phantom(Path(folder), shape, spacing)
        else:
            sources = dict(files)
        output = Path(folder) / "bench.seg.nrrd"
        command = [sys.executable, "-m", f"{__package__}.cli", "segment", "-o", str(output), "--overwrite", "--json"]
        command += ["--device", device, "--weights", bundle.source]
        for name, path in sources.items():
            command += [f"--{name.lower()}", str(path)]
        for index in range(runs):
            progress(index / runs, "segmenting a whole case")
            start = time.perf_counter()
            told = _run_child(command)
            walls.append(time.perf_counter() - start)
            stages.append(told["seconds"])
            peaks += [told["peak_memory_mib"]] if told["peak_memory_mib"] is not None else []
    first = stages[0]
    return {
        "input": "synthetic phantom" if not files else {name: str(path) for name, path in sources.items()},
        "shape": list(shape) if not files else None,
        "runs": runs,
        "wall_seconds": [round(value, 3) for value in walls],
        "median_wall_seconds": round(statistics.median(walls), 3),
        "peak_memory_mib": max(peaks, default=None),
        "median_stage_seconds": {key: round(statistics.median(one[key] for one in stages), 3) for key in first},
    }


def _run_child(command: Sequence[str]) -> dict[str, Any]:
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise MSTKDError(f"the measured command failed: {lines[-1]}")
    return dict(json.loads(done.stdout))


def write_phantom(folder: Path, shape: tuple[int, int, int], spacing_mm: float) -> dict[str, Path]:
    """Four sequences of a noisy ellipsoid with a bright sphere in it, `shape` (D, H, W): enough to time, no more."""
    random = np.random.default_rng(0)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, side, dtype=np.float32) for side in shape), indexing="ij", sparse=True)
    brain = (z / 0.85) ** 2 + (y / 0.75) ** 2 + (x / 0.62) ** 2 < 1
    lesion = z**2 + (y - 0.2) ** 2 + (x - 0.2) ** 2 < 0.2**2
    paths = {}
    for index, name in enumerate(MODALITIES):
        voxels = 300 + 50 * index + 40 * random.standard_normal(shape, dtype=np.float32)
        voxels[lesion] += 150
        voxels[~brain] = 0
        image = sitk.GetImageFromArray(np.clip(voxels, 0, None).astype(np.int16))
        image.SetSpacing([spacing_mm] * 3)
        paths[name] = folder / f"phantom_{name.lower()}.nii.gz"
        sitk.WriteImage(image, str(paths[name]))
    return paths


# --- what it ran on --------------------------------------------------------------------------------------------------


def _hardware() -> dict[str, Any]:
    import torch

    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")  # Linux; platform.processor() says nothing there
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def print_bench(measured: Mapping[str, Any]) -> None:
    """The same for a person at a terminal."""
    hardware, forward, case = measured["hardware"], measured["forward"], measured["segment"]
    print_line(
        f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} threads, torch {hardware['torch']}"
    )
    print_line(f"device: {measured['device']['name']}: {measured['device']['reason']}")
    shape = " x ".join(map(str, forward["shape"]))
    rows = [
        [
            name,
            *(f"{row[key]:g}" for key in ("median_seconds", "gmac", "gmac_per_s")),
            f"{100 * row['share_of_peak']:.0f} %",
        ]
        for name, row in forward.items()
        if isinstance(row, dict)
    ]
    print_line(f"one forward pass of {shape} voxels (matrix product: {measured['peak_gmac_per_s']:g} GMAC/s):")
    print_table(("preset", "seconds", "GMAC", "GMAC/s", "of matrix product"), rows)
    print_line(f"{forward['shipped_preset']} is {measured['speedup_vs_paper']:g} times as fast as paper")
    memory = case["peak_memory_mib"]
    print_line(
        f"whole case as a command: {case['median_wall_seconds']:g} s, peak memory "
        f"{'unknown' if memory is None else f'{memory:g} MiB'} (median of {case['runs']})"
    )
    print_table(("stage", "seconds"), [[key, f"{value:g}"] for key, value in case["median_stage_seconds"].items()])
    if measured["quick"]:
        print_line("quick: small sizes, one run; not a measurement", "yellow")
