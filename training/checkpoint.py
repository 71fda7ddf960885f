"""Checkpoints on disk: written under a temporary name, then renamed, so that a full disk or a crash loses nothing."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from MSTKDSegmentLib.errors import OutputError

from training.files import replacing

LAST, BEST = "last.pt", "best.pt"


def save_checkpoint(state: Mapping[str, Any], path: Path) -> None:
    """Write `state`; the file that stood at `path` is replaced only when the new one is complete and on the disk.

    Raises OutputError saying what is free on the disk and that the earlier checkpoint is still there.
    """
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(dict(state), file)
    # torch wraps an error of the disk into a RuntimeError of its own.
    except (OutputError, RuntimeError) as error:
        before = "the earlier one is untouched" if path.exists() else "there is no earlier one"
        raise OutputError(
            f"{path}: the checkpoint cannot be written ({error.__cause__ or error}); {_free(path.parent)}, {before}. "
            "Make room and run the same command again to go on from the last checkpoint"
        ) from error


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB are free there"
    except OSError:
        return "the folder cannot be read"
