"""Reading a folder that holds one DICOM series; a missing, doubled, tilted, shifted or damaged slice is refused.

Of an enhanced (multi-frame) file ITK stacks the frames as they are stored; here they are put in their places.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from .errors import GeometryError, InputError
from .file_checks import os_errors_as_input_errors, printable, require_unicode
from .volume_checks import EXPORT_AGAIN, itk_errors_as_input_errors, numbers, set_geometry

NUMBER_OF_FRAMES = "0028|0008"
# How far a stack may lean to one side over its whole length: less than a voxel, more than a header's rounding.
LARGEST_SIDEWAYS_MM = 1.0
CONVERT = "Convert the series to NIfTI (dcm2niix), and give that."

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
    slices that are missing, tilted, shifted sideways or without a position.
    """
    require_unicode(folder)
    with os_errors_as_input_errors(folder):
        for file in folder.iterdir():
            require_unicode(file)
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
    if len(names) > 1:
        _check_dicom_slices(names, folder)
    with itk_errors_as_input_errors(str(folder)):
        image = sitk.ReadImage(names if len(names) > 1 else names[0])
    if len(names) == 1 and _number_of_frames(names[0]) > 1 and image.GetNumberOfComponentsPerPixel() == 1:
        image = _ordered_frames(image, names[0])
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
    positions, orientations = [], []
    for name in names:
        reader = _dicom_header(name)
        if not (reader.HasMetaDataKey("0020|0032") and reader.HasMetaDataKey("0020|0037")):
            raise GeometryError(f"{name}: no slice position in this DICOM file. {EXPORT_AGAIN}")
        positions.append(numbers(reader.GetMetaData("0020|0032").replace("\\", " ")))
        orientations.append(numbers(reader.GetMetaData("0020|0037").replace("\\", " ")))
    _check_stack(positions, orientations, str(folder))


def _check_stack(
    positions: Sequence[Sequence[float]], orientations: Sequence[Sequence[float]], source: str
) -> np.ndarray:
    """The order of slices that lie and point so, along their normal.

    Raises GeometryError or InputError unless they make one straight stack.
    """
    axes = np.array(orientations)
    if np.abs(axes - axes[0]).max() > 1e-3:
        raise GeometryError(f"{source}: slices of different orientation (a localiser?). Give a single stack of slices.")
    normal = np.cross(axes[0, :3], axes[0, 3:])
    order = np.argsort(np.array(positions) @ normal)
    places = np.array(positions)[order]
    gaps = np.diff(places @ normal)
    if gaps.min() < 1e-3:
        raise InputError(f"{source}: several slices at one position (several volumes or echoes). Split the series.")
    if gaps.max() - gaps.min() > 0.1 * np.median(gaps):
        raise GeometryError(
            f"{source}: slice distances vary from {gaps.min():.2f} to {gaps.max():.2f} mm; a slice is missing. "
            "Copy the whole series."
        )
    sideways = np.linalg.norm((places - places[0]) - np.outer((places - places[0]) @ normal, normal), axis=1).max()
    if sideways > LARGEST_SIDEWAYS_MM:
        raise GeometryError(
            f"{source}: each slice lies further to one side, {sideways:.1f} mm in all (a tilted gantry?), and would be "
            f"put back above the others. {CONVERT}"
        )
    return order


def _number_of_frames(name: str) -> int:
    reader = _dicom_header(name)
    text = reader.GetMetaData(NUMBER_OF_FRAMES) if reader.HasMetaDataKey(NUMBER_OF_FRAMES) else ""
    return int((numbers(text) or [1])[0])


def _ordered_frames(image: sitk.Image, name: str) -> sitk.Image:
    """`image` with its frames in the order and on the places that the multi-frame file `name` gives for each.

    Source: DICOM PS3.3 C.7.6.16 (functional groups). Raises GeometryError and InputError as `_check_stack` does, and
    where frames have no place or are scaled differently.
    """
    try:
        import pydicom
    except ImportError as error:
        raise InputError(
            f"{name}: a multi-frame DICOM file, whose frames cannot be checked without pydicom (pip install pydicom). "
            f"{CONVERT}"
        ) from error
    header = pydicom.dcmread(name, stop_before_pixels=True)
    frames = list(header.get("PerFrameFunctionalGroupsSequence", ()))
    shared = next(iter(header.get("SharedFunctionalGroupsSequence", ())), None)

    def of_each(group: str, attribute: str) -> list[list[float]]:
        found = [_in_group(frame, shared, group, attribute) for frame in frames]
        return [[float(number) for number in value] for value in found if value is not None]

    positions = of_each("PlanePositionSequence", "ImagePositionPatient")
    orientations = of_each("PlaneOrientationSequence", "ImageOrientationPatient")
    spacings = of_each("PixelMeasuresSequence", "PixelSpacing")
    count = image.GetSize()[2] if image.GetDimension() == 3 else 0
    if not count == len(positions) == len(orientations) == len(spacings):
        raise GeometryError(
            f"{name}: a multi-frame DICOM file that does not give every frame's place and voxel size. {CONVERT}"
        )
    for scale in ("RescaleSlope", "RescaleIntercept"):
        if len({_in_group(frame, shared, "PixelValueTransformationSequence", scale) for frame in frames}) > 1:
            raise InputError(f"{name}: a multi-frame DICOM file whose frames are scaled differently. {CONVERT}")
    order = _check_stack(positions, orientations, name)
    if np.ptp(spacings, axis=0).max() > 1e-4:
        raise GeometryError(f"{name}: a multi-frame DICOM file whose frames have voxels of different size. {CONVERT}")
    across, down = np.array(orientations[0][:3]), np.array(orientations[0][3:])
    normal, places = np.cross(across, down), np.array(positions)[order]
    step = (places[-1] - places[0]) @ normal / (count - 1)
    result = sitk.GetImageFromArray(sitk.GetArrayViewFromImage(image)[order])
    rows, columns = spacings[0]  # the distance of rows, then that of columns
    set_geometry(result, np.stack((across * columns, down * rows, normal * step), axis=1), places[0])
    return result


def _in_group(frame: Any, shared: Any, group: str, attribute: str) -> Any:
    """An attribute of a frame, from its own functional groups or from those that all frames share; None without it."""
    for groups in (frame, shared):
        item = next(iter(groups.get(group, ())), None) if groups is not None else None
        if item is not None and item.get(attribute) is not None:
            return item.get(attribute)
    return None
