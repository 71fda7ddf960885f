"""Files that are written: content, geometry, conventions, refusal to overwrite, and what Slicer reads in them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from MSTKDSegmentLib import segmentation_io
from MSTKDSegmentLib.errors import OutputError
from MSTKDSegmentLib.regions import LABELS, REGIONS, labels_to_regions
from MSTKDSegmentLib.segmentation_io import (
    PROBABILITY_ENDINGS,
    REGION_ENDINGS,
    SEGMENTATION_ENDINGS,
    check_output,
    write_probabilities,
    write_segmentation,
)

# Two rotations: perpendicular axes, none along the scanner's.
OBLIQUE = np.array([[0.936, -0.290, 0.198], [0.296, 0.955, 0.0], [-0.189, 0.0587, 0.980]])
OBLIQUE = np.linalg.svd(OBLIQUE)[0] @ np.linalg.svd(OBLIQUE)[2]
SHEARED = OBLIQUE @ np.array([[1, 0, 0.15], [0, 1, 0], [0, 0, np.sqrt(1 - 0.15**2)]])
FLIPPED = OBLIQUE @ np.diag([-1, 1, 1])
GRID = (7, 9, 11)


def make_labels() -> np.ndarray:
    labels = np.zeros(GRID, np.uint8)
    labels[1:6, 2:8, 3:10] = 2
    labels[2:5, 3:7, 4:8] = 3
    labels[3, 4:6, 5:7] = 1
    return labels


def make_reference(direction: np.ndarray = OBLIQUE) -> sitk.Image:
    image = sitk.Image(GRID[::-1], sitk.sitkInt16)
    image.SetSpacing((0.9, 1.1, 3.0))
    image.SetOrigin((10.5, -20.25, 30.125))
    image.SetDirection(direction.ravel())
    image.SetMetaData("0010|0010", "Doe^Jane")
    return image


def names_in(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def affine_lps(image: sitk.Image) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) @ np.diag(image.GetSpacing())
    matrix[:3, 3] = image.GetOrigin()
    return matrix


@pytest.mark.parametrize("ending", SEGMENTATION_ENDINGS)
@pytest.mark.parametrize("direction", [OBLIQUE, FLIPPED], ids=["oblique", "flipped"])
def test_labels_and_geometry_survive_in_every_format(tmp_path, ending, direction):
    path = write_segmentation(tmp_path / f"seg{ending}", make_labels(), make_reference(direction))
    written = sitk.ReadImage(str(path))
    assert written.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), make_labels())
    np.testing.assert_allclose(affine_lps(written), affine_lps(make_reference(direction)), atol=1e-5)


@pytest.mark.parametrize("ending", SEGMENTATION_ENDINGS)
def test_brats2021_writes_et_as_4(tmp_path, ending):
    path = write_segmentation(tmp_path / f"s{ending}", make_labels(), make_reference(), label_convention="brats2021")
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    np.testing.assert_array_equal(written == 4, make_labels() == 3)
    assert set(np.unique(written)) == {0, 1, 2, 4}


def test_slicer_label_values_follow_the_convention(tmp_path):
    path = write_segmentation(tmp_path / "s.seg.nrrd", make_labels(), make_reference(), label_convention="brats2021")
    written = sitk.ReadImage(str(path))
    assert [written.GetMetaData(f"Segment{i}_LabelValue") for i in range(3)] == ["1", "2", "4"]


@pytest.mark.parametrize("ending", [".seg.nrrd", ".nrrd", ".mha"])
def test_metadata_is_kept_and_the_patients_name_is_not(tmp_path, ending):
    metadata = {"version": "0.1.0", "inputs": "T1.nii.gz\nFLAIR.nii.gz", "long": "x" * 5000, "subset": "T1 é FLAIR"}
    path = write_segmentation(tmp_path / f"s{ending}", make_labels(), make_reference(), metadata=metadata)
    written = sitk.ReadImage(str(path))
    assert written.GetMetaData("MSTKDSegment_inputs") == "T1.nii.gz FLAIR.nii.gz"
    assert written.GetMetaData("MSTKDSegment_subset") == "T1 é FLAIR"
    assert len(written.GetMetaData("MSTKDSegment_long")) == 5000
    assert b"Doe^Jane" not in path.read_bytes()


def test_a_metadata_key_that_would_break_a_header_is_refused(tmp_path):
    with pytest.raises(ValueError, match="metadata key"):
        write_segmentation(tmp_path / "s.nrrd", make_labels(), make_reference(), metadata={"a:=b": "c"})
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("ending", [".seg.nrrd", ".nrrd", ".mha"])
def test_sheared_axes_are_written_exactly(tmp_path, ending):
    reference = make_reference(SHEARED)
    path = write_segmentation(tmp_path / f"s{ending}", make_labels(), reference)
    np.testing.assert_allclose(affine_lps(sitk.ReadImage(str(path))), affine_lps(reference), atol=1e-5)


def test_nifti_refuses_sheared_axes_before_anything_is_computed(tmp_path):
    reference = make_reference(SHEARED)
    with pytest.raises(OutputError, match="not perpendicular"):
        write_segmentation(tmp_path / "s.nii.gz", make_labels(), reference)
    with pytest.raises(OutputError, match="not perpendicular"):
        check_output(tmp_path / "s.nii", reference_image=reference)
    assert names_in(tmp_path) == []


def test_rounding_in_a_scanners_direction_is_not_called_sheared(tmp_path):
    direction = np.round(OBLIQUE, 6)
    write_segmentation(tmp_path / "s.nii.gz", make_labels(), make_reference(direction))


@pytest.mark.parametrize("ending", PROBABILITY_ENDINGS)
def test_probabilities_are_one_image_with_three_components(tmp_path, ending):
    probabilities = np.random.default_rng(0).random((3, *GRID), np.float32)
    path = write_probabilities(tmp_path / f"p{ending}", probabilities, make_reference(), metadata={"model": "m"})
    written = sitk.ReadImage(str(path))
    assert written.GetNumberOfComponentsPerPixel() == 3
    np.testing.assert_array_equal(np.moveaxis(sitk.GetArrayFromImage(written), -1, 0), probabilities)
    np.testing.assert_allclose(affine_lps(written), affine_lps(make_reference()), atol=1e-5)


def test_nibabel_sees_the_same_nifti(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    labels_path = write_segmentation(tmp_path / "s.nii.gz", make_labels(), make_reference())
    probabilities = np.random.default_rng(0).random((3, *GRID), np.float32)
    probabilities_path = write_probabilities(tmp_path / "p.nii.gz", probabilities, make_reference())
    image = nibabel.load(labels_path)
    np.testing.assert_array_equal(np.asarray(image.dataobj).T, make_labels())
    np.testing.assert_allclose(image.affine, np.diag([-1, -1, 1, 1]) @ affine_lps(make_reference()), atol=1e-5)
    values = np.asarray(nibabel.load(probabilities_path).dataobj)
    assert values.shape == (*GRID[::-1], 1, 3)
    np.testing.assert_array_equal(values[:, :, :, 0].T, probabilities)


@pytest.mark.parametrize("name", ["seg.dcm", "seg", ".nii.gz", "seg.nii.gz.txt"])
def test_unknown_endings_are_refused(tmp_path, name):
    with pytest.raises(OutputError, match=r"unknown file ending; use \.seg\.nrrd"):
        check_output(tmp_path / name)


def test_regions_need_overlapping_segments(tmp_path):
    with pytest.raises(OutputError, match=r"use \.seg\.nrrd"):
        write_segmentation(tmp_path / "s.nii.gz", make_labels(), make_reference(), segments="regions")
    with pytest.raises(OutputError, match=r"use \.seg\.nrrd"):
        check_output(tmp_path / "s.nrrd", endings=REGION_ENDINGS)


def test_check_output_creates_nothing_and_accepts_missing_folders(tmp_path):
    assert check_output(tmp_path / "a" / "b" / "s.NII.GZ") == tmp_path / "a" / "b" / "s.NII.GZ"
    assert names_in(tmp_path) == []
    write_segmentation(tmp_path / "a" / "b" / "s.nii.gz", make_labels(), make_reference())
    assert names_in(tmp_path / "a" / "b") == ["s.nii.gz"]


def test_check_output_refuses_a_folder_and_a_file_used_as_folder(tmp_path):
    (tmp_path / "folder.nii").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path / "folder.nii", overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot write to"):
        check_output(tmp_path / "file" / "s.nii")


@pytest.mark.skipif(
    os.name == "nt" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_check_output_refuses_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot write to"):
        check_output(tmp_path / "s.nii")


def test_an_existing_file_is_replaced_only_on_request(tmp_path):
    path = tmp_path / "s.nii.gz"
    path.write_bytes(b"a day's manual work")
    with pytest.raises(OutputError, match="exists already"):
        write_segmentation(path, make_labels(), make_reference())
    assert path.read_bytes() == b"a day's manual work"
    write_segmentation(path, make_labels(), make_reference(), overwrite=True)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), make_labels())


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "s.nii"

    def write_late():
        with segmentation_io.atomic_output(path, False, ".nii") as temporary:
            temporary.write_bytes(b"ours")
            path.write_bytes(b"theirs")

    with pytest.raises(OutputError, match="exists already"):
        write_late()
    assert path.read_bytes() == b"theirs"
    assert names_in(tmp_path) == ["s.nii"]


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "s.seg.nrrd"
    path.write_bytes(b"old")

    def fill_the_disk(image, name, compress):
        Path(name).write_bytes(b"half a fi")
        raise RuntimeError("sitk::ERROR: write failed\nNo space left on device")

    monkeypatch.setattr(segmentation_io.sitk, "WriteImage", fill_the_disk)
    with pytest.raises(OutputError, match=r"could not be written \(No space left on device\)"):
        write_segmentation(path, make_labels(), make_reference(), overwrite=True)
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["s.seg.nrrd"]


def test_a_silently_damaged_write_is_noticed(tmp_path, monkeypatch):
    write = sitk.WriteImage
    monkeypatch.setattr(segmentation_io.sitk, "WriteImage", lambda image, name, zipped: write(image * 0, name, zipped))
    with pytest.raises(OutputError, match="read back differs"):
        write_segmentation(tmp_path / "s.nrrd", make_labels(), make_reference())
    assert names_in(tmp_path) == []


def test_labels_must_fit_the_reference(tmp_path):
    with pytest.raises(ValueError, match="grid"):
        write_segmentation(tmp_path / "s.nrrd", make_labels()[1:], make_reference())
    with pytest.raises(ValueError, match="labels must be 0 to 3"):
        write_segmentation(tmp_path / "s.nrrd", make_labels() + 2, make_reference())
    with pytest.raises(ValueError, match="segments must be"):
        write_segmentation(tmp_path / "s.nrrd", make_labels(), make_reference(), segments="both")


# Slicer's own reader (MRML) in a process of its own: Slicer's libraries need not share one with torch and SimpleITK.
READ_WITH_SLICER = """
import json, sys
import numpy as np, slicer, vtk
from vtk.util.numpy_support import vtk_to_numpy

def grid(image, matrix):
    image.GetImageToWorldMatrix(matrix)
    return [[matrix.GetElement(r, c) for c in range(4)] for r in range(4)], list(image.GetExtent())

def describe(path):
    scene = slicer.vtkMRMLScene()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(path)
    assert storage.ReadData(node) == 1
    segmentation, matrix, reference = node.GetSegmentation(), vtk.vtkMatrix4x4(), slicer.vtkOrientedImageData()
    parameter = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    text = segmentation.GetConversionParameter(parameter)
    slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, reference, False)
    segments = []
    for index in range(segmentation.GetNumberOfSegments()):
        segment_id = segmentation.GetNthSegmentID(index)
        segment = segmentation.GetSegment(segment_id)
        entry, labelmap = slicer.vtkSlicerTerminologyEntry(), slicer.vtkOrientedImageData()
        tag = vtk.mutable("")
        segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), tag)
        parsed = slicer.vtkSlicerTerminologiesModuleLogic().DeserializeTerminologyEntry(str(tag), entry)
        node.GetBinaryLabelmapRepresentation(segment_id, labelmap)
        ijk_to_ras, extent = grid(labelmap, matrix)
        mask = vtk_to_numpy(labelmap.GetPointData().GetScalars()).reshape(labelmap.GetDimensions()[::-1]) != 0
        ijk = (np.argwhere(mask)[:, ::-1] + extent[::2]).mean(axis=0) if mask.any() else np.zeros(3)
        segments.append(dict(
            id=segment_id, name=segment.GetName(), colour=segment.GetColor(), value=segment.GetLabelValue(),
            voxels=int(mask.sum()), centre_ras=matrix.MultiplyPoint([*ijk, 1])[:3], parsed=bool(parsed),
            type=entry.GetTypeObject().GetCodeValue(), category=entry.GetCategoryObject().GetCodeValue(),
            region=entry.GetRegionObject().GetCodeValue(), ijk_to_ras=ijk_to_ras))
    return dict(segments=segments, layers=segmentation.GetNumberOfLayers(), reference=grid(reference, matrix))

print("RESULT" + json.dumps([describe(path) for path in sys.argv[1:]]))
"""


def read_with_slicer(*paths: Path) -> list:
    if importlib.util.find_spec("slicer") is None:
        pytest.skip("slicer-core is not installed")
    command = [sys.executable, "-c", READ_WITH_SLICER, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert "RESULT" in done.stdout, done.stderr
    return json.loads(done.stdout.split("RESULT")[1].splitlines()[0])


def test_slicer_reads_segments_terminology_and_geometry(tmp_path):
    paths, expected = [], []
    for name, direction in (("oblique", OBLIQUE), ("sheared", SHEARED), ("flipped", FLIPPED)):
        for kind, structures in (("labels", LABELS), ("regions", REGIONS)):
            path = tmp_path / f"{name}_{kind}.seg.nrrd"
            metadata = {"model": "compact"}
            reference = make_reference(direction)
            paths.append(write_segmentation(path, make_labels(), reference, segments=kind, metadata=metadata))
            expected.append((reference, kind, structures))
    regions = labels_to_regions(make_labels())
    for (reference, kind, structures), read in zip(expected, read_with_slicer(*paths)):
        ijk_to_ras = np.diag([-1, -1, 1, 1]) @ affine_lps(reference)
        np.testing.assert_allclose(read["reference"][0], ijk_to_ras, atol=1e-9)
        assert read["reference"][1] == [0, 10, 0, 8, 0, 6]
        assert read["layers"] == (1 if kind == "labels" else 3)
        assert [segment["id"] for segment in read["segments"]] == [item.key for item in structures]
        for segment, item in zip(read["segments"], structures):
            mask = np.isin(make_labels(), item.labels)
            if kind == "regions":
                np.testing.assert_array_equal(mask, regions[item.key])
            centre = np.append(np.argwhere(mask).mean(axis=0)[::-1], 1)
            assert segment["name"] == item.title
            assert segment["colour"] == pytest.approx(item.colour)
            assert segment["parsed"]
            assert (segment["type"], segment["category"], segment["region"]) == (item.type_code, "49755003", "12738006")
            assert segment["voxels"] == mask.sum()
            np.testing.assert_allclose(segment["ijk_to_ras"], ijk_to_ras, atol=1e-6)
            np.testing.assert_allclose(segment["centre_ras"], (ijk_to_ras @ centre)[:3], atol=1e-5)


def test_slicer_reads_a_segmentation_without_tumour(tmp_path):
    nothing = np.zeros(GRID, np.uint8)
    paths = [
        write_segmentation(tmp_path / f"{kind}.seg.nrrd", nothing, make_reference(), segments=kind)
        for kind in ("labels", "regions")
    ]
    for read in read_with_slicer(*paths):
        assert [segment["voxels"] for segment in read["segments"]] == [0, 0, 0]
