"""What all that look at a user's files share, without image code: endings, unreadable paths, texts from headers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Union

from .errors import InputError

VOLUME_ENDINGS: tuple[str, ...] = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")


@contextlib.contextmanager
def os_errors_as_input_errors(source: Union[str, Path]) -> Iterator[None]:
    """An OSError inside (no permission, a drive that went away) becomes an InputError about the path it names."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise InputError(
            f"{error.filename or source}: cannot be read ({reason}). Check its permissions and that its drive is there."
        ) from error


def printable(text: str) -> str:
    """`text` of an image header without padding, and with marks in the place of bytes that no console can print."""
    # Scanners write Latin-1 and worse; SWIG hands unknown bytes over as lone surrogates.
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").strip(" \0")


def file_stamp(path: Path) -> list[Any]:
    """What changes with a file, or the files in a folder: path, number, bytes, time of change. Raises InputError."""
    with os_errors_as_input_errors(path):
        files = sorted(item for item in path.iterdir() if item.is_file()) if path.is_dir() else [path]
        stats = [file.stat() for file in files]
    return [
        str(path.resolve()),
        len(files),
        sum(s.st_size for s in stats),
        max((s.st_mtime_ns for s in stats), default=0),
    ]
