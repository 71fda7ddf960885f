"""Reading: every good format gives ITK's or nibabel's voxels and geometry; every bad file one clear error."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from MSTKDSegmentLib.errors import GeometryError, InputError
from MSTKDSegmentLib.volumes import read_volume, volume_from_image
from volume_files import assert_refused, line_of, patched, random_image, random_voxels, replaced, write_image

# --- Good files ---


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("ending", ["nii", "nii.gz", "nrrd", "nhdr", "mha", "mhd"])
def test_every_format_gives_voxels_and_geometry(tmp_path, ending, compress):
    image = random_image(degrees=20)
    volume = read_volume(write_image(image, tmp_path / f"v.{ending}", compress))
    assert volume.image.GetPixelID() == sitk.sitkFloat32
    np.testing.assert_array_equal(sitk.GetArrayFromImage(volume.image), random_voxels())
    np.testing.assert_allclose(volume.image.GetSpacing(), image.GetSpacing(), rtol=1e-5)
    np.testing.assert_allclose(volume.image.GetOrigin(), image.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(volume.image.GetDirection(), image.GetDirection(), atol=1e-5)
    assert volume.tags == {}
    assert volume.source.endswith(f"v.{ending}")


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha"])
def test_single_volume_in_4d_is_squeezed(tmp_path, ending):
    volume = read_volume(write_image(sitk.JoinSeries([random_image()]), tmp_path / f"v.{ending}"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(volume.image), random_voxels())


def test_in_memory_image_keeps_its_header_and_long_axes_become_spacing():
    image = random_image()
    image.SetDirection((2, 0, 0, 0, 1, 0, 0, 0, 1))
    volume = volume_from_image(image, "node T1")
    np.testing.assert_allclose(volume.image.GetSpacing(), (1.8, 1.1, 5.0))
    np.testing.assert_allclose(volume.image.GetDirection(), np.eye(3).ravel())
    assert image.GetSpacing()[0] == pytest.approx(0.9)


# --- Bad files ---


def test_missing_empty_and_unknown(tmp_path):
    assert_refused(tmp_path / "no.nii.gz", "no such file")
    for name in ("a.nii", "a.nii.gz", "a.nrrd", "a.mha"):
        (tmp_path / name).touch()
        assert_refused(tmp_path / name, "empty")
    for name in ("a.txt", "a.nii.zip", "noending"):
        (tmp_path / name).write_bytes(b"x")
        assert_refused(tmp_path / name, "unknown ending")
    (tmp_path / "slice.dcm").write_bytes(b"x")
    assert_refused(tmp_path / "slice.dcm", "folder")


@pytest.mark.parametrize("name", ["g.nii", "g.nii.gz", "g.nrrd", "g.nhdr", "g.mha", "g.mhd"])
@pytest.mark.parametrize("content", [b"x", b"no image at all\n" * 100])
def test_garbage(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert_refused(tmp_path / name, "header|cannot be read")


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("ending", ["nii", "nii.gz", "nrrd", "mha"])
@pytest.mark.parametrize("keep", [0.05, 0.5, 0.9, 0.995])
def test_truncated(tmp_path, ending, compress, keep):
    path = write_image(random_image(), tmp_path / f"v.{ending}", compress)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    assert_refused(path, "damaged|cut short|cannot be read|no NIfTI header|no complete")


@pytest.mark.parametrize(("ending", "cut"), [("nii", 1), ("nii.gz", 1), ("nii.gz", 8), ("nrrd", 4), ("mha", 1)])
def test_last_bytes_missing(tmp_path, ending, cut):
    path = write_image(random_image(), tmp_path / f"v.{ending}")
    path.write_bytes(path.read_bytes()[:-cut])
    assert_refused(path, "damaged|cut short|cannot be read")


@pytest.mark.parametrize(
    ("ending", "voxels"), [("mhd", "v.raw"), ("mhd", "v.zraw"), ("nhdr", "v.raw"), ("nhdr", "v.raw.gz")]
)
def test_detached_voxels_truncated_or_missing(tmp_path, ending, voxels):
    path = write_image(random_image(), tmp_path / f"v.{ending}", voxels != "v.raw")
    data = (tmp_path / voxels).read_bytes()
    (tmp_path / voxels).write_bytes(data[: len(data) // 2])
    assert_refused(path, "cut short|cannot be read")
    (tmp_path / voxels).unlink()
    assert_refused(path, "missing|couldn't open")


@pytest.mark.parametrize("ending", ["nii.gz", "nrrd", "mha"])
@pytest.mark.parametrize("where", [0.5, 0.999])
def test_flipped_bits_in_compressed_voxels(tmp_path, ending, where):
    path = write_image(random_image(), tmp_path / f"v.{ending}", True)
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 0x55
    path.write_bytes(data)
    assert_refused(path, "damaged|cannot be read")


def test_compressed_mha_without_its_size_is_verified_too(tmp_path):
    path = write_image(random_image(), tmp_path / "v.mha", True)
    head, _, rest = path.read_bytes().partition(b"CompressedDataSize")
    data = head + rest.partition(b"\n")[2]
    path.write_bytes(data[: len(data) // 2])
    assert_refused(path, "cut short")


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "nrrd", "mha"])
def test_2d_4d_colour_thin_nan_constant(tmp_path, ending):
    path = tmp_path / f"v.{ending}"
    image = random_image()
    assert_refused(write_image(image[:, :, 3], path), "2-D")
    assert_refused(write_image(sitk.JoinSeries([image, image]), path), "2 volumes")
    assert_refused(write_image(sitk.Compose([sitk.Cast(image, sitk.sitkUInt8)] * 3), path), "colour|vector")
    assert_refused(write_image(sitk.Compose([image] * 3), path), "vector")
    assert_refused(write_image(image[:, :, :7], path), "at least 8")
    assert_refused(write_image(image * 0 + 5, path), "the value 5")
    for bad in (np.nan, np.inf, -np.inf):
        voxels = random_voxels()
        voxels[1, 2, 3:5] = bad
        assert_refused(write_image(random_image(voxels), path), "2 voxels are NaN or infinite")


def test_complex_voxels(tmp_path):
    image = sitk.RealAndImaginaryToComplex(random_image(), random_image())
    assert_refused(write_image(image, tmp_path / "v.nii"), "complex")
    with pytest.raises(InputError, match=r"node: complex"):
        volume_from_image(image, "node")


@pytest.mark.parametrize("bad", [0.0, -2.0, float("nan"), float("inf"), 1e-9, 500.0])
def test_absurd_spacing(tmp_path, bad):
    assert_refused(patched(write_image(random_image(), tmp_path / "v.nii"), 88, "<f", bad), "spacing", GeometryError)
    text = str(bad).encode()
    mha = write_image(random_image(), tmp_path / "v.mha")
    replaced(mha, line_of(mha, b"ElementSpacing"), b"ElementSpacing = 0.9 1.1 " + text)
    assert_refused(mha, "spacing", GeometryError)
    nrrd = write_image(random_image(), tmp_path / "v.nrrd")
    vectors = line_of(nrrd, b"space directions")
    replaced(replaced(nrrd, vectors, b"spacings: 0.9 1.1 " + text), b"space: left-posterior-superior\n", b"")
    lines = nrrd.read_bytes().split(b"\n", 20)
    nrrd.write_bytes(b"\n".join(line for line in lines if not line.startswith(b"space origin")))
    assert_refused(nrrd, "spacing", GeometryError)


@pytest.mark.parametrize(
    ("vectors", "match"),
    [
        (b"(1,0,0) (0,1,0) (0,0,0)", "spacing"),
        (b"(1,0,0) (0,1,0) (0,1,0)", "singular"),
        (b"(1,0,0) (0,1,0) none", "no voxel spacing"),
    ],
)
def test_nrrd_bad_directions(tmp_path, vectors, match):
    path = write_image(random_image(), tmp_path / "v.nrrd")
    assert_refused(
        replaced(path, line_of(path, b"space directions"), b"space directions: " + vectors), match, GeometryError
    )


def test_dimensions_that_contradict_each_other_never_reach_itk(tmp_path):
    for wrong in (b"NDims = 73", b"NDims = 2", b"NDims = x"):
        assert_refused(
            replaced(write_image(random_image(), tmp_path / "v.mha"), b"NDims = 3", wrong),
            "no complete MetaImage header",
        )


def test_header_without_spacing(tmp_path):
    assert_refused(
        replaced(write_image(random_image(), tmp_path / "v.mha"), b"ElementSpacing", b"Comment"),
        "no voxel",
        GeometryError,
    )


def test_singular_direction(tmp_path):
    path = write_image(random_image(), tmp_path / "v.nii")
    assert_refused(patched(path, 280, "<12f", 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0), "singular", GeometryError)
    assert_refused(patched(path, 280, "<12f", *([0.0] * 12)), "spacing", GeometryError)
    assert_refused(patched(path, 292, "<f", float("nan")), "NaN", GeometryError)
    matrix = b"TransformMatrix = 1 0 0 0 1 0 0 0 1"
    mha = replaced(write_image(random_image(), tmp_path / "v.mha"), matrix, b"TransformMatrix = 1 0 0 0 1 0 0 1 0")
    assert_refused(mha, "singular", GeometryError)
    image = random_image()
    image.SetDirection((1, 0, 0, 0, 1, 1, 0, 0, 0.01))
    with pytest.raises(GeometryError, match=r"node T1: .*singular"):
        volume_from_image(image, "node T1")


def test_no_itk_noise(tmp_path, capfd):
    path = write_image(random_image(), tmp_path / "v.mha", True)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputError):
        read_volume(path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no DICOM"):
        read_volume(tmp_path / "empty")
    assert capfd.readouterr() == ("", "")
