"""Many GPUs or machines: a thin layer over torch.distributed as `torchrun` starts it; one process needs none of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import distributed, nn


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`; `device` is its own."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """The one process that writes checkpoints, logs and tables."""
        return self.rank == 0

    def product_device(self, asked: str) -> str:
        """What the product's choice of a device is asked for: `asked`, but under torchrun this process's own."""
        return asked if self.size == 1 else str(self.device)

    def wrap(self, network: nn.Module) -> nn.Module:
        """`network` with averaged gradients (DistributedDataParallel) where there are several processes."""
        if self.size == 1:
            return network
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, device_ids=ids)

    def any(self, flag: bool) -> bool:
        """True on every process when it is true on one of them."""
        if self.size == 1:
            return flag
        value = torch.tensor(int(flag), device=self.device)
        distributed.all_reduce(value, distributed.ReduceOp.MAX)
        return bool(value)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over the processes of a tensor of figures."""
        if self.size == 1:
            return values
        # NCCL knows no tensors of the CPU.
        summed = values.to(self.device, copy=True)
        distributed.all_reduce(summed, distributed.ReduceOp.SUM)
        return summed / self.size

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            distributed.barrier()


@contextlib.contextmanager
def joined_world(device: str = "auto") -> Iterator[World]:
    """This process's place among those that torchrun started; alone without torchrun.

    device: auto (this process's GPU if there is one), cpu, cuda, cuda:n or mps. Raises ValueError for a GPU that is
    not there, so that nobody trains on the CPU for days without knowing.
    """
    size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    place = _device(device, local)
    if size == 1:
        yield World(device=place)
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield World(distributed.get_rank(), size, place)
    finally:
        distributed.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        index = local_rank if device.index is None else device.index
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            raise ValueError(f"device {name}: this computer shows torch {torch.cuda.device_count()} CUDA GPUs")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device mps: torch finds no Apple GPU here")
    return device
