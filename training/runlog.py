"""What a run leaves while it trains: a line of JSON every few steps, TensorBoard curves, a progress bar."""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from training.files import write_text

LOG_NAME = "log.jsonl"


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log; a last line that a crash cut short is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


class RunLog:
    """Collects the figures of every step and writes their means every `every` steps. A context manager.

    A resumed run drops the records that lie after its checkpoint, so that no step is logged twice.
    """

    def __init__(self, folder: Path, step: int, total: int, every: int, tensorboard: bool = True) -> None:
        self.folder, self.every, self.total = folder, every, total
        self.path = folder / LOG_NAME
        kept = [record for record in read_log(self.path) if record["step"] <= step]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self._figures: dict[str, list[float]] = defaultdict(list)
        self._crops, self._since = 0, time.perf_counter()
        self._writer = _tensorboard_writer(folder, step) if tensorboard else None
        self.console = Console(file=sys.stderr, highlight=False)
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[speed]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            speed_estimate_period=600,
        )
        self._task = self._bar.add_task("training", total=total, completed=step, loss="-", speed="")

    def __enter__(self) -> RunLog:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._writer is not None:
            self._writer.close()

    def step(self, step: int, figures: Mapping[str, float], crops: int, about: Mapping[str, Any]) -> None:
        """Note one step's `figures`; `crops` is the batch's size, `about` goes into the record as it is."""
        for name, value in figures.items():
            self._figures[name].append(value)
        self._crops += crops
        speed = self._crops / max(time.perf_counter() - self._since, 1e-9)
        text = f"{speed:.2f} crops/s"
        self._bar.update(self._task, completed=step, loss=f"{np.mean(self._figures['loss']):.3f}", speed=text)
        if step % self.every and step != self.total:
            return
        means = {name: float(f"{np.mean(values):.5g}") for name, values in self._figures.items()}
        self.record(step, {**about, **means, "crops_per_second": round(speed, 3)})
        if not self.console.is_terminal:
            left = (self.total - step) / max(len(self._figures["loss"]), 1) * (time.perf_counter() - self._since)
            self.say(f"step {step}/{self.total}  loss {means['loss']:.4f}  {text}  about {_duration(left)} left")
        self._figures.clear()
        self._crops, self._since = 0, time.perf_counter()

    def record(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one record now, to the log and (its numbers) to TensorBoard."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._writer.add_scalar(name, value, step)

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        self.console.print(text, soft_wrap=True, markup=False)


def _tensorboard_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
