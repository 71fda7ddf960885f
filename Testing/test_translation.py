"""Texts reach Slicer's translation with the context that its own function would take, and only once each."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import pytest
from MSTKDSegmentLib import translation


@pytest.fixture
def i18n(monkeypatch):
    """A running Slicer that answers in capitals, with what it was asked."""
    module = types.ModuleType("slicer.i18n")
    module.asked = []
    module.getContext = lambda file: Path(file).stem

    def translate(context: str, text: str) -> str:
        module.asked.append((context, text))
        return text.upper()

    module.translate = translate
    slicer = types.ModuleType("slicer")
    slicer.app, slicer.i18n = object(), module
    monkeypatch.setitem(sys.modules, "slicer", slicer)
    monkeypatch.setitem(sys.modules, "slicer.i18n", module)
    return module


def test_the_context_is_the_calling_files_and_a_text_is_asked_for_once(i18n):
    tr = translation._translator()
    assert [tr("yes"), tr("no"), tr("yes")] == ["YES", "NO", "YES"]
    elsewhere = compile("answer = tr('yes')", "/modules/panel.py", "exec")
    found = {"tr": tr}
    exec(elsewhere, found)
    assert found["answer"] == "YES"
    assert i18n.asked == [("test_translation", "yes"), ("test_translation", "no"), ("panel", "yes")]


def test_outside_slicer_a_text_is_itself(monkeypatch):
    monkeypatch.setitem(sys.modules, "slicer", types.ModuleType("slicer"))  # slicer-core: no application
    assert translation._translator()("yes") == "yes"
    monkeypatch.delitem(sys.modules, "slicer")
    assert translation._translator()("yes") == "yes"
    assert importlib.import_module("MSTKDSegmentLib.translation")._("yes") == "yes"
