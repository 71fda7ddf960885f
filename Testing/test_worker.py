"""The segmentation in a real child process: the same result, progress, cancelling, and every way of dying."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from MSTKDSegmentLib import worker_process
from MSTKDSegmentLib.errors import Cancelled, DeviceError, MSTKDError, RoleError, WeightsError
from MSTKDSegmentLib.geometry import CanonicalGrid
from MSTKDSegmentLib.handover import (
    Request,
    prepared_geometry,
    read_prepared,
    read_request,
    write_request,
    write_result,
)
from MSTKDSegmentLib.modalities import availability
from MSTKDSegmentLib.pipeline import PreparedCase, Segmenter
from MSTKDSegmentLib.preparation_record import Wishes
from MSTKDSegmentLib.volumes import Volume, read_volume
from MSTKDSegmentLib.worker import ABANDONED
from MSTKDSegmentLib.worker_process import FOLDER_PREFIX, WorkerRun, segment_in_worker
from processes import alive

LIBRARY_PARENT = Path(__file__).resolve().parents[1] / "MSTKDSegment"
# The worker as it is, after something was changed in its process.
AS_WORKER = """
import os, sys
from pathlib import Path
{change}
from MSTKDSegmentLib import worker
code = worker.main(Path(sys.argv[1]))
sys.stderr.flush()
os._exit(code)
"""


def changed(change: str) -> list[str]:
    return [sys.executable, "-c", AS_WORKER.format(change=change)]


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where the folders for handing over are made, so that what is left of them shows."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def volumes(case_files):
    return {"T1Gd": read_volume(case_files["t1gd"]), "FLAIR": read_volume(case_files["flair"])}


@pytest.fixture
def request_(volumes, random_bundle):
    return Request(volumes, "cpu", None, str(random_bundle))


def within(seconds: float, condition) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


# --- the way that works ---


def test_the_child_finds_what_the_same_process_finds(request_, volumes, random_bundle, temporary):
    told = []
    asked = Request(volumes, "cpu", "FLAIR", str(random_bundle), want_probabilities=True)
    result = segment_in_worker(asked, progress=lambda fraction, text: told.append((fraction, text)))
    expected = Segmenter(random_bundle, "cpu").segment(volumes, reference="FLAIR", want_probabilities=True)
    assert np.array_equal(result.labels, expected.labels)
    assert result.labels.dtype == np.uint8
    assert result.labels.any()
    # The child may compute on another number of threads, which rounds differently.
    assert np.allclose(result.region_probabilities, expected.region_probabilities, atol=1e-4)
    assert result.volumes_ml == pytest.approx(expected.volumes_ml)
    assert result.reference == "FLAIR"
    assert result.notices == expected.notices
    assert result.provenance.keys() == expected.provenance.keys()
    assert result.provenance["input T1Gd"] == volumes["T1Gd"].source
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions)
    assert told[0][1] == "starting"
    assert told[-1] == (1.0, "done")
    assert "loading the network" in {text for _, text in told}
    assert list(temporary.glob(f"{FOLDER_PREFIX}*")) == []


def test_what_the_network_saw_is_handed_over_exactly(tmp_path):
    rng = np.random.default_rng(0)
    turn = np.column_stack([np.linalg.qr(rng.normal(size=(3, 3)))[0], rng.normal(size=3)])
    image = rng.normal(size=(4, 3, 4, 5)).astype(np.float32)
    grid = CanonicalGrid((-7.25, 1 / 3, 12.0), (5, 4, 3))
    brain = rng.random((3, 4, 5)) > 0.5
    there = availability(("T1Gd", "FLAIR"))
    case = PreparedCase({"FLAIR": None, "T1Gd": None}, "T1Gd", grid, image, there, (), brain, None, {"FLAIR": turn})
    write_result(tmp_path, SimpleNamespace(labels=np.zeros(1), region_probabilities=None, case=case), keep=True)
    got = read_prepared(tmp_path, json.loads(json.dumps(prepared_geometry(case))))
    assert got.origin == grid.origin
    assert np.array_equal(got.brain, brain)
    assert {name: got.images[name].tolist() for name in got.images} == {
        "T1Gd": image[1].tolist(),
        "FLAIR": image[3].tolist(),
    }
    assert np.array_equal(got.matrices["FLAIR"], turn)
    assert np.array_equal(got.matrices["T1Gd"], np.eye(3, 4))


def test_the_preparation_that_was_asked_for_is_done_in_the_child_and_told(volumes, random_bundle, temporary):
    said = Wishes(registered=True, skull_stripped=True, upright=True, bias_correction=True)
    result = segment_in_worker(Request(volumes, "cpu", "FLAIR", str(random_bundle), wishes=said, keep=True))
    case = Segmenter(random_bundle, "cpu").segment(volumes, reference="FLAIR", wishes=said).case
    assert result.prepared.origin == case.grid.origin
    assert np.array_equal(result.prepared.brain, case.brain)
    for name, index in (("T1Gd", 1), ("FLAIR", 3)):
        assert result.prepared.images[name].dtype == np.float32
        assert np.allclose(result.prepared.images[name], case.image[index], atol=1e-4)
        assert np.array_equal(result.prepared.matrices[name], case.matrices[name])
    assert result.record["bias_corrected"]
    assert not result.record["challenge_ready"]
    assert result.record["told_by_user"] == ["skull-stripped", "registered", "upright"]
    assert result.record.keys() == case.record.to_dict().keys()
    assert list(temporary.glob(f"{FOLDER_PREFIX}*")) == []


def test_volumes_that_were_left_alone_have_the_identity_and_nothing_comes_unasked(request_, temporary):
    kept = segment_in_worker(replace(request_, keep=True))
    assert kept.record["challenge_ready"]
    assert {name: matrix.tolist() for name, matrix in kept.prepared.matrices.items()} == {
        "T1Gd": np.eye(3, 4).tolist(),
        "FLAIR": np.eye(3, 4).tolist(),
    }
    assert np.array_equal(kept.prepared.brain, np.any([image != 0 for image in kept.prepared.images.values()], axis=0))
    plain = segment_in_worker(request_)
    assert plain.prepared is None
    assert np.array_equal(plain.labels, kept.labels)


def test_the_device_is_told_with_its_reason_before_the_result(request_, temporary):
    with WorkerRun(request_) as run:
        assert within(60, lambda: not run.poll() or run.device is not None)
        assert (run.device["name"], run.device["reason"]) == ("cpu", "the CPU was asked for")


@settings(max_examples=25, deadline=None)
@given(
    spacing=st.tuples(*[st.floats(0.1, 10)] * 3),
    origin=st.tuples(*[st.floats(-1e3, 1e3)] * 3),
    angle=st.floats(-3.1, 3.1),
    seed=st.integers(0, 99),
)
def test_voxels_and_geometry_are_handed_over_exactly(spacing, origin, angle, seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("handover")
    image = sitk.GetImageFromArray(np.random.default_rng(seed).normal(size=(3, 4, 5)).astype(np.float32))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    cosine, sine = np.cos(angle), np.sin(angle)
    image.SetDirection((cosine, -sine, 0.25, sine, cosine, 0, 0, 0, 1))  # sheared, as under a parent transform
    asked = Request({"T2": Volume(image, "head, Zoë", {"PatientID": "7"})}, "auto", "T2", None, True)
    write_request(folder, asked)
    got = read_request(folder)
    there = got.volumes["T2"].image
    assert (got.device, got.reference, got.weights, got.want_probabilities) == ("auto", "T2", None, True)
    assert got.volumes["T2"].source == "head, Zoë"
    assert got.volumes["T2"].tags == {"PatientID": "7"}
    assert np.array_equal(sitk.GetArrayViewFromImage(there), sitk.GetArrayViewFromImage(image))
    assert there.GetSpacing() == image.GetSpacing()
    assert there.GetOrigin() == image.GetOrigin()
    assert there.GetDirection() == image.GetDirection()
    assert not got.keep
    assert got.wishes == Wishes()


def test_what_the_user_said_is_handed_over_with_the_mask_in_its_place(tmp_path):
    mask = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 2, (3, 4, 5)).astype(np.uint8))
    mask.SetSpacing((0.9, 1.1, 3.0))
    mask.SetOrigin((-7.25, 1 / 3, 12.0))
    mask.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
    said = Wishes(False, None, True, mask, "synthstrip", True, "my brain")
    write_request(tmp_path, Request({}, wishes=said, keep=True))
    got = read_request(tmp_path)
    assert got.keep
    assert replace(got.wishes, brain_mask=None) == replace(said, brain_mask=None)
    there = got.wishes.brain_mask
    assert np.array_equal(sitk.GetArrayViewFromImage(there), sitk.GetArrayViewFromImage(mask))
    assert (there.GetSpacing(), there.GetOrigin()) == (mask.GetSpacing(), mask.GetOrigin())
    assert there.GetDirection() == mask.GetDirection()


# --- the user's errors, by their own kind ---


def test_the_same_volume_twice_is_the_users_error_with_its_words(volumes, random_bundle, temporary):
    twice = Request({"T1": volumes["T1Gd"], "T2": volumes["T1Gd"]}, "cpu", None, str(random_bundle))
    with pytest.raises(RoleError, match="are the same volume"):
        segment_in_worker(twice)
    assert list(temporary.glob(f"{FOLDER_PREFIX}*")) == []


def test_a_damaged_bundle_is_named(volumes, tmp_path, temporary):
    (tmp_path / "broken.zip").write_bytes(b"junk")
    with pytest.raises(WeightsError, match=r"broken\.zip"):
        segment_in_worker(Request(volumes, "cpu", None, str(tmp_path / "broken.zip")))


@pytest.mark.parametrize("torch", [None, "raise OSError('libtorch.so: file too short')"])
def test_a_torch_that_is_missing_or_damaged_is_told_with_advice(request_, torch, tmp_path, temporary):
    change = "sys.modules['torch'] = None"
    if torch is not None:
        (tmp_path / "torch.py").write_text(torch)
        change = f"sys.path.insert(0, {str(tmp_path)!r})"
    with pytest.raises(MSTKDError, match=r"PyTorch cannot be loaded \(.*(halted|too short).*Install it"):
        segment_in_worker(request_, command=changed(change))


def test_memory_that_is_never_enough_ends_with_advice(request_, temporary):
    """In the real path: the network's own call fails as torch fails, so that every window is tried first."""
    full = """
from MSTKDSegmentLib.network import MSTKDNet
def forward(*_arguments):
    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
MSTKDNet.forward = forward
"""
    with pytest.raises(DeviceError, match="memory"):
        segment_in_worker(request_, command=changed(full))


# --- cancelling ---


@pytest.mark.parametrize("in_the_network", [False, True])
def test_cancelling_leaves_no_process_and_no_folder(request_, in_the_network, temporary):
    slow = """
import time
from MSTKDSegmentLib import network
def forward(*arguments, **options):
    print("in the network", file=sys.stderr, flush=True)
    time.sleep(60)
network.MSTKDNet.forward = forward
"""
    with WorkerRun(request_, changed(slow)) as run:
        pid = run._process.pid
        if in_the_network:
            assert within(60, lambda: not run.poll() or "in the network" in run.log)
        assert run.running
        before = time.monotonic()
    assert time.monotonic() - before < 10  # of sixty; on a loaded machine two are not enough
    assert not alive(pid)
    assert list(temporary.glob(f"{FOLDER_PREFIX}*")) == []


def test_a_child_in_the_middle_of_a_registration_goes_by_itself(request_, temporary, monkeypatch):
    """While ITK works, Python's other threads run: the child need not be killed."""
    endless = """
import SimpleITK as sitk
from MSTKDSegmentLib import preparation
from MSTKDSegmentLib.registration import optimised_level
def register(fixed, fixed_mask, moving, *_rest, **_more):
    print("registering", file=sys.stderr, flush=True)
    everywhere = sitk.Cast(fixed > -1, sitk.sitkUInt8)
    start = sitk.Euler3DTransform()
    start.SetTranslation((9.0, 7.0, 5.0))
    while True:
        optimised_level(fixed, everywhere, moving, start, 0.1)
preparation.register = register
"""
    monkeypatch.setattr(worker_process, "GRACE_SECONDS", 30)  # far more than it takes, also on a loaded machine
    asked = replace(request_, wishes=Wishes(registered=False, skull_stripped=True, upright=True))
    with WorkerRun(asked, changed(endless)) as run:
        assert within(120, lambda: not run.poll() or "registering" in run.log)
        time.sleep(0.5)
        assert run.running
        process = run._process
    assert process.returncode == ABANDONED
    assert list(temporary.glob(f"{FOLDER_PREFIX}*")) == []


def test_a_wish_to_cancel_is_heard_while_waiting(request_, temporary):
    heard = []
    with pytest.raises(Cancelled, match="nothing was written"):
        segment_in_worker(request_, cancel=lambda: heard.append(1) or len(heard) > 3)
    assert list(temporary.glob(f"{FOLDER_PREFIX}*")) == []


def test_a_child_that_does_not_listen_is_killed(request_, temporary):
    with WorkerRun(request_, [sys.executable, "-c", "import time; time.sleep(60)"]) as run:
        pid = run._process.pid
        before = time.monotonic()
    assert time.monotonic() - before < 10
    assert not alive(pid)


def test_the_child_goes_when_its_parent_dies(request_, tmp_path):
    """Slicer crashes: nobody closes anything, and no process may stay behind."""
    (tmp_path / "request").mkdir()
    write_request(tmp_path / "request", request_)
    parent = """
import os, sys, time
from pathlib import Path
from MSTKDSegmentLib.handover import read_request
from MSTKDSegmentLib.worker_process import FOLDER_PREFIX, WorkerRun, segment_in_worker
run = WorkerRun(read_request(Path(sys.argv[1])), [sys.executable, "-c", sys.argv[2]])
while run.text != "ready":
    run.poll(); time.sleep(0.05)
print(run._process.pid, run.folder, flush=True)
os._exit(1)
"""
    child = """
import os, sys, threading, time
from pathlib import Path
from MSTKDSegmentLib import worker
tell = worker._teller(worker._private_stdout())
threading.Thread(target=worker._leave_with_the_parent, args=(worker._private_stdin(), Path(sys.argv[1]))).start()
tell("progress", fraction=0.5, text="ready")
time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": str(LIBRARY_PARENT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", parent, str(tmp_path / "request"), child],
        capture_output=True, text=True, check=False, timeout=60, env=environment,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    pid, folder = done.stdout.split()
    assert within(20, lambda: not alive(int(pid)))
    assert Path(folder).parent == tmp_path
    assert not Path(folder).exists()  # a patient's volumes


def test_handing_over_keeps_nobody_waiting_and_can_be_given_up(request_, temporary, monkeypatch):
    """A large volume on a slow disk."""

    def slow(folder, request, given_up):
        while not given_up():
            time.sleep(0.01)
        (folder / "half written").write_text("")
        time.sleep(0.2)

    monkeypatch.setattr(worker_process, "write_request", slow)
    before = time.monotonic()
    run = WorkerRun(request_, wait=False)
    assert run.poll()
    assert time.monotonic() - before < 0.5
    assert list(temporary.glob(f"{FOLDER_PREFIX}*"))
    run.close()
    assert time.monotonic() - before < 2
    assert run._process is None
    assert list(temporary.glob(f"{FOLDER_PREFIX}*")) == []


def test_a_disk_that_takes_longer_than_anybody_waits_is_cleared_in_the_end(request_, temporary, monkeypatch):
    def very_slow(folder, request, given_up):
        time.sleep(2)
        (folder / "T1.npy").write_text("")

    monkeypatch.setattr(worker_process, "write_request", very_slow)
    monkeypatch.setattr(worker_process, "GRACE_SECONDS", 0.1)
    run = WorkerRun(request_, wait=False)
    before = time.monotonic()
    run.close()
    assert time.monotonic() - before < 1
    assert within(10, lambda: list(temporary.glob(f"{FOLDER_PREFIX}*")) == [])
    assert run._process is None


def test_what_goes_wrong_while_starting_is_told_at_the_end(request_, temporary):
    run = WorkerRun(request_, ["/nowhere/no-python"], wait=False)
    assert within(10, lambda: not run.poll())
    with pytest.raises(MSTKDError, match=r"no-python: the segmentation process cannot be started"):
        run.result()
    run.close()
    assert list(temporary.glob(f"{FOLDER_PREFIX}*")) == []


# --- dying ---


def test_what_libraries_print_is_log_and_not_protocol(request_, temporary):
    noisy = """
from MSTKDSegmentLib import pipeline
quiet = pipeline.Segmenter.segment
def segment(*arguments, **options):
    os.write(1, b'{"event": "error", "kind": "InputError", "message": "not from the worker"}\\n')
    print("printed by a library")
    return quiet(*arguments, **options)
pipeline.Segmenter.segment = segment
"""
    with WorkerRun(request_, changed(noisy)) as run:
        assert within(60, lambda: not run.poll())
        assert run.result().labels.any()
        assert "printed by a library" in run.log
        assert any("not from the worker" in line for line in run.log)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"SIGKILL.*memory was full"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"from outside \(SIGSEGV\)\.$"),
        ("import sys; sys.exit('the disk is on fire')", r"ended with code 1\. Its last words: the disk is on fire"),
        ("print('no JSON'); print('[1]'); print('{\"event\": 7}')", r"ended without a result"),
    ],
)
def test_a_child_that_dies_is_told_with_its_last_words(request_, code, words, temporary):
    with pytest.raises(MSTKDError, match=words):
        segment_in_worker(request_, command=[sys.executable, "-c", code])
    assert list(temporary.glob(f"{FOLDER_PREFIX}*")) == []


def test_an_unexpected_error_has_its_traceback_in_the_log(request_, temporary):
    broken = "from MSTKDSegmentLib import pipeline; pipeline.Segmenter.segment = None"
    with WorkerRun(request_, changed(broken)) as run:
        assert within(60, lambda: not run.poll())
        with pytest.raises(MSTKDError, match="unexpected TypeError: 'NoneType' object is not callable"):
            run.result()
        assert any("Traceback" in line for line in run.log)


def test_an_interpreter_that_is_not_there_is_named(request_, temporary):
    with pytest.raises(MSTKDError, match=r"no-python: the segmentation process cannot be started"):
        WorkerRun(request_, ["/nowhere/no-python"])
    assert list(temporary.glob(f"{FOLDER_PREFIX}*")) == []
