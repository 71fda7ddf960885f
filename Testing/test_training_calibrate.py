"""Choosing thresholds and curves: against figures computed by hand, by patient, and through the commands."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("monai", reason="training needs the `train` extra")

import training_run as tiny  # noqa: E402
from MSTKDSegmentLib.decision import Decision  # noqa: E402
from MSTKDSegmentLib.errors import WeightsError  # noqa: E402
from MSTKDSegmentLib.pipeline import Segmenter, read_case  # noqa: E402
from MSTKDSegmentLib.preparation_record import READY  # noqa: E402
from MSTKDSegmentLib.regions import CleanUp  # noqa: E402
from MSTKDSegmentLib.review.what_if import what_if  # noqa: E402
from MSTKDSegmentLib.weights import read_bundle, write_bundle  # noqa: E402

from training.__main__ import main  # noqa: E402
from training.calibrate import (  # noqa: E402
    BINS,
    PROBABILITIES,
    Histogram,
    best_threshold,
    calibrate,
    curve_at_bins,
    fitted_curve,
    histogram,
    least_evidence,
    reliability,
)
from training.calibration_files import read_decision, read_measured  # noqa: E402
from training.discovery import find_case  # noqa: E402
from training.evaluate import Candidate, evaluate, evaluate_case  # noqa: E402
from training.export import export_bundle  # noqa: E402
from training.loop import run_training  # noqa: E402
from training.model_card import card_markdown  # noqa: E402
from training.networks import network_of, read_checkpoint  # noqa: E402
from training.scores import REGIONS, SUBSET_NAMES  # noqa: E402


def of(pairs, reference):
    """A histogram from (probability, voxels, tumour voxels)."""
    voxels, tumour = np.zeros(BINS + 1, int), np.zeros(BINS + 1, int)
    for probability, count, hits in pairs:
        voxels[round(probability * BINS)] += count
        tumour[round(probability * BINS)] += hits
    return Histogram(voxels, tumour, reference)


def test_a_histogram_counts_what_it_was_given():
    p = np.array([[0.0, 0.004], [0.5, 1.0]])
    found = histogram(p, np.array([[False, True], [True, True]]))
    assert found.reference == 3
    assert {int(i): (int(found.voxels[i]), int(found.tumour[i])) for i in np.flatnonzero(found.voxels)} == {
        0: (1, 0), 1: (1, 1), 100: (1, 1), 200: (1, 1)
    }  # fmt: skip


def test_the_evidence_asked_for_is_two_thirds_of_the_logit_of_the_least_sure_patient():
    # odds 27 : 1; a third of the way back to even odds they are 27 ** (2 / 3) = 9 : 1
    assert least_evidence([1 / 28, 0.001]) == pytest.approx(0.9)
    assert least_evidence([1e-12]) == 0.9999
    assert least_evidence([0.1, 0.6]) == 0  # of that patient the network is not sure at all
    assert least_evidence([]) == 0


def test_a_patient_that_the_others_evidence_would_not_draw_counts_as_missed():
    """Three patients of whom the network is certain would not draw the fourth, of whom it is less sure."""
    doubts = {(f"case{i}", name): (1 / 28 if i == 3 else 1e-9) for i in range(4) for name in SUBSET_NAMES}
    found = {(*key, region): of([(0.0, 10**6, 0), (0.6, 1000, 1000)], 1000) for key in doubts for region in REGIONS}
    chosen = calibrate(found, doubts, {f"case{i}": f"p{i}" for i in range(4)})
    assert chosen.decision.evidence == dict.fromkeys(SUBSET_NAMES, pytest.approx(0.9))
    for region in REGIONS:
        row = chosen.figures["T1"][region]
        assert (row["dice"], row["dice_left_out"], row["missed_left_out"]) == (1.0, 0.75, 1)
    # It is left out together with its patient's other case, of which the network is certain.
    same = calibrate(found, doubts, {"case0": "a", "case1": "b", "case2": "c", "case3": "c"})
    assert same.figures["T1"]["WT"]["missed_left_out"] == 1
    # A patient without a tumour asks for nothing, and being unsure of it is right.
    healthy = {
        ("case4", name, region): of([(0.0, 10**6, 0), (0.6, 50, 0)], 0) for name in SUBSET_NAMES for region in REGIONS
    }
    more = calibrate(
        found | healthy,
        doubts | {("case4", name): 0.4 for name in SUBSET_NAMES},
        {f"case{i}": f"p{i}" for i in range(5)},
    )
    assert more.decision.evidence == chosen.decision.evidence
    assert (more.figures["T1"]["WT"]["dice"], more.figures["T1"]["WT"]["missed_left_out"]) == (1.0, 1)
    unsure = calibrate(found, doubts | {("case3", "T1"): 0.7}, {f"case{i}": f"p{i}" for i in range(4)})
    assert "T1" not in unsure.decision.evidence
    assert unsure.figures["T1"]["WT"]["dice"] == 1.0


def test_dice_at_a_threshold_is_that_of_the_mask():
    one = of([(0.1, 10, 4), (0.3, 10, 6), (0.9, 10, 9)], reference=20)
    assert one.dice(60) == pytest.approx(2 * 15 / (20 + 20))
    assert one.dice(20) == pytest.approx(2 * 19 / (30 + 20))
    assert of([], 0).dice(100) == 1.0
    assert of([(0.9, 5, 0)], 0).dice(100) == 0.0


def test_the_best_threshold_is_where_the_mean_dice_is_highest_and_near_one_half_where_it_does_not_matter():
    timid = of([(0.0, 10**6, 0), (0.22, 100, 80), (0.3, 100, 90)], reference=170)
    assert 40 <= best_threshold([timid]) <= 44
    vague = of([(0.0, 10**6, 0), (0.1, 100, 80), (0.3, 100, 90)], reference=170)
    assert 40 <= best_threshold([vague]) <= 60  # never on less evidence, although Dice would be higher
    sure = of([(0.0, 10**6, 0), (0.02, 100, 3), (0.98, 100, 97)], reference=100)
    assert best_threshold([sure]) == BINS // 2


def test_the_curve_recovers_how_the_probabilities_were_bent():
    random = np.random.default_rng(0)
    voxels = random.integers(1000, 5000, BINS + 1)
    real = curve_at_bins((0.6, 0.8))
    bent = Histogram(voxels, np.rint(voxels * real).astype(int), 1)
    assert fitted_curve([bent]) == pytest.approx((0.6, 0.8), abs=0.03)


def test_the_calibration_error_is_the_weighted_mean_difference():
    # 0.25: 30 voxels, 12 tumour (0.40 real); 0.85: 10 voxels, 8 tumour (0.80 real); 0.005 does not count.
    group = [of([(0.25, 20, 10), (0.85, 10, 8), (0.005, 999, 999)], 1), of([(0.25, 10, 2)], 1)]
    found = reliability(group, [PROBABILITIES] * 2)
    assert found.error == pytest.approx((30 * 0.15 + 10 * 0.05) / 40)
    assert (found.voxels[2], found.voxels[8]) == (30, 10)
    assert (found.tumour[2], found.tumour[8]) == pytest.approx((0.4, 0.8))


def cohort(*timid):
    """Cases that differ in how timid the network is: by (case, subset, region)."""
    return {
        (f"case{i}", name, region): of(
            [(0.0, 10**6, 10), (0.25, 400, 300) if shy else (0.25, 50, 2), (0.6, 400, 360)], 670 if shy else 372
        )
        for i, shy in enumerate(timid)
        for name in SUBSET_NAMES
        for region in REGIONS
    }


def sure(found):
    """The network is certain of each of these tumours."""
    return dict.fromkeys(((case, name) for case, name, _ in found), 1e-9)


def test_a_patient_is_never_scored_with_what_was_chosen_on_it():
    """The two cases of one timid patient would choose a low threshold for each other."""
    found = cohort(True, True, False, False)
    apart = calibrate(found, sure(found), {f"case{i}": f"p{i}" for i in range(4)})
    together = calibrate(found, sure(found), {"case0": "p0", "case1": "p0", "case2": "p2", "case3": "p3"})
    row, other = apart.figures["T1"]["WT"], together.figures["T1"]["WT"]
    assert row["dice"] == other["dice"] >= row["dice_at_half"]
    assert other["dice_left_out"] < row["dice_left_out"]
    assert apart.decision == together.decision
    assert set(apart.decision.thresholds) == set(SUBSET_NAMES)


def test_two_patients_are_too_few():
    with pytest.raises(ValueError, match="2 patients are too few"):
        calibrate(few := cohort(True, False, False), sure(few), {"case0": "a", "case1": "a", "case2": "b"})


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """Three prepared cases with their split file, and the checkpoint of a tiny run on them."""
    folder = tmp_path_factory.mktemp("calibrate")
    cases = tiny.prepared_cases(folder)
    names = [*tiny.NAMES, "Case_3"]
    shutil.copyfile(folder / "cache" / "Case_1.npz", folder / "cache" / "Case_3.npz")
    (folder / "splits.json").write_text(json.dumps({"train": ["Another"], "val": names}))
    return folder, run_training(tiny.TINY, cases, folder / "run", tensorboard=False)


def test_the_commands_choose_and_the_exported_card_has_it(tiny_run, tmp_path):
    folder, checkpoint = tiny_run
    trial = find_case(folder / "data" / "Case_2").sources()
    about = {"name": "tiny", "description": "d", "data": "one phantom", "licence": "none", "citations": []}
    options = {"texts": about, "cases": ["Another"], "fingerprint": "0" * 64, "trial": trial}
    export_bundle(checkpoint, tmp_path / "draft.zip", **options)
    out = tmp_path / "calibration"
    asked = ["calibrate", "--bundle", str(tmp_path / "draft.zip"), "--cache", str(folder / "cache"), "--device", "cpu"]
    asked += ["--splits", str(folder / "splits.json"), "--out", str(out)]
    assert main(asked) == 0
    assert sorted(path.name for path in out.iterdir()) == ["decision.json", "histograms.npz", "reliability.png"]
    first = (out / "decision.json").read_text()
    (out / "decision.json").unlink()
    assert main(asked) == 0  # from the histograms that are there
    assert (out / "decision.json").read_text() == first

    export_bundle(checkpoint, tmp_path / "final.zip", decision=out / "decision.json", **options)
    final = read_bundle(tmp_path / "final.zip")
    assert final.card["confidence"]["patients"] == 3
    assert set(final.card["confidence"]["expected_calibration_error"]) == set(REGIONS)
    page = card_markdown(final.card)
    row = final.card["decision"]["thresholds"]["FLAIR"]
    assert f"| FLAIR | {row['WT']:.2f} | {row['TC']:.2f} | {row['ET']:.2f} |" in page
    rules = final.card["decision"]
    ruled = final.card | {"decision": rules | {"evidence": {"FLAIR": 0.98765}}}
    assert f"| FLAIR | {row['WT']:.2f} | {row['TC']:.2f} | {row['ET']:.2f} | 0.9877 |" in card_markdown(ruled)
    assert "a tenth must reach" in card_markdown(ruled)
    assert "a tenth must reach" not in card_markdown(final.card | {"decision": rules | {"evidence": {}}})
    assert page.count("expected calibration error") == 1
    assert Segmenter(final, "cpu").decision == Decision.from_dict(json.loads(first)["decision"])
    with pytest.raises(WeightsError, match="run `calibrate` again"):
        read_decision(out / "decision.json", "0" * 64)
    # Scores from before the thresholds do not become the figures of a card that has them.
    case = find_case(folder / "data" / "Case_2")
    before = evaluate(Candidate.from_bundle(tmp_path / "draft.zip", "cpu"), [case], tmp_path / "val", "val")
    with pytest.raises(WeightsError, match="other thresholds"):
        export_bundle(checkpoint, tmp_path / "x.zip", decision=out / "decision.json", evaluation=before, **options)
    with pytest.raises(ValueError, match="scores with other thresholds"):
        evaluate(Candidate.from_bundle(tmp_path / "final.zip", "cpu"), [case], tmp_path / "val", "val")


def test_thresholds_decide_what_the_product_draws_and_probabilities_are_calibrated(tiny_run):
    folder, checkpoint = tiny_run
    case = find_case(folder / "data" / "Case_1").sources()
    segmenter = Segmenter(bundle_of(checkpoint, folder / "plain.zip"), "cpu")
    plain = segmenter.segment({"T1": case["T1"]}, want_probabilities=True)
    raw = plain.region_probabilities
    low = {"WT": 0.05, "TC": 0.9, "ET": 0.9}
    segmenter.decision = Decision({"T1": low}, {"T1": dict.fromkeys(REGIONS, (1.0, -1.0))})
    found = segmenter.segment({"T1": case["T1"]}, want_probabilities=True)
    assert np.array_equal(found.labels > 0, raw[0] >= 0.05)
    expected = segmenter.decision.calibrated(raw, "T1")
    assert np.allclose(found.region_probabilities, expected, atol=1e-6)
    assert found.region_probabilities[0].max() < raw[0].max()


def test_what_the_network_is_nowhere_sure_of_is_not_drawn_and_the_user_is_told(tiny_run):
    folder, checkpoint = tiny_run
    case = find_case(folder / "data" / "Case_1").sources()
    segmenter = Segmenter(bundle_of(checkpoint, folder / "doubt.zip"), "cpu")
    rules = {"T1": {"WT": 0.05, "TC": 0.9, "ET": 0.9}}
    segmenter.decision = Decision(rules)
    drawn = segmenter.segment({"T1": case["T1"]})
    assert drawn.labels.any()
    segmenter.decision = Decision(rules, {}, {"T1": 0.9999})
    doubted = segmenter.segment({"T1": case["T1"]})
    assert not doubted.labels.any()
    assert doubted.volumes_ml["WT"] == 0
    assert drawn.doubted_ml == 0
    assert doubted.doubted_ml == pytest.approx(np.count_nonzero(drawn.labels) / 1000)
    (told,) = [notice for notice in doubted.notices if notice.startswith("No tumour is marked")]
    assert f"on T1 the network takes {doubted.doubted_ml:.1f} ml for one" in told
    assert "ml, for want of certainty" in doubted.provenance["not marked"]
    assert "not marked" not in drawn.provenance
    # What the clean-up takes away is no reason to be told.
    segmenter.clean_up = CleanUp({"WT": 1000.0})
    assert segmenter.segment({"T1": case["T1"]}).notices == drawn.notices
    # The trainer's evaluation draws what the product draws, and what-if tells which sets were in doubt.
    segmenter.clean_up = CleanUp()
    candidate = replace(Candidate.from_bundle(folder / "doubt.zip", "cpu"), decision=segmenter.decision)
    rows = evaluate_case(candidate, find_case(folder / "data" / "Case_1"), {"none": CleanUp()}, [("T1",)])
    assert {row.n_pred for row in rows} == {0}
    both = read_case({name: case[name] for name in ("T1", "FLAIR")}, wishes=READY)
    found = what_if(segmenter, both, flips=())
    assert [one.doubted_ml > 0 for one in found.results] == [True, False, False]
    assert [notice for notice in found.notices if notice.startswith("No tumour is marked: on T1 ")]


def test_rules_are_part_of_what_a_result_was_made_with(tiny_run, tmp_path):
    """The same weights with another rule draw something else: a batch must not take the old results for current."""
    folder, checkpoint = tiny_run
    plain = read_bundle(bundle_of(checkpoint, folder / "plain2.zip"))
    same = read_bundle(bundle_of(checkpoint, folder / "plain3.zip"))
    ruled = replace(plain, card={**plain.card, "decision": Decision({}, {}, {"T1": 0.9}).to_dict()})
    assert plain.identity == same.identity
    assert plain.identity != ruled.identity
    assert plain.sha256 == ruled.sha256


def test_calibrations_of_the_same_patients_are_compared(tmp_path, capsys):
    def folder(name, cases, *dice):
        figures = {
            subset: {region: {"dice": one, "dice_left_out": one - 0.1} for region in REGIONS}
            for subset, one in zip(("T1", "FLAIR"), dice)
        }
        path = tmp_path / name
        path.mkdir()
        (path / "decision.json").write_text(json.dumps({"split": "val", "cases": cases, "figures": figures}))
        return f"{name}={path}"

    old, new = folder("old", ["a", "b"], 0.5, 0.75), folder("new", ["b", "a"], 0.75, 0.875)
    assert main(["compare", old, new, "--sets", "FLAIR"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "Dice WT / TC / ET, val, n = 2"
    assert table[2] == "| | mean | FLAIR |"
    assert table[4] == "| old | 0.625 / 0.625 / 0.625 (0.525 / 0.525 / 0.525) | 0.750 / 0.750 / 0.750 |"
    assert table[5].startswith("| new | 0.812 / 0.812 / 0.812 (0.713 / 0.713 / 0.713)")
    assert main(["compare", old, new]) == 1
    assert "no figures of 'T1+T1Gd+T2+FLAIR'" in capsys.readouterr().err
    assert main(["compare", old, folder("other", ["c"], 0.5, 0.5), "--sets", "T1"]) == 1
    assert "other and old were calibrated on different patients" in capsys.readouterr().err
    assert main(["compare", "old"]) == 1
    assert "'old': expected NAME=FOLDER" in capsys.readouterr().err


def test_differences_from_a_reference_are_paired_by_patient(tmp_path, capsys):
    def folder(name, dice):
        rows = {subset: dict.fromkeys(REGIONS, dice) for subset in ("T1", "T1+T2")}
        figures = {s: {r: {"dice": 0.5, "dice_left_out": 0.5} for r in REGIONS} for s in rows}
        patient_of = {"a1": "a", "a2": "a", "b": "b", "c": "c"}
        about = {"split": "val", "cases": list(patient_of), "patient_of": patient_of, "figures": figures}
        path = tmp_path / name
        path.mkdir()
        (path / "decision.json").write_text(json.dumps(about | ({"left_out": rows} if dice else {})))
        return f"{name}={path}"

    plain = folder("plain", {"a1": 0.5, "a2": 0.5, "b": 0.2, "c": 0.8})
    taught = folder("taught", {"c": 0.82, "b": 0.22, "a2": 0.52, "a1": 0.52})
    assert main(["compare", plain, taught, "--sets", "T1", "--reference", "plain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("taught over plain, points of Dice, val, n = 3")
    same = "2.0 [2.0, 2.0]"  # of every patient: no interval
    assert lines[start + 4] == f"| a sequence is missing | {same} | {same} | {same} | {same} |"
    assert [line.split(" |")[0] for line in lines[start + 5 :]] == ["| one sequence", "| two sequences"]
    assert main(["compare", plain, taught, "--sets", "T1", "--reference", "none"]) == 1
    assert "--reference 'none' is none of plain, taught" in capsys.readouterr().err
    assert main(["compare", plain, folder("old", {}), "--sets", "T1", "--reference", "plain"]) == 1
    assert "old: calibrated by an earlier version" in capsys.readouterr().err


def test_folds_of_one_name_are_put_together(tmp_path, capsys):
    def fold(name, part, dice, left_out=True):
        figures = {s: {r: {"dice": 0.5 + len(dice) / 10, "dice_left_out": 0.5} for r in REGIONS} for s in ("T1", "T2")}
        about = {"split": part, "cases": list(dice), "patient_of": {case: case for case in dice}, "figures": figures}
        rows = {subset: dict.fromkeys(REGIONS, dice) for subset in figures}
        path = tmp_path / f"{name}-{part}"
        path.mkdir()
        (path / "decision.json").write_text(json.dumps(about | ({"left_out": rows} if left_out else {})))
        return f"{name}={path}"

    plain = fold("plain", "f0", {"a": 0.5}), fold("plain", "f1", {"b": 0.3, "c": 0.4, "d": 0.5})
    other = fold("other", "f0", {"b": 0.4, "a": 0.6}), fold("other", "f1", {"c": 0.5, "d": 0.6})
    assert main(["compare", *plain, *other, "--sets", "T1", "--reference", "plain"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Dice WT / TC / ET, 2 folds, n = 4"
    mean = 0.25 * 0.6 + 0.75 * 0.8  # of four patients, three of whom are in the second fold
    assert lines[4].startswith(f"| plain | {mean:.3f} / {mean:.3f} / {mean:.3f} (0.500 / 0.500 / 0.500)")
    start = lines.index("other over plain, points of Dice, 2 folds, n = 4")
    assert lines[start + 4].startswith("| a sequence is missing | 10.0 [10.0, 10.0] |")
    assert main(["compare", *plain, fold("plain", "f2", {"a": 0.5}), "--sets", "T1"]) == 1
    assert "plain: its folds share patients" in capsys.readouterr().err
    assert main(["compare", fold("old", "f0", {"a": 0.5}, left_out=False), fold("old", "f1", {"b": 0.5})]) == 1
    assert "old: calibrated by an earlier version" in capsys.readouterr().err


def test_measurements_of_an_earlier_version_are_refused(tmp_path):
    np.savez(tmp_path / "histograms.npz", weights_sha256="a", keys=np.array(["c|T1|WT"]))
    with pytest.raises(ValueError, match="earlier version"):
        read_measured(tmp_path, "a")
    with pytest.raises(ValueError, match="other weights"):
        read_measured(tmp_path, "b")


def bundle_of(checkpoint, path):
    state = read_checkpoint(checkpoint)
    network = network_of(state)
    card = {
        "name": "tiny", "preset": "compact", "network": network.config.to_dict(), "licence": "none", "training": {},
        "metrics": {"subsets": {}},
    }  # fmt: skip
    write_bundle(path, state["average"], card)
    return path
