"""One YAML file describes a run; unknown keys are errors, `key=value` overrides win."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from training.augment import AugmentationConfig
from training.engine import Phase, TrainingConfig


class ConfigError(ValueError):
    """A key that does not exist or a value that does not fit."""


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainingConfig:
    """The configuration in `path` with `overrides` such as `seed=3` or `augmentation.noise=0`.

    Raises ConfigError naming the file and the key for anything unknown.
    """
    data = yaml.safe_load(path.read_text()) or {}
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator:
            raise ConfigError(f"override {text!r}: expected key=value")
        *parents, last = key.split(".")
        place = data
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = yaml.safe_load(value)
    return config_from_dict(data, str(path))


def config_from_dict(data: Mapping[str, Any], source: str) -> TrainingConfig:
    """Plain data (YAML, JSON, a checkpoint's copy) as a TrainingConfig."""
    fields = dict(data)
    _refuse_unknown(fields, TrainingConfig, source)
    try:
        if "phases" in fields:
            fields["phases"] = tuple(_phase(item, source) for item in fields["phases"])
        if "augmentation" in fields:
            _refuse_unknown(fields["augmentation"], AugmentationConfig, f"{source}: augmentation")
            fields["augmentation"] = AugmentationConfig(**fields["augmentation"])
        return TrainingConfig(**fields)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {error}") from error


def _phase(item: Mapping[str, Any], source: str) -> Phase:
    _refuse_unknown(item, Phase, f"{source}: phases")
    phase = Phase(**{**item, "crop": tuple(item["crop"])})
    if len(phase.crop) != 3 or any(side % 32 for side in phase.crop) or phase.steps < 1 or phase.batch < 1:
        raise ConfigError(f"{source}: phase {dict(item)}: crop needs three multiples of 32, steps and batch at least 1")
    return phase


def _refuse_unknown(data: Mapping[str, Any], kind: type, source: str) -> None:
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(data) - known)
    if unknown:
        raise ConfigError(f"{source}: unknown key {', '.join(unknown)}; known: {', '.join(sorted(known))}")
