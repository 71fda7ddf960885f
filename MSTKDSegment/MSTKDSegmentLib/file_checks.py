"""What all that look at a user's files share, without image code: endings, unreadable paths, texts from headers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional, Union

from .errors import InputError

HEADER_LINES = 1000  # a header is some twenty lines; a foreign binary file has none
# Formats whose header may name another file that holds the voxels.
HEADER_ENDINGS: tuple[str, ...] = (".nrrd", ".nhdr", ".mha", ".mhd")
VOLUME_ENDINGS: tuple[str, ...] = (".nii.gz", ".nii", *HEADER_ENDINGS)


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


def voxel_files(path: Path) -> Optional[list[Path]]:
    """The files beside `path`, a NRRD or MetaImage file, that its header says to hold its voxels; [] for none.

    None where they cannot be told: named by a list or a pattern, or behind a header that does not end.
    """
    nrrd = path.name.lower().endswith((".nrrd", ".nhdr"))
    keys = ("data file", "datafile") if nrrd else ("elementdatafile",)
    with path.open("rb") as stream:
        for _ in range(HEADER_LINES):
            line = stream.readline(65536)
            text = line.decode("latin-1").strip()
            if nrrd and not text:
                return []  # the voxels follow
            if not line:
                return None if nrrd else []  # MetaIO refuses a header that names no voxels
            name, _, value = text.replace("=", ":", 1).partition(":")
            if name.strip().lower() in keys:
                value = value.lstrip(":=").strip()
                if value.upper() == "LOCAL" and not nrrd:
                    return []
                if not value or value.upper().startswith("LIST") or "%" in value:
                    return None
                return [path.parent / value]
    return None


def is_unicode(path: Union[str, Path]) -> bool:
    """False for a name whose bytes are no UTF-8, as unpacked archives of other systems leave them.

    ITK gets such a name as a null pointer and ends the whole process.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def require_unicode(path: Union[str, Path]) -> None:
    """Raises InputError for what `is_unicode` says no to."""
    if not is_unicode(path):
        raise InputError(f"{printable(str(path))}: a name that is not UTF-8 cannot be read; rename it.")


def file_stamp(path: Path) -> list[Any]:
    """What changes with a file, or the files in a folder: path, number, bytes, time of change. Raises InputError.

    Where a header names another file for its voxels, that counts too.
    """
    with os_errors_as_input_errors(path):
        files = sorted(item for item in path.iterdir() if item.is_file()) if path.is_dir() else [path]
        if path.name.lower().endswith(HEADER_ENDINGS) and path.is_file():
            files += [file for file in voxel_files(path) or () if file.is_file()]
        stats = [file.stat() for file in files]
    return [
        str(path.resolve()),
        len(files),
        sum(s.st_size for s in stats),
        max((s.st_mtime_ns for s in stats), default=0),
    ]
