"""What all that look at a user's files share, without image code: endings, unreadable paths, texts from headers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Union

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
