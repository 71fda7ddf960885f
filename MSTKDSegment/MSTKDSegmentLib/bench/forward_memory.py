"""The memory of one network's forward pass, in a process of its own: `python -m ... PRESET PRECISION DEVICE D H W`.

Prints one JSON object. What one pass has taken, an allocator keeps, so that the next network's need would not show.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..allocation import keep_freed_memory
from ..memory import memory_mib, peak_memory_mib

PASSES = 2


def measured(preset: str, precision: str, device: str, shape: Sequence[int]) -> dict[str, float]:
    """MiB before the network of `preset` was made, at most, and the difference: resident, on CUDA allocated."""
    import torch

    from ..inference import repeatable
    from ..network import build_network
    from .forward import forward_step

    on_cuda = device.startswith("cuda")
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(device)
        baseline = torch.cuda.memory_allocated(device) / 2**20
    else:
        _forget_the_peak()
        baseline = memory_mib() or 0.0
    step = forward_step(build_network(preset).requires_grad_(False).eval(), shape, device, precision)
    with torch.inference_mode(), repeatable():
        for _pass in range(PASSES):
            step()
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if on_cuda else (peak_memory_mib() or 0.0)
    return {
        "baseline_mib": round(baseline, 1),
        "peak_mib": round(peak, 1),
        "above_baseline_mib": round(peak - baseline, 1),
    }


def _forget_the_peak() -> None:
    """The imports' own peak; Linux alone can forget it (proc(5), clear_refs)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def main(words: Sequence[str]) -> None:
    keep_freed_memory()  # as the commands do
    preset, precision, device, *shape = words
    print(json.dumps(measured(preset, precision, device, [int(side) for side in shape])))


if __name__ == "__main__":
    main(sys.argv[1:])
