"""Seconds of pieces of work that take turns, on the CPU and on GPUs, which work on while Python is told to go on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ..terminal import Progress

Step = Callable[[], object]
Clock = Callable[[Step], float]


def clock_of(device: str) -> Clock:
    """A function that does a step and gives its seconds on `device` (cpu, cuda:N, mps).

    A GPU is waited for at both ends only: CUDA by its own events, which leave out Python's way there.
    """
    import torch

    kind = device.partition(":")[0]
    if kind == "cuda":
        return lambda step: _by_events(step, torch.cuda, torch.device(device))
    waits = torch.mps.synchronize if kind == "mps" else lambda: None
    return lambda step: _by_clock(step, waits)


def _by_events(step: Step, cuda: Any, device: Any) -> float:
    with cuda.device(device):
        start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        cuda.synchronize()
        start.record()
        step()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000.0


def _by_clock(step: Step, wait: Callable[[], object]) -> float:
    wait()
    start = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - start


def interleaved_seconds(
    steps: Mapping[str, Step], runs: int, clock: Clock, progress: Progress = lambda _share, _text: None
) -> dict[str, list[float]]:
    """Seconds of each step, round by round, so that a busy moment or a hot processor meets all of them alike.

    A first round, which pays for caches and the choice of algorithms, is not counted. `progress` hears shares below 1.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(runs + 1):
        for number, (name, step) in enumerate(steps.items()):
            progress((index + number / len(steps)) / (runs + 1), name)
            taken = clock(step)
            if index:
                seconds[name].append(taken)
    return seconds


def rounded(values: Sequence[float], digits: int = 4) -> list[float]:
    """For JSON."""
    return [round(value, digits) for value in values]
