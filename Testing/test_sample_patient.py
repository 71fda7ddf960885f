"""The synthetic patient: the generator at a coarse resolution, and the files that are shipped."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from MSTKDSegmentLib.errors import OutputError
from scipy import ndimage

from training import sample_patient
from training.discovery import find_cases
from training.synthetic import anatomy, tumour

FOLDER = Path(__file__).parents[1] / "Resources" / "sample"
FILES = tuple(f"sample_{name}.nii.gz" for name in ("t1", "t1gd", "t2", "flair", "seg"))
COARSE_MM = 3.0

needs_template = pytest.mark.skipif(
    importlib.util.find_spec("nilearn") is None, reason="the MNI152 template comes with nilearn, which is not installed"
)


@pytest.fixture(scope="module")
def patient():
    return sample_patient.generate(7, (32.0, -24.0, 30.0), 21.0, oedema_extent_mm=18.0, spacing_mm=COARSE_MM)


def healthy_medians(patient, sequence):
    """Median of (white matter, whole brain) far from the tumour; white matter is the bright part of T1 there."""
    far = patient.brain & ~ndimage.binary_dilation(patient.labels > 0, iterations=3)
    t1 = patient.images["t1"]
    white = far & (t1 > np.percentile(t1[far], 75))
    image = patient.images[sequence]
    return float(np.median(image[white])), float(np.median(image[far]))


def label_median(patient, sequence, label):
    return float(np.median(patient.images[sequence][patient.labels == label]))


@needs_template
def test_same_seed_same_voxels_and_another_seed_another_patient(patient):
    again = sample_patient.generate(7, (32.0, -24.0, 30.0), 21.0, oedema_extent_mm=18.0, spacing_mm=COARSE_MM)
    other = sample_patient.generate(8, (32.0, -24.0, 30.0), 21.0, oedema_extent_mm=18.0, spacing_mm=COARSE_MM)
    assert np.array_equal(again.labels, patient.labels)
    for name, image in patient.images.items():
        assert np.array_equal(again.images[name], image)
        assert not np.array_equal(other.images[name], image)


@needs_template
def test_background_is_0_and_all_sequences_share_the_brain(patient):
    assert patient.labels.shape == (52, 80, 80)
    for image in patient.images.values():
        assert image.dtype == np.int16
        assert image.min() == 0
        assert np.array_equal(image > 0, patient.brain)
        assert 500 <= image.max() <= 12000
    assert 1100 < patient.brain.sum() * COARSE_MM**3 / 1000 < 1700  # ml
    assert not patient.brain[:, :5].any()
    assert not patient.brain[:, :, :5].any()


@needs_template
def test_labels_are_nested_in_the_brain(patient):
    assert set(np.unique(patient.labels)) == {0, tumour.NCR, tumour.ED, tumour.ET}
    whole, core = patient.labels > 0, np.isin(patient.labels, (tumour.NCR, tumour.ET))
    assert patient.brain[whole].all()
    assert ndimage.label(whole)[1] == 1
    # Necrosis lies inside the core: its neighbours are core, never oedema or healthy tissue.
    assert core[ndimage.binary_dilation(patient.labels == tumour.NCR)].all()


@needs_template
def test_volumes_are_those_of_a_glioblastoma(patient):
    volumes = patient.volumes_ml()
    assert 3 < volumes["NCR"] < 40
    assert 8 < volumes["ET"] < 50
    assert 30 < volumes["ED"] < 200
    # A core of mean radius 21 mm holds 4/3 pi 2.1^3 = 38.8 ml; the noise and the ventricles take or give some.
    assert 25 < volumes["NCR"] + volumes["ET"] < 52


@needs_template
def test_contrast_between_classes(patient):
    white_t1, _ = healthy_medians(patient, "t1")
    white_gd, _ = healthy_medians(patient, "t1gd")
    white_flair, brain_flair = healthy_medians(patient, "flair")
    white_t2, brain_t2 = healthy_medians(patient, "t2")
    assert label_median(patient, "t1gd", tumour.ET) > 1.3 * white_gd
    assert label_median(patient, "t1", tumour.ET) < white_t1
    assert label_median(patient, "t1gd", tumour.NCR) < white_gd
    assert label_median(patient, "t1", tumour.NCR) < white_t1
    assert label_median(patient, "flair", tumour.ED) > 1.4 * max(white_flair, brain_flair)
    assert label_median(patient, "t2", tumour.ED) > 1.1 * max(white_t2, brain_t2)


@needs_template
@pytest.mark.parametrize("side", ["left", "right"])
def test_side_and_radius_are_kept_where_the_rest_is_random(side):
    made = sample_patient.generate(3, side=side, core_radius_mm=12.0, spacing_mm=4.0)
    assert made.tumour.core_radius_mm == 12.0
    assert made.tumour.side == side
    x = ndimage.center_of_mass(made.labels > 0)[2] * 4.0
    # x grows towards the patient's left; the mid-sagittal plane lies near 119 mm.
    assert (x > 119) == (side == "left")


@needs_template
def test_impossible_parameters_are_refused():
    with pytest.raises(ValueError, match="side"):
        sample_patient.generate(1, side="top", spacing_mm=4.0)
    with pytest.raises(ValueError, match="hemisphere"):
        sample_patient.generate(1, (20.0, 0.0, 30.0), side="left", spacing_mm=4.0)
    with pytest.raises(ValueError, match="outside the brain"):
        sample_patient.generate(1, (90.0, 90.0, 90.0), 5.0, spacing_mm=4.0)
    with pytest.raises(ValueError, match="core_radius_mm"):
        sample_patient.generate(1, core_radius_mm=80.0, spacing_mm=4.0)


@needs_template
def test_mass_effect_moves_tissue_outwards_and_leaves_the_skull_alone():
    head = anatomy.healthy_anatomy(np.random.default_rng(0), 4.0)
    centre = head.pose.to_patient((32.0, -24.0, 30.0))
    pushed = tumour.push_aside(head, centre, 18.0)
    assert np.array_equal(pushed.brain, head.brain)
    total = pushed.csf + pushed.gm + pushed.wm
    assert np.allclose(total[pushed.brain], 1.0, atol=1e-5)
    side = [head.midline_mm > 0, head.midline_mm < 0]
    ventricle = [(m.csf > 0.6) & (m.depth_mm > 30) for m in (head, pushed)]
    # The ventricle beside the lesion shrinks, the other one hardly changes.
    near, far = ([int((v & s).sum()) for v in ventricle] for s in side)
    assert near[1] < 0.8 * near[0]
    assert abs(far[1] - far[0]) <= 0.25 * far[0]


@needs_template
def test_pose_is_invertible():
    pose = anatomy.Pose.sample(np.random.default_rng(5))
    assert np.allclose(pose.to_mni(pose.to_patient((31.0, -20.0, 12.0))), (31.0, -20.0, 12.0))


@needs_template
def test_written_files_have_the_brats_frame_and_no_time_stamp(patient, tmp_path):
    first = sample_patient.write(patient, tmp_path / "a")
    second = sample_patient.write(patient, tmp_path / "b")
    assert [p.name for p in first] == list(FILES)
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]
    assert first[0].read_bytes()[4:8] == b"\0\0\0\0"  # gzip's time field
    image = sitk.ReadImage(str(first[0]))
    assert np.allclose(image.GetOrigin(), (0, -239, 0))
    assert np.allclose(image.GetDirection(), np.eye(3).ravel())
    assert np.array_equal(sitk.GetArrayFromImage(image), patient.images["t1"])
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(FILES)


@needs_template
def test_a_cohort_is_written_once_and_found_as_labelled_cases(tmp_path, monkeypatch, capsys):
    made = []

    def coarse(seed):
        made.append(seed)
        return generate(seed, spacing_mm=4.0)

    generate = sample_patient.generate
    monkeypatch.setattr(sample_patient, "generate", coarse)
    assert sample_patient.main(["--out", str(tmp_path), "--seed", "3", "--count", "1"]) == 0
    assert sample_patient.main(["--out", str(tmp_path), "--seed", "3", "--count", "2"]) == 0
    assert made == [3, 4]
    assert "synthetic_00003 is there" in capsys.readouterr().out
    cases = find_cases(tmp_path, convention="brats2023")
    assert [case.name for case in cases] == ["synthetic_00003", "synthetic_00004"]
    assert all(len(case.images) == 4 for case in cases)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LICENSE.txt", "synthetic_00003", "synthetic_00004"]
    (tmp_path / "file").write_text("")
    assert sample_patient.main(["--out", str(tmp_path / "file"), "--count", "1"]) == OutputError.exit_code
    assert "file" in capsys.readouterr().err


def test_a_missing_template_is_explained(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(anatomy.InputError, match="pip install nilearn"):
        anatomy.template_folder()


def test_shipped_files_match_their_checksums_and_stay_small():
    listed = dict(re.findall(r"\| `(\S+\.nii\.gz)` \| `([0-9a-f]{64})` \|", (FOLDER / "README.md").read_text("utf-8")))
    assert sorted(listed) == sorted(FILES)
    for name, digest in listed.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest, name
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) <= 6e6
    assert "SYNTHETIC" in (FOLDER / "README.md").read_text("utf-8")
    assert "McConnell Brain Imaging Centre" in (FOLDER / "LICENSE.txt").read_text("utf-8")


def test_shipped_labels_and_geometry():
    seg = sitk.ReadImage(str(FOLDER / "sample_seg.nii.gz"))
    t1 = sitk.ReadImage(str(FOLDER / "sample_t1.nii.gz"))
    assert seg.GetSize() == t1.GetSize() == (240, 240, 155)
    assert np.allclose(seg.GetOrigin(), (0, -239, 0))
    labels = sitk.GetArrayFromImage(seg)
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    assert sitk.GetArrayFromImage(t1)[labels > 0].min() > 0
