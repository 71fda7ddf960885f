"""Evaluation over subsets: rows, resuming, several ranks, what is refused, and the summary."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

torch = pytest.importorskip("torch")

from MSTKDSegmentLib.errors import WeightsError  # noqa: E402
from MSTKDSegmentLib.metrics import region_dice  # noqa: E402
from MSTKDSegmentLib.modalities import MODALITIES  # noqa: E402

from training.discovery import discover  # noqa: E402
from training.distributed import joined_world  # noqa: E402
from training.evaluate import CLEAN_UPS, Candidate, evaluate, evaluate_case, with_subset  # noqa: E402
from training.scores import COLUMNS, SUBSET_NAMES, Row, as_paper_legacy, merged, read_rows, write_rows  # noqa: E402
from training.summary import summarise, summary_table  # noqa: E402

ROOT = Path(__file__).parents[1]
TWO = (("FLAIR",), MODALITIES)
# Two time points of one treated patient, the second with a resection cavity, and another patient.
NAMES = ("BraTS-GLI-00001-100", "BraTS-GLI-00001-101", "BraTS-GLI-00007-100")


class Brightness(torch.nn.Module):
    """Calls what is bright on T1Gd enhancing, else what is bright on FLAIR oedema. `calls` counts its volumes."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(preset="compact", stem_stride=1, classes=4)
        self.calls = 0

    def forward(self, x, availability):
        self.calls += 1
        t1gd, flair = x[:, MODALITIES.index("T1Gd")], x[:, MODALITIES.index("FLAIR")]
        return torch.stack([torch.zeros_like(t1gd), torch.full_like(t1gd, -9.0), flair - 1, 2 * t1gd - 2], dim=1)


def candidate(sha256: str = "a" * 64) -> Candidate:
    return Candidate("brightness", Brightness(), sha256, "cpu", "in memory")


def write_phantom(folder: Path, seed: int, cavity: bool) -> None:
    """A brain of 52 x 56 x 54 mm on 2 mm voxels with nested spheres; labels of BraTS 2024."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[-16:16, -18:18, -17:17]
    brain = (z / 13) ** 2 + (y / 14) ** 2 + (x / 13.5) ** 2 < 1
    distance = np.sqrt((z - 2 - seed) ** 2 + (y + 3) ** 2 + x**2)
    labels = np.select([distance < 2, distance < 4, distance < 7], [1, 3, 2], 0).astype(np.uint8)
    if cavity:
        labels[(distance >= 7) & (distance < 9)] = 4
    for name, bright in (("t1n", ()), ("t1c", (3,)), ("t2w", (1, 2)), ("t2f", (2, 3))):
        array = np.where(brain, rng.normal(300, 30, brain.shape) + 300 * np.isin(labels, bright), 0)
        _write(array.clip(0).astype(np.float32), folder / f"{folder.name}-{name}.nii.gz")
    _write(labels, folder / f"{folder.name}-seg.nii.gz")


def _write(array: np.ndarray, path: Path) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((2.0, 2.0, 2.0))
    sitk.WriteImage(image, str(path))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("labelled")
    for seed, name in enumerate(NAMES):
        write_phantom(root / name, seed, cavity=seed == 1)
    return root


@pytest.fixture(scope="module")
def cases(data):
    return discover(data).select(NAMES)


@pytest.fixture(scope="module")
def finished(cases, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished")
    evaluate(candidate(), cases, out, "val", CLEAN_UPS, subsets=TWO, told=lambda _: None, labels_out=out / "labels")
    return out


def without_seconds(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{k: v for k, v in line.items() if k != "seconds"} for line in csv.DictReader(file)]


def row(**changes) -> Row:
    plain = Row("c", "p", "FLAIR", "WT", 5, 5, "ok", 0.5, 2.0, 0.4, 0.6, 1.0, 0.1, "a" * 64, "none")
    return replace(plain, **changes)


# --- rows ---


def test_the_columns_are_those_of_the_method(finished):
    header = (finished / "per_case.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == (
        "case,patient,subset,region,n_ref,n_pred,status,dice,hd95,nsd1,nsd2,volume_error_ml,seconds,"
        "checkpoint_sha256,clean_up"
    )


def test_every_case_subset_region_and_clean_up_has_one_row(finished):
    rows = read_rows(finished / "per_case.csv")
    assert len(rows) == len({r.key for r in rows}) == 3 * 2 * 3 * len(CLEAN_UPS)
    assert list(dict.fromkeys(r.case for r in rows)) == list(NAMES)
    assert {r.case: r.patient for r in rows} == dict(zip(NAMES, ("BraTS-GLI-00001",) * 2 + ("BraTS-GLI-00007",)))
    assert all(r.seconds >= 0 and r.checkpoint_sha256 == "a" * 64 for r in rows)
    assert all(np.isfinite([r.dice, r.hd95, r.nsd1, r.nsd2]).all() for r in rows)


def test_a_region_that_is_never_found_is_missed_not_dropped(finished):
    """FLAIR alone shows this network no enhancing tumour."""
    alone = [r for r in read_rows(finished / "per_case.csv") if (r.subset, r.region) == ("FLAIR", "ET")]
    assert {(r.status, r.dice, r.hd95, r.nsd1, r.n_pred) for r in alone} == {("missed", 0.0, 373.13, 0.0, 0)}
    full = [r for r in read_rows(finished / "per_case.csv") if (r.subset, r.region) == (SUBSET_NAMES[-1], "ET")]
    assert min(r.dice for r in full) > 0.5


def test_the_resection_cavity_is_no_tumour(finished, cases):
    values = sitk.GetArrayFromImage(sitk.ReadImage(str(cases[1].segmentation)))
    wt = next(r for r in read_rows(finished / "per_case.csv") if r.case == NAMES[1] and r.region == "WT")
    assert (values == 4).any()
    assert wt.n_ref == np.isin(values, (1, 2, 3)).sum()


def test_saved_label_maps_give_the_same_dice(finished, cases):
    from training.labels import read_labels

    rows = {r.key: r for r in read_rows(finished / "per_case.csv")}
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(finished / "labels" / NAMES[2] / "T1+T1Gd+T2+FLAIR.nii.gz")))
    again = region_dice(labels, sitk.GetArrayFromImage(read_labels(cases[2])))
    assert again == {r: pytest.approx(rows[NAMES[2], "T1+T1Gd+T2+FLAIR", r, "none"].dice) for r in ("WT", "TC", "ET")}


def test_a_label_map_that_a_full_disk_cut_short_does_not_stay(cases, tmp_path, monkeypatch):
    from MSTKDSegmentLib.errors import OutputError

    from training import evaluate as module

    write = sitk.WriteImage
    monkeypatch.setattr(module.sitk, "WriteImage", lambda image, name: write(image * 0, name))
    with pytest.raises(OutputError, match="what was read back differs"):
        evaluate(candidate(), cases[:1], tmp_path, "val", CLEAN_UPS, subsets=TWO, told=print, labels_out=tmp_path / "l")
    assert not list((tmp_path / "l").rglob("*.nii.gz"))


def test_a_subset_hides_the_other_sequences(cases):
    from MSTKDSegmentLib.pipeline import read_case

    prepared = read_case(cases[0].sources())
    seen = with_subset(prepared, ("T2",))
    assert seen.subset == ("T2",)
    assert seen.availability.tolist() == [0, 0, 1, 0]
    assert not seen.image[[0, 1, 3]].any()
    assert np.array_equal(seen.image[2], prepared.image[2])


# --- resuming, order, what is refused ---


def test_two_evaluations_in_one_folder_keep_each_others_cases(cases, tmp_path):
    def meanwhile(_text):
        evaluate(candidate(), cases[2:], tmp_path, "val", subsets=TWO, told=lambda _: None)

    evaluate(candidate(), cases[:1], tmp_path, "val", subsets=TWO, told=meanwhile)
    evaluate(candidate(), cases[1:2], tmp_path, "val", subsets=TWO, told=lambda _: None)
    assert {row.case for row in read_rows(tmp_path / "per_case.csv")} == set(NAMES)


def test_what_is_there_in_full_is_not_run_again_and_what_is_partial_is(cases, tmp_path):
    quiet = {"told": lambda _: None}
    first = candidate()
    evaluate(first, cases[:1], tmp_path, "val", subsets=TWO[:1], **quiet)
    assert first.network.calls == 1
    again = candidate()
    evaluate(again, cases[:2], tmp_path, "val", subsets=TWO[:1], **quiet)
    assert again.network.calls == 1
    wider = candidate()
    path = evaluate(wider, cases[:1], tmp_path, "val", subsets=TWO, **quiet)
    assert wider.network.calls == 2
    summary = json.loads(path.read_text(encoding="utf-8"))
    assert summary["cases"] == [NAMES[0]]
    assert list(summary["clean_up"]["none"]["subsets"]) == ["FLAIR", SUBSET_NAMES[-1]]
    assert {r.case for r in read_rows(tmp_path / "per_case.csv")} == set(NAMES[:2])


def test_scores_of_other_weights_are_never_overwritten(cases, tmp_path):
    evaluate(candidate(), cases[:1], tmp_path, "val", subsets=TWO[:1], told=lambda _: None)
    before = (tmp_path / "per_case.csv").read_bytes()
    with pytest.raises(ValueError, match=r"per_case\.csv: scores of other weights \(sha256 aaaaaaaaaaaa"):
        evaluate(candidate("b" * 64), cases[:1], tmp_path, "val", subsets=TWO[:1], told=lambda _: None)
    assert (tmp_path / "per_case.csv").read_bytes() == before


def test_files_of_an_earlier_version_or_damaged_ones_are_named(cases, tmp_path):
    table = tmp_path / "per_case.csv"
    table.write_text("case,subset,region,clean_up,n_ref,n_pred,status,dice,hd95,volume_error_ml,checkpoint_sha256\n")
    with pytest.raises(ValueError, match=r"per_case\.csv: .*patient, nsd1, nsd2, seconds are missing; move the file"):
        evaluate(candidate(), cases[:1], tmp_path, "val", subsets=TWO[:1])
    write_rows(table, [row()])
    table.write_text(table.read_text(encoding="utf-8") + "c,p,FLAIR,TC,5\n")
    with pytest.raises(ValueError, match=r"per_case\.csv, line 3"):
        read_rows(table)
    with pytest.raises(ValueError, match="'test' has no cases"):
        evaluate(candidate(), [], tmp_path, "test")


def test_rows_survive_the_file_and_come_in_one_order(tmp_path):
    rows = [row(case=c, subset=s, region=r, dice=1 / 3) for c in "ba" for s in SUBSET_NAMES for r in ("WT", "TC", "ET")]
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    assert merged([shuffled[:40], shuffled[40:]], ["b", "a"]) == rows
    newer = replace(rows[0], dice=0.9)
    assert merged([rows, [newer]], ["b"])[0] == newer
    write_rows(tmp_path / "x.csv", rows)
    assert read_rows(tmp_path / "x.csv") == rows
    assert read_rows(tmp_path / "absent.csv") == []
    assert len(COLUMNS) == 15


# --- several ranks ---


def evaluate_on_rank(data: str, out: str) -> None:
    """What each process of torchrun does in the test below."""
    with joined_world("cpu") as world:
        evaluate(candidate(), discover(Path(data)).select(NAMES), Path(out), "val", CLEAN_UPS, subsets=TWO, world=world)


def test_two_ranks_give_the_table_of_one_process(data, finished, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # What torchrun sets for its processes.
    environment = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "MSTKDSegment", ROOT / "Testing")))
    code = f"import test_training_evaluate as t; t.evaluate_on_rank({str(data)!r}, {str(tmp_path)!r})"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**environment, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in ("0", "1")
    ]
    told = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], told
    assert [NAMES[0] in told[0], NAMES[1] in told[1], NAMES[2] in told[0], NAMES[1] in told[0]] == [1, 1, 1, 0]
    assert without_seconds(tmp_path / "per_case.csv") == without_seconds(finished / "per_case.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["per_case.csv", "summary.json"]
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == json.loads(
        (finished / "summary.json").read_text(encoding="utf-8")
    )


def test_what_single_ranks_left_is_taken_over(finished, cases, tmp_path):
    rows = read_rows(finished / "per_case.csv")
    write_rows(tmp_path / "per_case.rank1.csv", [r for r in rows if r.case == NAMES[1]])
    one = candidate()
    evaluate(one, cases[:2], tmp_path, "val", CLEAN_UPS, subsets=TWO, told=lambda _: None)
    assert one.network.calls == 2
    kept = [r for r in without_seconds(finished / "per_case.csv") if r["case"] in NAMES[:2]]
    assert without_seconds(tmp_path / "per_case.csv") == kept
    assert not list(tmp_path.glob("per_case.rank*"))


# --- the summary ---


def test_the_summary_by_hand():
    """Patient p has two cases; Dice 0.2, 0.4 and 0.9: mean 0.5, median 0.4."""
    dice = {"c1": ("p", 0.2), "c2": ("p", 0.4), "c3": ("q", 0.9)}
    rows = [row(case=c, patient=p, dice=d, region=r) for c, (p, d) in dice.items() for r in ("WT", "TC", "ET")]
    summary = summarise(rows, "val")
    entry = summary["clean_up"]["none"]["subsets"]["FLAIR"]
    assert (entry["n"], summary["patients"], summary["cases"]) == (3, 2, ["c1", "c2", "c3"])
    assert (entry["WT"], entry["WT_median"], entry["WT_hd95_mm"]) == (0.5, 0.4, 2.0)
    # Two patients: a sample is p p, p q or q q; its extremes are the means of one patient alone.
    assert entry["WT_ci95"] == [0.3, 0.9]
    assert entry["WT_status"] == {"ok": 3}
    assert summary["clean_up"]["none"]["mean_over_subsets"] == {"WT": 0.5, "TC": 0.5, "ET": 0.5}
    assert summary["clean_up"]["none"]["per_case"] == {
        "FLAIR": {c: dict.fromkeys(("WT", "TC", "ET"), d) for c, (_, d) in dice.items()}
    }
    assert "paper_legacy" not in summary
    assert "| mean over 1 subsets | | 0.500 | 0.500 | 0.500 |" in summary_table(summary, "none")


def test_nan_is_never_dropped():
    rows = [
        row(case=c, patient=c, region=r, dice=d)
        for c, d in (("a", 1.0), ("b", float("nan")))
        for r in ("WT", "TC", "ET")
    ]
    assert np.isnan(summarise(rows, "val")["clean_up"]["none"]["subsets"]["FLAIR"]["WT"])


def test_paper_legacy_stands_beside_the_right_figures(finished, cases, tmp_path):
    rows = [r for r in read_rows(finished / "per_case.csv") if r.clean_up == "none"]
    plain, both = summarise(rows, "val"), summarise(rows, "val", paper_legacy=True)
    legacy = both.pop("paper_legacy")
    assert plain == both
    assert plain["clean_up"]["none"]["subsets"]["FLAIR"]["ET_hd95_mm"] == 373.13
    assert legacy["clean_up"]["none"]["subsets"]["FLAIR"]["ET_hd95_mm"] == 0.0
    assert "flatters" in legacy["note"]
    changed = as_paper_legacy([row(status=s, hd95=9.0) for s in ("ok", "both_empty", "missed", "fp_only")])
    assert [(r.status, r.hd95) for r in changed] == [("ok", 9), ("both_empty", 0), ("missed", 0), ("fp_only", 0)]


# --- candidates ---


def test_a_bundle_is_known_by_the_sha256_of_its_card(random_bundle):
    from MSTKDSegmentLib.weights import read_bundle

    found = Candidate.from_bundle(random_bundle, "cpu")
    assert (found.name, found.device, found.window) == ("random", "cpu", None)
    assert found.sha256 == read_bundle(random_bundle).sha256
    assert not found.network.training


def test_a_checkpoint_is_known_by_the_sha256_of_its_file(tmp_path, cases):
    from MSTKDSegmentLib.network import build_network

    path = tmp_path / "student" / "last.pt"
    path.parent.mkdir()
    network = build_network("compact")
    torch.save({"config": {"preset": "compact"}, "average": network.state_dict(), "step": 1}, path)
    found = Candidate.from_checkpoint(path, "cpu")
    assert (found.name, found.sha256) == ("student", hashlib.sha256(path.read_bytes()).hexdigest())
    for name, value in network.state_dict().items():
        assert torch.equal(found.network.state_dict()[name], value)
    rows = evaluate_case(found, cases[0], {"none": CLEAN_UPS["none"]}, [("T1",)])
    assert [r.region for r in rows] == ["WT", "TC", "ET"]
    path.write_bytes(b"no checkpoint")
    with pytest.raises(WeightsError, match=r"last\.pt"):
        Candidate.from_checkpoint(path, "cpu")
