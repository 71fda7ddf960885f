"""Running the network: whole volume or windows, out-of-memory fallback, progress and cancel.

Progress is work done, not stages: each convolution and matrix layer reports its own share of the multiply-accumulates
as it ends. The same hooks ask whether to stop, so a cancel waits for one layer at most. An accelerated network
(`accelerator`) reports whole passes only, and is asked to stop several times in each.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Callable

import numpy as np

from .accelerator import AcceleratedNetwork
from .allocation import give_back_freed_memory
from .errors import Cancelled, DeviceError
from .memory import available_memory, bytes_needed, is_out_of_memory
from .regions import BACKGROUND, CAVITY

if TYPE_CHECKING:
    import torch

    from .network import MSTKDNet

Progress = Callable[[float], None]
CancelCheck = Callable[[], bool]

# Cubic windows tried, largest first, when the whole volume does not fit; neighbours overlap by half.
WINDOWS = (128, 96, 64)
OVERLAP = 0.5
# The least side that the network takes, in voxels.
COUNTED_SIDE = 32


@dataclass
class Prediction:
    """`probabilities` (4, D, H, W) float32, background/NCR/ED/ET; `device` and `window` really used; notices.

    accelerator: what ran in the place of torch, with its version and precision; "" where nothing did.
    """

    probabilities: np.ndarray
    device: str
    window: int | None
    notices: list[str] = field(default_factory=list)
    accelerator: str = ""


def predict(
    network: MSTKDNet | AcceleratedNetwork,
    image: np.ndarray,
    availability: np.ndarray,
    *,
    device: str = "cpu",
    window: int | None = None,
    progress: Progress | None = None,
    cancel: CancelCheck | None = None,
) -> Prediction:
    """Class probabilities of one case.

    image (4, D, H, W) float32, normalised, zero where absent and outside the brain (where the result is background),
    sides multiples of 32; availability (4,) of 0/1; `window` forces cubic windows of that side.

    Whole volume first, then windows of `WINDOWS`, then the same on the CPU, there from the first that fits into the
    memory that is free; each step down is told in `notices`. Raises DeviceError when even the smallest window does not
    fit on the CPU, Cancelled when `cancel()` turned true.
    """
    import torch

    meter = _Meter(progress, cancel)
    notices: list[str] = []
    plan = _plan(image.shape[1:], window)
    devices = [device] if device == "cpu" else [device, "cpu"]
    failed = ""
    for name in devices:
        sizes, shortage = _that_fit(plan, network, image.shape[1:]) if name == "cpu" else (plan, "")
        for size in sizes:
            obstacles = "; ".join(filter(None, (failed, shortage)))
            if obstacles:
                notices.append(f"{obstacles}; going on with {_describe(size)} on the {_title(name)}")
            shortage = ""
            try:
                with torch.inference_mode():
                    probabilities = _run(network, image, availability, torch.device(name), size, meter)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            else:
                probabilities = _cavity_as_background(probabilities)
                _clear_outside(probabilities, image)
                meter.finish()
                return Prediction(probabilities, name, size, notices, _accelerator_of(network))
            # Outside the except block: the exception's traceback would keep the tensors alive.
            meter.restart()
            _release(name)
            failed = f"the {_title(name)} ran out of memory with {_describe(size)}"
    raise DeviceError(
        f"out of memory on the {' and the '.join(map(_title, devices))} even with {_describe(plan[-1])}; close other "
        "programs and try again"
    )


def _plan(shape: Sequence[int], window: int | None) -> list[int | None]:
    """What is tried in turn: None (the whole volume), then windows that are smaller."""
    if window:
        return [window, *(w for w in WINDOWS if w < window)]
    return [None, *(w for w in WINDOWS if w < max(shape))]


def _that_fit(
    plan: list[int | None], network: MSTKDNet | AcceleratedNetwork, shape: Sequence[int]
) -> tuple[list[int | None], str]:
    """`plan` from the first step that fits into free memory (the last is always tried), and why steps were left out."""
    free = available_memory()
    if free is None:
        return plan, ""
    needs = [bytes_needed(network.config.preset, shape, size) for size in plan]
    if needs[0] > free:
        # What this process keeps of the last case counts as taken.
        give_back_freed_memory()
        free = available_memory() or 0
    first = next((index for index, need in enumerate(needs) if need <= free), len(plan) - 1)
    if first == 0:
        return plan, ""
    return plan[first:], (
        f"{_describe(plan[0])} would take about {needs[0] / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free"
    )


def _accelerator_of(network: MSTKDNet | AcceleratedNetwork) -> str:
    return network.title if isinstance(network, AcceleratedNetwork) else ""


def _cavity_as_background(probabilities: np.ndarray) -> np.ndarray:
    """(4 or 5, D, H, W) -> (4, D, H, W): a fifth class is the resection cavity, which is no part of the tumour."""
    if len(probabilities) > CAVITY:
        probabilities[BACKGROUND] += probabilities[CAVITY]
    return probabilities[:CAVITY]


def _without_checkerboard(probabilities: torch.Tensor) -> torch.Tensor:
    """`probabilities` (classes, D, H, W), sides of at least 2, averaged in place over 3 x 3 x 3 voxels.

    At the volume's border only what exists counts. A head that predicts the eight voxels of a half-resolution cell at
    once leaves a checkerboard; averaging removes it (Sugawara et al. 2018, arXiv:1806.02658) and raised TC and ET on
    validation. Axis by axis, which is several times faster than torch's pooling in three dimensions.
    """
    for volume in probabilities:
        for axis in range(volume.ndim):
            rows = volume.transpose(0, axis)
            before = rows.clone()
            rows[1:] += before[:-1]
            rows[:-1] += before[1:]
            rows /= 3.0
            rows[0] *= 1.5
            rows[-1] *= 1.5
    return probabilities


def _clear_outside(probabilities: np.ndarray, image: np.ndarray) -> None:
    """Background where no sequence shows brain: normalised images are exactly zero there, and nowhere else."""
    outside = ~image.any(axis=0)
    probabilities[0][outside] = 1.0
    for other in probabilities[1:]:
        other[outside] = 0.0


def _describe(size: int | None) -> str:
    return "the whole volume" if size is None else f"windows of {size} voxels"


def _title(name: str) -> str:
    return "CPU" if name == "cpu" else f"GPU ({name})"


def _release(name: str) -> None:
    import torch

    if name.startswith("cuda"):
        torch.cuda.empty_cache()
    elif name == "mps":
        torch.mps.empty_cache()


def _run(
    network: MSTKDNet | AcceleratedNetwork,
    image: np.ndarray,
    availability: np.ndarray,
    device: torch.device,
    size: int | None,
    meter: _Meter,
) -> np.ndarray:
    import torch

    network.to(device, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    mask = torch.from_numpy(np.asarray(availability, np.float32))[None].to(device)
    volume = torch.from_numpy(np.ascontiguousarray(image, np.float32))[None]
    if size is None:
        with meter.watching(network, image.shape[1:], 1), repeatable():
            return _finished(torch.softmax(network(volume.to(device), mask).float(), dim=1)[0], network)
    windows = list(window_slices(image.shape[1:], size))
    with meter.watching(network, (size,) * 3, len(windows)), repeatable():
        # On the device: taking each window's result to the CPU would make a GPU wait for it.
        padded = _pad_to(volume.to(device), size)
        total = torch.zeros(network.config.classes, *padded.shape[2:], device=device)
        weight = torch.zeros(padded.shape[2:], device=device)
        bump = _window_weight(size).to(device)
        for z, y, x in windows:
            total[:, z, y, x] += torch.softmax(network(padded[:, :, z, y, x], mask).float(), dim=1)[0] * bump
            weight[z, y, x] += bump
        total /= weight
        depth, height, width = image.shape[1:]
        return _finished(total[:, :depth, :height, :width], network)


def _finished(probabilities: torch.Tensor, network: MSTKDNet | AcceleratedNetwork) -> np.ndarray:
    """(classes, D, H, W) on the device -> the same without checkerboard in main memory: the only wait for a GPU."""
    if network.config.stem_stride > 1:
        probabilities = _without_checkerboard(probabilities)
    return np.ascontiguousarray(probabilities.cpu().numpy())


def _pad_to(volume: torch.Tensor, size: int) -> torch.Tensor:
    import torch.nn.functional as F

    missing = [max(size - side, 0) for side in volume.shape[2:]]
    return F.pad(volume, [v for m in reversed(missing) for v in (0, m)]) if any(missing) else volume


def window_slices(shape: Sequence[int], size: int) -> Iterator[tuple[slice, slice, slice]]:
    """Cubic windows that cover `shape` (padded to `size` where smaller), neighbours overlapping by at least half."""
    starts = []
    for side in shape:
        span = max(side - size, 0)
        count = math.ceil(span / (size * (1 - OVERLAP))) + 1
        starts.append([round(i * span / max(count - 1, 1)) for i in range(count)])
    for z in starts[0]:
        for y in starts[1]:
            for x in starts[2]:
                yield slice(z, z + size), slice(y, y + size), slice(x, x + size)


def _window_weight(size: int) -> torch.Tensor:
    """(size, size, size) Gaussian, sigma size/8, never zero: a window is trusted in its middle, not at its border."""
    import torch

    axis = torch.exp(-0.5 * ((torch.arange(size) - (size - 1) / 2) / (size / 8)) ** 2).clamp_min(1e-3)
    return axis[:, None, None] * axis[None, :, None] * axis[None, None, :]


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """cuDNN picks the same, deterministic algorithms every time; the user's own settings come back afterwards."""
    import torch

    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark, cudnn.deterministic = False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


class _Meter:
    """Counts multiply-accumulates as layers end; reports a fraction that never falls; raises Cancelled when asked."""

    def __init__(self, progress: Progress | None, cancel: CancelCheck | None) -> None:
        self._progress, self._cancel = progress, cancel
        self._done, self._reported = 0.0, 0.0
        self._share: dict[str, float] = {}

    @contextlib.contextmanager
    def watching(self, network: MSTKDNet | AcceleratedNetwork, shape: tuple[int, ...], runs: int) -> Iterator[None]:
        """While open, every layer of `network` reports; one forward pass of `shape` is 1 / `runs` of the work."""
        self.check()
        if isinstance(network, AcceleratedNetwork):
            with network.watched(self.check, lambda: self._advance(1 / runs)):
                yield
            return
        if self._progress is None and self._cancel is None:
            yield
            return
        work = layer_macs(network, shape)
        total = sum(work.values()) * runs
        handles = []
        for name, module in network.named_modules():
            if name in work:
                handles.append(module.register_forward_pre_hook(lambda *_: self.check()))
                share = work[name] / total
                handles.append(module.register_forward_hook(lambda *_, share=share: self._advance(share)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def check(self) -> None:
        if self._cancel is not None and self._cancel():
            raise Cancelled("cancelled; nothing was written")

    def _advance(self, share: float) -> None:
        self._done += share
        self._report(min(self._done, 0.999))
        self.check()

    def _report(self, fraction: float) -> None:
        # After a fallback the count starts again: the bar stands still until the new try has passed the old one, but
        # is still called, because a window reads its cancel button there.
        if self._progress is not None:
            self._reported = max(self._reported, fraction)
            self._progress(self._reported)

    def restart(self) -> None:
        self._done = 0.0

    def finish(self) -> None:
        self._report(1.0)


def layer_macs(network: MSTKDNet, shape: Sequence[int]) -> dict[str, float]:
    """Name -> multiply-accumulates of each convolution and linear layer for one volume of `shape` (D, H, W).

    Counted in one pass through `COUNTED_SIDE` voxels a side, where the network lies, and scaled to `shape`: hundredths
    of a second. (On torch's meta device, without data, the first pass of a process takes a second for its imports.)
    """
    import torch

    work: dict[str, float] = {}
    larger = math.prod(shape) / COUNTED_SIDE**3

    def remember(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            weight: torch.Tensor = module.weight  # type: ignore[assignment]
            if isinstance(module, torch.nn.Linear):
                # (N, inputs) is the availability mask, whose size is that of no volume.
                work[name] = float(inputs[0].numel() * weight.shape[0]) * (larger if inputs[0].ndim > 2 else 1.0)
            elif isinstance(module, torch.nn.ConvTranspose3d):
                work[name] = float(inputs[0].numel() * weight[0].numel()) * larger
            else:
                work[name] = float(output.numel() * weight[0].numel()) * larger

        return hook

    counted = (torch.nn.Conv3d, torch.nn.ConvTranspose3d, torch.nn.Linear)
    handles = [
        module.register_forward_hook(remember(name))
        for name, module in network.named_modules()
        if isinstance(module, counted)
    ]
    place = next(network.parameters()).device
    try:
        with torch.no_grad():
            network(torch.zeros(1, 4, *(COUNTED_SIDE,) * 3, device=place), torch.zeros(1, 4, device=place))
    finally:
        for handle in handles:
            handle.remove()
    return work
