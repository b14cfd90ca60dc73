"""Processes: one alone, or several under torchrun (NCCL on GPUs, Gloo on CPUs)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process among the others: `rank` of `count`, on `device`."""

    rank: int
    local_rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over all processes, in place; every process must call it."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, by rank; every process must call it."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def from_first(self, value: Any) -> Any:
        """The first process's value; every process must call it."""
        return self.gather(value)[0]

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def join_processes(threads: int | None) -> Iterator[Processes]:
    """Join torchrun's process group if there is one, leave it at the end.

    threads: CPU threads of this process; None = PyTorch's choice.
    """
    if threads:
        torch.set_num_threads(threads)
    count = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    if count > 1:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Processes(int(os.environ.get("RANK", "0")), local_rank, count, device)
    finally:
        if count > 1:
            dist.destroy_process_group()
