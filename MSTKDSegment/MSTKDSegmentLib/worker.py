"""The segmentation in a process of its own: `python -m MSTKDSegmentLib.worker FOLDER`, the child of `worker_process`.

The folder holds `request.json` and the voxels of each sequence (`handover`); the result is written beside them.
Standard output carries one JSON object a line, each with an `event`:

    {"event": "progress", "fraction": 0.41, "text": "running the network"}
    {"event": "device", "name": "cpu", "reason": "...", "gpu_expected": false}
    {"event": "result", "reference": "T1Gd", "measurements": {...}, "notices": [...], "provenance": {...}, ...}
    {"event": "error", "kind": "InputError", "message": "..."}

The result's other keys are `seconds`, `record` (as `PreparationRecord.to_dict` gives it) and `prepared`: where the
prepared volumes lie (`handover.prepared_geometry`), null where they were not asked for.

Everything else that is printed, also by libraries, goes to standard error. Standard input stays open as long as the
result is wanted: when it ends, because the parent cancelled or died, the process is gone at once.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, Callable, TextIO

from .allocation import keep_freed_memory
from .errors import MSTKDError

Tell = Callable[..., None]
ABANDONED = 130


def main(folder: Path) -> int:
    """Segment what `folder` asks for; returns the exit code: 0, that of the error, or 1 for an unexpected one."""
    return run_child(folder, _segment)


def run_child(folder: Path, work: Callable[[Path, Tell], None]) -> int:
    """Do `work(folder, tell)` as the child of a `worker_process.WorkerRun`; the exit code as `main` gives it."""
    tell = _teller(_private_stdout())
    keep_freed_memory()
    threading.Thread(target=_leave_with_the_parent, args=(_private_stdin(), folder), daemon=True).start()
    try:
        work(folder, tell)
    except MSTKDError as error:
        tell("error", kind=type(error).__name__, message=str(error))
        return error.exit_code
    except MemoryError:
        tell("error", kind="OutOfMemory", message="the computer's memory is full; close other programs and try again")
        return 1
    except Exception as error:
        traceback.print_exc()
        tell("error", kind="Unexpected", message=f"unexpected {type(error).__name__}: {error}")
        return 1
    return 0


def _segment(folder: Path, tell: Tell) -> None:
    from .diameters import measure
    from .handover import prepared_geometry, read_request, write_result
    from .pipeline import Segmenter

    request = read_request(folder)
    tell("progress", fraction=0.0, text="loading the network")
    require_torch()
    segmenter = Segmenter(request.weights, request.device)
    device = segmenter.device
    tell("device", name=device.name, reason=device.reason, gpu_expected=device.gpu_expected)
    result = segmenter.segment(
        request.volumes,
        reference=request.reference,
        want_probabilities=request.want_probabilities,
        progress=lambda fraction, text: tell("progress", fraction=round(fraction, 4), text=text),
        wishes=request.wishes,
    )
    write_result(folder, result, request.keep)
    tell(
        "result",
        reference=result.case.reference,
        measurements=measure(result.labels, result.reference_image),
        notices=list(result.notices),
        provenance=dict(result.provenance),
        seconds=dict(result.seconds),
        record=result.case.record.to_dict(),
        prepared=prepared_geometry(result.case) if request.keep else None,
    )


def require_torch() -> str:
    """The version of torch; raises MSTKDError with advice where it is missing or damaged."""
    try:
        return str(importlib.import_module("torch").__version__)
    # A damaged library of torch's is an OSError; what a half-finished uninstall left behind has no version.
    except (ImportError, OSError, AttributeError) as error:
        raise MSTKDError(
            f"PyTorch cannot be loaded ({error}). Install it; in Slicer by the PyTorch Utils module of the PyTorch "
            "extension (uninstall it there first if it is damaged, and restart Slicer)."
        ) from error


def _private_stdout() -> TextIO:
    """The standard output that the parent reads, for this module alone; file descriptor 1 is standard error now."""
    sys.stdout.flush()
    private = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return private


def _teller(stream: TextIO) -> Tell:
    def tell(event: str, **about: Any) -> None:
        stream.write(json.dumps({"event": event, **about}) + "\n")
        stream.flush()

    return tell


def _private_stdin() -> int:
    """A descriptor of the parent's pipe; file descriptor 0 is empty now.

    On Windows, libraries that ask for the standard input while they are loaded would wait for a read in progress.
    """
    private = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return private


def _leave_with_the_parent(stdin: int, folder: Path) -> None:
    while os.read(stdin, 1):
        pass
    # A parent that died cannot remove a patient's volumes any more.
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(ABANDONED)  # in the middle of anything


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    # Not through the interpreter's end, which would wait for the thread that reads standard input.
    sys.stderr.flush()
    os._exit(code)
