"""Where and with what a run computes: hardware, commit, versions."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

import torch
from MSTKDSegmentLib.bench.hardware import commit as current_commit

__all__ = ["current_commit", "describe_hardware", "package_versions"]

PACKAGES = ("torch", "monai", "numpy", "scipy", "SimpleITK", "pydantic", "PyYAML")


def describe_hardware(device: torch.device) -> str:
    """The processor that computes, in words: GPU name, or CPU model and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {torch.get_num_threads()} threads"


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the figures."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return versions
