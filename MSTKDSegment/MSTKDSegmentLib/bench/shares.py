"""Where the time of a forward pass goes, by kind of work, and how near each kind comes to the machine's peak."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional

from .forward import forward_step

if TYPE_CHECKING:
    from ..network import MSTKDNet

PASSES = 3
POINTWISE, TRANSPOSED = "convolution 1x1x1", "transposed convolution"
TRANSFORMER, NORMALISATION = "transformer", "normalisation"
ACTIVATION, MEMORY, OTHER = "activation and addition", "memory reshuffles", "other"
# The operations that the network calls, by torch's names without "aten::" and a closing underscore (in place).
KINDS = {
    NORMALISATION: ("group_norm", "batch_norm", "instance_norm"),
    ACTIVATION: ("leaky_relu", "relu", "add", "addcmul", "mul", "sub", "div"),
    MEMORY: (
        *("reshape", "permute", "transpose", "contiguous", "clone", "copy", "cat", "to", "flatten", "unbind", "chunk"),
        *("split", "view", "unsqueeze", "slice", "select", "stack"),
    ),
    TRANSFORMER: ("linear", "scaled_dot_product_attention", "layer_norm", "gelu", "softmax", "matmul", "bmm"),
}
_KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}


@dataclass(frozen=True)
class Operation:
    """One operation that the network called: torch's name, its inputs' shapes, seconds with all that it called."""

    name: str
    shapes: Sequence[Sequence[int]]
    seconds: float


def measure_shares(preset: str, shape: Sequence[int], device: str, peak: float) -> Optional[dict[str, Any]]:
    """The table of `by_kind` for the network of `preset` and a volume of `shape` (D, H, W), fp32.

    peak: GMAC/s of the machine's matrix product. None on Apple GPUs, which torch's profiler does not see.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    from ..inference import repeatable
    from ..network import build_network

    if device == "mps":
        return None
    torch.manual_seed(0)
    network = build_network(preset).requires_grad_(False).eval()
    step = forward_step(network, shape, device)
    on_gpu = device.startswith("cuda")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.inference_mode(), repeatable():
        gmacs = gmac_by_kind(network, step, shape)
        with profile(activities=activities, record_shapes=True) as profiler:
            for _pass in range(PASSES):
                step()
            if on_gpu:
                torch.cuda.synchronize(device)
    called = [
        Operation(event.name, event.input_shapes, _seconds(event, on_gpu) / PASSES)
        for event in profiler.events()
        if event.cpu_parent is None and event.name.startswith("aten::")
    ]
    return by_kind(called, gmacs, shape, peak)


def _seconds(event: Any, on_gpu: bool) -> float:
    if not on_gpu:
        return float(event.cpu_time_total) / 1e6
    name = "device_time_total" if hasattr(event, "device_time_total") else "cuda_time_total"  # torch 2.2's name
    return float(getattr(event, name)) / 1e6


def gmac_by_kind(network: MSTKDNet, step: Any, shape: Sequence[int]) -> dict[str, float]:
    """10^9 multiply-accumulates of one `step()` by kind; of the transformer without those of attention itself."""
    import torch

    found: dict[str, float] = {}

    def count(module: Any, inputs: Any, output: Any) -> None:
        size, weight = inputs[0].shape, module.weight
        if isinstance(module, torch.nn.Linear):
            kind, macs = TRANSFORMER, inputs[0].numel() * weight.shape[0]
        elif isinstance(module, torch.nn.ConvTranspose3d):
            kind, macs = TRANSPOSED, inputs[0].numel() * weight[0].numel()
        else:
            kind, macs = convolution_kind(weight.shape, size, shape), output.numel() * weight[0].numel()
        found[kind] = found.get(kind, 0.0) + macs / 1e9

    layers = (torch.nn.Conv3d, torch.nn.ConvTranspose3d, torch.nn.Linear)
    handles = [module.register_forward_hook(count) for module in network.modules() if isinstance(module, layers)]
    try:
        step()
    finally:
        for handle in handles:
            handle.remove()
    return found


def convolution_kind(weight: Sequence[int], size: Sequence[int], shape: Sequence[int]) -> str:
    """Of a convolution by its weight (O, I, k, k, k) and its input's size (N, C, d, h, w) in a volume of `shape`."""
    side = weight[-1]
    if side == 1:
        return POINTWISE
    if side == 3:
        level = round(shape[0] / size[2])
        return f"convolution 3x3x3 at {'full' if level == 1 else f'1/{level}'} resolution"
    return TRANSFORMER  # which cuts its input into patches


def kind_of(called: Operation, shape: Sequence[int]) -> str:
    """What `called` does for a volume of `shape` (D, H, W)."""
    name = called.name.partition("::")[2].rstrip("_")
    first = called.shapes[0] if called.shapes else []
    if name in ("conv3d", "convolution"):
        return convolution_kind(called.shapes[1], first, shape)
    if name == "conv_transpose3d":
        return TRANSPOSED
    if len(first) in (3, 4):  # (N, tokens, embed): what has neither five axes nor none
        return TRANSFORMER
    return _KIND_OF.get(name, OTHER)


def by_kind(
    called: Iterable[Operation], gmacs: Mapping[str, float], shape: Sequence[int], peak: float
) -> dict[str, Any]:
    """Seconds, share of all, GMAC and share of `peak` (GMAC/s) by kind, most seconds first; and what is lost where.

    lost: seconds beyond those that the kind's multiply-accumulates take at the peak, as a share of all seconds. All
    shares of loss and the pass's own share of the peak make 1.
    """
    seconds: dict[str, float] = {}
    for one in called:
        kind = kind_of(one, shape)
        seconds[kind] = seconds.get(kind, 0.0) + one.seconds
    total = math.fsum(seconds.values())
    rows = {}
    for kind, taken in sorted(seconds.items(), key=lambda item: -item[1]):
        gmac = gmacs.get(kind, 0.0)
        rows[kind] = {
            "seconds": round(taken, 5),
            "share": round(taken / total, 4),
            "gmac": round(gmac, 2),
            "share_of_peak": round(gmac / taken / peak, 3) if gmac and taken else None,
            "lost": round((taken - gmac / peak) / total, 4),
        }
    whole = math.fsum(gmacs.get(kind, 0.0) for kind in seconds)
    return {"total_seconds": round(total, 5), "share_of_peak": round(whole / total / peak, 3), "kinds": rows}
