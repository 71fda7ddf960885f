"""Runs the segmentation in a child process (`worker`): the caller stays responsive, and a crash stays in the child.

`WorkerRun` made with `wait=False` never waits: a front end with an event loop polls it. `segment_in_worker` waits, for
scripts.
"""

from __future__ import annotations

import json
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional, TextIO

import numpy as np

from . import errors
from .child_python import kill_all, module_command, start_child
from .errors import Cancelled, MSTKDError, OutputError
from .handover import Prepared, Request, read_prepared, read_result, write_request
from .translation import _

# How long a child that was told to go may take before it is killed, and how often a waiting caller looks.
GRACE_SECONDS, LOOK_SECONDS = 1.0, 0.03
# Inside Slicer no other thread of Python's runs while the window waits for events; the readers live on these moments.
YIELD_SECONDS = 0.005
LOG_LINES = 200
FOLDER_PREFIX = "mstkdsegment-"

_KINDS = {kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type)}


@dataclass(frozen=True)
class WorkerResult:
    """`labels` (D, H, W) uint8 on the grid of the sequence `reference`; `measurements` as `diameters.measure` gives
    them; `record` as `PreparationRecord.to_dict` gives it; the rest as in `pipeline.Segmentation`. `prepared`: None
    where it was not asked for.
    """

    labels: np.ndarray
    reference: str
    measurements: Mapping[str, Mapping[str, float]]
    notices: tuple[str, ...]
    provenance: Mapping[str, str]
    seconds: Mapping[str, float]
    region_probabilities: Optional[np.ndarray] = field(default=None, repr=False)
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)
    prepared: Optional[Prepared] = field(default=None, repr=False)

    @property
    def volumes_ml(self) -> dict[str, float]:
        """Millilitres by structure."""
        return {key: values["volume_ml"] for key, values in self.measurements.items()}


def worker_command(python: Optional[str] = None, paths: Sequence[str] = ()) -> list[str]:
    """How the child is started; `python`: an interpreter (default: this one), `paths`: where its packages are."""
    return module_command("MSTKDSegmentLib.worker", python or sys.executable, paths)


class WorkerRun:
    """One segmentation in a child process; made, it runs. Use it as a context manager, or call `close` in any case.

    Raises OutputError when the volumes cannot be handed over, and MSTKDError when no process can be started; without
    waiting, `result` raises them.
    """

    def __init__(
        self,
        request: Request,
        command: Optional[Sequence[str]] = None,
        environment: Optional[Mapping[str, str]] = None,
        *,
        wait: bool = True,
    ) -> None:
        """`command`: see `worker_command`; the folder is added. `environment`: that of the child, default ours.

        wait: hand over and start before returning, and raise here what goes wrong with that. Otherwise it is done
        behind the caller's back, who has a window to keep alive, and `result` raises it.
        """
        self.fraction, self.text = 0.0, "starting"
        self.device: Optional[Mapping[str, Any]] = None
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self.logged = 0  # lines in all, those that the log has dropped included
        self._started = time.monotonic()
        self._result: Optional[Mapping[str, Any]] = None
        self._error: Optional[MSTKDError] = None
        self._failure: Optional[BaseException] = None
        self._events: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._process: Optional[subprocess.Popen[str]] = None
        self._readers: list[threading.Thread] = []
        self.folder = _new_folder()
        self._starter = threading.Thread(
            target=self._begin, args=(request, command or worker_command(), environment), daemon=True
        )
        self._starter.start()
        if wait:
            self._starter.join()
            if self._failure is not None:
                raise self._failure

    def __enter__(self) -> WorkerRun:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def about(self) -> Mapping[str, Any]:
        """What the child said with its result, {} before: what another child than `worker` adds to it stands there."""
        return self._result or {}

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    @property
    def running(self) -> bool:
        """Whether the child is being started or lives, or something that it said has not been read yet."""
        if self._starter.is_alive():
            return True
        alive = self._process is not None and self._process.poll() is None
        return alive or any(reader.is_alive() for reader in self._readers)

    def poll(self) -> bool:
        """Take in what the child said since the last call (`fraction`, `text`, `device`, `log`); True while it runs."""
        time.sleep(YIELD_SECONDS)
        running = self.running  # first: what is said between the two lines is read by the next call
        while not self._events.empty():
            self._take(self._events.get())
        return running

    def result(self) -> WorkerResult:
        """What the finished child left. Raises the error that it named, or MSTKDError saying how it ended."""
        self.poll()
        for error in (self._failure, self._error):
            if error is not None:
                raise error
        code = self._process.poll() if self._process is not None else None
        if self._result is None or code != 0:
            raise MSTKDError(self._how_it_ended(code))
        about = self._result
        labels, probabilities = read_result(self.folder)
        return WorkerResult(
            labels,
            about["reference"],
            about["measurements"],
            tuple(about["notices"]),
            about["provenance"],
            about["seconds"],
            probabilities,
            about["record"],
            read_prepared(self.folder, about["prepared"]) if about["prepared"] is not None else None,
        )

    def close(self) -> None:
        """End the child, within a second or two, and remove the folder; what it found is lost unless it was read."""
        self._closing.set()
        self._starter.join(GRACE_SECONDS)
        if not self._starter.is_alive():  # else it is writing a large volume, and ends everything after that
            self._end()

    # --- inside ---

    def _begin(self, request: Request, command: Sequence[str], environment: Optional[Mapping[str, str]]) -> None:
        try:
            write_request(self.folder, request, self._closing.is_set)
            if not self._closing.is_set():
                process = self._start(command, environment)
                self._readers = [
                    threading.Thread(target=read, args=(stream,), daemon=True)
                    for read, stream in ((self._read_events, process.stdout), (self._read_log, process.stderr))
                ]
                for reader in self._readers:
                    reader.start()
                self._process = process
        except BaseException as error:  # raised where the caller asks
            self._failure = error
        if self._failure is not None or self._closing.is_set():
            self._end()

    def _end(self) -> None:
        if self._process is not None:
            stdin = self._process.stdin
            if stdin is not None and not stdin.closed:
                stdin.close()
            try:
                self._process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                kill_all(self._process)
        for reader in self._readers:
            reader.join(GRACE_SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, command: Sequence[str], environment: Optional[Mapping[str, str]]) -> subprocess.Popen[str]:
        try:
            pipe = subprocess.PIPE
            return start_child([*command, str(self.folder)], environment, stdin=pipe, stdout=pipe, stderr=pipe)
        except OSError as error:
            raise MSTKDError(
                _("{python}: the segmentation process cannot be started ({error}).").format(
                    python=command[0], error=error
                )
            ) from error

    def _read_events(self, stream: TextIO) -> None:
        for line in stream:
            try:
                event = json.loads(line)
                known = event["event"] in ("progress", "device", "result", "error")
            except (ValueError, TypeError, KeyError):
                known = False
            self._events.put(event if known else {"event": "log", "line": line.rstrip()})

    def _read_log(self, stream: TextIO) -> None:
        for line in stream:
            self._events.put({"event": "log", "line": line.rstrip()})

    def _take(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "progress":
            self.fraction, self.text = max(self.fraction, float(event["fraction"])), str(event["text"])
        elif kind == "device":
            self.device = event
        elif kind == "result":
            self._result = event
        elif kind == "error":
            self._error = _KINDS.get(event["kind"], MSTKDError)(event["message"])
        else:
            self.log.append(event["line"])
            self.logged += 1

    def _how_it_ended(self, code: Optional[int]) -> str:
        if code is None:
            return "the segmentation is still running"
        if code == 0:
            how = "ended without a result"
        elif code < 0:
            known = {number.value: number.name for number in signal.Signals}
            how = _("was ended from outside ({signal})").format(signal=known.get(-code, f"signal {-code}"))
            if -code == getattr(signal, "SIGKILL", 9):
                how += "; often the computer's memory was full: close other programs and try again"
        else:
            how = _("ended with code {code}").format(code=code)
        last = next((line for line in reversed(self.log) if line.strip()), "")
        return _("the segmentation process {how}.").format(how=how) + (
            _(" Its last words: {line}").format(line=last.strip()) if last else ""
        )


def segment_in_worker(
    request: Request,
    progress: Optional[Callable[[float, str], None]] = None,
    cancel: Optional[Callable[[], bool]] = None,
    command: Optional[Sequence[str]] = None,
    environment: Optional[Mapping[str, str]] = None,
) -> WorkerResult:
    """Segment `request` in a child process and wait for it.

    `progress` is called some thirty times a second, also when nothing changed, so that it can keep a window alive. A
    true `cancel()` ends the child and raises Cancelled. Raises the errors of `pipeline.Segmenter.segment` too, and
    MSTKDError with the child's last words where it died.
    """
    with WorkerRun(request, command, environment, wait=False) as run:
        while run.poll():
            if cancel is not None and cancel():
                raise Cancelled("cancelled; nothing was written")
            if progress is not None:
                progress(run.fraction, run.text)
            time.sleep(LOOK_SECONDS)
        result = run.result()
        if progress is not None:
            progress(1.0, "done")
        return result


def _new_folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
    except OSError as error:
        raise OutputError(
            _("{folder}: no temporary folder can be made there ({error}).").format(
                folder=tempfile.gettempdir(), error=error
            )
        ) from error
