"""Freed memory is kept and given back: in processes of their own, whose allocator is theirs alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from MSTKDSegmentLib.allocation import keep_freed_memory

LIBRARY = Path(__file__).resolve().parents[1] / "MSTKDSegment"
# Pages touched by the second of two blocks of 200 MB, one after the other, and MiB resident before and after.
CHILD = """
import json, resource, sys
from MSTKDSegmentLib.allocation import give_back_freed_memory, keep_freed_memory
from MSTKDSegmentLib.memory import memory_mib
import numpy as np
kept = keep_freed_memory() if "keep" in sys.argv else None
np.ones(25 * 10**6)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(25 * 10**6)
pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
held = memory_mib()
give_back_freed_memory()
print(json.dumps({"kept": kept, "pages": pages, "held": held, "left": memory_mib()}))
"""


def told_by_child(*words: str, **variables: str) -> dict:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    environment = {**clean, "PYTHONPATH": str(LIBRARY), **variables}
    # Huge pages, which numpy asks for, would make few of many.
    environment["NUMPY_MADVISE_HUGEPAGE"] = "0"
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


on_glibc = pytest.mark.skipif(
    not sys.platform.startswith("linux") or not os.confstr("CS_GNU_LIBC_VERSION"), reason="the allocator is glibc's"
)


@on_glibc
def test_the_next_block_touches_no_new_pages():
    kept, usual = told_by_child("keep"), told_by_child()
    assert kept["kept"] is True
    assert usual["pages"] > 40_000  # 200 MB in pages of 4 KiB
    assert kept["pages"] < usual["pages"] / 100


@on_glibc
def test_what_was_kept_is_given_back():
    child = told_by_child("keep")
    assert child["held"] - child["left"] > 150


@on_glibc
def test_settings_of_the_environment_stay():
    child = told_by_child("keep", MALLOC_TRIM_THRESHOLD_="131072")
    assert child["kept"] is False and child["pages"] > 40_000


def test_elsewhere_nothing_happens(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    assert keep_freed_memory() is False
