"""Cases to review from folders and CSV files, and verdicts that survive crashes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import SHAPE, brain_image, image_of, write_case, write_dicom_series
from hypothesis import given
from hypothesis import strategies as st
from MSTKDSegmentLib.errors import InputError, OutputError
from MSTKDSegmentLib.review import verdicts
from MSTKDSegmentLib.review.verdicts import COLUMNS, VERDICTS, Verdict, append_verdict, latest, read_verdicts
from MSTKDSegmentLib.review.worklist import find_ground_truth, find_prediction, read_worklist
from MSTKDSegmentLib.segmentation_io import write_segmentation

SAMPLE = Path(__file__).resolve().parents[1] / "Resources" / "sample"


def write_labels(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image_of(np.ones(SHAPE, np.uint8)), str(path))
    return path


def test_a_case_folder_alone_is_a_worklist_of_one():
    (item,) = read_worklist(SAMPLE)
    assert item.name == "sample" and set(item.images) == {"T1", "T1Gd", "T2", "FLAIR"}
    assert item.ground_truth == SAMPLE / "sample_seg.nii.gz" and not item.problem


def test_folders_of_cases_and_of_predictions(tmp_path):
    for name in ("anna", "bert"):
        write_case(tmp_path / "cases" / name, t1=1, flair=2)
    truth = write_labels(tmp_path / "cases" / "anna" / "anna_seg.nii.gz")
    first = write_labels(tmp_path / "first" / "anna.seg.nrrd")
    second = write_labels(tmp_path / "second" / "anna" / "labels.nii.gz")
    write_labels(tmp_path / "other" / "second" / "bert.nii.gz")
    folders = [tmp_path / "first", tmp_path / "second", tmp_path / "other" / "second"]
    anna, bert = read_worklist(tmp_path / "cases", folders)
    assert anna.predictions == {"first": first, "second": second} and anna.ground_truth == truth
    assert set(bert.predictions) == {"other/second"} and bert.ground_truth is None
    assert anna.missing == ("other/second",) and bert.missing == ("first", "second")
    with pytest.raises(InputError, match="no such folder of predictions"):
        read_worklist(tmp_path / "cases", [tmp_path / "nowhere"])


def test_a_case_whose_volumes_cannot_be_told_apart_keeps_its_place(tmp_path):
    write_case(tmp_path / "cases" / "anna", a_flair=1, b_flair=2)
    (item,) = read_worklist(tmp_path / "cases")
    assert not item.images and "--flair" in item.problem


def test_a_table_names_files_and_several_predictions(tmp_path):
    table = tmp_path / "cases.csv"
    table.write_text(
        "case,t1,prediction ours,prediction theirs,ground_truth\nanna,a/t1.nii.gz,a/x.nii.gz,,a/seg.nii.gz\n"
    )
    (item,) = read_worklist(table)
    assert item.predictions == {"ours": tmp_path / "a/x.nii.gz"}
    assert item.images == {"T1": tmp_path / "a/t1.nii.gz"} and item.ground_truth == tmp_path / "a/seg.nii.gz"
    table.write_text("case,prediction,ground_truth\nanna,x.nii.gz,seg.nii.gz\n")
    assert read_worklist(table)[0].predictions == {"prediction": tmp_path / "x.nii.gz"}
    for line, words in (
        ("case,t1,prediction,prediction prediction\nanna,a,b,c\n", "two columns of predictions"),
        ("case,t1,prediction\nanna,a,~nobody-of-this-name/x\n", "give the whole path"),
    ):
        table.write_text(line)
        with pytest.raises(InputError, match=words):
            read_worklist(table)
    table.write_text("case,prediction\nanna,x.nii.gz\n")
    with pytest.raises(InputError, match="at least one of"):
        read_worklist(table)


def test_of_two_segmentations_none_is_the_ground_truth(tmp_path):
    write_labels(tmp_path / "a_seg.nii.gz")
    assert find_ground_truth(tmp_path) == tmp_path / "a_seg.nii.gz"
    write_labels(tmp_path / "b_mask.nii.gz")
    assert find_ground_truth(tmp_path) is None
    write_case(tmp_path, t1=1)
    (item,) = read_worklist(tmp_path)
    assert item.ground_truth is None and "a_seg.nii.gz, b_mask.nii.gz: which is the ground truth?" in item.problem


def test_a_result_of_ours_and_a_brain_mask_are_no_ground_truth(tmp_path):
    labels = np.zeros(SHAPE, np.uint8)
    labels[3, 3, 3] = 2
    made = {"bundle": "mstkd-compact sha256 1"}
    write_segmentation(tmp_path / "result.seg.nrrd", labels, image_of(labels), metadata=made)
    for name in ("t1_brain_mask.nii.gz", "BrainMask.nii.gz", "bet_mask.nii.gz"):
        write_labels(tmp_path / name)
    assert find_ground_truth(tmp_path) is None
    truth = write_labels(tmp_path / "BrainTumourMask.nii.gz")
    assert find_ground_truth(tmp_path) == truth
    # As predictions such results are found.
    (tmp_path / "set" / "anna").mkdir(parents=True)
    write_segmentation(tmp_path / "set" / "anna" / "anna.seg.nrrd", labels, image_of(labels), metadata=made)
    assert find_prediction(tmp_path / "set", "anna") is not None


def test_a_prediction_is_found_by_its_case_or_as_the_only_file(tmp_path):
    assert find_prediction(tmp_path, "nobody") is None
    alone = write_labels(tmp_path / "anna" / "result.nii.gz")
    assert find_prediction(tmp_path, "anna") == alone
    write_labels(tmp_path / "anna" / "other.nii.gz")
    assert find_prediction(tmp_path, "anna") is None
    called = write_labels(tmp_path / "anna" / "anna_seg.nii.gz")
    assert find_prediction(tmp_path, "anna") == called
    loud = write_labels(tmp_path / "BERT.nii").rename(tmp_path / "BERT.NII")
    assert find_prediction(tmp_path, "bert") == loud


def test_one_case_in_folders_of_dicom_series(tmp_path):
    for name, seed in (("t1", 1), ("flair", 2)):
        write_dicom_series(tmp_path / "anna" / name, brain_image(seed), **{"0008|103e": name})
    (item,) = read_worklist(tmp_path / "anna")
    assert item.name == "anna" and set(item.images) == {"T1", "FLAIR"}
    (item,) = read_worklist(tmp_path)
    assert item.name == "anna" and set(item.images) == {"T1", "FLAIR"}


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_verdicts_are_appended_and_the_last_counts(tmp_path):
    path = tmp_path / "deep" / "verdicts.csv"
    assert read_verdicts(path) == []
    append_verdict(path, Verdict("anna", "ours", "reject", 12.345, 'misses the core,\nsays "Zoë"'))
    written = append_verdict(path, Verdict("anna", "ours", "accept", 3.0))
    assert written.time.endswith("Z")
    found = read_verdicts(path)
    assert [one.verdict for one in found] == ["reject", "accept"]
    assert found[0].comment == 'misses the core, says "Zoë"' and found[0].seconds == 12.3
    assert latest(found) == {("anna", "ours"): written}
    assert path.read_text(encoding="utf-8").splitlines()[0] == ",".join(COLUMNS)


@given(cut=st.integers(1, 200), comment=st.text(max_size=30), torn=st.sampled_from(["x" * 90, 'bad, "very" ' * 20]))
def test_a_line_that_a_crash_cut_spoils_no_other(cut, comment, torn, tmp_path_factory):
    path = tmp_path_factory.mktemp("verdicts") / "v.csv"
    append_verdict(path, Verdict("a", "p", "accept", 1.0, "first"))
    whole = path.stat().st_size
    append_verdict(path, Verdict("b", "p", "reject", 2.0, torn))
    end = path.stat().st_size
    with path.open("rb+") as file:
        file.truncate(min(whole + cut, end - 2))
    third = append_verdict(path, Verdict("c", "p", "minor edits", 3.0, comment))
    append_verdict(path, Verdict("d", "p", "accept", 4.0))
    found = read_verdicts(path)
    assert [one.case for one in found] == ["a", "c", "d"]
    assert found[1] == third


def test_a_header_that_a_crash_cut_is_no_strangers(tmp_path):
    path = tmp_path / "v.csv"
    path.write_text("case,predi")
    written = append_verdict(path, Verdict("a", "p", "accept", 1.0))
    assert read_verdicts(path) == [written]


def test_what_no_text_file_holds_becomes_a_blank(tmp_path):
    written = append_verdict(tmp_path / "v.csv", Verdict("c  1", "p\n2", "accept", 1.26, "a\0b \ud800"))
    assert (written.case, written.prediction, written.seconds, written.comment) == ("c 1", "p 2", 1.3, "a b ?")
    assert read_verdicts(tmp_path / "v.csv") == [written]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no limit on the size of files")
def test_a_disk_that_is_really_full_leaves_no_half_line(tmp_path):
    """In a child process whose files may not grow beyond a limit."""
    path = tmp_path / "v.csv"
    append_verdict(path, Verdict("a", "p", "accept", 1.0))
    before = path.read_bytes()
    script = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from MSTKDSegmentLib.errors import OutputError\n"
        "from MSTKDSegmentLib.review.verdicts import Verdict, append_verdict\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 9},) * 2)\n"
        "try: append_verdict(Path(sys.argv[1]), Verdict('b', 'p', 'reject', 1.0, 'bad, very bad'))\n"
        "except OutputError as error: print(error)\n"
    )
    library = str(Path(verdicts.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": library},
    )  # fmt: skip
    assert "could not be written (File too large)" in done.stdout
    assert path.read_bytes() == before


def test_a_full_disk_leaves_what_is_there(tmp_path, monkeypatch):
    path = tmp_path / "v.csv"
    append_verdict(path, Verdict("a", "p", "accept", 1.0))
    before = path.read_bytes()

    def full(_number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"v\.csv: the verdict could not be written \(No space left on device\)"):
        append_verdict(path, Verdict("b", "p", "accept", 1.0))
    assert path.read_bytes() == before


def test_another_programs_file_is_not_touched(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("a,b\n1,2\n")
    for use in (lambda: append_verdict(path, Verdict("a", "p", "accept", 1.0)), lambda: read_verdicts(path)):
        with pytest.raises(OutputError, match="not a table of verdicts"):
            use()
    assert path.read_text() == "a,b\n1,2\n"


def test_verdicts_are_four():
    assert VERDICTS == ("accept", "minor edits", "major edits", "reject")
    with pytest.raises(InputError, match="unknown verdict 'good'"):
        Verdict("a", "p", "good", 1.0)
