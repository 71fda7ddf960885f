"""CarveMix: a lesion and its surroundings carved from one case and put into another.

Source: Zhang et al., "CarveMix: a simple data augmentation method for brain lesion segmentation", MICCAI 2021
(arXiv:2108.06883) and NeuroImage 271 (2023) 120041. Ours: brains are brought into correspondence by the centres of
their boxes, and nothing is put outside the brain of either case.
"""

from __future__ import annotations

import numpy as np
from MSTKDSegmentLib.regions import bounding_box
from scipy import ndimage

# Above this many voxels around the lesion, distances are computed on a grid of 2 mm and interpolated: 1/8 of the time.
COARSE_FROM_VOXELS = 150_000


def carve_mix(
    images_a: np.ndarray,
    labels_a: np.ndarray,
    images_b: np.ndarray,
    labels_b: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Case A with a region around the lesion of case B: new (images, labels) in A's shapes and types.

    images (C, D, H, W), zero outside the brain and where a sequence is absent; labels (D, H, W), 0 outside the lesion.
    The shapes of A and B may differ. The region is where B's signed distance to its lesion is at most a random lambda;
    there, images and labels are B's, elsewhere A's. Sequences that A lacks stay zero. Without a lesion in B, or where
    the brains do not meet, the result is a copy of A. Nothing is changed in place.
    """
    images, labels = np.array(images_a), np.array(labels_a)
    carved = carved_region(labels_b != 0, rng)
    if carved is None:
        return images, labels
    mask, corner = carved
    place = _places(corner, mask.shape, labels_b.shape, labels_a.shape)
    if place is None:
        return images, labels
    in_mask, in_b, in_a = place
    # Indices into A and B of the carved voxels, one array an axis.
    chosen = np.nonzero(mask[in_mask])
    to_a = tuple(index + side.start for index, side in zip(chosen, in_a))
    from_b = tuple(index + side.start for index, side in zip(chosen, in_b))
    old = np.stack([channel[to_a] for channel in images])
    new = np.stack([channel[from_b] for channel in images_b])
    both = (old != 0).any(axis=0) & (new != 0).any(axis=0)
    target = tuple(index[both] for index in to_a)
    for channel in np.flatnonzero((old != 0).any(axis=1)):
        images[channel][target] = new[channel, both]
    labels[target] = labels_b[from_b][both]
    return images, labels


def carved_region(lesion: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, ...]] | None:
    """Where the signed distance to `lesion` (bool) is at most lambda: a mask, and the voxel its first corner has.

    With d the depth of the lesion's innermost voxel, lambda is drawn from U(-d/2, 0) or, equally often, from U(0, d):
    small lesions are carved narrowly, large ones widely (section 2.2 of the paper). The corner may be negative. None
    without a lesion.
    """
    box = bounding_box(lesion)
    if box is None:
        return None
    shrink, share = rng.random() < 0.5, rng.random()
    inner = np.pad(lesion[box], 1)
    step = 2 if inner.size > COARSE_FROM_VOXELS else 1
    depth = _distance(inner, step)
    deepest = float(depth.max())
    if shrink:
        mask = inner & (depth >= share * deepest / 2)
        margin = 1
    else:
        reach = share * deepest
        margin = int(np.ceil(reach)) + 1
        wide = np.pad(inner, margin - 1)
        mask = wide | (_distance(~wide, step) <= reach)
    return mask, tuple(side.start - margin for side in box)


def _distance(mask: np.ndarray, step: int) -> np.ndarray:
    """Distance in voxels of each voxel in `mask` to the nearest one outside, 0 outside; on every `step`-th voxel."""
    if step == 1:
        return ndimage.distance_transform_edt(mask)
    padded = np.pad(mask, [(0, side % 2) for side in mask.shape], mode="edge")
    d, h, w = (side // 2 for side in padded.shape)
    coarse = padded.reshape(d, 2, h, 2, w, 2).sum(axis=(1, 3, 5), dtype=np.uint8) >= 4
    distance = ndimage.distance_transform_edt(coarse, sampling=2.0).astype(np.float32)
    for axis in range(3):
        distance = _doubled(distance, axis)
    return distance[tuple(slice(side) for side in mask.shape)]


def _doubled(array: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation to twice as many samples along `axis`; each lies a quarter of a cell from the middle."""
    moved = np.moveaxis(array, axis, 0)
    before, after = np.concatenate([moved[:1], moved[:-1]]), np.concatenate([moved[1:], moved[-1:]])
    out = np.empty((2 * len(moved), *moved.shape[1:]), array.dtype)
    out[0::2] = 0.75 * moved + 0.25 * before
    out[1::2] = 0.75 * moved + 0.25 * after
    return np.moveaxis(out, 0, axis)


def _places(
    corner: tuple[int, ...], size: tuple[int, ...], shape_b: tuple[int, ...], shape_a: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...], tuple[slice, ...]] | None:
    """Slices of the mask, of B and of A where all three meet, the middles of A and B lying on each other."""
    in_mask: list[slice] = []
    in_b: list[slice] = []
    in_a: list[slice] = []
    for start, length, side_b, side_a in zip(corner, size, shape_b, shape_a):
        shift = (side_a - side_b) // 2
        first = max(start, 0, -shift)
        last = min(start + length, side_b, side_a - shift)
        if last <= first:
            return None
        in_mask.append(slice(first - start, last - start))
        in_b.append(slice(first, last))
        in_a.append(slice(first + shift, last + shift))
    return tuple(in_mask), tuple(in_b), tuple(in_a)
