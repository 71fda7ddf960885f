"""`mstkd review`: checks what it was given before anything heavy is imported, then serves the application."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from ..errors import MSTKDError, OutputError
from ..review.worklist import read_worklist
from .access import roots
from .segmenting import Engine
from .session import ReviewSession

NEEDED = ("trame", "trame_slicer", "slicer", "aiohttp")
EXTRA = "Install it with: python -m pip install '.[review]' (in a checkout; Python 3.10 to 3.13)"


@dataclass(frozen=True)
class ReviewRequest:
    """What the command line said. results: None for a folder beside the verdicts, written to on request only."""

    source: Path
    predictions: Sequence[Path] = ()
    allowed: Sequence[Path] = ()
    verdicts: Path = Path("verdicts.csv")
    results: Optional[Path] = None
    host: str = "127.0.0.1"
    port: int = 0
    token: bool = False
    browser: bool = True
    device: str = "auto"
    weights: Optional[Path] = None
    picture: str = "jpeg"


def require_extra() -> None:
    """Raises MSTKDError, saying what to install, where a package of the extra `review` is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MSTKDError(f"the browser application needs packages that are not installed ({missing[0]}). {EXTRA}")


def open_session(request: ReviewRequest) -> ReviewSession:
    """The worklist with its verdicts. Raises InputError and OutputError for a source or files that cannot be used."""
    verdicts = request.verdicts.expanduser()
    results = (request.results or verdicts.parent / "results").expanduser()
    source = request.source.expanduser()
    predictions = [folder.expanduser() for folder in request.predictions]
    items = read_worklist(source, predictions, results)
    allowed = [folder.expanduser() for folder in request.allowed]
    for folder in allowed:
        if not folder.is_dir():
            raise OutputError(f"{folder}: no such folder; --allow takes a folder whose files may be opened")
    return ReviewSession(items, roots(source, [*predictions, *allowed]), verdicts, results)


def run_review(request: ReviewRequest) -> None:
    """Serve the application until it is ended. Raises MSTKDError for everything that a user can mend."""
    require_extra()
    session = open_session(request)
    if request.weights is not None:
        from ..weights import read_bundle

        read_bundle(request.weights)  # now, and not when somebody presses a button
    _prepare_environment()
    from .app import ReviewApp
    from .security import new_token
    from .server import Address, serve

    engine = Engine(sys.executable, request.device, None if request.weights is None else str(request.weights.resolve()))
    app = ReviewApp(session, engine, request.picture, autosave=request.results is not None)
    address = Address(request.host, request.port, new_token(request.host, request.token), request.browser)
    print(f"{len(session.items)} case(s) of {request.source}; verdicts: {request.verdicts.expanduser().absolute()}")
    try:
        serve(app, address)
    except OSError as error:
        raise MSTKDError(f"{request.host}:{request.port}: cannot listen there ({error}). Choose another.") from error


def _prepare_environment() -> None:
    """Before anything of VTK's is imported. Raises MSTKDError where nothing can be drawn without a screen."""
    os.environ.setdefault("WSLINK_READY_MSG", "")
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        if ctypes.util.find_library("EGL"):
            os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
        elif not ctypes.util.find_library("OSMesa"):
            raise MSTKDError(
                "there is nothing to draw with: no screen, and neither EGL nor OSMesa is installed. On Debian and "
                "Ubuntu: apt install libegl1 libgl1-mesa-dri"
            )
