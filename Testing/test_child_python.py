"""Which interpreter starts the worker, in folders laid out as Slicer lays them out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from MSTKDSegmentLib import child_python
from MSTKDSegmentLib.child_python import child_variables, find_python
from MSTKDSegmentLib.errors import MSTKDError


def executable(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def slicer(tmp_path, monkeypatch):
    """Slicer's folders: Python's prefix is lib/Python, all programs are in bin, and sys.executable is no Python."""
    monkeypatch.setattr(child_python.sys, "prefix", str(tmp_path / "lib" / "Python"))
    monkeypatch.setattr(child_python.sys, "executable", str(tmp_path / "bin" / "SlicerApp-real"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    executable(tmp_path / "bin" / "SlicerApp-real")
    return tmp_path


def test_the_real_interpreter_is_preferred_to_the_launcher(slicer):
    launcher = executable(slicer / "bin" / "PythonSlicer")
    assert find_python() == launcher
    real = executable(slicer / "bin" / "python-real")
    assert find_python() == real


def test_the_real_interpreter_is_found_without_slicers_path_too(slicer, monkeypatch):
    monkeypatch.setenv("PATH", str(slicer / "elsewhere"))
    executable(slicer / "bin" / "PythonSlicer")
    assert find_python() == str(slicer / "bin" / "PythonSlicer")
    real = executable(slicer / "bin" / "python-real")
    assert find_python() == real


def test_a_slicer_of_the_systems_python_finds_that(slicer):
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    python = executable(slicer / "lib" / "Python" / "bin" / name)
    assert find_python() == python


def test_a_file_that_cannot_be_run_is_passed_over(slicer):
    (slicer / "bin" / "python-real").write_text("")
    launcher = executable(slicer / "bin" / "PythonSlicer")
    assert find_python() == launcher


def test_slicer_itself_is_never_taken_for_an_interpreter(slicer):
    with pytest.raises(MSTKDError, match="No Python interpreter was found beside this Slicer"):
        find_python()


def test_outside_slicer_it_is_this_interpreter_and_the_child_finds_this_ones_packages():
    python = find_python()
    code = "import numpy, SimpleITK, MSTKDSegmentLib, sys; print(sys.version_info[:2])"
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=False, env=child_variables(), timeout=60
    )
    assert done.stdout.strip() == str(sys.version_info[:2]), done.stderr


def test_the_childs_variables_are_a_copy():
    given = {"A": "1"}
    assert child_variables(given)["A"] == "1"
    assert "PYTHONPATH" not in given
