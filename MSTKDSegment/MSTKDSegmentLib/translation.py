"""Slicer's translation of a text into the user's language; outside a running Slicer the text itself.

`_("text")` is what Qt's lupdate looks for; the context is the calling file's name, as Slicer has it.
"""

from __future__ import annotations

import importlib
import sys
from functools import cache
from typing import Any, Callable


def _translator() -> Callable[[str], str]:
    # Only a Slicer that runs already is asked: a child process or the command line must not load it for this.
    if hasattr(sys.modules.get("slicer"), "app"):
        try:
            return _remembering(importlib.import_module("slicer.i18n"))
        except ImportError:
            pass
    return lambda text: text


def _remembering(i18n: Any) -> Callable[[str], str]:
    """As Slicer's own `tr`, which takes tens of milliseconds for each text to find out which file calls it."""

    @cache
    def translated(file: str, text: str) -> str:
        return str(i18n.translate(i18n.getContext(file), text))

    return lambda text: translated(sys._getframe(1).f_code.co_filename, text)


_ = _translator()
