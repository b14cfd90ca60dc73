"""Compilation and recomputation of blocks: what is compiled, how often, and that it is the same."""

import pytest
import torch

from benchmarks.step import random_batch
from m3ae.data.datasets import trim
from m3ae.models import M3AE
from m3ae.models.switches import GRAPHS, wrap_blocks
from tests.recipe import tiny_config

LENGTHS = (16, 24, 40, 32, 8)  # longest text of each step


def batch_of(config, length: int) -> dict[str, torch.Tensor]:
    batch = random_batch(config, 4, None, seed=length)
    batch["text_keep"][:, length:] = False
    batch["mlm_positions"] = batch["mlm_positions"].clamp(max=length - 2)
    return trim(batch)


def losses(model, config) -> list[float]:
    """Of five training steps of other lengths with an evaluation after each, and gradient norms."""
    found = []
    for length in LENGTHS:
        batch = batch_of(config, length)
        assert batch["text_ids"].shape[1] == length
        model.train().zero_grad()
        loss = model(batch)["loss"]
        loss.backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        found += [loss.item(), torch.nn.utils.get_total_norm(grads).item()]
        with torch.no_grad():
            found.append(model.eval()(batch)["loss"].item())
    return found


@pytest.mark.parametrize("checkpointing", ["false", "true"])
@pytest.mark.parametrize("decoder", ["transformer", "mlp"])
def test_what_is_compiled(checkpointing, decoder):
    """Blocks that run uncompiled without a word, after an evaluation, at another length or under
    checkpointing; a compilation at every length; other losses."""
    torch._dynamo.reset()
    config = tiny_config(
        "model.compile=true",
        "data.text_length=48",
        f"model.activation_checkpointing={checkpointing}",
        f"model.mlm.decoder={decoder}",
    )
    torch.manual_seed(0)
    plain = M3AE(config.model)
    wanted = losses(plain, config)
    graphs, runs = [], []

    def backend(graph, _):
        graphs.append(graph)
        return lambda *inputs: runs.append(1) or graph.forward(*inputs)

    wrap_blocks(plain, config.model, backend)
    seen = []
    for _ in range(2):
        found = losses(plain, config)
        seen.append(len(graphs))
        assert found == pytest.approx(wanted, rel=1e-5)
    # Whole and kept images, the decoders; texts alone, then in fusion texts and images of MLM with
    # ITM, of MIM, and the last layers: half as many as there may be.
    assert seen[0] == seen[1] <= GRAPHS / 2
    blocks = sum("Block" in type(module).__name__ for module in plain.modules())
    assert len(runs) > 2 * len(LENGTHS) * blocks
    torch._dynamo.reset()
