"""Labelled cases: finding them, label conventions, the normalised cache, crops and subsets for a training step.

Every random choice of a step comes from (seed, step) alone, so a run that stops and resumes sees the very same data.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from MSTKDSegmentLib.case_roles import roles_in_folder
from MSTKDSegmentLib.errors import InputError
from MSTKDSegmentLib.geometry import array_to_image, to_canonical
from MSTKDSegmentLib.modalities import MODALITIES, SUBSETS, availability
from MSTKDSegmentLib.pipeline import read_case
from MSTKDSegmentLib.regions import bounding_box, from_convention
from torch.utils.data import Dataset

from training.augment import Augmentation

SEGMENTATION_ENDINGS = ("_seg", "-seg")
CACHE_VERSION = 1


@dataclass(frozen=True)
class LabelledCase:
    """Files of one patient: `images` by modality, and `segmentation`."""

    name: str
    images: Mapping[str, Path]
    segmentation: Path


def find_case(folder: Path) -> LabelledCase:
    """The labelled four-sequence case in a BraTS-style folder.

    Raises InputError (RoleError) naming the sequence or segmentation that is missing.
    """
    images, _ = roles_in_folder(folder)
    missing = [m for m in MODALITIES if m not in images]
    if missing:
        raise InputError(f"{folder}: {', '.join(missing)} not found; training needs all four sequences")
    segmentations = [p for e in SEGMENTATION_ENDINGS for p in sorted(folder.glob(f"*{e}.nii*"))]
    if len(segmentations) != 1:
        raise InputError(f"{folder}: {len(segmentations)} files end in _seg.nii.gz or -seg.nii.gz; expected one")
    return LabelledCase(folder.name, images, segmentations[0])


def read_splits(path: Path) -> dict[str, list[str]]:
    """Split name -> case names; raises ValueError when a case stands in two splits."""
    splits = {name: list(cases) for name, cases in json.loads(path.read_text()).items()}
    names = [case for cases in splits.values() for case in cases]
    doubles = sorted({n for n in names if names.count(n) > 1})
    if doubles:
        raise ValueError(f"{path}: in more than one split: {', '.join(doubles)}")
    return splits


def label_convention(case: LabelledCase, values: Iterable[int]) -> str:
    """Which convention a segmentation follows, from the collection's name and the values that occur.

    MSD copies say so in their name. ET is 4 up to BraTS 2021 and 3 later, where 4 is the resection cavity (BraTS 2024,
    post-treatment). The BraTS-GLI names of 2023 were also given to copies with 2021's values: a 4 without a 3 is taken
    for a cavity only in the post-treatment cases, whose time point is 100 or more.
    """
    present = set(values)
    if case.name.upper().startswith("MSD_"):
        return "msd"
    if 4 in present:
        treated = re.fullmatch(r"BraTS-GLI-\d{5}-[1-9]\d\d", case.name) is not None
        return "brats2024" if 3 in present or treated else "brats2021"
    return "brats2023"


def read_labels(case: LabelledCase) -> sitk.Image:
    """The segmentation on its own grid in our labels (1 NCR, 2 ED, 3 ET), uint8; InputError on unknown values."""
    image = sitk.ReadImage(str(case.segmentation), sitk.sitkUInt8)
    array = sitk.GetArrayViewFromImage(image)
    return array_to_image(from_convention(array, label_convention(case, np.unique(array).tolist())), image)


def prepare_case(case: LabelledCase, out: Path) -> None:
    """Write `<out>/<case>.npz`: images (4, D, H, W) float16 z-scores and labels (D, H, W) uint8, cut to the brain.

    The images come from the product's own `read_case`, so training sees what inference will see.
    """
    prepared = read_case(case.images)
    labels = to_canonical(read_labels(case), prepared.grid, is_label=True).astype(np.uint8)
    box = bounding_box(prepared.image.any(axis=0) | (labels > 0))
    if box is None:
        raise InputError(f"{case.name}: nothing inside the brain")
    target = out / f"{case.name}.npz"
    temporary = out / f".{case.name}.tmp.npz"
    z, y, x = box
    images = prepared.image[:, z, y, x].astype(np.float16)
    np.savez(temporary, images=images, labels=np.ascontiguousarray(labels[box]), version=CACHE_VERSION)
    temporary.replace(target)


def load_case(cache: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(images, labels) of one prepared case; raises FileNotFoundError or ValueError saying to prepare again."""
    path = cache / f"{name}.npz"
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run `python -m training prepare` first")
    with np.load(path) as data:
        if int(data["version"]) != CACHE_VERSION:
            raise ValueError(f"{path} was prepared by another version: delete it and run `python -m training prepare`")
        return data["images"], data["labels"]


def cache_fingerprint(cache: Path, names: Sequence[str]) -> str:
    """sha256 over the labels and names of the prepared cases: what a card names as its training data."""
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(name.encode())
        digest.update(load_case(cache, name)[1].tobytes())
    return digest.hexdigest()


def choose_centre(labels: np.ndarray, rng: np.random.Generator, tumour_share: float) -> np.ndarray:
    """Voxel index to crop around: a voxel of a random label that is present, or (else) any voxel of the brain box."""
    if rng.random() < tumour_share:
        present = [label for label in (1, 2, 3) if (labels == label).any()]
        if present:
            candidates = np.flatnonzero(labels == rng.choice(present))
            return np.array(np.unravel_index(rng.choice(candidates), labels.shape))
    return np.array([rng.integers(0, side) for side in labels.shape])


def choose_subset(rng: np.random.Generator, full_share: float) -> tuple[str, ...]:
    """All four sequences with probability `full_share`, else one of the 15 subsets, uniformly (method: recipe)."""
    return SUBSETS[-1] if rng.random() < full_share else SUBSETS[int(rng.integers(len(SUBSETS)))]


class CropDataset(Dataset):
    """Item `step` (any number, endless) -> one augmented crop: image (4, D, H, W), availability (4,), labels (D, H, W).

    Channels of absent sequences are zero.
    """

    def __init__(
        self,
        cases: Sequence[tuple[np.ndarray, np.ndarray]],
        crop: Sequence[int],
        seed: int,
        tumour_share: float,
        full_share: float,
        augmentation: Augmentation,
    ) -> None:
        self.cases, self.crop, self.seed = cases, tuple(crop), seed
        self.tumour_share, self.full_share, self.augmentation = tumour_share, full_share, augmentation

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((self.seed, step))
        images, labels = self.cases[int(rng.integers(len(self.cases)))]
        centre = choose_centre(labels, rng, self.tumour_share)
        # Jitter, so that the tumour is not always in the middle.
        centre = centre + rng.integers(-8, 9, size=3)
        item = self.augmentation(images, labels, centre.tolist(), self.crop, int(rng.integers(2**31)))
        mask = torch.from_numpy(availability(choose_subset(rng, self.full_share)))
        item["image"] = item["image"] * mask[:, None, None, None]
        item["availability"] = mask
        return item
