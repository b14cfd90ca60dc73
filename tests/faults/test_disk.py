"""A disk that is full, read-only, or whose folder is taken away (tmpfs mounts: needs root)."""

import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import run_pretrain
from data_prep import roco
from m3ae.checkpoints import check_folder, checkpoints, step_of
from m3ae.training.logs import read_log
from tests.data_prep.test_prepare import ten
from tests.faults.runs import last_step, start, wait_for
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


def pretrain(arguments: list[str], **options) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    command = [sys.executable, str(ROOT / "run_pretrain.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True, **options)


def errors_of(ran: subprocess.CompletedProcess, run: Path) -> str:
    """The one line that names what could not be written; no traceback."""
    errors = [line for line in ran.stderr.splitlines() if line.startswith("error:")]
    assert ran.returncode == 2 and len(errors) == 1, ran.stderr[-2000:]
    # TensorBoard's own thread may tell its part before, with the lines where it was.
    said = re.sub(r"Exception in thread Thread-\d+.*?\n(?=\S*Error)", "", ran.stderr, flags=re.S)
    assert str(run) in errors[0] and "Traceback" not in said
    return errors[0]


@pytest.mark.parametrize("kib", [60, 1500, 2600, 3000])
def test_full(small_run, disk, tmp_path, measured, kib):
    """A traceback, a message that names no file, a last good checkpoint that is gone or half one
    that is taken for whole, a run that cannot go on once there is room."""
    run = disk(kib) / "run"
    said = errors_of(pretrain(small_run(f"output={run}", "train.checkpoint_every=4")), run)
    whole = checkpoints(run)
    for folder in whole:
        check_folder(folder)
        assert step_of(folder) == 4
    assert bool(whole) == (kib >= 2600)
    subprocess.run(["mount", "-o", "remount,size=50m", run.parent], check=True)
    assert run_pretrain.main(small_run(f"output={run}", "train.checkpoint_every=4")) == 0
    measured(f"disk of {kib} KiB full", 1, f"{len(whole)} checkpoints whole; {said[:60]}...")


def limited(size: int) -> Callable[[], None]:
    """No file may grow beyond so many bytes (a quota's nearest kin)."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_file_size_limit(small_run, tmp_path, measured):
    """A process that the limit's signal kills without a word."""
    arguments = small_run("train.checkpoint_every=4")
    run = tmp_path / "run"
    said = errors_of(pretrain(arguments, preexec_fn=limited(600_000)), run)
    assert not checkpoints(run) and "step-00000004: cannot be written (" in said
    assert run_pretrain.main(arguments) == 0
    measured("file-size limit", 1, said[-80:])


def test_going_on_without_checkpoints(small_run, tmp_path, measured):
    """A run that ends at its first full disk though it was told to go on, or that is silent; one
    whose last checkpoint is missing and that says it ended well."""
    arguments = small_run("train.checkpoint_every=4", "train.on_save_error=continue", steps=12)
    run = tmp_path / "run"
    said = errors_of(pretrain(arguments, preexec_fn=limited(600_000)), run)
    assert "step-00000012: cannot be written (" in said
    notes = [line["message"] for line in read_log(run, "note")]
    assert sum("cannot be written" in note for note in notes) >= 1
    assert [line["step"] for line in read_log(run, "train")][-1] == 12
    measured("on_save_error: continue", 1, "all steps taken, every failure noted, ends with 2")


@pytest.mark.parametrize("gone", ["deleted", "read-only"])
def test_folder_taken_away(small_run, disk, tmp_path, measured, gone):
    """A run that makes its folder anew without its log, or a traceback."""
    run = disk(50_000) / "run"
    arguments = small_run(f"output={run}", "train.log_every=1", "train.checkpoint_every=4")
    running = start([*arguments, "train.steps=2000"])
    wait_for(lambda: last_step(run) >= 6, running)
    if gone == "deleted":
        shutil.rmtree(run, ignore_errors=True)
    else:
        subprocess.run(["mount", "-o", "remount,ro", run.parent], check=True)
    ran = subprocess.CompletedProcess([], None, stderr=running.communicate(timeout=60)[1])
    ran.returncode = running.returncode
    said = errors_of(ran, run)
    if gone == "read-only":
        check_folder(checkpoints(run)[0])
        subprocess.run(["mount", "-o", "remount,rw", run.parent], check=True)
    measured(f"run folder {gone} under way", 1, said[:100])


def test_preparation(disk, tmp_path, capsys):
    """The same of shards."""
    raw, out = ten(tmp_path / "raw"), disk(100) / "out"
    arguments = ["--raw", str(raw), "--out", str(out), "--px", "288", "--workers", "0"]
    assert roco.main(arguments) == 1
    (error,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert "No space left" in error and str(out) in error
    subprocess.run(["mount", "-o", "remount,size=50m", out.parent], check=True)
    assert roco.main(arguments) == 0
