"""The loop of run_finetune: what it logs, how it is computed, where it stops."""

import json

import pytest

from m3ae.data.shards import Shards
from m3ae.models import m3ae
from m3ae.training.checkpoint import checkpoints
from m3ae.training.logs import read_log


def test_log_lines_say_how_fast(tune, tmp_path):
    """A log of fine-tuning that lacks what pre-training's has, or the time spent evaluating."""
    assert tune("train.epochs=1") == 0
    lines = read_log(tmp_path / "run", "train")
    wanted = {"samples", "seconds", "data_wait_s", "samples_per_s", "peak_memory_gib", "grad_norm"}
    assert all(wanted <= line.keys() for line in lines)
    assert all(0 <= line["data_wait_s"] <= line["seconds"] for line in lines)
    assert lines[-1]["samples"] == 32 * lines[-1]["step"]


def test_a_loss_that_is_not_finite_names_its_samples(tune, tmp_path, questions, capsys):
    """A message that does not say which question to look at, or training on after a NaN."""
    assert tune("optim.lr=1e38", "optim.clip_norm=null") == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    train = Shards(questions / "train")
    assert "not finite" in message and "optim.lr" in message
    assert any(f"vqa_loss of {train.text_key(row)}" in message for row in range(len(train)))
    assert not (tmp_path / "run" / "evaluation.json").exists()


def test_blocks_are_computed_as_asked(tune, tmp_path):
    """A switch of fine-tuning that is read and forgotten, or that the saved model remembers."""
    calls = []
    real = m3ae.checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(m3ae, "checkpoint", lambda *a, **k: calls.append(1) or real(*a, **k))
        again = "model.activation_checkpointing=true"
        assert tune("train.epochs=1", again, name="recomputed") == 0
    assert calls
    assert tune("train.epochs=1", name="plain") == 0
    losses = [read_log(tmp_path / name, "train")[-1]["loss"] for name in ("recomputed", "plain")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    saved = json.loads((checkpoints(tmp_path / "recomputed")[-1] / "config.json").read_text())
    assert "activation_checkpointing" not in saved["model"]
