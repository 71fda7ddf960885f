"""Work shared out over processes: each asks for its next piece when it is done, a process that dies costs its piece."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Generator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Callable, NamedTuple, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


PATIENCE_SECONDS = 20.0


class ProcessDied(Exception):  # noqa: N818 - what became of a piece of work
    """A process ended before it gave its result: killed, out of memory, or crashed in a library."""


class Done(NamedTuple):
    """A piece of work and what it gave: its result, or the error that it ended with (`ProcessDied` too)."""

    task: Any
    result: Any
    error: Any


class _Worker(NamedTuple):
    process: Any
    connection: Any


def in_processes(work: Callable[[Task, int], Result], tasks: Sequence[Task], count: int) -> Generator[Done, None, None]:
    """`work(task, number)` of all tasks in at most `count` new processes, in the order in which they end.

    number: of the process, from 0. `work`, tasks and results must be picklable. The processes are started by spawn, so
    that none inherits locks or a GPU, and leave Ctrl-C to this one. When the iteration is left, by an error or Ctrl-C
    too, all of them are ended.
    """
    count = min(count, len(tasks))
    left = list(tasks)[::-1]
    busy: dict[int, tuple[_Worker, Task]] = {}
    try:
        for number in range(count):
            _give(busy, number, _started(work, number), left)
        while busy:
            by_connection = {worker.connection: number for number, (worker, _task) in busy.items()}
            for connection in wait(list(by_connection)):
                number = by_connection[connection]  # type: ignore[index]
                worker, task = busy.pop(number)
                result, error = _answer(worker)
                if isinstance(error, ProcessDied) and left:
                    worker = _started(work, number)
                _give(busy, number, worker, left)
                yield Done(task, result, error)
    finally:
        for worker, _task in busy.values():
            worker.process.terminate()
        for worker, _task in busy.values():
            _end(worker)


def _started(work: Callable[[Task, int], Result], number: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work, number), daemon=True)
    process.start()
    theirs.close()  # so that the end of the process ends the connection
    return _Worker(process, ours)


def _give(busy: dict[int, tuple[_Worker, Task]], number: int, worker: _Worker, left: list[Task]) -> None:
    """The next piece to the worker; without one it is let go."""
    if not left:
        _end(worker)
        return
    task = left.pop()
    busy[number] = (worker, task)
    with contextlib.suppress(OSError):  # it died while idle; `_answer` will find that out
        worker.connection.send(task)


def _answer(worker: _Worker) -> tuple[Any, Any]:
    try:
        result, error = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        code = worker.process.exitcode
        _end(worker)
        return None, ProcessDied(f"its process ended unexpectedly (exit code {code}); was memory short?")
    return result, error


def _end(worker: _Worker) -> None:
    worker.connection.close()
    worker.process.join(PATIENCE_SECONDS)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()


def _leave(*_signal: Any) -> None:
    """An end that takes temporary files along."""
    sys.exit(1)


def _serve(connection: Connection, work: Callable[[Task, int], Result], number: int) -> None:
    """In the new process: take tasks until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    # Their threads are more than the cores and must not wait by spinning. Fewer would be faster, but torch's figures
    # depend in the third decimal on how many threads add them up. Read by torch, which is imported later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer: tuple[Any, Any] = (work(task, number), None)
        except Exception as error:
            answer = (None, error)
        try:
            connection.send(answer)
        except OSError:
            return
