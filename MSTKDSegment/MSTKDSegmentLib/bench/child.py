"""Commands of this package in fresh processes, whose imports and memory are their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import MSTKDError

PACKAGE = __package__.rpartition(".")[0]


@dataclass(frozen=True)
class Finished:
    """What a child printed (one JSON object), its wall seconds, and when it was started and had ended."""

    told: Mapping[str, Any]
    seconds: float
    started: datetime
    ended: datetime


def run_mstkd(*words: str) -> Finished:
    """`mstkd WORDS --json` in a process of its own. Raises MSTKDError with its last line where it fails."""
    return run_module(f"{PACKAGE}.cli", [*words, "--json"])


def run_module(module: str, words: Sequence[str]) -> Finished:
    """`python -m MODULE WORDS`, which prints one JSON object. Raises MSTKDError with its last line where it fails."""
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    started, start = datetime.now(timezone.utc), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        env=environment, capture_output=True, text=True, encoding="utf-8", errors="replace", check=False,
    )  # fmt: skip
    seconds, ended = time.perf_counter() - start, datetime.now(timezone.utc)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise MSTKDError(f"the measured command failed: {lines[-1]}")
    return Finished(json.loads(done.stdout), seconds, started, ended)
