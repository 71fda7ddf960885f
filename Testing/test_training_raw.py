"""The raw patient: what `python -m training raw` measures, on a made-up pair and on the real one where it lies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("torch")
pytest.importorskip("monai")

from MSTKDSegmentLib.alignment import rigid_matrix
from MSTKDSegmentLib.errors import InputError
from MSTKDSegmentLib.pipeline import Segmenter
from MSTKDSegmentLib.registration import as_transform, centre
from real_patients import RAW, raw

from training.__main__ import main
from training.raw import Atlas, measure

SAMPLE = Path(__file__).resolve().parents[1] / "Resources" / "sample"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """The sample patient on 2 mm voxels as "atlas", and turned and moved as "raw"."""
    atlas, patient = tmp_path_factory.mktemp("atlas"), tmp_path_factory.mktemp("raw") / "anna"
    patient.mkdir()
    for name in ("t1gd", "flair", "seg"):
        image = sitk.ReadImage(str(SAMPLE / f"sample_{name}.nii.gz"), sitk.sitkFloat32)
        image = sitk.Shrink(image, [2, 2, 2]) if name == "seg" else sitk.BinShrink(image, [2, 2, 2])
        sitk.WriteImage(image, str(atlas / f"{name}.nii.gz"))
        if name != "seg":
            place = np.array([6.0, -4.0, 3.0, 0.0, 5.0, -6.0])
            moved = rigid_matrix(place, centre(image, sitk.GetArrayFromImage(image) > 0))
            resampled = sitk.Resample(image, image, as_transform(moved), sitk.sitkLinear, 0.0)
            # Interpolation leaves a rim of small values around the brain, which would count as brain.
            inside = sitk.Resample(image > 0, image, as_transform(moved), sitk.sitkNearestNeighbor, 0)
            resampled = sitk.Mask(resampled, inside)
            sitk.WriteImage(resampled, str(patient / f"{name}.nii.gz"))
    return patient, atlas


def test_the_reference_comes_back_to_where_the_raw_patient_lies(folders):
    """The shipped student finds the moved tumour; without the way back the two would lie 8 mm apart."""
    found = measure(*folders, Segmenter(device="cpu"))
    assert found["patient"] == "anna" and found["reference"] == "T1Gd" and found["sequences"] == ["T1Gd", "FLAIR"]
    assert found["dice"]["WT"] > 0.85 and found["brain_dice"] > 0.95
    assert found["reference_volumes_ml"]["WT"] == pytest.approx(135.4, rel=0.05)
    assert found["brain_ml"] == pytest.approx(found["reference_brain_ml"], rel=0.03)
    assert set(found["registrations"]) == {"FLAIR"}


def test_figures_are_written_with_what_made_them(folders, tmp_path, random_bundle):
    out = tmp_path / "raw.json"
    words = ["raw", "--patient", folders[0], "--atlas", folders[1], "--bundle", random_bundle, "--device", "cpu"]
    assert main([*map(str, words), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert {"dice", "brain_dice", "weights_sha256", "hardware", "versions", "commit", "seconds"} <= set(found)


def test_an_atlas_without_the_sequence_or_with_its_skull_is_refused(folders, tmp_path):
    with pytest.raises(InputError, match="holds no T2 or no segmentation"):
        Atlas.read(folders[1], "T2")
    for name in ("t1gd", "seg"):
        image = sitk.ReadImage(str(folders[1] / f"{name}.nii.gz"))
        if name == "t1gd":
            noise = np.random.default_rng(0).normal(50, 9, image.GetSize()[::-1]).astype(np.float32)
            other = sitk.GetImageFromArray(noise + sitk.GetArrayFromImage(image))
            other.CopyInformation(image)
            image = other
        sitk.WriteImage(image, str(tmp_path / f"{name}.nii.gz"))
    with pytest.raises(InputError, match=r"t1gd\.nii\.gz: still has its skull"):
        Atlas.read(tmp_path, "T1Gd")


def test_the_real_raw_patient():
    """From the scanner's files to the tumour: what the product promises."""
    raw("T1")  # skips where it is not there
    found = measure(RAW, RAW / "atlas_space", Segmenter(device="cpu"))
    assert found["dice"]["WT"] >= 0.70 and found["brain_dice"] >= 0.93
    assert all(one["similarity_after"] > one["similarity_before"] for one in found["registrations"].values())
