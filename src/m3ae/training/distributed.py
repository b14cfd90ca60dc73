"""Processes: one alone, or several under torchrun (NCCL on GPUs, Gloo on CPUs)."""

import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from m3ae.training.stopping import Stop, StoppedError


@dataclass(frozen=True)
class Processes:
    """This process among the others: `rank` of `count`, on `device`.

    `local_rank` of `local_count`: among those of its host.
    """

    rank: int
    local_rank: int
    count: int
    device: torch.device
    local_count: int = 1
    stop: Stop = field(default_factory=Stop, compare=False)

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

    def any(self, holds: bool) -> bool:
        """Whether it holds in any process, agreed on the host: no GPU is waited for."""
        if self.count == 1:
            return holds
        found = torch.tensor(int(holds))
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)

    def go_on(self) -> None:
        """Something is done; StoppedError in all where a signal asked any of them to end."""
        self.stop.beat()
        if self.any(self.stop.asked):
            raise StoppedError

    def rounds(self, batches: Any) -> Iterator[Any]:
        """This process's batches, of which others may have more, with `go_on` before each."""
        most, own = max(self.gather(len(batches))), iter(batches)
        for number in range(most):
            self.go_on()
            if number < len(batches):
                yield next(own)

    def from_first(self, value: Any) -> Any:
        """The first process's value; every process must call it."""
        return self.gather(value)[0]

    def share(self, value: Any) -> Any:
        """The first process's value, tensors in it one by one and on `device`; all must call it.

        For what is too large for `from_first`, which copies a value through every process.
        """
        if self.count == 1:
            return value
        own = iter([leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)])
        outline = self.from_first(tree_map_only(Tensor, lambda x: x.to("meta"), value))

        def send(place: Tensor) -> Tensor:
            empty = torch.empty_like(place, device=self.device)
            tensor = next(own).to(self.device).contiguous() if self.first else empty
            dist.broadcast(tensor, 0)
            return tensor

        return tree_map_only(Tensor, send, outline)

    def on_host(self, own: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
        """Rows that the processes of each host computed in turn, together; all must call it.

        own: tensors on the CPU of rows local_rank, local_rank + local_count, ... of `rows`; empty
        where there are none. They lie once a host, in a file under the system's temporary folder
        that all map and nobody sees.
        """
        if self.local_count == 1:
            return own
        leads = self.local_rank == 0
        outline = {key: (tensor.shape[1:], tensor.dtype) for key, tensor in own.items()}
        folder = tempfile.mkdtemp(prefix="m3ae-") if leads else None
        everyone = self.gather((folder, outline))
        folder = Path(everyone[self.rank - self.local_rank][0])
        outline = next(found for _, found in everyone if found)
        whole = {}
        for number, (key, (shape, dtype)) in enumerate(outline.items()):
            file, size = folder / str(number), rows * math.prod(shape)
            if leads:
                with open(file, "wb") as opened:  # a full disk is an error here, not a crash later
                    os.posix_fallocate(opened.fileno(), 0, size * dtype.itemsize)
            self.wait()
            flat = torch.from_file(str(file), shared=True, size=size, dtype=dtype)
            whole[key] = flat.view(rows, *shape)
            if own:
                whole[key][self.local_rank :: self.local_count] = own[key]
        self.wait()
        if leads:
            shutil.rmtree(folder)
        return whole

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            dist.barrier()


def world_size() -> int:
    """Processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def choose_device(name: str, local_rank: int) -> torch.device:
    """`auto` (a GPU where there is one), `cpu` or `cuda`, for this process of its host.

    Raises ValueError where there is no GPU, or none for this process.
    """
    gpus = torch.cuda.device_count() if name != "cpu" else 0
    if name == "cpu" or (name == "auto" and not gpus):
        return torch.device("cpu")
    if not gpus:
        raise ValueError("train.device: cuda, but PyTorch sees no GPU here; try cpu")
    if local_rank >= gpus:
        more = f"--nproc_per_node {gpus} or fewer, or train.device=cpu"
        raise ValueError(f"process {local_rank} of this host has no GPU, there are {gpus}; {more}")
    return torch.device("cuda", local_rank)


@contextmanager
def join_processes(
    threads: int | None, device: str = "auto", timeout_minutes: float = 10.0
) -> Iterator[Processes]:
    """Join torchrun's process group if there is one, leave it after a clean end.

    threads: CPU threads of this process; None = PyTorch's choice. device: see `choose_device`.
    After an error the group is left as it is: its end would wait for processes that may wait for
    this one. The caller must end this process.
    """
    if threads:
        torch.set_num_threads(threads)
    count, local_rank = world_size(), int(os.environ.get("LOCAL_RANK", "0"))
    own = choose_device(device, local_rank)
    gpu = own.type == "cuda"
    if gpu:
        torch.cuda.set_device(own)
    if count > 1:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpu else "gloo",
            # A stall shows its stacks first: see `Stop.watched`.
            timeout=timedelta(minutes=timeout_minutes, seconds=30),
            device_id=own if gpu else None,
        )
    local_count = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    stop = Stop(count > 1)
    with stop.on_signals():
        yield Processes(int(os.environ.get("RANK", "0")), local_rank, count, own, local_count, stop)
    if count > 1:
        dist.destroy_process_group()
