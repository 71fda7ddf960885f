"""Slicer's translation of a text into the user's language; outside a running Slicer the text itself.

`_("text")` is what Qt's lupdate looks for; the context is the calling file's name, which Slicer finds by itself.
"""

from __future__ import annotations

import importlib
import sys
from typing import Callable


def _translator() -> Callable[[str], str]:
    # Only a Slicer that runs already is asked: a child process or the command line must not load it for this.
    if hasattr(sys.modules.get("slicer"), "app"):
        try:
            return importlib.import_module("slicer.i18n").tr  # type: ignore[no-any-return]
        except ImportError:
            pass
    return lambda text: text


_ = _translator()
