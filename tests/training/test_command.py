"""How a run of several processes ends when one of them fails."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from m3ae.training import distributed
from tests.recipe import ROOT

# The second process fails while the first one waits for it.
SCRIPT = """
import sys
from types import SimpleNamespace
from m3ae.training.command import run_script

def body(config, processes, dry_run):
    if processes.rank == 1:
        {failure}
    processes.wait()

train = {{"threads": 1, "device": "cpu", "timeout_minutes": 5.0}}
train = SimpleNamespace(**train, tf32=True, deterministic=False)
config = SimpleNamespace(train=train, output="run")
sys.exit(run_script("", lambda *_: config, body, ["--config", "x"]))
"""


def run(tmp_path: Path, failure: str) -> tuple[subprocess.CompletedProcess, float]:
    """The script under torchrun on two Gloo processes, and the seconds it took."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(failure=failure))
    torchrun = Path(sys.executable).parent / "torchrun"
    command = [str(torchrun), "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done, time.monotonic() - started


@pytest.mark.parametrize(
    ("failure", "first", "said"),
    [
        ("raise ValueError('train.x: two\\n are one')", "error: train.x: two are one", None),
        (
            "raise RuntimeError('a bug')",
            "Traceback (most recent call last):",
            "RuntimeError: a bug",
        ),
    ],
)
def test_a_failure_ends_all(tmp_path, failure, first, said):
    """A run that hangs in a collective until somebody looks, its message after others' that lost
    their connection, or never; a bug that leaves one line; a mistake that leaves a page."""
    done, seconds = run(tmp_path, failure)
    lines = done.stderr.splitlines()
    assert lines[0] == first and done.returncode == 1 and seconds < 60
    if said:
        assert next(line for line in lines if line.startswith("RuntimeError")) == said


def test_without_a_failure(tmp_path):
    """A clean end that is none."""
    done, _ = run(tmp_path, "pass")
    assert done.returncode == 0 and not done.stderr


def test_devices(monkeypatch):
    """The second process of a machine with one GPU that ends in a traceback of CUDA's, or a run
    that was told to use a GPU and takes a CPU without a word."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert distributed.choose_device("auto", 0) == torch.device("cuda", 0)
    assert distributed.choose_device("cpu", 1) == torch.device("cpu")
    for name in ("auto", "cuda"):
        with pytest.raises(ValueError, match="process 1 of this host has no GPU, there are 1"):
            distributed.choose_device(name, 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert distributed.choose_device("auto", 3) == torch.device("cpu")
    with pytest.raises(ValueError, match=r"train\.device: cuda, but PyTorch sees no GPU"):
        distributed.choose_device("cuda", 0)
