"""`mstkd segment` and `mstkd info`: what is written, what is printed, and how a run ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import EXPECTED_DICE, SHAPE, brain_image, files_below, write_case, write_dicom_series
from MSTKDSegmentLib import __version__, case_inputs, cli, segment_command
from MSTKDSegmentLib.appearance import Look
from MSTKDSegmentLib.cli import main
from MSTKDSegmentLib.errors import RoleError
from MSTKDSegmentLib.modalities import MODALITIES
from MSTKDSegmentLib.preparation_record import EXTRACTORS
from MSTKDSegmentLib.regions import CONVENTIONS
from MSTKDSegmentLib.review.label_maps import AUTO
from MSTKDSegmentLib.segmentation_io import SEGMENTATION_ENDINGS

pytest.importorskip("torch")


@pytest.fixture
def segment(random_bundle, capsys):
    """Runs `mstkd segment ... --json` and gives the printed object; the run must succeed."""

    def run(*arguments):
        code = main(["segment", *map(str, arguments), "--weights", str(random_bundle), "--json"])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return json.loads(captured.out)

    return run


def read_labels(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


# --- results ---------------------------------------------------------------------------------------------------------


def test_every_format_holds_the_same_labels_on_the_reference_grid(segment, tmp_path, case_files):
    paths = [tmp_path / "new" / f"out{ending}" for ending in SEGMENTATION_ENDINGS]
    outputs = [word for path in paths for word in ("-o", path)]
    printed = segment(case_files["t1"].parent, *outputs)
    first = read_labels(paths[0])
    assert first.shape == SHAPE and set(np.unique(first)) == {0, 1, 2, 3}
    for path in paths:
        assert np.array_equal(read_labels(path), first)
    assert sitk.ReadImage(str(paths[0])).GetSpacing() == pytest.approx((2.0, 2.0, 2.0))
    assert printed["outputs"]["segmentations"] == [str(path) for path in paths]
    assert printed["volumes_ml"]["ET"] == pytest.approx(np.count_nonzero(first == 3) * 0.008)
    assert files_below(tmp_path / "new") == sorted(path.name for path in paths)


def test_json_tells_inputs_reasons_device_and_expected_dice(segment, tmp_path, case_files, random_bundle):
    printed = segment(case_files["t1"].parent, "-o", tmp_path / "a.nii.gz", "--without", "t2,T1", "--device", "cpu")
    assert list(printed["inputs"]) == ["T1Gd", "FLAIR"]
    assert printed["inputs"]["FLAIR"]["source"] == str(case_files["flair"])
    assert "flair" in printed["inputs"]["FLAIR"]["reason"]
    assert printed["subset"] == "T1Gd+FLAIR" and printed["reference"] == "T1Gd"
    assert printed["device"] == {
        "name": "cpu", "chosen": "cpu", "reason": "the CPU was asked for", "accelerator": None
    }  # fmt: skip
    assert printed["expected_dice"] == {key: EXPECTED_DICE[key] for key in ("WT", "TC", "ET")}
    assert printed["dice"] is None
    # Noise in an ellipsoid is told to be no brain; nothing else is wrong with it.
    assert all("82 ml" in notice or "looks like none" in notice for notice in printed["notices"])
    assert list(printed["diameters_mm"]) == ["WT", "TC", "ET", "NCR", "ED"]
    for lengths in printed["diameters_mm"].values():
        assert lengths["longest"] >= lengths["axial_longest"] >= lengths["axial_perpendicular"] > 0
    assert {"read and prepare", "load the network", "network", "write", "total"} <= set(printed["seconds"])
    assert {"read", "recognise", "check", "normalise", "common grid", "network", "write"} <= set(printed["stages"])
    assert set(printed["loading"]) == {"read the weights", "import torch", "choose the device", "make the network"}
    assert printed["started"] < printed["ended"] and printed["network_shape"] == [64, 64, 64]
    assert "sha256" in printed["provenance"]["bundle"]


def test_named_files_override_and_complete_the_folder(segment, tmp_path, case_files):
    folder = write_case(tmp_path / "case", t1=1, flair=4)["t1"].parent
    extra = write_case(tmp_path / "extra", scan_a=5, scan_b=6)
    printed = segment(folder, "--t2", extra["scan_a"], "--t1", extra["scan_b"], "-o", tmp_path / "a.nii.gz")
    sources = {name: entry["source"] for name, entry in printed["inputs"].items()}
    assert sources == {
        "T1": str(extra["scan_b"]),
        "T2": str(extra["scan_a"]),
        "FLAIR": str(folder / "flair.nii.gz"),
    }
    assert printed["inputs"]["T2"]["reason"] == "named on the command line"


def test_a_file_named_as_another_sequence_is_used_once(segment, tmp_path):
    paths = write_case(tmp_path / "case", t1=1, t2=2)
    printed = segment(tmp_path / "case", "--flair", paths["t2"], "-o", tmp_path / "a.nii.gz")
    assert {name: entry["source"] for name, entry in printed["inputs"].items()} == {
        "T1": str(paths["t1"]),
        "FLAIR": str(paths["t2"]),
    }


def test_brats2021_and_ground_truth_report_and_probabilities(segment, tmp_path, case_files):
    """The first result as the second run's ground truth, in the convention whose ET is 4: Dice is 1."""
    truth = tmp_path / "truth.nii.gz"
    segment("--flair", case_files["flair"], "-o", truth, "--label-convention", "brats2021")
    assert set(np.unique(read_labels(truth))) == {0, 1, 2, 4}
    report, probabilities = tmp_path / "r.html", tmp_path / "p.nii.gz"
    printed = segment(
        *("--flair", case_files["flair"], "-o", tmp_path / "b.seg.nrrd", "--segments", "regions"),
        *("--report", report, "--report", report.with_suffix(".png"), "--probabilities", probabilities),
        *("--ground-truth", truth, "--ground-truth-convention", "brats2021"),
    )
    assert printed["dice"] == {"WT": 1.0, "TC": 1.0, "ET": 1.0}
    regions = sitk.ReadImage(str(tmp_path / "b.seg.nrrd"))
    assert regions.GetNumberOfComponentsPerPixel() == 3
    assert np.array_equal(sitk.GetArrayFromImage(regions)[..., 2] > 0, read_labels(truth) == 4)
    assert sitk.ReadImage(str(probabilities)).GetNumberOfComponentsPerPixel() == 3
    assert report.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    page = report.read_text(encoding="utf-8")
    assert "FLAIR" in page and "1.000" in page and "sha256" in page


def test_a_ground_truth_without_tumour_is_one(segment, tmp_path, case_files):
    """Comparing with a healthy volunteer: Dice of a found region is 0, not an error about a constant volume."""
    reference = sitk.ReadImage(str(case_files["flair"]))
    empty = sitk.Image(reference.GetSize(), sitk.sitkUInt8)
    empty.CopyInformation(reference)
    sitk.WriteImage(empty, str(tmp_path / "healthy.nii.gz"))
    printed = segment(
        *("--flair", case_files["flair"], "-o", tmp_path / "a.nii.gz", "--ground-truth", tmp_path / "healthy.nii.gz")
    )
    assert printed["dice"]["WT"] == (0.0 if printed["volumes_ml"]["WT"] else 1.0)


def test_headers_and_reports_hold_no_folder_names(segment, tmp_path, case_files):
    """A folder is often named after the patient."""
    shifted = tmp_path / "Doe_again" / "flair.nii.gz"  # overlaps too little: the notice that says so names both files
    shifted.parent.mkdir()
    sitk.WriteImage(brain_image(4, origin=(30.0, 0.0, 0.0)), str(shifted))
    inputs = ("--t2", case_files["t2"], "--flair", shifted, "--registered")
    printed = segment(*inputs, "-o", tmp_path / "a.nrrd", "--report", tmp_path / "r.html")
    assert any(str(shifted) in notice for notice in printed["notices"])
    page = re.sub(r"base64,[^\"']+", "", (tmp_path / "r.html").read_text(encoding="utf-8"))
    assert "t2.nii.gz" in page and "flair.nii.gz" in page
    assert "Doe" not in page and str(tmp_path) not in page
    image = sitk.ReadImage(str(tmp_path / "a.nrrd"))
    header = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    assert header["MSTKDSegment_input_T2"] == "t2.nii.gz"
    assert not any("Doe" in text for text in header.values())


def test_result_lies_on_the_grid_of_the_reference_that_was_asked_for(segment, tmp_path, case_files):
    thick = sitk.Shrink(brain_image(6), [1, 1, 2])
    sitk.WriteImage(thick, str(tmp_path / "thick.nii.gz"))
    inputs = ("--t1", case_files["t1"], "--flair", tmp_path / "thick.nii.gz")
    segment(*inputs, "--reference", "flair", "-o", tmp_path / "a.nii.gz", "--report", tmp_path / "r.png")
    assert sitk.ReadImage(str(tmp_path / "a.nii.gz")).GetSize() == thick.GetSize()
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_overwrite_replaces(segment, tmp_path, case_files):
    path = tmp_path / "a.nii.gz"
    path.write_text("old")
    segment("--t1", case_files["t1"], "-o", path, "--overwrite")
    assert read_labels(path).shape == SHAPE


def test_case_folder_of_dicom_series_is_read_by_its_tags(segment, tmp_path):
    tags = {"2": {"0008_103e": "AX FLAIR"}, "3": {"0008_103e": "AX T1", "0018_0010": "Gadavist"}}
    for name, texts in tags.items():
        write_dicom_series(tmp_path / "study" / name, brain_image(int(name)), **texts)
    printed = segment(tmp_path / "study", "-o", tmp_path / "a.nii.gz")
    assert {name: entry["source"] for name, entry in printed["inputs"].items()} == {
        "T1Gd": str(tmp_path / "study" / "3"),
        "FLAIR": str(tmp_path / "study" / "2"),
    }
    assert "Gadavist" in printed["inputs"]["T1Gd"]["reason"]


def test_files_without_telling_names_are_taken_by_their_look_where_that_is_asked_for(
    segment, tmp_path, monkeypatch, capsys
):
    def looks(path, _brain_of):
        shares = {"scan1": (0.0, 0.99, 0.01, 0.0), "scan2": (0.01, 0.0, 0.0, 0.99)}.get(path.name.partition(".")[0])
        return None if shares is None else Look(dict(zip(MODALITIES, shares)), 0.5)

    monkeypatch.setattr(case_inputs, "_look_at", looks)
    paths = write_case(tmp_path / "case", scan1=1, scan2=2, scan3=3)
    folder = paths["scan1"].parent
    assert main(["segment", str(folder), "-o", str(tmp_path / "a.nii.gz")]) == RoleError.exit_code
    said = capsys.readouterr().err
    assert "scan1.nii.gz as T1Gd by its look (p 0.97)" in said and "scan2.nii.gz as FLAIR by its look" in said
    assert "accept this with --by-look" in said and len(said.splitlines()) == 1
    printed = segment(folder, "--by-look", "-o", tmp_path / "a.nii.gz")
    assert {name: entry["source"] for name, entry in printed["inputs"].items()} == {
        "T1Gd": str(paths["scan1"]),
        "FLAIR": str(paths["scan2"]),
    }
    assert printed["inputs"]["T1Gd"]["reason"] == "by its look (p 0.97), please check"
    # What the user says about a file goes before how it looks.
    printed = segment(folder, "--by-look", "--t2", paths["scan1"], "--without", "FLAIR", "-o", tmp_path / "b.nii.gz")
    assert list(printed["inputs"]) == ["T2"]


def test_a_batch_takes_looks_too(random_bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(case_inputs, "_look_at", lambda *_: Look(dict(zip(MODALITIES, (0.0, 0.0, 0.0, 1.0))), 0.5))
    write_case(tmp_path / "cases" / "one", scan=4)
    words = ["segment", "--batch", tmp_path / "cases", "-o", tmp_path / "out", "--weights", random_bundle, "--by-look"]
    assert main([*map(str, words)]) == 0
    assert "1 segmented" in capsys.readouterr().out
    assert (tmp_path / "out" / "summary.csv").read_text().splitlines()[1].split(",")[3] == "FLAIR"


# --- what is printed -------------------------------------------------------------------------------------------------


def test_table_for_people(random_bundle, tmp_path, case_files, capsys):
    arguments = ["segment", "--t1", case_files["t1"], "-o", tmp_path / "a.nii.gz", "--weights", random_bundle]
    assert main([*map(str, arguments)]) == 0
    captured = capsys.readouterr()
    for text in ("Whole tumour (WT)", "0.900", "device: ", "a.nii.gz", "research use only", "Not a medical device"):
        assert text in captured.out
    assert captured.err == ""  # no bar where stderr is no terminal


def test_quiet_prints_notices_only(random_bundle, tmp_path, capsys):
    head = sitk.GetArrayFromImage(brain_image(1))
    noise = np.random.default_rng(0).normal(20, 5, SHAPE).astype(np.float32)
    image = sitk.GetImageFromArray(np.where(head > 0, head, noise))
    image.SetSpacing((2.0, 2.0, 2.0))
    sitk.WriteImage(image, str(tmp_path / "head.nii.gz"))
    arguments = ["segment", "--t1", tmp_path / "head.nii.gz", "-o", tmp_path / "a.nii.gz", "--quiet"]
    assert main([*map(str, arguments), "--weights", str(random_bundle)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mstkd: warning: ") and "The skull was removed here" in captured.err
    assert all(line.startswith("mstkd: warning: ") for line in captured.err.splitlines())


def test_json_error_is_one_object(tmp_path, capsys):
    missing = tmp_path / "missing.nii.gz"
    assert main(["segment", "--t1", str(missing), "-o", str(tmp_path / "a.nii.gz"), "--json"]) == 3
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["kind"] == "InputError" and error["exit_code"] == 3
    assert "missing.nii.gz" in error["message"]


def test_info(random_bundle, capsys):
    assert main(["info", "--weights", str(random_bundle)]) == 0
    text = capsys.readouterr().out
    for part in (
        "random",
        "compact",
        "million parameters",
        "for tests",
        "T1+T1Gd+T2+FLAIR",
        "0.700",
        str(random_bundle),
    ):
        assert part in text
    assert main(["info", "--weights", str(random_bundle), "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["expected_dice"]["T1Gd+FLAIR"] == EXPECTED_DICE
    assert info["card"]["sha256"] and info["parameters"] > 1e6 and len(info["expected_dice"]) == 15


# --- how a run ends --------------------------------------------------------------------------------------------------


def test_ctrl_c_leaves_nothing(random_bundle, tmp_path, case_files, capsys, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(segment_command, "write_report", interrupted)  # the first two files are written by then
    outputs = ["-o", tmp_path / "new" / "a.nii.gz", "-o", tmp_path / "b.nrrd", "--report", tmp_path / "r.html"]
    code = main(["segment", *map(str, ["--t1", case_files["t1"], *outputs, "--weights", random_bundle])])
    assert code == 130
    assert capsys.readouterr().err == "mstkd: cancelled; nothing was written\n"
    assert files_below(tmp_path) == []


def test_bug_is_one_line_and_the_traceback_on_request(tmp_path, case_files, capsys, monkeypatch):
    def broken(*_args, **_kwargs):
        raise ZeroDivisionError("1/0")

    monkeypatch.setattr(segment_command, "read_case", broken)
    arguments = ["segment", "--t1", str(case_files["t1"]), "-o", str(tmp_path / "a.nii.gz")]
    monkeypatch.delenv(cli.DEBUG_VARIABLE, raising=False)
    assert main(arguments) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and line.startswith("mstkd: error: this is a bug in mstkd: ZeroDivisionError: 1/0; ")
    assert "MSTKD_DEBUG=1" in line
    monkeypatch.setenv(cli.DEBUG_VARIABLE, "1")
    assert main(arguments) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["paint"],
        ["segment", "case"],
        ["segment", "-o", "a.nii.gz", "--window", "50"],
        ["segment", "-o", "a.nii.gz", "--reports"],
        ["segment", "--batch", "x", "-o", "out", "--t1", "a.nii.gz"],
        ["segment", "--batch", "x", "-o", "out", "-o", "out2"],
        ["segment", "--batch", "x", "-o", "out", "--segments", "regions", "--format", ".nii.gz"],
        ["bench", "--runs", "0"],
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(arguments, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("mstkd: error: ")


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mstkd {__version__}\n"
    assert main(["segment", "--help"]) == 0
    assert "--without" in capsys.readouterr().out


def test_help_imports_nothing_slow():
    code = (
        "import sys\nfrom MSTKDSegmentLib.cli import main\nmain(['segment', '--help'])\n"
        "slow = {'numpy', 'torch', 'SimpleITK', 'scipy', 'rich', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(repr(slow) if slow else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_choices_agree_with_the_library():
    assert set(cli.GROUND_TRUTH_CONVENTIONS) == {AUTO, *CONVENTIONS}
    assert set(cli.BATCH_FORMATS) == set(SEGMENTATION_ENDINGS)
    assert tuple(cli.BRAIN_EXTRACTORS) == EXTRACTORS
