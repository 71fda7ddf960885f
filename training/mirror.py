"""A patient's brain without its tumour: its half, or only its place, replaced by the mirror image of the other half.

All four sequences stay what the scanner made them, so that such a brain is nearer to a healthy one's scan than anything
synthetic. A replaced half leaves a seam in the middle and perfect symmetry, which real brains have not; a replaced
place leaves both halves their differences, and what the tumour displaced around it.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

# The tumour, grown by so many voxels, must not reach across the middle with more than this share of it.
MARGIN_VOXELS = 3
MOST_ACROSS = 0.01
# How far from the middle of the brain's box the plane of symmetry is looked for, in half voxels.
REACH = 12
# Over so many voxels around a replaced place its own intensities go over into the mirrored ones.
BLEND_VOXELS = 5


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


def without_tumour(images: np.ndarray, labels: np.ndarray, *, place_only: bool = False) -> np.ndarray | None:
    """images (4, D, H, W) with the tumour's half replaced by the other one's mirror image; None if it is on both.

    place_only: only the tumour's place is, with `MARGIN_VOXELS` around it and a transition of `BLEND_VOXELS`.
    """
    twice = symmetry_plane(np.asarray(images.any(axis=0)))
    tumour = ndimage.binary_dilation(labels > 0, iterations=MARGIN_VOXELS)
    left = np.arange(labels.shape[2]) < twice / 2
    on_left = int(np.count_nonzero(tumour & left))
    total = int(np.count_nonzero(tumour))
    if total == 0 or min(on_left, total - on_left) > MOST_ACROSS * total:
        return None
    ill = left if on_left > total - on_left else ~left
    half = np.where(ill, mirrored(images, twice), images)
    return blended(images, half, labels > 0, MARGIN_VOXELS, BLEND_VOXELS) if place_only else half


def blended(images: np.ndarray, replacement: np.ndarray, place: np.ndarray, margin: int, blend: int) -> np.ndarray:
    """`images` (C, D, H, W) with `replacement` where `place` (D, H, W) is and `margin` voxels around it.

    Over `blend` further voxels it goes over into `images`. At least one voxel of `place` is needed.
    """
    reach = margin + blend
    box = tuple(
        slice(max(0, found.start - reach - blend), found.stop + reach + blend)
        for found in ndimage.find_objects(place.astype(np.uint8))[0]
    )
    grown = ndimage.maximum_filter(place[box], 2 * reach + 1).astype(np.float32)
    weight = ndimage.uniform_filter(grown, 2 * blend + 1, mode="nearest")
    everywhere = (slice(None), *box)
    old, new = images[everywhere], replacement[everywhere]
    # No half intensities where only one of the two has brain.
    weight = np.where(old.any(axis=0) & new.any(axis=0), weight, weight >= 0.5)
    result = images.copy()
    result[everywhere] = old + weight.astype(images.dtype) * (new - old)
    return result
