"""Which files the application may open: those in the folders that it was started with, wherever links lead."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Optional

from ..errors import InputError
from ..file_checks import HEADER_ENDINGS, voxel_files
from ..review.worklist import WorkItem


def roots(source: Path, folders: Iterable[Path] = ()) -> tuple[Path, ...]:
    """The folders that may be read: `source` (of a CSV file its folder) and `folders`, with all links resolved."""
    first = source if source.is_dir() else source.parent
    return tuple(dict.fromkeys(path.resolve() for path in (first, *folders)))


def may_open(path: Path, allowed: Sequence[Path]) -> bool:
    """Whether `path`, with all links resolved, lies in one of the `allowed` folders (as `roots` gives them).

    Of a folder (a DICOM series) all files have to, and so have the files that a NRRD or MetaImage header names.
    """

    def inside(one: Path) -> bool:
        found = one.resolve()
        return any(found == root or root in found.parents for root in allowed)

    try:
        if not inside(path) or not all(map(inside, path.iterdir() if path.is_dir() else ())):
            return False
        if not path.is_file() or not path.name.lower().endswith(HEADER_ENDINGS):
            return True
        voxels = voxel_files(path)
    except (OSError, RuntimeError, ValueError):  # a loop of links, or nothing that may be read
        return False
    return voxels is not None and all(map(inside, voxels))


def require_openable(path: Path, allowed: Sequence[Path]) -> Path:
    """`path` itself. Raises InputError where it leads out of the `allowed` folders."""
    if not may_open(path, allowed):
        raise InputError(f"{path}: lies outside the folders given at the start; allow its folder with --allow")
    return path


def within(item: WorkItem, allowed: Sequence[Path]) -> WorkItem:
    """`item` without the files that must not be opened; its `problem` names the first of them."""
    images = {name: path for name, path in item.images.items() if may_open(path, allowed)}
    predictions = {name: path for name, path in item.predictions.items() if may_open(path, allowed)}
    truth: Optional[Path] = item.ground_truth
    if truth is not None and not may_open(truth, allowed):
        truth = None
    kept = {*images.values(), *predictions.values(), truth}
    refused = [
        path
        for path in (*item.images.values(), *item.predictions.values(), item.ground_truth)
        if path is not None and path not in kept
    ]
    if not refused:
        return item
    problem = f"{refused[0]}: lies outside the folders given at the start; allow its folder with --allow"
    return replace(
        item,
        images=images,
        predictions=predictions,
        ground_truth=truth,
        problem=f"{item.problem} {problem}".strip(),
    )
