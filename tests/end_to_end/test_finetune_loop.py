"""The loop of run_finetune: what it logs, how it is computed, where it stops."""

import json

import pytest

from m3ae.checkpoints import checkpoints
from m3ae.data.shards import Shards
from m3ae.models import switches
from m3ae.scoring.predictions import read_trained_on
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
    real = switches.checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(switches, "checkpoint", lambda *a, **k: calls.append(1) or real(*a, **k))
        again = "model.activation_checkpointing=true"
        assert tune("train.epochs=1", again, name="recomputed") == 0
    assert calls
    assert tune("train.epochs=1", name="plain") == 0
    losses = [read_log(tmp_path / name, "train")[-1]["loss"] for name in ("recomputed", "plain")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    saved = json.loads((checkpoints(tmp_path / "recomputed")[-1] / "config.json").read_text())
    assert "activation_checkpointing" not in saved["model"]


def test_few_images(tune, tmp_path, questions):
    """Strata, baselines or an answer list of rows that a run with few images never saw."""
    assert tune("train.epochs=1", "data.fraction=0.2") == 0
    run, train = tmp_path / "run", Shards(questions / "train")
    facts = json.loads((run / "environment.json").read_text())
    ids = read_trained_on(run / "trained_on.txt")
    keys = {train.text_key(row): row for row in range(len(train))}
    images = {int(train.image_of_text[keys[name]]) for name in ids}
    assert len(ids) == facts["train_rows"] < 0.5 * len(train)
    assert len(images) == facts["train_images"] < 0.3 * train.num_images
    assert json.loads((run / "evaluation.json").read_text())["trained_on"]["rows"] == len(ids)
    known = json.loads((run / "best-strict/downstream.json").read_text())["known"]["strict"]
    assert known == sorted({train.fields(keys[name])["label"] for name in ids})


def test_epochs_between_evaluations(tune, tmp_path, capsys):
    """An epoch selected that was not evaluated, a last one that is not, or other weights."""
    assert tune("protocol=paper", "train.epochs=5", "eval.every=2") == 0
    run = tmp_path / "run"
    lines = read_log(run, "eval")
    assert [line["epoch"] for line in lines] == [2, 4, 5]
    result = json.loads((run / "evaluation.json").read_text())
    entry, values = result["paper"], [line["test/paper/overall"] for line in lines]
    assert result["epochs"] == 5 and entry["last_epoch"] == values[-1]
    assert entry["best_on_test"] == max(values)
    assert entry["epoch"] == lines[values.index(max(values))]["epoch"]
    assert tune("protocol=paper", "train.epochs=5", name="each") == 0
    each = {line["epoch"]: line for line in read_log(tmp_path / "each", "eval")}
    assert [each[line["epoch"]]["test/paper/overall"] for line in lines] == values
    # It decides what can be selected, so it is no key that may change on the way.
    assert tune("protocol=paper", "train.epochs=5", "eval.every=1") == 2
    assert "eval.every (2 there, 1 now)" in capsys.readouterr().err
