"""The 16-bit copies of the weights."""

import contextlib
import re

import pytest
import torch

from m3ae.models import M3AE
from m3ae.models.switches import wrap_blocks
from m3ae.training.precision import DTYPES, HalfWeights, autocast
from tests.recipe import golden_batch, tiny_config

CPU = torch.device("cpu")


def gradients(model, copies, precision: str) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    with copies():
        with autocast(CPU, precision):
            losses = model(golden_batch())
        losses["loss"].backward()
    return {"loss": losses["loss"].detach()} | {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("checkpointing", ["false", "true"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("off", ["itm", "mim"])
def test_copies_change_no_number(precision, off, checkpointing):
    """Copies that are rounded twice, of last step's weights, whose gradients get lost, or that are
    gone when a block is computed again."""
    config = tiny_config(f"model.{off}.weight=0", f"model.activation_checkpointing={checkpointing}")
    torch.manual_seed(0)
    model = M3AE(config.model)
    wrap_blocks(model, config.model)
    halves = HalfWeights(model, DTYPES[precision])
    for _ in range(2):  # the second time with other weights
        wanted = gradients(model, contextlib.nullcontext, precision)
        ours = gradients(model, halves.in_place, precision)
        for name, gradient in wanted.items():
            assert (gradient is None) == (ours[name] is None), name
            if "query_key_value" in name and gradient is not None:
                # A last layer reads parts of it: autocast copies these apart and adds in float32.
                scale = gradient.abs().max().item()
                torch.testing.assert_close(ours[name], gradient, rtol=0, atol=0.01 * scale)
            else:
                assert gradient is None or torch.equal(gradient, ours[name]), name
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))


def test_a_block_is_one_node():
    """Copies that are all one node: gradients of several processes reduced after the last block;
    a layer without a copy, or with two; copies that stay where an evaluation reads weights."""
    model = M3AE(tiny_config().model)
    halves = HalfWeights(model, torch.bfloat16)
    with pytest.raises(KeyError), halves.in_place():
        nodes = {n: p.grad_fn for n, p in model.named_parameters() if p.dtype == torch.bfloat16}
        raise KeyError
    assert all(parameter.is_leaf for parameter in model.parameters())
    layers = {n for n, module in model.named_modules() if hasattr(module, "in_features")}
    layers.add("image_encoder.patch_embedding")
    assert {name.rpartition(".")[0] for name in nodes} == layers
    by_node = {}
    for name, node in nodes.items():
        block = re.match(r".*?\.\d+(?=\.)|[^.]*", name).group()
        by_node.setdefault(node, set()).add(block)
    assert all(len(places) == 1 for places in by_node.values()) and len(by_node) > 10
