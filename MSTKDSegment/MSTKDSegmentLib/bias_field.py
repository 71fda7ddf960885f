"""N4 bias-field correction (Tustison et al. 2010, SimpleITK) inside the brain."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from .registration import coarser

# The field is smooth: what is found on voxels of 4 mm is the field of the whole volume.
FIT_MM = 4.0
ITERATIONS = (30, 20, 10)


def corrected(image: sitk.Image, brain: np.ndarray) -> sitk.Image:
    """`image` (positive inside the mask `brain` (D, H, W)) divided by its bias field, which is 1 in the mean."""
    inside = sitk.GetArrayViewFromImage(image)[brain]
    lift = max(0.0, 1e-3 * float(np.ptp(inside)) - float(inside.min()))  # N4 works on logarithms
    raised = sitk.Cast(image, sitk.sitkFloat32) + lift
    coarse = coarser(raised, FIT_MM)
    mask = sitk.GetImageFromArray(brain.astype(np.uint8))
    mask.CopyInformation(image)
    coarse_mask = sitk.Resample(mask, coarse, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    method = sitk.N4BiasFieldCorrectionImageFilter()
    method.SetMaximumNumberOfIterations(ITERATIONS)
    method.Execute(coarse, coarse_mask)
    field = sitk.Exp(method.GetLogBiasFieldAsImage(raised))
    level = float(np.median(sitk.GetArrayViewFromImage(field)[brain]))
    return raised / field * level - lift
