"""Small patients with a tumour, for the tests of the review's reports and of `mstkd evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from conftest import SHAPE, brain_image, image_of, write_case


def tumour(shift: int = 0, enhancing: bool = True) -> np.ndarray:
    """(D, H, W) uint8 of `SHAPE`: boxes of oedema around necrosis around... 10 x 12 x 10, moved by `shift` along x."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[11:21, 12:24, 8 + shift : 18 + shift] = 2
    labels[13:19, 14:22, 10 + shift : 16 + shift] = 3 if enhancing else 1
    labels[15:17, 16:20, 12 + shift : 14 + shift] = 1
    return labels


def write_labels(path: Path, labels: np.ndarray) -> Path:
    """Writes a label map in the values of BraTS 2023 on the grid of `conftest.brain_image`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image_of(labels), str(path))
    return path


def write_patients(folder: Path, truths: Mapping[str, np.ndarray], **roles: int) -> Path:
    """A folder of case folders, each with the sequences role=seed and its ground truth NAME_seg.nii.gz."""
    for name, labels in truths.items():
        write_case(folder / name, **roles)
        write_labels(folder / name / f"{name}_seg.nii.gz", labels)
    return folder


def images(*seeds: int) -> dict[str, sitk.Image]:
    """T1Gd and FLAIR, by seed."""
    return {name: brain_image(seed) for name, seed in zip(("T1Gd", "FLAIR"), seeds)}
