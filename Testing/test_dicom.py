"""Folders of DICOM slices: a good series is read with its tags; a gap, a mixture or damage is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from MSTKDSegmentLib.errors import GeometryError, InputError
from MSTKDSegmentLib.volumes import read_volume
from volume_files import assert_refused, random_voxels


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
