"""What a network finds where there is nothing: brains whose tumour was replaced by their own other half.

A patient whose tumour lies in one hemisphere gets the mirror image of the other one in its place. All four sequences
stay what the scanner made them, so that such a brain is nearer to a healthy one's scan than anything synthetic; the
seam and perfect symmetry are not. Whatever is found in it is invented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from MSTKDSegmentLib.accelerator import AcceleratedNetwork
from MSTKDSegmentLib.decision import Decision
from MSTKDSegmentLib.inference import predict
from MSTKDSegmentLib.modalities import SUBSETS, availability, subset_name
from MSTKDSegmentLib.network import MSTKDNet
from MSTKDSegmentLib.regions import (
    CleanUp,
    region_probabilities,
    regions_to_labels,
    remove_small_components,
    volumes_ml,
)
from scipy import ndimage

from training.scores import REGIONS
from training.validation import padded

VOXEL_ML = 1e-3
# The tumour, grown by so many voxels, must not reach across the middle with more than this share of it.
MARGIN_VOXELS = 3
MOST_ACROSS = 0.01
# How far from the middle of the brain's box the plane of symmetry is looked for, in half voxels.
REACH = 12


def symmetry_plane(brain: np.ndarray) -> int:
    """Twice the index, along the last axis, of the plane about which the mask (D, H, W) is most alike its mirror."""
    columns = np.flatnonzero(brain.any(axis=(0, 1)))
    middle = int(columns[0] + columns[-1])
    thin = brain[::2, ::2]
    return max(
        range(middle - REACH, middle + REACH + 1),
        key=lambda twice: (np.count_nonzero(thin & mirrored(thin, twice)), -abs(twice - middle)),
    )


def mirrored(array: np.ndarray, twice: int) -> np.ndarray:
    """`array` (..., W) about the plane `twice` / 2 of its last axis; zero where nothing comes to lie."""
    width = array.shape[-1]
    source = twice - np.arange(width)
    there = (source >= 0) & (source < width)
    result = np.zeros_like(array)
    result[..., there] = array[..., source[there]]
    return result


def without_tumour(images: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
    """images (4, D, H, W) with the tumour's half replaced by the other one's mirror image; None if it is on both."""
    twice = symmetry_plane(np.asarray(images.any(axis=0)))
    tumour = ndimage.binary_dilation(labels > 0, iterations=MARGIN_VOXELS)
    left = np.arange(labels.shape[2]) < twice / 2
    on_left = int(np.count_nonzero(tumour & left))
    total = int(np.count_nonzero(tumour))
    if total == 0 or min(on_left, total - on_left) > MOST_ACROSS * total:
        return None
    ill = left if on_left > total - on_left else ~left
    return np.where(ill, mirrored(images, twice), images)


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
    whole = padded(healthy)
    found = []
    for subset in subsets:
        mask, name = availability(subset), subset_name(subset)
        p = predict(network, whole * mask[:, None, None, None], mask, device=device).probabilities
        thresholds = decision.thresholds_of(name)
        if thresholds is None:
            labels = p.argmax(axis=0).astype(np.uint8)
        else:
            labels = regions_to_labels(*(one >= least for one, least in zip(region_probabilities(p), thresholds)))
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
