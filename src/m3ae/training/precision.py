"""Precision: what a product is computed in, and the 16-bit copies of the weights."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto`: bf16 on GPUs that have it, else fp16 there, fp32 on CPUs."""
    if precision != "auto":
        return precision
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def set_arithmetic(tf32: bool, deterministic: bool) -> None:
    """How this process computes, to be called before it touches a GPU.

    tf32: products and convolutions of float32 on GPUs read 10 bits of mantissa. deterministic: the
    same bits at every run; RuntimeError in the step where an operation cannot.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS refuses
    torch.use_deterministic_algorithms(deterministic)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision; with fp32 it does nothing."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


class HalfWeights:
    """16-bit copies of what a model's linear layers and convolutions read, a block's by one call.

    The numbers are those of autocast alone; but it copies every weight and every gradient by an
    operation of its own, a fifth of a step's operations. The copies of a block are one node of the
    graph, so that gradients are still reduced while others are computed.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.dtype = dtype
        groups: dict[str, list[tuple[nn.Module, str]]] = defaultdict(list)
        for place, module in model.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                names = [name for name, _ in module.named_parameters(recurse=False)]
                groups[_block(place)] += [(module, name) for name in names]
        self.groups = list(groups.values())

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """For a forward pass and its backward pass, which may compute blocks again."""
        weights = [[module._parameters[name] for module, name in group] for group in self.groups]
        try:
            for group, own in zip(self.groups, weights, strict=True):
                self._put(group, _Halves.apply(self.dtype, *own))
            yield
        finally:
            for group, own in zip(self.groups, weights, strict=True):
                self._put(group, own)

    @staticmethod
    def _put(group: list[tuple[nn.Module, str]], tensors: Sequence[Tensor]) -> None:
        for (module, name), tensor in zip(group, tensors, strict=True):
            module._parameters[name] = tensor


def _block(place: str) -> str:
    """The block of a ModuleList that a module is in, else the part of the model."""
    names = place.split(".")
    numbers = [n for n, name in enumerate(names) if name.isdigit()]
    return ".".join(names[: numbers[0] + 1 if numbers else 1])


class _Halves(torch.autograd.Function):
    """16-bit copies of tensors; gradients in the tensors' own dtype."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)  # a layer that this step does not use has none
        ctx.dtypes = [weight.dtype for weight in weights]
        return _copies(weights, [dtype] * len(weights))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        used = [n for n, gradient in enumerate(gradients) if gradient is not None]
        copies = _copies([gradients[n] for n in used], [ctx.dtypes[n] for n in used])
        found = dict(zip(used, copies, strict=True))
        return None, *(found.get(n) for n in range(len(gradients)))


def _copies(tensors: list[Tensor], dtypes: list[torch.dtype]) -> tuple[Tensor, ...]:
    copies = [torch.empty_like(x, dtype=d) for x, d in zip(tensors, dtypes, strict=True)]
    torch._foreach_copy_(copies, list(tensors))
    return tuple(copies)
