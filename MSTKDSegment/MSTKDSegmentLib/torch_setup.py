"""Getting PyTorch into Slicer through the PyTorch extension, with the user's consent and a proof that it works.

Slicer itself (extension, dialogues, waiting) is passed in, so that every way in which this can go wrong is tested.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from dataclasses import dataclass
from typing import Any, Callable, Optional

from .device_check import DeviceReport
from .errors import MSTKDError, first_line
from .translation import _

# 2.2 loads weights safely; 2.13 cannot be installed on Windows, where its paths are too long.
TORCH_REQUIREMENT = ">=2.2,<2.13"

TORCH_MISSING = _(
    "PyTorch, the library that runs the network, is not installed in this Slicer yet. Open the module MSTKDSegment and "
    "press Install PyTorch."
)
CONSENT = _(
    "MSTKDSegment needs PyTorch, a free library that runs neural networks. Slicer's PyTorch extension will download "
    "it from its public servers (0.2 GB for the processor alone, up to 3 GB with support for NVIDIA graphics) and "
    "install it into this Slicer only. This takes minutes, during which the window answers slowly. No image and no "
    "other data leave this computer.\n\nInstall PyTorch now?"
)
NO_EXTENSION = _(
    'The PyTorch extension is missing. Open View > Extensions Manager, install "PyTorch", restart Slicer, and press '
    "Install PyTorch again. On a computer without internet, ask your administrator to install the extension and torch "
    "from files (see the documentation)."
)


def torch_installed() -> bool:
    """Whether torch can be found; it is not loaded, which takes seconds and would keep it from being replaced."""
    try:
        spec = importlib.util.find_spec("torch")
    except (ImportError, ValueError):  # a half-finished install
        return False
    # Folders that an uninstall could not remove look like a package without a file of its own.
    return spec is not None and spec.origin is not None


@dataclass(frozen=True)
class SetupDependencies:
    """utils_logic: makes `PyTorchUtils.PyTorchUtilsLogic()`, raises ImportError without the extension. confirm: asks a
    question, True for yes. check: `device_check.check_device`, bound to the right interpreter. waiting: a context in
    which the window shows that it is busy.
    """

    utils_logic: Callable[[], Any]
    confirm: Callable[[str], bool]
    check: Callable[[], DeviceReport]
    waiting: Callable[[], Any]


def extension_logic() -> Any:
    """`PyTorchUtils.PyTorchUtilsLogic()` of Slicer's PyTorch extension; ImportError where it is not installed."""
    return importlib.import_module("PyTorchUtils").PyTorchUtilsLogic()


def install_torch(slicer_side: SetupDependencies) -> Optional[DeviceReport]:
    """Install torch after asking, then prove it by a convolution in a new process; None when the user declines.

    Raises MSTKDError, in words for a hospital user, where the extension is missing, or installing or proving fails.
    """
    try:
        logic = slicer_side.utils_logic()
    except ImportError as error:
        raise MSTKDError(NO_EXTENSION) from error
    if not torch_installed():
        if not slicer_side.confirm(CONSENT):
            return None
        with slicer_side.waiting():
            _install(logic)
    with slicer_side.waiting():
        return slicer_side.check()


def _install(logic: Any) -> None:
    known = inspect.signature(logic.installTorch).parameters
    wanted = {"askConfirmation": False, "torchVersionRequirement": TORCH_REQUIREMENT}
    arguments = {name: value for name, value in wanted.items() if name in known}
    try:
        installed = logic.installTorch(**arguments)
    except Exception as error:  # pip, light-the-torch, the network, a full disk: each its own kind
        raise MSTKDError(
            _(
                "PyTorch could not be installed ({error}). Check the internet connection and the disk's free space; "
                "the error log has the details. Restart Slicer before trying again."
            ).format(error=first_line(error))
        ) from error
    importlib.invalidate_caches()
    if installed is None and not torch_installed():
        raise MSTKDError(_("PyTorch was not installed. The error log has the details; restart Slicer and try again."))
