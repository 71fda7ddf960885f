"""What is where in the patient: the reference, head or brain of each volume, and whether the volumes overlap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Optional

import numpy as np
import SimpleITK as sitk

from .errors import GeometryError, InputError, RoleError
from .volume_checks import voxel_columns
from .volumes import Volume

TIE_ORDER = ("T1Gd", "FLAIR", "T2", "T1")
# Skull-stripped BraTS-like volumes: at least 80 % of all voxels and 93 % of every face are background; with the skull
# on, air is noisy (below 11 % at one value) or, where a scanner zeroed it, the neck still cuts through a face.
STRIPPED_FRACTION = 0.3
STRIPPED_FACE_FRACTION = 0.8
# Where the field of view cuts through the brain (slabs, a scan that ends below the vertex), up to two faces show it and
# all others are exact background. A head in zeroed air, cut at the neck, looks the same but is larger: the largest
# slice through a brain has up to 199 cm2 (axial, 56 patients of BraTS); a head of 200 mm from brow to occiput and as
# much from vertex to neck shows about 300 cm2 in profile. Axial slices of heads come close (195 to 237 cm2 in one
# patient), so a slab of a small head in zeroed air can pass for a brain.
MOST_CUT_FACES = 2
UNCUT_FACE_FRACTION = 0.99
LARGEST_BRAIN_SLICE_CM2 = 210.0
OVERLAP_STEP_MM = 4.0
LOW_OVERLAP = 0.5


def default_reference(images: Mapping[str, sitk.Image]) -> str:
    """The sequence with the smallest voxels (equal within 1 %: the first of T1Gd, FLAIR, T2, T1).

    Raises InputError when `images` is empty.
    """
    return finest_sequence({name: abs(np.linalg.det(voxel_columns(image))) for name, image in images.items()})


def finest_sequence(volumes: Mapping[str, float]) -> str:
    """`default_reference`, given the volume of one voxel by sequence (in any unit)."""
    if not volumes:
        raise InputError("No volume was given. Give at least one of T1, T1Gd, T2 and FLAIR.")
    finest = [name for name, volume in volumes.items() if volume <= 1.01 * min(volumes.values())]
    return min(finest, key=lambda name: TIE_ORDER.index(name) if name in TIE_ORDER else len(TIE_ORDER))


def _faces(voxels: np.ndarray, step: int = 1) -> list[np.ndarray]:
    return [np.take(voxels, end, axis)[::step, ::step].ravel() for axis in range(3) for end in (0, -1)]


def _background(voxels: np.ndarray) -> float:
    """The most common value on the six border faces (every second voxel: enough to vote, a quarter of the sorting)."""
    values, counts = np.unique(np.concatenate(_faces(voxels, step=2)), return_counts=True)
    return float(values[counts.argmax()])


@dataclass(frozen=True)
class Foreground:
    """`mask` (D, H, W) bool: inside the brain (`stripped`: all that is not background) or the head."""

    mask: np.ndarray
    stripped: bool


def find_foreground(image: sitk.Image) -> Foreground:
    """The brain of a skull-stripped volume, else the head (Otsu, largest piece).

    Raises InputError for a constant volume.
    """
    brain = brain_alone(image)
    mask = _head(image) if brain is None else brain
    if not mask.any():
        raise InputError("A volume shows no head or brain: all its voxels are equal. Give the MRI volume itself.")
    return Foreground(mask, brain is not None)


def foreground(image: sitk.Image) -> np.ndarray:
    """The mask of `find_foreground`, (D, H, W) bool."""
    return find_foreground(image).mask


def is_skull_stripped(image: sitk.Image) -> bool:
    """Whether the brain lies alone in a constant background, by the evidence of `brain_alone`."""
    return brain_alone(image) is not None


def brain_alone(image: sitk.Image) -> Optional[np.ndarray]:
    """The mask (D, H, W) of a brain that lies alone in a constant background; None where it does not.

    Evidence: at least 30 % of the voxels, and 80 % of each border face, hold exactly the background value. Up to two
    faces may cut through the brain when 99 % of all others are background and no slice is larger than a brain's.
    """
    voxels = sitk.GetArrayViewFromImage(image)
    brain = voxels != _background(voxels)
    return brain if _is_brain_alone(brain, image) else None


def _is_brain_alone(brain: np.ndarray, image: sitk.Image) -> bool:
    """The evidence of `brain_alone`, given `brain` (D, H, W) bool, the voxels of `image` that are not background."""
    faces = sorted(1.0 - float(np.mean(face)) for face in _faces(brain))
    whole = faces[0] >= STRIPPED_FACE_FRACTION
    if not whole and faces[MOST_CUT_FACES] < UNCUT_FACE_FRACTION:
        return False
    if 1.0 - float(np.mean(brain)) < STRIPPED_FRACTION:
        return False
    return whole or _largest_slice_cm2(brain, image) <= LARGEST_BRAIN_SLICE_CM2


def _largest_slice_cm2(mask: np.ndarray, image: sitk.Image) -> float:
    """Area of the largest slice of `mask` (D, H, W) across any of its three axes."""
    spacing = image.GetSpacing()[::-1]
    areas = []
    for axis in range(3):
        height, width = (other for other in range(3) if other != axis)
        voxels = np.count_nonzero(mask, axis=(height, width)).max()
        areas.append(float(voxels) * spacing[height] * spacing[width] / 100.0)
    return max(areas)


def _head(image: sitk.Image) -> np.ndarray:
    voxels = sitk.GetArrayFromImage(image)
    # A few vessels or fat voxels, ten times as bright as the brain, would pull Otsu's threshold above it.
    np.minimum(voxels, np.percentile(voxels[::2, ::2, ::2], 98), out=voxels)
    bright = sitk.OtsuThreshold(sitk.GetImageFromArray(voxels), 0, 1)
    labels = sitk.GetArrayFromImage(sitk.ConnectedComponent(bright))
    mask = sitk.GetArrayFromImage(bright).astype(bool)
    sizes = np.bincount(labels.ravel())[1:]
    # In pieces: no head that could be told from specks, so nothing is left out.
    fragmented = sizes.size == 0 or sizes.max() < 0.5 * np.count_nonzero(mask)
    return mask if fragmented else labels == 1 + sizes.argmax()


def check_overlap(volumes: Mapping[str, Volume], masks: Optional[Mapping[str, np.ndarray]] = None) -> list[str]:
    """Warnings for each sequence whose head or brain overlaps the reference's by less than half of the smaller one.

    `masks`: the volumes' foregrounds (D, H, W) where they are known already.
    Raises GeometryError when a sequence and the reference (`default_reference`) do not overlap at all in the patient.
    """
    reference = default_reference({name: volume.image for name, volume in volumes.items()})
    others = [name for name in volumes if name != reference]
    if not others:
        return []
    if masks is None:
        masks = {name: foreground(volume.image) for name, volume in volumes.items()}
    points, cell = _foreground_points(volumes[reference].image, masks[reference])
    warnings = []
    for name in others:
        image, mask = volumes[name].image, masks[name]
        common = np.count_nonzero(sample_mask(mask, image, points)) * cell
        smaller = min(len(points) * cell, np.count_nonzero(mask) * abs(np.linalg.det(voxel_columns(image))))
        pair = f"{name} ({volumes[name].source}) and {reference} ({volumes[reference].source})"
        if common == 0:
            raise GeometryError(
                f"{pair} do not overlap in space. Check that both are of one patient, or register them."
            )
        if common < LOW_OVERLAP * smaller:
            warnings.append(
                f"{pair} overlap by only {100 * common / smaller:.0f} %. Check that both are of the same patient and "
                "session, and register them before segmenting."
            )
    return warnings


def _foreground_points(image: sitk.Image, mask: np.ndarray) -> tuple[np.ndarray, float]:
    """Points (N, 3) of the foreground `mask` (D, H, W) of `image`, LPS mm, every 4 mm or so, and the mm3 of each."""
    columns = voxel_columns(image)
    steps = [max(1, round(OVERLAP_STEP_MM / spacing)) for spacing in image.GetSpacing()]
    coarse = mask[:: steps[2], :: steps[1], :: steps[0]]
    index = np.argwhere(coarse)[:, ::-1] * steps
    return index @ columns.T + image.GetOrigin(), float(abs(np.linalg.det(columns)) * np.prod(steps))


def sample_mask(mask: np.ndarray, image: sitk.Image, points: np.ndarray) -> np.ndarray:
    """`mask` (D, H, W) of `image` at `points` (N, 3), LPS mm; False outside the image."""
    index = np.rint((points - image.GetOrigin()) @ np.linalg.inv(voxel_columns(image)).T).astype(int)
    inside = ((index >= 0) & (index < image.GetSize())).all(axis=1)
    x, y, z = index[inside].T
    result = np.zeros(len(points), bool)
    result[inside] = mask[z, y, x]
    return result


def same_volume_twice(volumes: Mapping[str, Volume]) -> None:
    """Raises RoleError when two sequences were given the same file or identical voxels."""
    for (name, volume), (other_name, other) in combinations(volumes.items(), 2):
        first, second = Path(volume.source), Path(other.source)
        # Scene nodes may share a name; only what exists on disk is known by its path.
        if (first.exists() and first.resolve() == second.resolve()) or _same_voxels(volume.image, other.image):
            raise RoleError(
                f"{name} ({volume.source}) and {other_name} ({other.source}) are the same volume. "
                "Give each sequence its own volume and leave out those that are missing."
            )


def _same_voxels(first: sitk.Image, second: sitk.Image) -> bool:
    if first.GetSize() != second.GetSize():
        return False
    a, b = sitk.GetArrayViewFromImage(first), sitk.GetArrayViewFromImage(second)
    middle = len(a) // 2  # different volumes differ here already, which spares comparing the rest
    return np.array_equal(a[middle], b[middle]) and np.array_equal(a, b)
