"""The runs of the network that the page asks for: one at a time, each in a process of its own (`worker_process`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from ..child_python import module_command
from ..errors import InputError
from ..handover import Request
from ..modalities import MODALITIES, subset_name
from ..volumes import Volume
from ..worker_process import WorkerRun, worker_command
from .session import OpenCase


@dataclass(frozen=True)
class Engine:
    """What every run uses: the device, the weights' file (None for the shipped one), and the Python to run it in."""

    python: str
    device: str = "auto"
    weights: Optional[str] = None


class Run:
    """A run on some sequences of a case; made, it runs. Call `close` in any case: it ends what still runs."""

    def __init__(self, engine: Engine, case: OpenCase, chosen: Sequence[str], *, what_if: bool = False) -> None:
        """Raises InputError where none of the `chosen` sequences is one of the case's volumes."""
        self.index, self.case = case.index, case.name
        self.subset = tuple(name for name in MODALITIES if name in chosen and name in case.volumes)
        if not self.subset:
            raise InputError("choose at least one sequence")
        self.what_if = what_if
        self._volumes: Mapping[str, Volume] = {name: case.volumes[name] for name in self.subset}
        request = Request(self._volumes, engine.device, weights=engine.weights)
        self._run = WorkerRun(
            request, self._command(engine, case.item.ground_truth if case.truth else None), wait=False
        )

    def _command(self, engine: Engine, truth: Optional[Path]) -> list[str]:
        if not self.what_if:
            return worker_command(engine.python)
        module = "MSTKDSegmentLib.review_app.what_if_worker"
        return [*module_command(module, engine.python), str(truth or "")]

    @property
    def name(self) -> str:
        """What its result is called, such as "T1Gd+FLAIR"."""
        return subset_name(self.subset)

    @property
    def fraction(self) -> float:
        """How much is done, 0 to 1."""
        return self._run.fraction

    @property
    def text(self) -> str:
        """What is being done."""
        return self._run.text

    def poll(self) -> bool:
        """Take in what the child said; True while it runs."""
        return self._run.poll()

    def result(self) -> dict[str, Any]:
        """Of a run that has ended: "labels" (D, H, W), "image" with their grid, "provenance", "notices" and "what_if"
        (`WhatIf.to_dict()` or None). Raises the error that the child named.
        """
        found = self._run.result()
        return {
            "labels": found.labels,
            "image": self._volumes[found.reference].image,
            "provenance": found.provenance,
            "notices": found.notices,
            "what_if": self._run.about.get("what_if"),
        }

    def close(self) -> None:
        """End the child, within a second or two, and remove what it was handed."""
        self._run.close()
