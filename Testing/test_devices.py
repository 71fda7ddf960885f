"""Which device is chosen and in what words, on machines that are made up."""

import pytest

torch = pytest.importorskip("torch")

from MSTKDSegmentLib import devices  # noqa: E402
from MSTKDSegmentLib.devices import DeviceChoice, choose_device  # noqa: E402
from MSTKDSegmentLib.errors import DeviceError  # noqa: E402

NO_KERNEL = "CUDA error: no kernel image is available for execution on the device"


@pytest.fixture
def machine(monkeypatch):
    """machine(free, failures, mps): GPUs "GPU 0".. with free bytes (None: does not answer), reasons why they fail."""
    tried = []

    def make(free=(), failures=None, mps=False):
        def memory(number):
            if free[number] is None:
                raise RuntimeError("CUDA error: out of memory")
            return free[number], 10**10

        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(free))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: f"GPU {number}")
        monkeypatch.setattr(torch.cuda, "mem_get_info", memory)
        monkeypatch.setattr(devices, "_has_mps", lambda: mps)
        monkeypatch.setattr(devices, "_failure", lambda name: tried.append(name) or (failures or {}).get(name))
        return tried

    return make


def test_the_gpu_with_the_most_free_memory_is_chosen_and_named(machine):
    tried = machine(free=(2 * 10**9, 5 * 10**9))
    assert choose_device("auto") == DeviceChoice("cuda:1", "GPU 1 has the most free GPU memory")
    assert tried == ["cuda:1"]


def test_a_gpu_that_cannot_run_the_network_is_passed_over_in_words(machine):
    tried = machine(free=(2 * 10**9, 5 * 10**9), failures={"cuda:1": NO_KERNEL})
    choice = choose_device("auto")
    assert choice.name == "cuda:0"
    assert choice.reason == f"GPU 0 is used; GPU 1 (cuda:1) cannot run the network: {NO_KERNEL}"
    assert tried == ["cuda:1", "cuda:0"]


def test_no_gpu_that_works_means_the_cpu_with_a_notice(machine):
    machine(free=(2 * 10**9, None), failures={"cuda:0": NO_KERNEL, "cuda:1": "CUDA error: out of memory"})
    choice = choose_device("auto")
    assert choice.name == "cpu"
    assert choice.gpu_expected
    assert NO_KERNEL in choice.reason
    assert "GPU 1 (cuda:1) cannot run the network: CUDA error: out of memory" in choice.reason


def test_a_driver_without_a_torch_for_it_means_the_cpu_with_a_notice(machine, monkeypatch):
    machine()
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(devices, "_has_nvidia_driver", lambda: True)
    said = "no GPU is used: this torch was built without GPU support, though an NVIDIA driver is installed here"
    assert choose_device("auto") == DeviceChoice("cpu", said, gpu_expected=True)
    monkeypatch.setattr(devices, "_has_nvidia_driver", lambda: False)
    assert not choose_device("auto").gpu_expected


def test_a_busy_gpu_that_does_not_answer_is_the_last_resort(machine):
    machine(free=(None, 10**9))
    assert choose_device("auto").name == "cuda:1"


def test_an_apple_gpu_without_a_layer(machine):
    missing = "ConvTranspose3D is not supported on MPS"
    machine(mps=True, failures={"mps": missing})
    choice = choose_device("auto")
    assert (choice.name, choice.gpu_expected) == ("cpu", True)
    assert missing in choice.reason
    with pytest.raises(DeviceError, match=f"the Apple GPU was asked for, but it cannot run the network .{missing}"):
        choose_device("mps")
    machine(mps=True)
    assert choose_device("auto") == DeviceChoice("mps", "an Apple GPU is there")
    assert choose_device("mps").name == "mps"


def test_a_named_gpu_is_taken_or_refused_with_the_reason(machine):
    machine(free=(10**9, 10**9), failures={"cuda:1": NO_KERNEL})
    assert choose_device(" CUDA ") == DeviceChoice("cuda:0", "GPU 0 was asked for")
    with pytest.raises(
        DeviceError, match=r"GPU 1 was asked for, but it cannot run the network \(CUDA error: no kernel"
    ):
        choose_device("cuda:1")
    with pytest.raises(DeviceError, match=r"cuda:2 was asked for, but there are only 2 GPU"):
        choose_device("cuda:2")


def test_the_cpu_costs_no_trial_and_a_missing_gpu_is_never_replaced_in_silence(machine):
    tried = machine()
    assert choose_device("cpu") == DeviceChoice("cpu", "the CPU was asked for")
    assert choose_device("auto").name == "cpu"
    assert choose_device("auto").reason.startswith("no GPU is used: ")
    assert tried == []
    with pytest.raises(DeviceError, match="cuda was asked for, but"):
        choose_device("cuda")
    with pytest.raises(DeviceError, match="no Metal GPU"):
        choose_device("mps")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:1", "", "tpu"])
def test_unknown_devices_are_refused(name):
    with pytest.raises(DeviceError, match="unknown device"):
        choose_device(name)


def test_the_trial_itself():
    assert devices._failure("cpu") is None
    # A device without data fails where a result is read, as a GPU without kernels does.
    assert "meta" in devices._failure("meta")


@pytest.mark.parametrize("layer", ["Conv3d", "ConvTranspose3d"])
def test_the_trial_meets_a_layer_that_is_missing(monkeypatch, layer):
    def forward(*_):
        raise NotImplementedError("not supported here\nand a long hint")

    monkeypatch.setattr(getattr(torch.nn, layer), "forward", forward)
    assert devices._failure("cpu") == "not supported here"
