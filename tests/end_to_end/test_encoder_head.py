"""Fine-tuning with a head of encoder features: what is kept, trained, saved, loaded and drawn."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import run_finetune
from m3ae import features, predict
from m3ae.checkpoints import checkpoints
from m3ae.data.datasets import Pairs
from m3ae.models.heads import EncoderHead
from m3ae.scoring.predictions import read_predictions
from m3ae.training.logs import read_log
from tests.end_to_end.conftest import stop_after_saving
from tests.end_to_end.test_finetune import scores

HEAD = "head={reads: encoders, image_blocks: [1], width: 32, loss: cross_entropy}"
FROZEN = "train.freeze=[image_encoder, text_encoder]"


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(folder)[-1] / "model.safetensors")


def split_predictions(model, questions, path) -> list[dict]:
    done = ["--model", model, "--data", questions / "test", "--out", path, "--precision", "fp32"]
    assert predict.main([str(word) for word in done]) == 0
    return read_predictions(path)


@pytest.mark.parametrize("reads", ["encoders", "both"])
@pytest.mark.parametrize("image", ["own", "none"])
def test_features_kept_give_the_same_run(tune, tmp_path, monkeypatch, reads, image):
    """Pooled features of another row, with padding in them, or standardised by other figures; a
    picture decoded at every step though its features are kept."""
    more = [HEAD, f"head.reads={reads}", FROZEN, "train.log_every=1", f"data.image={image}"]
    decoded, real = [], Pairs.image
    monkeypatch.setattr(Pairs, "image", lambda *args: decoded.append(1) or real(*args))
    assert tune(*more, name="kept") == 0
    kept = len(decoded)
    monkeypatch.setattr(run_finetune, "encode_frozen", lambda *_: None)
    assert tune(*more, name="each") == 0
    images = json.loads((tmp_path / "kept/environment.json").read_text())["train_images"]
    assert kept <= 2 * images + 60 and (image == "none" or len(decoded) > 4 * kept)
    logs = [read_log(tmp_path / name, "train") for name in ("kept", "each")]
    assert len(logs[0]) > 10
    for one, other in zip(*logs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    for name in ("", "-other", "-none") if image == "own" else ("",):
        files = [tmp_path / run / f"predictions-strict{name}.jsonl" for run in ("kept", "each")]
        for one, other in zip(*map(read_predictions, files), strict=True):
            assert one["score"] == pytest.approx(other["score"], abs=5e-6), name


def test_only_what_is_read_is_kept_and_trained(tune, tmp_path):
    """All tokens kept for a head of pooled features; fusion moved by weight decay, or unnamed."""
    assert tune(HEAD, "train.epochs=1", "optim.lr=0.0", name="start") == 0
    assert tune(HEAD, FROZEN, "train.epochs=1") == 0
    before, after = weights(tmp_path / "start"), weights(tmp_path / "run")
    for name, tensor in before.items():
        stays = not name.startswith("vqa_head.") or name.endswith(("_mean", "_scale"))
        assert torch.equal(tensor, after[name]) == stays, name
    facts = json.loads((tmp_path / "run/environment.json").read_text())
    head = sum(
        after[name].numel()
        for name in after
        if name.endswith(("weight", "bias")) and name.startswith("vqa_head.")
    )
    assert facts["frozen_as_unread"] == "fusion" and facts["trained_parameters"] == head


def test_every_text_counts_once(tune, monkeypatch):
    """A question asked of a thousand pictures that alone sets the scale of all others."""
    given, real = [], EncoderHead.standardise
    monkeypatch.setattr(
        EncoderHead, "standardise", lambda *args: given.append(args[1:]) or real(*args)
    )
    assert tune(HEAD, FROZEN, "train.epochs=1", "protocol=paper") == 0
    ((texts, images),) = given
    assert len(texts) == len(texts.unique(dim=0)) < 209 and len(images) == 24


def test_resumed_while_the_encoders_train(tune, tmp_path, monkeypatch):
    """Inputs standardised anew by encoders that have moved since the start."""
    assert tune(HEAD, name="whole") == 0
    stop_after_saving(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        tune(HEAD, name="cut")
    monkeypatch.undo()
    assert tune(HEAD, name="cut") == 0
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())
    assert whole["vqa_head.image_mean"].abs().min() > 0
    assert scores(tmp_path / "whole") == scores(tmp_path / "cut")


def test_the_saved_model_is_the_evaluated_one(tune, tmp_path, questions, capsys):
    """A folder that forgets its head, blocks, loss or standardisation; an attention map drawn, or
    pairs written, of a fusion that has not been trained."""
    assert tune(HEAD, "train.epochs=1") == 0
    run = tmp_path / "run"
    wanted = read_predictions(run / "predictions-strict.jsonl")
    said = split_predictions(run, questions, tmp_path / "again.jsonl")
    assert [(row["id"], row["prediction"]) for row in said] == [
        (row["id"], row["prediction"]) for row in wanted
    ]
    for one, other in zip(said, wanted, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=2e-6)
    for init, name in ((run / "best-strict", "best"), (run, "last")):
        again = [HEAD, f"init={init}", "eval_only=true"]
        assert tune(*again, name=name) == 0
        assert scores(tmp_path / name)["strict"]["test"] == scores(run)["strict"]["test"]
        capsys.readouterr()
        assert tune(*again, "head.loss=binary", name="other") == 2
        message = "fine-tuned with head.loss cross_entropy, the config says binary"
        assert message in capsys.readouterr().err
    common = ["--model", str(run)]
    data = [*common, "--data", str(questions / "test"), "--out", str(tmp_path / "x.safetensors")]
    for what, code in (("image", 0), ("text", 0), ("pair", 2)):
        assert features.main([*data, "--what", what]) == code
    assert "head.reads: encoders" in capsys.readouterr().err
    picture = tmp_path / "x.png"
    Image.new("L", (64, 64), 90).save(picture)
    one = [*common, "--image", str(picture), "--question", "is it clear?"]
    assert predict.main(one) == 0
    assert predict.main([*one, "--attention", str(tmp_path / "map.png")]) == 2
    assert "no attention between text and image to draw" in capsys.readouterr().err


def test_a_folder_of_before_there_were_heads(tune, tmp_path, questions):
    """An older fine-tuned folder that no longer loads."""
    assert tune("train.epochs=1") == 0
    best = tmp_path / "run/best-strict"
    facts = json.loads((best / "downstream.json").read_text())
    (best / "state.json").unlink()
    assert facts.pop("head")["reads"] == "fusion"
    (best / "downstream.json").write_text(json.dumps(facts))
    assert tune(f"init={best}", "eval_only=true", name="check") == 0
    assert scores(tmp_path / "check")["strict"]["test"] == scores(best.parent)["strict"]["test"]
