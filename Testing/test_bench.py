"""`mstkd bench`: the quick form end to end, and how its numbers follow from each other."""

from __future__ import annotations

import json
from contextlib import nullcontext
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
import SimpleITK as sitk
from MSTKDSegmentLib.bench import command, forward, growth, hardware, phantom, shares, tables, timing, whole_path
from MSTKDSegmentLib.bench.child import Finished
from MSTKDSegmentLib.cli import main
from MSTKDSegmentLib.errors import MSTKDError, OutputError
from MSTKDSegmentLib.weights import read_bundle

torch = pytest.importorskip("torch")

STARTED = datetime(2026, 1, 1, tzinfo=timezone.utc)
SHAPE = (64, 64, 64)
MEMORY = {"paper": {"above_baseline_mib": 900.0, "baseline_mib": 200.0},
          "compact": {"above_baseline_mib": 150.0, "baseline_mib": 200.0}}  # fmt: skip
GROWTH = {
    "runs": 1,
    "network": growth.size_rows(growth.SHAPES, [0.5, 1.0, 2.5]),
    "command": growth.brain_rows(
        [
            {"network_shape": shape, "median_stage_seconds": {"network": 1.0}, "median_wall_seconds": 3.0,
             "peak_memory_mib": None}
            for shape in ([96, 96, 96], [192, 96, 96])
        ]
    ),
    "batch": [{"cases": 1, "seconds": 4.0, "seconds_per_case": 4.0}],
    "subsets": growth.subset_rows([1.0], [[2.0] * 15], (1, 5, 15)),
    "processes": growth.process_rows({1: 8.0, 2: 5.0}, 4),
}  # fmt: skip


def test_quick_bench(random_bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(forward, "bf16_is_fast", lambda _device: True)
    words = ["bench", "--quick", "--json", "--device", "cpu", "--weights", str(random_bundle), "--out", str(tmp_path)]
    assert main(words) == 0
    measured = json.loads(capsys.readouterr().out)
    paper, compact = measured["forward"]["paper"], measured["forward"]["compact"]
    # Seconds are printed rounded, so ratios of the printed ones are only close.
    assert measured["speedup_vs_paper"] == pytest.approx(paper["median_seconds"] / compact["median_seconds"], rel=0.05)
    assert measured["memory_ratio_vs_paper"] == pytest.approx(paper["memory_mib"] / compact["memory_mib"], rel=0.01)
    assert compact["share_of_peak"] == pytest.approx(compact["gmac_per_s"] / measured["peak_gmac_per_s"], rel=0.05)
    assert 0 < compact["gmac"] < paper["gmac"]
    assert set(measured["forward_bf16"]) == {"paper", "compact"} and measured["speedup_vs_paper_bf16"] > 0
    case = measured["segment"]
    assert case["shape"] == list(whole_path.QUICK_CASE_SHAPE) and case["runs"] == 1
    assert {"read and prepare", "network", "write", "total"} <= set(case["median_stage_seconds"])
    # The stages are the whole of the command, but for rounding.
    assert sum(case["stages"].values()) == pytest.approx(case["median_wall_seconds"], abs=0.05)
    assert case["peak_memory_mib"] is None or case["peak_memory_mib"] > 50
    assert measured["batch"]["cases"] == 2 and measured["batch"]["median_seconds_of_second_case"] > 0
    kinds = measured["time_by_kind"]["kinds"]
    assert {"convolution 3x3x3 at 1/2 resolution", "transformer", "normalisation", "memory reshuffles"} <= set(kinds)
    assert sum(row["share"] for row in kinds.values()) == pytest.approx(1, abs=0.01)
    assert sum(row["gmac"] for row in kinds.values()) == pytest.approx(compact["gmac"], rel=0.02)
    assert measured["hardware"]["cores"] >= 1 and measured["hardware"]["cpu"]
    assert measured["command"] == f"mstkd bench --weights {random_bundle.name} --device cpu --runs 5 --quick"
    assert sorted(path.name for path in tmp_path.glob("bench*")) == ["bench.json", "bench.md"]
    text = (tmp_path / "bench.json").read_text(encoding="utf-8")
    assert json.loads(text) == measured
    page = (tmp_path / "bench.md").read_text(encoding="utf-8")
    assert "times as fast as paper" in page and "| stage | seconds | share |" in page
    for written in (text, page):
        assert str(tmp_path) not in written and str(random_bundle.parent) not in written
    command.print_bench(measured)
    assert "not a measurement" in capsys.readouterr().out


def test_failure_of_the_measured_command_is_told(random_bundle, tmp_path, capsys):
    arguments = ["bench", "--quick", "--t1", str(tmp_path / "lost.nii.gz"), "--weights", str(random_bundle)]
    assert main(arguments) == MSTKDError.exit_code
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "lost.nii.gz" in line


def test_where_nothing_can_be_written_nothing_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "run_bench", lambda *_: pytest.fail("it was measured"))
    (tmp_path / "file").touch()
    assert main(["bench", "--out", str(tmp_path / "file")]) == OutputError.exit_code
    assert main(["bench", "--out", str(tmp_path), "--name", "a/b"]) == 2
    assert "--name is a name" in capsys.readouterr().err


# --- timing ---


def test_rounds_are_interleaved_and_the_first_is_not_counted():
    order, fractions = [], []
    steps = {name: (lambda name=name: order.append(name)) for name in ("a", "b")}
    clock = timing.clock_of("cpu")
    seconds = timing.interleaved_seconds(steps, 2, clock, lambda fraction, _text: fractions.append(fraction))
    assert order == ["a", "b"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    assert fractions == sorted(fractions) and fractions[-1] < 1


def test_a_cuda_gpu_is_timed_by_its_events_and_waited_for_at_the_ends_only(monkeypatch):
    told = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            told.append("record")

        def synchronize(self):
            told.append("wait")

        def elapsed_time(self, _other):
            return 1500.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda _device: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: told.append("wait"))
    assert timing.clock_of("cuda:0")(lambda: told.append("step")) == 1.5
    assert told == ["wait", "record", "step", "record", "wait"]


# --- the network ---


def test_speed_of_known_numbers():
    speed = forward.speed([1.0, 4.0, 2.0], macs=100e9, peak=200.0)
    assert speed["median_seconds"] == 2.0 and speed["gmac"] == 100.0
    assert speed["gmac_per_s"] == 50.0 and speed["share_of_peak"] == 0.25


def test_ratios_are_those_of_the_medians_of_each_precision():
    times = {
        "fp32": {"paper": [8.0, 9.0, 8.0], "compact": [1.0, 2.0, 7.0], forward.PRODUCT: [0.1, 0.1, 0.1]},
        "bf16": {"paper": [4.0, 4.0, 4.0], "compact": [0.5, 0.5, 0.5], forward.PRODUCT: [0.05, 0.05, 0.05]},
    }
    macs = {"paper": 400e9, "compact": 80e9}
    found = forward.summary(times, macs, MEMORY, SHAPE, "compact", 2000, "cpu")
    assert found["peak_gmac_per_s"] == 80.0 and found["peak_gmac_per_s_bf16"] == 160.0
    assert found["forward"]["compact"]["share_of_peak"] == 0.5
    assert (found["speedup_vs_paper"], found["memory_ratio_vs_paper"]) == (4.0, 6.0)
    assert found["speedup_vs_paper_bf16"] == 8.0
    assert found["speedup_of_bf16_over_fp32"] == {"paper": 2.0, "compact": 4.0}


@pytest.mark.parametrize(("flags", "fast"), [("avx2 avx512_bf16", True), ("amx_bf16", True), ("avx512f", False)])
def test_a_processor_says_whether_it_multiplies_bfloat16(tmp_path, flags, fast):
    info = tmp_path / "cpuinfo"
    info.write_text(f"model name\t: A Processor\nflags\t\t: fpu {flags}\n", encoding="ascii")
    assert hardware.bf16_is_fast("cpu", info) is fast
    assert hardware.cpu_model(info) == "A Processor"
    assert not hardware.bf16_is_fast("mps", info) and not hardware.bf16_is_fast("cpu", tmp_path / "none")


def test_kinds_of_work_and_what_is_lost():
    half = [1, 32, 32, 32, 32]
    called = [
        shares.Operation("aten::conv3d", [half, [32, 32, 3, 3, 3]], 0.5),
        shares.Operation("aten::conv3d", [half, [8, 32, 1, 1, 1]], 0.1),
        shares.Operation("aten::conv3d", [[1, 8, 8, 8, 8], [9, 8, 2, 2, 2]], 0.1),
        shares.Operation("aten::conv_transpose3d", [half, [32, 8, 2, 2, 2]], 0.05),
        shares.Operation("aten::leaky_relu_", [half, []], 0.05),
        shares.Operation("aten::add", [[1, 64, 192], [1, 64, 192]], 0.1),
        shares.Operation("aten::cat", [[], []], 0.1),
    ]
    found = shares.by_kind(called, {"convolution 3x3x3 at 1/2 resolution": 20.0}, SHAPE, 100.0)
    rows = found["kinds"]
    assert next(iter(rows)) == "convolution 3x3x3 at 1/2 resolution"
    assert rows["convolution 3x3x3 at 1/2 resolution"] == {
        "seconds": 0.5, "share": 0.5, "gmac": 20.0, "share_of_peak": 0.4, "lost": 0.3,
    }  # fmt: skip
    assert {kind: row["share"] for kind, row in rows.items()} == {
        "convolution 3x3x3 at 1/2 resolution": 0.5, shares.POINTWISE: 0.1, shares.TRANSFORMER: 0.2,
        shares.TRANSPOSED: 0.05, shares.ACTIVATION: 0.05, shares.MEMORY: 0.1,
    }  # fmt: skip
    assert found["total_seconds"] == 1.0
    assert found["share_of_peak"] + sum(row["lost"] for row in rows.values()) == pytest.approx(1)


# --- the whole command ---


def finished(network: float, wait: float) -> Finished:
    inside = {"read": 0.5, "load the network": wait, "network": network, "write": 0.1}
    total = 0.7 + network + wait
    at = [STARTED + timedelta(seconds=1), STARTED + timedelta(seconds=1 + total)]
    told = {
        "started": at[0].isoformat(timespec="microseconds"), "ended": at[1].isoformat(timespec="microseconds"),
        "stages": inside, "seconds": {"network": network, "total": total}, "loading": {"import torch": 1.0},
        "peak_memory_mib": 900.0, "network_shape": [160, 192, 160],
    }  # fmt: skip
    return Finished(told, total + 1.5, STARTED, at[1] + timedelta(seconds=0.5))


def test_stages_are_in_order_and_the_whole_of_the_time():
    done = finished(2.0, 0.3)
    stages = whole_path.stages_of(done)
    assert list(stages) == [
        whole_path.STARTING, "read and decompress", whole_path.LOADING, "network", "write", whole_path.REST,
        whole_path.ENDING,
    ]  # fmt: skip
    assert stages[whole_path.STARTING] == 1.0 and stages[whole_path.ENDING] == pytest.approx(0.5)
    assert stages[whole_path.REST] == pytest.approx(0.1)
    assert sum(stages.values()) == pytest.approx(done.seconds)


def test_a_stage_that_is_slower_than_the_network_is_named():
    assert whole_path.case_summary([finished(2.0, 0.3)])["stages_slower_than_the_network"] == []
    slow = whole_path.case_summary([finished(0.4, 0.1), finished(0.8, 0.1), finished(0.9, 0.1)])
    assert slow["stages"]["network"] == 0.8 and slow["median_wall_seconds"] == pytest.approx(3.1)
    assert slow["stages_slower_than_the_network"] == [whole_path.STARTING]


def test_a_batch_tells_its_second_case_where_it_has_one():
    two = whole_path.batch_summary([9.0, 7.0, 8.0], [[4.0, 2.0], [5.0, 3.0], [6.0, 2.5]])
    assert (two["median_wall_seconds"], two["median_seconds_of_first_case"]) == (8.0, 5.0)
    assert two["median_seconds_of_second_case"] == 2.5
    assert whole_path.batch_summary([5.0], [[4.0]])["median_seconds_of_second_case"] is None


def test_phantom_is_skull_stripped_labelled_and_repeatable(tmp_path):
    paths = phantom.write_phantom(tmp_path, (20, 24, 22), 2.0)
    first = {name: sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for name, path in paths.items()}
    again = phantom.write_phantom(tmp_path, (20, 24, 22), 2.0)
    for name, path in again.items():
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        assert array.shape == (20, 24, 22) and np.array_equal(array, first[name])
        assert array[0].max() == 0 and array[10, 12, 11] > 0
    assert list(paths) == ["T1", "T1Gd", "T2", "FLAIR"]
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(phantom.write_phantom_labels(tmp_path, (20, 24, 22), 2.0))))
    assert set(labels.flat) == {0, 1, 2, 3}


# --- growth, and what is written ---


def test_growth_is_told_against_the_smallest():
    assert [row["ratio"] for row in GROWTH["network"]] == [1.0, 2.0, 4.0]
    assert [row["seconds_ratio"] for row in GROWTH["network"]] == [1.0, 2.0, 5.0]
    assert [row["ratio"] for row in GROWTH["command"]] == [1.0, 2.0]
    assert [(row["seconds"], row["seconds_per_subset"]) for row in GROWTH["subsets"]] == [
        (3.0, 3.0), (11.0, 2.2), (31.0, 2.067),
    ]  # fmt: skip
    assert [row["speedup"] for row in GROWTH["processes"]] == [1.0, 1.6]


def test_growth_is_written_as_tables_and_a_picture(tmp_path):
    found = tables.growth_tables(GROWTH)
    assert [len(table.rows) for table in found] == [3, 2, 1, 3, 2]
    written = command.write_results(tmp_path / "new", "ours", {"growth": GROWTH}, "Speed", found, "ours-growth.png")
    assert [path.name for path in written] == ["ours.json", "ours.md", "ours-growth.png"]
    assert sorted((tmp_path / "new").iterdir()) == sorted(written)
    page = written[1].read_text(encoding="utf-8")
    assert "| 2 | 96 x 192 x 128 | 1.00 s | 2 |" in page and "](ours-growth.png)" in page
    assert written[2].read_bytes().startswith(b"\x89PNG")


def test_growth_measures_batches_subsets_processes_and_sizes(random_bundle, tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(growth, "run_case", lambda *_: finished(1.0, 0.1))
    monkeypatch.setattr(growth, "run_mstkd", lambda *words: commands.append(words))
    monkeypatch.setattr(growth, "measure_batch", lambda *words: {"median_wall_seconds": 2.0 * words[-1]})
    sources = phantom.write_phantom(tmp_path, whole_path.QUICK_CASE_SHAPE, whole_path.QUICK_SPACING_MM)
    seen = []
    found = growth.measure_growth(
        sources, read_bundle(random_bundle), "cpu", 1, True, lambda share, _text: seen.append(share)
    )
    assert found["runs"] == 1
    assert [row["cases"] for row in found["batch"]] == list(growth.QUICK_BATCHES)
    assert [row["subsets"] for row in found["subsets"]] == list(growth.QUICK_SUBSET_COUNTS)
    assert len(found["network"]) == len(found["command"]) == 3
    assert [words[words.index("--jobs") + 1] for words in commands] == ["1", "2"]
    assert seen == sorted(seen) and seen[-1] <= 1


def test_the_command_is_told_without_folders(tmp_path):
    request = command.BenchRequest({"T1": tmp_path / "a.nii"}, None, "cuda:0", 7, growth=True)
    assert request.command() == "mstkd bench --t1 a.nii --device cuda:0 --runs 7 --growth"
