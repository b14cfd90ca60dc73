"""Long runs: memory and open files that grow, samples that are left out or read twice."""

import os
import signal
import subprocess
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import run_pretrain
from data_prep import phantoms, roco
from m3ae.checkpoints import newest_whole, step_of
from m3ae.training.engine import Trainer
from tests.faults.runs import Forked, last_step, start, wait_for


def memory_mib(pid: int) -> float:
    """Memory of a process, without the files that it maps."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def test_ten_thousand_steps(small_run, tmp_path, measured):
    """Something kept of each step, evaluation or checkpoint."""
    given = ["train.checkpoint_every=250", "eval.every=250", "train.log_every=50", "eval.samples=8"]
    given += ["train.batch_global=2", "train.batch_per_process=2", "eval.pictures=0"]
    given += ["eval.batch=2", "data.workers=0"]
    # Not forked: a fork's memory grows by what it no longer shares.
    running = start(small_run(*given, steps=10_000), stderr=subprocess.DEVNULL)
    pid, run, rows = running.pid, tmp_path / "run", []
    for step in range(1000, 10_000, 500):
        assert wait_for(lambda step=step: last_step(run) >= step, running, 600)
        # Between two checkpoints, so that none is being written.
        wait_for(lambda step=step: last_step(run) >= step + 150, running, 600)
        rows.append((step, memory_mib(pid), len(os.listdir(f"/proc/{pid}/fd"))))
    assert running.wait(300) == 0
    print(rows)
    growth = np.median([row[1] for row in rows[-4:]]) / np.median([row[1] for row in rows[:3]]) - 1
    files = {row[2] for row in rows}
    told = f"memory {100 * growth:+.2f} % after the first 1,000 steps, open files {sorted(files)}"
    measured("soak: 10,000 steps, 40 evaluations and checkpoints", 1, told)
    assert growth < 0.01 and max(files) - min(files) <= 1


@pytest.fixture()
def corpora(tmp_path):
    """Two prepared corpora of other sizes."""
    folders = []
    for name, size in (("one", 37), ("two", 22)):
        sizes = ["--train", str(size), "--validation", "4", "--test", "4", "--workers", "1"]
        raw, out = tmp_path / f"raw-{name}", tmp_path / name
        seed = ["--seed", str(size)]
        assert phantoms.main(["--out", str(raw), "--layouts", "roco", *sizes, *seed]) == 0
        given = ["--raw", str(raw / "roco"), "--out", str(out), "--px", "64", "--workers", "0"]
        assert roco.main(given) == 0
        folders.append(out / "train")
    return folders


def noting(run: Path, seen: Path, arguments: list[str]) -> int:
    """A run that notes the step and number of every sample that it trains on."""
    real, done = Trainer.train_step, [step_of(newest_whole(run) or Path("step-0"))]

    def train_step(self, batches):
        done[0] += 1
        with open(seen, "a") as file:
            for batch in batches:
                file.write("".join(f"{done[0]} {i}\n" for i in batch["index"].tolist()))
        real(self, batches)

    Trainer.train_step = train_step
    return run_pretrain.main(arguments)


def test_every_sample_once_an_epoch(small_run, tmp_path, corpora, measured):
    """A sample that a resumption leaves out or repeats: 5 epochs, 3 resumptions, 2 corpora."""
    given = [f"data.train=[{corpora[0]}, {corpora[1]}]", "data.workers=2", "train.log_every=1"]
    given += ["train.batch_global=8", "train.checkpoint_every=5"]
    steps, total = 5 * 59 // 8 + 1, 59
    seen = tmp_path / "seen"

    main = partial(noting, tmp_path / "run", seen)
    arguments = small_run(*given, steps=steps)
    for number, kill in enumerate((8, 17, 26)):
        running = Forked(main, arguments)
        wait_for(lambda kill=kill: last_step(tmp_path / "run") >= kill, running)
        if number % 2:
            os.kill(*running.pids, signal.SIGTERM)
            running.wait()
        else:
            running.kill()
        time.sleep(0.1)
    assert Forked(main, arguments).wait() == [0]
    # The last time that a step was taken is the one that counts.
    rows: dict[int, list[int]] = {}
    for line in seen.read_text().splitlines():
        step, index = map(int, line.split())
        rows.setdefault(step, []).append(index)
    order = [index for step in range(1, steps + 1) for index in rows[step][-8:]]
    for step, found in rows.items():
        assert all(
            found[i : i + 8] == found[:8] for i in range(0, len(found) - len(found) % 8, 8)
        ), step
    epochs = [Counter(order[start : start + total]) for start in range(0, 5 * total, total)]
    missing = sum(total - len(epoch) for epoch in epochs)
    twice = sum(number > 1 for epoch in epochs for number in epoch.values())
    measured(
        "samples of 5 epochs, 3 resumptions, 2 corpora", 1, f"{missing} missing, {twice} twice"
    )
    assert missing == twice == 0
