"""`mstkd segment --batch`: one bad case, resuming, lists that cannot be read, Ctrl-C."""

from __future__ import annotations

import csv
import json
import os
import shutil

import pytest
from conftest import files_below, write_case
from MSTKDSegmentLib import batch
from MSTKDSegmentLib.batch import COLUMNS, read_summary
from MSTKDSegmentLib.cli import main

pytest.importorskip("torch")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def run(random_bundle, out, capsys):
    """Runs `mstkd segment --batch SOURCE -o out ... --json`; gives the exit code and the printed object."""

    def call(source, *arguments):
        words = ["segment", "--batch", source, "-o", out, "--weights", random_bundle, "--json", *arguments]
        code = main([*map(str, words)])
        captured = capsys.readouterr()
        assert len(captured.err.splitlines()) == (code != 0), captured.err
        return code, json.loads(captured.out)

    return call


def summary(out):
    with (out / "summary.csv").open(newline="", encoding="utf-8") as stream:
        return {row["case"]: row for row in csv.DictReader(stream)}


def write_csv(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return path


# --- folders of cases ------------------------------------------------------------------------------------------------


def test_bad_case_then_resume_then_overwrite(run, tmp_path, out):
    cases = tmp_path / "cases"
    write_case(cases / "anna", flair=4, t1=1)
    write_case(cases / "carl", t2=3)
    (cases / "bert").mkdir()

    code, printed = run(cases, "--format", ".nii.gz", "--without", "T1")
    assert code == 9 and printed["error"]["kind"] == "BatchError"
    assert printed["ok"] == ["anna", "carl"] and list(printed["failed"]) == ["bert"]
    assert files_below(out) == ["anna.nii.gz", "carl.nii.gz", "summary.csv"]
    rows = summary(out)
    assert [rows[name]["status"] for name in ("anna", "bert", "carl")] == ["ok", "failed", "ok"]
    assert "holds no volume" in rows["bert"]["error"]
    assert rows["anna"]["sequences"] == "FLAIR" and rows["anna"]["output"] == "anna.nii.gz"
    assert float(rows["anna"]["WT_ml"]) > 0 and len(rows["anna"]["bundle_sha256"]) == 64

    write_case(cases / "bert", t2=5)  # repaired: only this one is run
    os.utime(cases / "carl" / "t2.nii.gz", ns=(1, 1))  # changed: neither skipped nor overwritten unasked
    code, printed = run(cases, "--format", ".nii.gz", "--without", "T1")
    assert code == 9 and printed["ok"] == ["bert"] and printed["skipped"] == ["anna"]
    assert "made from other inputs, weights or settings" in printed["failed"]["carl"]
    assert "--overwrite" in printed["error"]["message"]
    assert summary(out)["carl"] == rows["carl"]  # it still describes the file that is there

    code, printed = run(cases, "--format", ".nii.gz", "--without", "T1", "--overwrite")
    assert code == 0 and printed["ok"] == ["anna", "bert", "carl"] and printed["skipped"] == []
    assert {row["status"] for row in summary(out).values()} == {"ok"}


def test_results_beside_the_cases_are_no_case(run, tmp_path, out):
    write_case(tmp_path / "anna", t2=3)
    for _ in range(2):
        code, printed = run(tmp_path)
        assert code == 0 and printed["failed"] == {}
    assert printed["skipped"] == ["anna"]
    assert files_below(out) == ["anna.seg.nrrd", "summary.csv"]


def test_results_of_a_run_among_others_beside_the_cases_are_no_case(random_bundle, tmp_path, capsys):
    write_case(tmp_path / "anna", t2=3)
    words = ["--batch", tmp_path, "-o", tmp_path / "results" / "run1", "--weights", random_bundle, "--json"]
    for became in ("ok", "skipped"):
        assert main(["segment", *map(str, words)]) == 0
        assert json.loads(capsys.readouterr().out)[became] == ["anna"]


def test_result_that_the_summary_does_not_know(run, tmp_path, out):
    """As after a run that was killed between writing the result and noting it."""
    write_case(tmp_path / "cases" / "anna", t2=3)
    assert run(tmp_path / "cases")[0] == 0
    (out / "summary.csv").unlink()
    for _ in range(2):
        code, printed = run(tmp_path / "cases")
        assert code == 9 and "summary.csv does not say what made it" in printed["failed"]["anna"]
        assert summary(out)["anna"]["status"] == "failed"
    assert run(tmp_path / "cases", "--overwrite")[0] == 0
    assert run(tmp_path / "cases")[1]["skipped"] == ["anna"]


def test_failure_keeps_the_line_of_a_result_that_is_there(run, tmp_path, out, monkeypatch):
    write_case(tmp_path / "cases" / "anna", t2=3)
    run(tmp_path / "cases")
    before = summary(out)
    monkeypatch.setattr(batch, "segment_case", lambda *_: 1 / 0)
    code, printed = run(tmp_path / "cases", "--overwrite")
    assert code == 9 and "ZeroDivisionError" in printed["failed"]["anna"]
    assert summary(out) == before
    (out / "anna.seg.nrrd").unlink()
    assert run(tmp_path / "cases")[0] == 9
    assert summary(out)["anna"]["status"] == "failed"


def test_one_of_two_outputs_lost(run, tmp_path, out):
    write_case(tmp_path / "cases" / "anna", t2=3)
    run(tmp_path / "cases", "--reports")
    (out / "anna.html").unlink()
    code, printed = run(tmp_path / "cases", "--reports")
    assert code == 9 and "anna.html is missing" in printed["failed"]["anna"]
    assert summary(out)["anna"]["status"] == "ok"


def test_two_cases_whose_reports_would_be_one_file_are_refused(run, tmp_path, out):
    for name in ("anna", "anna-quality"):
        write_case(tmp_path / "cases" / name, t2=3)
    code, printed = run(tmp_path / "cases", "--reports")
    assert code != 0 and "rename one of the cases" in printed["error"]["message"]
    assert not out.exists()
    assert run(tmp_path / "cases")[1]["ok"] == ["anna", "anna-quality"]  # without reports nothing collides


def test_what_is_kept_beside_the_cases_is_no_case(run, tmp_path, out):
    write_case(tmp_path / "cases" / "anna", t2=3)
    for outcome in ("ok", "skipped"):
        code, printed = run(tmp_path / "cases", "--keep", tmp_path / "cases" / "kept")
        assert code == 0 and printed[outcome] == ["anna"]


def test_what_was_kept_of_other_sequences_does_not_stay_beside_the_new(run, tmp_path, out):
    write_case(tmp_path / "cases" / "anna", t2=3, flair=4)
    kept = tmp_path / "kept" / "anna"
    assert run(tmp_path / "cases", "--keep", tmp_path / "kept")[0] == 0
    assert {"T2_prepared.nii.gz", "FLAIR_prepared.nii.gz"} < set(files_below(kept))
    (kept / "notes.txt").write_text("mine")
    (out / "anna.seg.nrrd").unlink()
    for name in ("FLAIR_prepared.nii.gz", "canonical_to_FLAIR.tfm", "brain_mask.nii.gz", "brain_mask_native.nrrd"):
        (kept / name).unlink()
    (kept / "preparation.json").unlink()
    less = [tmp_path / "cases", "--keep", tmp_path / "kept", "--without", "T2"]
    code, printed = run(*less)
    assert code == 9 and "earlier run with other sequences" in printed["failed"]["anna"]
    assert "T2_prepared.nii.gz" in files_below(kept)
    assert run(*less, "--overwrite")[0] == 0
    assert not [name for name in files_below(kept) if "T2" in name]
    assert {"FLAIR_prepared.nii.gz", "canonical_to_FLAIR.tfm", "notes.txt"} < set(files_below(kept))


def test_a_folder_whose_name_is_not_utf8_fails_alone(run, tmp_path, out):
    write_case(tmp_path / "cases" / "anna", t2=3)
    write_case(tmp_path / "cases" / "zoe", t2=3)
    try:
        (tmp_path / "cases" / os.fsdecode(b"M\xfcller")).mkdir()
    except OSError:  # macOS and Windows take no such name
        pytest.skip("this file system takes UTF-8 names only")
    for outcome in ("ok", "skipped"):
        code, printed = run(tmp_path / "cases")
        assert code == 9 and printed[outcome] == ["anna", "zoe"]
        assert ["not UTF-8" in error for error in printed["failed"].values()] == [True]
    assert sorted(row["status"] for row in summary(out).values()) == ["failed", "ok", "ok"]


def test_a_home_folder_for_what_is_kept_is_found_again(run, tmp_path, out, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write_case(tmp_path / "cases" / "anna", t2=3)
    assert run(tmp_path / "cases", "--keep", "~/kept")[1]["ok"] == ["anna"]
    assert (tmp_path / "kept" / "anna" / "T2_prepared.nii.gz").is_file()
    assert run(tmp_path / "cases", "--keep", "~/kept")[1]["skipped"] == ["anna"]


def test_lost_output_is_made_again(run, tmp_path, out):
    write_case(tmp_path / "cases" / "anna", t2=3)
    assert run(tmp_path / "cases", "--reports")[1]["ok"] == ["anna"]
    assert files_below(out) == ["anna-quality.html", "anna.html", "anna.seg.nrrd", "summary.csv"]
    for path in (out / "anna.seg.nrrd", out / "anna.html", out / "anna-quality.html"):
        path.unlink()
    assert run(tmp_path / "cases", "--reports")[1]["ok"] == ["anna"]


def test_ctrl_c_keeps_what_is_done(run, tmp_path, out, monkeypatch):
    write_case(tmp_path / "cases" / "anna", t2=3)
    write_case(tmp_path / "cases" / "bert", t2=4)
    real = batch.segment_case

    def interrupted_at_bert(request, *rest):
        if request.title == "bert":
            raise KeyboardInterrupt
        return real(request, *rest)

    monkeypatch.setattr(batch, "segment_case", interrupted_at_bert)
    code, printed = run(tmp_path / "cases")
    assert code == 130 and "1 of 2 cases" in printed["error"]["message"]
    assert files_below(out) == ["anna.seg.nrrd", "summary.csv"]
    monkeypatch.undo()
    code, printed = run(tmp_path / "cases")
    assert code == 0 and printed["skipped"] == ["anna"] and printed["ok"] == ["bert"]


def test_bug_in_one_case_does_not_end_the_run(run, tmp_path, monkeypatch):
    write_case(tmp_path / "cases" / "anna", t2=3)
    monkeypatch.setattr(batch, "segment_case", lambda *_: 1 / 0)
    code, printed = run(tmp_path / "cases")
    assert code == 9 and "ZeroDivisionError" in printed["failed"]["anna"]


def test_table_for_people(random_bundle, tmp_path, out, capsys):
    (tmp_path / "cases" / "bert").mkdir(parents=True)
    arguments = ["segment", "--batch", tmp_path / "cases", "-o", out, "--weights", random_bundle]
    assert main([*map(str, arguments)]) == 9
    captured = capsys.readouterr()
    assert "bert" in captured.out and "0 segmented, 0 kept from before, 1 failed" in captured.out
    assert captured.err.startswith("mstkd: error: 1 of 1 cases failed (bert)")


# --- CSV lists -------------------------------------------------------------------------------------------------------


def test_csv_with_relative_paths_empty_cells_reference_and_ground_truth(run, tmp_path, out):
    write_case(tmp_path / "data", t1=1, flair=4)
    source = write_csv(
        tmp_path / "cases.csv",
        "Case,T1,FLAIR,reference",
        "anna,data/t1.nii.gz,data/flair.nii.gz,flair",
        "bert,,data/flair.nii.gz,",
        "",
        "carl,,,",
        "dora,data/lost.nii.gz,,",
    )
    code, printed = run(source, "--format", ".nii.gz")
    rows = summary(out)
    assert code == 9 and printed["ok"] == ["anna", "bert"]
    assert rows["anna"]["sequences"] == "T1+FLAIR" and rows["anna"]["reference"] == "FLAIR"
    assert rows["bert"]["sequences"] == "FLAIR" and rows["bert"]["dice_WT"] == ""
    assert "cases.csv line 5" in rows["carl"]["error"] and "no sequence" in rows["carl"]["error"]
    assert "cases.csv line 6" in rows["dora"]["error"] and "lost.nii.gz" in rows["dora"]["error"]

    shutil.copy(out / "bert.nii.gz", tmp_path / "truth.nii.gz")
    source = write_csv(tmp_path / "more.csv", "case,flair,ground_truth", "emil,data/flair.nii.gz,truth.nii.gz")
    assert run(source)[0] == 0
    rows = summary(out)
    assert float(rows["emil"]["dice_ET"]) == 1.0
    assert "anna" in rows  # lines of other cases stay


@pytest.mark.parametrize(
    "lines, words",
    [
        (["case,t1,t3", "a,x,y"], ["line 1", "'t3'"]),
        (["case,t1,t1", "a,x,y"], ["line 1", "twice"]),
        (["t1", "x"], ["line 1", "column case"]),
        (["case,t1", "a,x", "A,y"], ["line 3", "line 2", "'A'"]),
        (["case,t1", ",x"], ["line 2", "no case name"]),
        (["case,t1", "../a,x"], ["line 2", "file name"]),
        (["case,t1", "a,x,y"], ["line 2", "3 cells"]),
        (["case,t1,reference", "a,x,ct"], ["line 2", "'ct'"]),
        (["case,t1"], ["holds no cases"]),
        ([""], ["line 1", "column"]),
    ],
)
def test_list_that_cannot_be_read_ends_before_anything_is_run(lines, words, run, tmp_path, out):
    code, printed = run(write_csv(tmp_path / "cases.csv", *lines))
    assert code == 3
    for word in ["cases.csv", *words]:
        assert word in printed["error"]["message"]
    assert not out.exists()


def test_no_list_at_all(run, tmp_path, out):
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary.csv").write_bytes(b"case,t1\n\xff\xfe\x00")
    for name, word in (("absent", "no such"), ("empty", "no cases"), ("binary.csv", "UTF-8")):
        code, printed = run(tmp_path / name)
        assert code == 3 and word in printed["error"]["message"]
    assert not out.exists()


# --- the folder of results -------------------------------------------------------------------------------------------


def test_foreign_summary_is_not_touched(run, tmp_path, out):
    write_case(tmp_path / "cases" / "anna", t2=3)
    out.mkdir()
    (out / "summary.csv").write_text("my,own\n1,2\n")
    code, printed = run(tmp_path / "cases", "--overwrite")
    assert code == 8 and "not a summary" in printed["error"]["message"]
    assert (out / "summary.csv").read_text() == "my,own\n1,2\n"


def test_file_in_the_place_of_the_folder(run, tmp_path, out):
    write_case(tmp_path / "cases" / "anna", t2=3)
    out.write_text("mine")
    code, printed = run(tmp_path / "cases")
    assert code == 8 and "is a file" in printed["error"]["message"]
    assert out.read_text() == "mine"


def test_summary_round_trip(tmp_path):
    row = {**dict.fromkeys(COLUMNS, ""), "case": "ä, b", "error": 'said "no"\nand left'}
    batch.write_summary(tmp_path / "summary.csv", {"ä, b": row})
    assert read_summary(tmp_path / "summary.csv") == {"ä, b": row}


def test_line_of_the_summary_that_someone_shortened(tmp_path):
    path = tmp_path / "summary.csv"
    path.write_text(",".join(COLUMNS) + "\nanna,ok\nbert," + "x," * len(COLUMNS) + "\n")
    rows = read_summary(path)
    assert rows["anna"] == {**dict.fromkeys(COLUMNS, ""), "case": "anna", "status": "ok"}
    batch.write_summary(path, rows)
    assert read_summary(path) == rows
