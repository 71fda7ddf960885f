"""NIfTI: voxels, scaling and places as nibabel and ITK have them, and headers that promise too much."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import SimpleITK as sitk
from MSTKDSegmentLib.errors import GeometryError, InputError
from MSTKDSegmentLib.volumes import read_volume
from volume_files import assert_refused, patched, random_image, random_voxels, write_image


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "float64"])
def test_nifti_voxel_types(tmp_path, dtype):
    voxels = np.abs(random_voxels()).clip(0, 120).astype(dtype)
    volume = read_volume(write_image(sitk.GetImageFromArray(voxels), tmp_path / "v.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(volume.image), voxels.astype(np.float32))


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 1), (2, 4)])
@pytest.mark.parametrize("flip", [1.0, -1.0])
def test_nifti_affine_as_nibabel(tmp_path, codes, flip):
    nibabel = pytest.importorskip("nibabel")
    rng = np.random.default_rng(3)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation[:, 2] *= flip * np.sign(np.linalg.det(rotation))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation * [0.9, 1.1, 5.0], [4, -50, 33]
    nifti = nibabel.Nifti1Image(random_voxels().T, affine)
    nifti.set_qform(affine if codes[0] else None, code=codes[0])
    nifti.set_sform(affine if codes[1] else None, code=codes[1])
    nifti.header.set_zooms((0.9, 1.1, 5.0))
    nibabel.save(nifti, tmp_path / "v.nii.gz")
    _assert_same_places(read_volume(tmp_path / "v.nii.gz").image, nibabel.load(tmp_path / "v.nii.gz").affine)


@pytest.mark.parametrize("kind", ["Nifti1Image", "Nifti2Image"])
@pytest.mark.parametrize("qform_code", [0, 1])
def test_nifti_sheared_sform_is_kept(tmp_path, kind, qform_code):
    nibabel = pytest.importorskip("nibabel")
    affine = np.array([[1, 0.2, 0.1, 5], [0, 1, 0.3, 6], [0.05, 0, 2, 7], [0, 0, 0, 1]], float)
    nifti = getattr(nibabel, kind)(random_voxels().T, np.eye(4))
    nifti.set_sform(affine, code=1)
    nifti.set_qform(np.eye(4), code=qform_code)
    nibabel.save(nifti, tmp_path / "v.nii")
    image = read_volume(tmp_path / "v.nii").image
    _assert_same_places(image, affine)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), random_voxels())


def _assert_same_places(image: sitk.Image, affine: np.ndarray) -> None:
    for index in [(0, 0, 0), (13, 0, 0), (0, 11, 0), (0, 0, 9), (13, 11, 9)]:
        x, y, z, _ = affine @ [*index, 1]
        np.testing.assert_allclose(image.TransformIndexToPhysicalPoint(index), (-x, -y, z), atol=1e-4)


def test_nifti_big_endian_scaled_as_nibabel(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    nifti = nibabel.Nifti1Image(random_voxels().T, np.eye(4), header)
    nifti.header.set_slope_inter(0.5, -3.0)
    nibabel.save(nifti, tmp_path / "v.nii")
    expected = nibabel.load(tmp_path / "v.nii").get_fdata().T
    np.testing.assert_allclose(sitk.GetArrayFromImage(read_volume(tmp_path / "v.nii").image), expected, rtol=1e-6)


def test_nifti_without_orientation_lies_where_itk_puts_it(tmp_path):
    path = patched(write_image(random_image(), tmp_path / "v.nii"), 252, "<2h", 0, 0)
    image, itk = read_volume(path).image, sitk.ReadImage(str(path))
    np.testing.assert_allclose(image.GetDirection(), itk.GetDirection())
    np.testing.assert_allclose(image.GetOrigin(), itk.GetOrigin())
    np.testing.assert_allclose(image.GetSpacing(), itk.GetSpacing(), rtol=1e-6)


def test_nifti_micrometres_become_millimetres(tmp_path):
    path = patched(write_image(random_image(), tmp_path / "v.nii"), 123, "<B", 3)
    assert_refused(path, r"0\.0009 x 0\.0011 x 0\.005 mm", GeometryError)


def test_header_promising_more_than_any_file_holds(tmp_path):
    path = patched(write_image(random_image(), tmp_path / "v.nii"), 40, "<4h", 3, 32767, 32767, 32767)
    assert_refused(path, "cut short")
    packed = tmp_path / "w.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert_refused(packed, "cut short")


def test_gzip_is_read_as_by_python_whatever_its_members(tmp_path, monkeypatch):
    voxels = np.random.default_rng(0).integers(0, 99, (9, 10, 11), dtype=np.int16)
    path = write_image(sitk.GetImageFromArray(voxels), tmp_path / "v.nii")
    whole = path.read_bytes()
    packed = tmp_path / "w.nii.gz"
    members = gzip.compress(whole[:300]) + gzip.compress(b"") + b"\0" * 7 + gzip.compress(whole[300:]) + b"\0\0"
    monkeypatch.setattr("MSTKDSegmentLib.nifti._Inflater.CHUNK", 5)  # pieces end anywhere
    packed.write_bytes(members)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_volume(packed).image), voxels)
    for damaged in (members[:-20], members[:310], members[:-5] + b"x\0\0", members + b"no gzip"):
        packed.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged or cut short"):
            read_volume(packed)
