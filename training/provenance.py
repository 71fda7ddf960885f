"""Where and with what a run computes: hardware, commit, versions."""

from __future__ import annotations

import platform

import torch
from MSTKDSegmentLib.bench import hardware
from MSTKDSegmentLib.bench.hardware import commit as current_commit

__all__ = ["current_commit", "describe_hardware", "package_versions"]

PACKAGES = ("torch", "monai", "numpy", "scipy", "SimpleITK", "pydantic", "PyYAML")


def describe_hardware(device: torch.device) -> str:
    """The processor that computes, in words: GPU name, or CPU model and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{hardware.cpu_model()}, {torch.get_num_threads()} threads"


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the figures."""
    return {"python": platform.python_version(), **hardware.package_versions(PACKAGES)}
