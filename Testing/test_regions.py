"""Labels, nested regions, conventions, volumes, clean-up and terminology."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from MSTKDSegmentLib.errors import InputError
from MSTKDSegmentLib.regions import (
    CONVENTIONS,
    LABELS,
    NO_CLEAN_UP,
    REGIONS,
    CleanUp,
    bounding_box,
    components,
    from_convention,
    labels_to_regions,
    region_probabilities,
    regions_to_labels,
    remove_small_components,
    to_convention,
    volumes_ml,
    voxel_volume_ml,
)

GRIDS = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=6)
LABEL_MAPS = hnp.arrays(np.uint8, GRIDS, elements=st.integers(0, 3))
FEW = settings(deadline=None, max_examples=25)


@FEW
@given(LABEL_MAPS)
def test_labels_survive_the_way_through_regions(labels):
    regions = labels_to_regions(labels)
    np.testing.assert_array_equal(regions_to_labels(regions["WT"], regions["TC"], regions["ET"]), labels)


@FEW
@given(hnp.arrays(bool, st.tuples(st.just(3), *[st.integers(1, 5)] * 3)))
def test_any_masks_become_nested_inside_the_outer_one(masks):
    regions = labels_to_regions(regions_to_labels(*masks))
    np.testing.assert_array_equal(regions["WT"], masks[0])
    np.testing.assert_array_equal(regions["TC"], masks[0] & masks[1])
    np.testing.assert_array_equal(regions["ET"], masks[0] & masks[1] & masks[2])


def test_regions_by_hand():
    labels = np.array([[[0, 1, 2, 3]]], np.uint8)
    regions = labels_to_regions(labels)
    assert regions["WT"].tolist() == [[[False, True, True, True]]]
    assert regions["TC"].tolist() == [[[False, True, False, True]]]
    assert regions["ET"].tolist() == [[[False, False, False, True]]]


def test_structures_cover_the_same_labels_as_the_masks():
    labels = np.array([[[0, 1, 2, 3]]], np.uint8)
    for region in REGIONS:
        np.testing.assert_array_equal(labels_to_regions(labels)[region.key], np.isin(labels, region.labels))


@pytest.mark.parametrize("bad", [np.zeros((2, 2)), np.zeros((2, 2, 2)), np.full((1, 1, 1), 4), np.full((1, 1, 1), -1)])
def test_what_is_no_label_map_is_refused(bad):
    with pytest.raises(ValueError, match="labels must be"):
        labels_to_regions(bad)


def test_masks_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        regions_to_labels(np.zeros((1, 1, 2)), np.zeros((1, 1, 1)), np.zeros((1, 1, 1)))


@pytest.mark.parametrize("convention", ["brats2023", "brats2021", "msd", "brats2024"])
@FEW
@given(labels=LABEL_MAPS)
def test_conventions_round_trip(convention, labels):
    foreign = to_convention(labels, convention)
    assert set(np.unique(foreign)) <= set(CONVENTIONS[convention])
    np.testing.assert_array_equal(from_convention(foreign, convention), labels)


def test_conventions_by_hand():
    ours = np.array([[[0, 1, 2, 3]]], np.uint8)
    assert to_convention(ours, "brats2021").tolist() == [[[0, 1, 2, 4]]]
    assert to_convention(ours, "msd").tolist() == [[[0, 2, 1, 3]]]
    # The resection cavity of BraTS 2024 is no tumour; segmentations are often stored as floating point numbers.
    assert from_convention(np.array([[[0.0, 1.0, 2.0, 3.0, 4.0]]]), "brats2024").tolist() == [[[0, 1, 2, 3, 0]]]


@pytest.mark.parametrize(
    ("values", "convention", "named"),
    [([0, 3], "brats2021", "3"), ([4, 7], "brats2023", "4, 7"), ([0.5], "msd", "0.5"), ([float("nan")], "msd", "nan")],
)
def test_values_that_a_convention_lacks_are_named(values, convention, named):
    with pytest.raises(InputError, match=f"holds the values {named}, which the label convention '{convention}'"):
        from_convention(np.array([[values]]), convention)


def test_an_unknown_convention_is_named_with_the_known_ones():
    with pytest.raises(InputError, match="'brats1999'; choose one of brats2023, brats2021"):
        to_convention(np.zeros((1, 1, 1), np.uint8), "brats1999")


def test_region_probabilities_are_the_sums_of_their_labels():
    p = np.array([0.1, 0.2, 0.3, 0.4], np.float32).reshape(4, 1, 1, 1)
    result = region_probabilities(p)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result.ravel(), [0.9, 0.6, 0.4], rtol=1e-6)
    with pytest.raises(ValueError, match=r"\(4, D, H, W\)"):
        region_probabilities(p[:3])


def test_volumes_by_hand():
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[0, 0, :6], labels[1, 0, :4], labels[2, 0, :2] = 2, 1, 3
    expected = {"NCR": 0.012, "ED": 0.018, "ET": 0.006, "TC": 0.018, "WT": 0.036}
    assert volumes_ml(labels, voxel_volume_ml((1, 1, 3))) == pytest.approx(expected)


def test_a_sheared_voxel_has_the_volume_of_its_parallelepiped():
    # Unit columns, the third one 60 degrees from the x axis: sin 60 of the upright voxel's volume.
    direction = [1, 0, 0.5, 0, 1, 0, 0, 0, np.sqrt(0.75)]
    assert voxel_volume_ml((1, 2, 5), direction) == pytest.approx(0.01 * np.sqrt(0.75))
    assert voxel_volume_ml((1, 2, 5), -np.eye(3).ravel()) == pytest.approx(0.01)


def make_two_lesions() -> np.ndarray:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[2:12, 2:12, 2:12] = 2  # one lesion, 1000 voxels of WT ...
    labels[4:8, 4:8, 4:8] = 1  # ... with a core of 64 voxels ...
    labels[5:7, 5:7, 5:7] = 3  # ... of which 8 enhance
    labels[10, 10, 10] = 3  # a core of one enhancing voxel in the oedema
    labels[16:18, 16:18, 16:18] = 3  # a lesion of 8 enhancing voxels
    return labels


def test_small_components_take_the_label_around_them():
    labels = make_two_lesions()
    cleaned = remove_small_components(labels, CleanUp({"WT": 0.009}), 0.001)
    assert not cleaned[16:18, 16:18, 16:18].any()
    assert cleaned[10, 10, 10] == 3
    cleaned = remove_small_components(labels, CleanUp({"TC": 0.002}), 0.001)
    assert cleaned[10, 10, 10] == 2
    assert (cleaned[16:18, 16:18, 16:18] == 3).all()
    cleaned = remove_small_components(labels, CleanUp({"ET": 0.009}), 0.001)
    assert (cleaned == 3).sum() == 0
    assert (cleaned[5:7, 5:7, 5:7] == 1).all()
    assert (cleaned[4:8, 4:8, 4:8] == 1).all()


def test_a_component_exactly_at_the_threshold_stays():
    voxel_ml = 0.9 * 0.9 * 1.2 / 1000
    clean_up = CleanUp({"WT": 8 * voxel_ml})
    np.testing.assert_array_equal(remove_small_components(make_two_lesions(), clean_up, voxel_ml), make_two_lesions())


def test_too_little_enhancing_tumour_in_total_becomes_ncr():
    labels = make_two_lesions()  # 17 voxels of ET
    np.testing.assert_array_equal(remove_small_components(labels, CleanUp({}, 0.017), 0.001), labels)
    cleaned = remove_small_components(labels, CleanUp({}, 0.018), 0.001)
    np.testing.assert_array_equal(cleaned == 1, np.isin(labels, (1, 3)))


def test_diagonal_neighbours_are_one_component():
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = 2
    np.testing.assert_array_equal(remove_small_components(labels, CleanUp({"WT": 0.002}), 0.001), labels)
    _, counts = components(labels > 0)
    assert counts.tolist() == [0, 2]


@FEW
@given(LABEL_MAPS, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_cleaning_twice_equals_cleaning_once_and_adds_no_tumour(labels, wt, tc, et, total):
    before = labels.copy()
    clean_up = CleanUp({"WT": wt / 1000, "TC": tc / 1000, "ET": et / 1000}, total / 1000)
    cleaned = remove_small_components(labels, clean_up, 0.001)
    np.testing.assert_array_equal(labels, before)
    np.testing.assert_array_equal(remove_small_components(cleaned, clean_up, 0.001), cleaned)
    assert not (cleaned[labels == 0]).any()
    for region, mask in labels_to_regions(cleaned).items():
        assert (mask <= labels_to_regions(labels)[region]).all()
        counts = components(mask)[1]
        assert all(count * 0.001 >= clean_up.min_component_ml[region] - 1e-9 for count in counts[counts > 0])


def test_no_clean_up_changes_nothing_and_returns_a_copy():
    labels = make_two_lesions()
    cleaned = remove_small_components(labels, NO_CLEAN_UP, 0.001)
    np.testing.assert_array_equal(cleaned, labels)
    assert not np.shares_memory(cleaned, labels)
    nothing = np.zeros((3, 3, 3), np.uint8)
    assert not remove_small_components(nothing, CleanUp({"WT": 1}, 1), 0.001).any()


def test_clean_up_survives_json():
    clean_up = CleanUp({"WT": 0.5, "ET": 0.05}, 0.1)
    assert CleanUp.from_dict(json.loads(json.dumps(clean_up.to_dict()))) == clean_up
    assert CleanUp.from_dict({}) == NO_CLEAN_UP


@pytest.mark.parametrize(
    "data",
    [{"min_component_ml": {"ED": 1}}, {"min_component_ml": {"WT": -1}}, {"min_total_et_ml": float("nan")}, {"wt": 1}],
)
def test_a_clean_up_without_meaning_is_refused(data):
    with pytest.raises(ValueError, match="clean-up"):
        CleanUp.from_dict(data)


def test_bounding_box_by_hand():
    mask = np.zeros((5, 6, 7), bool)
    assert bounding_box(mask) is None
    mask[1, 2, 3] = mask[3, 2, 5] = True
    assert bounding_box(mask) == (slice(1, 4), slice(2, 3), slice(3, 6))


def test_terminology_as_slicer_serialises_it():
    entries = {item.key: item.terminology for item in (*LABELS, *REGIONS)}
    assert entries["ET"] == (
        "Segmentation category and type - DICOM master list~SCT^49755003^Morphologically Altered Structure"
        "~SCT^86049000^Neoplasm, Primary~^^~Anatomic codes - DICOM master list~SCT^12738006^Brain~^^"
    )
    assert "SCT^79654002^Edema" in entries["ED"]
    assert "SCT^6574001^Necrosis" in entries["NCR"]


def test_colours_are_the_papers():
    colours = {item.key: item.colour for item in (*LABELS, *REGIONS)}
    dominant = {key: tuple(channel > 0.5 for channel in colour) for key, colour in colours.items()}
    red, yellow, green = (True, False, False), (True, True, False), (False, True, False)
    assert dominant == {"ET": red, "NCR": yellow, "ED": green, "TC": yellow, "WT": green}
