"""N4 bias-field correction (Tustison et al. 2010, SimpleITK) inside the brain."""

from __future__ import annotations

from typing import Optional

import numpy as np
import SimpleITK as sitk

from .errors import Cancelled
from .registration import CancelCheck, coarser, stop_if

# The field is smooth: what is found on voxels of 4 mm is the field of the whole volume.
FIT_MM = 4.0
ITERATIONS = (30, 20, 10)


def corrected(image: sitk.Image, brain: np.ndarray, cancel: Optional[CancelCheck] = None) -> sitk.Image:
    """`image` (positive inside the mask `brain` (D, H, W)) divided by its bias field, which is 1 in the mean.

    Raises Cancelled within about a second of a true `cancel()`.
    """
    inside = sitk.GetArrayViewFromImage(image)[brain]
    lift = max(0.0, 1e-3 * float(np.ptp(inside)) - float(inside.min()))  # N4 works on logarithms
    raised = sitk.Cast(image, sitk.sitkFloat32) + lift
    coarse = coarser(raised, FIT_MM)
    mask = sitk.GetImageFromArray(brain.astype(np.uint8))
    mask.CopyInformation(image)
    coarse_mask = sitk.Resample(mask, coarse, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    field = sitk.Exp(_log_field(coarse, coarse_mask, cancel))
    # The outermost voxels lie outside the coarse ones' centres, and outside the brain.
    field = sitk.Resample(field, raised, sitk.Transform(), sitk.sitkLinear, 1.0, useNearestNeighborExtrapolator=True)
    level = float(np.median(sitk.GetArrayViewFromImage(field)[brain]))
    return raised / field * level - lift


def _log_field(image: sitk.Image, mask: sitk.Image, cancel: Optional[CancelCheck]) -> sitk.Image:
    method = sitk.N4BiasFieldCorrectionImageFilter()
    method.SetMaximumNumberOfIterations(ITERATIONS)

    # Abort() is not heard by this filter; what a callback raises ends it, as ITK's own kind of error.
    stopped: list[Cancelled] = []

    def look() -> None:
        try:
            stop_if(cancel)
        except Cancelled as wish:
            stopped.append(wish)
            raise

    method.AddCommand(sitk.sitkIterationEvent, look)
    try:
        method.Execute(image, mask)
    except RuntimeError:
        if stopped:
            raise stopped[0] from None
        raise
    return method.GetLogBiasFieldAsImage(image)
