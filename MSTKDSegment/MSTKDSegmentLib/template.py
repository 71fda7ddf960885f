"""The pose that the network knows: a template brain, and how a patient's head is turned from it."""

from __future__ import annotations

from functools import lru_cache
from typing import Optional

import numpy as np
import SimpleITK as sitk

from .registration import LEVELS_MM, CancelCheck, as_matrix, brain_only, centre, coarser, mask_on, optimised_level
from .shipped_files import shipped_file

TEMPLATE = "brain-template.nii.gz"


@lru_cache(maxsize=1)
def template() -> sitk.Image:
    """MNI152 (T1, skull-stripped, 2 mm, LPS) in the mean pose and size of the training patients; its brain's centre
    of gravity is at 0.
    """
    return sitk.ReadImage(str(shipped_file("Templates", TEMPLATE)), sitk.sitkFloat32)


def pose_of(
    image: sitk.Image, mask: np.ndarray, side_mm: float = LEVELS_MM[0], cancel: Optional[CancelCheck] = None
) -> np.ndarray:
    """(3, 4): takes points of the template to the brain `mask` (D, H, W) of `image`; turned and scaled as a whole.

    `side_mm`: voxels that the brains are compared with. Raises Cancelled.
    """
    return as_matrix(similarity_to(template(), image, mask, side_mm, cancel))


def similarity_to(
    fixed: sitk.Image, image: sitk.Image, mask: np.ndarray, side_mm: float, cancel: Optional[CancelCheck] = None
) -> sitk.Similarity3DTransform:
    """As `pose_of`, from any brain `fixed` with 0 outside it; starts from the centres of gravity."""
    coarse, mask_there = comparable(fixed, side_mm)
    middle = centre(fixed, sitk.GetArrayViewFromImage(fixed) > 0)
    start = sitk.Similarity3DTransform()
    start.SetCenter(middle.tolist())
    start.SetTranslation((centre(image, mask) - middle).tolist())
    return optimised_level(coarse, mask_there, coarser(brain_only(image, mask), side_mm), start, side_mm, cancel)


def comparable(fixed: sitk.Image, side_mm: float) -> tuple[sitk.Image, sitk.Image]:
    """The brain `fixed` (0 outside it) with voxels of `side_mm`, and where it is compared: its mask with a margin."""
    coarse = coarser(fixed, side_mm)
    return coarse, mask_on(coarse, fixed, sitk.GetArrayViewFromImage(fixed) > 0)


def rigid_part(matrix: np.ndarray) -> np.ndarray:
    """(3, 3) rotation nearest to the linear part of `matrix` (3, 4) or (3, 3)."""
    u, _, vt = np.linalg.svd(matrix[:, :3])
    turn: np.ndarray = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    return turn


def degrees_of(turn: np.ndarray) -> float:
    """Angle of a (3, 3) rotation."""
    return float(np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))))
