"""Compiled by inductor: the same training. A minute of compilation (`make test-long`)."""

import pytest
import torch

from m3ae.models import build_model
from m3ae.models.param_groups import param_groups
from m3ae.training.engine import Trainer
from m3ae.training.optim import build_optimizer, set_lr
from tests.models.test_switches import batch_of
from tests.recipe import tiny_config
from tests.training.test_distributed import ALONE

STEPS, LENGTHS = 20, (16, 24, 40, 32, 8)


def losses(compiled: str) -> list[float]:
    """Of twenty steps with other lengths, an evaluation after each fifth."""
    config = tiny_config("data.text_length=48", f"model.compile={compiled}")
    model = build_model(config)
    optimizer = build_optimizer(param_groups(model, config.optim), config.optim)
    trainer, found = Trainer(model, optimizer, ALONE, "fp32", 1.0), []
    for step in range(STEPS):
        set_lr(optimizer, step + 1, STEPS, config.optim)
        batch = batch_of(config, LENGTHS[step % len(LENGTHS)])
        trainer.train_step([batch])
        values = trainer.read()
        found += [values["loss"], values["grad_norm"]]
        if step % 5 == 4:
            with torch.no_grad():
                found.append(model.eval()(batch)["loss"].item())
            model.train()
    return found


def test_compiled_by_inductor():
    """A fused kernel that computes something else, a gradient lost on the way."""
    torch._dynamo.reset()
    plain, compiled = losses("false"), losses("true")
    counted = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch._dynamo.reset()
    assert counted > 5 and max(plain) > 1.1 * min(plain)
    assert compiled == pytest.approx(plain, rel=1e-5)
