"""Paths that the operating system refuses to show: one clear line from every reader, never a traceback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from MSTKDSegmentLib.batch import read_summary
from MSTKDSegmentLib.batch_cases import read_cases
from MSTKDSegmentLib.case_inputs import find_inputs
from MSTKDSegmentLib.case_roles import roles_in_folder
from MSTKDSegmentLib.dicom import read_dicom
from MSTKDSegmentLib.errors import InputError, OutputError
from MSTKDSegmentLib.file_checks import file_stamp, os_errors_as_input_errors, printable
from MSTKDSegmentLib.segmentation_io import check_output
from MSTKDSegmentLib.volumes import read_volume


@pytest.fixture
def refuse(monkeypatch):
    """Makes the named methods of Path fail as they do in a folder of someone else; a chmod does not stop root."""

    def denied(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    return lambda *names: [monkeypatch.setattr(Path, name, denied) for name in names]


def assert_one_line(caught, path):
    text = str(caught.value)
    assert str(path) in text and "Permission denied" in text and "\n" not in text


@pytest.mark.parametrize("method", ["iterdir", "is_dir", "stat"])
@pytest.mark.parametrize(
    "read",
    [
        roles_in_folder,
        lambda folder: find_inputs(folder, {}),
        lambda folder: read_cases(folder, folder / "out"),
    ],
    ids=["roles_in_folder", "find_inputs", "read_cases"],
)
def test_a_folder_that_cannot_be_looked_into(read, method, tmp_path, refuse):
    folder = tmp_path / "case"
    (folder / "1_T1").mkdir(parents=True)
    (folder / "1_T1" / "slice").write_bytes(b"x")
    refuse(method)
    with pytest.raises(InputError) as caught:
        read(folder)
    assert_one_line(caught, folder)


@pytest.mark.parametrize("method", ["is_dir", "exists", "stat", "open"])
def test_a_volume_that_cannot_be_read(method, tmp_path, refuse):
    path = tmp_path / "t1.nii"
    path.write_bytes(b"x")
    refuse(method)
    with pytest.raises(InputError) as caught:
        read_volume(path)
    assert_one_line(caught, path)


@pytest.mark.parametrize("method", ["iterdir", "open"])
def test_a_dicom_folder_that_cannot_be_read(method, tmp_path, refuse):
    (tmp_path / "slice.dcm").write_bytes(b"x")
    refuse(method)
    with pytest.raises(InputError) as caught:
        read_dicom(tmp_path)
    assert_one_line(caught, tmp_path)


def test_a_list_of_cases_that_cannot_be_opened(tmp_path, refuse):
    path = tmp_path / "cases.csv"
    path.write_text("case,t1\na,x.nii\n")
    refuse("open")
    with pytest.raises(InputError) as caught:
        read_cases(path, tmp_path / "out")
    assert_one_line(caught, path)


@pytest.mark.parametrize("method", ["is_file", "open"])
def test_a_summary_that_cannot_be_read(method, tmp_path, refuse):
    path = tmp_path / "summary.csv"
    path.write_text("")
    refuse(method)
    with pytest.raises(OutputError) as caught:
        read_summary(path)
    assert_one_line(caught, path)


@pytest.mark.parametrize("method", ["is_dir", "exists"])
def test_an_output_in_a_folder_that_cannot_be_looked_into(method, tmp_path, refuse):
    refuse(method)
    with pytest.raises(OutputError) as caught:
        check_output(tmp_path / "a.nii.gz")
    assert_one_line(caught, tmp_path / "a.nii.gz")


def test_an_error_that_names_no_path_gets_that_of_the_reader():
    with pytest.raises(InputError, match=r"^/scans: cannot be read \(timed out\)"), os_errors_as_input_errors("/scans"):
        raise TimeoutError("timed out")


def test_printable_replaces_what_utf8_cannot_hold():
    assert printable(" T1 M\udcfcller \0") == "T1 M\ufffdller"


# --- names that are not UTF-8 ---


@pytest.fixture
def foreign(tmp_path):
    """A folder whose name is Latin-1, as an archive from Windows leaves it."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller"))
    try:
        folder.mkdir()
    except OSError:  # macOS and Windows take no such name
        pytest.skip("this file system takes UTF-8 names only")
    return folder


@pytest.mark.parametrize("ending", ["t1.nrrd", "t1.nii.gz", "t1.mha", ""])
def test_a_name_that_is_not_utf8_is_refused_before_itk_sees_it(ending, foreign):
    # ITK would end the whole process, which no `except` would hear.
    path = foreign / ending if ending else foreign
    if ending:
        path.write_bytes(b"x")
    with pytest.raises(InputError, match=r"M.ller.*not UTF-8 cannot be read; rename it") as caught:
        read_volume(path)
    assert str(caught.value).encode("utf-8")
    with pytest.raises(OutputError, match=r"M.ller.*not UTF-8 cannot be written"):
        check_output(foreign / "s.nii.gz")
    with pytest.raises(InputError, match="not UTF-8"):
        find_inputs(foreign, {})


def test_a_slice_whose_name_is_not_utf8_is_refused(foreign):
    inside = foreign.with_name("series")
    inside.mkdir()
    (foreign / "x").write_bytes(b"x")
    (foreign / "x").rename(inside / foreign.name)
    with pytest.raises(InputError, match="not UTF-8"):
        read_dicom(inside)


# --- stamps ---


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("t1.mhd", "ObjectType = Image\nNDims = 3\nElementDataFile = t1.raw\n"),
        ("t1.nhdr", "NRRD0005\ntype: short\ndata file: t1.raw\n\n"),
    ],
)
def test_a_stamp_counts_the_voxels_that_a_header_names(name, header, tmp_path):
    path, voxels = tmp_path / name, tmp_path / "t1.raw"
    path.write_text(header)
    alone = file_stamp(path)
    voxels.write_bytes(b"1234")
    first = file_stamp(path)
    assert first != alone
    os.utime(voxels, ns=(1, voxels.stat().st_mtime_ns + 10**9))
    assert file_stamp(path) != first


def test_a_stamp_of_a_file_with_its_voxels_inside_counts_nothing_else(tmp_path):
    path = tmp_path / "t1.mha"
    path.write_bytes(b"ObjectType = Image\nElementDataFile = LOCAL\n1234")
    before = file_stamp(path)
    (tmp_path / "LOCAL").write_bytes(b"1")
    assert file_stamp(path) == before
