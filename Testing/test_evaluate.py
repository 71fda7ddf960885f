"""`mstkd evaluate`: the same rows whoever counts them, resuming, one bad case, several processes and ranks."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import time

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import files_below, write_case
from html_pages import Reader
from MSTKDSegmentLib.cli import main
from MSTKDSegmentLib.errors import InputError
from MSTKDSegmentLib.metrics import region_dice
from MSTKDSegmentLib.review import evaluate as evaluate_module
from MSTKDSegmentLib.review import evaluate_case
from MSTKDSegmentLib.review.evaluate import COLUMNS, rank_and_ranks
from MSTKDSegmentLib.review.evaluate_case import OURS
from MSTKDSegmentLib.review.processes import ProcessDied, in_processes
from MSTKDSegmentLib.review.scores import review_scores
from review_cases import tumour, write_labels, write_patients

pytest.importorskip("torch")

NAMES = ("anna", "bert", "carl")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def run(random_bundle, out, capsys):
    """Runs `mstkd evaluate SOURCE -o out ... --json`; gives the exit code and the printed object."""

    def call(source, *arguments):
        words = ["evaluate", source, "-o", out, "--weights", random_bundle, "--json", *arguments]
        code = main([*map(str, words)])
        captured = capsys.readouterr()
        assert len(captured.err.splitlines()) == (code != 0), captured.err
        return code, json.loads(captured.out)

    return call


@pytest.fixture
def patients(tmp_path):
    """A folder of three patients with one sequence each, and two folders of predictions: perfect, and shifted by 2."""
    truths = {name: tumour(shift=number) for number, name in enumerate(NAMES)}
    source = write_patients(tmp_path / "patients", truths, t2=3)
    for number, name in enumerate(NAMES):
        write_labels(tmp_path / "perfect" / f"{name}.nii.gz", truths[name])
        write_labels(tmp_path / "shifted" / f"{name}.nii.gz", tumour(shift=number + 2))
    return source


def table(out, name="scores.csv"):
    with (out / name).open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def touch(path):
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))


def no_network(*_):
    raise AssertionError("the network was asked for")


# --- what is written -------------------------------------------------------------------------------------------------


def test_predictions_are_scored_without_any_network(run, patients, tmp_path, out, monkeypatch):
    monkeypatch.setattr(evaluate_module, "load_segmenter", no_network)
    monkeypatch.setattr(evaluate_module, "read_bundle", no_network)
    code, printed = run(patients, "--predictions", tmp_path / "perfect", "--predictions", tmp_path / "shifted")
    assert code == 0 and printed["done"] == list(NAMES) and printed["kept"] == []
    rows = table(out)
    assert len(rows) == 3 * 2 * 3
    dice = region_dice(tumour(2), tumour())
    for row in rows:
        expected = 1.0 if row["prediction"] == "perfect" else dice[row["region"]]
        assert float(row["dice"]) == pytest.approx(expected, abs=1e-5)
        assert row["status"] == "ok" and float(row["reference_ml"]) > 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["predictions"]["shifted"]["ET"]["dice"]["mean"] == pytest.approx(dice["ET"])
    assert summary["predictions"]["perfect"]["WT"]["statuses"]["ok"] == 3 and summary["cases"] == 3
    assert files_below(out)[0] == ".cases" and {"cohort.html", "scores.csv", "summary.json"} <= set(files_below(out))
    assert not (out / "failed.csv").exists()


def test_columns_are_those_of_a_regions_scores():
    row = review_scores(tumour(), tumour(2), (2.0, 2.0, 2.0))[0].to_dict()
    assert ("case", "prediction", *row) == COLUMNS


def test_cases_without_prediction_are_segmented_and_the_result_is_kept(run, patients, out):
    code, printed = run(patients / "anna", "--reports")
    assert code == 0 and printed["done"] == ["anna"]
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "predictions" / "anna.seg.nrrd")))
    expected = region_dice(labels, tumour())
    assert {row["region"]: float(row["dice"]) for row in table(out)} == pytest.approx(expected, abs=1e-5)
    assert {row["prediction"] for row in table(out)} == {OURS}
    page = " ".join(" ".join(Reader((out / "cases" / "anna.html").read_text(encoding="utf-8")).text).split())
    assert "anna_seg.nii.gz: BraTS 2023" in page and "random sha256" in page and "sequences T2" in page
    assert str(out) not in page
    assert 'href="cases/anna.html"' in (out / "cohort.html").read_text(encoding="utf-8")


def test_a_csv_with_several_predictions_of_a_case(run, patients, tmp_path, out):
    source = tmp_path / "cases.csv"
    source.write_text(
        "case,ground_truth,prediction two,prediction four\n"
        "x,patients/anna/anna_seg.nii.gz,perfect/anna.nii.gz,shifted/anna.nii.gz\n"
        "y,patients/bert/bert_seg.nii.gz,,perfect/bert.nii.gz\n"
    )
    code, _ = run(source)
    assert code == 0
    found = {(row["case"], row["prediction"]) for row in table(out)}
    assert found == {("x", "two"), ("x", "four"), ("y", "four")}
    assert "two - four" in (out / "cohort.html").read_text(encoding="utf-8")


def test_a_ground_truth_of_the_whole_tumour_is_scored_for_it_alone(run, patients, tmp_path, out):
    write_labels(patients / "anna" / "anna_seg.nii.gz", (tumour() > 0).astype(np.uint8))
    assert run(patients / "anna", "--predictions", tmp_path / "shifted")[0] == 0
    assert [row["region"] for row in table(out)] == ["WT"]
    assert "mask of the whole tumour" in (out / "cohort.html").read_text(encoding="utf-8")  # it is told as a notice


# --- one bad case, and going on --------------------------------------------------------------------------------------


def test_a_bad_case_is_noted_and_mended_alone(run, patients, tmp_path, out, capsys):
    (patients / "bert" / "bert_seg.nii.gz").write_bytes(b"no image")
    (patients / "dora").mkdir()
    code, printed = run(patients, "--predictions", tmp_path / "perfect")
    assert code == 9 and printed["error"]["kind"] == "BatchError" and printed["done"] == ["anna", "carl"]
    assert [row["case"] for row in table(out, "failed.csv")] == ["bert", "dora"]
    assert "bert_seg.nii.gz" in printed["failed"]["bert"] and "no ground truth" in printed["failed"]["dora"]
    assert "bert_seg.nii.gz" in (out / "cohort.html").read_text(encoding="utf-8")

    write_labels(patients / "bert" / "bert_seg.nii.gz", tumour(1))
    (patients / "dora").rmdir()
    code, printed = run(patients, "--predictions", tmp_path / "perfect")
    assert code == 0 and printed["done"] == ["bert"] and printed["kept"] == ["anna", "carl"]
    assert not (out / "failed.csv").exists() and len(table(out)) == 9


def test_what_has_changed_is_done_again_and_nothing_else(run, patients, tmp_path):
    arguments = (patients, "--predictions", tmp_path / "perfect")
    assert run(*arguments)[1]["done"] == list(NAMES)
    assert run(*arguments)[1]["kept"] == list(NAMES)
    touch(patients / "anna" / "anna_seg.nii.gz")
    touch(tmp_path / "perfect" / "carl.nii.gz")
    assert run(*arguments)[1]["kept"] == ["bert"]
    assert run(*arguments, "--ground-truth-convention", "brats2023")[1]["kept"] == []
    assert run(*arguments, "--ground-truth-convention", "brats2023", "--overwrite")[1]["done"] == list(NAMES)


def test_a_page_is_made_later_without_segmenting_again(run, patients, out, monkeypatch):
    assert run(patients / "anna")[0] == 0
    before = (out / "predictions" / "anna.seg.nrrd").stat().st_mtime_ns
    monkeypatch.setattr(evaluate_case, "segment_case", no_network)
    assert run(patients / "anna", "--reports")[1]["done"] == ["anna"]
    assert run(patients / "anna", "--reports")[1]["kept"] == ["anna"]
    (out / "cases" / "anna.html").unlink()
    assert run(patients / "anna", "--reports")[1]["done"] == ["anna"]
    touch(patients / "anna" / "anna_seg.nii.gz")
    assert run(patients / "anna", "--reports")[1]["done"] == ["anna"]
    assert (out / "predictions" / "anna.seg.nrrd").stat().st_mtime_ns == before


def test_a_later_page_shows_sequences_where_they_were_registered(run, patients, out, monkeypatch):
    """The note says that T2 was moved by 4 mm; without such a note, and on another grid, the page says so."""
    assert run(patients / "anna")[0] == 0
    note = out / ".cases" / "anna.json"
    record = json.loads(note.read_text())
    assert record["segmentation"]["matrices"]["T2"] == np.eye(3, 4).tolist()
    record["segmentation"]["matrices"]["T2"][0][3] = 4.0
    note.write_text(json.dumps(record))
    shown = []
    real = evaluate_case.write_review_report
    monkeypatch.setattr(
        evaluate_case, "write_review_report", lambda *rest, **named: shown.append(rest) or real(*rest, **named)
    )
    assert run(patients / "anna", "--reports")[0] == 0
    image = sitk.ReadImage(str(patients / "anna" / "t2.nii.gz"))
    away = sitk.TranslationTransform(3, (4.0, 0.0, 0.0))
    expected = sitk.GetArrayFromImage(sitk.Resample(image, image, away, sitk.sitkLinear, 0.0))
    found = sitk.GetArrayFromImage(shown[0][2]["T2"])
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(found - sitk.GetArrayFromImage(image)).max() > 1


def test_a_sequence_on_another_grid_that_nobody_registered_is_told(run, patients, tmp_path, out):
    path = patients / "anna" / "t2.nii.gz"
    image = sitk.ReadImage(str(path))
    arguments = (patients / "anna", "--predictions", tmp_path / "perfect", "--reports")
    assert run(*arguments)[0] == 0
    assert "not registered here" not in (out / "cases" / "anna.html").read_text(encoding="utf-8")
    image.SetOrigin([value + 7 for value in image.GetOrigin()])
    sitk.WriteImage(image, str(path))
    assert run(*arguments)[1]["done"] == ["anna"]
    assert "not registered here" in (out / "cases" / "anna.html").read_text(encoding="utf-8")


def test_other_sequences_or_weights_mean_another_segmentation(run, patients, out, monkeypatch):
    assert run(patients / "anna")[0] == 0
    asked = []
    real = evaluate_case.segment_case
    monkeypatch.setattr(evaluate_case, "segment_case", lambda *rest: asked.append(1) or real(*rest))
    touch(patients / "anna" / "t2.nii.gz")
    assert run(patients / "anna")[1]["done"] == ["anna"] and len(asked) == 1
    (out / "predictions" / "anna.seg.nrrd").unlink()
    assert run(patients / "anna")[1]["done"] == ["anna"] and len(asked) == 2


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_a_segmentation_that_was_damaged_is_not_told_as_kept(run, patients, out, content):
    assert run(patients / "anna")[0] == 0
    path = out / "predictions" / "anna.seg.nrrd"
    path.write_bytes(content)
    code, printed = run(patients / "anna")
    assert code == 9 and printed["kept"] == [] and str(path) in printed["failed"]["anna"]
    assert "was not made by this program, or was changed" in printed["failed"]["anna"]
    assert table(out) == [] and path.read_bytes() == content
    path.unlink()
    assert run(patients / "anna")[1]["done"] == ["anna"] and len(table(out)) == 3


def test_a_segmentation_of_ours_that_was_changed_is_made_again(run, patients, out):
    assert run(patients / "anna")[0] == 0
    path = out / "predictions" / "anna.seg.nrrd"
    before, scores = path.read_bytes(), (out / "scores.csv").read_bytes()
    image = sitk.ReadImage(str(path))
    emptied = image * 0
    for key in image.GetMetaDataKeys():
        emptied.SetMetaData(key, image.GetMetaData(key))
    sitk.WriteImage(emptied, str(path))
    assert path.read_bytes() != before
    assert run(patients / "anna")[1]["done"] == ["anna"]
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(path))).any() and (out / "scores.csv").read_bytes() == scores
    assert run(patients / "anna")[1]["kept"] == ["anna"]


def test_a_run_that_is_stopped_loses_one_case_and_no_segmentation(run, patients, out, monkeypatch):
    real = evaluate_case.review
    calls = []

    def stopped_at_the_second(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(evaluate_case, "review", stopped_at_the_second)
    code, printed = run(patients)
    assert code == 130 and "1 of 3 cases" in printed["error"]["message"]
    assert {row["case"] for row in table(out)} == {"anna"}
    monkeypatch.undo()
    segmented = []
    real_segment = evaluate_case.segment_case
    monkeypatch.setattr(
        evaluate_case, "segment_case", lambda *rest: segmented.append(rest[0].title) or real_segment(*rest)
    )
    code, printed = run(patients)
    assert code == 0 and printed["kept"] == ["anna"] and segmented == ["carl"]


def test_a_run_that_is_stopped_before_the_first_case_goes_on(run, patients, tmp_path, out, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_case, "review", stopped)
    asked = patients, "--predictions", tmp_path / "perfect"
    code, printed = run(*asked)
    assert code == 130 and "0 of 3 cases" in printed["error"]["message"]
    monkeypatch.undo()
    assert run(*asked)[1]["done"] == list(NAMES)


def test_cases_that_a_set_of_predictions_lacks_are_told(run, patients, tmp_path, out):
    (tmp_path / "shifted" / "bert.nii.gz").unlink()
    asked = patients, "--predictions", tmp_path / "perfect", "--predictions", tmp_path / "shifted"
    assert run(*asked)[0] == 0
    notes = {name: json.loads((out / ".cases" / f"{name}.json").read_text())["notices"] for name in NAMES}
    absent = "shifted has no prediction of this case, which is not in its means."
    assert [absent in notes[name] for name in NAMES] == [False, True, False]
    assert absent in " ".join((out / "cohort.html").read_text(encoding="utf-8").split())
    summary = json.loads((out / "summary.json").read_text())
    counts = {name: summary["predictions"][name]["WT"]["statuses"]["ok"] for name in ("perfect", "shifted")}
    assert counts == {"perfect": 3, "shifted": 2}


def test_a_folder_without_any_of_the_cases_is_refused(run, patients, tmp_path, out):
    (tmp_path / "others").mkdir()
    write_labels(tmp_path / "others" / "anna_pred.nii.gz", tumour())
    code, printed = run(patients, "--predictions", tmp_path / "others")
    assert code == 3 and "holds no prediction of any of the 3 cases" in printed["error"]["message"]
    assert "such as anna.nii.gz" in printed["error"]["message"]


def test_the_predictions_convention_can_be_said(run, patients, tmp_path, out):
    for number, name in enumerate(NAMES):
        values = tumour(shift=number)
        values = np.select([values == 1, values == 2, values == 3], [2, 1, 0])  # Decathlon, and no enhancement
        write_labels(tmp_path / "decathlon" / f"{name}.nii.gz", values)
    asked = patients, "--predictions", tmp_path / "decathlon", "--prediction-convention", "msd"
    assert run(*asked)[0] == 0
    expected = region_dice(np.where(tumour() == 3, 0, tumour()), tumour())
    for row in table(out):
        assert float(row["dice"]) == pytest.approx(expected[row["region"]], abs=1e-5)
    before = [row["dice"] for row in table(out)]
    assert run(*asked[:3])[1]["done"] == list(NAMES)  # another convention: done again
    assert [row["dice"] for row in table(out)] != before


def test_a_damaged_note_is_as_none(run, patients, tmp_path, out):
    run(patients, "--predictions", tmp_path / "perfect")
    (out / ".cases" / "anna.json").write_text('{"format": 1, "ca')
    assert run(patients, "--predictions", tmp_path / "perfect")[1]["done"] == ["anna"]


# --- the folder of results -------------------------------------------------------------------------------------------


def test_files_of_others_are_not_touched(run, patients, tmp_path, out):
    (out / "predictions").mkdir(parents=True)
    mine = write_labels(out / "predictions" / "anna.nrrd", tumour()).rename(out / "predictions" / "anna.seg.nrrd")
    before = mine.read_bytes()
    code, printed = run(patients / "anna")
    assert code == 9 and "was not made by this program" in printed["failed"]["anna"] and mine.read_bytes() == before
    code, printed = run(patients / "anna", "--overwrite")
    assert code == 9 and str(mine) in printed["failed"]["anna"] and mine.read_bytes() == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "scores.csv").write_text("my,own\n")
    assert main(["evaluate", str(patients), "-o", str(other), "--predictions", str(tmp_path / "perfect")]) == 8
    assert (other / "scores.csv").read_text() == "my,own\n" and files_below(other) == ["scores.csv"]


def test_a_page_of_others_is_not_touched(run, patients, tmp_path, out):
    page = out / "cases" / "anna.html"
    page.parent.mkdir(parents=True)
    page.write_text("my own")
    arguments = (patients / "anna", "--predictions", tmp_path / "perfect", "--reports")
    for overwrite in ((), ("--overwrite",)):
        code, printed = run(*arguments, *overwrite)
        assert code == 9 and str(page) in printed["failed"]["anna"] and page.read_text() == "my own"
    page.unlink()
    assert run(*arguments)[1]["done"] == ["anna"]
    assert run(*arguments[:-1], "--overwrite")[1]["done"] == ["anna"]  # without --reports the note still knows it
    assert run(*arguments, "--overwrite")[1]["done"] == ["anna"]


def test_results_beside_the_patients_are_no_patient(run, patients, tmp_path, random_bundle, capsys):
    words = ["evaluate", patients, "-o", patients / "out", "--predictions", tmp_path / "perfect", "--json"]
    for became in ("done", "kept"):
        assert main([*map(str, words)]) == 0
        assert json.loads(capsys.readouterr().out)[became] == list(NAMES)


def test_nothing_is_written_for_arguments_that_make_no_sense(run, patients, tmp_path, out, random_bundle, capsys):
    assert run(patients, "--predictions", tmp_path / "absent")[0] == 3
    assert run(tmp_path / "absent")[0] == 3
    words = ["evaluate", patients, "-o", out, "--weights", tmp_path / "absent.zip"]
    assert main([*map(str, words)]) == 6
    assert main([*map(str, ["evaluate", patients, "-o", out, "--weights", random_bundle, "--device", "cuda:7"])]) == 7
    assert not out.exists()


# --- processes and ranks ---------------------------------------------------------------------------------------------


def square_or_die(task: int, number: int) -> int:
    if task == 3:
        os._exit(7)
    if task == 4:
        raise InputError("four")
    return task * task


def sleep(task: int, number: int) -> None:
    time.sleep(task)


def test_a_process_that_dies_costs_its_piece_of_work_only():
    answers = {answer.task: answer for answer in in_processes(square_or_die, range(1, 7), 2)}
    assert {task: one.result for task, one in answers.items() if one.error is None} == {1: 1, 2: 4, 5: 25, 6: 36}
    assert isinstance(answers[3].error, ProcessDied) and "exit code 7" in str(answers[3].error)
    assert isinstance(answers[4].error, InputError)
    assert multiprocessing.active_children() == []


def test_leaving_early_ends_all_processes():
    start = time.monotonic()
    answers = in_processes(sleep, [0, 60, 60], 2)
    assert next(answers).task == 0
    assert multiprocessing.active_children()
    answers.close()
    assert multiprocessing.active_children() == [] and time.monotonic() - start < 30


def test_two_processes_write_what_one_writes(run, patients, tmp_path, out):
    """One case is segmented, two have a prediction, one of those a damaged ground truth."""
    (tmp_path / "perfect" / "anna.nii.gz").unlink()
    (patients / "carl" / "carl_seg.nii.gz").write_bytes(b"")
    arguments = (patients, "--predictions", tmp_path / "perfect")
    results = []
    for jobs in (1, 2):
        code, printed = run(*arguments, "--jobs", jobs, "--overwrite")
        assert code == 9 and sorted(printed["done"]) == ["anna", "bert"] and list(printed["failed"]) == ["carl"]
        results.append([(out / name).read_bytes() for name in ("scores.csv", "summary.json", "failed.csv")])
    assert results[0] == results[1]


def test_ranks_share_the_cases_and_the_last_one_sees_all(run, patients, tmp_path, out, monkeypatch, capsys):
    arguments = (patients, "--predictions", tmp_path / "shifted")
    assert run(*arguments)[0] == 0
    alone = [(out / name).read_bytes() for name in ("scores.csv", "summary.json", "cohort.html")]
    for path in (out / ".cases").iterdir():
        path.unlink()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    code, printed = run(*arguments)
    assert code == 0 and printed["done"] == ["bert"] and printed["pending"] == ["anna", "carl"]
    assert {row["case"] for row in table(out)} == {"bert"}
    monkeypatch.setenv("RANK", "0")
    code, printed = run(*arguments)
    assert code == 0 and printed["done"] == ["anna", "carl"] and printed["pending"] == []
    assert [(out / name).read_bytes() for name in ("scores.csv", "summary.json", "cohort.html")] == alone

    # A bad case of one rank must not make torchrun end the others.
    (patients / "anna" / "anna_seg.nii.gz").write_bytes(b"")
    words = ["evaluate", patients, "-o", out, "--predictions", tmp_path / "shifted", "--quiet"]
    assert main([*map(str, words)]) == 0
    assert "anna failed" in capsys.readouterr().err
    assert [row["case"] for row in table(out, "failed.csv")] == ["anna"]


def test_tables_are_written_again_where_another_rank_ended_meanwhile(run, patients, tmp_path, out, monkeypatch):
    arguments = (patients, "--predictions", tmp_path / "shifted")
    assert run(*arguments)[0] == 0
    away = out / ".cases" / "anna.json"
    note = away.read_text()
    away.unlink()
    real = evaluate_module.write_cohort_report
    written = []

    def another_ends(*rest, **named):
        real(*rest, **named)
        written.append(1)
        away.write_text(note)  # the other rank's note, after this one looked

    monkeypatch.setattr(evaluate_module, "write_cohort_report", another_ends)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    code, printed = run(*arguments)
    assert code == 0 and printed["pending"] == [] and len(written) == 2
    assert {row["case"] for row in table(out)} == set(NAMES)


@pytest.mark.parametrize("rank, ranks", [("2", "2"), ("-1", "2"), ("0", "0"), ("a", "2")])
def test_ranks_that_make_no_sense_are_refused(rank, ranks):
    with pytest.raises(InputError, match="RANK"):
        rank_and_ranks({"RANK": rank, "WORLD_SIZE": ranks})


def test_table_for_people(patients, tmp_path, out, capsys):
    write_case(patients / "dora", t2=1)
    words = ["evaluate", patients, "-o", out, "--predictions", tmp_path / "perfect"]
    assert main([*map(str, words)]) == 9
    captured = capsys.readouterr()
    assert "1.000 [1.000, 1.000]" in captured.out and "3 scored, 0 kept from before, 1 failed" in captured.out
    assert captured.err.startswith("mstkd: error: 1 of 4 cases failed (dora)")
