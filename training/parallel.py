"""The same work on many cases, in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Callable, TypeVar

import SimpleITK as sitk

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(work: Callable[[Item], Result], items: Sequence[Item], processes: int = 1) -> Iterator[Result]:
    """`work` of every item, in order, as soon as it is there; several processes share the cores.

    On Ctrl-C the items under way (and one that waits its turn) are finished, so that no file is left half written. If
    this process is killed, the others end with it.
    """
    if processes <= 1 or len(items) <= 1:
        yield from map(work, items)
        return
    threads = max((os.cpu_count() or 1) // processes, 1)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(threads,)) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def _begin(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # nobody is left to take a result
