"""From a volume as it was read to what the network sees: intensity normalisation inside the brain.

The normalised image is zero outside the brain *after* normalising, so zero means "the brain's mean" and never "dark".
Which sequences are absent is told to the network by the availability mask, not by intensities.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

# Intensities beyond these percentiles of the brain (vessels, artefacts) do not enter the mean and deviation.
STATISTICS_PERCENTILES = (0.5, 99.5)
# Z-scores are cut here: enhancing tumour reaches about 6 on T1Gd, artefacts far more.
Z_RANGE = (-5.0, 8.0)


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """(D, H, W) bool: of the pieces of `mask` that do not touch by their faces the one of most voxels."""
    numbered, count = ndimage.label(mask)
    return mask if count < 2 else np.asarray(numbered == 1 + np.bincount(numbered.ravel())[1:].argmax())


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """(D, H, W) bool with every cavity that the outside does not reach closed: dark CSF belongs to the brain."""
    if not mask.any():
        return mask.copy()
    # Only the box around the mask, with one layer more where there is one: through it all outside is connected.
    box = tuple(_padded_extent(mask, axis) for axis in range(mask.ndim))
    filled = sitk.BinaryFillhole(sitk.GetImageFromArray(mask[box].astype(np.uint8)))
    result = mask.copy()
    result[box] = sitk.GetArrayViewFromImage(filled)
    return result


def _padded_extent(mask: np.ndarray, axis: int) -> slice:
    used = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
    return slice(max(int(used[0]) - 1, 0), int(used[-1]) + 2)


def normalise(array: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Z-score of (D, H, W) `array` inside the bool mask `brain`, float32, exactly zero outside.

    Mean and deviation come from the values clipped to `STATISTICS_PERCENTILES`; the result is clipped to `Z_RANGE`.
    Raises ValueError when the mask is empty or the brain is constant: nothing can be normalised then.
    """
    values = array[brain].astype(np.float32, copy=False)
    if not values.size:
        raise ValueError("the brain mask is empty")
    mean, deviation = brain_statistics(values)
    if not deviation > 0:
        raise ValueError("the intensities inside the brain are constant")
    out = np.zeros(array.shape, np.float32)
    out[brain] = np.clip((values - mean) / deviation, *Z_RANGE)
    return out


def brain_statistics(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of 1-D `values` after clipping to `STATISTICS_PERCENTILES`."""
    low, high = np.percentile(values, STATISTICS_PERCENTILES)
    clipped = np.clip(values, low, high)
    return float(clipped.mean(dtype=np.float64)), float(clipped.std(dtype=np.float64))
