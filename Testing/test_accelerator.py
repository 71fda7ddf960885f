"""The optional accelerator: what it refuses, and that its results are torch's."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from MSTKDSegmentLib import accelerator, inference  # noqa: E402
from MSTKDSegmentLib.accelerator import (  # noqa: E402
    ACCELERATORS,
    NONE,
    OPENVINO,
    AcceleratedNetwork,
    choose_accelerated,
)
from MSTKDSegmentLib.bench.phantom import write_phantom  # noqa: E402
from MSTKDSegmentLib.cli import main  # noqa: E402
from MSTKDSegmentLib.devices import DeviceChoice, choose_device  # noqa: E402
from MSTKDSegmentLib.errors import Cancelled, DeviceError  # noqa: E402
from MSTKDSegmentLib.inference import predict  # noqa: E402
from MSTKDSegmentLib.network import PRESETS, build_network  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (64, 96, 64)
ALL = np.ones(4, np.float32)
WITHOUT_T1 = np.array([0, 1, 1, 1], np.float32)
# Largest difference of a probability. bf16 keeps 8 bits of a number.
TOLERANCE = {"f32": 1e-4, "bf16": 0.05}


def _has_openvino():
    return accelerator.find_spec("openvino") is not None


needs_openvino = pytest.mark.skipif(not _has_openvino(), reason="openvino is not installed (extra `accelerate`)")


def small_network(preset="compact"):
    """A preset with the narrowest layers that it may have, and weights that react to what they see."""
    torch.manual_seed(0)
    levels = len(PRESETS[preset].widths)
    taps = tuple(16 for _ in PRESETS[preset].tap_widths)
    changes = {"widths": (8, 16, 16, 16)[-levels:], "embed": 32, "heads": 2, "layers": 4, "mlp": 32, "groups": 4}
    network = build_network(preset, tap_widths=taps, **changes).eval().requires_grad_(False)
    for film in (network.stem_film, network.deep_film):
        torch.nn.init.normal_(film.weight, std=0.2)
    return network


@pytest.fixture(scope="module")
def network():
    return small_network()


@pytest.fixture(scope="module")
def fast(network):
    return AcceleratedNetwork(network)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)


def tolerance_of(title):
    return next(value for precision, value in TOLERANCE.items() if f"{precision})" in title)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_without_an_accelerator_the_device_is_chosen_as_ever():
    assert choose_accelerated(NONE, "cpu") == choose_device("cpu")
    with pytest.raises(DeviceError, match="unknown device 'gpu'"):
        choose_accelerated(NONE, "gpu")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(accelerator, "find_spec", lambda _: None)
    with pytest.raises(DeviceError, match=r"openvino needs the package openvino; install it: python -m pip install"):
        choose_accelerated(OPENVINO)


def test_a_gpu_and_an_unknown_name_are_refused(monkeypatch):
    monkeypatch.setattr(accelerator, "find_spec", lambda _: object())
    with pytest.raises(DeviceError, match="openvino runs on the CPU; give the device cpu or auto, not cuda:0"):
        choose_accelerated(OPENVINO, "cuda:0")
    with pytest.raises(DeviceError, match="unknown accelerator 'onnx'; use none, openvino"):
        choose_accelerated("onnx")
    assert choose_accelerated(OPENVINO, "auto") == DeviceChoice(
        "cpu", "the accelerator openvino, which runs on the CPU, was asked for"
    )


def test_the_command_says_in_one_line_what_is_missing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(accelerator, "find_spec", lambda _: None)
    sample = ROOT / "Resources/sample/sample_flair.nii.gz"
    out = tmp_path / "out.nii.gz"
    assert main(["segment", "--flair", str(sample), "-o", str(out), "--quiet", "--accelerator", OPENVINO]) == 7
    error = capsys.readouterr().err
    assert "needs the package openvino" in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_nothing_heavy_is_imported_for_the_choices():
    code = "import sys, MSTKDSegmentLib.cli; print(sorted({'torch', 'numpy', 'openvino'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "MSTKDSegment", capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
    assert ACCELERATORS[0] == NONE


# --- what it computes ------------------------------------------------------------------------------------------------


@needs_openvino
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_gives_torchs_logits(preset):
    network = small_network(preset)
    fast = AcceleratedNetwork(network)
    generator = torch.Generator().manual_seed(0)
    for shape in ((32, 32, 64), (64, 96, 32)):  # compiled once, for any sides
        x, mask = torch.randn(1, 4, *shape, generator=generator), torch.from_numpy(WITHOUT_T1)[None]
        p, q = (torch.softmax(f(x, mask), dim=1) for f in (network, fast))
        assert q.shape == p.shape
        assert float((p - q).abs().max()) < tolerance_of(fast.title)
    with pytest.raises(ValueError, match="multiples of 32"):
        fast(torch.zeros(1, 4, 32, 32, 40), torch.ones(1, 4))


@needs_openvino
@pytest.mark.parametrize("window", [None, 64])
def test_predictions_agree_and_say_what_ran(network, fast, image, window):
    expected = predict(network, image, WITHOUT_T1, window=window)
    seen = []
    found = predict(fast, image, WITHOUT_T1, window=window, progress=seen.append)
    np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=tolerance_of(fast.title))
    assert (found.device, found.window, found.notices) == ("cpu", window, [])
    assert found.accelerator.startswith("OpenVINO ")
    assert expected.accelerator == ""
    # One report for each pass, and the end.
    assert seen == sorted(seen)
    assert len(seen) == (2 if window is None else 3)
    assert seen[-1] == 1.0
    again = predict(fast, image, WITHOUT_T1, window=window)
    assert np.array_equal(again.probabilities, found.probabilities)


@needs_openvino
def test_a_cancel_ends_a_running_pass_and_the_next_one_is_whole(fast, image):
    expected = predict(fast, image, ALL).probabilities
    asked = []

    def cancel():
        asked.append(True)
        return len(asked) > 3  # before, before the pass, and then while it runs or after it

    with pytest.raises(Cancelled, match="nothing was written"):
        predict(fast, image, ALL, window=32, cancel=cancel)
    assert len(asked) == 4
    assert np.array_equal(predict(fast, image, ALL).probabilities, expected)


@needs_openvino
def test_out_of_memory_falls_to_windows_and_says_so(monkeypatch, network, image):
    monkeypatch.setattr(inference, "available_memory", lambda: None)
    fast = AcceleratedNetwork(network)
    run = fast._run

    def refused(x, availability):
        if x[0, 0].numel() > 64**3:
            raise RuntimeError("Exception from src/inference: std::bad_alloc")
        return run(x, availability)

    monkeypatch.setattr(fast, "_run", refused)
    result = predict(fast, image, ALL)
    assert result.window == 64
    assert result.notices == [
        "the CPU ran out of memory with the whole volume; going on with windows of 64 voxels on the CPU"
    ]


@needs_openvino
def test_another_failure_names_the_way_out(monkeypatch, network, image):
    fast = AcceleratedNetwork(network)

    def broken(*_):
        raise RuntimeError("Exception from src/plugin.cpp:1:\nunsupported instruction")

    monkeypatch.setattr(fast, "_run", broken)
    with pytest.raises(DeviceError, match=r"OpenVINO failed \(unsupported instruction\); run without the accelerator"):
        predict(fast, image, ALL)
    monkeypatch.setattr(AcceleratedNetwork, "_compiled", broken)
    with pytest.raises(DeviceError, match="OpenVINO cannot compile the network"):
        AcceleratedNetwork(network).prepare()


@needs_openvino
def test_a_copy_for_another_process_compiles_anew(fast, image):
    x, mask = torch.from_numpy(image[None, :, :32, :32, :32].copy()), torch.ones(1, 4)
    copy = pickle.loads(pickle.dumps(fast))
    assert copy.to("cpu") is copy
    np.testing.assert_array_equal(copy(x, mask).numpy(), fast(x, mask).numpy())


@needs_openvino
def test_openvino_reports_nothing_to_its_makers():
    code = (
        "from MSTKDSegmentLib.openvino_model import silent_openvino; silent_openvino();"
        "from openvino.tools.ovc import telemetry_utils, convert_impl;"
        "print(telemetry_utils.tm.__name__, convert_impl.tm.__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "MSTKDSegment", capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == {"openvino.tools.ovc.telemetry_stub"}


@needs_openvino
def test_the_command_says_what_ran_and_finds_the_same(capsys, tmp_path):
    flair = str(write_phantom(tmp_path, (36, 40, 38), 2.0)["FLAIR"])
    found = {}
    for name in (NONE, OPENVINO):
        arguments = ["segment", "--flair", flair, "-o", str(tmp_path / f"{name}.nii.gz"), "--json"]
        assert main([*arguments, "--registered", "--skull-stripped", "--upright", "--accelerator", name]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    assert found[NONE]["device"]["accelerator"] is None
    assert found[OPENVINO]["device"]["name"] == "cpu"
    assert found[OPENVINO]["device"]["accelerator"].startswith("OpenVINO ")
    assert found[OPENVINO]["provenance"]["accelerator"] == found[OPENVINO]["device"]["accelerator"]
    for region, volume in found[NONE]["volumes_ml"].items():
        assert found[OPENVINO]["volumes_ml"][region] == pytest.approx(volume, rel=0.05, abs=0.5)
