"""The 16-bit copies of the weights."""

import pytest
import torch

from m3ae.models import M3AE
from m3ae.training.precision import DTYPES, HalfWeights, autocast
from tests.recipe import golden_batch, tiny_config

CPU = torch.device("cpu")


def gradients(model, run, precision: str) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    with autocast(CPU, precision):
        losses = run(golden_batch())
    losses["loss"].backward()
    return {"loss": losses["loss"].detach()} | {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("checkpointing", ["false", "true"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("off", ["itm", "mim"])
def test_copies_change_no_number(precision, off, checkpointing):
    """Copies that are rounded twice, of last step's weights, or whose gradients get lost."""
    config = tiny_config(f"model.{off}.weight=0", f"model.activation_checkpointing={checkpointing}")
    torch.manual_seed(0)
    model = M3AE(config.model)
    wrapped = HalfWeights(model, DTYPES[precision])
    for _ in range(2):  # the second time with other weights
        wanted = gradients(model, model, precision)
        ours = gradients(model, wrapped, precision)
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
    """Copies that are all one node: gradients of several processes reduced after the last block."""
    model = M3AE(tiny_config().model)
    wrapped = HalfWeights(model, torch.bfloat16)
    names = [name for group in wrapped.groups for name in group]
    assert len(names) == len(set(names))
    blocks = [group for group in wrapped.groups if ".blocks.1." in group[0]]
    assert len(blocks) > 2 and all(
        name.split(".1.")[0] == group[0].split(".1.")[0] for group in blocks for name in group
    )
    products = {name for name, module in model.named_modules() if hasattr(module, "in_features")}
    assert {name.rpartition(".")[0] for name in names} == products | {
        "image_encoder.patch_embedding"
    }
