"""Signals and stalls, in processes forked for it; many more in tests/faults."""

import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

import run_finetune
import run_pretrain
from m3ae.checkpoints import newest_whole, step_of
from m3ae.training.distributed import Processes
from m3ae.training.stopping import STOPPED, Stop, StoppedError
from tests.faults.conftest import long_tune  # noqa: F401
from tests.faults.runs import Forked, differing, last_step, wait_for
from tests.training.test_distributed import ALONE


def test_a_signal_saves_and_ends(small_run, tmp_path):
    """A run that a scheduler ends without a checkpoint, in silence, or that goes on otherwise."""
    given = ["train.checkpoint_every=1000", "eval.every=10", "train.log_every=1"]
    given += ["train.batch_per_process=4", "model.fusion.dropout=0.1"]
    main, run = run_pretrain.main, tmp_path / "cut"
    for number, least in ((signal.SIGTERM, 5), (signal.SIGUSR1, 12)):
        running = Forked(main, small_run(*given, name="cut", steps=24), 1, tmp_path / "said")
        reached = wait_for(lambda least=least: last_step(run) >= least, running)
        assert reached, (tmp_path / "said").read_text()[-2000:]
        os.kill(*running.pids, number)
        assert running.wait() == [STOPPED]
        step = step_of(newest_whole(run))
        assert least <= last_step(run) == step < 24
        assert f"step {step} is saved, the same command" in (tmp_path / "said").read_text()
    assert Forked(main, small_run(*given, name="cut", steps=24)).wait() == [0]
    assert Forked(main, small_run(*given, name="whole", steps=24)).wait() == [0]
    assert not differing(tmp_path / "whole", run)


def test_a_signal_in_an_evaluation(long_tune, tmp_path):  # noqa: F811
    """An epoch that is in the log though it was not measured, or measured twice."""
    main, run = run_finetune.main, tmp_path / "cut"
    running = Forked(main, long_tune("train.epochs=3", name="cut"), 1, tmp_path / "said")
    predictions = run / "predictions"
    wait_for(lambda: last_step(run) > 0 and not any(predictions.glob("epoch-*")), running)
    begun = wait_for(lambda: last_step(run) % 7 == 0 or any(predictions.glob("epoch-*")), running)
    assert begun, (tmp_path / "said").read_text()[-2000:]
    os.kill(*running.pids, signal.SIGTERM)
    assert running.wait() == [STOPPED], (tmp_path / "said").read_text()
    assert Forked(main, long_tune("train.epochs=3", name="cut")).wait() == [0]
    assert Forked(main, long_tune("train.epochs=3", name="whole")).wait() == [0]
    assert not differing(tmp_path / "whole", run)


def preparing(place: Path, _: list[str]) -> int:
    """A command that takes long before its loop."""
    with Stop().on_signals():
        (place / "ready").touch()
        time.sleep(60)
    return 0


def stalling(_: list[str]) -> int:
    """A command that stops going on after a while, which is longer than the limit."""
    stop = Stop()
    with stop.watched(0.01, "process 0 of 1"):
        for _ in range(8):
            time.sleep(0.1)
            stop.beat()
        time.sleep(60)
    return 0


def test_outside_the_loop_a_signal_ends_at_once(tmp_path):
    """A command that a scheduler cannot end while it prepares or draws its report."""

    running = Forked(partial(preparing, tmp_path), [], 1, tmp_path / "said")
    wait_for((tmp_path / "ready").exists, running)
    os.kill(*running.pids, signal.SIGTERM)
    assert running.wait(10) == [STOPPED]
    assert "stopped by SIGTERM; the same command goes on" in (tmp_path / "said").read_text()


def test_a_stall_shows_its_stacks(tmp_path):
    """A run that hangs for ever on a disk or a peer, and does not say where."""

    began = time.monotonic()
    running = Forked(stalling, [], 1, tmp_path / "said")
    assert running.wait(30) == [1] and time.monotonic() - began > 1
    said = (tmp_path / "said").read_text()
    assert "error: process 0 of 1: nothing went on for 1 s" in said and " in stalling\n" in said


def test_signals_are_handled_as_before_afterwards():
    """A program that calls a run from Python and cannot be ended any more."""
    before = signal.getsignal(signal.SIGTERM)
    with Stop().on_signals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_rounds_end_where_a_signal_asked():
    """Batches of an evaluation that goes on, or are left out where nobody asked."""
    stop = Stop()
    processes = Processes(0, 0, 1, ALONE.device, 1, stop)
    assert list(processes.rounds([1, 2, 3])) == [1, 2, 3]
    found = []
    with pytest.raises(StoppedError):
        for batch in processes.rounds([1, 2, 3]):
            found.append(batch)
            stop.asked = batch == 2
    assert found == [1, 2]
