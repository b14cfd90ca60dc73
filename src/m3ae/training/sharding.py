"""Weights, gradients and moments in shares, for a model that does not fit (PyTorch's FSDP2)."""

from typing import Any

from torch import nn
from torch.utils._pytree import tree_map, tree_map_only

from m3ae.training.distributed import Processes


def shard(model: nn.Module, processes: Processes) -> nn.Module:
    """Leave each process its share of every parameter; the whole of a block while it is computed.

    In place, before an optimiser is built. ValueError for one process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if processes.count == 1:
        raise ValueError("train.shard: true needs several processes; start them with torchrun")
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    for block in [block for blocks in lists for block in blocks]:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def gathered(value: Any) -> Any:
    """With every tensor in shares whole; every process must call it."""
    from torch.distributed.tensor import DTensor

    return tree_map_only(DTensor, DTensor.full_tensor, value)


def spread(value: Any, like: Any) -> Any:
    """Whole tensors, the same in all processes, in shares where those of `like` are."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    def one(tensor: Any, other: Any) -> Any:
        if not isinstance(other, DTensor):
            return tensor
        return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)

    return tree_map(one, value, like)


def copy_to(shares: nn.Module, whole: nn.Module) -> None:
    """Fill a whole model from its twin in shares; every process must call it."""
    ours = dict(shares.named_parameters())
    for name, parameter in whole.named_parameters():
        parameter.data.copy_(gathered(ours[name].data))


def copy_from(shares: nn.Module, whole: nn.Module) -> None:
    """Fill a model in shares from its whole twin, the same in all processes."""
    theirs = dict(whole.named_parameters())
    for name, parameter in shares.named_parameters():
        parameter.data.copy_(spread(theirs[name].data, parameter.data))
