"""A made-up patient that takes as long as a real one: the shipped template as brain, a bright sphere, noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..modalities import MODALITIES
from ..template import template

CASE_SHAPE, CASE_SPACING_MM = (155, 240, 240), 1.0  # a BraTS volume, (D, H, W)
NOISE = 40.0
# The brain fills at most so much of each side.
FILLED = 0.95


def write_phantom(
    folder: Path, shape: tuple[int, int, int], spacing_mm: float, brain_scale: float = 1.0
) -> dict[str, Path]:
    """Four sequences, `phantom_<sequence>.nii.gz`, int16, `shape` (D, H, W) voxels of `spacing_mm`; by sequence.

    brain_scale: the brain's size against an adult's, or against the largest that fits.
    """
    random = np.random.default_rng(0)
    grey = _brain(shape, spacing_mm, brain_scale)
    inside = grey > 0
    lesion = _distance(shape) < 0.2
    contrasts = {"T1": grey, "T1Gd": grey, "T2": 1.1 - grey, "FLAIR": 0.3 + 2 * grey * (1 - grey)}
    paths = {}
    for name in MODALITIES:
        voxels = 300 + 600 * contrasts[name] + NOISE * random.standard_normal(shape, dtype=np.float32)
        voxels[lesion] += -100 if name == "T1" else 300
        voxels = np.where(inside, voxels.clip(1), 0).astype(np.int16)
        paths[name] = folder / f"phantom_{name.lower()}.nii.gz"
        sitk.WriteImage(_on_grid(voxels, spacing_mm), str(paths[name]))
    return paths


def write_phantom_labels(folder: Path, shape: tuple[int, int, int], spacing_mm: float) -> Path:
    """The sphere's core, rim and shell as necrosis, enhancing tumour and oedema, `phantom_seg.nii.gz`."""
    distance = _distance(shape)
    labels = np.select([distance < 0.1, distance < 0.15, distance < 0.2], [1, 3, 2], 0).astype(np.uint8)
    path = folder / "phantom_seg.nii.gz"
    sitk.WriteImage(_on_grid(labels, spacing_mm), str(path))
    return path


def _distance(shape: tuple[int, int, int]) -> np.ndarray:
    """(D, H, W): from the lesion's centre, where the volume reaches from -1 to 1."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, side, dtype=np.float32) for side in shape), indexing="ij", sparse=True)
    return np.asarray(np.sqrt(z**2 + (y - 0.2) ** 2 + (x - 0.2) ** 2))


def _on_grid(voxels: np.ndarray, spacing_mm: float) -> sitk.Image:
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing([spacing_mm] * 3)
    image.SetOrigin([-(side - 1) / 2 * spacing_mm for side in image.GetSize()])
    return image


def _brain(shape: tuple[int, int, int], spacing_mm: float, scale: float) -> np.ndarray:
    """The template's grey levels from 0 to 1, (D, H, W) float32, 0 outside the brain, which lies in the middle."""
    brain = template()
    grey = sitk.GetArrayViewFromImage(brain)
    # The centre of gravity lies at 0, which is not the middle of the box around the brain.
    reach = np.abs([brain.TransformIndexToPhysicalPoint(index[::-1]) for index in _box_corners(grey > 0)]).max(axis=0)
    room = [FILLED * side * spacing_mm / (2 * most) for side, most in zip(shape, reach[::-1])]
    shrink = sitk.ScaleTransform(3, [1 / (scale * min(1.0, *room))] * 3)
    grid = _on_grid(np.zeros(shape, np.uint8), spacing_mm)
    there = sitk.Resample(brain, grid, shrink, sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    return np.asarray(sitk.GetArrayFromImage(there) / float(grey.max()))


def _box_corners(mask: np.ndarray) -> list[tuple[int, ...]]:
    """The lowest and the highest corner (z, y, x) of the box around `mask`."""
    used = np.argwhere(mask)
    return [tuple(int(value) for value in corner) for corner in (used.min(axis=0), used.max(axis=0))]
