"""What every reader needs: checks of spacing and axes, an image's geometry, and ITK's errors in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Union

import numpy as np
import SimpleITK as sitk

from .errors import GeometryError, InputError

# Finer than any clinical MRI / thicker than any slice that still shows a brain; beyond it the header's unit is wrong.
SPACING_RANGE_MM = (0.05, 30.0)
# |det| of unit axes: 1 when orthogonal; below this the axes lie nearly in one plane and no point can be located.
MIN_DETERMINANT = 0.05
EXPORT_AGAIN = "Export or copy it again from its source."


def refuse_many_volumes(count: int, source: str) -> None:
    """Raises InputError where a 4-D image holds more than one volume."""
    if count > 1:
        raise InputError(
            f"{source}: 4-D with {count} volumes, as diffusion, perfusion or functional imaging is stored. Give T1, "
            "T1Gd, T2 or FLAIR; where one of the volumes is that, split the file and give it alone."
        )


def check_axes(columns: np.ndarray, source: str) -> None:
    """Raises GeometryError for axes that no point in the patient can be computed from.

    `columns` (3, 3): millimetres (LPS or RAS) per voxel step, one image axis a column.
    """
    lengths = np.linalg.norm(columns, axis=0)
    check_spacing(lengths, source)
    if abs(np.linalg.det(columns / lengths)) < MIN_DETERMINANT:
        raise GeometryError(f"{source}: its three axes lie in one plane (singular direction matrix). {EXPORT_AGAIN}")


def check_spacing(spacing: Sequence[float], source: str) -> None:
    """Raises GeometryError unless each of `spacing` (mm) lies within `SPACING_RANGE_MM`."""
    low, high = SPACING_RANGE_MM
    if not all(low <= value <= high for value in spacing):  # also false for NaN
        shown = " x ".join(f"{value:g}" for value in spacing)
        raise GeometryError(
            f"{source}: voxel spacing {shown} mm; each must lie between {low:g} and {high:g} mm. Correct the header."
        )


def voxel_columns(image: sitk.Image) -> np.ndarray:
    """(3, 3) LPS millimetres per voxel step, one image axis a column."""
    return np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()


def mask_ml(mask: np.ndarray, image: sitk.Image) -> float:
    """Millilitres of `mask` (D, H, W) of `image`."""
    return float(np.count_nonzero(mask) * abs(np.linalg.det(voxel_columns(image)))) / 1000.0


def same_grid(first: sitk.Image, second: sitk.Image) -> bool:
    """Whether the two images have the same voxels in the same places."""
    return first.GetSize() == second.GetSize() and all(
        np.allclose(a, b, atol=1e-3)
        for a, b in (
            (first.GetOrigin(), second.GetOrigin()),
            (first.GetSpacing(), second.GetSpacing()),
            (first.GetDirection(), second.GetDirection()),
        )
    )


def set_geometry(image: sitk.Image, columns: np.ndarray, origin: Union[Sequence[float], np.ndarray]) -> None:
    """Spacing, direction and origin of `image` in place from `columns` (3, 3) and `origin` (3,), both LPS mm."""
    spacing = np.linalg.norm(columns, axis=0)
    direction = columns / spacing
    u, _, vt = np.linalg.svd(direction)
    # Headers hold float32: what is orthonormal but for rounding becomes so exactly, as in ITK; true shear stays.
    if np.abs(direction - u @ vt).max() < 1e-5:
        direction = u @ vt
    image.SetSpacing(spacing.tolist())
    image.SetOrigin([float(value) for value in origin])
    image.SetDirection(direction.ravel().tolist())


@contextlib.contextmanager
def itk_errors_as_input_errors(source: str) -> Iterator[None]:
    """ITK's warnings are silent inside, and its errors become one line about `source`, an InputError."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = lines[-1].split("ERROR: ")[-1]  # ITK puts where first and why last
        raise InputError(f"{source}: cannot be read ({cause}). {EXPORT_AGAIN}") from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def numbers(text: str) -> list[float]:
    """The numbers in a header's `text`, parentheses and commas left out; none where one is no number."""
    try:
        return [float(word) for word in text.replace(",", " ").replace("(", " ").replace(")", " ").split()]
    except ValueError:
        return []
