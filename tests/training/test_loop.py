"""The loop of the run scripts, on a model that is a single number."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from m3ae.data.datasets import loader_from
from m3ae.data.sampler import Plan
from m3ae.training.engine import Trainer
from m3ae.training.logs import RunLog, read_log
from m3ae.training.loop import Loop
from m3ae.training.optim import build_optimizer
from m3ae.training.saving import Saver
from tests.recipe import tiny_config
from tests.training.test_distributed import ALONE

CONFIG = tiny_config("optim.warmup_frac=0", "optim.lr=0.1")


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


def loop_of(values: list[float], step: int = 0, micro: int = 1, processes=ALONE) -> Loop:
    """One sample a micro-batch, `micro` a step."""
    model = Number()
    group = {"name": "all", "params": list(model.parameters()), "lr_scale": 1.0}
    optimizer = build_optimizer([group], CONFIG.optim)
    trainer = Trainer(model, optimizer, processes, "fp32", None)
    batches = [
        {"index": torch.tensor([number]), "value": torch.tensor([value])}
        for number, value in enumerate(values)
    ]
    plan = Plan(len(values), len(values) // micro, micro, 1, 1)
    loader = loader_from(batches, step * micro, 0, processes.device)
    saver = Saver(Path("nowhere"), trainer, CONFIG, None)
    return Loop(saver, loader, plan, step, "sample-{}".format)


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


@pytest.mark.parametrize("every", [1, 2, 7])
def test_a_failed_step_is_named_before_anything_is_due(tmp_path, every):
    """A log line, an evaluation or a checkpoint of weights after a NaN; another step's samples, or
    none, where the host looks some steps later."""
    values = [1.0, 1.0, 1.0, 1.0, float("nan"), 1.0, 1.0]
    loop, log, done = loop_of(values), RunLog(tmp_path, 0, True), []
    with pytest.raises(ValueError, match=r"not finite at step 5 \(it_loss of sample-4\)"):
        for step in steps_of(loop):
            if loop.due(every):
                loop.log(log)
                done.append(step)
    assert max(done, default=0) < 5


class Fragile(Number):
    """Not finite where dropout keeps a number (loss), or in the gradient alone."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.drawn = where, []

    def forward(self, batch, totals=None, per_sample=False):
        drawn = torch.rand(len(batch["value"]))
        self.drawn.append(drawn)
        losses = super().forward(batch, totals, per_sample)
        bad = (batch["value"] == 3.0).any() & (drawn > 0.5).any()
        if self.where == "gradient":  # of a root at 0
            zero = ((self.number * 0 + ~bad).sqrt() - (~bad).float()).squeeze()
        else:
            zero = torch.where(bad, float("inf"), 0.0)
        return {key: value + zero if "loss" in key else value for key, value in losses.items()}


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_failed_step_is_repeated_as_it_was(where):
    """Samples sought with other draws of dropout, or without a gradient: "none is bad"."""
    torch.manual_seed(0)
    loop = loop_of([3.0] * 12)
    loop.trainer.model = loop.trainer.parallel = model = Fragile(where)
    optimizer = build_optimizer(
        [{"name": "all", "params": list(model.parameters()), "lr_scale": 1.0}], CONFIG.optim
    )
    loop.trainer.optimizer = optimizer
    with pytest.raises(ValueError, match="not finite at step") as error:
        for _ in steps_of(loop):
            loop.due(12)
    first = next(n for n, drawn in enumerate(model.drawn) if drawn.item() > 0.5)
    assert f"at step {first + 1} " in str(error.value) and f"sample-{first}" in str(error.value)
    assert ("gradient of number" in str(error.value)) == (where == "gradient")
    assert all(drawn.item() == model.drawn[first].item() for drawn in model.drawn[12:])


@pytest.mark.parametrize("skip", [1, 2])
def test_steps_that_are_skipped(tmp_path, skip, caplog):
    """A skipped step that changes weights, means of the log that it poisons, one too many."""
    values = [1.0, float("nan"), 1.0, float("inf"), 1.0, 1.0]
    loop, log = loop_of(values), RunLog(tmp_path, 0, True)
    loop.skip = skip
    numbers = []

    def train() -> None:
        for _ in steps_of(loop):
            numbers.append(loop.trainer.model.number.item())
            if loop.due(3):
                loop.log(log)

    if skip == 1:
        with pytest.raises(ValueError, match=r"at step 4 \(it_loss of sample-3\)"):
            train()
        assert len(numbers) == 4 and numbers[3] == numbers[2]
        return
    train()
    assert numbers[1] == numbers[0] < numbers[2] == numbers[3] < numbers[4] < numbers[5]
    notes = [(line["step"], line["message"]) for line in read_log(tmp_path, "note")]
    assert [step for step, _ in notes] == [2, 4]
    assert "skipped, 1 of at most 2" in notes[0][1] and "sample-1" in notes[0][1]
    lines = read_log(tmp_path, "train")
    assert lines[0]["loss"] == pytest.approx(1 - numbers[0] / 2)  # of steps 1 and 3
    assert lines[1]["loss"] == pytest.approx(1 - (numbers[3] + numbers[4]) / 2)
