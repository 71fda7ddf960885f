"""Reading a folder that holds one DICOM series; a missing, doubled, tilted or damaged slice is refused."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from .errors import GeometryError, InputError
from .file_checks import os_errors_as_input_errors, printable
from .volume_checks import EXPORT_AGAIN, itk_errors_as_input_errors, numbers

DICOM_TAGS = {
    "SeriesDescription": "0008|103e",
    "ContrastBolusAgent": "0018|0010",
    "ProtocolName": "0018|1030",
    "PatientID": "0010|0020",
    "PatientName": "0010|0010",
    "PatientBirthDate": "0010|0030",
    "Modality": "0008|0060",
    "ImageType": "0008|0008",
    "ScanningSequence": "0018|0020",
}


def read_dicom(folder: Path) -> tuple[sitk.Image, dict[str, str]]:
    """The image of the one DICOM series in `folder`, LPS mm, and those of `DICOM_TAGS` that its first slice carries.

    Raises InputError for no series, several series, damaged slices or what cannot be read, and GeometryError for
    slices that are missing, tilted or without a position.
    """
    with itk_errors_as_input_errors(str(folder)):
        series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
        files = {uid: sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid) for uid in series}
    with os_errors_as_input_errors(folder):
        _refuse_unread_slices(folder, {Path(name).name for names in files.values() for name in names})
    if not series:
        raise InputError(f"{folder}: the folder holds no DICOM files. Give the folder in which the series' files lie.")
    if len(series) > 1:
        found = "; ".join(
            f"{_dicom_tags(names[0]).get('SeriesDescription', 'without description')} ({len(names)} files)"
            for names in files.values()
        )
        raise InputError(f"{folder}: {len(series)} DICOM series: {found}. Put each into a folder of its own.")
    names = files[series[0]]
    _check_dicom_slices(names, folder)
    with itk_errors_as_input_errors(str(folder)):
        image = sitk.ReadImage(names if len(names) > 1 else names[0])
    return image, _dicom_tags(names[0])


def _refuse_unread_slices(folder: Path, read: set[str]) -> None:
    """GDCM leaves out what it cannot parse, so a damaged last slice would silently shorten the stack."""
    for file in sorted(folder.iterdir()):
        if file.name in read or not file.is_file():
            continue
        with file.open("rb") as stream:
            is_dicom = stream.read(132)[128:] == b"DICM"
            # Pixel data (7FE0,0010) in either byte order; reports, DICOMDIR and the like have none.
            if is_dicom and re.search(rb"\xe0\x7f\x10\x00|\x7f\xe0\x00\x10", stream.read()):
                raise InputError(f"{file}: this DICOM slice is damaged or cut short. {EXPORT_AGAIN}")


def _dicom_header(name: str) -> sitk.ImageFileReader:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(name)
    with itk_errors_as_input_errors(name):
        reader.ReadImageInformation()
    return reader


def _dicom_tags(name: str) -> dict[str, str]:
    reader = _dicom_header(name)
    present = {tag: reader.GetMetaData(key) for tag, key in DICOM_TAGS.items() if reader.HasMetaDataKey(key)}
    texts = {tag: printable(value) for tag, value in present.items()}
    return {tag: text for tag, text in texts.items() if text}


def _check_dicom_slices(names: Sequence[str], folder: Path) -> None:
    """ITK stacks whatever slices there are at one spacing; a missing, doubled or tilted one would displace the rest."""
    if len(names) == 1:  # an enhanced multi-frame file carries its own geometry
        return
    positions, orientations = [], []
    for name in names:
        reader = _dicom_header(name)
        if not (reader.HasMetaDataKey("0020|0032") and reader.HasMetaDataKey("0020|0037")):
            raise GeometryError(f"{name}: no slice position in this DICOM file. {EXPORT_AGAIN}")
        positions.append(numbers(reader.GetMetaData("0020|0032").replace("\\", " ")))
        orientations.append(numbers(reader.GetMetaData("0020|0037").replace("\\", " ")))
    axes = np.array(orientations)
    if np.abs(axes - axes[0]).max() > 1e-3:
        raise GeometryError(f"{folder}: slices of different orientation (a localiser?). Give a single stack of slices.")
    gaps = np.diff(np.sort(np.array(positions) @ np.cross(axes[0, :3], axes[0, 3:])))
    if gaps.min() < 1e-3:
        raise InputError(f"{folder}: several slices at one position (several volumes or echoes). Split the series.")
    if gaps.max() - gaps.min() > 0.1 * np.median(gaps):
        raise GeometryError(
            f"{folder}: slice distances vary from {gaps.min():.2f} to {gaps.max():.2f} mm; a slice is missing. "
            "Copy the whole series."
        )
