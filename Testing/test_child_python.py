"""Which interpreter starts the worker, in folders laid out as Slicer lays them out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from MSTKDSegmentLib import child_python
from MSTKDSegmentLib.child_python import find_python, module_command
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


def launcher_that_sets_pythonpath(folder: Path) -> str:
    """As PythonSlicer does: what the parent put into PYTHONPATH does not arrive."""
    path = folder / "PythonSlicer"
    path.write_text(f'#!/bin/sh\nPYTHONPATH=/nowhere exec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_the_child_finds_the_library_and_the_parents_packages_whatever_the_launcher_sets(tmp_path):
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "only_the_parent_has_it.py").write_text("import sys; print(sys.argv[1:])")
    command = module_command("only_the_parent_has_it", launcher_that_sets_pythonpath(tmp_path), [str(packages)])
    done = subprocess.run([*command, "folder"], capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path)
    assert done.stdout == "['folder']\n", done.stderr
    probe = module_command("MSTKDSegmentLib.modalities", launcher_that_sets_pythonpath(tmp_path), sys.path)
    assert subprocess.run(probe, check=False, timeout=60, cwd=tmp_path).returncode == 0


def test_a_file_of_the_users_folder_is_no_package(tmp_path):
    (tmp_path / "numpy.py").write_text("raise SystemExit('numpy of the wrong kind')")
    command = module_command("MSTKDSegmentLib.modalities", sys.executable)
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_outside_slicer_it_is_this_interpreter():
    code = "import sys; print(sys.version_info[:2])"
    done = subprocess.run([find_python(), "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout.strip() == str(sys.version_info[:2]), done.stderr
