"""Child processes: which Python runs them (in Slicer `sys.executable` is Slicer itself or a launcher), start, end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

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


def start_child(
    arguments: Sequence[str], environment: Optional[Mapping[str, str]], *, stdin: int, stdout: int, stderr: int
) -> subprocess.Popen[str]:
    """Start a process of text in UTF-8 that finds this library; stdin, stdout and stderr as Popen takes them.

    environment: the child's, None for ours. Raises OSError where it cannot be started. `kill_all` ends it.
    """
    return subprocess.Popen(
        arguments,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=_environment(environment),
        encoding="utf-8",
        errors="replace",
        **_apart(),
    )


def _environment(environment: Optional[Mapping[str, str]]) -> dict[str, str]:
    """`environment` (default: ours) for a child that finds this library and speaks UTF-8."""
    variables = dict(os.environ if environment is None else environment)
    paths = [str(LIBRARY_PARENT), *filter(None, [variables.get("PYTHONPATH")])]
    variables.update(PYTHONPATH=os.pathsep.join(paths), PYTHONIOENCODING="utf-8")
    return variables


def _apart() -> dict[str, Any]:
    """Popen's arguments: no console window on Windows; elsewhere Ctrl-C in a terminal is for the parent alone."""
    if os.name == "nt":
        return {"creationflags": getattr(subprocess, "CREATE_NO_WINDOW", 0)}
    return {"start_new_session": True}


def kill_all(process: subprocess.Popen[str]) -> None:
    """End a child of `start_child`, and on POSIX what it has started itself; then wait for it."""
    if os.name == "posix":
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads a session of its own
    else:
        process.kill()
    process.wait()
