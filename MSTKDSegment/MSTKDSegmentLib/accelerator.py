"""The optional accelerator of the CPU: the same network through OpenVINO, in bf16 where the processor has that.

Never needed and never taken unasked. OpenVINO compiles the network once in each process, which takes about as long as
one case gains, so it is for many runs: a batch, an evaluation, a what-if. Compiled for any volume: patients differ in
size. Only the standard library is imported before an accelerator is asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Callable

from .devices import DeviceChoice
from .errors import DeviceError

if TYPE_CHECKING:
    import torch

    from .network import MSTKDNet

NONE, OPENVINO = "none", "openvino"
ACCELERATORS = (NONE, OPENVINO)
INSTALL = 'python -m pip install "mstkdsegment[accelerate]" (from a checkout: -e ".[accelerate]")'
# How often a running pass is asked whether it is to stop, ms.
POLL_MS = 20


def choose_accelerated(accelerator: str, device: str = "auto") -> DeviceChoice:
    """The device for `accelerator`, one of ACCELERATORS: `choose_device`'s without one, else the CPU.

    Raises DeviceError where OpenVINO is missing or a GPU was asked for as well.
    """
    from .devices import choose_device

    if accelerator == NONE:
        return choose_device(device)
    if accelerator not in ACCELERATORS:
        raise DeviceError(f"unknown accelerator {accelerator!r}; use {', '.join(ACCELERATORS)}")
    if device.strip().lower() not in ("auto", "cpu"):
        raise DeviceError(f"the accelerator {accelerator} runs on the CPU; give the device cpu or auto, not {device}")
    if find_spec("openvino") is None:
        raise DeviceError(f"the accelerator {accelerator} needs the package openvino; install it: {INSTALL}")
    return DeviceChoice("cpu", f"the accelerator {accelerator}, which runs on the CPU, was asked for")


class AcceleratedNetwork:
    """Stands in for an `MSTKDNet` in evaluation: called with the same CPU tensors, gives the same logits, nearly.

    The logits lie in memory that the next call overwrites. Copies for other processes compile anew. Not for several
    threads at a time.
    """

    def __init__(self, network: MSTKDNet) -> None:
        self.config, self._network = network.config, network
        self._request: Any = None
        self._title = ""
        self._check: Callable[[], None] = lambda: None
        self._done: Callable[[], None] = lambda: None

    def __getstate__(self) -> dict[str, Any]:
        nothing = AcceleratedNetwork(self._network)
        return {**nothing.__dict__, "_check": None, "_done": None}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._check = self._done = lambda: None

    @property
    def title(self) -> str:
        """What really runs, for the user: "OpenVINO 2026.4.1 (bf16)"."""
        if not self._title:
            self.prepare()
        return self._title

    def to(self, *_: object, **__: object) -> AcceleratedNetwork:
        """Does nothing: it stays on the CPU. `inference` and measurements call it on every network."""
        return self

    def prepare(self) -> None:
        """Convert and compile, once; a few seconds, not to be interrupted. Raises DeviceError where that fails."""
        if self._request is not None:
            return
        from .memory import is_out_of_memory

        try:
            self._request, self._title = self._compiled()
        except (RuntimeError, ImportError) as error:
            if is_out_of_memory(error):
                raise
            raise self._failed("cannot compile the network", error) from error

    def _compiled(self) -> tuple[Any, str]:
        import torch

        from .openvino_model import convert, silent_openvino

        openvino = silent_openvino()
        core = openvino.Core()
        precision = "bf16" if "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            # Several processes at a time would be tied to the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        compiled = core.compile_model(convert(self._network), "CPU", settings)
        version = openvino.__version__.partition("-")[0]
        return compiled.create_infer_request(), f"OpenVINO {version} ({precision})"

    @contextlib.contextmanager
    def watched(self, check: Callable[[], None], done: Callable[[], None]) -> Iterator[None]:
        """While open, `check` is asked every POLL_MS during a pass, which it may end by raising; `done` ends each."""
        before = self._check, self._done
        self._check, self._done = check, done
        try:
            self._check()
            self.prepare()
            self._check()
            yield
        finally:
            self._check, self._done = before

    def __call__(self, x: torch.Tensor, availability: torch.Tensor) -> torch.Tensor:
        """x (1, 4, D, H, W), availability (1, 4) float32 -> logits (1, classes, D, H, W) float32.

        Raises ValueError for sides that the network does not take, DeviceError where OpenVINO fails, and what torch
        raises for a lack of memory, after which what it held is given back.
        """
        import torch

        from .memory import is_out_of_memory
        from .network import SIDE_MULTIPLE

        if x.ndim != 5 or x.shape[0] != 1 or any(side % SIDE_MULTIPLE for side in x.shape[2:]):
            raise ValueError(f"expected (1, 4, D, H, W) with sides that are multiples of 32, got {tuple(x.shape)}")
        self.prepare()
        try:
            logits = torch.from_numpy(self._run(x, availability))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise self._failed("failed", error) from error
            self._request = None
            raise
        self._done()
        return logits

    def _run(self, x: torch.Tensor, availability: torch.Tensor) -> Any:
        import openvino

        request = self._request
        # Held until the pass has ended: OpenVINO reads their memory and does not keep it alive.
        values = [tensor.detach().float().contiguous().numpy() for tensor in (x, availability)]
        for index, array in enumerate(values):
            request.set_input_tensor(index, openvino.Tensor(array, shared_memory=True))
        request.start_async()
        try:
            while not request.wait_for(POLL_MS):
                self._check()
        except BaseException:
            request.cancel()
            with contextlib.suppress(RuntimeError):  # its way to say that it was cancelled
                request.wait()
            self._request = None  # seen in 2026.4: what was cut short leaves shapes behind that fail the next pass
            raise
        request.wait()  # raises what went wrong
        return request.get_output_tensor(0).data

    def _failed(self, what: str, error: BaseException) -> DeviceError:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return DeviceError(f"OpenVINO {what} ({lines[-1].strip()}); run without the accelerator")
