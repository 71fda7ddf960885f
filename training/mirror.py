"""A patient's brain without its tumour: the tumour's half replaced by the mirror image of the other one.

All four sequences stay what the scanner made them, so that such a brain is nearer to a healthy one's scan than anything
synthetic; the seam and perfect symmetry are not.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

# The tumour, grown by so many voxels, must not reach across the middle with more than this share of it.
MARGIN_VOXELS = 3
MOST_ACROSS = 0.01
# How far from the middle of the brain's box the plane of symmetry is looked for, in half voxels.
REACH = 12


def symmetry_plane(brain: np.ndarray) -> int:
    """Twice the index, along the last axis, of the plane about which the mask (D, H, W) is most alike its mirror."""
    columns = np.flatnonzero(brain.any(axis=(0, 1)))
    middle = int(columns[0] + columns[-1])
    thin = brain[::2, ::2]
    return max(
        range(middle - REACH, middle + REACH + 1),
        key=lambda twice: (np.count_nonzero(thin & mirrored(thin, twice)), -abs(twice - middle)),
    )


def mirrored(array: np.ndarray, twice: int) -> np.ndarray:
    """`array` (..., W) about the plane `twice` / 2 of its last axis; zero where nothing comes to lie."""
    width = array.shape[-1]
    source = twice - np.arange(width)
    there = (source >= 0) & (source < width)
    result = np.zeros_like(array)
    result[..., there] = array[..., source[there]]
    return result


def without_tumour(images: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
    """images (4, D, H, W) with the tumour's half replaced by the other one's mirror image; None if it is on both."""
    twice = symmetry_plane(np.asarray(images.any(axis=0)))
    tumour = ndimage.binary_dilation(labels > 0, iterations=MARGIN_VOXELS)
    left = np.arange(labels.shape[2]) < twice / 2
    on_left = int(np.count_nonzero(tumour & left))
    total = int(np.count_nonzero(tumour))
    if total == 0 or min(on_left, total - on_left) > MOST_ACROSS * total:
        return None
    ill = left if on_left > total - on_left else ~left
    return np.where(ill, mirrored(images, twice), images)
