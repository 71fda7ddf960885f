"""Work in a thread: its outcome, its error, and that waiting for it lets it work."""

from __future__ import annotations

import threading
import time

from MSTKDSegmentLib.background import Background


def test_the_outcome_is_there_when_it_has_ended_and_not_before():
    go = threading.Event()
    work = Background(lambda: go.wait(10) and 42)
    began = time.monotonic()
    assert work.poll(0.03)
    assert time.monotonic() - began >= 0.03  # the main thread waited, so that the other could work
    assert (work.outcome, work.error) == (None, None)
    go.set()
    while work.poll():
        assert time.monotonic() - began < 10
    assert (work.outcome, work.error) == (42, None)
    assert not work.poll()


def test_what_it_raises_is_kept_and_raised_nowhere():
    def fail():
        raise KeyError("lost")

    work = Background(fail)
    while work.poll():
        pass
    assert work.outcome is None
    assert isinstance(work.error, KeyError)


def test_nobody_has_to_wait_for_it():
    threads = [thread for thread in threading.enumerate() if not thread.daemon]
    go = threading.Event()
    Background(lambda: go.wait(10))
    assert [thread for thread in threading.enumerate() if not thread.daemon] == threads  # quitting is not held up
    go.set()
