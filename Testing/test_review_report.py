"""The review's page on one patient and on many: right slices, right colours, right words, nothing from outside."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import SHAPE, brain_image, image_of
from html_pages import Reader
from MSTKDSegmentLib.errors import OutputError
from MSTKDSegmentLib.metrics import Status
from MSTKDSegmentLib.regions import REGION_KEYS
from MSTKDSegmentLib.review.charts import Series, distribution_chart
from MSTKDSegmentLib.review.cohort import MEASURES, summarise, write_cohort_report
from MSTKDSegmentLib.review.comparison import review
from MSTKDSegmentLib.review.label_maps import label_map_from_values, read_label_map
from MSTKDSegmentLib.review.pictures import (
    ERROR_COLOURS,
    Scene,
    doubt_section,
    error_painter,
    prediction_sections,
)
from MSTKDSegmentLib.review.places import INVENTED, MISSED, RIGHT, error_maps
from MSTKDSegmentLib.review.report import write_review_report
from MSTKDSegmentLib.review.report_text import carrier_sentences, what_was_compared, where_text
from MSTKDSegmentLib.review.what_if import Changes, SubsetResult, WhatIf
from MSTKDSegmentLib.segmentation_io import write_segmentation
from MSTKDSegmentLib.volumes import read_volume
from review_cases import images, tumour, write_labels

matplotlib_image = pytest.importorskip("matplotlib.image")

ORIENTATIONS = ("LPS", "RAI", "PIR", "SAR")


def label_map(labels: np.ndarray, source: str = "labels.nii.gz", orientation: str = "LPS"):
    image = sitk.DICOMOrient(image_of(labels), orientation)
    return label_map_from_values(sitk.GetArrayFromImage(image), image, source, "brats2023")


def reviewed(*predictions: np.ndarray, truth: np.ndarray | None = None, orientation: str = "LPS"):
    maps = {f"p{number}": label_map(one, orientation=orientation) for number, one in enumerate(predictions)}
    return review(maps, None if truth is None else label_map(truth, orientation=orientation))


def page_text(path: Path) -> tuple[str, list[str]]:
    """The visible text and the pictures' sources of a page, which must be well formed and load nothing."""
    text = path.read_text(encoding="utf-8")
    page = Reader(text)
    assert all(source.startswith("data:image/png;base64,") for source in page.pictures)
    assert "default-src 'none'" in text and "<script" not in text
    return " ".join(" ".join(page.text).split()), page.pictures


def what_if_of(labels: np.ndarray, share: np.ndarray) -> WhatIf:
    """T1Gd carries ET, FLAIR carries WT; `share` (D, H, W) of the runs disagree on every region."""
    dice = {
        ("T1Gd",): {"WT": 0.5, "TC": 0.8, "ET": 0.9},
        ("FLAIR",): {"WT": 0.9, "TC": 0.795, "ET": 0.3},
        ("T1Gd", "FLAIR"): {"WT": 0.95, "TC": 0.8, "ET": 0.9},
    }
    volumes = dict.fromkeys(REGION_KEYS, 1.0)
    full = SimpleNamespace(labels=labels, reference_image=image_of(labels))
    results = tuple(SubsetResult(subset, volumes, found) for subset, found in dice.items())
    changes = {key: Changes(0.125, 0.5) for key in REGION_KEYS}
    return WhatIf(full, results, "ground truth", dict.fromkeys(REGION_KEYS, share), changes)  # type: ignore[arg-type]


# --- what is drawn ---------------------------------------------------------------------------------------------------


def test_right_invented_and_missed_differ_in_colour_and_in_hatching():
    errors = np.zeros((4, 40, 40), np.uint8)
    errors[0], errors[1], errors[2] = RIGHT, INVENTED, MISSED
    right, invented, missed, nothing = (error_painter(plane) for plane in errors)
    assert not nothing[..., 3].any()
    for painted, kind in ((right, RIGHT), (invented, INVENTED), (missed, MISSED)):
        np.testing.assert_allclose(painted[..., :3], np.broadcast_to(ERROR_COLOURS[kind], (40, 40, 3)), atol=1e-6)
    assert len(np.unique(right[..., 3])) == 1
    # Stripes: along one diagonal nothing changes, along the other it does; which one tells the two errors apart.
    rising, falling = invented[..., 3], missed[..., 3]
    assert np.array_equal(rising[1:, :-1], rising[:-1, 1:]) and not np.array_equal(rising[1:, 1:], rising[:-1, :-1])
    assert np.array_equal(falling[1:, 1:], falling[:-1, :-1]) and not np.array_equal(falling[1:, :-1], falling[:-1, 1:])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_cross_points_at_each_worst_place_in_whatever_order_voxels_are_stored(orientation):
    found = reviewed(tumour(shift=3), truth=tumour(), orientation=orientation)
    one = found.predictions[0]
    scene = Scene.of(found, images(1, 2))
    *_, worst = prediction_sections(found, one, scene)
    views = [view for row in worst.rows for view in row]
    assert len(views) == min(6, len(one.places)) > 2
    for view, place in zip(views, one.places):
        assert place.kind_text in view.heading and place.region in view.heading
        assert where_text(place.point) in view.caption
        for cut in view.cuts:
            assert cut.painted[cut.mark] == place.kind


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_region_is_shown_through_most_of_it_with_all_its_errors(orientation):
    prediction, truth = tumour(shift=3), tumour()
    found = reviewed(prediction, truth=truth, orientation=orientation)
    lesion = prediction_sections(found, found.predictions[0], Scene.of(found, images(1, 2)))[0]
    views = [view for row in lesion.rows for view in row]
    assert [view.heading.split()[0] for view in views] == ["Prediction", "Ground", "WT", "TC", "ET", "T1Gd,"]
    expected = error_maps(prediction, truth)
    for view, region, middle in ((views[2], "WT", 16), (views[3], "TC", 16)):
        axial = view.cuts[0].painted
        for kind in (RIGHT, INVENTED, MISSED):
            assert np.count_nonzero(axial == kind) == np.count_nonzero(expected[region][middle] == kind) > 0
    assert "FLAIR" in views[2].heading and "T1Gd" in views[4].heading


def test_a_core_elsewhere_is_shown_where_it_is():
    truth = tumour(enhancing=False)
    truth[truth == 1] = 2
    truth[25:28, 16:19, 20:23] = 3  # a second, small lesion holds all of the core
    found = reviewed(tumour(), truth=truth)
    views = [v for row in prediction_sections(found, found.predictions[0], Scene.of(found, {}))[0].rows for v in row]
    et = next(view for view in views if view.heading.startswith("ET"))
    assert (et.cuts[0].painted == MISSED).sum() == 9


def test_doubt_is_shown_where_it_is_on_another_grid_too():
    share = np.zeros(SHAPE, np.float32)
    share[20, 10, 12] = 1.0
    found = reviewed(tumour(), truth=tumour(), orientation="PIR")
    section = doubt_section(found, what_if_of(tumour(), share), Scene.of(found, images(1, 2)))
    view = section.rows[0][0]
    assert "12.5% when mirrored, 50.0% with sequences left out" in view.caption
    for cut in view.cuts:
        assert cut.painted.max() == 1.0 and np.count_nonzero(cut.painted) == 1
    assert view.cuts[0].title == "Axial, S 40.0 mm"


def test_sequences_on_other_grids_are_laid_on_the_reviews():
    coarse = sitk.Resample(brain_image(2), [17, 18, 16], sitk.Transform(), sitk.sitkLinear, (0, 0, 0), (4.0, 4.0, 4.0))
    found = reviewed(tumour(), truth=tumour())
    scene = Scene.of(found, {"T1Gd": coarse})
    assert scene.images["T1Gd"].shape == SHAPE
    inside, outside = scene.images["T1Gd"][16, 18, 17], scene.images["T1Gd"][1, 1, 1]
    assert inside > 100 and outside == 0
    with pytest.raises(ValueError, match="grid"):
        Scene.of(found, {"T1Gd": np.zeros((3, 4, 5))})


# --- the page on a patient -------------------------------------------------------------------------------------------


def test_the_page_says_what_was_measured(tmp_path):
    found = reviewed(tumour(shift=2), tumour(), truth=tumour())
    write_review_report(
        tmp_path / "review.html", found, images(1, 2), title="Case <1>", provenance={"bundle": "x & y"},
        what_if=what_if_of(tumour(), np.zeros(SHAPE, np.float32)),
    )  # fmt: skip
    text, pictures = page_text(tmp_path / "review.html")
    assert "Case <1>: review" in text and "x & y" in text
    first = found.predictions[0]
    for score in first.scores:
        assert f"p0 {score.region} both have it {score.score.dice:.3f} {score.score.hd95:.1f}" in text
    assert f"p1 WT both have it 1.000 0.0 1.000 1.000 {first.scores[0].reference_ml:.1f}" in text
    assert "1 of 1" in text
    place = first.places[0]
    assert where_text(place.point) in text and ", ".join(f"{value:.1f}" for value in place.point_ras) in text
    agreement = found.agreement["p0", "p1"]
    assert f"p0 p1 {' '.join(f'{agreement[key]:.3f}' for key in REGION_KEYS)}" in text
    assert "ET: carried by T1Gd; without it 0.600 Dice is lost" in text
    # By prediction three rows of the largest lesion and the places two to a row, then the chart and two rows of doubt.
    rows = [3 + (min(6, len(one.places)) + 1) // 2 for one in found.predictions]
    assert len(pictures) == sum(rows) + 1 + 2
    assert "No connected error is large enough" in text  # of p1, which is perfect


def test_empty_masks_are_said_in_words(tmp_path):
    found = reviewed(tumour(), truth=tumour(enhancing=False))
    write_review_report(tmp_path / "a.html", found, {}, title="a")
    text, _ = page_text(tmp_path / "a.html")
    assert "ET invented: only the prediction has it 0.000 373.1" in text and "373.13 mm" in text
    nothing = np.zeros(SHAPE, np.uint8)
    write_review_report(tmp_path / "b.html", reviewed(nothing, truth=nothing), images(1), title="b")
    assert "neither has it: counts as right 1.000 0.0" in page_text(tmp_path / "b.html")[0]


def test_without_ground_truth_volumes_and_agreement_are_left(tmp_path):
    write_review_report(tmp_path / "a.html", reviewed(tumour(), tumour(2)), images(1, 2), title="a")
    text, pictures = page_text(tmp_path / "a.html")
    assert "no ground truth" in text and "Sensitivity" not in text and "worst" not in text.lower()
    assert len(pictures) == 2


def test_json_and_png(tmp_path):
    found = reviewed(tumour(shift=2), truth=tumour())
    what_if = what_if_of(tumour(), np.zeros(SHAPE, np.float32))
    for ending in (".json", ".png"):
        write_review_report(tmp_path / f"a{ending}", found, images(1), title="a", what_if=what_if)
    told = json.loads((tmp_path / "a.json").read_text())
    assert told["predictions"] == json.loads(json.dumps(found.to_dict()["predictions"]))
    assert told["what_if"]["carried_by"]["WT"] == pytest.approx({"T1Gd": 0.05, "FLAIR": 0.45})
    picture = matplotlib_image.imread(io.BytesIO((tmp_path / "a.png").read_bytes()))
    assert picture.shape[1] > 1000
    shown = (np.abs(picture[..., :3] - ERROR_COLOURS[INVENTED]) < 0.2).all(axis=-1)
    assert shown.sum() > 100


def test_files_are_named_without_their_folders(tmp_path):
    folder = tmp_path / "Jane Doe"
    mask = (tumour() > 0).astype(np.uint8)
    paths = [write_labels(folder / name, mask) for name in ("truth.nii.gz", "found.nii.gz")]
    truth, prediction = (read_label_map(path) for path in paths)
    found = review({"net": prediction}, truth)
    assert "Jane Doe" in " ".join(found.notices)
    write_review_report(
        tmp_path / "a.html", found, {}, title="a", files=paths, provenance=what_was_compared({"net": prediction}, truth)
    )
    text, _ = page_text(tmp_path / "a.html")
    assert "Jane Doe" not in text and "found.nii.gz: mask of the whole tumour" in text
    assert "truth.nii.gz: mask of the whole tumour; it shows WT only" in text


def test_what_made_a_prediction_is_read_from_its_file(tmp_path):
    path = tmp_path / "net.seg.nrrd"
    write_segmentation(path, tumour(), image_of(tumour()), metadata={"bundle": "net sha256 abc", "sequences": "T1+T2"})
    lines = what_was_compared({"net": read_label_map(path)})
    assert lines["net: bundle"] == "net sha256 abc" and lines["net: sequences"] == "T1+T2"
    assert read_volume(write_labels(tmp_path / "other.nii.gz", tumour()), is_label=True)
    assert list(what_was_compared({"other": read_label_map(tmp_path / "other.nii.gz")})) == ["prediction other"]


def test_a_page_that_exists_is_left_alone(tmp_path):
    (tmp_path / "a.html").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        write_review_report(tmp_path / "a.html", reviewed(tumour()), {}, title="a")
    assert (tmp_path / "a.html").read_text() == "mine"


def test_sequences_that_carry_nothing_are_not_blamed():
    told = carrier_sentences(what_if_of(tumour(), np.zeros(SHAPE, np.float32)))
    assert told[0].startswith("WT: carried by FLAIR; without it 0.450") and "no single sequence" in told[1]


# --- the page on many ------------------------------------------------------------------------------------------------


def rows_of(case: str, prediction: str, dice: float, status: str = Status.OK) -> list[dict]:
    found = reviewed(tumour(), truth=tumour()).predictions[0].scores
    return [
        {"case": case, "prediction": prediction, **score.to_dict(), "dice": dice, "status": status} for score in found
    ]


def test_means_medians_and_intervals_by_hand():
    names = ("BraTS-GLI-00001-000", "BraTS-GLI-00001-001", "b", "c")
    rows = [row for name, dice in zip(names, (0.2, 0.4, 0.9, 0.9)) for row in rows_of(name, "net", dice)]
    rows += rows_of("b", "other", 0.0, Status.MISSED)
    summary = summarise(rows)
    entry = summary["net"]["WT"]
    assert entry["cases"] == 4 and entry["patients"] == 3  # two time points of one patient
    assert entry["dice"]["mean"] == pytest.approx(0.6) and entry["dice"]["median"] == pytest.approx(0.65)
    assert 0.2 < entry["dice"]["low"] < 0.6 < entry["dice"]["high"] <= 0.9
    assert entry["statuses"] == {"ok": 4, "both_empty": 0, "missed": 0, "fp_only": 0}
    assert summary["other"]["ET"]["statuses"]["missed"] == 1 and summary["other"]["ET"]["dice"]["mean"] == 0
    assert summarise([]) == {}


def test_the_cohorts_page(tmp_path):
    rows = [row for n in range(12) for row in rows_of(f"case {n}", "net", n / 12)]
    rows += [row for n in range(2) for row in rows_of(f"case {n}", "<other>", 0.5, Status.FP_ONLY)]
    write_cohort_report(
        tmp_path / "cohort.html", rows, title="All", failed={"bad": "no <ground> truth"},
        pages={"case 0": "cases/case 0.html"}, notices={"case 1": ["a doubt"]},
    )  # fmt: skip
    text, pictures = page_text(tmp_path / "cohort.html")
    assert len(pictures) == len(MEASURES)
    assert "12 cases of 12 patients; 1 failed." in text and "bad no <ground> truth" in text and "case 1 a doubt" in text
    worst = text[text.index("The worst cases") : text.index("Cases that failed")]
    assert "case 0 net 0.000" in worst and "case 9" not in worst and worst.index("case 0") < worst.index("case 2")
    assert "net - <other> WT 2 -0.458" in text
    source = (tmp_path / "cohort.html").read_text()
    assert '<a href="cases/case%200.html">case 0</a>' in source


def test_a_cohort_where_everything_failed_still_has_a_page(tmp_path):
    write_cohort_report(tmp_path / "cohort.html", [], title="All", failed={"a": "why"})
    text, pictures = page_text(tmp_path / "cohort.html")
    assert "0 cases of 0 patients; 1 failed." in text and "a why" in text and not pictures


def test_a_distribution_is_drawn_the_same_every_time_and_marks_conventions():
    def chart(status: str) -> bytes:
        return distribution_chart("Dice", [Series("net", {"WT": [0.5, 0.7]}, {"WT": [Status.OK, status]})], (0, 1))

    assert chart(Status.OK) == chart(Status.OK) != chart(Status.MISSED)
