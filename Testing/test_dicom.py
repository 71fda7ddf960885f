"""Folders of DICOM slices: a good series is read with its tags; a gap, a mixture or damage is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from MSTKDSegmentLib.errors import GeometryError, InputError
from MSTKDSegmentLib.volumes import read_volume
from volume_files import assert_refused, random_voxels

# pydicom 3 renamed the switch.
NEW = int(pydicom.__version__.split(".")[0]) > 2
ENFORCED = {"enforce_file_format": True} if NEW else {"write_like_original": False}


def _write_dicom(
    folder: Path, uid: str = "1.2.3.4", description: str = "t1 gd", skip: tuple[int, ...] = (), **tags: str
):
    folder.mkdir(exist_ok=True)
    voxels = np.abs(random_voxels()).astype(np.int16)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(len(voxels)):
        if k in skip:
            continue
        image = sitk.GetImageFromArray(voxels[k])
        image.SetSpacing((0.9, 1.1))
        values = {
            "0008|0060": "MR", "0008|103e": description, "0010|0020": "P1", "0018|0010": "Gadovist",
            "0018|1030": "AX T1", "0018|0050": "5", "0020|000d": "1.2.3", "0020|000e": uid, "0020|0013": str(k),
            "0008|0018": f"{uid}.{k}", "0020|0032": f"-30\\12\\{5 * k + 7}", "0020|0037": "1\\0\\0\\0\\1\\0", **tags,
        }  # fmt: skip
        for key, value in values.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{uid}_{99 - k}.dcm"))
        writer.Execute(image)
    return voxels


def test_dicom_series(tmp_path):
    voxels = _write_dicom(tmp_path / "s")
    volume = read_volume(tmp_path / "s")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(volume.image), voxels)
    np.testing.assert_allclose(volume.image.GetSpacing(), (0.9, 1.1, 5.0))
    np.testing.assert_allclose(volume.image.GetOrigin(), (-30, 12, 7))
    assert volume.tags == {
        "SeriesDescription": "t1 gd",
        "ContrastBolusAgent": "Gadovist",
        "ProtocolName": "AX T1",
        "PatientID": "P1",
        "Modality": "MR",
    }


def test_dicom_several_series_are_listed(tmp_path):
    _write_dicom(tmp_path / "s")
    _write_dicom(tmp_path / "s", "1.2.3.5", "flair")
    for found in (r"2 DICOM series", r"t1 gd \(10 files\)", r"flair \(10 files\)", "folder of its own"):
        assert_refused(tmp_path / "s", found)


def test_dicom_missing_doubled_and_tilted_slices(tmp_path):
    _write_dicom(tmp_path / "a", skip=(4,))
    assert_refused(tmp_path / "a", "slice is missing", GeometryError)
    _write_dicom(tmp_path / "b", **{"0020|0032": "0\\0\\0"})
    assert_refused(tmp_path / "b", "several slices at one position")
    _write_dicom(tmp_path / "c", skip=(9,))
    _write_dicom(tmp_path / "d", skip=tuple(range(9)), **{"0020|0037": "0\\1\\0\\0\\0\\1"})
    next((tmp_path / "d").iterdir()).rename(tmp_path / "c" / "tilted.dcm")
    assert_refused(tmp_path / "c", "orientation", GeometryError)


def test_dicom_truncated_slice(tmp_path):
    _write_dicom(tmp_path / "s")
    victim = sorted((tmp_path / "s").iterdir())[3]
    victim.write_bytes(victim.read_bytes()[:-200])
    with pytest.raises(InputError, match=f"{victim.name}: .*cut short"):
        read_volume(tmp_path / "s")


def test_dicom_stack_that_leans_to_one_side(tmp_path):
    voxels = _write_dicom(tmp_path / "s")
    for k, path in enumerate(sorted((tmp_path / "s").iterdir(), reverse=True)):
        header = pydicom.dcmread(path)
        header.ImagePositionPatient = [-30, 12 + 1.5 * k, 5 * k + 7]
        header.save_as(path)
    lean = f"{1.5 * (len(voxels) - 1):.1f} mm"
    assert_refused(tmp_path / "s", rf"further to one side, {lean}.*dcm2niix", GeometryError)


# --- enhanced (multi-frame) files ---


def _write_enhanced(folder: Path, places: list[float], *, positions: bool = True, slopes: tuple[float, ...] = ()):
    """One enhanced MR file in `folder`: a frame for each of `places` (mm along z); returns its voxels by frame."""
    frames = np.abs(np.random.default_rng(3).normal(500, 200, (len(places), 12, 10))).astype(np.uint16)
    item = pydicom.Dataset()
    item.file_meta = pydicom.dataset.FileMetaDataset()
    item.file_meta.MediaStorageSOPClassUID = item.SOPClassUID = pydicom.uid.EnhancedMRImageStorage
    item.file_meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID = "1.2.3.4.5"
    item.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    item.Modality, item.SeriesInstanceUID, item.StudyInstanceUID = "MR", "1.2.3.4", "1.2.3"
    item.SeriesDescription, item.PatientID = "flair", "P1"
    item.Rows, item.Columns, item.NumberOfFrames = 12, 10, len(places)
    item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
    item.BitsAllocated, item.BitsStored, item.HighBit, item.PixelRepresentation = 16, 16, 15, 0
    item.PixelData = frames.tobytes()
    if positions:
        item.SharedFunctionalGroupsSequence = [_group(PixelMeasures={"PixelSpacing": [1.1, 0.9], "SliceThickness": 5})]
        item.PerFrameFunctionalGroupsSequence = [
            _group(
                PlanePosition={"ImagePositionPatient": [-30, 12, place]},
                PlaneOrientation={"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]},
                **({"PixelValueTransformation": {"RescaleSlope": slopes[k], "RescaleIntercept": 0}} if slopes else {}),
            )
            for k, place in enumerate(places)
        ]
    folder.mkdir()
    pydicom.dcmwrite(folder / "enhanced.dcm", item, **ENFORCED)
    return frames


def _group(**groups: dict[str, object]) -> pydicom.Dataset:
    """Functional groups, each a sequence of one item."""
    result = pydicom.Dataset()
    for name, values in groups.items():
        item = pydicom.Dataset()
        for key, value in values.items():
            setattr(item, key, value)
        setattr(result, f"{name}Sequence", [item])
    return result


@pytest.mark.parametrize("order", ["forwards", "backwards", "odd slices first"])
def test_frames_are_put_in_their_places_in_whatever_order_they_are_stored(tmp_path, order):
    places = [7.0 + 6 * k for k in range(12)]
    stored = {"forwards": places, "backwards": places[::-1], "odd slices first": places[1::2] + places[::2]}[order]
    frames = _write_enhanced(tmp_path / "s", stored)
    volume = read_volume(tmp_path / "s")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(volume.image), frames[np.argsort(stored)])
    np.testing.assert_allclose(volume.image.GetSpacing(), (0.9, 1.1, 6.0))
    np.testing.assert_allclose(volume.image.GetOrigin(), (-30, 12, 7))
    np.testing.assert_allclose(volume.image.GetDirection(), np.eye(3).ravel())
    assert volume.tags["SeriesDescription"] == "flair"


def test_frames_that_make_no_volume_are_refused(tmp_path):
    places = [7.0 + 6 * k for k in range(12)]
    _write_enhanced(tmp_path / "gap", places[:5] + places[6:])
    assert_refused(tmp_path / "gap", "slice is missing", GeometryError)
    _write_enhanced(tmp_path / "echoes", places + places)
    assert_refused(tmp_path / "echoes", "several slices at one position")
    _write_enhanced(tmp_path / "capture", places, positions=False)
    assert_refused(tmp_path / "capture", "every frame's place.*dcm2niix", GeometryError)
    _write_enhanced(tmp_path / "scaled", places, slopes=(1.0, 2.0) * 6)
    assert_refused(tmp_path / "scaled", "scaled differently")
