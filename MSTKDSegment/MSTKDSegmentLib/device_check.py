"""Does PyTorch work here, and on which device? Asked in a process of its own, so that a broken library breaks nothing.

`python -m MSTKDSegmentLib.device_check [DEVICE]` runs a tiny convolution there and prints one line of JSON:

    {"torch": "2.4.1", "device": "cuda:0", "reason": "...", "gpu_expected": false}    or    {"error": "..."}
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Callable, Optional

from .child_python import kill_all, module_command, start_child
from .errors import DeviceError, MSTKDError
from .translation import _
from .worker_process import LOOK_SECONDS

TIMEOUT_SECONDS = 180.0  # the first start after an install compiles and loads gigabytes


@dataclass(frozen=True)
class DeviceReport:
    """The torch that was found and the device on which a convolution ran, with the reason for it in words."""

    torch: str
    device: str
    reason: str
    gpu_expected: bool

    def sentence(self) -> str:
        """For the user."""
        works = _("PyTorch {version} works on {device}: {reason}.").format(
            version=self.torch, device=self.device, reason=self.reason
        )
        return works + (" " + _("A GPU was to be expected.") if self.gpu_expected else "")


def check_device(
    device: str = "auto",
    python: Optional[str] = None,
    paths: Sequence[str] = (),
    environment: Optional[Mapping[str, str]] = None,
    keep_alive: Optional[Callable[[], None]] = None,
    timeout: float = TIMEOUT_SECONDS,
) -> DeviceReport:
    """Try `device` in a child process; `keep_alive` is called some thirty times a second while it runs.

    python: an interpreter, default this one; paths: where its packages are. Raises MSTKDError with the reason when
    torch is missing or damaged, DeviceError when the device does not work.
    """
    arguments = [*module_command("MSTKDSegmentLib.device_check", python or sys.executable, paths), device]
    try:
        nothing = subprocess.DEVNULL
        child = start_child(arguments, environment, stdin=nothing, stdout=subprocess.PIPE, stderr=nothing)
    except OSError as error:
        raise MSTKDError(
            _("{python}: no process can be started ({error}).").format(python=arguments[0], error=error)
        ) from error
    end = time.monotonic() + timeout
    try:
        while child.poll() is None:
            if time.monotonic() > end:
                raise MSTKDError(
                    _("PyTorch gave no answer within {seconds:.0f} s. Restart Slicer and try again.").format(
                        seconds=timeout
                    )
                )
            if keep_alive is not None:
                keep_alive()
            time.sleep(LOOK_SECONDS)
        said = child.stdout.read() if child.stdout is not None else ""
    finally:
        kill_all(child)
        if child.stdout is not None:
            child.stdout.close()
    return _report(said, child.returncode)


def _report(said: str, code: int) -> DeviceReport:
    lines = said.strip().splitlines()
    try:
        answer = json.loads(lines[-1] if lines else "")
        if "error" in answer:
            raise (DeviceError if answer.get("kind") == "DeviceError" else MSTKDError)(answer["error"])
        return DeviceReport(answer["torch"], answer["device"], answer["reason"], bool(answer["gpu_expected"]))
    except (ValueError, KeyError, TypeError) as error:
        raise MSTKDError(
            _(
                "PyTorch is installed, but ended the process that tried it (code {code}). Uninstall it and install it "
                "again."
            ).format(code=code)
        ) from error


def main(device: str) -> int:
    """Print the report on `device`; 0 when it works."""
    from .worker import require_torch

    answer: dict[str, object]
    try:
        version = require_torch()
        from .devices import choose_device

        choice = choose_device(device)
        answer = {
            "torch": version,
            "device": choice.name,
            "reason": choice.reason,
            "gpu_expected": choice.gpu_expected,
        }
    except MSTKDError as error:
        answer = {"error": str(error), "kind": type(error).__name__}
    print(json.dumps(answer), flush=True)
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    code = main(sys.argv[1] if len(sys.argv) > 1 else "auto")
    os._exit(code)  # some graphics drivers hang when a process ends in order
