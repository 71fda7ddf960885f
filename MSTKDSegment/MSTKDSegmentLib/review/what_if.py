"""What if a sequence were missing, or the head mirrored: one prepared case, run again and again by the network only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Optional

import numpy as np

from ..metrics import region_dice
from ..modalities import MODALITIES, subset_name
from ..pipeline import CancelCheck, PreparedCase, Progress, Segmentation, Segmenter, doubt_notices
from ..regions import REGION_KEYS, labels_to_regions

FLIPS: tuple[tuple[int, ...], ...] = ((2,), (1,), (0,))
"""Axes (of D, H, W) of the mirrored runs: left-right, front-back, top-bottom."""


@dataclass(frozen=True)
class SubsetResult:
    """What the network found with `subset`: volumes in ml, and Dice by region against `WhatIf.against`.

    doubted_ml: as in `Segmentation`; nothing was marked then.
    """

    subset: tuple[str, ...]
    volumes_ml: Mapping[str, float]
    dice: Mapping[str, float]
    doubted_ml: float = 0.0

    @property
    def name(self) -> str:
        """Such as "T1Gd+FLAIR"."""
        return subset_name(self.subset)


@dataclass(frozen=True)
class Changes:
    """How much of a region changes over the mirrored runs (`flips`) and over those with sequences left out (`subsets`).

    Each is the mean over the runs of the volume that is in one of run and full result only, as a share of the full
    result's; None where that is empty or nothing was run.
    """

    flips: Optional[float]
    subsets: Optional[float]


@dataclass(frozen=True)
class WhatIf:
    """`full`: the result with all sequences; `results`: one for each subset, the full one last.

    against: what the Dice are to, "ground truth" or "full set". maps: by region (D, H, W) float32 on the reference's
    grid, the share of the further runs that disagree with the full result there. changes: by region.
    """

    full: Segmentation
    results: tuple[SubsetResult, ...]
    against: str
    maps: Mapping[str, np.ndarray]
    changes: Mapping[str, Changes]

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user must see of all sequences together, and of each subset with which nothing was marked."""
        doubts = [notice for one in self.results for notice in doubt_notices(one.doubted_ml, one.name)]
        return tuple(dict.fromkeys([*self.full.notices, *doubts]))

    def without(self, sequence: str) -> Optional[SubsetResult]:
        """The result without one sequence; None where it is the only one or not present."""
        rest = tuple(name for name in self.results[-1].subset if name != sequence)
        return next((one for one in self.results if one.subset == rest and rest != self.results[-1].subset), None)

    def carried_by(self, region: str) -> dict[str, float]:
        """By sequence: the Dice of `region` that is lost when it alone is missing; the largest carries the region."""
        full = self.results[-1].dice.get(region)
        lost = {name: self.without(name) for name in self.results[-1].subset}
        return {} if full is None else {n: full - one.dice[region] for n, one in lost.items() if one is not None}

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the maps."""
        return {
            "against": self.against,
            "subsets": [
                {
                    "subset": one.name,
                    "volumes_ml": dict(one.volumes_ml),
                    "dice": dict(one.dice),
                    "doubted_ml": one.doubted_ml,
                }
                for one in self.results
            ],
            "carried_by": {region: self.carried_by(region) for region in REGION_KEYS},
            "changes": {region: vars(change) for region, change in self.changes.items()},
        }


def subsets_of(present: Sequence[str]) -> list[tuple[str, ...]]:
    """All non-empty subsets of the sequences that are present, single ones first and all of them last."""
    order = [name for name in MODALITIES if name in present]
    return [subset for size in range(1, len(order) + 1) for subset in combinations(order, size)]


def what_if(
    segmenter: Segmenter,
    case: PreparedCase,
    ground_truth: Optional[np.ndarray] = None,
    known: Sequence[str] = REGION_KEYS,
    flips: Sequence[Sequence[int]] = FLIPS,
    progress: Optional[Progress] = None,
    cancel: Optional[CancelCheck] = None,
) -> WhatIf:
    """Run all subsets of what `case` holds, and the mirrored runs; volumes are read and prepared once, before.

    ground_truth: labels (D, H, W) on the reference's grid, of which the regions `known` count; without it the Dice are
    agreements with the full set. Raises ValueError for labels off that grid, Cancelled.
    """
    if ground_truth is not None and ground_truth.shape != case.reference_image.GetSize()[::-1]:
        raise ValueError("the ground truth is not on the reference's grid")
    subsets = subsets_of(case.subset)
    steps = _Steps(len(subsets) + len(flips), progress)
    full = segmenter.segment_prepared(case, progress=steps.next("all sequences"), cancel=cancel)
    truth = full.labels if ground_truth is None else ground_truth
    regions = REGION_KEYS if ground_truth is None else tuple(key for key in REGION_KEYS if key in known)
    votes = _Votes(full.labels)
    results = []
    for subset in subsets[:-1]:
        found = segmenter.segment_prepared(case.only(subset), progress=steps.next(subset_name(subset)), cancel=cancel)
        votes.add("subsets", found.labels)
        results.append(_result(subset, found, truth, regions))
    for axes in flips:
        found = segmenter.segment_prepared(case, progress=steps.next("mirrored"), cancel=cancel, flipped=tuple(axes))
        votes.add("flips", found.labels)
    results.append(_result(subsets[-1], full, truth, regions))
    against = "full set" if ground_truth is None else "ground truth"
    return WhatIf(full, tuple(results), against, votes.maps(), votes.changes())


def _result(subset: tuple[str, ...], found: Segmentation, truth: np.ndarray, regions: Sequence[str]) -> SubsetResult:
    dice = region_dice(found.labels, truth)
    return SubsetResult(subset, found.volumes_ml, {key: dice[key] for key in regions}, found.doubted_ml)


class _Steps:
    """One bar over several runs of the network."""

    def __init__(self, total: int, progress: Optional[Progress]) -> None:
        self._total, self._progress, self._done = total, progress, -1

    def next(self, what: str) -> Optional[Progress]:
        self._done += 1
        progress, done = self._progress, self._done
        if progress is None:
            return None
        # What a prepared case has behind it belongs to no run here.
        return lambda share, _text: progress((done + share) / self._total, f"{what} ({done + 1} of {self._total})")


class _Votes:
    """By region, how many of the further runs disagree with the full result at each voxel, and by how much."""

    def __init__(self, full: np.ndarray) -> None:
        self._full = labels_to_regions(full)
        self._against = {key: np.zeros(full.shape, np.uint8) for key in self._full}
        self._shares: dict[str, dict[str, list[float]]] = {key: {"flips": [], "subsets": []} for key in self._full}
        self._runs = 0

    def add(self, kind: str, labels: np.ndarray) -> None:
        self._runs += 1
        for key, mask in labels_to_regions(labels).items():
            differs = mask != self._full[key]
            self._against[key] += differs
            total = int(np.count_nonzero(self._full[key]))
            if total:
                self._shares[key][kind].append(int(np.count_nonzero(differs)) / total)

    def maps(self) -> dict[str, np.ndarray]:
        runs = max(self._runs, 1)
        return {key: (votes / np.float32(runs)).astype(np.float32) for key, votes in self._against.items()}

    def changes(self) -> dict[str, Changes]:
        def mean(values: Sequence[float]) -> Optional[float]:
            return float(np.mean(values)) if values else None

        return {key: Changes(mean(one["flips"]), mean(one["subsets"])) for key, one in self._shares.items()}
