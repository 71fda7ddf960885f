"""Tiny labelled patients on disk: a skull-stripped ellipsoid with nested spheres as tumour, as collections hold it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from MSTKDSegmentLib.regions import to_convention

SHAPE = (28, 32, 30)  # (D, H, W), 1 mm
# File endings by collection, in the order T1, T1Gd, T2, FLAIR, segmentation.
STYLES = {
    "brats2018": ("_t1", "_t1ce", "_t2", "_flair", "_seg"),
    "brats2023": ("-t1n", "-t1c", "-t2w", "-t2f", "-seg"),
}
MSD_CHANNELS = ("FLAIR", "T1w", "t1gd", "T2w")  # as in Task01's dataset.json


def phantom(seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Images (4, D, H, W) int16 in the order T1, T1Gd, T2, FLAIR, zero outside the brain, and our labels uint8."""
    rng = np.random.default_rng(seed)
    z, y, x = (np.arange(side) - (side - 1) / 2 for side in shape)
    z, y, x = z[:, None, None], y[None, :, None], x[None, None, :]
    brain = (z / (shape[0] / 2 - 2)) ** 2 + (y / (shape[1] / 2 - 2)) ** 2 + (x / (shape[2] / 2 - 2)) ** 2 < 1
    distance = np.sqrt((z - 1) ** 2 + (y + 2) ** 2 + (x - 2) ** 2)
    unit = min(shape) / 28
    labels = np.select([distance < 2.5 * unit, distance < 4.5 * unit, distance < 7.5 * unit], [1, 3, 2], 0)
    labels = labels.astype(np.uint8)
    images = []
    for bright in ((), (3,), (1, 2), (2, 3)):
        texture = rng.normal(200, 20, shape).clip(50) + 200 * np.isin(labels, bright)
        images.append(np.where(brain, texture, 0).astype(np.int16))
    return np.stack(images), labels


def write_labelled_case(
    folder: Path, name: str, convention: str = "brats2021", style: str = "brats2018", seed: int = 0
) -> Path:
    """Writes the five files of a case into `<folder>/<name>/` and gives that folder. Labels follow `convention`.

    Where the convention has a resection cavity, one is put into the middle of the tumour.
    """
    images, labels = phantom(seed)
    values = to_convention(labels, convention)
    if convention == "brats2024":
        values[SHAPE[0] // 2 + 1, SHAPE[1] // 2 - 2, SHAPE[2] // 2 + 1 : SHAPE[2] // 2 + 3] = 4
    case = folder / name
    case.mkdir(parents=True)
    for array, ending in zip((*images, values), STYLES[style]):
        write_array(case / f"{name}{ending}.nii.gz", array)
    return case


def write_msd(folder: Path, names: tuple[str, ...] = ("BRATS_001", "BRATS_002")) -> Path:
    """Writes MSD's Task01_BrainTumour with 4-D images and gives its folder; case number n has seed n."""
    root = folder / "Task01_BrainTumour"
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (root / part).mkdir(parents=True)
    for seed, name in enumerate(names):
        images, labels = phantom(seed)
        volumes = [sitk.GetImageFromArray(images[index]) for index in (3, 0, 1, 2)]
        sitk.WriteImage(sitk.JoinSeries(volumes), str(root / "imagesTr" / f"{name}.nii.gz"))
        write_array(root / "labelsTr" / f"{name}.nii.gz", to_convention(labels, "msd"))
    table = {str(index): channel for index, channel in enumerate(MSD_CHANNELS)}
    (root / "dataset.json").write_text(json.dumps({"name": "BRATS", "modality": table}))
    return root


def write_array(path: Path, array: np.ndarray) -> None:
    """`array` (D, H, W) at 1 mm along the axes, origin 0."""
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
