"""Which Python runs the worker, and how: in Slicer `sys.executable` is Slicer itself or a launcher."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Optional

from .errors import MSTKDError
from .translation import _

LIBRARY_PARENT = Path(__file__).resolve().parent.parent


def find_python() -> str:
    """Path of an interpreter with this process's packages.

    Slicer's `python-real` comes first: unlike the launcher PythonSlicer, ending it ends the work. It lies in Slicer's
    bin folder, which is on Slicer's PATH; Python's prefix is lib/Python. Raises MSTKDError when there is none.
    """
    for candidate in _candidates():
        if candidate and Path(candidate).is_file() and os.access(candidate, os.X_OK):
            return str(candidate)
    raise MSTKDError(
        _(
            "No Python interpreter was found beside this Slicer ({place}). Install Slicer again from its package."
        ).format(place=sys.prefix)
    )


def _candidates() -> Iterable[Optional[str]]:
    ending = ".exe" if os.name == "nt" else ""
    folders = [Path(sys.prefix) / "bin", Path(sys.prefix)]
    beside = Path(sys.prefix).parent.parent / "bin"
    yield shutil.which("python-real")
    for folder in (beside, *folders):
        yield str(folder / f"python-real{ending}")
    yield shutil.which("PythonSlicer")
    yield str(beside / f"PythonSlicer{ending}")
    if Path(sys.executable or "").name.lower().startswith("python"):
        yield sys.executable
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for folder in folders:
        for name in (f"python{version}", "python3", "python"):
            yield str(folder / f"{name}{ending}")


def module_command(module: str, python: str, paths: Sequence[str] = ()) -> list[str]:
    """How to run a module of this library in `python`, with this library and `paths` before what it finds by itself.

    Not through PYTHONPATH: Slicer's launchers set that themselves.
    """
    found = list(dict.fromkeys([str(LIBRARY_PARENT), *filter(None, paths)]))
    start = (
        f"import sys; sys.path[:] = {found!r} + [path for path in sys.path if path]; "
        f"from runpy import run_module; run_module({module!r}, run_name='__main__', alter_sys=True)"
    )
    return [python, "-u", "-c", start]
