"""The benchmark of training: ratios from medians by hand, and one tiny run of the whole command."""

from __future__ import annotations

import argparse
import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("monai", reason="training needs the `train` extra")
pytest.importorskip("yaml", reason="training needs the `train` extra")

from training_phantom import write_labelled_case  # noqa: E402

from training.bench import bench_config, phantom_cache, run_bench, shown, summary  # noqa: E402
from training.cache import load_case, prepare_case  # noqa: E402
from training.commands import bench as command  # noqa: E402
from training.config import ConfigError  # noqa: E402
from training.discovery import find_case  # noqa: E402
from training.distributed import World  # noqa: E402

TIMES = {
    "step": {"compact": [0.5, 9.0, 0.4], "paper": [5.0, 4.0, 6.0]},
    "teacher": {"compact": [0.1, 0.2, 0.1], "paper": [2.0, 1.0, 1.0]},
    "crop": {"worker": [0.2, 0.1, 0.3]},
    "product": {"device": [0.1, 0.2, 0.1]},
}
PLACE = {
    "crop": [64, 64, 64],
    "batch": 2,
    "precision": "bf16",
    "data": "synthetic case",
}


def test_ratios_are_those_of_the_medians():
    result = summary(TIMES, batch=2)
    compact, paper = result["presets"]["compact"], result["presets"]["paper"]
    assert result["step_speedup_vs_paper"] == pytest.approx(5.0 / 0.5)
    assert (compact["step_seconds"], compact["teacher_seconds"]) == (0.5, 0.1)
    assert compact["teacher_share"] == pytest.approx(0.2)
    assert paper["speedup_vs_paper"] == 1
    # Two crops of 0.2 s for each step.
    assert compact["loading_over_step"] == pytest.approx(0.8)
    assert paper["loading_over_step"] == pytest.approx(0.08)
    assert result["rounds"]["step"]["paper"] == [5.0, 4.0, 6.0]
    assert compact["steps_per_second"] == 2 and compact["gpu_memory_mib"] is None


def test_the_share_of_the_peak_counts_every_crop_of_the_batch():
    # 1000^3 multiply-accumulates in 0.1 s are the peak; two crops of 2e9 in 0.5 s are 8e9 a second.
    result = summary(TIMES, 2, {"compact": 2e9, "paper": 10e9}, 1000, {"compact": 300.0, "paper": None})
    assert result["peak_gmac_per_s"] == pytest.approx(10)
    assert result["presets"]["compact"]["gmac_per_s"] == pytest.approx(8)
    assert result["presets"]["compact"]["share_of_peak"] == pytest.approx(0.8)
    assert result["presets"]["compact"]["gpu_memory_mib"] == 300.0


def test_without_the_papers_network_there_is_no_ratio_to_it():
    times = {kind: {name: v for name, v in of.items() if name != "paper"} for kind, of in TIMES.items()}
    result = summary(times)
    assert result["step_speedup_vs_paper"] is None
    assert result["presets"]["compact"]["speedup_vs_paper"] is None
    only_paper = {**TIMES, "step": {"paper": [5.0]}}
    assert summary(only_paper)["step_speedup_vs_paper"] is None


def test_what_is_shown_has_the_medians():
    macs = {"compact": 2e9, "paper": 10e9}
    table = shown({**PLACE, **summary(TIMES, 2, macs, 1000)})
    assert table.rows == [
        ["compact", "0.500", "2.00", "20 %", "0.80", "10.00", "80 %", "-"],
        ["paper", "5.000", "0.20", "20 %", "0.08", "1.00", "40 %", "-"],
    ]
    assert "medians of 3 rounds" in table.title
    assert "0.200 s" in table.lines[0]


def test_the_synthetic_case_is_a_labelled_patient(tmp_path):
    (name,) = phantom_cache(tmp_path, (40, 44, 42))
    images, labels = load_case(tmp_path / "cache", name)
    assert images.shape == (4, *labels.shape)
    assert set(labels.flat) == {0, 1, 2, 3}


def test_the_command_writes_what_it_measured(tmp_path, capsys):
    name = "BraTS2021_00001"
    prepare_case(find_case(write_labelled_case(tmp_path / "data", name)), tmp_path / "cache")
    (tmp_path / "splits.json").write_text(json.dumps({"train": [name]}))
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    out = tmp_path / "out"
    texts = ["--presets", "compact", "--crop", "32", "--steps", "1", "--device", "cpu", "--json", "--out", str(out)]
    threads = torch.get_num_threads()
    command.run(
        parser.parse_args([*texts, "--cache", str(tmp_path / "cache"), "--splits", str(tmp_path / "splits.json")])
    )
    assert torch.get_num_threads() == threads
    assert sorted(path.name for path in out.iterdir()) == ["training-step-32-bf16.json", "training-step-32-bf16.md"]
    text = (out / "training-step-32-bf16.json").read_text(encoding="utf-8")
    page = (out / "training-step-32-bf16.md").read_text(encoding="utf-8")
    assert str(tmp_path) not in text + page
    measured = json.loads(text)
    assert measured["command"].startswith("python -m training bench --presets compact --crop 32")
    assert "--cache cache --splits splits.json" in measured["command"]
    assert measured["hardware"]["cores"] and measured["date"] and "| compact |" in page
    assert measured["presets"]["compact"]["share_of_peak"] > 0
    assert json.loads(capsys.readouterr().out) == measured
    assert measured["step_speedup_vs_paper"] is None
    assert (measured["crop"], measured["batch"], measured["data"]) == ([32, 32, 32], 1, "prepared cases")
    assert set(measured["presets"]) == {"compact"}
    assert [len(values) for of in measured["rounds"].values() for values in of.values()] == [1, 1, 1, 1]
    assert all(values[0] > 0 for of in measured["rounds"].values() for values in of.values())
    assert measured["versions"]["torch"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data", "out", "splits.json"]


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one step"):
        run_bench(["compact"], bench_config(32, 1), 0, World())
    with pytest.raises(ConfigError, match="multiples of 32"):
        bench_config(48, 1)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    with pytest.raises(ValueError, match="--cache and --splits belong together"):
        command.run(parser.parse_args(["--cache", str(tmp_path)]))
