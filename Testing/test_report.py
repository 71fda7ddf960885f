"""The report: the right slices, turned the right way, with the right numbers, and nothing that can break the page."""

from __future__ import annotations

import base64
import io
import itertools
import re

import numpy as np
import pytest
import SimpleITK as sitk
from html_pages import Reader
from MSTKDSegmentLib.errors import OutputError, RoleError
from MSTKDSegmentLib.regions import LABELS, volumes_ml, voxel_volume_ml
from MSTKDSegmentLib.report import write_report
from MSTKDSegmentLib.report_case import PLANES, OrientedCase
from MSTKDSegmentLib.report_picture import label_outlines, picture_png
from MSTKDSegmentLib.report_template import DISCLAIMER, format_ml

matplotlib_image = pytest.importorskip("matplotlib.image")

SHAPE = (20, 26, 24)  # z, y, x of an LPS volume
SPACING = (1.5, 1.0, 2.0)  # x, y, z
ORIENTATIONS = [
    "".join(letters) for axes in itertools.permutations(("RL", "AP", "IS")) for letters in itertools.product(*axes)
]


def make_head() -> np.ndarray:
    """An ellipsoid that is brighter towards the patient's left, back and top."""
    z, y, x = (np.linspace(-1, 1, size)[index] for size, index in zip(SHAPE, np.indices(SHAPE)))
    return np.where(x**2 + y**2 + z**2 < 0.9, 500 + 200 * x + 100 * y + 50 * z, 0).astype(np.int16)


def make_labels() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[8:14, 8:17, 13:20] = 2
    labels[10:13, 10:15, 15:18] = 3
    labels[11, 11:14, 16] = 1
    labels[4, 12, 6] = 2  # a small second lesion
    return labels


def make_image(array: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    image.SetOrigin((-17.25, -12.5, 40.0))
    return image


def stored(array: np.ndarray, orientation: str = "LPS") -> sitk.Image:
    return sitk.DICOMOrient(make_image(array), orientation)


def case_in(orientation: str) -> OrientedCase:
    labels, head = stored(make_labels(), orientation), stored(make_head(), orientation)
    return OrientedCase.from_arrays({"T1": sitk.GetArrayFromImage(head)}, sitk.GetArrayFromImage(labels), None, labels)


def report_arguments(**changes) -> dict:
    labels = changes.pop("labels", make_labels())
    arguments = {
        "images": {"T1Gd": make_head(), "FLAIR": make_head()},
        "labels": labels,
        "reference_image": make_image(labels),
        "volumes_ml": volumes_ml(labels, voxel_volume_ml(SPACING)),
        "title": "Case 1",
        "subset": ("T1Gd", "FLAIR"),
    }
    return {**arguments, **changes}


def read_html(tmp_path, **changes) -> str:
    write_report(tmp_path / "report.html", **report_arguments(**changes))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    return " ".join(" ".join(Reader(page).text).split())


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_any_storage_order_gives_the_same_case(orientation):
    case = case_in(orientation)
    np.testing.assert_array_equal(case.labels, make_labels())
    np.testing.assert_array_equal(case.images["T1"], make_head())
    assert case.spacing == SPACING[::-1]
    assert case.grid.GetOrigin() == pytest.approx((-17.25, -12.5, 40.0))


def test_any_storage_order_gives_the_same_picture():
    assert picture_png(case_in("LPS")) == picture_png(case_in("SAR")) == picture_png(case_in("PIR"))


def test_planes_are_radiological():
    """Right on the left of the picture, anterior on the left of sagittal slices, superior and anterior on top."""
    box = tuple(slice(0, size) for size in SHAPE)
    for plane, index in zip(PLANES, (10, 13, 12)):
        picture = plane.cut(make_head(), index, box).astype(float)
        down, across = np.gradient(picture)
        middle = (slice(picture.shape[0] // 2 - 2, picture.shape[0] // 2 + 2),) * 2
        brighter_right, brighter_down = across[middle].mean() > 0, down[middle].mean() > 0
        # The head is brighter towards L, P and S.
        assert brighter_right == (plane.right in "LPS")
        assert brighter_down == (plane.bottom in "LPS")
    assert [(p.left, p.right, p.top, p.bottom) for p in PLANES] == [tuple("RLAP"), tuple("RLSI"), tuple("APSI")]


def test_slices_go_through_most_of_the_largest_lesion():
    case = case_in("LPS")
    assert case.lesion_slices() == (11, 12, 16)  # a box is cut through its middle
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:9, 5, 5] = 2
    labels[6, 5:9, 5:8] = 2
    case = OrientedCase.from_arrays({"T1": make_head()}, labels, None, make_image(labels))
    assert case.lesion_slices() == (6, 5, 5)  # a T through its bars


def test_without_tumour_the_central_or_the_references_slices_are_shown():
    nothing = np.zeros(SHAPE, np.uint8)
    images = {"T1": make_head()}
    case = OrientedCase.from_arrays(images, nothing, None, make_image(nothing))
    assert case.lesion_slices() == (10, 13, 12)
    case = OrientedCase.from_arrays(images, nothing, make_labels(), make_image(nothing))
    assert case.lesion_slices() == case_in("LPS").lesion_slices()


def test_outlines_run_inside_their_label_in_true_proportions():
    labels = np.zeros((6, 8), np.uint8)
    labels[1:4, 2:7] = 3
    labels[2, 3] = 1
    (ncr_colour, ncr), (et_colour, et) = label_outlines(labels, (4.0, 2.0))
    assert (ncr_colour, et_colour) == (LABELS[0].colour, LABELS[2].colour)
    outer = max(et, key=lambda line: np.ptp(line[:, 0]))
    # The label spans x 4 to 14 and y 4 to 16 on the page; its outline stays within, closer than one voxel.
    assert 4 < outer[:, 0].min() < 6
    assert 12 < outer[:, 0].max() < 14
    assert 4 < outer[:, 1].min() < 8
    assert 12 < outer[:, 1].max() < 16
    np.testing.assert_allclose(ncr[0][:-1].mean(axis=0), (7, 10), atol=0.2)  # a single voxel keeps an outline
    for line in (*ncr, *et):
        np.testing.assert_array_equal(line[0], line[-1])


def test_png_shows_outlines_in_the_three_colours(tmp_path):
    write_report(tmp_path / "report.png", **report_arguments())
    picture = matplotlib_image.imread(tmp_path / "report.png")[..., :3]
    slices = picture[:, :1200]
    for item in LABELS:
        assert (np.abs(slices - item.colour).max(axis=-1) < 0.12).sum() > 20, item.key


def test_picture_keeps_physical_proportions():
    """A lesion of 24 x 24 x 24 mm is a square in all planes although its voxels are no cubes."""
    labels = np.zeros((30, 60, 40), np.uint8)
    labels[9:21, 18:42, 12:28] = 2
    head = np.full(labels.shape, 100, np.int16)
    case = OrientedCase.from_arrays({"T1": head}, labels, None, make_image(labels))
    picture = matplotlib_image.imread(io.BytesIO(picture_png(case)))[..., :3]
    green = np.abs(picture - LABELS[1].colour).max(axis=-1) < 0.15
    columns = np.flatnonzero(green.any(axis=0))
    squares = [group[[0, -1]] for group in np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)]
    edges = np.reshape(squares, (-1, 2))
    assert len(edges) == len(PLANES)
    for left, right in edges:
        rows = np.flatnonzero(green[:, left : right + 1].any(axis=1))
        assert (rows[-1] - rows[0]) / (right - left) == pytest.approx(1, abs=0.06)


def test_html_is_one_page_without_links_to_the_outside(tmp_path):
    write_report(tmp_path / "report.html", **report_arguments())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    reader = Reader(page)
    assert not re.search(r"https?:|//|<script|<link|@import|url\(", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page))
    (picture,) = reader.pictures
    data = base64.b64decode(picture.split("base64,")[1], validate=True)
    assert matplotlib_image.imread(io.BytesIO(data)).shape[1] > 1000
    assert DISCLAIMER in " ".join(reader.text)


def test_html_says_what_was_found_and_with_what(tmp_path):
    text = read_html(tmp_path, messages=["T2 is missing."], provenance={"Model": "compact", "Device": "CPU"})
    assert "Sequences used: T1Gd, FLAIR (without T1, T2)" in text
    assert "2 separate lesions; slices through the largest (1.1 ml)." in text
    assert "T2 is missing." in text
    assert "Model compact Device CPU" in text
    # 45 voxels of core, 3 of them NCR, and 379 in all, of 3 mm3 each.
    assert "NCR Necrotic and non-enhancing tumour core 0.009" in text
    assert "ET Enhancing tumour 0.126" in text
    assert "TC Tumour core 0.135" in text
    assert "WT Whole tumour 1.1" in text


def test_html_compares_with_a_reference(tmp_path):
    text = read_html(tmp_path, ground_truth=np.roll(make_labels(), 1, axis=0))
    assert "ml reference ml Dice" in text
    assert re.search(r"ET Enhancing tumour 0\.126 0\.126 0\.\d{3}", text)


def test_no_tumour_is_said(tmp_path):
    assert "No tumour is marked; central slices are shown." in read_html(tmp_path, labels=np.zeros(SHAPE, np.uint8))


def test_foreign_text_is_escaped_and_never_a_formula(tmp_path):
    evil = "<script>alert('x')</script> & $\\frac{$ {title}"
    changes = {"title": evil, "messages": [evil], "provenance": {evil: evil}}
    assert evil in read_html(tmp_path, **changes)
    assert "<script" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    write_report(tmp_path / "report.png", **report_arguments(**changes))


@pytest.mark.parametrize("value", [0, 7, np.nan])
def test_a_constant_image_is_drawn(tmp_path, value):
    image = np.full(SHAPE, value, np.float32)
    write_report(tmp_path / "report.png", **report_arguments(images={"T1": image}))


def test_existing_reports_and_unknown_endings_are_refused(tmp_path):
    (tmp_path / "report.png").write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"):
        write_report(tmp_path / "report.png", **report_arguments())
    with pytest.raises(OutputError, match=r"use \.html, \.png"):
        write_report(tmp_path / "report.pdf", **report_arguments())
    write_report(tmp_path / "report.png", **report_arguments(), overwrite=True)
    assert [item.name for item in tmp_path.iterdir()] == ["report.png"]
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_unusable_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one image"):
        write_report(tmp_path / "r.png", **report_arguments(images={}))
    with pytest.raises(ValueError, match="grid"):
        write_report(tmp_path / "r.png", **report_arguments(images={"T1": make_head()[1:]}))
    with pytest.raises(RoleError):
        write_report(tmp_path / "r.png", **report_arguments(subset=("CT",)))
    assert list(tmp_path.iterdir()) == []


def test_matplotlibs_global_state_is_left_alone(tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    write_report(tmp_path / "r.png", **report_arguments())
    assert pyplot.get_fignums() == before


@pytest.mark.parametrize(("volume", "text"), [(0, "0.0"), (0.0314, "0.031"), (1.26, "1.3"), (124.78, "124.8")])
def test_small_volumes_keep_their_digits(volume, text):
    assert format_ml(volume) == text
