"""Running the network: progress, cancel, windows, out-of-memory fallback, determinism."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from MSTKDSegmentLib import inference  # noqa: E402
from MSTKDSegmentLib.errors import Cancelled, DeviceError  # noqa: E402
from MSTKDSegmentLib.inference import layer_macs, predict, window_slices  # noqa: E402
from MSTKDSegmentLib.network import PRESETS, build_network, count_macs  # noqa: E402

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


class FullAtTheEnd(torch.nn.Module):
    """Twenty equal layers; beyond `limit` voxels the allocator refuses after the last but one."""

    def __init__(self, limit):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList([torch.nn.Conv3d(4, 4, 1) for _ in range(20)])
        self.config, self.limit = PRESETS["compact"], limit

    def forward(self, x, availability):
        for number, layer in enumerate(self.layers):
            if number == 19 and not x.is_meta and x[0, 0].numel() > self.limit:
                raise MemoryError
            x = layer(x)
        return x


@pytest.fixture
def small():
    """A network of little work with room for everything."""
    return FullAtTheEnd(10**9)


def test_probabilities_are_those_of_the_network(network, image):
    result = predict(network, image, ALL)
    with torch.no_grad():
        logits = network(torch.from_numpy(image)[None], torch.ones(1, 4))
        # The head predicts eight voxels at once; their checkerboard is averaged out over 3 x 3 x 3 voxels.
        p = torch.softmax(logits, 1)
        expected = torch.nn.functional.avg_pool3d(p, 3, 1, 1, count_include_pad=False)[0].numpy()
    assert result.probabilities.shape == (4, *SHAPE)
    np.testing.assert_allclose(result.probabilities, expected, atol=1e-4)
    np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-5)
    assert (result.device, result.window, result.notices) == ("cpu", None, [])


def test_a_checkerboard_is_averaged_out_and_flat_regions_stay():
    board = np.indices((8, 8, 8)).sum(0) % 2
    smooth = inference._without_checkerboard(torch.from_numpy(np.stack([board, 1 - board]).astype(np.float32))).numpy()
    assert np.ptp(smooth[0][1:-1, 1:-1, 1:-1]) < 0.04
    np.testing.assert_allclose(smooth.sum(0), 1, atol=1e-6)
    flat = np.full((2, 5, 5, 5), 0.5, np.float32)
    np.testing.assert_allclose(inference._without_checkerboard(torch.from_numpy(flat.copy())), flat, atol=1e-6)


def test_the_mean_along_the_axes_is_that_of_pooling():
    random = torch.rand(4, 6, 3, 9, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.avg_pool3d(random, 3, 1, 1, count_include_pad=False)
    torch.testing.assert_close(inference._without_checkerboard(random.clone()), expected)


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


def test_cancel_takes_effect_before_the_next_layer(network, image):
    ended = []
    hooks = [
        module.register_forward_hook(lambda *_: ended.append(bool(asked)))
        for module in network.modules()
        if isinstance(module, (torch.nn.Conv3d, torch.nn.ConvTranspose3d, torch.nn.Linear))
    ]
    asked = []
    try:
        with pytest.raises(Cancelled, match="nothing was written"):
            predict(network, image, ALL, progress=lambda f: asked.append(f) if f > 0.3 else None, cancel=lambda: asked)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(asked) == 1
    assert ended.count(False) > 10
    assert ended.count(True) <= 1


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
    result = predict(network, image[:, :32], ALL, window=64)
    assert result.probabilities.shape == (4, 32, *SHAPE[1:])
    np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-4)


@pytest.fixture
def plenty(monkeypatch):
    """A machine whose free memory never decides."""
    monkeypatch.setattr(inference, "available_memory", lambda: None)


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory"), MemoryError()], ids=repr)
def test_out_of_memory_falls_to_windows_and_says_so(small, image, error, plenty):
    seen = []
    result = predict(Limited(small, 64**3, error), image, ALL, progress=seen.append)
    assert result.window == 64
    assert result.notices == [
        "the CPU ran out of memory with the whole volume; going on with windows of 64 voxels on the CPU"
    ]
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_progress_is_still_called_after_a_fallback_so_that_a_window_can_cancel(image, plenty):
    seen = []
    predict(FullAtTheEnd(64**3), image, ALL, progress=seen.append)
    # 19 layers of the first try, then 20 layers in each of 2 windows, and the end.
    assert len(seen) == 19 + 2 * 20 + 1
    assert seen == sorted(seen)
    calls = []
    with pytest.raises(Cancelled):
        # The request comes while the bar stands still: five layers into the second try.
        predict(FullAtTheEnd(64**3), image, ALL, progress=calls.append, cancel=lambda: len(calls) >= 19 + 5)
    assert len(calls) == 19 + 5
    assert calls[-1] == calls[18]


def test_out_of_memory_everywhere_is_one_clear_error(small, image, plenty):
    with pytest.raises(DeviceError, match=r"out of memory on the CPU even with windows of 64 voxels; close"):
        predict(Limited(small, 0, MemoryError()), image, ALL)


def test_a_volume_too_small_for_windows_is_called_by_its_name(small, plenty):
    cube = np.ones((4, 64, 64, 64), np.float32)
    with pytest.raises(DeviceError, match=r"out of memory on the CPU even with the whole volume; close"):
        predict(Limited(small, 0, MemoryError()), cube, ALL)


class FullGpu(Limited):
    """No GPU is needed to see one fail: the network does not even fit on it."""

    def to(self, device, **_):
        if device.type == "cuda":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return self


def test_a_gpu_that_is_full_ends_on_the_cpu_and_says_so(small, image, plenty):
    result = predict(FullGpu(small, 64**3, MemoryError()), image, ALL, device="cuda:0")
    assert (result.device, result.window) == ("cpu", 64)
    assert result.notices == [
        "the GPU (cuda:0) ran out of memory with the whole volume; going on with windows of 64 voxels on the GPU "
        "(cuda:0)",
        "the GPU (cuda:0) ran out of memory with windows of 64 voxels; going on with the whole volume on the CPU",
        "the CPU ran out of memory with the whole volume; going on with windows of 64 voxels on the CPU",
    ]
    with pytest.raises(DeviceError, match=r"on the GPU \(cuda:1\) and the CPU even with windows of 64"):
        predict(FullGpu(small, 0, MemoryError()), image, ALL, device="cuda:1")


@pytest.mark.parametrize(
    ("side", "free_mb", "window", "notices"),
    [
        (160, 1000, None, 0),
        (160, 700, 128, 1),  # the whole volume takes 717 MB; windows of 128 take 367 + 164 MB
        (160, 500, 96, 1),  # 155 + 164 MB
        (160, 1, 64, 1),  # the smallest is tried in any case
    ],
)
def test_on_the_cpu_the_first_step_that_fits_into_free_memory_is_taken(monkeypatch, side, free_mb, window, notices):
    monkeypatch.setattr(inference, "available_memory", lambda: free_mb * 10**6)
    monkeypatch.setattr(inference, "_run", lambda network, image, *_: np.zeros_like(image))
    result = predict(FullAtTheEnd(0), np.zeros((4, side, side, side), np.float32), ALL)
    assert result.window == window
    assert len(result.notices) == notices
    if notices:
        assert result.notices[0] == (
            f"the whole volume would take about 0.7 GB of memory and {free_mb / 1000:.1f} GB are free; going on with "
            f"windows of {window} voxels on the CPU"
        )


def test_memory_that_the_process_keeps_is_given_back_before_a_step_down(monkeypatch):
    free = [10**6]
    monkeypatch.setattr(inference, "available_memory", lambda: free[-1])
    monkeypatch.setattr(inference, "give_back_freed_memory", lambda: free.append(10**9))
    monkeypatch.setattr(inference, "_run", lambda network, image, *_: np.zeros_like(image))
    result = predict(FullAtTheEnd(0), np.zeros((4, 160, 160, 160), np.float32), ALL)
    assert (result.window, result.notices, len(free)) == (None, [], 2)


def test_other_errors_are_not_taken_for_memory(network, image):
    with pytest.raises(RuntimeError, match="shape mismatch"):
        predict(Limited(network, 0, RuntimeError("shape mismatch")), image, ALL)
