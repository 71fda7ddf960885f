"""Reading one volume from disk or memory, refusing early what could not be segmented correctly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Union

import numpy as np
import SimpleITK as sitk

from .dicom import read_dicom
from .errors import InputError
from .file_checks import VOLUME_ENDINGS, os_errors_as_input_errors, require_unicode
from .header_checks import check_meta_file, check_nrrd_header
from .nifti import NIFTI_CODES, read_nifti
from .volume_checks import (
    EXPORT_AGAIN,
    check_axes,
    itk_errors_as_input_errors,
    refuse_many_volumes,
    set_geometry,
    voxel_columns,
)

MIN_SLICES = 8


@dataclass(frozen=True)
class Volume:
    """One checked MRI volume: `image` is 3-D, scalar, float32, LPS millimetres; `source` names the file or scene node.

    `tags` holds those of `dicom.DICOM_TAGS` that the DICOM files carry; it is empty for other formats. oriented: False
    where the file does not say to which sides its axes run, as NIfTI may.
    """

    image: sitk.Image
    source: str
    tags: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    oriented: bool = True


def read_volume(path: Union[str, Path], *, is_label: bool = False) -> Volume:
    """The volume in a NIfTI, NRRD or MetaImage file or in a folder with one DICOM series.

    A label map (`is_label`) may be constant: a segmentation without tumour is one. Raises InputError for a file that is
    missing, unreadable, empty, damaged, of another format, not a single 3-D scalar volume, or without contrast, and
    GeometryError for spacings or axes that no point in the patient can be computed from.
    """
    path = Path(path)
    with os_errors_as_input_errors(path):
        return _read(path, is_label)


def _read(path: Path, is_label: bool) -> Volume:
    require_unicode(path)
    name = path.name.lower()
    if path.is_dir():
        image, tags = read_dicom(path)
        return volume_from_image(image, str(path), tags)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder. Check the path.")
    if name.endswith((".dcm", ".ima")):
        raise InputError(f"{path}: a single DICOM file. Give the folder that holds the series instead.")
    if not name.endswith(VOLUME_ENDINGS):
        raise InputError(f"{path}: unknown ending. Use one of {', '.join(VOLUME_ENDINGS)}, or a folder of DICOM files.")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty (0 bytes). {EXPORT_AGAIN}")
    if name.endswith((".nii", ".nii.gz")):
        return volume_from_image(read_nifti(path), str(path), is_label=is_label)
    if name.endswith((".nrrd", ".nhdr")):
        check_nrrd_header(path)
    else:
        check_meta_file(path)
    with itk_errors_as_input_errors(str(path)):
        image = sitk.ReadImage(str(path))
    return volume_from_image(image, str(path), is_label=is_label)


def volume_from_image(
    image: sitk.Image, source: str, tags: Mapping[str, str] = MappingProxyType({}), *, is_label: bool = False
) -> Volume:
    """`image` as a Volume after the same checks as a file's; the voxels are shared when they are float32 already.

    Raises InputError and GeometryError as `read_volume` does; `source` is what the message calls the volume.
    """
    codes = [image.GetMetaData(name) for name in NIFTI_CODES if image.HasMetaDataKey(name)]
    oriented = not codes or any(code != "0" for code in codes)
    if image.GetNumberOfComponentsPerPixel() != 1:
        count = image.GetNumberOfComponentsPerPixel()
        raise InputError(f"{source}: {count} values a voxel (colour or vector). Give a plain greyscale MRI volume.")
    if "complex" in image.GetPixelIDTypeAsString():
        raise InputError(f"{source}: complex voxels. Give the magnitude image.")
    if image.GetDimension() == 4:
        refuse_many_volumes(image.GetSize()[3], source)
        image = image[:, :, :, 0]
    if image.GetDimension() != 3:
        raise InputError(f"{source}: a {image.GetDimension()}-D image. Give a 3-D volume, not a single slice.")
    if min(image.GetSize()) < MIN_SLICES:
        size = " x ".join(str(n) for n in image.GetSize())
        raise InputError(
            f"{source}: {size} voxels; each axis needs at least {MIN_SLICES}. A localiser or single slices cannot be "
            "segmented; give the whole 3-D series."
        )
    columns = voxel_columns(image)
    check_axes(columns, source)
    image = sitk.Cast(image, sitk.sitkFloat32) if image.GetPixelID() != sitk.sitkFloat32 else image
    lengths = np.linalg.norm(columns, axis=0)
    if not np.allclose(lengths, image.GetSpacing(), rtol=1e-6):
        image = sitk.Image(image)  # a lazy copy: the caller's image keeps its header
        set_geometry(image, columns, image.GetOrigin())
    _check_intensities(sitk.GetArrayViewFromImage(image), source, is_label)
    return Volume(image, source, MappingProxyType(dict(tags)), oriented)


def _check_intensities(voxels: np.ndarray, source: str, may_be_constant: bool) -> None:
    low, high = float(voxels.min()), float(voxels.max())  # NaN and infinity both show in the extremes
    if not (math.isfinite(low) and math.isfinite(high)):
        count = int(np.count_nonzero(~np.isfinite(voxels)))
        raise InputError(f"{source}: {count} voxels are NaN or infinite. Replace them by 0 or export the volume again.")
    if low == high and not may_be_constant:
        raise InputError(f"{source}: every voxel has the value {low:g}. Give the MRI volume itself.")
