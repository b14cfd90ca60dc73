"""SIGKILL at random moments, and at chosen ones: the run that goes on ends with the same bits."""

import json
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
from tests.faults.runs import TWO, Forked, differing, last_step, lines, phase, wait_for

KILLS = 22


def moments(
    run: Path, steps: int, every: int, chance: random.Random
) -> Iterator[Callable[[], bool]]:
    """When to kill: at the first step, then at random, in a save, an evaluation, at the last."""
    yield lambda: last_step(run) == 1
    while True:
        for _ in range(2):
            step, pause = chance.randrange(steps), chance.uniform(0, 0.1)
            yield lambda step=step, pause=pause: last_step(run) >= step and not time.sleep(pause)
        yield lambda: phase(run, every) == "save"
        yield lambda: phase(run, every) == "evaluation"
        yield lambda: last_step(run) == steps


def rewind(run: Path, every: int) -> None:
    """A run as it was some steps after the checkpoint half-way to its last one."""
    (run / "evaluation.json").unlink(missing_ok=True)
    saved = checkpoints(run)
    kept = saved[: max(1, len(saved) // 2)]
    for folder in saved[len(kept) :]:
        shutil.rmtree(folder)
    end = int(kept[-1].name.removeprefix("step-")) + every // 2
    logged = [json.dumps(line) + "\n" for line in lines(run) if line["step"] <= end]
    (run / "log.jsonl").write_text("".join(logged))


def killed_often(
    main: Callable, arguments: list[str], run: Path, count: int, steps: int, every: int
) -> Counter:
    """Begin a run again and again, each time killed; what it was at then, by what it left."""
    hit, chance = Counter(), random.Random(0)
    for moment in moments(run, steps, every, chance):
        if sum(hit.values()) == KILLS:
            break
        # Every other time at its end, so that ends are resumed and not only ends.
        if (run / "evaluation.json").exists() or (
            last_step(run) == steps and chance.random() < 0.5
        ):
            rewind(run, every)
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
