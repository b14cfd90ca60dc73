"""SIGTERM and SIGUSR1, as a scheduler sends them before it takes the machine."""

import os
import random
import signal
import time
from collections import Counter

import pytest

import run_finetune
import run_pretrain
from m3ae.checkpoints import newest_whole, step_of
from m3ae.training.stopping import STOPPED
from tests.faults.conftest import EVERY
from tests.faults.runs import TWO, Forked, differing, last_step, phase, start, wait_for, workers

TRIES = 10


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda x: x.name)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_loses_nothing(long_run, tmp_path, measured, processes, number):
    """A step lost, a code that nobody documented, processes that stop at different steps, or a run
    that goes on with other bits; also in evaluations and with several micro-batches a step."""
    given = ["train.batch_per_process=2", "eval.batch=2"] if processes == 2 else []
    given += ["train.batch_per_process=4"] if processes == 1 else []
    main, chance = run_pretrain.main, random.Random(int(number) + processes)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert Forked(main, long_run(*given, name="whole"), processes).wait() == [0] * processes
    lost, seconds, phases, tries = [], [], [], 0
    while tries < TRIES:
        running = Forked(main, long_run(*given, name="cut"), processes, tmp_path / "stderr")
        began, evaluated = last_step(cut), tries % 3 == 2
        wait_for(lambda began=began: last_step(cut) > began, running)  # it is in its loop
        if evaluated:
            wait_for(lambda: phase(cut, EVERY) == "evaluation", running)
        else:
            time.sleep(chance.uniform(0, 0.5))
        at, asked = phase(cut, EVERY), time.monotonic()
        os.kill(chance.choice(running.pids), number)
        codes = running.wait()
        if codes == [0] * processes:  # too late
            break
        assert codes == [STOPPED] * processes, (tmp_path / "stderr").read_text()[-2000:]
        seconds.append(time.monotonic() - asked)
        lost.append(last_step(cut) - step_of(newest_whole(cut)))
        phases.append(at)
        tries += 1
    assert Forked(main, long_run(*given, name="cut"), processes).wait() == [0] * processes
    found = differing(whole, cut)
    what = f"{number.name}, {processes} process(es)"
    told = f"{max(lost)} steps lost, code {STOPPED} within {max(seconds):.1f} s"
    measured(what, tries, f"{told}, {len(found)} differing; asked at: {dict(Counter(phases))}")
    assert tries == TRIES and max(lost) <= 1 and not found


def test_fine_tuning(long_tune, tmp_path, measured):
    """The same of epochs, which are measured, kept and told of anew."""
    main, chance, lost, tries = run_finetune.main, random.Random(0), [], 0
    whole, cut, longer = tmp_path / "whole", tmp_path / "cut", "train.epochs=40"
    assert Forked(main, long_tune(longer, name="whole")).wait() == [0]
    while tries < TRIES:
        running, began = (
            Forked(main, long_tune(longer, name="cut"), 1, tmp_path / "stderr"),
            last_step(cut),
        )
        wait_for(lambda began=began: last_step(cut) > began, running)
        time.sleep(chance.uniform(0, 0.1))
        os.kill(*running.pids, chance.choice([signal.SIGTERM, signal.SIGUSR1]))
        if running.wait() == [0]:
            break
        assert running.wait() == [STOPPED], (tmp_path / "stderr").read_text()[-2000:]
        lost.append(last_step(cut) - step_of(newest_whole(cut)))
        tries += 1
    assert Forked(main, long_tune(longer, name="cut")).wait() == [0]
    found = differing(whole, cut)
    told = f"{max(lost)} steps lost, {len(found)} differing"
    measured("SIGTERM or SIGUSR1, fine-tuning", tries, told)
    assert tries == TRIES and max(lost) <= 1 and not found


@pytest.mark.parametrize("whom", ["torchrun", "one process"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda x: x.name)
def test_under_torchrun(long_run, tmp_path, measured, number, whom):
    """A launcher that kills what is still writing, or processes that it does not tell."""
    given = {"signals-to-handle": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"}
    running = start(long_run(*TWO), 2, **given)
    wait_for(lambda: last_step(tmp_path / "run") > 30, running)
    target = running.pid if whom == "torchrun" else workers(running)[-1]
    os.kill(target, number)
    said = running.communicate(timeout=60)[1]
    lost = last_step(tmp_path / "run") - step_of(newest_whole(tmp_path / "run"))
    measured(f"{number.name} to {whom} of two processes", 1, f"{lost} steps lost")
    assert lost <= 1 and "is saved, the same command goes on" in said
    assert whom == "torchrun" or f"exitcode  : {STOPPED}" in said
