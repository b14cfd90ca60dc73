"""The loop of the run scripts, on a model that is a single number."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from m3ae.data.sampler import Plan
from m3ae.training.engine import Trainer
from m3ae.training.logs import RunLog, read_log
from m3ae.training.loop import Loop
from m3ae.training.optim import build_optimizer
from tests.recipe import tiny_config
from tests.training.test_distributed import ALONE

OPTIM = tiny_config("optim.warmup_frac=0", "optim.lr=0.1").optim


class Number(nn.Module):
    """Loss: the distance of one number from each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.zeros(1))

    def forward(self, batch, totals=None, per_sample=False):
        loss = (batch["value"] - self.number).abs()
        count = torch.ones_like(loss)
        if per_sample:
            return {"it_loss": loss, "it_count": count}
        loss = loss.sum() / totals["it"]
        return {"loss": loss, "it_loss": loss, "it_count": count.sum()}

    def counts(self, batch):
        return {"it": torch.tensor(len(batch["value"]))}


def loop_of(values: list[float], step: int = 0, micro: int = 1) -> Loop:
    """One sample a micro-batch, `micro` a step."""
    model = Number()
    group = {"name": "all", "params": list(model.parameters()), "lr_scale": 1.0}
    optimizer = build_optimizer([group], OPTIM)
    trainer = Trainer(model, optimizer, ALONE, "fp32", None)
    batches = [
        {"index": torch.tensor([number]), "value": torch.tensor([value])}
        for number, value in enumerate(values)
    ]
    plan = Plan(len(values), len(values) // micro, micro, 1, 1)
    return Loop(trainer, batches[step * micro :], plan, OPTIM, step, "sample-{}".format)


def steps_of(loop: Loop) -> Iterator[int]:
    """The loop of a run script: a step trained, then what is due."""
    for step, batches in loop:
        loop.trainer.train_step(batches)
        yield step


def test_what_is_due():
    """An action at a wrong step, none at the end, or 0 taken for every step."""
    loop = loop_of([1.0] * 7)
    due = {step: [loop.due(3), loop.due(0), loop.due(2, 3)] for step in steps_of(loop)}
    assert [step for step, flags in due.items() if flags[0]] == [3, 6, 7]
    assert [step for step, flags in due.items() if flags[1]] == [7]
    assert [step for step, flags in due.items() if flags[2]] == [2, 3, 4, 6, 7]


def test_a_resumed_loop_ends_where_the_plan_does():
    """Steps counted from the resumption, or micro-batches taken for steps."""
    loop = loop_of([1.0] * 12, step=2, micro=2)
    assert list(steps_of(loop)) == [3, 4, 5, 6] and loop.bar.n == 6


def test_speed_leaves_out_what_the_body_does(tmp_path, monkeypatch):
    """Evaluation and checkpoints counted as training, or their steps as done in no time."""
    clock = [0.0]

    def slow(batches):  # a second to wait for each
        for batch in batches:
            clock[0] += 1
            yield batch

    monkeypatch.setattr("m3ae.training.loop.time.perf_counter", lambda: clock[0])
    loop, log = loop_of([1.0] * 8), RunLog(tmp_path, 0, active=True)
    loop.loader = slow(loop.loader)
    for _ in steps_of(loop):
        if loop.due(2):
            loop.log(log)
        if loop.due(3):
            clock[0] += 1000
    lines = read_log(tmp_path, "train")
    assert [line["step"] for line in lines] == [line["samples"] for line in lines] == [2, 4, 6, 8]
    assert [line["seconds"] for line in lines] == [2, 1, 2, 2]  # step 3 had a long body
    assert [line["data_wait_s"] for line in lines] == [2, 1, 2, 2]
    assert all(line["samples_per_s"] == 1 and line["mfu"] is None for line in lines)


@pytest.mark.parametrize("bad", [1, 2])
def test_a_failed_step_is_named_before_anything_is_due(tmp_path, bad):
    """A log line, an evaluation or a checkpoint of weights after a NaN; a sample not named."""
    loop, log, done = loop_of([1.0, 1.0, float("nan"), 1.0]), RunLog(tmp_path, 0, True), []
    with pytest.raises(ValueError, match=r"not finite at or just before step .*\(") as error:
        for step in steps_of(loop):
            if loop.due(bad):
                loop.log(log)
                done.append(step)
    assert max(done) < 3
    assert ("it_loss of sample-2" in str(error.value)) == (bad == 1)
