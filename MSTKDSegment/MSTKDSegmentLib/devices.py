"""The device that the network runs on, chosen with the reason in words.

A GPU that torch lists is not yet one that can run the network: its generation may be missing from this torch's
kernels, an older torch may lack a layer on Apple GPUs, another program may fill its memory. So a few voxels are tried.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from .errors import DeviceError, first_line


@dataclass(frozen=True)
class DeviceChoice:
    """`name` is what torch is given; `reason` is one sentence for the user; `gpu_expected` asks for a notice."""

    name: str
    reason: str
    gpu_expected: bool = False


def choose_device(request: str = "auto") -> DeviceChoice:
    """Turn `auto`, `cpu`, `cuda`, `cuda:N` or `mps` into a device that can run the network, with the reason in words.

    `auto` takes the GPU with the most free memory that works, else the CPU (`gpu_expected` says that a GPU is there or
    should be). Raises DeviceError for an unknown name and for a device that was asked for but is not there or cannot
    run the network: the CPU is never taken in silence.
    """
    import torch

    request = request.strip().lower()
    kind, _, index = request.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (index and (kind != "cuda" or not index.isdigit())):
        raise DeviceError(f"unknown device {request!r}; use auto, cpu, cuda, cuda:N or mps")
    if kind == "cpu":
        return DeviceChoice("cpu", "the CPU was asked for")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "auto":
        return _best_device(gpus)
    if kind == "cuda":
        number = int(index or 0)
        if number >= gpus:
            raise DeviceError(f"{request} was asked for, but {_no_gpu_reason(gpus)}; choose cpu or auto")
        choice = DeviceChoice(f"cuda:{number}", f"{torch.cuda.get_device_name(number)} was asked for")
    else:
        if not _has_mps():
            raise DeviceError("mps was asked for, but this torch or Mac has no Metal GPU; choose cpu or auto")
        choice = DeviceChoice("mps", "the Apple GPU was asked for")
    failure = _failure(choice.name)
    if failure is not None:
        raise DeviceError(f"{choice.reason}, but it cannot run the network ({failure}); choose cpu or auto")
    return choice


def _best_device(gpus: int) -> DeviceChoice:
    """The first of the GPUs, most free memory first, that runs the network; else the CPU."""
    import torch

    candidates = [
        (f"cuda:{number}", torch.cuda.get_device_name(number), "has the most free GPU memory")
        for number in sorted(range(gpus), key=_free_bytes, reverse=True)
    ]
    if not candidates and _has_mps():
        candidates = [("mps", "an Apple GPU", "is there")]
    failures: list[str] = []
    for name, title, merit in candidates:
        failure = _failure(name)
        if failure is None:
            reason = "; ".join([f"{title} {'is used' if failures else merit}", *failures])
            return DeviceChoice(name, reason)
        failures.append(f"{title} ({name}) cannot run the network: {failure}")
    if failures:
        return DeviceChoice("cpu", f"no GPU is used: {'; '.join(failures)}", gpu_expected=True)
    built = torch.version.cuda is not None or getattr(torch.version, "hip", None) is not None
    reason = f"no GPU is used: {_no_gpu_reason(0)}"
    if not built and _has_nvidia_driver():
        return DeviceChoice("cpu", f"{reason}, though an NVIDIA driver is installed here", gpu_expected=True)
    return DeviceChoice("cpu", reason, gpu_expected=built)


def _has_nvidia_driver() -> bool:
    return shutil.which("nvidia-smi") is not None


def _has_mps() -> bool:
    import torch

    mps = getattr(torch.backends, "mps", None)
    return mps is not None and bool(mps.is_available())


def _free_bytes(number: int) -> int:
    """Free memory of a GPU; 0 for one that does not even answer, so that it is tried last."""
    import torch

    try:
        return int(torch.cuda.mem_get_info(number)[0])
    except RuntimeError:
        return 0


def _failure(name: str) -> str | None:
    """Why the network's layers do not run on `name`, in one line; None when a few voxels went through them.

    NotImplementedError, which torch raises for a layer that a device lacks, is a RuntimeError.
    """
    import torch

    try:
        layers = torch.nn.Sequential(torch.nn.Conv3d(1, 1, 3, padding=1), torch.nn.ConvTranspose3d(1, 1, 2, stride=2))
        layers.to(torch.device(name), memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        with torch.inference_mode():
            layers(torch.ones(1, 1, 4, 4, 4, device=name)).sum().item()  # waits for the GPU, which fails late
    except RuntimeError as error:
        return first_line(error)
    return None


def _no_gpu_reason(gpus: int) -> str:
    import torch

    if gpus:
        return f"there are only {gpus} GPU(s), numbered from 0"
    if torch.version.cuda is None and getattr(torch.version, "hip", None) is None:
        return "this torch was built without GPU support"
    return "torch finds no GPU (is the driver installed and recent enough?)"
