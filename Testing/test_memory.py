"""Memory: errors that mean it ran out, and what the machine and its control groups leave."""

import pytest
from MSTKDSegmentLib.memory import available_memory, is_out_of_memory, memory_mib, peak_memory_mib, total_memory_mib


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 20.00 GiB",
        "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
        "data. DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes",
        "could not create a primitive",
        "could not create a memory object",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_errors_that_mean_memory(text):
    pytest.importorskip("torch")
    assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(ValueError(text))


def test_errors_of_their_own_kind():
    torch = pytest.importorskip("torch")
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.cuda.OutOfMemoryError("CUDA"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor for a convolution"))


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MACHINE = {"proc/meminfo": "MemTotal:  9000 kB\nMemAvailable:   5000 kB\nHugePages_Total:   0\n"}


def test_not_linux(tmp_path):
    assert available_memory(tmp_path) is None


def test_what_this_process_takes(tmp_path):
    assert total_memory_mib(tmp_path) is None
    write(tmp_path, {**MACHINE, "proc/self/status": "VmHWM:\t 4096 kB\nVmRSS:\t 1024 kB\n"})
    assert (peak_memory_mib(tmp_path), memory_mib(tmp_path), total_memory_mib(tmp_path)) == (4.0, 1.0, 8.8)


def test_the_machine_alone(tmp_path):
    write(tmp_path, MACHINE)
    assert available_memory(tmp_path) == 5000 * 1024


def test_control_groups_version_2_of_any_level(tmp_path):
    group = "sys/fs/cgroup/user.slice/job"
    write(tmp_path, {
        **MACHINE, "proc/self/cgroup": "0::/user.slice/job\n",
        f"{group}/memory.max": "max\n", f"{group}/memory.current": "10\n",
        "sys/fs/cgroup/user.slice/memory.max": "3000000\n", "sys/fs/cgroup/user.slice/memory.current": "1000000\n",
        "sys/fs/cgroup/user.slice/memory.stat": "anon 700000\ninactive_file 300000\n",
    })  # fmt: skip
    assert available_memory(tmp_path) == 3000000 - 1000000 + 300000


def test_control_groups_version_1_in_a_container(tmp_path):
    top = "sys/fs/cgroup/memory"
    write(tmp_path, {
        **MACHINE, "proc/self/cgroup": "5:cpu,cpuacct:/a\n4:memory:/docker/abc\n0::/\n",
        f"{top}/memory.limit_in_bytes": "2000000\n", f"{top}/memory.usage_in_bytes": "1500000\n",
        f"{top}/memory.stat": "inactive_file 9\ntotal_inactive_file 100000\n",
    })  # fmt: skip
    assert available_memory(tmp_path) == 600000


def test_no_limit_in_version_1_is_a_number_beyond_all_memory(tmp_path):
    top = "sys/fs/cgroup/memory"
    write(tmp_path, {
        **MACHINE, "proc/self/cgroup": "4:memory:/\n",
        f"{top}/memory.limit_in_bytes": "9223372036854771712\n", f"{top}/memory.usage_in_bytes": "1500000\n",
    })  # fmt: skip
    assert available_memory(tmp_path) == 5000 * 1024


def test_more_used_than_allowed_leaves_nothing(tmp_path):
    write(tmp_path, {
        **MACHINE, "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": "100\n", "sys/fs/cgroup/memory.current": "150\n",
    })  # fmt: skip
    assert available_memory(tmp_path) == 0
