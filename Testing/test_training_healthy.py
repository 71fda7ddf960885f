"""Brains without a tumour: the mirror, which patients it can be made of, and what is counted."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("monai", reason="training needs the `train` extra")

from MSTKDSegmentLib.decision import NO_DECISION, Decision  # noqa: E402
from MSTKDSegmentLib.errors import InputError  # noqa: E402
from MSTKDSegmentLib.regions import CleanUp  # noqa: E402

from training.healthy import Invented, invented, invented_in_real, real_volumes, summary_of  # noqa: E402
from training.mirror import mirrored, symmetry_plane, without_tumour  # noqa: E402


def brain(width=40, middle=17):
    """(24, 30, width): an ellipsoid about column `middle`, brighter towards the front, its left half marked."""
    z, y, x = np.meshgrid(np.arange(24), np.arange(30), np.arange(width), indexing="ij")
    inside = ((z - 12) / 10) ** 2 + ((y - 15) / 13) ** 2 + ((x - middle) / 12) ** 2 < 1
    return (inside * (1 + y / 30)).astype(np.float32)


def test_the_mirror_swaps_columns_about_its_plane():
    row = np.arange(6.0).reshape(1, 1, 6)
    assert mirrored(row, 4).ravel().tolist() == [4, 3, 2, 1, 0, 0]
    assert mirrored(row, 5).ravel().tolist() == [5, 4, 3, 2, 1, 0]


def test_the_plane_of_symmetry_is_found_although_a_piece_is_missing():
    mask = brain() != 0
    mask[5:15, 5:15, 22:] = False
    assert symmetry_plane(mask) == pytest.approx(2 * 17, abs=1)


def test_a_tumour_in_one_half_is_replaced_by_the_other_half():
    images = np.stack([brain()] * 4)
    labels = np.zeros(images.shape[1:], np.uint8)
    labels[10:14, 12:18, 22:26] = 2
    ill = images.copy()
    ill[:, labels > 0] = 9.0
    healthy = without_tumour(ill, labels)
    assert healthy is not None
    assert np.allclose(healthy, images)
    labels[10:14, 12:18, 8:12] = 2
    assert without_tumour(ill, labels) is None
    assert without_tumour(ill, np.zeros_like(labels)) is None


def test_the_place_alone_can_be_replaced_and_the_halves_stay_different():
    images = np.stack([brain()] * 4)
    images[:, 12, 5, 13] += 5.0  # something that the ill half does not have
    images[:, 12, 5, 19] += 5.0  # and something of its own, far from the tumour
    labels = np.zeros(images.shape[1:], np.uint8)
    labels[11:13, 19:21, 22:24] = 2
    ill = images.copy()
    ill[:, labels > 0] = 9.0
    healed = without_tumour(ill, labels, place_only=True)
    assert healed is not None
    assert np.allclose(healed, images)
    whole = without_tumour(ill, labels)
    assert whole is not None
    assert not np.allclose(whole, images)
    assert ill[0, 11, 19, 22] == 9.0  # the input is left as it was


def test_intensities_go_over_smoothly_around_a_replaced_place():
    images = np.stack([brain()] * 4)
    ill = images.copy()
    right = np.arange(images.shape[3]) > 17
    ill[:, (images[0] != 0) & right] += 1.0  # the ill half is brighter as a whole
    labels = np.zeros(images.shape[1:], np.uint8)
    labels[12, 15, 23] = 2
    healed = without_tumour(ill, labels, place_only=True)
    assert healed is not None
    added = (healed - images)[0, 12, 15, 18:29]
    assert added[5] == pytest.approx(0, abs=1e-6)
    assert added[2:9] == pytest.approx(np.zeros(7), abs=1e-6)  # MARGIN_VOXELS on both sides
    assert added[9] == pytest.approx(1 / 11, abs=1e-6)  # one of the eleven columns that are averaged is the own one
    assert (healed[images == 0] == 0).all()


class Sure(torch.nn.Module):
    """Says that every voxel is enhancing with probability 0.3 and necrotic with 0.1."""

    class config:  # noqa: N801
        preset, classes, stem_stride = "compact", 4, 1

    def forward(self, x, availability):
        p = torch.tensor([0.6, 0.1, 0.0, 0.3]).clamp_min(1e-6).log()
        return p.reshape(1, 4, 1, 1, 1).expand(1, 4, *x.shape[2:])


def test_what_is_counted_follows_thresholds_and_clean_up():
    images = np.stack([brain()] * 4)
    voxels = int(np.count_nonzero(images[0]))
    t1 = (("T1",),)
    nothing = invented(Sure(), "a", images, NO_DECISION, CleanUp(), "cpu", t1)
    assert nothing[0].volumes_ml == {"WT": 0, "TC": 0, "ET": 0}
    low = Decision({"T1": {"WT": 0.2, "TC": 0.35, "ET": 0.5}})
    found = invented(Sure(), "a", images, low, CleanUp(), "cpu", t1)
    assert found[0].volumes_ml == {"WT": voxels / 1000, "TC": voxels / 1000, "ET": 0}
    cleaned = invented(Sure(), "a", images, low, CleanUp({"WT": 1000.0}), "cpu", t1)
    assert cleaned[0].volumes_ml["WT"] == 0
    doubted = invented(Sure(), "a", images, Decision(low.thresholds, {}, {"T1": 0.6}), CleanUp(), "cpu", t1)
    assert doubted[0].volumes_ml == {"WT": 0, "TC": 0, "ET": 0}


def test_the_summary_is_by_subset_and_region():
    def one(case, volume):
        return Invented(case, "T1", {"WT": volume, "TC": 0.0, "ET": 0.0})

    table = summary_of([one("a", 0.0), one("b", 0.4), one("c", 3.0)])
    assert table["T1"]["WT"] == {
        "median_ml": 0.4,
        "largest_ml": 3.0,
        "share_with_nothing": pytest.approx(1 / 3, abs=1e-3),
    }
    assert table["T1"]["ET"]["share_with_nothing"] == 1.0


def test_real_volumes_are_named_by_their_sequence(tmp_path):
    file = tmp_path / "brain=1.nii.gz"
    file.write_bytes(b"")
    assert real_volumes([f"T1={file}"]) == [("T1", file)]
    with pytest.raises(InputError, match="T1, T1Gd, T2, FLAIR"):
        real_volumes([f"PD={file}"])
    with pytest.raises(InputError, match="SEQUENCE=FILE"):
        real_volumes(["T1"])
    with pytest.raises(InputError, match=r"no file .*other\.nii"):
        real_volumes([f"T1={tmp_path / 'other.nii'}"])


def test_a_real_volume_is_segmented_alone_and_what_is_left_out_is_counted_too(tmp_path):
    asked = []

    def segment(sources):
        asked.append(sources)
        return SimpleNamespace(volumes_ml={"WT": 0.0, "TC": 0.0, "ET": 0.0, "ED": 0.0}, doubted_ml=17.0)

    found = invented_in_real(SimpleNamespace(segment=segment), "T1", tmp_path / "mni.nii.gz")
    assert asked == [{"T1": tmp_path / "mni.nii.gz"}]
    assert found == {
        "file": "mni.nii.gz",
        "sequence": "T1",
        "volumes_ml": {"WT": 0.0, "TC": 0.0, "ET": 0.0},
        "doubted_ml": 17.0,
    }
