"""From class probabilities to the regions that are drawn, and how sure a probability really is.

A network that sees few sequences stays below one half in much of what an expert would outline: with T1 alone a voxel
of probability 0.1 may be tumour in four of ten cases. So each set of sequences has its own threshold for each region,
and its own curve from the network's probability to the share of voxels that really were tumour. Both are chosen on
validation patients (`python -m training calibrate`) and stand in the bundle's card as `decision`.

Low thresholds find oedema in brains without a tumour, too. But of the inside of nearly every real tumour, small or
large, a network is far surer than of anything in a healthy brain: so nothing is drawn at all where it is nowhere sure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np

from .modalities import SUBSETS, subset_name
from .regions import REGION_KEYS

SUBSET_NAMES = tuple(map(subset_name, SUBSETS))
# How sure a network is of what it found is read off the surest tenth: a share, so that a small tumour counts as much.
SUREST_SHARE = 0.1
# Probabilities are kept this far from 0 and 1, where their logits are infinite.
MARGIN = 1e-4


@dataclass(frozen=True)
class Decision:
    """By name of subset ("T1Gd+FLAIR") and region ("WT", "TC", "ET"); a subset that is missing has no rule of its own.

    thresholds: a voxel belongs to the region from this probability of the network on; without, the most probable class
    is taken. calibration: slope and offset of the logistic curve on the logit of the network's probability that gives
    the share of voxels that belong to the region (Platt 1999). evidence: by name of subset alone, the probability of
    whole tumour that the surest tenth must reach (`surest_background`) if anything is to be drawn.
    """

    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    calibration: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    evidence: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        thresholds = {name: _by_region(name, row, _threshold) for name, row in self.thresholds.items()}
        calibration = {name: _by_region(name, row, _curve) for name, row in self.calibration.items()}
        evidence = {_known_subset(name): _threshold(value) for name, value in self.evidence.items()}
        object.__setattr__(self, "evidence", evidence)
        object.__setattr__(self, "thresholds", thresholds)
        object.__setattr__(self, "calibration", calibration)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Decision:
        """The inverse of `to_dict`; ValueError for unknown entries, so that none is silently without effect."""
        unknown = sorted(set(data) - {"thresholds", "calibration", "evidence"})
        if unknown:
            raise ValueError(f"the decision has unknown entries: {', '.join(unknown)}")
        return cls(data.get("thresholds", {}), data.get("calibration", {}), data.get("evidence", {}))

    def to_dict(self) -> dict[str, Any]:
        """As plain data for JSON."""
        curves = {name: {key: list(curve) for key, curve in row.items()} for name, row in self.calibration.items()}
        thresholds = {name: dict(row) for name, row in self.thresholds.items()}
        return {"thresholds": thresholds, "calibration": curves, "evidence": dict(self.evidence)}

    def thresholds_of(self, subset: str) -> Optional[tuple[float, float, float]]:
        """Thresholds of WT, TC and ET for a subset by name; None where the most probable class is taken."""
        row = self.thresholds.get(subset)
        return None if row is None else (row["WT"], row["TC"], row["ET"])

    def doubts(self, probabilities: np.ndarray, subset: str) -> bool:
        """Whether nothing is to be drawn from (4, D, H, W) of background, NCR, ED, ET: the network is nowhere sure."""
        least = self.evidence.get(subset)
        return least is not None and surest_background(probabilities[0]) > 1 - least

    def calibrated(self, probabilities: np.ndarray, subset: str) -> np.ndarray:
        """The share of voxels that belong to each region, from the network's (3, ...) probabilities of WT, TC, ET.

        As they are for a subset without a curve. Zero stays zero (outside the brain), and no inner region gets more
        than the one around it.
        """
        row = self.calibration.get(subset)
        if row is None:
            return probabilities
        result = np.empty(probabilities.shape, np.float32)
        for index, key in enumerate(REGION_KEYS):
            result[index] = calibrated(probabilities[index], row[key])
        np.minimum(result[1], result[0], out=result[1])
        np.minimum(result[2], result[1], out=result[2])
        return result


NO_DECISION = Decision()


def surest_background(background: np.ndarray) -> float:
    """How sure a network is of a tumour: of the voxels that are more likely tumour than not, the surest tenth.

    background: probability of background. The answer is the highest of that tenth (small: sure), 1 where no voxel is
    more likely tumour; not its complement, which float32 would round.
    """
    inside = background[background < 0.5]
    if not inside.size:
        return 1.0
    last = max(int(np.ceil(SUREST_SHARE * inside.size)) - 1, 0)
    return float(np.partition(inside, last)[last])


def calibrated(probability: np.ndarray, curve: tuple[float, float]) -> np.ndarray:
    """sigmoid(slope * logit(p) + offset), float32; 0 where p is 0."""
    slope, offset = curve
    inside = np.clip(probability, MARGIN, 1 - MARGIN).astype(np.float32)
    logit = np.log(inside / (1 - inside))
    return np.where(probability > 0, 1 / (1 + np.exp(-(slope * logit + offset))), np.float32(0)).astype(np.float32)


def _known_subset(subset: str) -> str:
    if subset not in SUBSET_NAMES:
        raise ValueError(f"the decision names an unknown set of sequences: {subset}")
    return subset


def _by_region(subset: str, row: Any, check: Any) -> dict[str, Any]:
    _known_subset(subset)
    if not isinstance(row, Mapping) or set(row) != set(REGION_KEYS):
        raise ValueError(f"the decision for {subset} needs one entry for each of {', '.join(REGION_KEYS)}")
    return {key: check(row[key]) for key in REGION_KEYS}


def _threshold(value: Any) -> float:
    if not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ValueError(f"a threshold must lie between 0 and 1, not {value!r}")
    return float(value)


def _curve(value: Any) -> tuple[float, float]:
    slope, offset = (float(number) for number in value)
    if not (slope > 0 and np.isfinite(slope) and np.isfinite(offset)):
        raise ValueError(f"a calibration needs a positive slope and a finite offset, not {value!r}")
    return slope, offset
