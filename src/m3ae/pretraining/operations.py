"""The operations of a training step, as a GPU would be given them: traced without a GPU.

The whole step of `Trainer` runs on tensors without content (forward, backward, clipping, AdamW), on
the CPU's rules of autocast, which for this model are the GPU's. Three things are put in their GPU
form: attention is one operation and its backward pass another, dropout is one each way, and the
gradients' norms are one call for all. What only looks at memory another way (views) is left out:
what is left is launched.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from m3ae.config import Config
from m3ae.models import M3AE
from m3ae.models.param_groups import param_groups
from m3ae.pretraining.cost import meta_batch
from m3ae.training.distributed import Processes
from m3ae.training.engine import Trainer
from m3ae.training.optim import build_optimizer

CPU = torch.device("cpu")
GROUPS = {
    "products": "mm addmm bmm convolution convolution_backward",
    "attention": "attention attention_backward",
    "layer norms": "native_layer_norm native_layer_norm_backward",
    "casts": "_to_copy _foreach_copy_",
    "optimiser": "_fused_adamw_ _foreach_add_ _foreach_sub_ _foreach_norm _foreach_mul_",
    "copies": "cat stack clone copy_ gather scatter_add index index_copy slice_backward "
    "select_backward embedding embedding_dense_backward",
}
GROUP = {name: group for group, names in GROUPS.items() for name in names.split()}
OTHERS = "elementwise and sums"
# These give memory, or are notes to a profiler: no kernel.
_NO_KERNEL = ("empty", "new_empty", "detach", "device", "_record_function", "lift")


@dataclass(frozen=True)
class Operation:
    """One launch. `reads` and `writes`: bytes of each tensor, by a number that stands for it."""

    name: str
    group: str
    flop: float  # 2 a multiply-add
    half: bool  # whether it reads 16-bit numbers
    reads: tuple[tuple[int, int], ...]
    writes: tuple[tuple[int, int], ...]

    @property
    def bytes(self) -> int:
        """Read and written."""
        return sum(size for _, size in (*self.reads, *self.writes))


@torch.library.custom_op("m3ae_traced::attention", mutates_args=())
def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Stands for a fused kernel: values (B, H, Q, d), sums of the exponentials (B, H, Q)."""
    raise NotImplementedError("traced, never run")


@torch.library.custom_op("m3ae_traced::attention_backward", mutates_args=())
def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, values: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Stands for its backward pass: gradients of q, k, v."""
    raise NotImplementedError("traced, never run")


def _tokens_first(x: Tensor) -> Tensor:
    """Room for a tensor like x (B, H, S, d) as such kernels lay it out, heads side by side."""
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2)


@attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    return _tokens_first(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@attention_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, values: Tensor, sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _tokens_first(q), _tokens_first(k), _tokens_first(v)


def _keep(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.save_for_backward(*inputs[:3], *output)
    ctx.set_materialize_grads(False)


def _back(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    return *attention_backward(grad, *ctx.saved_tensors), None


attention.register_autograd(_back, setup_context=_keep)


def _fused_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (x.to(torch.get_autocast_dtype("cpu")) for x in (q, k, v))
    return attention(q, k, v, mask)[0]


def _fused_dropout(x: Tensor, p: float, training: bool, inplace: bool) -> Tensor:
    return torch.native_dropout(x, p, True)[0] if training and p else x


def _attention_flop(args: tuple, backward: bool) -> float:
    q, k = args[backward : backward + 2]
    rows, heads, queries, width = q.shape
    products = 5 if backward else 2  # the backward pass computes the scores again
    return 2.0 * products * rows * heads * queries * k.shape[2] * width


class _Trace(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[Operation] = []
        self.numbers: dict[Any, int] = {}  # by storage, all of which are so kept apart

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = function.overloadpacket.__name__
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if not (_is_view(function, given, made) or name.startswith(_NO_KERNEL)):
            written = [] if function._schema.is_mutable else made  # its inputs already count
            half = any(x.dtype in (torch.bfloat16, torch.float16) for x in given)
            if name.startswith("attention"):
                flop = _attention_flop(args, name.endswith("backward"))
            elif function.overloadpacket in flop_registry:
                count = flop_registry[function.overloadpacket]
                flop = float(count(*args, **kwargs, out_val=result))
            else:
                flop = 0.0
            reads, writes = self._sizes(given), self._sizes(written)
            group = GROUP.get(name, OTHERS)
            self.found.append(Operation(name, group, flop, half, reads, writes))
        return result

    def _sizes(self, tensors: list[Tensor]) -> tuple[tuple[int, int], ...]:
        found = []
        for x in tensors:
            number = self.numbers.setdefault(x.untyped_storage(), len(self.numbers))
            found.append((number, x.numel() * x.element_size()))
        return tuple(found)


def _is_view(function: Any, given: list[Tensor], made: list[Tensor]) -> bool:
    if function._schema.is_mutable or not made:
        return False
    own = {x.untyped_storage()._cdata for x in given}
    return function.is_view or all(x.untyped_storage()._cdata in own for x in made)


@contextlib.contextmanager
def _as_on_a_gpu() -> Iterator[None]:
    with (
        mock.patch.object(F, "scaled_dot_product_attention", _fused_attention),
        mock.patch.object(F, "dropout", _fused_dropout),
        mock.patch("torch.nn.utils.clip_grad._has_foreach_support", lambda *_: True),
    ):
        yield


def trace_step(
    config: Config, pairs: int, text_length: int, precision: str, copies: bool = True
) -> list[Operation]:
    """Every operation of the second training step of one process, in order; one micro-batch.

    copies: False copies every weight on its own, as autocast does without `HalfWeights`.
    """
    with FakeTensorMode():
        model = M3AE(config.model)
        model.freeze_unreached()
        batch = meta_batch(config.model, text_length, pairs)
        for name in ("image", "negative_image"):
            if name in batch:
                batch[name] = batch[name].to(torch.uint8)
        optimizer = build_optimizer(param_groups(model, config.optim), config.optim)
        alone = Processes(0, 0, 1, CPU)
        trainer = Trainer(model, optimizer, alone, precision, config.optim.clip_norm)
        if not copies:
            trainer.copies = contextlib.nullcontext
        with _as_on_a_gpu():
            trainer.train_step([batch])  # makes the optimiser's states
            with _Trace() as trace:
                trainer.train_step([batch])
    return trace.found
