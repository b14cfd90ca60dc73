"""Fine-tuning with frozen parts: what stays, what is trained, features computed once."""

import pytest
import torch
from safetensors.torch import load_file

import run_finetune
from m3ae.training.checkpoint import checkpoints
from m3ae.training.logs import read_log
from tests.end_to_end.test_finetune import scores

ENCODERS = "train={freeze: [image_encoder, text_encoder], answer_bias: prior}"


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(folder)[-1] / "model.safetensors")


@pytest.mark.parametrize("frozen", ["image_encoder", "image_encoder, text_encoder, fusion"])
def test_frozen_parts_keep_their_weights(tune, tmp_path, frozen):
    """A part that is trained though frozen (by weight decay, say), or the other way round."""
    assert tune("optim.lr=0.0", "train.epochs=1", name="start") == 0
    assert tune(f"train.freeze=[{frozen}]", "train.epochs=1", name="frozen") == 0
    before, after = weights(tmp_path / "start"), weights(tmp_path / "frozen")
    for name, tensor in before.items():
        stays = name.partition(".")[0] in frozen.split(", ")
        assert torch.equal(tensor, after[name]) == stays, name


def test_features_computed_once_change_nothing(tune, tmp_path, monkeypatch):
    """Features of another text or image, cut elsewhere, or drawn with the encoder's dropout."""
    assert tune(ENCODERS, "train.log_every=1", name="once") == 0
    monkeypatch.setattr(run_finetune, "encode_frozen", lambda *_: None)
    assert tune(ENCODERS, "train.log_every=1", name="always") == 0
    logs = [read_log(tmp_path / name, "train") for name in ("once", "always")]
    assert len(logs[0]) > 10
    for one, other in zip(*logs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    evaluated = [read_log(tmp_path / name, "eval") for name in ("once", "always")]
    assert evaluated[0] == evaluated[1]
    always = weights(tmp_path / "always")
    for name, tensor in weights(tmp_path / "once").items():
        torch.testing.assert_close(tensor, always[name], rtol=1e-4, atol=1e-4)


def test_resumed_with_frozen_encoders(tune, tmp_path, monkeypatch):
    """An optimiser whose state is matched with other parameters, or features that differ."""
    assert tune(ENCODERS, name="whole") == 0
    real = run_finetune.save_checkpoint

    def save_and_stop(*args, **kwargs):
        real(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(run_finetune, "save_checkpoint", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        tune(ENCODERS, name="cut")
    monkeypatch.setattr(run_finetune, "save_checkpoint", real)
    assert tune(ENCODERS, name="cut") == 0
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())
    assert scores(tmp_path / "whole") == scores(tmp_path / "cut")


def test_another_part(tune, capsys):
    """A misspelt part that is silently trained."""
    assert tune("train.freeze=[encoders]") == 2
    assert "train.freeze[0]: 'encoders' is not one of image_encoder" in capsys.readouterr().err
