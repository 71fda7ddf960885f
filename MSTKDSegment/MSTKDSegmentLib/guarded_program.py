"""Runs another program in a temporary folder, of which nothing is left whatever happens to either side.

`python -m MSTKDSegmentLib.guarded_program FOLDER` is the guard, a child between us and the program. A byte on its
standard input starts what FOLDER/job.json asks for; its exit code is written to FOLDER/ended. When standard input ends,
because the caller has what it wanted, cancelled or died, the guard ends the program and removes the folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Callable, Optional

from .child_python import kill_all, module_command, start_child

LOOK_SECONDS, GRACE_SECONDS = 0.05, 3.0
# Short: on macOS the path of a socket that the program makes in the folder must stay below 104 characters.
FOLDER_PREFIX = "mstkd-"
JOB, LOG, ENDED = "job.json", "log.txt", "ended"
SAID_BYTES, SAID_CHARACTERS = 4096, 200
# The folders of an absolute path, with a drive or a share in front, in quotes with blanks; not those of an address.
FOLDERS = re.compile(
    r"(?<=['\"])(?:~|[A-Za-z]:)?[/\\]{1,2}[^'\"]*[/\\]"
    r"|(?<![\w:/\\.~-])(?:~|[A-Za-z]:)?[/\\]{1,2}(?:[^\s/\\'\":;,<>|]+[/\\])+"
)
NO_NETWORK = "http://127.0.0.1:9"  # nothing listens on the discard port
# Slicer's launcher keeps the environment that it was started with in variables of this name.
SAVED_VARIABLE = "APPLAUNCHER_0_"


class GuardedProgram:
    """A temporary `folder` and a program that runs in its guard; a context manager. Raises OSError where it cannot."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
        self._log = self.folder / LOG
        arguments = [*module_command("MSTKDSegmentLib.guarded_program", sys.executable), str(self.folder)]
        try:
            with self._log.open("wb") as log:
                pipe, both = subprocess.PIPE, subprocess.STDOUT
                self._guard = start_child(arguments, None, stdin=pipe, stdout=log.fileno(), stderr=both)
        except BaseException:
            _remove(self.folder)
            raise

    def __enter__(self) -> GuardedProgram:
        return self

    def __exit__(self, *_error: object) -> None:
        assert self._guard.stdin is not None
        try:
            self._guard.stdin.close()
            self._guard.wait(GRACE_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            pass
        kill_all(self._guard)
        _remove(self.folder)

    def run(
        self, command: Sequence[str], variables: Mapping[str, str], look: Callable[[], None], *, here: bool
    ) -> Optional[int]:
        """Exit code of `command`, None when the guard died; `look` is called some twenty times a second and may raise.

        here: the program is a Python of ours and gets our environment; else that of the user's shell, which Slicer has
        changed for its own Python. `variables` are added. The program finds no network.
        """
        job = {"command": list(command), "here": here, "variables": {**_secluded(self.folder), **variables}}
        (self.folder / JOB).write_text(json.dumps(job), encoding="utf-8")
        assert self._guard.stdin is not None
        self._guard.stdin.write("\n")
        self._guard.stdin.flush()
        while True:
            alive = self._guard.poll() is None  # first: its last word may come between the two lines
            code = _number_in(self.folder / ENDED)
            if code is not None or not alive:
                return code
            look()
            time.sleep(LOOK_SECONDS)

    def said(self) -> str:
        """The last line that the program printed, without folders, cut to 200 characters; empty where there is none."""
        try:
            end = self._log.read_bytes()[-SAID_BYTES:].decode("utf-8", "replace")
        except OSError:
            return ""
        lines = [" ".join(line.split()) for line in re.split(r"[\r\n]", end) if line.strip()]
        return without_folders(lines[-1])[:SAID_CHARACTERS] if lines else ""


def without_folders(text: str) -> str:
    """`text` with absolute paths cut to their last part: folders may be called by a user or a patient."""
    return FOLDERS.sub("", text)


def _secluded(folder: Path) -> dict[str, str]:
    """Variables that keep a program's temporary files in `folder`, and itself from the network."""
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), NO_NETWORK)
    proxies["no_proxy"] = ""
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    return {**proxies, **{name.upper(): value for name, value in proxies.items()}, **temporary}


def _number_in(path: Path) -> Optional[int]:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _remove(folder: Path) -> None:
    """Remove a folder in which a process that was killed may still be dying."""
    end = time.monotonic() + GRACE_SECONDS
    shutil.rmtree(folder, ignore_errors=True)
    while folder.exists() and time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)


# --- In the guard ---


def main(folder: Path) -> None:
    """The guard of `folder`; returns when standard input has ended and the folder is gone."""
    if os.read(0, 1):
        gone = threading.Event()
        threading.Thread(target=_wait_for_the_end_of_input, args=(gone,), daemon=True).start()
        (folder / ENDED).write_text(str(_run_job(folder, gone)), encoding="ascii")
        gone.wait()
    _remove(folder)


def _wait_for_the_end_of_input(gone: threading.Event) -> None:
    while os.read(0, 1):
        pass
    gone.set()


def _run_job(folder: Path, gone: threading.Event) -> int:
    """Exit code of the program; once `gone` is set, it is killed with all that it has started."""
    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    environment = dict(os.environ) if job["here"] else _users_environment(os.environ)
    environment.update(job["variables"])
    try:
        program = start_child(job["command"], environment, stdin=subprocess.DEVNULL, stdout=1, stderr=2)
    except OSError as error:
        print(error, flush=True)
        return 127  # a shell's code for a program that is not found
    while program.poll() is None and not gone.wait(LOOK_SECONDS):
        pass
    kill_all(program)
    return program.returncode


def _users_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment from before Slicer's launcher put Slicer's Python into it; outside Slicer as it is."""
    if "APPLAUNCHER_LEVEL" not in environment:
        return dict(environment)
    saved = [name for name in environment if name.startswith(SAVED_VARIABLE)]
    return {name[len(SAVED_VARIABLE) :]: environment[name] for name in saved}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
