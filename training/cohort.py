"""The parts of a split file as the commands need them: prepared cases to train on, labelled ones to score."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from training.cache import CachedCases
from training.cases import LabelledCase
from training.config import TrainingConfig
from training.discovery import discover
from training.splits import part, read_patients, read_splits, require_disjoint


def prepared_parts(
    config: TrainingConfig, cache: Path, splits: Path, training: str, validation: str
) -> tuple[CachedCases, CachedCases | None]:
    """Cases of the part `training` and, where the configuration validates, of `validation`.

    `memory_gb` is for a computer: its processes share it, and so do the two parts, by their numbers of cases. Raises
    ValueError for a part that is not there or empty, and when the two share a patient.
    """
    parts = read_splits(splits)
    names = part(parts, training, splits)
    held: list[str] = []
    if config.validation.every:
        held = part(parts, validation, splits)
        require_disjoint(names, held, read_patients(splits), validation)
    limit = config.sampling.memory_gb * 1e9 / int(os.environ.get("LOCAL_WORLD_SIZE", "1")) / (len(names) + len(held))
    cases = CachedCases(cache, names, int(limit * len(names)))
    return cases, CachedCases(cache, held, int(limit * len(held))) if held else None


def labelled_part(
    data: Path, layout: str, convention: str | None, splits: Path, name: str, most: int | None = None
) -> list[LabelledCase]:
    """The labelled cases of a part (its first `most`), with patients as the split file knows them.

    Cases that share voxels are so one patient in intervals and tests.
    """
    patients = read_patients(splits)
    found = discover(data, layout, convention).select(part(read_splits(splits), name, splits)[:most])
    return [replace(case, patient=patients.get(case.name, case.patient)) for case in found]
