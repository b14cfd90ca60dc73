"""CUDA without a GPU: tensors without content that know their device, shape and dtype.

PyTorch's fake tensors raise where a value is read on the host (`.item()`, `nonzero`, a boolean
mask as an index): on a GPU the step would wait there. `Watched` finds what they let pass: a tensor
of the CPU that meets one of the GPU, as an index or by a copy, and notes the dtypes of what must be
computed in float32.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from m3ae.training.precision import autocast

CUDA = torch.device("cuda", 0)


class Watched(TorchDispatchMode):
    """Raises where host and device meet; `dtypes` holds what each operation was computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: dict[str, set[torch.dtype]] = defaultdict(set)
        self.calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        made = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        name = function.overloadpacket.__name__
        # A CPU scalar is an argument of the kernel, but where it is copied.
        met = [x for x in given if x.ndim or name in ("_to_copy", "copy_")]
        devices = {x.device.type for x in [*met, *made]}
        if len(devices) > 1:
            raise RuntimeError(f"{name}: tensors of {', '.join(sorted(devices))} meet")
        floats = [x.dtype for x in given if x.is_floating_point()]
        if floats:
            self.dtypes[name].add(floats[0])
        self.calls += 1
        return result


@contextmanager
def fake_cuda() -> Iterator[None]:
    """New tensors are fake ones of a GPU."""
    with FakeTensorMode(), torch.device(CUDA):
        yield


@contextmanager
def watched(precision: str) -> Iterator[Watched]:
    """Under autocast in `precision` (bf16, fp16, fp32), as on a GPU; raises as `Watched`."""
    answers = {  # without a GPU autocast switches itself off, and asks it for bf16
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.is_bf16_supported": lambda *_, **__: True,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch(name, answer))
        mixed = autocast(CUDA, precision)
    with mixed, Watched() as found:
        yield found


def summary(value: Any) -> set[tuple[torch.dtype, str]]:
    """dtype and device of every tensor in it."""
    tensors = [x for x in tree_leaves(value) if isinstance(x, torch.Tensor)]
    return {(x.dtype, x.device.type) for x in tensors}
