"""Memory on the CPU: what the network needs, what is there, and how torch says that it ran out.

Linux promises memory that it does not have and later kills the process that uses it, so an error to catch may never
come: what is needed is compared with what is there beforehand.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

# Bytes of main memory per voxel that one pass takes, float32 on the CPU, where the process keeps what it frees
# (`allocation`): the growth of the peak resident size at 128^3 (compact, medium), fixed parts included, and at 96^3
# (paper, half of the weights counted). A larger volume takes less per voxel: compact 126 bytes at 160x192x128.
PASS_BYTES = {"compact": 175, "medium": 190, "paper": 1350}
# Windows also keep the sum of four class probabilities and its weight for the whole volume, float32, and copies of it.
SUM_BYTES = 40

# CUDA, MPS, the CPU allocator on Linux and on Windows, cuBLAS and cuDNN, oneDNN (which names no memory in its error; a
# primitive *descriptor* that cannot be created is something else), and OpenVINO, which passes on C++'s own.
_SIGNS = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|alloc_failed"
    r"|could not create a primitive(?! descriptor)|could not create a memory object|bad_alloc|bad allocation"
)


def peak_memory_mib(root: Path = Path("/")) -> Optional[float]:
    """The largest resident size of this process in MiB; None on Windows. `root` holds `proc`."""
    return _resident_mib("VmHWM", root)


def memory_mib(root: Path = Path("/")) -> Optional[float]:
    """The resident size of this process in MiB now (elsewhere than on Linux its peak); None on Windows."""
    return _resident_mib("VmRSS", root)


def _resident_mib(field: str, root: Path) -> Optional[float]:
    kib = _table(root / "proc" / "self" / "status").get(field)
    if kib is not None:
        return round(kib / 2**10, 1)
    # What Linux says here is never below what the parent used before it started this process.
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)  # bytes on macOS, KiB elsewhere


def total_memory_mib(root: Path = Path("/")) -> Optional[float]:
    """Main memory of this computer in MiB on Linux; None where unknown."""
    kib = _table(root / "proc" / "meminfo").get("MemTotal")
    return None if kib is None else round(kib / 2**10, 1)


def is_out_of_memory(error: BaseException) -> bool:
    """True for every form in which torch reports that memory ran out (CUDA, MPS, CPU allocator, oneDNN)."""
    import torch

    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and _SIGNS.search(str(error).lower()) is not None


def bytes_needed(preset: str, shape: Sequence[int], window: Optional[int]) -> int:
    """About what the network of `preset` takes on the CPU for a volume (D, H, W), whole or in cubes of `window`.

    OpenVINO in the place of torch takes less (137 bytes per voxel at 128^3 for compact in bf16), and is counted alike.
    """
    # A network that was never measured is counted like the larger one.
    per_voxel = PASS_BYTES.get(preset, PASS_BYTES["paper"])
    if window is None:
        return math.prod(shape) * per_voxel
    return window**3 * per_voxel + math.prod(max(side, window) for side in shape) * SUM_BYTES


def available_memory(root: Path = Path("/")) -> Optional[int]:
    """Bytes that this process may still take on Linux, its control groups' limits included; None where unknown.

    `root` holds `proc` and `sys`.
    """
    machine = _table(root / "proc" / "meminfo").get("MemAvailable")
    found = [] if machine is None else [machine * 1024]
    for folder, limit_name, usage_name in _control_groups(root):
        limit, usage = _number(folder / limit_name), _number(folder / usage_name)
        if limit is not None and usage is not None:
            # Cached file contents count as used but are given up first.
            statistics = _table(folder / "memory.stat")
            cached = statistics.get("total_inactive_file", statistics.get("inactive_file", 0))
            found.append(max(limit - usage + cached, 0))
    return min(found) if found else None


def _control_groups(root: Path) -> Iterator[tuple[Path, str, str]]:
    """(folder, name of its limit, name of its usage) of each memory control group above this process.

    Inside a container the path in /proc may be the host's, so the top folder is always among them.
    """
    for line in _lines(root / "proc" / "self" / "cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            top, names = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        own = top / path.strip().lstrip("/")
        for folder in (own, *own.parents):
            if folder == top or top in folder.parents:
                yield folder, *names


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []


def _number(path: Path) -> Optional[int]:
    """The number in a control group's file; None where there is none ("max": no limit)."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _table(path: Path) -> dict[str, int]:
    """Name -> number of lines such as `MemAvailable:  123 kB` and `inactive_file 123`."""
    rows = (line.replace(":", " ").split() for line in _lines(path))
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
