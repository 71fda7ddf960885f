"""A small volume, files of it that are good or damaged on purpose, and how a refusal must look."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from MSTKDSegmentLib.errors import InputError
from MSTKDSegmentLib.volumes import read_volume

SHAPE = (10, 12, 14)  # (D, H, W)


def random_voxels(dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(7).normal(100, 20, SHAPE).astype(dtype)


def random_image(voxels: np.ndarray | None = None, degrees: float = 0.0) -> sitk.Image:
    image = sitk.GetImageFromArray(random_voxels() if voxels is None else voxels)
    image.SetSpacing((0.9, 1.1, 5.0))
    image.SetOrigin((-30.5, 12.25, 7.0))
    turn = sitk.Euler3DTransform()
    turn.SetRotation(*np.deg2rad([degrees, degrees / 2, -degrees]))
    image.SetDirection(turn.GetMatrix())
    return image


def write_image(image: sitk.Image, path: Path, compress: bool = False) -> Path:
    sitk.WriteImage(image, str(path), useCompression=compress)
    return path


def assert_refused(path: Path, match: str, kind: type = InputError) -> None:
    with pytest.raises(kind, match=match) as caught:
        read_volume(path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message


def patched(path: Path, offset: int, form: str, *values: float) -> Path:
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, offset, *values)
    path.write_bytes(data)
    return path


def replaced(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
    return path


def line_of(path: Path, start: bytes) -> bytes:
    return next(line for line in path.read_bytes().splitlines() if line.startswith(start))
