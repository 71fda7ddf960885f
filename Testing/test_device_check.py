"""The proof that torch works, in a real child process."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from MSTKDSegmentLib.device_check import check_device
from MSTKDSegmentLib.errors import DeviceError, MSTKDError
from processes import alive


def with_module(folder: Path, name: str, text: str) -> dict:
    (folder / f"{name}.py").write_text(text)
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_the_cpu_runs_a_convolution():
    torch = pytest.importorskip("torch")
    beats = []
    report = check_device("cpu", keep_alive=lambda: beats.append(1))
    assert (report.torch, report.device, report.gpu_expected) == (torch.__version__, "cpu", False)
    assert report.sentence() == f"PyTorch {torch.__version__} works on cpu: the CPU was asked for."
    assert len(beats) > 3  # the window was kept alive meanwhile


def test_a_device_that_is_not_there_is_named():
    pytest.importorskip("torch")
    with pytest.raises(DeviceError, match="cuda:7 was asked for, but"):
        check_device("cuda:7")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("raise ImportError('No module named torch')", r"cannot be loaded \(No module named torch\)"),
        ("raise OSError('libc10.so: file too short')", r"cannot be loaded \(libc10.so: file too short\)"),
        ("import os; os._exit(3)", r"ended the process that tried it \(code 3\)"),
        ("import os; print('[]'); os._exit(0)", r"ended the process"),
    ],
)
def test_a_broken_torch_is_told_and_breaks_nothing_here(tmp_path, text, words):
    with pytest.raises(MSTKDError, match=words):
        check_device("cpu", environment=with_module(tmp_path, "torch", text))


def test_a_torch_that_never_answers_is_given_up(tmp_path):
    environment = with_module(tmp_path, "torch", "import time; time.sleep(60)")
    with pytest.raises(MSTKDError, match="no answer within 2 s"):
        check_device("cpu", environment=environment, timeout=2)


def test_what_a_launcher_has_started_goes_with_it(tmp_path):
    """PythonSlicer starts the interpreter as a process of its own, which must not be left behind."""
    launcher = tmp_path / "PythonSlicer"
    launcher.write_text(
        f"#!/bin/sh\n{sys.executable} -c 'import time; time.sleep(60)' &\necho $! > {tmp_path}/pid\nwait\n"
    )
    launcher.chmod(0o755)
    with pytest.raises(MSTKDError, match="no answer within 2 s"):
        check_device("cpu", str(launcher), timeout=2)
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 5
    while time.monotonic() < end and alive(pid):
        time.sleep(0.05)
    assert not alive(pid)


def test_an_interpreter_that_is_not_there_is_named():
    with pytest.raises(MSTKDError, match=r"/nowhere/python: no process can be started"):
        check_device("cpu", "/nowhere/python")


def test_what_torch_prints_does_not_hide_the_answer(tmp_path):
    pytest.importorskip("torch")
    import torch

    place = Path(torch.__file__).parents[1]
    environment = with_module(tmp_path, "sitecustomize", "print('a library says hello')")
    environment["PYTHONPATH"] += os.pathsep + str(place)
    assert check_device("cpu", environment=environment).device == "cpu"
