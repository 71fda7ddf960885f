"""The card of the weights that a panel names, read once as long as the file does not change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from .errors import WeightsError
from .translation import _
from .weights import default_bundle_path, read_bundle

Answer = tuple[Optional[Mapping[str, Any]], str, str]


class CardReader:
    """Reads bundles and checks their sums; a damaged one is a sentence to show, not an exception."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int], Answer] = {}

    def card(self, path: str) -> Answer:
        """Card, problem, and a sentence about a bundle of the user's own; `path` "" is the one that ships.

        Without a problem the second is ""; with one there is no card.
        """
        try:
            file = Path(path) if path else default_bundle_path()
            status = file.stat()
        except (OSError, ValueError):
            return self._read(path)
        except WeightsError as error:
            return None, str(error), str(error)
        key = path, status.st_mtime_ns, status.st_size
        if key not in self._known:
            self._known = {key: self._read(path)}
        return self._known[key]

    @staticmethod
    def _read(path: str) -> Answer:
        try:
            bundle = read_bundle(path or None)
        except WeightsError as error:
            return None, str(error), str(error)
        about = ""
        if path:
            about = _("{name}, checksum verified (sha256 {digest}...): {description}").format(
                name=bundle.card["name"],
                digest=bundle.sha256[:12],
                description=bundle.card.get("description", _("no description")),
            )
        return bundle.card, "", about
