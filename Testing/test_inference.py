"""Running the network: progress, cancel, windows, out-of-memory fallback, device choice, determinism."""

import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from MSTKDSegmentLib import inference  # noqa: E402
from MSTKDSegmentLib.errors import Cancelled, DeviceError  # noqa: E402
from MSTKDSegmentLib.inference import choose_device, is_out_of_memory, layer_macs, predict, window_slices  # noqa: E402
from MSTKDSegmentLib.network import build_network, count_macs  # noqa: E402

SHAPE = (64, 96, 64)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build_network("compact").eval()


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)


ALL = np.ones(4, np.float32)


class Limited(torch.nn.Module):
    """The real network on a machine whose allocator refuses volumes beyond `limit` voxels."""

    def __init__(self, network, limit, error):
        super().__init__()
        self.inner, self.limit, self.error = network, limit, error
        self.config = network.config

    def forward(self, x, availability):
        if x[0, 0].numel() > self.limit:
            raise self.error
        return self.inner(x, availability)


def test_probabilities_are_those_of_the_network(network, image):
    result = predict(network, image, ALL)
    with torch.no_grad():
        expected = torch.softmax(network(torch.from_numpy(image)[None], torch.ones(1, 4)), 1)[0].numpy()
    assert result.probabilities.shape == (4, *SHAPE)
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-4)
    np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-5)
    assert (result.device, result.window, result.notices) == ("cpu", None, [])


def test_nothing_is_found_outside_the_brain(network, image):
    outside = np.zeros(SHAPE, bool)
    outside[:20] = True
    p = predict(network, np.where(outside, 0, image), ALL).probabilities
    assert (p[0][outside] == 1).all()
    assert not p[1:, outside].any()
    assert (p[0][~outside] < 1).any()


def test_the_same_input_gives_the_same_bits(network, image):
    assert np.array_equal(predict(network, image, ALL).probabilities, predict(network, image, ALL).probabilities)


@pytest.mark.parametrize("window", [None, 64])
def test_progress_counts_work_from_above_zero_to_one_and_never_falls(network, image, window):
    seen = []
    predict(network, image, ALL, window=window, progress=seen.append)
    assert seen == sorted(seen)
    assert 0 < seen[0] < 0.2
    assert seen[-1] == 1.0
    # No step is larger than the largest layer's share: the bar moves with the work, not with stages.
    work = layer_macs(network, SHAPE)
    largest = max(work.values()) / sum(work.values())
    assert max(np.diff(seen)) <= largest + 1e-3
    assert len(seen) > 50


def test_layer_macs_are_nearly_all_of_the_networks_arithmetic(network):
    assert sum(layer_macs(network, SHAPE).values()) == pytest.approx(count_macs(network, SHAPE), rel=0.02)


def test_hooks_are_gone_after_success_and_after_cancel(network, image):
    predict(network, image, ALL, progress=lambda _: None)
    with pytest.raises(Cancelled):
        predict(network, image, ALL, cancel=lambda: True)
    assert not [m for m in network.modules() if m._forward_hooks or m._forward_pre_hooks]


def test_cancel_takes_effect_within_a_second_in_the_middle_of_the_network(network):
    large = np.zeros((4, 128, 160, 128), np.float32)
    asked = []

    def progress(fraction):
        if fraction > 0.3 and not asked:
            asked.append(time.perf_counter())

    with pytest.raises(Cancelled, match="nothing was written"):
        predict(network, large, ALL, progress=progress, cancel=lambda: bool(asked))
    assert time.perf_counter() - asked[0] < 1.0


def test_windows_cover_everything_and_overlap_by_half():
    count = np.zeros((160, 100, 64), int)
    starts = []
    for place in window_slices(count.shape, 64):
        count[place] += 1
        starts.append(tuple(s.start for s in place))
        assert all(s.stop - s.start == 64 for s in place)
    assert count.min() >= 1
    z = sorted({s[0] for s in starts})
    assert z[0] == 0
    assert z[-1] == 160 - 64
    assert max(np.diff(z)) <= 32


def test_windows_agree_with_the_whole_volume_where_the_network_is_local(image):
    """A network that looks at single voxels gives the same result in windows: weights and seams cancel exactly."""

    class Pointwise(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = torch.nn.Conv3d(4, 4, 1)
            self.config = build_network("compact").config

        def forward(self, x, availability):
            return self.layer(x)

    whole = predict(Pointwise(), image, ALL).probabilities
    windows = predict(Pointwise(), image, ALL, window=64).probabilities
    np.testing.assert_allclose(windows, whole, atol=1e-5)


def test_windows_larger_than_the_volume_are_padded(network, image):
    result = predict(network, image, ALL, window=128)
    assert result.probabilities.shape == (4, *SHAPE)
    np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-4)


OUT_OF_MEMORY = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda e: type(e).__name__)
def test_out_of_memory_falls_to_windows_and_says_so(network, image, error):
    seen = []
    result = predict(Limited(network, 64**3, error), image, ALL, progress=seen.append)
    assert result.window == 64
    assert len(result.notices) == 1
    assert "cpu ran out of memory with the whole volume" in result.notices[0]
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_out_of_memory_everywhere_is_one_clear_error(network, image):
    with pytest.raises(DeviceError, match=r"out of memory on cpu even with windows of 64 voxels"):
        predict(Limited(network, 0, MemoryError()), image, ALL)


def test_a_gpu_that_is_full_ends_on_the_cpu_and_says_so(network, image, monkeypatch):
    real = inference._run

    def run(network, image, availability, device, size, meter):
        if device.type != "cpu":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(network, image, availability, device, size, meter)

    monkeypatch.setattr(inference, "_run", run)
    result = predict(network, image, ALL, device="cuda:0")
    assert result.device == "cpu"
    assert result.window is None
    assert any("going on on the CPU" in notice for notice in result.notices)


def test_other_errors_are_not_taken_for_memory(network, image):
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        predict(Limited(network, 0, RuntimeError("shape mismatch")), image, ALL)


def test_auto_says_which_device_and_why():
    choice = choose_device("auto")
    assert choice.reason
    if not torch.cuda.is_available():
        assert choice.name in ("cpu", "mps")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:1", "", "tpu"])
def test_unknown_devices_are_refused(name):
    with pytest.raises(DeviceError, match="unknown device"):
        choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_never_replaced_in_silence():
    with pytest.raises(DeviceError, match="was asked for, but"):
        choose_device("cuda")
