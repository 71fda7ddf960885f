"""Work in a thread: its outcome, its error, and that waiting for it lets it work."""

from __future__ import annotations

import threading
import time

import pytest
from MSTKDSegmentLib.background import Ahead, Background


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


def test_what_is_begun_ahead_is_done_once_and_waited_for():
    go, calls = threading.Event(), []
    ahead = Ahead(lambda: (calls.append(go.wait(10)), 42)[1])
    go.set()
    assert (ahead(), ahead(), calls) == (42, 42, [True])


def test_an_error_of_what_is_begun_ahead_comes_when_it_is_asked_for():
    def fail():
        raise KeyError("lost")

    ahead = Ahead(fail)
    for _again in range(2):
        with pytest.raises(KeyError, match="lost"):
            ahead()
