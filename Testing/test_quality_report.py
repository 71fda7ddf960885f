"""The quality report: what is drawn over what, where outlines land, and that figures and files are named rightly."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from MSTKDSegmentLib import __version__
from MSTKDSegmentLib.cli import main
from MSTKDSegmentLib.errors import OutputError
from MSTKDSegmentLib.geometry import array_to_image, canonical_grid
from MSTKDSegmentLib.modalities import availability
from MSTKDSegmentLib.pipeline import PreparedCase, read_case
from MSTKDSegmentLib.preparation_record import OWN, READY, PreparationRecord, SequenceRecord
from MSTKDSegmentLib.quality_report import findings, without_folders, write_quality_report
from MSTKDSegmentLib.quality_slices import LEAST_MM, brain_on, labels_on, shown_sequences
from MSTKDSegmentLib.quality_views import (
    BRAIN_COLOUR,
    OTHER_COLOUR,
    checkerboard,
    native_rows,
    other_pair_rows,
    registration_rows,
    tiles_of,
)
from MSTKDSegmentLib.regions import LABELS
from MSTKDSegmentLib.registration import composed, inverted
from MSTKDSegmentLib.report_picture import mask_outlines
from MSTKDSegmentLib.volumes import volume_from_image
from phantom import BRAIN_RADII, CENTRE, OBLIQUE, blank_image, dice, ellipsoid, voxel_points

matplotlib_image = pytest.importorskip("matplotlib.image")

PATIENT = Path(__file__).parents[1] / "data" / "Brats18_CBICA_AOP_1"
TUMOUR = CENTRE + np.array([10.0, -6.0, 4.0])
# From the reference's space to FLAIR's: 20 degrees about z and 13 mm.
MOVED = np.column_stack([
    np.reshape(sitk.Euler3DTransform((0, 0, 0), 0.0, 0.0, np.deg2rad(20)).GetMatrix(), (3, 3)), [9.0, -6.0, 7.0],
])  # fmt: skip
# From the canonical space to the reference's.
TURN = np.column_stack([
    np.reshape(sitk.Euler3DTransform((0, 0, 0), np.deg2rad(8), 0.0, 0.0).GetMatrix(), (3, 3)), [1.0, 2.0, -3.0],
])  # fmt: skip


def at(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :3].T + matrix[:, 3]


def anatomy(points: np.ndarray) -> np.ndarray:
    """What a patient's brain shows at points (..., 3) of the reference's space: stripes across all axes, 0 outside."""
    stripes = 100 + 40 * np.sin(points / 6.0).sum(-1)
    return np.where(ellipsoid(points, CENTRE, BRAIN_RADII), stripes, 0).astype(np.float32)


def picture_of(image: sitk.Image, matrix: np.ndarray) -> sitk.Image:
    """The patient on the voxels of `image`, whose space `matrix` leads to from the reference's."""
    return array_to_image(anatomy(at(inverted(matrix), voxel_points(image))), image)


def moved_case(turn: np.ndarray = TURN) -> PreparedCase:
    """T1Gd with 1 mm, T1 on it, and FLAIR with thick oblique slices in a space of its own."""
    here, there = blank_image(), blank_image(OBLIQUE, (1.0, 1.2, 3.0), 96.0, at(MOVED, CENTRE))
    images = {
        "T1": picture_of(here, np.eye(3, 4)) + 3.0,
        "T1Gd": picture_of(here, np.eye(3, 4)),
        "FLAIR": picture_of(there, MOVED),
    }
    folder = Path("patients") / "Jane Doe"
    volumes = {name: volume_from_image(image, str(folder / f"{name.lower()}.nii.gz")) for name, image in images.items()}
    head = blank_image(centre=at(inverted(turn), CENTRE))
    grid = canonical_grid({"T1Gd": head}, "T1Gd", masks={"T1Gd": np.ones(head.GetSize()[::-1], bool)})
    canonical = sitk.Image(grid.size, sitk.sitkUInt8)
    canonical.SetOrigin(grid.origin)
    brain = ellipsoid(at(turn, voxel_points(canonical)), CENTRE, BRAIN_RADII)
    sequences = {
        "T1": SequenceRecord(volumes["T1"].source, True, 0.8, 0.71, 0.71),
        "T1Gd": SequenceRecord(volumes["T1Gd"].source, True, 0.81),
        "FLAIR": SequenceRecord(volumes["FLAIR"].source, False, 0.02, 0.123, 0.456, 13.4, 20.04, "scanner"),
    }
    record = PreparationRecord(
        "T1Gd", sequences, False, False, True, (), OWN, 126.7, 8.0, 8.0, False, {"registration": 1.5}
    )
    return PreparedCase(
        volumes, "T1Gd", grid, np.zeros((4, *grid.shape), np.float32), availability(list(volumes)),
        (f"FLAIR ({volumes['FLAIR'].source}) lay far away.",), brain, record,
        {"T1": turn, "T1Gd": turn, "FLAIR": composed(MOVED, turn)},
    )  # fmt: skip


def tumour_labels(case: PreparedCase) -> np.ndarray:
    """A ball of oedema with enhancing tumour and a necrotic core, on the reference's grid."""
    points = voxel_points(case.reference_image)
    labels = np.zeros(points.shape[:3], np.uint8)
    for radius, label in ((12.0, 2), (8.0, 3), (4.0, 1)):
        labels[ellipsoid(points, TUMOUR, radius)] = label
    return labels


def without_pictures(page: Path) -> str:
    return re.sub(r"base64,[A-Za-z0-9+/=]+", "", page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def case() -> PreparedCase:
    return moved_case()


@pytest.fixture(scope="module")
def labels(case) -> np.ndarray:
    return tumour_labels(case)


# --- sequences over each other ---------------------------------------------------------------------------------------


def test_tiles_are_a_chessboard():
    np.testing.assert_array_equal(tiles_of((3, 5), 2).astype(int), [[0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [1, 1, 0, 0, 1]])


def test_a_checkerboard_of_identical_slices_is_the_slice():
    plane = np.random.default_rng(0).random((50, 70))
    np.testing.assert_array_equal(checkerboard(plane, plane.copy(), tiles_of(plane.shape, 20)), plane)


def test_registration_is_seen_to_help(case):
    """After registration the tiles of the moved sequence show what the reference shows there, before they do not."""
    shown = shown_sequences(case)
    (before, after), (alone,) = registration_rows(case, shown)
    assert [view.heading for view in (before, after, alone)] == [
        "FLAIR over T1Gd, before registration",
        "FLAIR over T1Gd, after registration",
        "T1 over T1Gd, not moved",
    ]
    assert "0.12 bits" in before.caption
    assert after.caption == "Moved by 13.4 mm, turned by 20.0 degrees. Similarity 0.12 bits -> 0.46 bits."
    assert "Similarity 0.71 bits" in alone.caption
    for wrong, right, same in zip(before.cuts, after.cuts, alone.cuts):
        # T1 is the reference plus a constant, so its evened tiles are the reference's wherever there is brain.
        tiles, brain = right.tiles, same.grey > 0.1
        np.testing.assert_array_equal(right.grey[~tiles], same.grey[~tiles])
        np.testing.assert_array_equal(wrong.grey[~tiles], same.grey[~tiles])
        apart_before, apart_after = (
            float(np.abs(one.grey - same.grey)[tiles & brain].mean()) for one in (wrong, right)
        )
        assert apart_after < 0.1 and apart_before > 3 * apart_after


def test_sequences_are_laid_over_each_other_too_where_none_is_the_reference(case):
    shown = shown_sequences(case)
    ((pair,),) = other_pair_rows(case, shown)
    assert pair.heading == "FLAIR over T1, after registration" and pair.legend[0][0] == "T1 tiles"
    (_, after), (alone,) = registration_rows(case, shown)
    for cut, over_reference, same in zip(pair.cuts, after.cuts, alone.cuts):
        np.testing.assert_array_equal(cut.grey[cut.tiles], over_reference.grey[cut.tiles])
        np.testing.assert_allclose(cut.grey[~cut.tiles], same.grey[~cut.tiles], atol=1e-5)  # evened, T1 is as T1Gd
    bits = float(re.search(r"Similarity ([0-9.]+) bits", pair.caption)[1])
    wrong = replace(case, matrices={**case.matrices, "FLAIR": case.matrices["T1"]})  # as the scanner has it
    ((before,),) = other_pair_rows(wrong, shown)
    assert bits > 1.0 and float(re.search(r"Similarity ([0-9.]+) bits", before.caption)[1]) < 0.6 * bits


def test_four_sequences_make_three_other_pairs_and_two_none(case):
    two = replace(case, record=replace(case.record, sequences={n: case.record.sequences[n] for n in ("T1", "T1Gd")}))
    assert other_pair_rows(two, shown_sequences(two)) == []
    known, shown = case.record.sequences, shown_sequences(case)
    record = replace(case.record, sequences={"T1": known["T1"], "T1Gd": known["T1Gd"], "T2": known["T1"], **known})
    matrices = {**case.matrices, "T2": case.matrices["T1"]}
    four = replace(case, volumes={**case.volumes, "T2": case.volumes["T1"]}, record=record, matrices=matrices)
    rows = other_pair_rows(four, {**shown, "T2": shown["T1"]})
    assert [[view.heading for view in row] for row in rows] == [
        ["T2 over T1, not moved", "FLAIR over T1, after registration"],
        ["FLAIR over T2, after registration"],
    ]


def test_pairs_show_what_lies_beyond_the_canonical_grid(case):
    """The margin is drawn although the grid ends at the brain: where a moved sequence sticks out must be seen."""
    (_, after), _ = registration_rows(case, shown_sequences(case))
    extents = [np.ptp(np.flatnonzero(case.brain.any(axis=axes))) + 1 for axes in ((1, 2), (0, 2), (0, 1))]
    sizes = [cut.grey.shape for cut in after.cuts]
    depth, height, width = (extent + 24 for extent in extents)
    assert sizes == [(height, width), (depth, width), (depth, height)]


def test_left_alone_is_drawn_once_and_said(case):
    sequences = {name: replace(one, start="") for name, one in case.record.sequences.items()}
    record = replace(case.record, sequences=sequences, told=("registered",), registered=True)
    rows = registration_rows(replace(case, record=record), shown_sequences(case))
    assert [[view.heading for view in row] for row in rows] == [
        ["T1 over T1Gd, not moved", "FLAIR over T1Gd, not moved"]
    ]
    assert all("as you said" in view.caption for view in rows[0])


def test_a_registration_that_failed_is_said_and_not_called_right(case, tmp_path):
    sequences = dict(case.record.sequences)
    sequences["FLAIR"] = replace(sequences["FLAIR"], start="", failed=True)
    failed = replace(case, record=replace(case.record, sequences=sequences))
    caption = next(view.caption for row in registration_rows(failed, shown_sequences(failed)) for view in row[1:])
    assert caption.startswith("Could not be registered")
    said = findings(failed.record)["Registration"]
    assert said == "Looked for: T1 found to lie right; FLAIR could not be registered and left in place: check by eye."
    write_quality_report(tmp_path / "q.html", failed, title="x")
    assert "failed: left in place" in without_pictures(tmp_path / "q.html")


# --- outlines on each sequence ---------------------------------------------------------------------------------------


def test_labels_land_on_the_tumour_of_a_moved_sequence(case, labels):
    np.testing.assert_array_equal(labels_on(case, labels, "T1Gd"), labels)
    np.testing.assert_array_equal(labels_on(case, labels, "T1"), labels)
    there = labels_on(case, labels, "FLAIR")
    image = case.volumes["FLAIR"].image
    points = voxel_points(image)
    assert there.shape == image.GetSize()[::-1]
    assert dice(there > 0, ellipsoid(points, at(MOVED, TUMOUR), 12.0)) > 0.95
    assert np.linalg.norm(points[there == 3].mean(axis=0) - at(MOVED, TUMOUR)) < 0.5


def test_without_matrices_labels_go_by_the_scanners_coordinates(case, labels):
    there = labels_on(replace(case, matrices={}), labels, "FLAIR")
    points = voxel_points(case.volumes["FLAIR"].image)
    assert dice(there > 0, ellipsoid(points, TUMOUR, 12.0)) > 0.95


def test_the_brain_lands_on_every_sequence(case):
    for name, matrix in (("T1Gd", np.eye(3, 4)), ("FLAIR", MOVED)):
        points = voxel_points(case.volumes[name].image)
        expected = ellipsoid(at(inverted(matrix), points), CENTRE, BRAIN_RADII)
        assert dice(brain_on(case, name), expected) > 0.98


def test_native_views_show_thick_slices_as_they_are_through_most_of_the_tumour(case, labels):
    shown = shown_sequences(case)
    rows = native_rows(case, shown, labels)
    assert [view.heading for row in rows for view in row] == [
        "T1, brain", "T1, tumour", "T1Gd (reference), brain", "T1Gd, tumour", "FLAIR, brain", "FLAIR, tumour",
    ]  # fmt: skip
    brain, tumour = rows[2]
    assert "Voxels of 1.00 x 1.20 x 3.00 mm, slices tilted by up to" in brain.caption
    assert [("as taken" in cut.title) for cut in brain.cuts].count(True) == 1
    taken = next(cut for cut in tumour.cuts if "as taken" in cut.title)
    assert sorted(taken.voxel_mm) == pytest.approx([1.0, 1.2])
    drawn = sum(mask for _, mask in taken.outlined)
    there = labels_on(case, labels, "FLAIR") > 0
    most = max(int(there.sum(axis=axes).max()) for axes in ((1, 2),))
    assert int(drawn.sum()) == most
    for cut in tumour.cuts:
        height, width = (n * mm for n, mm in zip(cut.grey.shape, cut.voxel_mm))
        assert min(height, width) > 0.8 * LEAST_MM or (height, width) < (96, 96)
    ball = 4 / 3 * np.pi * 12**3 / 1000
    (millilitres,) = re.findall(r"WT (\S+), TC", tumour.caption)
    assert float(millilitres) == pytest.approx(ball, rel=0.05)


def test_no_tumour_is_said(case, labels):
    shown = shown_sequences(case)
    (_, nothing), *_ = native_rows(case, shown, np.zeros_like(labels))
    assert nothing.caption == "No tumour is marked."
    outside = np.zeros_like(labels)
    outside[0, 0, 0] = 1  # a corner of the reference that FLAIR's grid does not reach
    far = replace(case, matrices={**case.matrices, "FLAIR": composed(np.eye(3, 4) + [[0, 0, 0, 200]] * 3, TURN)})
    captions = [row[1].caption for row in native_rows(far, shown, outside)]
    assert captions[2] == "The tumour found lies outside this sequence."


def test_outlines_do_not_depend_on_what_is_far_away():
    mask = np.zeros((9, 12), bool)
    mask[2:6, 3:9] = True
    mask[3, 4] = False
    large = np.pad(mask, ((30, 5), (20, 40)))
    small, moved = mask_outlines(mask, (2.0, 3.0)), mask_outlines(large, (2.0, 3.0))
    assert len(small) == len(moved) == 2
    for one, other in zip(small, moved):
        np.testing.assert_allclose(one + np.array([20 * 3.0, 30 * 2.0]), other)
    assert mask_outlines(np.zeros((4, 4), bool), (1.0, 1.0)) == []


# --- files -----------------------------------------------------------------------------------------------------------


def test_json_holds_the_evidence_and_no_folders(tmp_path, case, labels):
    write_quality_report(
        tmp_path / "q.json", case, labels, title="Case 1", seconds={"network": 2.0}, provenance={"bundle": "b"}
    )
    text = (tmp_path / "q.json").read_text(encoding="utf-8")
    assert "Doe" not in text and "patients" not in text
    report = json.loads(text)
    assert report["title"] == "Case 1" and report["software"] == f"MSTKDSegment {__version__}"
    assert report["reference"] == "T1Gd" and report["challenge_ready"] is False
    assert report["brain_extraction"] == OWN and report["brain_ml"] == 126.7 and report["turned_degrees"] == 8.0
    flair = report["sequences"]["FLAIR"]
    assert flair["source"] == "flair.nii.gz" and flair["background"] == 0.02
    assert (flair["similarity_before"], flair["similarity_after"], flair["moved_mm"]) == (0.123, 0.456, 13.4)
    assert flair["spacing_mm"] == [1.0, 1.2, 3.0]
    assert report["findings"] == findings(case.record)
    assert report["findings"]["Head"].endswith("Left and right are the headers': they cannot be told from the images.")
    assert report["notices"] == ["FLAIR (flair.nii.gz) lay far away."]
    assert report["seconds"] == {"run": {"network": 2.0}, "preparation": {"registration": 1.5}}
    assert report["volumes_ml"]["WT"] == pytest.approx(np.count_nonzero(labels) / 1000, abs=1e-3)
    np.testing.assert_allclose(report["matrices"]["FLAIR"], composed(MOVED, TURN))
    assert report["provenance"] == {"bundle": "b"}


def test_html_is_one_page_with_every_row_and_figure(tmp_path, case, labels):
    evil = "<script>alert('x')</script>"
    write_quality_report(tmp_path / "q.html", case, labels, title=evil, notices=[evil], provenance={"date": evil})
    bare = without_pictures(tmp_path / "q.html")
    assert bare.count("<img ") == 3 + 3  # registration and the other pair, and a row to each sequence
    assert not re.search(r"https?:|//|<script|<link|@import|url\(", bare)
    assert "Doe" not in bare
    assert "Moved by 13.4 mm, turned by 20.0 degrees. Similarity 0.12 bits -&gt; 0.46 bits." in bare
    assert "FLAIR moved to lie on T1Gd; T1 found to lie right." in bare
    assert "Left and right are the headers" in bare
    assert "<td>flair.nii.gz</td>" in bare and "Brain</td>" in bare
    assert bare.index("&lt;script") < bare.index("What was found") < bare.index("not for diagnosis")


def test_png_shows_brain_tiles_and_labels_in_their_colours(tmp_path, case, labels):
    write_quality_report(tmp_path / "q.png", case, labels, title="$\\frac{$ {title}")
    picture = matplotlib_image.imread(tmp_path / "q.png")[..., :3]
    for colour in (BRAIN_COLOUR, *(item.colour for item in LABELS)):
        assert (np.abs(picture - colour).max(axis=-1) < 0.1).sum() > 50, colour
    # The tiles' amber at any brightness.
    ratio = picture / np.maximum(picture[..., :1], 1e-3)
    assert (np.abs(ratio - OTHER_COLOUR).max(axis=-1) < 0.03)[picture[..., 0] > 0.2].sum() > 5000
    write_quality_report(tmp_path / "brain.png", case, title="without labels")
    without = matplotlib_image.imread(tmp_path / "brain.png")[..., :3]
    assert without.shape[0] < picture.shape[0]
    for item in LABELS:
        assert (np.abs(without - item.colour).max(axis=-1) < 0.05).sum() == 0, item.key


def test_one_sequence_alone(tmp_path, case):
    alone = read_case({"T1Gd": case.volumes["T1Gd"]}, wishes=READY)
    write_quality_report(tmp_path / "q.html", alone, title="Case")
    page = without_pictures(tmp_path / "q.html")
    assert "One sequence: nothing to register." in page and page.count("<img ") == 1
    assert "None: the volumes were left alone." in page


def test_unusable_outputs_and_labels_are_refused(tmp_path, case, labels):
    with pytest.raises(OutputError, match=r"use \.html, \.png, \.json"):
        write_quality_report(tmp_path / "q.pdf", case, title="x")
    (tmp_path / "q.json").write_text("old")
    with pytest.raises(OutputError, match="exists already"):
        write_quality_report(tmp_path / "q.json", case, title="x")
    with pytest.raises(ValueError, match="not on the grid"):
        write_quality_report(tmp_path / "p.png", case, labels[1:], title="x")
    assert [path.name for path in tmp_path.iterdir()] == ["q.json"]
    write_quality_report(tmp_path / "q.json", case, title="x", overwrite=True)
    assert json.loads((tmp_path / "q.json").read_text())["title"] == "x"


@pytest.mark.parametrize(
    ("change", "heading", "text"),
    [
        ({}, "Skull", "Still there on FLAIR; removed here: own network."),
        ({"told": ("not skull-stripped",)}, "Skull", "Still there on FLAIR, as you said; removed"),
        ({}, "Head", "Turned by 8.0 degrees"),
        ({"turned_degrees": 0.0}, "Head", "8.0 degrees from the template's pose: not turned."),
        ({"turned_degrees": 0.0, "head_degrees": None, "told": ("upright",)}, "Head", "Taken as upright, as you said"),
        ({"registered": True}, "Registration", "The sequences lie on each other already: left alone."),
        ({}, "Registration", "FLAIR moved to lie on T1Gd; T1 found to lie right."),
    ],
)
def test_findings_say_what_was_decided_and_why(case, change, heading, text):
    assert findings(replace(case.record, **change))[heading].startswith(text)


def test_folders_are_taken_out_of_texts(case):
    source = case.volumes["T1"].source
    assert without_folders(f"{source} and other/t9.nii", case) == "t1.nii.gz and other/t9.nii"


# --- command line ----------------------------------------------------------------------------------------------------


def test_segment_writes_quality_reports(tmp_path, case_files, random_bundle, capsys):
    pytest.importorskip("torch")
    arguments = ["segment", "--flair", case_files["flair"], "-o", tmp_path / "a.nii.gz", "--weights", random_bundle]
    arguments += ["--quality", tmp_path / "q.json", "--quality", tmp_path / "q.html", "--json"]
    assert main(list(map(str, arguments))) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["outputs"]["quality_reports"] == [str(tmp_path / "q.json"), str(tmp_path / "q.html")]
    text = (tmp_path / "q.json").read_text(encoding="utf-8")
    report = json.loads(text)
    assert report["sequences"]["FLAIR"]["source"] == "flair.nii.gz" and "Doe" not in text
    assert report["volumes_ml"]["ET"] == pytest.approx(printed["volumes_ml"]["ET"], abs=1e-3)
    assert "network" in report["seconds"]["run"] and "bundle" in report["provenance"]
    page = without_pictures(tmp_path / "q.html")
    assert "FLAIR (reference), brain" in page and "Doe" not in page


def test_batches_take_reports_instead(tmp_path, random_bundle, capsys):
    assert main(["segment", "--batch", str(tmp_path), "-o", str(tmp_path / "out"), "--quality", "q.html"]) == 2
    assert "--quality does not go with --batch" in capsys.readouterr().err


# --- a patient -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not PATIENT.is_dir(), reason="the labelled patients are not beside this checkout")
def test_a_challenge_patient_keeps_its_labels_on_every_sequence():
    files = {"T1Gd": "t1ce", "FLAIR": "flair"}
    patient = read_case(
        {name: PATIENT / f"{PATIENT.name}_{ending}.nii.gz" for name, ending in files.items()}, wishes=READY
    )
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(PATIENT / f"{PATIENT.name}_seg.nii.gz"))).astype(np.uint8)
    labels[labels == 4] = 3
    for name in files:
        np.testing.assert_array_equal(labels_on(patient, labels, name), labels)
    shown = shown_sequences(patient)
    ((pair,),) = registration_rows(patient, shown)
    assert pair.heading == "FLAIR over T1Gd, not moved"
    for one in shown.values():  # equally bright whatever the sequence
        assert float(np.median(one.evened(one.voxels[one.brain]))) == pytest.approx(0.5, abs=0.02)
