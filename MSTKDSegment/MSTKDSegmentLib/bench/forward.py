"""The networks' forward pass: seconds, share of what the machine can do at most, memory, and their ratios."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Callable

from ..modalities import MODALITIES
from ..terminal import Progress
from . import forward_memory
from .child import run_module
from .hardware import bf16_is_fast
from .timing import Step, clock_of, interleaved_seconds, rounded

if TYPE_CHECKING:
    from ..network import MSTKDNet

FORWARD_SHAPE, QUICK_FORWARD_SHAPE = (160, 192, 128), (32, 32, 32)  # the crop of the paper, (D, H, W)
# Sides of the square matrices whose product is the machine's peak; a GPU needs more to be busy.
PRODUCT_SIDES = {"cpu": 2048, "cuda": 8192, "mps": 4096}
QUICK_PRODUCT_SIDE = 256
PAPER, PRODUCT = "paper", "matrix product"
MEMORY_SHARE = 0.3


def measure_forward(shipped: str, device: str, runs: int, quick: bool, progress: Progress) -> dict[str, Any]:
    """Medians of `runs` interleaved passes of `paper` and the preset `shipped` on `device`, in each precision.

    Raises MSTKDError where the process that measures memory fails.
    """
    shape = QUICK_FORWARD_SHAPE if quick else FORWARD_SHAPE
    side = QUICK_PRODUCT_SIDE if quick else PRODUCT_SIDES[device.partition(":")[0]]
    precisions = ["fp32", *(["bf16"] if bf16_is_fast(device) else [])]
    names = list(dict.fromkeys((PAPER, shipped)))
    memory = {}
    for number, name in enumerate(names):
        progress(MEMORY_SHARE * number / len(names), f"memory of {name}")
        memory[name] = network_memory(name, "fp32", device, shape)
    times, macs = _times(
        names, precisions, shape, side, device, runs,
        lambda share, text: progress(MEMORY_SHARE + (1 - MEMORY_SHARE) * share, f"forward pass: {text}"),
    )  # fmt: skip
    return summary(times, macs, memory, shape, shipped, side, device)


def _times(
    names: Sequence[str], precisions: Sequence[str], shape: Sequence[int], side: int, device: str, runs: int,
    progress: Progress,
) -> tuple[dict[str, dict[str, list[float]]], dict[str, float]]:  # fmt: skip
    """Seconds by precision and by network (or `PRODUCT`), and the multiply-accumulates of a pass."""
    import torch

    from ..inference import repeatable
    from ..network import build_network, count_macs

    steps: dict[str, Step] = {}
    macs: dict[str, float] = {}
    for name in names:
        torch.manual_seed(0)
        network = build_network(name).requires_grad_(False).eval()
        with torch.device("meta"):
            macs[name] = float(count_macs(build_network(name), (shape[0], shape[1], shape[2])))
        for precision in precisions:
            steps[f"{name} {precision}"] = forward_step(network, shape, device, precision)
    for precision in precisions:
        steps[f"{PRODUCT} {precision}"] = product_step(side, device, precision)
    with torch.inference_mode(), repeatable():
        seconds = interleaved_seconds(steps, runs, clock_of(device), progress)
    return {p: {name: seconds[f"{name} {p}"] for name in (*names, PRODUCT)} for p in precisions}, macs


def forward_step(network: MSTKDNet, shape: Sequence[int], device: str, precision: str = "fp32") -> Step:
    """One forward pass of a volume of `shape` (D, H, W) as `inference.predict` runs it, without the softmax."""
    import torch

    network.to(torch.device(device), memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    volume = torch.randn(1, len(MODALITIES), *shape, device=device)
    mask = torch.ones(1, len(MODALITIES), device=device)
    cast = _casting(device, precision)

    def step() -> object:
        with cast():
            return network(volume, mask)

    return step


def _casting(device: str, precision: str) -> Callable[[], AbstractContextManager[object]]:
    import torch

    if precision == "fp32":
        return nullcontext
    return lambda: torch.autocast(device.partition(":")[0], torch.bfloat16)


def product_step(side: int, device: str, precision: str) -> Step:
    """One product of two matrices of `side` x `side` in fp32, bf16 or fp16: side^3 multiply-accumulates."""
    import torch

    kind = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    a, b = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))

    def step() -> object:
        with _as_convolutions():
            return a @ b

    return step


@contextmanager
def _as_convolutions() -> Iterator[None]:
    """CUDA's matrix products round to TF32 where its convolutions do, so that both can reach the same peak."""
    import torch

    products = torch.backends.cuda.matmul
    before = products.allow_tf32
    products.allow_tf32 = torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        products.allow_tf32 = before


def network_memory(preset: str, precision: str, device: str, shape: Sequence[int]) -> dict[str, float]:
    """MiB that a forward pass takes, in a process that does nothing else. Raises MSTKDError."""
    words = [preset, precision, device, *map(str, shape)]
    return dict(run_module(forward_memory.__name__, words).told)


# --- figures from figures --------------------------------------------------------------------------------------------


def summary(
    times: Mapping[str, Mapping[str, Sequence[float]]],
    macs: Mapping[str, float],
    memory: Mapping[str, Mapping[str, float]],
    shape: Sequence[int],
    shipped: str,
    side: int,
    device: str,
) -> dict[str, Any]:
    """What is told of `times` (seconds by precision and by network or `PRODUCT`, `side` voxels a side)."""
    peaks = {precision: side**3 / 1e9 / statistics.median(of[PRODUCT]) for precision, of in times.items()}
    rows = {
        precision: {name: speed(seconds, macs[name], peaks[precision]) for name, seconds in of.items() if name in macs}
        for precision, of in times.items()
    }
    for name, row in rows["fp32"].items():
        row["memory_mib"] = memory[name]["above_baseline_mib"]
        row["memory_baseline_mib"] = memory[name]["baseline_mib"]
    found: dict[str, Any] = {
        "peak_gmac_per_s": round(peaks["fp32"], 2),
        "forward": {"shape": list(shape), "shipped_preset": shipped, "tf32": _tf32(device), **rows["fp32"]},
        "speedup_vs_paper": _ratio(rows["fp32"][PAPER], rows["fp32"][shipped], "median_seconds"),
        "memory_ratio_vs_paper": _ratio(rows["fp32"][PAPER], rows["fp32"][shipped], "memory_mib"),
    }
    for precision in [name for name in rows if name != "fp32"]:
        found[f"peak_gmac_per_s_{precision}"] = round(peaks[precision], 2)
        found[f"forward_{precision}"] = rows[precision]
        fast = rows[precision]
        found[f"speedup_vs_paper_{precision}"] = _ratio(fast[PAPER], fast[shipped], "median_seconds")
        found[f"speedup_of_{precision}_over_fp32"] = {
            name: _ratio(rows["fp32"][name], fast[name], "median_seconds") for name in fast
        }
    return found


def speed(seconds: Sequence[float], macs: float, peak: float) -> dict[str, Any]:
    """Median, GMAC/s and share of `peak` (GMAC/s) of passes of `macs` multiply-accumulates."""
    median = statistics.median(seconds)
    rate = macs / 1e9 / median
    return {
        "seconds": rounded(seconds),
        "median_seconds": round(median, 5),
        "gmac": round(macs / 1e9, 2),
        "gmac_per_s": round(rate, 2),
        "share_of_peak": round(rate / peak, 3),
    }


def _ratio(paper: Mapping[str, float], other: Mapping[str, float], key: str) -> Any:
    return round(paper[key] / other[key], 2) if other[key] else None


def _tf32(device: str) -> bool:
    import torch

    return device.startswith("cuda") and bool(torch.backends.cudnn.allow_tf32)
