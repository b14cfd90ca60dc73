"""Checkpoints in the background, and which are kept."""

import json
import threading
from pathlib import Path

import pytest
import torch

from m3ae.checkpoints import check_folder, checkpoints, step_of
from m3ae.training.saving import HostCopy, Saver
from tests.faults.test_checkpoints import Words
from tests.recipe import tiny_config
from tests.training.test_loop import loop_of


class Kept(Saver):
    """Of the model of `loop_of`, which can be saved here."""

    def __init__(self, run: Path, *overrides: str) -> None:
        trainer = loop_of([1.0] * 4).trainer
        trainer.model.save_pretrained = lambda path, tokenizer, state: torch.save(
            state, path / "model.pt"
        )
        super().__init__(run, trainer, tiny_config(*overrides), Words())

    def steps(self) -> list[int]:
        self.wait()
        assert self.failure() is None
        return [step_of(folder) for folder in checkpoints(self.run)]


def test_which_are_kept(tmp_path):
    """A milestone or the best one deleted, or none ever."""
    losses = {3: 5.0, 6: 2.0, 9: 3.0, 12: 4.0}
    lines = [{"kind": "eval", "step": step, "loss": loss} for step, loss in losses.items()]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for overrides, kept in (
        ([], [12, 15]),
        (["train.keep_every=5"], [10, 12, 15]),
        (["train.keep_every=5", "train.keep_best=true"], [6, 10, 12, 15]),
        (["train.keep_checkpoints=1"], [15]),
    ):
        run = tmp_path / str(len(kept))
        run.mkdir()
        (run / "log.jsonl").write_text((tmp_path / "log.jsonl").read_text())
        saver = Kept(run, *overrides)
        for step in (3, 6, 9, 10, 12, 15):
            saver.save(step)
        assert saver.steps() == kept
        for folder in checkpoints(run):
            check_folder(folder)


def test_what_is_saved_is_of_its_step(tmp_path, monkeypatch):
    """Weights of a later step in a checkpoint that is written while the training goes on."""
    saver, go = Kept(tmp_path), threading.Event()
    real = saver.trainer.model.save_pretrained
    saver.trainer.model.save_pretrained = lambda *given: (go.wait(), real(*given))
    saver.save(1)
    with saver.trainer.still, torch.no_grad():  # as a step does
        saver.trainer.model.number.fill_(7)
    assert not checkpoints(tmp_path)
    go.set()
    assert saver.steps() == [1]
    assert torch.load(checkpoints(tmp_path)[0] / "model.pt")["number"].item() == 0
    saver.save(2)
    assert saver.steps() == [1, 2]
    assert torch.load(checkpoints(tmp_path)[1] / "model.pt")["number"].item() == 7


def test_copies_use_their_memory_again():
    """A copy that takes new memory each time, shares it with what it copies, or forgets values."""
    tree = {"a": torch.arange(3.0), "b": [torch.ones(2), 5, None]}
    copy = HostCopy()
    first = copy(tree)
    place = first["a"].data_ptr()
    assert place != tree["a"].data_ptr() and first["b"][1:] == [5, None]
    tree["a"] += 1
    assert first["a"].tolist() == [0, 1, 2]
    second = copy(tree)
    assert second["a"].data_ptr() == place and second["a"].tolist() == [1, 2, 3]
    tree["a"] = torch.zeros(4)
    assert copy(tree)["a"].tolist() == [0, 0, 0, 0]


def test_a_run_folder_that_is_gone(tmp_path):
    """A folder made anew, without its log, around one checkpoint."""
    saver = Kept(tmp_path / "gone")
    saver.save(1)
    saver.wait()
    assert "step-00000001: cannot be written (" in str(saver.failure())
    assert saver.failure() is None and not (tmp_path / "gone").exists()


@pytest.mark.parametrize("on_error", ["stop", "continue"])
def test_when_one_cannot_be_written(tmp_path, on_error):
    """A failure noticed at the end of the run, or never."""
    loop = loop_of([1.0] * 6)
    (tmp_path / "checkpoints").write_text("no folder")
    loop.saver = saver = Kept(tmp_path, f"train.on_save_error={on_error}")
    loop.__post_init__()
    steps = []
    with pytest.raises(OSError, match="cannot be written"), loop:
        for step, batches in loop:
            loop.trainer.train_step(batches)
            steps.append(step)
            saver.save(step)
            saver.wait()
    assert steps == ([1] if on_error == "stop" else [1, 2, 3, 4, 5, 6])
    assert len(loop.notes) == (0 if on_error == "stop" else 5)
