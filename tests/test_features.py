"""`python -m m3ae.features`: the right features under the right keys."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from m3ae import features
from m3ae.data.shards import Shards
from m3ae.downstream.features import extract
from m3ae.downstream.trained import load_trained
from tests.test_predict import corpus, models  # noqa: F401  (fixtures)


def run(capsys, *args: object) -> tuple[int, str]:
    capsys.readouterr()
    code = features.main([str(arg) for arg in args])
    return code, capsys.readouterr().err


def by_hand(trained, split: Shards, what: str, pool: str) -> torch.Tensor:
    """The same features one row at a time, without padding: float32 (n, D)."""
    rows = []
    model, tokenizer = trained.model, trained.tokenizer
    for row in range(split.num_images if what == "image" else len(split)):
        image = row if what == "image" else int(split.image_of_text[row])
        pixels = torch.from_numpy(split.image(image, trained.image_px))[None]
        ids = tokenizer(split.text(row), add_special_tokens=False)["input_ids"]
        ids = ids[: trained.text_length - 2]
        ids = torch.tensor([[tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]])
        keep = torch.ones_like(ids).bool()
        with torch.no_grad():
            shown = model.image_encoder(model.normalise(pixels))
            text = model.text_encoder(ids, keep)
            if what == "pair":
                pair = model.encode_pair(pixels, ids, keep)
                means = torch.cat([pair.text.mean(dim=1), pair.image[:, 1:].mean(dim=1)], dim=1)
                found = pair.pooled if pool == "cls" else means
            elif what == "image":
                found = shown[:, 0] if pool == "cls" else shown[:, 1:].mean(dim=1)
            else:
                found = text[:, 0] if pool == "cls" else text.mean(dim=1)
        rows.append(found[0])
    return torch.stack(rows)


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("what", ["image", "text", "pair"])
@pytest.mark.parametrize("model", ["pre", "vqa"])
def test_features_of_each_row(corpus, models, tmp_path, capsys, model, what, pool):  # noqa: F811
    """Padding in a mean, CLS among the patches, rows of other keys, dropout, halves swapped."""
    out, data = tmp_path / "new" / "f.safetensors", corpus / "vqa" / "test"
    code, err = run(
        capsys,
        "--model",
        models / model,
        "--data",
        data,
        "--what",
        what,
        "--out",
        out,
        "--pool",
        pool,
        "--batch",
        4,
    )
    assert code == 0, err
    found, keys = features.read_features(out)
    split = Shards(data)
    wanted = by_hand(load_trained(models / model), split, what, pool)
    torch.testing.assert_close(torch.from_numpy(found), wanted, atol=1e-5, rtol=1e-4)
    different = {"image": 2, "text": 3, "pair": 6}[what]  # 2 images, each with 3 questions
    assert len(np.unique(wanted.round(decimals=4), axis=0)) == different
    assert found.dtype == np.float32
    count = split.num_images if what == "image" else len(split)
    key = split.image_key if what == "image" else split.text_key
    assert keys == [key(row) for row in range(count)]
    with safe_open(str(out), framework="numpy") as file:
        facts = file.metadata()
    assert (facts["what"], facts["pool"], facts["image_px"]) == (what, pool, "32")
    assert facts["text_length"] == ("20" if model == "pre" else "12")
    assert json.loads(facts["keys"]) == keys


def test_shards_of_another_size(corpus, models, tmp_path, capsys):  # noqa: F811
    """Positions of the wrong grid, no word of the resize, or a resize that nobody needs."""
    from data_prep import pairs

    for px, encoding in ((48, "raw"), (48, "jpeg"), (40, "raw")):
        assert (
            pairs.main(
                [
                    "--raw",
                    str(corpus / "raw"),
                    "--table",
                    str(corpus / "texts.csv"),
                    "--out",
                    str(tmp_path / f"{encoding}{px}"),
                    "--px",
                    str(px),
                    "--workers",
                    "0",
                    "--encoding",
                    encoding,
                ]
            )
            == 0
        )
    out = tmp_path / "f.safetensors"
    args = ["--model", models / "vqa", "--what", "image", "--out", out, "--data"]
    code, err = run(capsys, *args, tmp_path / "raw48/test")
    assert code == 0 and "trained at 32 px, positions resized to 48 px" in err
    found, _ = features.read_features(out)
    trained = load_trained(models / "vqa", image_px=48)
    wanted = by_hand(trained, Shards(tmp_path / "raw48/test"), "image", "cls")
    torch.testing.assert_close(torch.from_numpy(found), wanted, atol=1e-5, rtol=1e-4)
    code, err = run(capsys, *args, tmp_path / "jpeg48/test")
    assert code == 0 and "resized" not in err and "images of 32 px" in err
    code, err = run(capsys, *args, tmp_path / "raw40/test")
    assert code == 2 and "images of 40 px are no multiple" in err and "own 32 px" in err


@pytest.mark.parametrize(
    "args, message",
    [
        (("--model", "{c}", "--data", "{c}/vqa/test"), "neither a run"),
        (("--model", "{m}/pre", "--data", "{c}/vqa"), "no prepared split"),
        (("--model", "{m}/pre", "--data", "{c}/vqa/test", "--batch", "0"), "--batch 0"),
        (("--model", "{m}/pre", "--data", "{c}/vqa/test", "--text-length", "99"), "3 to 40 tokens"),
        (("--model", "{m}/pre", "--data", "{c}/vqa/test", "--out", "{c}"), "a folder"),
    ],
)
def test_mistakes(corpus, models, tmp_path, capsys, args, message):  # noqa: F811
    """A traceback, or a file written all the same."""
    filled = [arg.format(m=models, c=corpus) for arg in args]
    out = tmp_path / "f.safetensors"
    code, err = run(capsys, "--out", out, "--what", "text", *filled)
    assert code == 2 and message in err and err.count("error: ") == 1
    assert not list(tmp_path.iterdir())


def test_not_finite_is_no_feature(corpus, models):  # noqa: F811
    """A file of NaN that is noticed weeks later."""
    trained = load_trained(models / "pre")
    with torch.no_grad():
        trained.model.text_encoder.embedding_norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"6 features are not finite, e\.g\. of 2\.png/"):
        extract(trained, str(corpus / "vqa" / "test"), "text", "cls", 32, "fp32")


def test_reading_something_else(tmp_path):
    """A traceback of another library for a file that holds no features."""
    (tmp_path / "x").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a file of m3ae"):
        features.read_features(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        features.read_features(tmp_path / "y")


def test_help(capsys):
    """A help text that argparse cannot format."""
    with pytest.raises(SystemExit, match="0"):
        features.main(["--help"])
    assert "--pool" in capsys.readouterr().out
