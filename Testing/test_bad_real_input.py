"""What a hospital's folder may hold in place of a sequence, made from real volumes, through the product's own path."""

from __future__ import annotations

import re
import struct

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("torch")

from MSTKDSegmentLib.errors import InputError
from MSTKDSegmentLib.geometry import array_to_image
from MSTKDSegmentLib.overlap import find_foreground
from MSTKDSegmentLib.pipeline import read_case
from real_patients import labelled, raw, validation_cases
from scipy import ndimage

SEQUENCES = ("T1", "T1Gd", "T2", "FLAIR")
SUSPICIONS = (
    "localiser",
    "CT",
    "do not match",
    "cuts through",
    "does not fit",
    "says nothing",
    "echo-planar",
    "looks like",
    "an adult",
)


def written(image: sitk.Image, path) -> str:
    sitk.WriteImage(image, str(path))
    return str(path)


def suspicions(notices) -> list[str]:
    return [text for text in notices if any(words in text for words in SUSPICIONS)]


def test_nothing_is_suspected_of_a_real_patient():
    images = {name: raw(name, atlas=True) for name in SEQUENCES}
    case = read_case(images)
    assert case.record.challenge_ready and suspicions(case.notices) == []


def test_nothing_is_suspected_of_files_of_a_labelled_patient(tmp_path):
    """The volumes that are made bad below, as they are."""
    paths = {n: written(labelled(validation_cases()[1], n), tmp_path / f"{n}.nii.gz") for n in ("T1Gd", "FLAIR")}
    case = read_case(paths)
    assert case.record.challenge_ready and case.notices == ()


@pytest.mark.parametrize("name", ["T1", "T2", "FLAIR"])
def test_of_a_raw_volume_only_its_preparation_is_told(tmp_path, name):
    notices = read_case({name: written(raw(name), tmp_path / "scan.nii.gz")}).notices
    assert suspicions(notices) == []
    assert all(re.match("The skull was removed here|The head was turned", text) for text in notices)


def test_a_localiser(tmp_path):
    """Three planes through a real head, five slices each, in one stack."""
    voxels = sitk.GetArrayFromImage(raw("T1", atlas=True))
    side = max(voxels.shape)
    cube = np.pad(voxels, [((side - n) // 2, side - n - (side - n) // 2) for n in voxels.shape])
    middle = [int(np.argwhere(cube).mean(axis=0)[axis]) for axis in range(3)]
    stacks = [np.take(cube, middle[axis] + 12 * step, axis) for axis in range(3) for step in range(-2, 3)]
    image = sitk.GetImageFromArray(np.stack(stacks))
    image.SetSpacing((1.0, 1.0, 7.0))
    with pytest.raises(InputError, match=r"scout\.nii\.gz\): 15 slices in three stacks"):
        read_case({"T1": written(image, tmp_path / "scout.nii.gz")})


def test_three_slices(tmp_path):
    with pytest.raises(InputError, match=r"few\.nii\.gz: .* x 3 voxels; each axis needs at least 8"):
        read_case({"T2": written(raw("T2")[:, :, 10:13], tmp_path / "few.nii.gz")})


def test_a_diffusion_series(tmp_path):
    """As many volumes as a series has directions, in one file of four dimensions."""
    series = sitk.JoinSeries([raw("T2") * factor for factor in (1.0, 0.6, 0.5, 0.55)])
    with pytest.raises(InputError, match=r"dwi\.nii\.gz: 4-D with 4 volumes, as diffusion"):
        read_case({"T2": written(series, tmp_path / "dwi.nii.gz")})


def test_a_diffusion_volume_alone_is_told_by_its_coarse_voxels(tmp_path):
    image = raw("T2")
    size = [round(n * s / t) for n, s, t in zip(image.GetSize(), image.GetSpacing(), (1.8, 1.8, 5.0))]
    coarse = sitk.Resample(
        image, size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), (1.8, 1.8, 5.0), image.GetDirection(), 0.0
    )
    case = read_case({"T2": written(coarse, tmp_path / "trace.nii.gz")})
    assert any("trace.nii.gz" in text and "echo-planar" in text for text in case.notices)


def test_a_head_ct(tmp_path):
    """A real head in Hounsfield units: air outside, soft tissue by its rank, the brightest rim as bone."""
    image = raw("T1")
    voxels, head = sitk.GetArrayFromImage(image), find_foreground(image).mask
    inside = voxels[head]
    low, high = np.percentile(inside, (2, 98))
    units = np.where(head, 15 + 35 * np.clip((voxels - low) / (high - low), 0, 1), -1000.0)
    units[head & (voxels > np.percentile(inside, 96))] = 900.0
    with pytest.raises(InputError, match=r"head\.nii\.gz\): looks like a CT, not MRI"):
        read_case({"T1": written(array_to_image(units.astype(np.float32), image), tmp_path / "head.nii.gz")})


def test_a_head_ct_windowed_for_viewing(tmp_path):
    """The window of the brain: 5 mm of scalp, 6 mm of bone, and inside the real T1's own texture."""
    image = raw("T1")
    voxels = sitk.GetArrayFromImage(image)
    smooth = ndimage.gaussian_filter(voxels, 5.0 / np.array(image.GetSpacing()[::-1]))
    head = np.stack([ndimage.binary_fill_holes(one) for one in smooth > 0.3 * np.percentile(smooth, 90)])
    depth = ndimage.distance_transform_edt(head, sampling=image.GetSpacing()[::-1])
    units = 35 + 8 * np.clip(voxels / np.median(voxels[head]) - 1, -2, 2)
    units[depth <= 11], units[depth <= 5] = 900, -20
    units += np.random.default_rng(0).normal(0, 5, units.shape)
    window = np.where(head, np.clip(units, 0, 80), 0).astype(np.float32)
    path = written(array_to_image(window, image), tmp_path / "window.nii.gz")
    (told,) = [text for text in read_case({"T1": path}).notices if "as in a CT or a picture windowed" in text]
    assert told.startswith(f"T1 ({path}): ")


def test_half_a_raw_head(tmp_path):
    whole = raw("T1")
    path = written(whole[:, :, : whole.GetSize()[2] // 2], tmp_path / "half.nii.gz")
    (told,) = [text for text in read_case({"T1": path}).notices if "the field of view cuts through" in text]
    assert told.startswith(f"T1 ({path}): ") and re.search(r"\d+ cm2 at the top; \d+ ml are shown", told)


def test_a_header_that_knows_no_directions(tmp_path):
    path = tmp_path / "lost.nii"
    written(labelled(validation_cases()[1], "FLAIR"), path)
    data = bytearray(path.read_bytes())
    data[252:256] = struct.pack("<2h", 0, 0)
    path.write_bytes(data)
    (told,) = [text for text in read_case({"FLAIR": path}).notices if "says nothing of the orientation" in text]
    assert told.startswith(f"FLAIR ({path}): ") and "left and right too" in told


def test_half_a_brain(tmp_path):
    whole = raw("FLAIR", atlas=True)
    half = whole[: whole.GetSize()[0] // 2]
    case = read_case({"FLAIR": written(half, tmp_path / "half.nii.gz")})
    assert any("half.nii.gz" in text and "cuts through the brain" in text for text in case.notices)


def test_a_header_that_turns_the_head(tmp_path):
    wrong = sitk.Image(raw("FLAIR", atlas=True))
    wrong.SetDirection((np.reshape(wrong.GetDirection(), (3, 3)) * [1, -1, -1]).ravel().tolist())
    case = read_case({"FLAIR": written(wrong, tmp_path / "turned.nii.gz")})
    (told,) = [text for text in case.notices if "header does not fit" in text]
    assert "turned.nii.gz" in told and "left and right cannot be told" in told


def test_two_patients(tmp_path):
    first, second = (
        written(image, tmp_path / name)
        for image, name in (
            (raw("T1Gd", atlas=True), "anna_t1c.nii.gz"),
            (labelled(validation_cases()[1], "FLAIR"), "bert_flair.nii.gz"),
        )
    )
    case = read_case({"T1Gd": first, "FLAIR": second})
    assert any("anna_t1c" in text and "bert_flair" in text and "do not match" in text for text in case.notices)
