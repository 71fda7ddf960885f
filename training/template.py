"""The brain in the pose that the student knows: the MNI152 template under the mean affine of training patients.

The product turns heads to it. Data sets that were brought to an atlas by others differ from MNI in pitch and size, and
the network should see clinical heads as it saw those.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import numpy as np
import SimpleITK as sitk
from MSTKDSegmentLib.errors import InputError
from MSTKDSegmentLib.overlap import find_foreground
from MSTKDSegmentLib.registration import (
    LEVELS_MM,
    as_matrix,
    as_transform,
    brain_only,
    centre,
    coarser,
    optimised_level,
)
from MSTKDSegmentLib.template import comparable, similarity_to
from MSTKDSegmentLib.volumes import read_volume

from training.cases import LabelledCase
from training.files import replacing

SPACING_MM = 2.0
MARGIN_MM = 12.0
AFFINE_STEP_MM = 1.0
SEQUENCE = "T1Gd"


def mni152() -> sitk.Image:
    """nilearn's skull-stripped MNI152 T1, LPS axes, 1 mm, 0 to 255. Raises InputError where nilearn is missing."""
    try:
        from nilearn.datasets import struct
    except ImportError as error:
        raise InputError(f"the template needs nilearn ({error}); install it: pip install -e '.[sample]'") from error
    return sitk.DICOMOrient(sitk.ReadImage(str(struct.MNI152_FILE_PATH), sitk.sitkFloat32), "LPS")


def mean_affine(
    cases: Sequence[LabelledCase], template: sitk.Image, told: Callable[[str], None]
) -> tuple[np.ndarray, float]:
    """(3, 3): the mean, over `cases`, of what takes MNI's axes to the patient's; and the spread of its entries."""
    found = []
    for case in cases:
        image = read_volume(case.images[SEQUENCE]).image
        found.append(_affine(template, image, find_foreground(image).mask)[:, :3])
        told(f"{case.name}: {np.round(found[-1], 2).tolist()}")
    return np.mean(found, axis=0), float(np.std(found, axis=0).max())


def _affine(template: sitk.Image, image: sitk.Image, mask: np.ndarray) -> np.ndarray:
    side = LEVELS_MM[0]
    whole = similarity_to(template, image, mask, side)
    start = sitk.AffineTransform(3)
    start.SetCenter(whole.GetCenter())
    start.SetMatrix(whole.GetMatrix())
    start.SetTranslation(whole.GetTranslation())
    coarse, where = comparable(template, side)
    return as_matrix(optimised_level(coarse, where, coarser(brain_only(image, mask), side), start, AFFINE_STEP_MM))


def posed(template: sitk.Image, axes: np.ndarray) -> sitk.Image:
    """`template` under the linear map `axes` (3, 3), uint8, `SPACING_MM`, the brain's centre of gravity at 0."""
    mask = sitk.GetArrayViewFromImage(template) > 0
    middle = centre(template, mask)
    corners = np.argwhere(mask)[:, ::-1][::50] + template.GetOrigin()
    reached = (corners - middle) @ axes.T
    low = reached.min(axis=0) - MARGIN_MM
    size = np.ceil((reached.max(axis=0) + MARGIN_MM - low) / SPACING_MM).astype(int).tolist()
    back = np.linalg.inv(axes)
    grid_to_mni = as_transform(np.column_stack([back, middle]))
    soft = sitk.DiscreteGaussian(template, (SPACING_MM**2 - 1) / (8 * np.log(2)))
    image = sitk.Resample(
        soft, size, grid_to_mni, sitk.sitkLinear, low.tolist(), [SPACING_MM] * 3, np.eye(3).ravel().tolist(), 0.0
    )
    return sitk.Cast(sitk.Clamp(sitk.Round(image), sitk.sitkFloat32, 0, 255), sitk.sitkUInt8)


def write_template(image: sitk.Image, path: Path) -> None:
    """Write `image`, all or nothing. Raises OutputError."""
    with replacing(path) as temporary:
        partial = temporary.with_name("partial-" + path.name)
        try:
            sitk.WriteImage(image, str(partial), useCompression=True)
            partial.replace(temporary)
        finally:
            partial.unlink(missing_ok=True)
