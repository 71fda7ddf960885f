"""Several files that appear together or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import OutputError


@contextmanager
def staged_outputs(paths: Sequence[Path], overwrite: bool) -> Iterator[Mapping[Path, Path]]:
    """Yields for each of `paths` a temporary path of the same name; on success all are renamed to their places.

    The temporary files lie in a hidden folder beside their target, so renaming stays on one file system. When the
    block or the renaming fails, nothing new is left behind, folders included. Raises OutputError.
    """
    created = [folder for path in paths for folder in _missing_folders(path)]
    staging: dict[Path, Path] = {}
    temporary: dict[Path, Path] = {}
    done = False
    try:
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.parent not in staging:
                staging[path.parent] = Path(tempfile.mkdtemp(prefix=".mstkd-", dir=path.parent))
            temporary[path] = staging[path.parent] / path.name
        yield temporary
        _rename_all(temporary, overwrite)
        done = True
    except OSError as error:
        where = error.filename or ", ".join(map(str, paths))
        raise OutputError(
            f"{where} could not be written ({error.strerror or error}); check free space and permissions."
        ) from error
    except OutputError as error:
        raise OutputError(_with_final_names(str(error), temporary)) from error
    finally:
        for folder in staging.values():
            shutil.rmtree(folder, ignore_errors=True)
        if not done:
            _remove_empty(created)


def _missing_folders(path: Path) -> list[Path]:
    """The folders above `path` that do not exist yet, innermost first."""
    return [folder for folder in path.absolute().parents if not folder.exists()]


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in sorted(set(folders), key=lambda item: len(item.parts), reverse=True):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _rename_all(temporary: Mapping[Path, Path], overwrite: bool) -> None:
    for path in temporary:
        if path.exists() and not overwrite:  # it may have appeared during the computation
            raise OutputError(f"{path} exists already; choose another name or allow overwriting.")
    new: list[Path] = []
    try:
        for path, source in temporary.items():
            if not path.exists():
                new.append(path)
            os.replace(source, path)  # noqa: PTH105 - the atomic call by its name
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        raise


def _with_final_names(text: str, temporary: Mapping[Path, Path]) -> str:
    for path, source in temporary.items():
        text = text.replace(str(source), str(path))
    return text
