"""What a network finds where there is nothing, in brains whose tumour was replaced (`mirror`): all is invented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from MSTKDSegmentLib.accelerator import AcceleratedNetwork
from MSTKDSegmentLib.decision import Decision
from MSTKDSegmentLib.geometry import choose_labels
from MSTKDSegmentLib.modalities import SUBSETS, subset_name
from MSTKDSegmentLib.network import MSTKDNet
from MSTKDSegmentLib.regions import CleanUp, remove_small_components, volumes_ml

from training.scores import REGIONS
from training.validation import predicted_probabilities

VOXEL_ML = 1e-3


@dataclass(frozen=True)
class Invented:
    """Volumes in ml by region that were found in the healthy brain of `case`, seen through `subset`."""

    case: str
    subset: str
    volumes_ml: Mapping[str, float]


def invented(
    network: MSTKDNet | AcceleratedNetwork,
    case: str,
    healthy: np.ndarray,
    decision: Decision,
    clean_up: CleanUp,
    device: str,
    subsets: Sequence[tuple[str, ...]] = SUBSETS,
) -> list[Invented]:
    """What the product would draw in `healthy` (4, D, H, W), for each subset."""
    found = []
    for subset in subsets:
        name = subset_name(subset)
        probabilities, _ = predicted_probabilities(network, healthy, subset, device)
        labels = choose_labels(probabilities, decision.thresholds_of(name))
        if decision.doubts(probabilities, name):
            labels[:] = 0
        volumes = volumes_ml(remove_small_components(labels, clean_up, VOXEL_ML), VOXEL_ML)
        found.append(Invented(case, name, {region: volumes[region] for region in REGIONS}))
    return found


def summary_of(found: Sequence[Invented]) -> dict[str, dict[str, dict[str, float]]]:
    """By subset and region: median and largest volume in ml, and the share of brains in which nothing was found."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name in dict.fromkeys(one.subset for one in found):
        table[name] = {}
        for region in REGIONS:
            volumes = np.array([one.volumes_ml[region] for one in found if one.subset == name])
            table[name][region] = {
                "median_ml": round(float(np.median(volumes)), 3),
                "largest_ml": round(float(volumes.max()), 3),
                "share_with_nothing": round(float(np.mean(volumes == 0)), 3),
            }
    return table
