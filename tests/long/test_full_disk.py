"""A disk that is full: a tmpfs of a few megabytes (`make test-long`; needs root)."""

import json
import os
import subprocess
import sys

import pytest

import run_pretrain
from data_prep import roco
from m3ae.checkpoints import checkpoints
from tests.data_prep.test_prepare import ten
from tests.recipe import ROOT


@pytest.fixture()
def disk(tmp_path):
    """Mounts a file system of so many KiB."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(kib: int):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "m3ae", place], check=True)
        return place

    yield mount
    subprocess.run(["umount", place], check=False, capture_output=True)


def pretrain(arguments: list[str]) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    command = [sys.executable, str(ROOT / "run_pretrain.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("kib", [60, 1500, 2600, 3000])
def test_pretraining(small_run, disk, tmp_path, kib):
    """A traceback, a message that names no file, a last good checkpoint that is gone or half one
    that is taken for whole, a run that cannot go on once there is room."""
    run = disk(kib) / "run"
    ran = pretrain(small_run(f"output={run}", "train.checkpoint_every=4"))
    errors = [line for line in ran.stderr.splitlines() if line.startswith("error:")]
    assert ran.returncode == 2 and len(errors) == 1, ran.stderr[-2000:]
    assert str(run) in errors[0] and "Traceback" not in ran.stderr
    whole = checkpoints(run)
    for folder in whole:
        assert json.loads((folder / "state.json").read_text())["step"] == 4
    assert bool(whole) == (kib >= 2600)
    subprocess.run(["mount", "-o", "remount,size=50m", run.parent], check=True)
    assert run_pretrain.main(small_run(f"output={run}", "train.checkpoint_every=4")) == 0


def test_preparation(disk, tmp_path, capsys):
    """The same of shards."""
    raw, out = ten(tmp_path / "raw"), disk(100) / "out"
    arguments = ["--raw", str(raw), "--out", str(out), "--px", "288", "--workers", "0"]
    assert roco.main(arguments) == 1
    (error,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert "No space left" in error and str(out) in error
    subprocess.run(["mount", "-o", "remount,size=50m", out.parent], check=True)
    assert roco.main(arguments) == 0
