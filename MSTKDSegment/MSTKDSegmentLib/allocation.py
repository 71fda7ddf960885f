"""Freed memory stays with the process, so that the next pass of the network need not fetch it again (Linux, glibc).

The GNU C library gives every large block back to the system as soon as it is freed, and the system hands out the next
one as empty pages, zeroed one by one as they are touched. A network frees and takes gigabytes in each pass: on a
virtual machine this took as long as its arithmetic. mallopt(3) switches it off for a process.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

# Numbers of mallopt's parameters (malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_SETTINGS = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20}
# Who has set one of these has chosen otherwise.
_CHOSEN = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """From now on this process keeps memory that it frees; False, with no effect, where that is not to be had.

    For programs of our own, never inside of Slicer: it holds for the whole process. Nothing is changed where the
    environment sets the allocator (malloc's variables, GLIBC_TUNABLES).
    """
    if any(name in os.environ for name in _CHOSEN):
        return False
    library = _glibc()
    return library is not None and all(library.mallopt(name, value) for name, value in _SETTINGS.items())


def give_back_freed_memory() -> None:
    """Hand what is free in this process back to the system, for instance before it is asked what is available."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> Any:
    """The C library of this process where it is GNU's, else None."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None
