"""A run from its first to its last step: phases, data, checkpoints, validation, and every way of stopping early."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from MSTKDSegmentLib.errors import OutputError
from torch.utils.data import DataLoader

from training.augment import Augmentation
from training.checkpoint import BEST, LAST, save_checkpoint
from training.config import Phase, TrainingConfig, differences, plain, written
from training.crops import Cases, CropDataset
from training.distributed import World
from training.engine import Trainer
from training.files import write_text
from training.networks import read_checkpoint
from training.provenance import current_commit, package_versions
from training.runlog import RunLog
from training.validation import validation_dice


class Stopped(KeyboardInterrupt):
    """The user, or a cluster's scheduler, asked to stop; everything is saved."""


def run_training(
    config: TrainingConfig,
    cases: Cases,
    out: Path,
    *,
    world: World | None = None,
    validation_cases: Cases | None = None,
    stop_after: int | None = None,
    change_config: bool = False,
    tensorboard: bool = True,
) -> Path:
    """Train, resuming from `<out>/last.pt` when it is there; returns that checkpoint's path.

    `stop_after` ends this call after so many steps (the run goes on at the next call). The best checkpoint on
    `validation_cases`, if the configuration validates, is `<out>/best.pt`. Raises ValueError when the configuration is
    not the one that the run was started with, unless `change_config` (the change stays in the history), and for a
    damaged case; Stopped after Ctrl-C or SIGTERM; OutputError when the disk is full; FloatingPointError for a NaN. A
    damaged case and a stop leave the steps so far in `last.pt`, a NaN and a full disk those of the last checkpoint.
    """
    world = world or World()
    _check_batches(config, world)
    if config.validation.every and validation_cases is None:
        raise ValueError("the configuration validates (validation.every), but the splits have no validation cases")
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config, world, resumed=(out / LAST).exists())
    trained_on = {"training": list(cases.names), "validation": list(validation_cases.names) if validation_cases else []}
    _resume(trainer, out / LAST, trained_on, change_config)
    if world.is_main:
        for half_written in out.glob(".*.tmp.*"):  # by a run that was killed while it saved
            half_written.unlink()
        _describe(config, out)
    end = config.total_steps if stop_after is None else min(config.total_steps, trainer.step + stop_after)
    if trainer.step < end or not (out / LAST).exists():
        _Run(trainer, cases, validation_cases, out, end, tensorboard, trained_on).go()
    return out / LAST


def _check_batches(config: TrainingConfig, world: World) -> None:
    wrong = [phase.batch for phase in config.phases if phase.batch % world.size]
    if wrong:
        raise ValueError(
            f"batch {wrong[0]} cannot be shared by {world.size} processes; `batch` is the global one: a multiple of it"
        )


def _resume(trainer: Trainer, checkpoint: Path, cases: dict[str, list[str]], change_config: bool) -> None:
    if not checkpoint.exists():
        return
    state = read_checkpoint(checkpoint)
    changed = differences(state["config"], plain(trainer.config))
    for kind, names in cases.items():
        before = set(state.get("cases", cases)[kind])
        if before != set(names):
            changed.append(f"{kind} cases: {len(before - set(names))} fewer, {len(set(names) - before)} new")
    last = state["history"][-1] if state["history"] else {}
    if last.get("teacher_sha256") != trainer.sources.get("teacher_sha256"):
        changed.append("teacher.weights: the file has other contents")
    if changed and not change_config:
        raise ValueError(
            f"{checkpoint} was trained with another configuration ({'; '.join(changed)}); "
            "use another folder, or --change-config to go on with the new one"
        )
    trainer.load_state_dict(state)


def _describe(config: TrainingConfig, out: Path) -> None:
    """The resolved configuration, versions and commit beside the checkpoints."""
    write_text(out / "config.yaml", written(config))
    about = {"versions": package_versions(), "commit": current_commit()}
    write_text(out / "versions.json", json.dumps(about, indent=1) + "\n")


@contextlib.contextmanager
def stop_requests() -> Iterator[list[str]]:
    """A list that receives the name of a signal (Ctrl-C, SIGTERM); a second Ctrl-C interrupts at once."""
    asked: list[str] = []
    before = {}

    def note(number: int, _frame: object) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(signal.Signals(number).name)

    for number in (signal.SIGINT, signal.SIGTERM):
        # Only the main thread may set handlers; elsewhere (a test, a notebook's worker) Ctrl-C stays as it is.
        with contextlib.suppress(ValueError):
            before[number] = signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start_worker(_worker: int) -> None:
    """Data workers leave Ctrl-C and SIGTERM to the main process, compute on one thread, and at a lower priority.

    On few cores they would otherwise stall the threads of each operation. `_batches` ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    torch.set_num_threads(1)
    if hasattr(os, "nice"):
        os.nice(5)


@contextlib.contextmanager
def _batches(loader: DataLoader) -> Iterator[Iterator[Any]]:
    """The loader's batches; its workers have ended when the block is left, however it is left.

    torch ends them when the iterator is collected. An error's traceback may hold it until the interpreter exits, which
    would then wait for ever for processes that ignore its SIGTERM.
    """
    others = set(multiprocessing.active_children())
    try:
        batches = iter(loader)
        try:
            yield batches
        finally:
            # First torch's own way, which also tells its watch over the workers that they may go.
            if loader.num_workers:
                batches._shutdown_workers()  # type: ignore[attr-defined]
    finally:
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
            worker.join()


class _Run:
    """The state of one call of `run_training`."""

    def __init__(
        self,
        trainer: Trainer,
        cases: Cases,
        validation: Cases | None,
        out: Path,
        end: int,
        tensorboard: bool,
        trained_on: dict[str, list[str]],
    ) -> None:
        self.trainer, self.cases, self.validation, self.out, self.end = trainer, cases, validation, out, end
        self.config, self.world = trainer.config, trainer.world
        self.tensorboard, self.trained_on = tensorboard, trained_on
        self.log: RunLog | None = None

    def go(self) -> None:
        config, trainer = self.config, self.trainer
        with contextlib.ExitStack() as stack:
            asked = stack.enter_context(stop_requests())
            if self.world.is_main:
                self.log = RunLog(self.out, trainer.step, config.total_steps, config.log_every, self.tensorboard)
                stack.enter_context(self.log)
            first_step, first_item = 0, 0
            for phase in config.phases:
                last = min(first_step + phase.steps, self.end)
                if trainer.step < last:
                    loader = self._loader(phase, last, first_item - first_step * phase.batch)
                    with self._keeping_the_steps(), _batches(loader) as batches:
                        self._phase(phase, batches, asked)
                first_step += phase.steps
                first_item += phase.steps * phase.batch
        self._save(LAST)

    @contextlib.contextmanager
    def _keeping_the_steps(self) -> Iterator[None]:
        """Save what was learnt when a damaged case or a log that cannot be written ends the run."""
        try:
            yield
        except (FloatingPointError, OutputError):
            raise
        except (OSError, ValueError, RuntimeError) as error:
            # Not `_save`: the other processes do not wait for this one now.
            if self.world.is_main:
                save_checkpoint(self._state(), self.out / LAST)
            if isinstance(error, RuntimeError) and not _from_a_worker(error):
                raise
            raise ValueError(
                f"{_own_words(error)}; the steps up to {self.trainer.step} are in {self.out / LAST}, run the same "
                "command again to go on"
            ) from error

    def _state(self) -> dict[str, Any]:
        return {**self.trainer.state_dict(), "cases": self.trained_on}

    def _loader(self, phase: Phase, end: int, offset: int) -> DataLoader:
        """Batches of this process up to step `end`: item `offset + step * batch + i`, shared out among processes."""
        share = phase.batch // self.world.size
        starts = (offset + step * phase.batch + self.world.rank * share for step in range(self.trainer.step, end))
        numbers = [start + i for start in starts for i in range(share)]
        workers = self.config.sampling.workers
        return DataLoader(
            CropDataset(
                self.cases,
                phase.crop,
                self.config.seed,
                self.config.sampling,
                Augmentation(self.config.augmentation),
                complete=self.config.teacher.mode != "none",
            ),
            batch_size=share,
            sampler=numbers,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            worker_init_fn=_start_worker if workers else None,
            pin_memory=self.world.device.type == "cuda",
        )

    def _phase(self, phase: Phase, batches: Iterator[Any], asked: list[str]) -> None:
        trainer, config = self.trainer, self.config
        start = time.perf_counter()
        for batch in batches:
            figures = trainer.train_step(batch)
            now = time.perf_counter()
            trainer.seconds += now - start
            start = now
            if self.log is not None:
                about = {"crop": list(phase.crop), "seconds": round(trainer.seconds, 1)}
                self.log.step(trainer.step, figures, phase.batch, about)
            if self.world.any(bool(asked)):
                self._save(LAST)
                raise Stopped(
                    f"stopped at step {trainer.step} of {config.total_steps}; {self.out / LAST} is saved. Run the same "
                    "command again to go on from there"
                )
            if config.validation.every and trainer.step % config.validation.every == 0:
                self._validate()  # saves, too
                start = time.perf_counter()
            elif trainer.step % config.checkpoint_every == 0:
                self._save(LAST)

    def _validate(self) -> None:
        assert self.validation is not None
        # First, for validation takes a while and may be interrupted.
        self._save(LAST)
        told = self.log.say if self.log is not None else print
        subsets = self.config.validation.subsets
        figures = validation_dice(self.trainer.average, self.validation, subsets, self.world, told)
        better = figures["score"] > self.trainer.best_score
        self.trainer.best_score = max(figures["score"], self.trainer.best_score)
        if self.log is not None:
            self.log.record(self.trainer.step, {f"validation/{name}": value for name, value in figures.items()})
            self.log.say(f"step {self.trainer.step}: validation Dice {figures['score']:.3f}{' (best)' * better}")
        if better:
            self._save(BEST)
        self._save(LAST)

    def _save(self, name: str) -> None:
        if self.world.is_main:
            save_checkpoint(self._state(), self.out / name)
        self.world.barrier()


def _from_a_worker(error: Exception) -> bool:
    return str(error).startswith("Caught ") or "DataLoader worker" in str(error)


def _own_words(error: Exception) -> str:
    """The message of an error; of one that a data worker raised, without the worker's traceback."""
    text = str(error).strip()
    if not text.startswith("Caught "):
        return text
    return text.splitlines()[-1].partition(": ")[2]
