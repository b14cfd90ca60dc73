"""SIGKILL at random moments, and at chosen ones: the run that goes on ends with the same bits."""

import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import run_finetune
import run_pretrain
from m3ae.checkpoints import checkpoints
from tests.faults.conftest import EPOCHS, EVERY
from tests.faults.runs import TWO, Forked, differing, last_step, phase, wait_for

KILLS = 22


def moments(
    run: Path, steps: int, every: int, chance: random.Random
) -> Iterator[Callable[[], bool]]:
    """When to kill: at the first step, then at random, in a save, an evaluation, at the last."""
    yield lambda: last_step(run) == 1
    while True:
        for _ in range(2):
            pause, began = chance.uniform(0, 2.5), time.monotonic()
            yield lambda pause=pause, began=began: time.monotonic() > began + pause
        yield lambda: phase(run, every) == "save"
        yield lambda: phase(run, every) == "evaluation"
        yield lambda: last_step(run) == steps


def rewind(run: Path) -> None:
    """A finished run as it was half-way."""
    (run / "evaluation.json").unlink()
    saved = checkpoints(run)
    for folder in saved[len(saved) // 2 :]:
        shutil.rmtree(folder)


def killed_often(
    main: Callable, arguments: list[str], run: Path, count: int, steps: int, every: int
) -> Counter:
    """Begin a run again and again, each time killed; what it was at then, by what it left."""
    hit = Counter()
    for moment in moments(run, steps, every, random.Random(0)):
        if sum(hit.values()) == KILLS:
            break
        if (run / "evaluation.json").exists():
            rewind(run)
        running = Forked(main, arguments, count)
        wait_for(moment, running, 300)
        if -9 in running.kill():
            at = {1: "first step, ", steps: "last step, "}.get(last_step(run), "")
            hit[at + phase(run, every)] += 1
    assert Forked(main, arguments, count).wait() == [0] * count
    return hit


@pytest.mark.parametrize("loaders", [0, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_pretraining(long_run, tmp_path, measured, processes, loaders):
    """Anything that a checkpoint forgets or a log line says twice, wherever a run is cut."""
    given = [f"data.workers={loaders}", *(TWO if processes == 2 else [])]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    main, count = run_pretrain.main, processes
    assert Forked(main, long_run(*given, name="whole"), count).wait() == [0] * count
    hit = killed_often(main, long_run(*given, name="cut"), cut, count, 200, EVERY)
    found = differing(whole, cut)
    what = f"SIGKILL, pre-training, {processes} process(es), {loaders} loading processes"
    measured(what, sum(hit.values()), f"{len(found)} differing tensors; killed at: {dict(hit)}")
    assert not found


@pytest.mark.parametrize("frozen", [False, True])
def test_finetuning(long_tune, tmp_path, measured, frozen):
    """The same of the best epoch's choice, its folder, predictions and frozen features."""
    given = ["train.freeze=[image_encoder, text_encoder]"] if frozen else []
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert Forked(run_finetune.main, long_tune(*given, name="whole")).wait() == [0]
    steps = last_step(whole)
    each = steps // EPOCHS
    hit = killed_often(run_finetune.main, long_tune(*given, name="cut"), cut, 1, steps, each)
    found = differing(whole, cut)
    for name in ("predictions-strict.jsonl", "best-strict/model.safetensors"):
        found += [name] * ((whole / name).read_bytes() != (cut / name).read_bytes())
    what = f"SIGKILL, fine-tuning{', encoders frozen' if frozen else ''}"
    measured(what, sum(hit.values()), f"{len(found)} differences; killed at: {dict(hit)}")
    assert not found
