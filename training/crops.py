"""Crops for a training step. Every random choice comes from (seed, item number) alone.

So a run that stops and resumes, or has more workers or processes, sees the very same data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from MSTKDSegmentLib.modalities import MODALITIES, SUBSETS, availability
from MSTKDSegmentLib.regions import CAVITY
from torch.utils.data import Dataset

from training.augment import Augmentation
from training.config import SamplingConfig
from training.enhancement import without_enhancement
from training.losses import IGNORE
from training.mirror import without_tumour
from training.mixing import carve_mix


class Cases(Protocol):
    """Prepared cases by number: images (4, D, H, W) float16 and labels (D, H, W) uint8."""

    @property
    def names(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...


def choose_centre(labels: np.ndarray, rng: np.random.Generator, tumour_share: float) -> np.ndarray:
    """Voxel index to crop around: a voxel of a random label that is present, or (else) any voxel of the brain box."""
    if rng.random() < tumour_share:
        present = [label for label in (1, 2, 3) if (labels == label).any()]
        if present:
            candidates = np.flatnonzero(labels == rng.choice(present))
            return np.array(np.unravel_index(rng.choice(candidates), labels.shape))
    return np.array([rng.integers(0, side) for side in labels.shape])


def kept_inside(centre: np.ndarray, crop: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """`centre` moved so that the crop lies in the volume; in the middle of an axis on which it does not fit."""
    sides, lengths = np.asarray(crop), np.asarray(shape)
    lowest, highest = sides // 2, lengths - (sides - sides // 2)
    return np.where(sides >= lengths, lengths // 2, np.clip(centre, lowest, np.maximum(highest, lowest)))


def choose_subset(rng: np.random.Generator, full_share: float, weights: Sequence[float]) -> tuple[str, ...]:
    """All four sequences with probability `full_share`, else one of the 15 subsets, as often as its weight says."""
    if rng.random() < full_share:
        return SUBSETS[-1]
    if len(set(weights)) == 1:  # the draw of runs from before there were weights, which can go on with the same crops
        return SUBSETS[int(rng.integers(len(SUBSETS)))]
    return SUBSETS[int(rng.choice(len(SUBSETS), p=np.array(weights) / sum(weights)))]


def trained_labels(labels: torch.Tensor, resection_cavity: str) -> torch.Tensor:
    """Labels with the cavity (4) as background, as `IGNORE`, or as it is (class)."""
    if resection_cavity == "class":
        return labels
    return torch.where(labels == CAVITY, torch.full_like(labels, IGNORE if resection_cavity == "ignore" else 0), labels)


class CropDataset(Dataset):
    """Item number (any, endless) -> one augmented crop.

    image (4, D, H, W), availability (4,) of the sequences that the student sees, label (D, H, W), and case, the name of
    the patient(s). The sequences that the student does not see are zero and cost no time, unless a teacher sees them
    (`complete`).
    """

    def __init__(
        self,
        cases: Cases,
        crop: Sequence[int],
        seed: int,
        sampling: SamplingConfig,
        augmentation: Augmentation,
        complete: bool = True,
    ) -> None:
        self.cases, self.crop, self.seed, self.complete = cases, tuple(crop), seed, complete
        self.sampling, self.augmentation = sampling, augmentation

    def __getitem__(self, number: int) -> dict[str, object]:
        rng = np.random.default_rng((self.seed, number))
        index = int(rng.integers(len(self.cases)))
        images, labels = self.cases[index]
        name = self.cases.names[index]
        if len(self.cases) > 1 and rng.random() < self.augmentation.config.carve_mix:
            donor = (index + 1 + int(rng.integers(len(self.cases) - 1))) % len(self.cases)
            images, labels = carve_mix(images, labels, *self.cases[donor], rng)
            name = f"{name} with the lesion of {self.cases.names[donor]}"
        # Drawn only where it is wanted, so that runs without it keep their crops.
        elif self.sampling.healthy_share and rng.random() < self.sampling.healthy_share:
            place_only = self.sampling.place_only_share
            healthy = without_tumour(images, labels, place_only=bool(place_only) and rng.random() < place_only)
            if healthy is not None:
                images, labels, name = healthy, np.zeros_like(labels), f"{name} without its tumour"
        centre = choose_centre(labels, rng, self.sampling.tumour_share)
        # Jitter, so that the tumour is not always in the middle.
        jitter = self.sampling.centre_jitter
        centre = kept_inside(centre + rng.integers(-jitter, jitter + 1, size=3), self.crop, labels.shape)
        augmentation_seed = int(rng.integers(2**31))
        mask = availability(choose_subset(rng, self.sampling.full_share, self.sampling.weights))
        unenhanced = self.sampling.unenhanced_share
        if unenhanced and mask[MODALITIES.index("T1Gd")] and rng.random() < unenhanced:
            changed = without_enhancement(images, labels)
            if changed is not None:
                (images, labels), name = changed, f"{name} without enhancement"
        made = np.ones(len(mask), bool) if self.complete else mask > 0
        cut = self.augmentation(images[made], labels, centre.tolist(), self.crop, augmentation_seed)
        image = torch.zeros(len(mask), *self.crop)
        image[torch.from_numpy(made)] = cut["image"]
        return {
            "image": image,
            "label": trained_labels(cut["label"], self.sampling.resection_cavity),
            "availability": torch.from_numpy(mask),
            "case": name,
        }
