"""Fine-tuning with frozen parts: what stays, what is trained, features computed once."""

import pytest
import torch
from safetensors.torch import load_file

import run_finetune
import run_pretrain
from m3ae.checkpoints import checkpoints
from m3ae.data.datasets import Pairs
from m3ae.data.texts import load_tokenizer
from m3ae.downstream.config import load_finetune_config
from m3ae.downstream.data import Questions
from m3ae.downstream.frozen import FrozenFeatures
from m3ae.downstream.starting import build_downstream, read_init
from m3ae.scoring.predictions import read_predictions
from m3ae.training.distributed import Processes
from m3ae.training.logs import read_log
from tests.conftest import SMALL
from tests.end_to_end.conftest import stop_after_saving
from tests.end_to_end.test_finetune import scores
from tests.recipe import ROOT

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


@pytest.mark.parametrize("image", ["own", "none"])
def test_features_computed_once_change_nothing(tune, tmp_path, monkeypatch, image):
    """Features of another text or image, cut elsewhere, or drawn with the encoder's dropout; in
    the arms, those of one's own image."""
    more = [ENCODERS, "train.log_every=1", f"data.image={image}"]
    assert tune(*more, name="once") == 0
    monkeypatch.setattr(run_finetune, "encode_frozen", lambda *_: None)
    assert tune(*more, name="always") == 0
    logs = [read_log(tmp_path / name, "train") for name in ("once", "always")]
    assert len(logs[0]) > 10
    for one, other in zip(*logs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    evaluated = [
        [line | {"seconds": None} for line in read_log(tmp_path / name, "eval")]
        for name in ("once", "always")
    ]
    assert evaluated[0] == evaluated[1]
    for name in ("", "-other", "-none") if image == "own" else ("",):
        files = [tmp_path / run / f"predictions-strict{name}.jsonl" for run in ("once", "always")]
        for one, other in zip(*map(read_predictions, files), strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=2e-6), name
    always = weights(tmp_path / "always")
    for name, tensor in weights(tmp_path / "once").items():
        torch.testing.assert_close(tensor, always[name], rtol=1e-4, atol=1e-4)


def test_resumed_with_frozen_encoders(tune, tmp_path, monkeypatch):
    """An optimiser whose state is matched with other parameters, or features that differ."""
    assert tune(ENCODERS, name="whole") == 0
    stop_after_saving(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        tune(ENCODERS, name="cut")
    monkeypatch.undo()
    assert tune(ENCODERS, name="cut") == 0
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())
    assert scores(tmp_path / "whole") == scores(tmp_path / "cut")


def test_augmented_images_are_not_kept(questions, shards):
    """An augmentation that does nothing, because every epoch reads the features of one crop."""
    sizes = tuple(line for line in SMALL if line.startswith("model."))
    config = load_finetune_config(
        ROOT / "configs/finetune/finetune.yaml",
        [
            f"architecture={ROOT}/configs/pretrain/quickstart.yaml",
            f"architecture_set={list(sizes)}",
            "data={image_px: 64, text_length: 24, augmentation: resized_crop}",
            ENCODERS,
        ],
    )
    model = build_downstream(config, read_init(config), ["yes", "no"])
    tokenizer = load_tokenizer(shards / "tokenizer")
    split = Questions(Pairs([str(questions / "test")], tokenizer, 24, 64))
    alone = Processes(0, 0, 1, torch.device("cpu"))
    features = FrozenFeatures(model, split, config, alone, "fp32")
    assert not features.image and len(features.text["text_features"]) == len(split)
    rows = split.rows[:2].tolist()
    assert "image_features" not in features.of(rows, rows, 24)
    assert len(features.of(rows, None, 24)["image_features"]) == 2  # the mean image is no crop


def test_retrieval_with_frozen_encoders(small_run, tune, shards, tmp_path):
    """Features kept for texts that are drawn anew, or an encoder that is trained all the same."""
    assert run_pretrain.main(small_run(steps=4)) == 0
    folders = [
        f"data.{name}={shards}/{split}"
        for name, split in (("train", "train"), ("valid", "valid"), ("test", "test"))
    ]
    assert (
        tune(
            f"init={tmp_path}/run",
            "data.false_texts=3",
            "data.augmentation=none",
            *folders,
            "train={freeze: [image_encoder, text_encoder], epochs: 1}",
            name="irtr",
            config="roco_retrieval",
        )
        == 0
    )
    before, after = weights(tmp_path / "run"), weights(tmp_path / "irtr")
    for name in before.keys() & after.keys():
        stays = name.startswith(("image_encoder.", "text_encoder."))
        assert torch.equal(before[name], after[name]) == stays, name


def test_another_part(tune, capsys):
    """A misspelt part that is silently trained."""
    assert tune("train.freeze=[encoders]") == 2
    assert "train.freeze[0]: 'encoders' is not one of image_encoder" in capsys.readouterr().err
