"""Segmentations of any maker as our labels: values, names, terminology, colours, nested or exclusive, any grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from MSTKDSegmentLib.errors import GeometryError, InputError
from MSTKDSegmentLib.geometry import array_to_image
from MSTKDSegmentLib.regions import CONVENTIONS, LABELS, REGIONS, labels_to_regions, to_convention
from MSTKDSegmentLib.review.label_maps import (
    Segment,
    label_map_from_segments,
    label_map_from_values,
    on_grid,
    read_label_map,
)
from MSTKDSegmentLib.segmentation_io import write_segmentation
from phantom import OBLIQUE, blank_image, dice, ellipsoid, voxel_points

CENTRE = np.array([12.0, -20.0, 31.0])
PATIENTS = Path(__file__).parents[1] / "data"


def tumour(image: sitk.Image, radii=(14.0, 9.0, 5.0)) -> np.ndarray:
    """Oedema around a necrotic core around enhancing tumour: balls of these radii (mm) on the voxels of `image`."""
    points = voxel_points(image)
    labels = np.zeros(points.shape[:3], np.uint8)
    for radius, label in zip(radii, (2, 1, 3)):
        labels[ellipsoid(points, CENTRE, radius)] = label
    return labels


@pytest.fixture(scope="module")
def image() -> sitk.Image:
    return blank_image(extent=48.0)


@pytest.fixture(scope="module")
def labels(image) -> np.ndarray:
    return tumour(image)


def in_convention(labels: np.ndarray, convention: str) -> np.ndarray:
    values = {ours: theirs for theirs, ours in CONVENTIONS[convention].items() if ours}
    result = np.zeros_like(labels)
    for ours, theirs in values.items():
        result[labels == ours] = theirs
    return result


@pytest.mark.parametrize("convention", list(CONVENTIONS))
def test_values_are_recognised(convention, image, labels):
    values = in_convention(labels, convention)
    if convention == "brats2024":
        values[0, 0, :3] = 4  # the resection cavity is no tumour
    found = label_map_from_values(values, image, "case.nii.gz")
    assert np.array_equal(found.labels, labels)
    assert found.known == ("WT", "TC", "ET")
    assert bool(found.doubts) == (convention == "msd")


def test_a_tumour_without_enhancement_is_brats(image, labels):
    values = np.where(labels == 3, 1, labels)
    assert np.array_equal(label_map_from_values(values, image, "x").labels, values)
    assert not label_map_from_values(values, image, "x").doubts
    # As in the cases where the necrosis touches the brain around: two values say nothing of which lies outermost.
    values = np.select([values == 1, values == 2], [2, 1])
    found = label_map_from_values(values, image, "x")
    assert np.array_equal(found.labels, values)
    assert "x: its value 1 lies around 2 and was taken as necrotic core" in found.doubts[0]


def test_a_decathlon_tumour_without_necrosis_leaves_a_doubt(image, labels):
    values = np.select([labels == 2, labels > 0], [1, 3])
    found = label_map_from_values(values, image, "x")
    assert np.array_equal(found.labels, values)
    assert "its value 1 lies around 3" in found.doubts[0]
    assert np.array_equal(label_map_from_values(values, image, "x", "msd").labels == 2, values == 1)


def test_no_tumour_is_known_to_be_none(image, labels):
    found = label_map_from_values(np.zeros_like(labels), image, "x")
    assert not found.labels.any() and found.known == ("WT", "TC", "ET") and not found.doubts


@pytest.mark.parametrize("value", [1, 255])
def test_a_mask_says_nothing_of_the_core(value, image, labels):
    found = label_map_from_values((labels > 0) * value, image, "mask.nii.gz")
    assert found.known == ("WT",) and np.array_equal(found.labels > 0, labels > 0)
    assert "mask.nii.gz" in found.doubts[0] and "whole tumour" in found.doubts[0]


@pytest.mark.parametrize("values", [[1, 7], [0.5, 1], [-1, 2]])
def test_foreign_values_are_refused_with_their_names(values, image, labels):
    foreign = np.zeros(labels.shape, np.float32)
    foreign[0, 0, : len(values)] = values
    with pytest.raises(InputError, match=r"x: it holds the values .*Give the tumour's segmentation"):
        label_map_from_values(foreign, image, "x")


def test_a_convention_that_is_said_is_kept(image, labels):
    assert np.array_equal(label_map_from_values(labels, image, "x", "msd").labels == 2, labels == 1)
    with pytest.raises(InputError, match="x: The segmentation holds the values 4"):
        label_map_from_values(in_convention(labels, "brats2021"), image, "x", "brats2023")


def test_a_2021_map_without_all_labels_leaves_a_doubt(image, labels):
    values = in_convention(np.where(labels == 1, 3, labels), "brats2021")  # 2 and 4
    found = label_map_from_values(values, image, "x")
    assert (found.labels == 3).any() and "resection cavity" in found.doubts[0]


# --- segments --------------------------------------------------------------------------------------------------------


def exclusive(labels: np.ndarray, names=("NCR", "ED", "ET"), **more) -> list[Segment]:
    return [Segment(name, labels == value, **more) for name, value in zip(names, (1, 2, 3))]


NAMES = [
    ("NCR", "ED", "ET"),
    ("Necrotic core", "Peritumoral edema", "Enhancing tumor"),
    ("non-enhancing tumour", "oedema / infiltration", "Enhancing"),
    ("NET", "SNFH", "ET"),
    ("NETC", "SNFH", "ET"),
    ("unenhancing part", "edema", "enhancing part"),
    tuple(one.title for one in LABELS),
]


@pytest.mark.parametrize("names", NAMES)
def test_exclusive_segments_by_name(names, image, labels):
    found = label_map_from_segments(exclusive(labels, names), image, "x")
    assert np.array_equal(found.labels, labels) and found.how == "segments by name" and not found.doubts


@pytest.mark.parametrize("names", [("WT", "TC", "ET"), ("whole tumor", "tumor core", "enhancing core")])
def test_nested_segments_by_name_in_any_order(names, image, labels):
    masks = labels_to_regions(labels)
    segments = [Segment(name, masks[key]) for name, key in zip(names, ("WT", "TC", "ET"))]
    for order in (segments, segments[::-1]):
        assert np.array_equal(label_map_from_segments(order, image, "x").labels, labels)


def test_segments_of_our_own_names_and_ids(image, labels):
    for structures, masks in (
        (LABELS, [labels == n for n in (1, 2, 3)]),
        (REGIONS, labels_to_regions(labels).values()),
    ):
        segments = [Segment("Segment_1", mask, identifier=one.key) for one, mask in zip(structures, masks)]
        assert np.array_equal(label_map_from_segments(segments, image, "x").labels, labels)


def test_segments_without_names_by_terminology(image, labels):
    segments = [
        Segment(f"Segment_{n}", labels == one.labels[0], "", one.colour, f"TerminologyEntry:{one.terminology}|")
        for n, one in enumerate(LABELS)
    ]
    found = label_map_from_segments(segments, image, "x")
    assert np.array_equal(found.labels, labels) and found.how == "segments by terminology"


def test_segments_without_names_by_colour_nested_or_not(image, labels):
    masks = labels_to_regions(labels)
    alone = [Segment("a", labels == one.labels[0], colour=one.colour) for one in LABELS]
    nested = [Segment("b", masks[one.key], colour=one.colour) for one in REGIONS]
    for segments in (alone, nested):
        found = label_map_from_segments(segments, image, "x")
        assert np.array_equal(found.labels, labels) and found.how == "segments by colour"


def test_a_cavity_and_strangers_are_left_out_and_told(image, labels):
    corner = np.zeros(labels.shape, bool)
    corner[:2, :2, :2] = True
    segments = [*exclusive(labels), Segment("Resection cavity", corner), Segment("ventricles", corner)]
    found = label_map_from_segments(segments, image, "x")
    assert np.array_equal(found.labels, labels)
    assert found.doubts == ("x: the segments ventricles are no part of a tumour that is known, and left out.",)


def test_what_is_not_drawn_is_not_known(image, labels):
    only = label_map_from_segments([Segment("Whole tumour", labels > 0)], image, "x")
    assert only.known == ("WT",)
    for names, known in (
        (("ET",), ("ET",)),
        (("ED", "ET"), ("WT", "TC", "ET")),
        (("WT", "ET"), ("WT", "ET")),
        (("WT", "TC"), ("WT", "TC")),
        (("NCR", "ET"), ("TC", "ET")),
        (("ED",), ("WT",)),
    ):
        segments = [Segment(name, labels == 3) for name in names]
        assert label_map_from_segments(segments, image, "x").known == known
    unnamed = label_map_from_segments([Segment("Segment_1", labels > 0)], image, "x")
    assert unnamed.known == ("WT",) and "taken as the whole tumour" in unnamed.doubts[0]
    # What was not understood may be the part that is missing.
    part = label_map_from_segments([Segment("tumor", labels == 3), Segment("edema", labels == 2)], image, "x")
    assert part.known == () and "tumor" in part.doubts[0]
    assert label_map_from_segments([Segment("", labels > 0)], image, "x").doubts == (
        "x: its only segment (number 1 (unnamed)) was taken as the whole tumour.",
    )
    for name in ("whole brain", "cortex score", "brain"):
        with pytest.raises(InputError, match=f"none of its segments \\({name}, left\\)"):
            label_map_from_segments([Segment(name, labels > 0), Segment("left", labels > 1)], image, "x")
    core = label_map_from_segments([Segment("tumor core without necrosis", labels == 3)], image, "x")
    assert core.known == ("TC",)
    with pytest.raises(InputError, match="rename them"):
        label_map_from_segments([Segment("left", labels > 0), Segment("right", labels > 1)], image, "x")


# --- files and grids -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("segments", ["labels", "regions"])
def test_what_we_write_is_read_back(segments, image, labels, tmp_path):
    path = write_segmentation(tmp_path / "a.seg.nrrd", labels, image, segments=segments)
    found = read_label_map(path)
    assert np.array_equal(found.labels, labels) and found.how == "segments by name"
    np.testing.assert_allclose(found.image.GetOrigin(), image.GetOrigin())


def test_a_plain_label_map_in_nrrd_and_nifti(image, labels, tmp_path):
    for name in ("a.nrrd", "b.nii.gz", "c.mha"):
        write_segmentation(tmp_path / name, labels, image, label_convention="brats2021")
        assert np.array_equal(read_label_map(tmp_path / name).labels, labels)


def test_a_segmentation_that_slicer_cropped_to_a_few_voxels_is_read(image, labels, tmp_path):
    """Slicer saves no more than the segments' extent, which may be smaller than any MRI volume."""
    small = np.zeros_like(labels)
    small[20:23, 20:24, 20:25] = 3
    write_segmentation(tmp_path / "whole.seg.nrrd", small, image)
    whole = sitk.ReadImage(str(tmp_path / "whole.seg.nrrd"))
    cropped = whole[20:25, 20:24, 20:23]
    for key in whole.GetMetaDataKeys():
        if key.startswith("Segment"):
            cropped.SetMetaData(key, whole.GetMetaData(key))
    sitk.WriteImage(cropped, str(tmp_path / "cropped.seg.nrrd"))
    found, notices = on_grid(read_label_map(tmp_path / "cropped.seg.nrrd"), image)
    assert np.array_equal(found, small) and not notices


def test_another_grid_is_resampled_by_place(image, labels):
    other = blank_image(OBLIQUE, (0.8, 0.9, 1.1), 60.0)
    found, notices = on_grid(label_map_from_values(tumour(other), other, "x"), image)
    for key, mask in labels_to_regions(found).items():
        assert dice(mask, labels_to_regions(labels)[key]) > 0.93
    assert not notices


def test_what_lies_outside_is_told_or_refused(image, labels):
    label_map = label_map_from_values(labels, image, "truth.nii.gz")
    low = image[:, :, : int(labels.any((1, 2)).argmax()) + 10]
    found, notices = on_grid(label_map, low, "T1Gd")
    assert 0 < found.sum() < labels.sum()
    assert "truth.nii.gz" in notices[0] and "T1Gd" in notices[0]
    away = sitk.Image(image)
    away.SetOrigin((900.0, 0.0, 0.0))
    with pytest.raises(GeometryError, match=r"truth\.nii\.gz: its tumour lies outside T1Gd"):
        on_grid(label_map, away, "T1Gd")


def test_a_tumour_thinner_than_the_slices_is_not_taken_for_another_patients(image):
    thin = np.zeros(image.GetSize()[::-1], np.uint8)
    thin[23:25, 20:26, 20:26] = 3
    thick = sitk.Image([48, 48, 6], sitk.sitkFloat32)
    thick.SetSpacing((1.0, 1.0, 8.0))
    x, y, z = image.GetOrigin()
    thick.SetOrigin((x, y, z + 3.0))  # slices at 3, 11, 19, 27: none meets 23 and 24
    found, notices = on_grid(label_map_from_values(thin, image, "truth.nii.gz", "brats2023"), thick, "T1Gd")
    assert not found.any() and "falls between the voxels of T1Gd" in notices[0]


def test_values_that_are_whole_but_for_rounding(image, labels):
    assert np.array_equal(label_map_from_values(labels * np.float32(0.9999), image, "x").labels, labels)
    noise = np.random.default_rng(0).random(labels.shape).astype(np.float32)
    with pytest.raises(InputError, match=r"and \d+ more; known are") as refused:
        label_map_from_values(noise, image, "x")
    assert len(str(refused.value)) < 400


def test_necrosis_and_oedema_that_lie_equally_far_out_leave_a_doubt(image):
    labels = np.zeros(image.GetSize()[::-1], np.uint8)
    labels[10:20, 10:20, 10:20], labels[10:20, 10:20, 20:30], labels[14:16, 14:16, 19:21] = 1, 2, 3
    found = label_map_from_values(labels, image, "x")
    assert np.array_equal(found.labels, labels) and "equally far out" in found.doubts[0]


def test_a_flat_segmentation_is_refused(tmp_path):
    flat = sitk.Image([8, 8], sitk.sitkUInt8)
    flat.SetMetaData("Segment0_ID", "ET")
    sitk.WriteImage(flat, str(tmp_path / "flat.seg.nrrd"))
    with pytest.raises(InputError, match=r"flat\.seg\.nrrd.*2-D"):
        read_label_map(tmp_path / "flat.seg.nrrd")


def test_damaged_files_are_named(tmp_path):
    (tmp_path / "a.seg.nrrd").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.seg\.nrrd: the file is empty"):
        read_label_map(tmp_path / "a.seg.nrrd")
    with pytest.raises(InputError, match="no such file"):
        read_label_map(tmp_path / "b.seg.nrrd")
    (tmp_path / "c.seg.nrrd").write_bytes(b"NRRD0004\nnonsense\n\n")
    with pytest.raises(InputError, match=r"c\.seg\.nrrd"):
        read_label_map(tmp_path / "c.seg.nrrd")


@given(st.lists(st.sampled_from([0, 1, 2, 3]), min_size=27, max_size=27))
def test_any_labels_in_segments_come_back(values):
    labels = np.reshape(values, (3, 3, 3)).astype(np.uint8)
    image = sitk.Image(3, 3, 3, sitk.sitkUInt8)
    assert np.array_equal(label_map_from_segments(exclusive(labels), image, "x").labels, labels)
    masks = labels_to_regions(labels)
    nested = [Segment(key, mask) for key, mask in masks.items()]
    assert np.array_equal(label_map_from_segments(nested, image, "x").labels, labels)
    assert array_to_image(to_convention(labels, "brats2021"), image).GetSize() == (3, 3, 3)


@pytest.mark.skipif(not PATIENTS.is_dir(), reason="the labelled patients are not unpacked in data/")
def test_the_convention_of_real_patients_is_recognised():
    paths = sorted(PATIENTS.glob("*/*_seg.nii.gz"))[::8]
    hows = {read_label_map(path).how for path in paths}
    assert len(paths) >= 5 and hows <= {"BraTS up to 2021 (1 NCR, 2 ED, 4 ET)", "BraTS 2023 (1 NCR, 2 ED, 3 ET)"}
