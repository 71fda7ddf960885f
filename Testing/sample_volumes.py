"""The sample patient's volumes, which look like real sequences, in voxels of 2 mm."""

from __future__ import annotations

from pathlib import Path

import SimpleITK as sitk

FOLDER = Path(__file__).parents[1] / "Resources" / "sample"


def sample_volume(modality: str) -> sitk.Image:
    """Skull-stripped, float32, background 0."""
    image = sitk.ReadImage(str(FOLDER / f"sample_{modality.lower()}.nii.gz"), sitk.sitkFloat32)
    return sitk.Shrink(image, [2, 2, 2])
