"""What was measured on: the machine, the versions, the commit and the command, without anybody's folders."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..memory import total_memory_mib

CPU_INFO = Path("/proc/cpuinfo")
BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
PACKAGES = ("torch", "numpy", "SimpleITK", "scipy")


def header(command: str) -> dict[str, Any]:
    """The keys with which every file of measurements begins."""
    return {
        "command": command,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
    }


def hardware() -> dict[str, Any]:
    """Processor, cores (of the machine, and those this process may use), torch's threads, memory, GPUs, load."""
    import torch

    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable,
        "threads": torch.get_num_threads(),
        "memory_mib": total_memory_mib(),
        "gpus": [torch.cuda.get_device_name(number) for number in gpus],
        "gpu_memory_mib": [round(torch.cuda.get_device_properties(n).total_memory / 2**20) for n in gpus],
        "system": platform.platform(),
        "load_average": [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }


def versions() -> dict[str, str]:
    """Of Python, of this software and of the packages that decide the figures."""
    return {"python": platform.python_version(), "mstkdsegment": __version__, **package_versions(PACKAGES)}


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """The installed version of each package, or "absent"."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def commit() -> str:
    """The checkout's commit, with "+changes" where files differ from it, or "unknown" outside a git checkout."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=False)
        except OSError:
            return ""
        return done.stdout.strip()

    # A package that is installed may lie in the folders of another repository.
    if not git("ls-files", Path(__file__).name):
        return "unknown"
    return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")


def cpu_model(info: Path = CPU_INFO) -> str:
    """The processor's name; `info` as Linux writes it, for platform.processor() says nothing there."""
    return _cpu_field(info, "model name") or platform.processor() or platform.machine()


def bf16_is_fast(device: str, info: Path = CPU_INFO) -> bool:
    """Whether `device` multiplies bfloat16 in hardware: newer CUDA GPUs, and CPUs that say so in `info`."""
    if device.startswith("cuda"):
        import torch

        return bool(torch.cuda.is_bf16_supported())
    return device == "cpu" and bool(
        BF16_FLAGS & set((_cpu_field(info, "flags") or _cpu_field(info, "Features")).split())
    )


def _cpu_field(info: Path, name: str) -> str:
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.split(":")[0].strip() == name:
                return line.partition(":")[2].strip()
    return ""


def written_command(words: str, options: Mapping[str, Any]) -> str:
    """The command as it can be told to others: of files and folders only the last name. None and False: not given."""
    parts = [words]
    for name, value in options.items():
        if value is None or value is False:
            continue
        flag = f"--{name.replace('_', '-')}"
        shown = "" if value is True else f" {value.name if isinstance(value, Path) else value}"
        parts.append(flag + shown)
    return " ".join(parts)
