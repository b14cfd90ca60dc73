"""One training step: recomputation, clipping, failing steps."""

import json

import numpy as np
import pytest
import torch

from m3ae.config import load_config
from m3ae.data.datasets import Pairs, TrainBatches
from m3ae.data.sampler import Order, Plan
from m3ae.data.texts import load_tokenizer
from m3ae.models import build_model
from m3ae.models.param_groups import param_groups
from m3ae.pretraining.cost import step_flops
from m3ae.training.engine import Trainer, accuracies, summarise
from m3ae.training.optim import build_optimizer, set_lr
from tests.recipe import ROOT, tiny_config
from tests.training.test_distributed import ALONE, Capture, small_config


def one_batch(config, shards) -> dict:
    pairs = Pairs(config.data.train, load_tokenizer(config.data.tokenizer), 24, 64)
    plan = Plan(len(pairs), 1, 8, 8, 1)
    return TrainBatches(pairs, Order(pairs.sizes, None, 0), plan, config.model, 0, 0)[0]


def captured(shards, *overrides: str, clip: float | None = None) -> list[torch.Tensor]:
    """Gradients of one step, with dropout on."""
    config = small_config(shards, "model.fusion.dropout=0.1", *overrides)
    torch.manual_seed(0)
    model = build_model(config)
    optimizer = Capture([p for p in model.parameters() if p.requires_grad], lr=0.1)
    Trainer(model, optimizer, ALONE, "fp32", clip).train_step([one_batch(config, shards)])
    return optimizer.seen


def test_recomputing_activations_changes_no_gradient(shards):
    """Catches a recomputation that draws another dropout."""
    plain = captured(shards)
    again = captured(shards, "model.activation_checkpointing=true")
    for one, two in zip(plain, again, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def test_clipping_scales_the_whole_gradient(shards):
    """Catches clipping tensor by tensor, or before the gradients are complete."""
    plain, clipped = captured(shards), captured(shards, clip=0.5)
    norm = torch.stack([g.norm() for g in plain]).norm()
    assert norm > 0.5
    for one, two in zip(plain, clipped, strict=True):
        torch.testing.assert_close(one * (0.5 / norm), two, rtol=1e-4, atol=1e-8)


def test_a_failed_step_leaves_the_weights(shards):
    """Catches an update with a gradient that is not finite, and later steps that go on."""
    config = small_config(shards)
    model, good = build_model(config), one_batch(config, shards)
    optimizer = build_optimizer(param_groups(model, config.optim), config.optim)
    trainer = Trainer(model, optimizer, ALONE, "fp32", None)
    set_lr(optimizer, 10, 20, config.optim)
    trainer.train_step([good])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    bad = good | {"image": torch.full((8, 3, 64, 64), float("nan"))}
    for batch in (bad, good):
        trainer.train_step([batch])
    assert trainer.failed.item() == 1
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def fp16_trainer(shards, scale: float) -> tuple[Trainer, dict]:
    config = small_config(shards)
    model = build_model(config)
    optimizer = build_optimizer(param_groups(model, config.optim), config.optim)
    trainer = Trainer(model, optimizer, ALONE, "fp16", None)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    set_lr(optimizer, 10, 20, config.optim)
    return trainer, one_batch(config, shards)


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in trainer.model.state_dict().items()}


def test_an_overflow_of_fp16_is_skipped_and_said(shards):
    """An update with an infinite gradient, a run that ends for an overflow, Infinity in the log
    (which is no JSON), or a scale and skipped steps that nobody sees."""
    trainer, batch = fp16_trainer(shards, 2.0**40)
    before, seen = weights_of(trainer), []
    while not seen or seen[-1]["skipped_steps"]:
        trainer.train_step([batch])
        seen.append(trainer.read())
        same = all(torch.equal(before[k], v) for k, v in trainer.model.state_dict().items())
        assert same == bool(seen[-1]["skipped_steps"])
    assert len(seen) > 3 and trainer.failed.item() == 0
    assert [one["loss_scale"] for one in seen[:2]] == [2.0**39, 2.0**38]
    assert all((one["grad_norm"] is None) == bool(one["skipped_steps"]) for one in seen)
    assert 0 < seen[-1]["grad_norm"] < 1000
    json.dumps(seen, allow_nan=False)


def test_a_failed_step_of_fp16_leaves_the_weights(shards):
    """A loss that is not finite, and later steps that go on as if it had been an overflow."""
    trainer, good = fp16_trainer(shards, 256.0)
    trainer.train_step([good])
    before = weights_of(trainer)
    bad = good | {"image": torch.full((8, 3, 64, 64), float("nan"))}
    for batch in (bad, good):
        trainer.train_step([batch])
    assert trainer.failed.item() == 1
    assert all(torch.equal(before[k], v) for k, v in trainer.model.state_dict().items())


def test_means_are_over_units():
    """Catches the mean of means: samples with many scored tokens must count more."""
    arrays = {
        "index": np.arange(2),
        "mlm_loss": np.array([1.0, 9.0]),
        "mlm_count": np.array([1, 9]),
        "mlm_correct": np.array([1, 0]),
    }
    out = summarise(arrays, {"mlm": 2.0})
    assert out["mlm_loss"] == 1.0 and out["loss"] == 2.0 and out["mlm_accuracy"] == 0.1
    assert accuracies({"itm_correct": 3.0, "itm_count": 0.0}) == {"itm_accuracy": 3.0}


@pytest.mark.parametrize(("overrides", "most"), [([], 554), (["model.itm.negatives=dataset"], 636)])
def test_flops_of_the_paper_s_model(overrides, most):
    """Catches work done twice: the counted FLOPs of a step at the paper's size."""
    config = load_config(ROOT / "configs/pretrain/m3ae.yaml", overrides)
    assert 0.99 * most < step_flops(config.model, 64) / 1e9 <= most


def test_shared_step_is_cheaper():
    """Catches a shared step that computes as much as the plain one."""
    shared, plain = (
        step_flops(tiny_config(f"model.share={share}").model, 16) for share in ("true", "false")
    )
    assert shared < 0.8 * plain
