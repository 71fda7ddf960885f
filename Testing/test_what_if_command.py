"""`mstkd what-if` from the command line to its files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from MSTKDSegmentLib.cli import main

pytest.importorskip("torch")


@pytest.fixture
def run(random_bundle, case_files, capsys):
    """Runs `mstkd what-if --t1 ... --flair ... --json`; gives the exit code and the printed object."""

    def call(*arguments):
        words = ["what-if", "--t1", case_files["t1"], "--flair", case_files["flair"], "--weights", random_bundle]
        code = main([*map(str, [*words, "--device", "cpu", "--json", *arguments])])
        return code, json.loads(capsys.readouterr().out)

    return call


def test_table_report_and_map(run, tmp_path, case_files):
    page, figures, maps = tmp_path / "w.html", tmp_path / "w.json", tmp_path / "u.nrrd"
    code, printed = run("-o", page, "-o", figures, "--uncertainty", maps)
    assert code == 0 and printed["against"] == "full set"
    assert [one["subset"] for one in printed["subsets"]] == ["T1", "FLAIR", "T1+FLAIR"]
    assert printed["subsets"][-1]["dice"] == {"WT": 1.0, "TC": 1.0, "ET": 1.0}
    alone = {one["subset"]: one["dice"]["WT"] for one in printed["subsets"]}
    assert printed["carried_by"]["WT"]["T1"] == pytest.approx(1.0 - alone["FLAIR"])
    text = page.read_text(encoding="utf-8")
    assert "T1+FLAIR" in text and str(case_files["t1"].parent) not in text
    assert json.loads(figures.read_text(encoding="utf-8"))["what_if"]["subsets"] == printed["subsets"]
    image = sitk.ReadImage(str(maps))
    assert image.GetSize() == sitk.ReadImage(str(case_files["t1"])).GetSize()
    shares = sitk.GetArrayFromImage(image)
    assert shares.shape[-1] == 3 and shares.min() >= 0 and 0 < shares.max() <= 1
    assert np.allclose(shares * 5, np.rint(shares * 5), atol=1e-5)  # two subsets and three mirrored runs


def test_a_ground_truth_is_what_it_is_compared_with(run, tmp_path, random_bundle, case_files, capsys):
    truth = tmp_path / "truth.nii.gz"
    words = ["segment", "--t1", case_files["t1"], "--flair", case_files["flair"], "-o", truth, "--json"]
    assert main([*map(str, words), "--weights", str(random_bundle), "--device", "cpu"]) == 0
    capsys.readouterr()
    code, printed = run("--ground-truth", truth)
    assert code == 0 and printed["against"] == "ground truth"
    assert printed["subsets"][-1]["dice"]["WT"] == 1.0  # it is its own


def test_for_people_there_are_tables(random_bundle, case_files, capsys):
    words = ["what-if", "--t1", case_files["t1"], "--flair", case_files["flair"], "--weights", random_bundle]
    assert main([*map(str, words), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert (
        "against what all sequences together give" in shown
        and "T1+FLAIR" in shown
        and "of its volume changes in the mean" in shown
    )
    assert "For research use only" in shown


def test_outputs_are_checked_before_anything_is_run(run, tmp_path, case_files):
    there, mask = tmp_path / "w.html", tmp_path / "mask.nii.gz"
    mask.write_bytes(case_files["t1"].read_bytes())
    there.write_text("mine")
    for arguments, words in (
        (("-o", there), "exists already"),
        (("-o", tmp_path / "w.txt"), "unknown file ending"),
        (("--uncertainty", case_files["t1"], "--overwrite"), "is an input"),
        (("-o", tmp_path / "b.html", *("-o", tmp_path / "a.html") * 2), "a.html is given for two outputs"),
        (("--brain-mask", mask, "--uncertainty", mask, "--overwrite"), "mask.nii.gz is an input"),
    ):
        code, printed = run(*arguments)
        assert code == 8 and words in printed["error"]["message"]
    assert there.read_text() == "mine"
