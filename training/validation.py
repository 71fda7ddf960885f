"""Dice of a network in training on prepared cases: quick, on the 1 mm grid; decides which checkpoint is the best."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Callable, cast

import numpy as np
import torch
from MSTKDSegmentLib.accelerator import AcceleratedNetwork
from MSTKDSegmentLib.geometry import grid_around
from MSTKDSegmentLib.inference import predict
from MSTKDSegmentLib.metrics import region_dice
from MSTKDSegmentLib.modalities import SUBSETS, availability, subset_name
from MSTKDSegmentLib.network import MSTKDNet
from MSTKDSegmentLib.regions import CAVITY
from torch import nn

from training.crops import Cases
from training.distributed import World
from training.scores import REGIONS

BY_NAME = {subset_name(subset): subset for subset in SUBSETS}


def framed(images: np.ndarray) -> tuple[np.ndarray, tuple[slice, slice, slice]]:
    """(4, D, H, W) float16 -> float32 in the middle of the grid that the product would lay around it, and its place.

    How much background surrounds a brain changes the statistics that group norm divides by.
    """
    shape = np.array(images.shape[1:])
    grid = grid_around(np.full(3, -0.5), shape[::-1] - 0.5, np.zeros(3))
    result = np.zeros((len(images), *grid.shape), np.float32)
    z, y, x = (slice(int(-first), int(-first) + side) for first, side in zip(grid.origin[::-1], images.shape[1:]))
    result[:, z, y, x] = images
    return result, (z, y, x)


def predicted_probabilities(
    network: nn.Module | AcceleratedNetwork, images: np.ndarray, subset: Sequence[str], device: str
) -> tuple[np.ndarray, list[str]]:
    """Probabilities (4, D, H, W) of the whole prepared case, seen through `subset`, and what the user should know."""
    mask = availability(subset)
    image, (z, y, x) = framed(images * mask[:, None, None, None].astype(images.dtype))
    prediction = predict(cast(MSTKDNet, network), image, mask, device=device, window=getattr(network, "window", None))
    return prediction.probabilities[:, z, y, x], prediction.notices


def predicted_labels(
    network: nn.Module, images: np.ndarray, subset: Sequence[str], device: str
) -> tuple[np.ndarray, list[str]]:
    """Label map (D, H, W): the most probable classes of `predicted_probabilities`, and its notices."""
    probabilities, notices = predicted_probabilities(network, images, subset, device)
    return probabilities.argmax(0).astype(np.uint8), notices


def validation_dice(
    network: nn.Module,
    cases: Cases,
    subsets: Sequence[str],
    world: World,
    told: Callable[[str], None] = lambda _: None,
) -> dict[str, float]:
    """Mean Dice by "subset region" and over all ("score"); each process takes its part of the cases.

    `told` gets what was done for want of memory (windows, the CPU): such scores are a little lower.
    """
    # A copy: for want of memory `predict` may take its network to another device, and this one is in training.
    network = copy.deepcopy(network).eval()
    notices: set[str] = set()
    total: dict[str, float] = {f"{name} {region}": 0.0 for name in subsets for region in REGIONS}
    for index in range(world.rank, len(cases), world.size):
        images, labels = cases[index]
        truth = np.where(labels == CAVITY, 0, labels)
        for name in subsets:
            found, said = predicted_labels(network, images, BY_NAME[name], str(world.device))
            notices.update(said)
            for region, value in region_dice(found, truth).items():
                total[f"{name} {region}"] += value
    for notice in sorted(notices):
        told(f"validation: {notice}")
    summed = world.mean(torch.tensor(list(total.values()), dtype=torch.float64)) * world.size
    means = (summed / len(cases)).tolist()
    return {**{name: round(value, 4) for name, value in zip(total, means)}, "score": round(float(np.mean(means)), 4)}
