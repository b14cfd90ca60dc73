"""One of several processes raises, stalls, dies, or meets a NaN; hosts that go and come back."""

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

import run_pretrain
from m3ae.training.logs import read_log
from tests.end_to_end.test_two_processes import PARTS, run_file, two
from tests.faults.runs import TORCHRUN, TWO, Forked, differing, last_step, start, wait_for, workers
from tests.long.test_hosts import ADDRESSES, NAMES, hosts  # noqa: F401
from tests.recipe import ROOT

# run_pretrain, of which the second process has an accident in its fifth step.
ACCIDENT = """
import os, sys, time
import run_pretrain
from m3ae.training.engine import Trainer
real, calls = Trainer.train_step, []
def step(self, batches):
    calls.append(1)
    if len(calls) == 5 and self.processes.rank == 1:
        {what}
    real(self, batches)
Trainer.train_step = step
sys.exit(run_pretrain.main())
"""
# A loading process that never gives its second batch.
LOADING = """
import sys, time
import run_pretrain
from m3ae.data.datasets import TrainBatches
real = TrainBatches.__getitem__
def get(self, item):
    if item == 5:
        time.sleep(1000)
    return real(self, item)
TrainBatches.__getitem__ = get
sys.exit(run_pretrain.main())
"""


def accident(tmp_path: Path, text: str, arguments: list[str], processes: int) -> tuple[str, float]:
    """What such a run says, and the seconds from its accident to its end."""
    (tmp_path / "run_accident.py").write_text(text)
    running = start(arguments, processes, script=str(tmp_path / "run_accident.py"))
    wait_for(lambda: last_step(tmp_path / "run") >= 4, running)
    began = time.monotonic()
    said = running.communicate(timeout=90)[1]
    assert running.returncode != 0
    return said, time.monotonic() - began


@pytest.mark.parametrize(
    ("what", "first"),
    [
        ("raise RuntimeError('the second process failed')", "the second process failed"),
        ("raise ValueError('a mistake of the second')", "error: a mistake of the second"),
        ("os.kill(os.getpid(), 9)", None),
        ("time.sleep(1000)", "nothing went on for 6 s"),
    ],
    ids=["raises", "mistake", "killed", "stalls"],
)
def test_an_accident_of_one_process(small_run, tmp_path, measured, what, first):
    """Processes that wait for ever for one that is gone, or whose complaints hide why."""
    given = [*TWO, "train.timeout_minutes=0.1", "train.log_every=1"]
    arguments = small_run(*given, steps=50)
    said, seconds = accident(tmp_path, ACCIDENT.format(what=what), arguments, 2)
    if first:
        complaints = [said.find(word) for word in ("Connection", "gloo", "SIGTERM", "signal")]
        assert 0 <= said.find(first) < min(at for at in [*complaints, len(said)] if at >= 0), said
    if "sleep" in what:  # both say where they are
        assert len(re.findall(r"error: process \d of 2 on \S+: nothing went on", said)) == 2
        assert "in step" in said and "run_accident.py" in said and "all_reduce" in said
    measured(f"one of two processes: {what}", 1, f"all ended {seconds:.0f} s later")
    assert seconds < 30


def test_a_loading_process_that_stalls(small_run, tmp_path, measured):
    """A run that waits for ever for a disk, or that does not say where."""
    given = ["train.timeout_minutes=0.1", "train.log_every=1", "data.workers=1"]
    said, seconds = accident(tmp_path, LOADING, small_run(*given, steps=50), 1)
    assert "error: process 0 of 1" in said and "in get" in said and "run_accident.py" in said
    measured("a loading process stalls", 1, f"stacks of all, ended {seconds:.0f} s later")
    assert seconds < 30


def test_not_finite_in_one_of_two(tmp_path, measured):
    """Weights that change in one process where the other saw a NaN."""
    for number in range(10):
        place = tmp_path / str(number)
        place.mkdir()
        (place / "parts.py").write_text(PARTS)
        said = two(place, [], partial(run_file, str(place / "parts.py")))
        found = [[x for x in text.splitlines() if x.startswith("[")] for text in said]
        assert found[0] == found[1] and len(found[0]) == 2
    measured("NaN on one of two processes", 10, "weights unchanged bit by bit, both agree")


def test_other_numbers_of_processes(long_run, tmp_path, measured):
    """Batches or masks that depend on how many processes draw them: 1 -> 2 -> 1, three times."""
    quiet = ["model.fusion.dropout=0", "model.text_encoder.attention_dropout=0"]
    quiet += ["model.text_encoder.dropout=0", "optim.lr=1e-4", "eval.batch=2"]
    main = run_pretrain.main
    assert Forked(main, long_run(*quiet, name="whole")).wait() == [0]
    worst = 0.0
    for number in range(3):
        name = f"cut-{number}"
        for count, until in ((1, 40 + 7 * number), (2, 110 + 7 * number), (1, None)):
            given = [*quiet, *(TWO if count == 2 else [])]
            running = Forked(main, long_run(*given, name=name), count, tmp_path / "said")
            if until is None:
                assert running.wait() == [0]
                break
            reached = wait_for(
                lambda name=name, until=until: last_step(tmp_path / name) > until, running
            )
            assert reached, (tmp_path / "said").read_text()[-2000:]
            for pid in running.pids:
                os.kill(pid, signal.SIGTERM)
            assert running.wait() == [75] * count
        one, other = ([x["loss"] for x in read_log(tmp_path / n, "train")] for n in ("whole", name))
        assert len(one) == len(other) == 200
        worst = max(worst, max(abs(a - b) / b for a, b in zip(other, one, strict=True)))
    measured("processes 1 -> 2 -> 1", 3, f"losses of 200 steps differ by {worst:.1e} at most")
    assert worst < 1e-5


def test_a_host_that_dies(long_run, tmp_path, hosts, measured):  # noqa: F811
    """A run of two hosts that waits for the lost one, or begins anew, or with other bits."""
    given = [*long_run(*TWO, name="whole")]
    assert Forked(run_pretrain.main, given, 2).wait() == [0, 0]
    arguments = long_run(*TWO, name="cut")

    def begin(number: int) -> subprocess.Popen:
        join = ["--nnodes", "2", "--nproc_per_node", "1", "--max-restarts", "9"]
        join += ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"{ADDRESSES[0]}:29512"]
        join += ["--rdzv_id", "1", "--local_addr", ADDRESSES[number]]
        join += ["--rdzv_conf", f"is_host={int(number == 0)}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": hosts[number]}
        # Else a host that comes new into a run waits for an address that the others gave at its
        # beginning alone.
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        command = ["ip", "netns", "exec", NAMES[number], TORCHRUN, *join]
        command += [str(ROOT / "run_pretrain.py"), *arguments]
        return subprocess.Popen(command, env=environment, stderr=sys.stderr, start_new_session=True)

    running = [begin(0), begin(1)]
    for step in (30, 70, 110):
        wait_for(lambda step=step: last_step(tmp_path / "cut") > step, running[0], 120)
        for pid in [*workers(running[1]), running[1].pid]:  # all at once
            os.kill(pid, signal.SIGKILL)
        running[1].wait()
        time.sleep(20)  # torchrun takes a host for dead after 15 s without a sign of life
        running[1] = begin(1)
    assert [process.wait(timeout=180) for process in running] == [0, 0]
    found = differing(tmp_path / "whole", tmp_path / "cut")
    measured("one host of two killed under torchrun", 3, f"{len(found)} differing, by itself")
    assert not found
