"""What a run says to a tracker."""

import importlib
import sys

import run_pretrain
from m3ae.training.logs import read_log

# Keeps what it is told, as the real ones do elsewhere.
PACKAGE = """
told = []
def init(**given): told.append(("init", given))
def log(numbers, step): told.append(("log", step, numbers))
def finish(): told.append(("finish",))
"""


def test_a_tracker(small_run, tmp_path, monkeypatch):
    """Numbers that the tracker is not told, or at other steps; a second run for a resumed one."""
    (tmp_path / "wandb.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    for steps in (4, 6):
        assert run_pretrain.main(small_run("train.tracker=wandb", steps=steps)) == 0
    told = importlib.import_module("wandb").told
    starts = [one[1] for one in told if one[0] == "init"]
    assert len(starts) == 2 and starts[0]["id"] == starts[1]["id"] and "/" not in starts[0]["id"]
    assert all(one["resume"] == "allow" and one["project"] == "m3ae" for one in starts)
    assert starts[0]["config"]["optim.lr"] == 1e-3 and told[-1] == ("finish",)
    lines = read_log(tmp_path / "run", "train")
    logged = [one for one in told if one[0] == "log" and "train/loss" in one[2]]
    assert [step for _, step, _ in logged] == [line["step"] for line in lines] == [2, 4, 6]
    assert [numbers["train/loss"] for _, _, numbers in logged] == [line["loss"] for line in lines]


def test_a_tracker_that_is_not_installed(small_run, tmp_path, capsys):
    """A traceback, or a run that tracks nothing without a word."""
    assert run_pretrain.main(small_run("train.tracker=trackio")) == 2
    assert "train.tracker: trackio is not installed; pip install trackio" in capsys.readouterr().err
    assert not (tmp_path / "run/checkpoints").exists()
