"""Every bad input ends with its exit code, one line that names the culprit, and nothing in the output folder."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import SHAPE, brain_image, files_below, image_of, write_case
from MSTKDSegmentLib.cli import main
from MSTKDSegmentLib.errors import DeviceError, GeometryError, InputError, OutputError, RoleError, WeightsError

torch = pytest.importorskip("torch")

from MSTKDSegmentLib.pipeline import read_case  # noqa: E402


@pytest.fixture
def refused(tmp_path, capsys, random_bundle):
    """Runs `mstkd segment ARGUMENTS -o out/result.nii.gz` and checks exit code, message and that nothing was left."""
    out = tmp_path / "out"

    def check(error, words, *arguments, output=None, weights=random_bundle):
        target = ["-o", str(output or out / "result.nii.gz"), "--weights", str(weights)]
        before = files_below(tmp_path)
        code = main(["segment", *map(str, arguments), *target])
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        assert code == error.exit_code, captured.err
        assert len(lines) == 1, captured.err
        assert lines[0].startswith("mstkd: error: ")
        for word in words:
            assert str(word) in lines[0]
        assert captured.out == ""
        assert files_below(tmp_path) == before

    return check


# --- one volume ------------------------------------------------------------------------------------------------------


def truncated(path: Path) -> None:
    sitk.WriteImage(brain_image(1), str(path))
    path.write_bytes(path.read_bytes()[:-2000])


def with_voxel(value: float):
    def write(path: Path) -> None:
        array = sitk.GetArrayFromImage(brain_image(1))
        array[SHAPE[0] // 2, SHAPE[1] // 2, SHAPE[2] // 2] = value
        sitk.WriteImage(image_of(array), str(path))

    return write


def with_pixdim(value: float):
    def write(path: Path) -> None:
        plain = path.with_name("plain.nii")
        sitk.WriteImage(brain_image(1), str(plain))
        content = bytearray(plain.read_bytes())
        content[80:84] = struct.pack("<f", value)  # pixdim[1] of nifti1.h
        path.write_bytes(gzip.compress(bytes(content)))
        plain.unlink()

    return write


def writing(make):
    return lambda path: sitk.WriteImage(make(), str(path))


def four_d() -> sitk.Image:
    return sitk.JoinSeries([brain_image(1), brain_image(2)])


def colour() -> sitk.Image:
    channel = sitk.Cast(brain_image(1), sitk.sitkUInt8)
    return sitk.Compose(channel, channel, channel)


BAD_VOLUMES = {
    "missing": (lambda path: None, InputError, "no such file"),
    "empty": (lambda path: path.write_bytes(b""), InputError, "empty"),
    "text": (lambda path: path.write_text("this is no image\n" * 50), InputError, "NIfTI"),
    "truncated": (truncated, InputError, "cut short"),
    "2-D": (writing(lambda: brain_image(1)[:, :, SHAPE[0] // 2]), InputError, "2-D"),
    "4-D": (writing(four_d), InputError, "4-D"),
    "colour": (writing(colour), InputError, "colour"),
    "NaN": (with_voxel(np.nan), InputError, "NaN"),
    "infinite": (with_voxel(np.inf), InputError, "infinite"),
    "constant": (writing(lambda: image_of(np.full(SHAPE, 7, np.float32))), InputError, "every voxel"),
    "zero spacing": (with_pixdim(0.0), GeometryError, "spacing"),
    "negative spacing": (with_pixdim(-1.0), GeometryError, "spacing"),
}


@pytest.mark.parametrize("kind", BAD_VOLUMES)
def test_bad_volume(kind, tmp_path, refused, case_files):
    write, error, word = BAD_VOLUMES[kind]
    path = tmp_path / "bad.nii.gz"
    write(path)
    refused(error, ["bad.nii.gz", word], "--t1", path, "--t2", case_files["t2"])


def test_unknown_ending_of_an_input(tmp_path, refused):
    path = tmp_path / "scan.jpg"
    path.write_bytes(b"\xff\xd8")
    refused(InputError, ["scan.jpg", ".nii.gz"], "--t1", path)


# --- several volumes -------------------------------------------------------------------------------------------------


def test_no_sequence_at_all(refused):
    refused(InputError, ["no sequence", "T1"])


def test_same_file_twice(refused, case_files):
    refused(RoleError, ["t1.nii.gz", "same volume"], "--t1", case_files["t1"], "--t2", case_files["t1"])


@pytest.mark.parametrize("how", ["copy", "symlink"])
def test_same_volume_under_two_names(how, tmp_path, refused, case_files):
    other = tmp_path / "other.nii.gz"
    if how == "copy":
        shutil.copy(case_files["t1"], other)
    else:
        try:
            other.symlink_to(case_files["t1"])
        except OSError:
            pytest.skip("this system does not allow symbolic links")
    refused(RoleError, ["other.nii.gz", "same volume"], "--t1", case_files["t1"], "--flair", other)


def test_no_overlap_in_space(tmp_path, refused, case_files):
    far = tmp_path / "far.nii.gz"
    sitk.WriteImage(brain_image(5, origin=(500.0, 0.0, 0.0)), str(far))
    refused(GeometryError, ["far.nii.gz", "overlap"], "--t1", case_files["t1"], "--t2", far, "--registered")


def test_coordinates_that_are_far_off_are_told(tmp_path, case_files):
    """They are mended by a registration that sets out from the brains' centres; nobody may miss that."""
    far = sitk.Image(sitk.ReadImage(str(case_files["t1"])))
    far.SetOrigin(np.add(far.GetOrigin(), (500.0, 0.0, 0.0)).tolist())
    voxels = sitk.GetArrayFromImage(far)
    other = sitk.GetImageFromArray((voxels.max() - voxels) * (voxels > 0))
    other.CopyInformation(far)
    case = read_case({"T1": sitk.ReadImage(str(case_files["t1"])), "T2": other}, reference="T1")
    assert case.record.sequences["T2"].start == "centres"
    assert any("500 mm away" in notice and "not the scanner's" in notice for notice in case.notices)


def test_reference_that_is_not_given(refused, case_files):
    refused(InputError, ["T1Gd"], "--t1", case_files["t1"], "--reference", "T1Gd")
    refused(RoleError, ["'ct'"], "--t1", case_files["t1"], "--reference", "ct")


# --- case folders ----------------------------------------------------------------------------------------------------


def test_folder_that_is_not_there(tmp_path, refused):
    refused(InputError, ["nobody", "no such folder"], tmp_path / "nobody")


def test_file_instead_of_a_folder(refused, case_files):
    refused(RoleError, ["t1.nii.gz", "--t1"], case_files["t1"])


def test_empty_folder(tmp_path, refused):
    (tmp_path / "empty").mkdir()
    refused(RoleError, ["empty", "holds no volume"], tmp_path / "empty")


def test_ambiguous_folder(tmp_path, refused):
    write_case(tmp_path / "case", a_flair=1, b_flair=2)
    refused(RoleError, ["a_flair.nii.gz", "b_flair.nii.gz", "--flair"], tmp_path / "case")


def test_everything_left_out(refused, case_files):
    refused(RoleError, ["--without"], case_files["t1"].parent, "--without", "all")


def test_named_and_left_out(refused, case_files):
    refused(RoleError, ["T1", "left out"], "--t1", case_files["t1"], "--without", "T1")


# --- outputs ---------------------------------------------------------------------------------------------------------


def test_file_in_the_place_of_a_folder(tmp_path, refused, case_files):
    (tmp_path / "taken").write_text("mine")
    refused(OutputError, ["taken"], "--t1", case_files["t1"], output=tmp_path / "taken" / "result.nii.gz")


def test_folder_in_the_place_of_a_file(tmp_path, refused, case_files):
    (tmp_path / "result.nii.gz").mkdir()
    refused(OutputError, ["is a folder"], "--t1", case_files["t1"], output=tmp_path / "result.nii.gz")


@pytest.mark.parametrize("name", ["result.xyz", "result", ".nii.gz"])
def test_unknown_ending_of_the_output(name, tmp_path, refused, case_files):
    refused(OutputError, [name, ".seg.nrrd"], "--t1", case_files["t1"], output=tmp_path / name)


def test_existing_output_is_kept(tmp_path, refused, case_files):
    path = tmp_path / "result.nii.gz"
    path.write_text("precious")
    refused(OutputError, ["result.nii.gz", "exists already"], "--t1", case_files["t1"], output=path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("flag, name", [("--report", "r.pdf"), ("--probabilities", "p.mha"), ("-o", "s.dcm")])
def test_unknown_ending_of_a_further_output(flag, name, tmp_path, refused, case_files):
    refused(OutputError, [name, "ending"], "--t1", case_files["t1"], flag, tmp_path / name)


def test_one_name_for_two_outputs(tmp_path, refused, case_files):
    refused(OutputError, ["two outputs"], "--t1", case_files["t1"], "-o", tmp_path / "out" / "result.nii.gz")


def test_output_over_an_input(tmp_path, refused):
    path = write_case(tmp_path / "case", t1=1)["t1"]
    content = path.read_bytes()
    refused(OutputError, ["t1.nii.gz", "is an input"], "--t1", path, "--overwrite", output=path)
    assert path.read_bytes() == content


def test_regions_in_a_label_map(refused, case_files):
    refused(OutputError, ["result.nii.gz", ".seg.nrrd"], "--t1", case_files["t1"], "--segments", "regions")


def test_geometry_that_the_format_cannot_hold(tmp_path, refused):
    image = brain_image(1)
    image.SetDirection([1, 0.3, 0, 0, np.sqrt(1 - 0.09), 0, 0, 0, 1])
    path = tmp_path / "tilted.nrrd"
    sitk.WriteImage(image, str(path))
    refused(OutputError, ["result.nii.gz", "not perpendicular"], "--t1", path)


# --- ground truth ----------------------------------------------------------------------------------------------------


def write_truth(path: Path, value: int, origin=(0.0, 0.0, 0.0)) -> Path:
    labels = np.zeros(SHAPE, np.uint8)
    labels[14:18, 14:18, 14:18] = value
    labels[20, 20, 20] = 2  # beside another value, else it would be a mask of the whole tumour
    sitk.WriteImage(image_of(labels, origin), str(path))
    return path


@pytest.mark.parametrize(
    "value, origin, error, word",
    [(7, (0.0, 0.0, 0.0), InputError, "known are 1, 2, 3"), (3, (500.0, 0.0, 0.0), GeometryError, "outside")],
)
def test_ground_truth_that_does_not_fit(value, origin, error, word, tmp_path, refused, case_files):
    truth = write_truth(tmp_path / "truth.nii.gz", value, origin)
    refused(error, ["truth.nii.gz", word], "--t1", case_files["t1"], "--ground-truth", truth)


def test_missing_ground_truth(tmp_path, refused, case_files):
    refused(InputError, ["truth.nii"], "--t1", case_files["t1"], "--ground-truth", tmp_path / "truth.nii")


# --- weights ---------------------------------------------------------------------------------------------------------


def members(bundle: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(bundle) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(path: Path, content: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def with_card(bundle: Path, path: Path, **changes: object) -> None:
    content = members(bundle)
    content["card.json"] = json.dumps({**json.loads(content["card.json"]), **changes}).encode()
    write_zip(path, content)


def flipped_weight(bundle: Path, path: Path) -> None:
    content = members(bundle)
    weights = bytearray(content["weights.pt"])
    weights[len(weights) // 2] ^= 1
    write_zip(path, {**content, "weights.pt": bytes(weights)})


def flipped_byte_of_the_file(bundle: Path, path: Path) -> None:
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def pickled_object(bundle: Path, path: Path) -> None:
    import hashlib

    buffer = io.BytesIO()
    torch.save({"stem.weight": Path("a class that is no tensor")}, buffer, pickle_module=pickle)
    content = members(bundle)
    card = {**json.loads(content["card.json"]), "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
    write_zip(path, {"card.json": json.dumps(card).encode(), "weights.pt": buffer.getvalue()})


BAD_BUNDLES = {
    "missing": (lambda bundle, path: None, "no such weights"),
    "flipped weight": (flipped_weight, "sha256"),
    "flipped byte": (flipped_byte_of_the_file, "damaged"),
    "truncated": (lambda bundle, path: path.write_bytes(bundle.read_bytes()[:-5000]), "damaged"),
    "not a zip": (lambda bundle, path: path.write_bytes(b"GIF89a" * 100), "not a weights bundle"),
    "foreign zip": (lambda bundle, path: write_zip(path, {"a.txt": b"hello"}), "card.json is missing"),
    "another preset": (lambda bundle, path: with_card(bundle, path, preset="paper"), "paper"),
    "unknown preset": (lambda bundle, path: with_card(bundle, path, preset="giant"), "giant"),
    "another format": (lambda bundle, path: with_card(bundle, path, format=99), "format 99"),
    "unusable clean-up": (lambda bundle, path: with_card(bundle, path, clean_up={"magic": 1}), "magic"),
    "pickled object": (pickled_object, "safely"),
}


@pytest.mark.parametrize("kind", BAD_BUNDLES)
def test_bad_bundle(kind, tmp_path, refused, random_bundle, case_files):
    make, word = BAD_BUNDLES[kind]
    path = tmp_path / "bad.zip"
    make(random_bundle, path)
    refused(WeightsError, ["bad.zip", word], "--t1", case_files["t1"], weights=path)


# --- devices ---------------------------------------------------------------------------------------------------------


def test_unknown_device(refused, case_files):
    refused(DeviceError, ["'tpu'", "cuda"], "--t1", case_files["t1"], "--device", "tpu")


def test_gpu_that_is_not_there(refused, case_files):
    if torch.cuda.is_available():
        refused(DeviceError, ["cuda:99"], "--t1", case_files["t1"], "--device", "cuda:99")
    else:
        refused(DeviceError, ["cuda was asked for", "choose cpu or auto"], "--t1", case_files["t1"], "--device", "cuda")
