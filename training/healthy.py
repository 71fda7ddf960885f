"""What a network finds where there is nothing: all is invented.

Either in patients' brains whose tumour was replaced (`mirror`), or in real volumes of somebody without a tumour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from MSTKDSegmentLib.accelerator import AcceleratedNetwork
from MSTKDSegmentLib.decision import Decision
from MSTKDSegmentLib.errors import InputError
from MSTKDSegmentLib.geometry import choose_labels
from MSTKDSegmentLib.modalities import MODALITIES, SUBSETS, subset_name
from MSTKDSegmentLib.network import MSTKDNet
from MSTKDSegmentLib.pipeline import Segmenter
from MSTKDSegmentLib.regions import CleanUp, remove_small_components, volumes_ml

from training.scores import REGIONS
from training.validation import predicted_probabilities

VOXEL_ML = 1e-3
# How a patient's brain is made one without a tumour, and in what words the figures say so.
KINDS = {
    "half": "the tumour's half replaced by the other one's mirror image",
    "place": "only the tumour's place replaced by the other half's mirror image",
}


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


def real_volumes(texts: Sequence[str]) -> list[tuple[str, Path]]:
    """("T1", path) for each "T1=path". Raises InputError for another sequence and for a file that is not there."""
    named = []
    for text in texts:
        sequence, _, file = text.partition("=")
        if sequence not in MODALITIES or not file:
            raise InputError(f"--real {text!r}: expected SEQUENCE=FILE, SEQUENCE one of {', '.join(MODALITIES)}")
        path = Path(file)
        if not path.is_file():
            raise InputError(f"--real: there is no file {path}")
        named.append((sequence, path))
    return named


def invented_in_real(segmenter: Segmenter, sequence: str, path: Path) -> dict[str, Any]:
    """What the product draws in the volume of a real healthy head (or brain), given nothing but that sequence."""
    result = segmenter.segment({sequence: path})
    return {
        "file": path.name,
        "sequence": sequence,
        "volumes_ml": {region: round(float(result.volumes_ml[region]), 3) for region in REGIONS},
        "doubted_ml": round(result.doubted_ml, 3),
    }
