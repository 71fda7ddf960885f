"""Several outputs at once: whatever fails, every file is as it was."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from conftest import files_below
from MSTKDSegmentLib import output_set
from MSTKDSegmentLib.errors import OutputError
from MSTKDSegmentLib.output_set import staged_outputs

NAMES = ("a.txt", "b.txt", "c.txt")


@pytest.fixture
def targets(tmp_path):
    """Three outputs, the first two of which exist."""
    paths = [tmp_path / name for name in NAMES]
    for path in paths[:2]:
        path.write_text(f"old {path.name}")
    return paths


def write_new(paths, overwrite=True):
    with staged_outputs(paths, overwrite) as temporary:
        for path in paths:
            temporary[path].write_text(f"new {path.name}")


def texts(folder: Path) -> dict:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def fail_where(monkeypatch, condition, error=None):
    """Lets os.replace fail where `condition(source, target)` holds; the calls that were made are returned."""
    calls = []

    def replace(source, target, real=os.replace):
        calls.append((Path(source), Path(target)))
        if condition(*calls[-1]):
            raise error or PermissionError(13, "open in another program", str(target))
        real(source, target)

    monkeypatch.setattr(output_set.os, "replace", replace)
    return calls


def test_all_are_replaced_and_nothing_else_is_left(targets, tmp_path):
    write_new(targets)
    assert texts(tmp_path) == {name: f"new {name}" for name in NAMES}
    assert files_below(tmp_path) == sorted(NAMES)


def test_without_leave_nothing_is_replaced(targets, tmp_path):
    with pytest.raises(OutputError, match=r"a\.txt exists already"):
        write_new(targets, overwrite=False)
    assert files_below(tmp_path) == ["a.txt", "b.txt"]
    assert texts(tmp_path) == {"a.txt": "old a.txt", "b.txt": "old b.txt"}


@pytest.mark.parametrize("number", range(5))  # two are moved away, three put in place
@pytest.mark.parametrize("error", [None, KeyboardInterrupt()])
def test_every_renaming_may_fail(targets, tmp_path, monkeypatch, number, error):
    calls = fail_where(monkeypatch, lambda *_: len(calls) == number + 1, error)
    with pytest.raises(OutputError if error is None else KeyboardInterrupt):
        write_new(targets)
    assert len(calls) > number
    assert files_below(tmp_path) == ["a.txt", "b.txt"]
    assert texts(tmp_path) == {"a.txt": "old a.txt", "b.txt": "old b.txt"}


def test_an_old_file_that_cannot_be_put_back_is_kept_and_named(targets, tmp_path, monkeypatch):
    moved_away = []

    def condition(source, target):
        if ".mstkd-old-" in str(target):
            moved_away.append(source)
            return False
        return target == targets[1]  # neither the new b.txt nor, later, the old one

    fail_where(monkeypatch, condition)
    with pytest.raises(OutputError, match=r"b\.txt is now") as caught:
        write_new(targets)
    kept = Path(re.search(r"is now (.*)$", str(caught.value)).group(1))
    assert kept.read_text() == "old b.txt" and targets[0].read_text() == "old a.txt"
    assert moved_away == targets[:2] and not targets[2].exists()


def test_folders_that_were_created_go_unless_someone_else_uses_them(tmp_path):
    path = tmp_path / "new" / "deeper" / "a.txt"
    with pytest.raises(ZeroDivisionError), staged_outputs([path], False):
        (tmp_path / "new" / "mine.txt").write_text("mine")
        1 / 0  # noqa: B018
    assert files_below(tmp_path) == ["new", os.path.join("new", "mine.txt")]  # noqa: PTH118


def test_an_unreadable_folder_is_one_line(tmp_path, monkeypatch):
    def refuse(self, **_):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(OutputError, match="Permission denied"), staged_outputs([tmp_path / "x" / "a"], False):
        pass
