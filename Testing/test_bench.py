"""`mstkd bench`: the quick form end to end, and how its numbers follow from each other."""

from __future__ import annotations

import json

import numpy as np
import pytest
import SimpleITK as sitk
from MSTKDSegmentLib import bench
from MSTKDSegmentLib.cli import main
from MSTKDSegmentLib.errors import MSTKDError

pytest.importorskip("torch")


def test_quick_bench(random_bundle, capsys):
    assert main(["bench", "--quick", "--json", "--device", "cpu", "--weights", str(random_bundle)]) == 0
    measured = json.loads(capsys.readouterr().out)
    paper, compact = measured["forward"]["paper"], measured["forward"]["compact"]
    # Seconds are printed with four digits, so ratios of the printed ones are only close.
    assert measured["speedup_vs_paper"] == pytest.approx(paper["median_seconds"] / compact["median_seconds"], rel=0.05)
    assert compact["gmac_per_s"] == pytest.approx(compact["gmac"] / compact["median_seconds"], rel=0.05)
    assert compact["share_of_peak"] == pytest.approx(compact["gmac_per_s"] / measured["peak_gmac_per_s"], rel=0.05)
    assert 0 < compact["gmac"] < paper["gmac"]
    case = measured["segment"]
    assert case["shape"] == list(bench.QUICK_CASE_SHAPE) and case["runs"] == 1
    assert {"read and prepare", "network", "write", "total"} <= set(case["median_stage_seconds"])
    assert case["wall_seconds"][0] > case["median_stage_seconds"]["total"]
    assert case["peak_memory_mib"] is None or case["peak_memory_mib"] > 50
    assert measured["hardware"]["cores"] >= 1 and measured["hardware"]["cpu"]
    bench.print_bench(measured)
    printed = capsys.readouterr().out
    assert "times as fast as paper" in printed and "not a measurement" in printed


def test_failure_of_the_measured_command_is_told(random_bundle, tmp_path, capsys):
    arguments = ["bench", "--quick", "--t1", str(tmp_path / "lost.nii.gz"), "--weights", str(random_bundle)]
    assert main(arguments) == MSTKDError.exit_code
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "lost.nii.gz" in line


def test_rounds_are_interleaved_and_the_first_is_not_counted():
    order = []
    steps = {name: (lambda name=name: order.append(name)) for name in ("a", "b")}
    fractions = []
    seconds = bench._interleaved_seconds(steps, 2, "cpu", lambda fraction, _text: fractions.append(fraction))
    assert order == ["a", "b"] * 3
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    assert fractions == sorted(fractions) and fractions[-1] < 1


def test_speed_of_known_numbers():
    speed = bench._speed([1.0, 4.0, 2.0], macs=100e9, peak=200.0)
    assert speed["median_seconds"] == 2.0 and speed["gmac"] == 100.0
    assert speed["gmac_per_s"] == 50.0 and speed["share_of_peak"] == 0.25


def test_phantom_is_skull_stripped_and_repeatable(tmp_path):
    paths = bench.write_phantom(tmp_path, (20, 24, 22), 2.0)
    first = {name: sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for name, path in paths.items()}
    again = bench.write_phantom(tmp_path, (20, 24, 22), 2.0)
    for name, path in again.items():
        array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        assert array.shape == (20, 24, 22) and np.array_equal(array, first[name])
        assert array[0].max() == 0 and array[10, 12, 11] > 0
    assert list(paths) == ["T1", "T1Gd", "T2", "FLAIR"]
