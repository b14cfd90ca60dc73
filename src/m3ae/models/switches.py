"""How blocks are computed: compiled, recomputed in the backward pass, or as they stand."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from m3ae.config import Switches
from m3ae.models.layers import PostNormBlock, PreNormBlock

# Graphs of one block class: whole and kept images, both decoders; texts and images of each pass
# through fusion, the last layers' positions. PyTorch's own limit, 8, leaves the rest uncompiled.
GRAPHS = 32


def wrap_blocks(model: nn.Module, switches: Switches, backend: str | Callable = "inductor") -> None:
    """Compile each block and recompute its activations, as asked.

    Compiled blocks are those of training: evaluation runs as it stands, so that its shapes cost no
    compilation and its results do not depend on the switch. Of the shapes only the texts' length
    may vary within a graph. Checkpointing stands outside of what is compiled.
    """
    if not (switches.compile or switches.activation_checkpointing):
        return
    if switches.compile:
        torch._dynamo.config.recompile_limit = GRAPHS
        torch._dynamo.config.automatic_dynamic_shapes = False  # what varies is marked
    for block in model.modules():
        if not isinstance(block, PreNormBlock | PostNormBlock):
            continue
        plain = forward = block.forward
        if switches.compile:
            forward = _texts_vary(torch.compile(forward, backend=backend))
        if switches.activation_checkpointing:
            forward = functools.partial(checkpoint, forward, use_reentrant=False)
        block.forward = _in_training(forward, plain)


def _texts_vary(forward: Callable) -> Callable:
    """Marks the length of texts, which are what has a mask, as one that varies."""

    def call(*inputs: object) -> Tensor:
        while inputs[-1] is None:  # else the graphs of two calls that are one would be two
            inputs = inputs[:-1]
        x, keep, other, other_keep = (*inputs, None, None, None)[:4]
        for text, mask in ((x, keep), (other, other_keep)):
            if mask is not None:
                torch._dynamo.maybe_mark_dynamic(text, 1)
                torch._dynamo.maybe_mark_dynamic(mask, 1)
        return forward(*inputs)

    return call


def _in_training(forward: Callable, plain: Callable) -> Callable:
    def call(*inputs: object) -> Tensor:
        pictures = inputs and isinstance(inputs[-1], list)  # which collects attention maps
        return (forward if torch.is_grad_enabled() and not pictures else plain)(*inputs)

    return call
