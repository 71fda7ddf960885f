"""Installing torch through Slicer's PyTorch extension, with each way in which that goes wrong."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from dataclasses import dataclass, field

import pytest
from MSTKDSegmentLib import torch_setup
from MSTKDSegmentLib.device_check import DeviceReport
from MSTKDSegmentLib.errors import MSTKDError
from MSTKDSegmentLib.torch_setup import SetupDependencies, install_torch, torch_installed

REPORT = DeviceReport("2.4.1", "cpu", "the CPU was asked for", False)


class Extension:
    """The PyTorch extension's logic as it is in 2024: its signature, and what it does to this computer."""

    def __init__(self, computer: Computer) -> None:
        self.computer = computer

    def installTorch(  # noqa: N802
        self,
        askConfirmation=False,  # noqa: N803
        forceComputationBackend=None,  # noqa: N803
        torchVersionRequirement=None,  # noqa: N803
        torchvisionVersionRequirement=None,  # noqa: N803
    ):
        self.computer.events.append(f"install {torchVersionRequirement} {askConfirmation}")
        if self.computer.failure is not None:
            raise self.computer.failure
        self.computer.torch = self.computer.install_works
        return object() if self.computer.install_works else None


class OldExtension(Extension):
    """Before it could be told a version."""

    def installTorch(self):  # noqa: N802
        self.computer.events.append("install")
        self.computer.torch = True
        return object()


@dataclass
class Computer:
    torch: bool = False
    extension: type = Extension
    consent: bool = True
    install_works: bool = True
    failure: Exception = None
    report: object = REPORT
    events: list = field(default_factory=list)

    def logic(self):
        if self.extension is None:
            raise ImportError("No module named 'PyTorchUtils'")
        return self.extension(self)

    def confirm(self, text: str) -> bool:
        self.events.append("asked")
        assert "No image and no other data leave this computer" in text
        return self.consent

    def check(self):
        self.events.append("convolution")
        if isinstance(self.report, Exception):
            raise self.report
        return self.report

    @contextlib.contextmanager
    def waiting(self):
        self.events.append("wait")
        try:
            yield
        finally:
            self.events.append("waited")

    def install(self):
        return install_torch(SetupDependencies(self.logic, self.confirm, self.check, self.waiting))


@pytest.fixture
def computer(monkeypatch) -> Computer:
    result = Computer()
    monkeypatch.setattr(torch_setup, "torch_installed", lambda: result.torch)
    return result


def test_it_asks_installs_a_bounded_version_and_proves_it(computer):
    assert computer.install() == REPORT
    assert computer.events == [
        *("asked", "wait", "install >=2.2,<2.13 False", "waited"),
        *("wait", "convolution", "waited"),
    ]


def test_without_consent_nothing_happens(computer):
    computer.consent = False
    assert computer.install() is None
    assert computer.events == ["asked"]


def test_torch_that_is_there_is_only_proved(computer):
    computer.torch = True
    assert computer.install() == REPORT
    assert computer.events == ["wait", "convolution", "waited"]


def test_without_the_extension_the_way_to_get_it_is_told(computer):
    computer.extension = None
    with pytest.raises(MSTKDError, match=r"Extensions Manager.*computer without internet"):
        computer.install()
    assert computer.events == []


def test_an_extension_that_takes_no_version_is_used_as_it_is(computer):
    computer.extension = OldExtension
    assert computer.install() == REPORT
    assert "install" in computer.events


def test_a_failed_download_is_told_in_one_line_and_the_cursor_comes_back(computer):
    computer.failure = RuntimeError("pip could not reach the server\nand a long traceback")
    with pytest.raises(MSTKDError, match=r"could not be installed \(pip could not reach the server\)\. Check"):
        computer.install()
    assert computer.events[-1] == "waited"


def test_an_install_that_silently_did_nothing_is_noticed(computer):
    computer.install_works = False
    with pytest.raises(MSTKDError, match="was not installed"):
        computer.install()


def test_a_torch_that_does_not_compute_is_not_called_working(computer):
    computer.report = MSTKDError("no kernel image is available")
    with pytest.raises(MSTKDError, match="no kernel image"):
        computer.install()


def test_a_folder_that_an_uninstall_left_behind_counts_as_none(tmp_path, monkeypatch):
    (tmp_path / "torch" / "lib").mkdir(parents=True)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert importlib.util.find_spec("torch") is not None  # Python would import it
    assert not torch_installed()
    (tmp_path / "torch" / "__init__.py").write_text("")
    importlib.invalidate_caches()
    assert torch_installed()


def test_a_half_finished_install_counts_as_none(monkeypatch):
    def broken(_name):
        raise ValueError("torch.__spec__ is None")

    monkeypatch.setattr(torch_setup.importlib.util, "find_spec", broken)
    assert not torch_installed()
