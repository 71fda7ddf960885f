"""Which Python starts the worker: inside Slicer `sys.executable` is Slicer itself or a launcher, not an interpreter."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Optional

from .errors import MSTKDError
from .translation import _


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


def child_variables(environment: Optional[Mapping[str, str]] = None) -> dict[str, str]:
    """Environment variables for the child: ours, with the packages that this process finds."""
    variables = dict(os.environ if environment is None else environment)
    variables["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return variables
