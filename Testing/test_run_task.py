"""A run as a front end sees it, on a run whose every step the test decides."""

from __future__ import annotations

import ast
from collections import deque
from pathlib import Path

import pytest
from MSTKDSegmentLib import brain_search, pipeline, preparation, run_task, worker
from MSTKDSegmentLib.errors import Cancelled, InputError, OutputError
from MSTKDSegmentLib.run_task import CANCELLED, DONE, FAILED, RUNNING, SegmentationTask, stage_text


class StepRun:
    """Goes on for `steps` polls, then gives `result` or raises it."""

    def __init__(self, steps: int = 2, result: object = "result") -> None:
        self.steps, self._result = steps, result
        self.fraction, self.text, self.seconds = 0.0, "starting", 0.0
        self.device = None
        self.log: deque = deque(maxlen=3)
        self.logged = 0
        self.closed = 0

    def say(self, line: str) -> None:
        self.log.append(line)
        self.logged += 1

    def poll(self) -> bool:
        self.steps -= 1
        self.seconds += 1
        self.fraction = min(1.0, self.fraction + 0.3)
        return self.steps >= 0

    def result(self):
        if isinstance(self._result, Exception):
            raise self._result
        return self._result

    def close(self) -> None:
        self.closed += 1


def no_loss() -> str:
    return ""


def deliver(result):
    return f"delivered {result}"


def finished(task: SegmentationTask) -> SegmentationTask:
    while task.poll():
        assert task.state == RUNNING
    return task


def test_the_result_is_delivered_once_and_the_run_is_closed():
    run = StepRun()
    delivered = []
    task = finished(SegmentationTask(run, lambda result: delivered.append(result) or "nodes", no_loss))
    assert (task.state, task.outcome, task.error, delivered, run.closed) == (DONE, "nodes", None, ["result"], 1)
    assert not task.poll()
    task.cancel()  # too late
    assert (task.state, delivered, run.closed) == (DONE, ["result"], 1)


@pytest.mark.parametrize("error", [InputError("the file is bad"), OutputError("no room")])
def test_errors_for_the_user_keep_their_words(error):
    task = finished(SegmentationTask(StepRun(result=error), deliver, no_loss))
    assert (task.state, task.error, task.message, task.outcome) == (FAILED, error, str(error), None)


def test_an_error_while_delivering_is_an_error_of_the_run():
    def broken(_result):
        raise ValueError("does not fit")

    run = StepRun()
    task = finished(SegmentationTask(run, broken, no_loss))
    assert task.state == FAILED
    assert task.message == "Unexpected ValueError: does not fit. The error log has the details."
    assert run.closed == 1


def test_cancelling_delivers_nothing():
    run = StepRun(steps=100)
    task = SegmentationTask(run, deliver, no_loss)
    assert task.poll()
    task.cancel()
    assert (task.state, task.message, run.closed) == (CANCELLED, "Cancelled; the scene is as it was.", 1)
    assert not task.poll()
    assert task.outcome is None


def test_an_input_that_is_gone_ends_the_run_with_its_name():
    run = StepRun(steps=100)
    gone = [""]
    task = SegmentationTask(run, deliver, lambda: gone[0])
    assert task.poll()
    gone[0] = "FLAIR was removed from the scene; the segmentation was stopped."
    assert not task.poll()
    assert (task.state, task.message, task.outcome, run.closed) == (CANCELLED, gone[0], None, 1)


def test_an_input_that_goes_while_the_result_is_read_is_noticed():
    class Slow(StepRun):
        def result(self):
            gone[0] = "T1 was removed"
            return "result"

    gone = [""]
    task = finished(SegmentationTask(Slow(), deliver, lambda: gone[0]))
    assert (task.state, task.message, task.outcome) == (CANCELLED, "T1 was removed", None)


def test_a_worker_that_was_cancelled_elsewhere_is_no_failure():
    task = finished(SegmentationTask(StepRun(result=Cancelled("cancelled; nothing was written")), deliver, no_loss))
    assert (task.state, task.error) == (CANCELLED, None)


@pytest.mark.parametrize("where", ["poll", "lost"])
def test_an_unexpected_error_ends_the_run_instead_of_being_raised_ten_times_a_second(where):
    def broken():
        raise KeyError("fraction")

    run = StepRun(steps=100)
    if where == "poll":
        run.poll = broken
    task = SegmentationTask(run, deliver, broken if where == "lost" else no_loss)
    assert not task.poll()
    assert (task.state, run.closed) == (FAILED, 1)
    assert task.message.startswith("Unexpected KeyError")


def test_stages_are_told_in_the_users_words_and_unknown_ones_as_they_are():
    for text in ("reading T1Gd", "bringing FLAIR to the common grid", "done", "something new"):
        assert stage_text(text) == text  # English is the language without translation


def stages_told(file: str) -> set:
    """The texts that a file tells its progress with, names filled in."""
    told = set()
    for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            texts = [*node.args[1:2], *(word.value for word in node.keywords if word.arg == "text")]
            if name in ("step", "told", "_told", "tell") and texts and not isinstance(texts[0], ast.Name):
                parts = texts[0].values if isinstance(texts[0], ast.JoinedStr) else [texts[0]]
                told.add("".join(part.value if isinstance(part, ast.Constant) else "T1Gd" for part in parts))
    return told


def test_every_stage_of_a_run_can_be_translated(monkeypatch):
    told = {text for module in (pipeline, brain_search, preparation, worker) for text in stages_told(module.__file__)}
    assert {"registering T1Gd to T1Gd", "extracting the brain with T1Gd", "finding how the head lies"} <= told
    monkeypatch.setattr(run_task, "_", lambda text: f"<{text}>")
    stage_text.cache_clear()
    assert {text for text in told if stage_text(text) != f"<{text}>"} == set()
    assert stage_text("registering FLAIR to T1Gd") == "<registering FLAIR to T1Gd>"
    assert stage_text("extracting the brain with HD-BET 2.0.1") == "<extracting the brain with HD-BET 2.0.1>"
    assert stage_text("bringing all to the common grid") == "<bringing all to the common grid>"
    stage_text.cache_clear()


def test_the_cpu_in_place_of_a_gpu_is_told():
    run = StepRun()
    task = SegmentationTask(run, deliver, no_loss)
    assert task.device_notice == ""
    run.device = {"name": "cpu", "reason": "no GPU is used: torch finds no GPU", "gpu_expected": False}
    assert task.device_notice == ""
    run.device["gpu_expected"] = True
    assert task.device_notice == "The CPU is used although a GPU was expected: no GPU is used: torch finds no GPU."


def test_every_line_is_shown_once_also_when_the_log_drops_some():
    run = StepRun(steps=10)
    task = SegmentationTask(run, deliver, no_loss)
    assert task.new_lines() == ["0:00 starting"]
    assert task.new_lines() == []
    run.say("a")
    run.say("b")
    assert task.new_lines() == ["a", "b"]
    for letter in "cdefg":  # the log keeps three
        run.say(letter)
    run.text, run.seconds = "running the network", 65
    assert task.new_lines() == ["e", "f", "g", "1:05 running the network"]
    assert task.status == "1:05 running the network"
