"""A skull-stripped brain of known shape and place, on the voxels of any image."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from MSTKDSegmentLib.geometry import array_to_image
from MSTKDSegmentLib.volumes import Volume, volume_from_image

CENTRE = np.array([12.0, -20.0, 31.0])  # LPS mm
BRAIN_RADII = np.array([30.0, 36.0, 28.0])  # mm
IDENTITY = np.eye(3)
OBLIQUE = np.reshape(sitk.Euler3DTransform((0, 0, 0), *np.deg2rad([20, 20, -20])).GetMatrix(), (3, 3))


def blank_image(direction=IDENTITY, spacing=(1.0, 1.0, 1.0), extent=84.0, centre=CENTRE) -> sitk.Image:
    """An image of about `extent` mm a side whose middle lies at `centre`."""
    size = [int(np.ceil(extent / s)) for s in spacing]
    image = sitk.Image(size, sitk.sitkFloat32)
    image.SetSpacing(spacing)
    image.SetDirection(np.asarray(direction).ravel().tolist())
    middle = np.asarray(direction) @ ((np.array(size) // 2) * spacing)
    image.SetOrigin((np.asarray(centre) - middle).tolist())
    return image


def voxel_points(image: sitk.Image) -> np.ndarray:
    """(D, H, W, 3) LPS mm of every voxel centre, computed from the header alone."""
    depth, height, width = image.GetSize()[::-1]
    z, y, x = np.mgrid[:depth, :height, :width]
    columns = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    return np.stack([x, y, z], -1) @ columns.T + image.GetOrigin()


def ellipsoid(points: np.ndarray, centre, radii) -> np.ndarray:
    return (((points - centre) / radii) ** 2).sum(-1) <= 1


def brain_on(image: sitk.Image, centre=CENTRE, seed: int = 0) -> sitk.Image:
    """A skull-stripped brain: an ellipsoid with texture in a background of zeros, on the voxels of `image`."""
    inside = ellipsoid(voxel_points(image), centre, BRAIN_RADII)
    texture = np.random.default_rng(seed).uniform(50, 150, inside.shape)
    return array_to_image(np.where(inside, texture, 0).astype(np.float32), image)


def volumes_of(**images: sitk.Image) -> dict[str, Volume]:
    return {name: volume_from_image(image, f"{name}.nii.gz") for name, image in images.items()}


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))
