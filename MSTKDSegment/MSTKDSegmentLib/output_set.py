"""Several files that appear together or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import OutputError


def refuse_collisions(outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Raises OutputError where two of `outputs` are one file, or one of them is one of `inputs`."""
    resolved = [path.resolve() for path in outputs]
    for path in resolved:
        if resolved.count(path) > 1:
            raise OutputError(f"{path} is given for two outputs; give each its own name")
    for source in inputs:
        if source.resolve() in resolved:
            raise OutputError(f"{source} is an input and would be overwritten; choose another output name")


@contextmanager
def staged_outputs(paths: Sequence[Path], overwrite: bool) -> Iterator[Mapping[Path, Path]]:
    """Yields for each of `paths` a temporary path of the same name; on success all are renamed to their places.

    The temporary files lie in a hidden folder beside their target, so renaming stays on one file system. When the
    block or the renaming fails, every file is as it was and nothing new is left behind, folders included. Raises
    OutputError.
    """
    created: list[Path] = []
    staging: dict[Path, Path] = {}
    temporary: dict[Path, Path] = {}
    done = False
    try:
        created = [folder for path in paths for folder in _missing_folders(path)]
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
        with suppress(OSError):  # it was not created after all, or holds a file of someone else
            folder.rmdir()


def _rename_all(temporary: Mapping[Path, Path], overwrite: bool) -> None:
    for path in temporary:
        if path.exists() and not overwrite:  # it may have appeared during the computation
            raise OutputError(f"{path} exists already; choose another name or allow overwriting.")
    old: dict[Path, Path] = {}
    new: list[Path] = []
    try:
        for path in temporary:
            if path.exists():
                # Not in the staging folder, which is deleted even when what it holds could not be moved back.
                old[path] = Path(tempfile.mkdtemp(prefix=".mstkd-old-", dir=path.parent)) / path.name
                os.replace(path, old[path])  # noqa: PTH105 - the atomic call by its name
        for path, source in temporary.items():
            new.append(path)
            os.replace(source, path)  # noqa: PTH105
    except BaseException:
        _take_back(new, old)
        raise
    for kept in old.values():
        shutil.rmtree(kept.parent, ignore_errors=True)


def _take_back(new: Sequence[Path], old: Mapping[Path, Path]) -> None:
    """Puts the files from before back in the place of `new`; the error names what could not be moved."""
    stuck = []
    for path, kept in old.items():
        try:
            if kept.exists():
                os.replace(kept, path)  # noqa: PTH105
        except OSError:
            stuck.append(f"{path} is now {kept}")
        else:
            shutil.rmtree(kept.parent, ignore_errors=True)
    for path in new:
        if path not in old:
            with suppress(OSError):  # the error that led here is the one to report
                path.unlink()
    if stuck:
        raise OutputError(f"the outputs could not be replaced, nor all old ones put back: {'; '.join(stuck)}")


def _with_final_names(text: str, temporary: Mapping[Path, Path]) -> str:
    for path, source in temporary.items():
        text = text.replace(str(source), str(path))
    return text
