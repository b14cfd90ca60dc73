"""docs/backbone.md word for word: its snippets, and a head from outside the repository."""

import math
import re
import shutil
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import run_pretrain
from data_prep import pairs
from m3ae import predict
from m3ae.checkpoints import last_checkpoint
from m3ae.config import load_config
from m3ae.data.shards import Shards
from m3ae.data.texts import load_tokenizer
from m3ae.downstream.model import read_facts
from m3ae.models import build_model
from m3ae.predictor import Predictor
from m3ae.scoring.predictions import read_predictions
from m3ae.training.logs import read_log
from tests.conftest import SMALL
from tests.end_to_end.conftest import stop_after_saving, tune  # noqa: F401  (a fixture)
from tests.recipe import ROOT
from tests.test_docs import commands

PAGE = (ROOT / "docs/backbone.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
(MODULE,) = [text for text in SNIPPETS if text.startswith("# my_heads.py")]


@pytest.fixture()
def heads(tmp_path, monkeypatch):
    """`my_heads` in a folder outside the repository, on the path and not imported."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "my_heads.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "my_heads", raising=False)
    yield folder
    sys.modules.pop("my_heads", None)


def test_snippets_run(shards, questions, tmp_path, monkeypatch):
    """A call that was renamed, another shape than the page says."""
    monkeypatch.chdir(tmp_path)
    sizes = [line for line in SMALL if line.startswith("model.")]
    sizes += ["model.image_encoder.depth=2", "model.text_encoder.depth=2"]
    config = load_config(ROOT / "configs/pretrain/quickstart.yaml", sizes)
    model = build_model(config)
    model.save_pretrained(tmp_path / "runs/quickstart", load_tokenizer(shards / "tokenizer"))
    shutil.copytree(questions, tmp_path / "data/mine")
    Image.new("L", (80, 70), 90).save("x.png")
    found = {}
    for text in SNIPPETS:
        if text != MODULE:
            exec(text, found)
    length, tokens = found["ids"].shape[1], 17
    assert [tuple(x.shape) for x in found["blocks"]] == [(2, tokens, 32)] * 2
    assert [tuple(x.shape) for x in found["words"]] == [(2, length, 32)] * 2
    pair = found["pair"]
    assert torch.allclose(found["layers"][-1][0], pair.text, atol=1e-5)
    assert torch.allclose(found["layers"][-1][1], pair.image, atol=1e-5)
    assert found["attention"].shape == (2, length, tokens)
    assert torch.allclose(found["attention"].sum(-1), torch.ones(2, length))
    changed = found["model"].state_dict()
    for name, before in model.state_dict().items():
        if name.startswith("image_encoder."):
            assert torch.equal(before, changed[name]), name
    assert found["loss"].isfinite()


def test_a_head_from_outside_resumes(tune, heads, tmp_path, monkeypatch, capsys):  # noqa: F811
    """A head that only this repository's files can name; a resumed run of other weights."""
    own = ["task=my_heads.Attentive", "protocol=strict"]
    assert tune(*own, name="whole") == 0
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after_saving(patch, 1)
        tune(*own, name="parts")
    assert not (tmp_path / "parts/evaluation.json").exists()
    assert tune(*own, name="parts") == 0
    files = [tmp_path / name / "best-strict/model.safetensors" for name in ("whole", "parts")]
    weights, others = map(load_file, files)
    assert weights.keys() == others.keys() and "vqa_head.attention.in_proj_weight" in weights
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    rows = [
        read_predictions(tmp_path / f"{x}/predictions-strict.jsonl") for x in ("whole", "parts")
    ]
    assert rows[0] == rows[1]

    # Used: by whoever imports the head, and by nobody whom a folder would make to.
    Image.new("L", (80, 70), 90).save(tmp_path / "x.png")
    sys.modules.pop("my_heads")
    with pytest.raises(ValueError, match="import my_heads first"):
        Predictor.from_pretrained(tmp_path / "whole")
    ask = ["--model", tmp_path / "whole", "--image", tmp_path / "x.png", "--question", "is it?"]
    assert predict.main([str(word) for word in [*ask, "--task", "my_heads.Attentive"]]) == 0
    assert "answer" in capsys.readouterr().out
    again = ["eval_only=true", f"init={tmp_path}/whole/best-strict", "protocol=strict"]
    assert tune(*again, own[0], name="again") == 0
    assert read_predictions(tmp_path / "again/predictions-strict.jsonl") == rows[0]
    assert tune(*again, name="other") == 2
    assert "my_heads.Attentive" in capsys.readouterr().err


def test_another_loss(tune, heads, tmp_path, capsys):  # noqa: F811
    """A loss of one's own that is not trained; features cached that a head does not read."""
    own = ["train.epochs=1", "protocol=strict", "train.freeze=[image_encoder]"]
    assert tune("task=my_heads.Smoothed", *own, name="smoothed") == 0
    assert "frozen encoders run at every step" in capsys.readouterr().err
    assert tune("task=my_heads.Attentive", *own, name="plain") == 0
    first = [read_log(tmp_path / name, "train")[0]["vqa_loss"] for name in ("smoothed", "plain")]
    answers = len(read_facts(tmp_path / "plain/best-strict")["answers"])
    assert 0 < first[0] < 2 * math.log(answers) and abs(first[0] - first[1]) > 0.5
    card = (tmp_path / "plain/best-strict/README.md").read_text(encoding="utf-8")
    assert "import my_heads  # whose Attentive is its head" in card


@pytest.mark.parametrize(
    "task, says",
    [
        ("vqaa", "none of vqa, classification"),
        ("no_such_package.Head", "no package no_such_package"),
        ("my_heads.Gone", "has no class Gone"),
        ("m3ae.models.M3AE", "whose `kind` is"),
    ],
)
def test_what_is_no_head(tune, heads, task, says, capsys):  # noqa: F811
    """A traceback for a task that is misspelt, or a class that is no head."""
    assert tune(f"task={task}") == 2
    assert says in capsys.readouterr().err


def test_pre_training_goes_on(small_run, shards, tmp_path, monkeypatch):
    """A tokenizer, a start or a folder that the commands of the page do not find."""
    monkeypatch.chdir(tmp_path)
    first = tmp_path / "runs/pretrain/m3ae"
    quick = [
        "eval.final_samples=4",
        "eval.samples=4",
        "eval.pictures=1",
        "train.checkpoint_every=2",
    ]
    assert run_pretrain.main(small_run(*quick, name="runs/pretrain/m3ae", steps=2)) == 0
    last = first / "checkpoints/step-00000002"
    shutil.copytree(last, last.with_name("step-00100000"))  # the page's number of steps
    (tmp_path / "images").mkdir()
    split, lines = Shards(shards / "train"), ["image,text"]
    for number in range(40):
        Image.fromarray(split.image(number, 64)[0]).save(f"images/{number}.png")
        lines.append(f'{number}.png,"{split.text(number)}"')
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")

    prepare, go_on, tune_it = [words for words in commands(ROOT / "docs/backbone.md")][-3:]
    size = prepare.index("288")
    small = [*prepare[2:size], "64", *prepare[size + 1 :], "--workers", "0"]
    assert pairs.main(small) == 0
    keys = [word for word in go_on if "=" in word and not word.startswith("train.steps")]
    assert run_pretrain.main(small_run(*quick, "data.tokenizer=null", *keys, "train.steps=2")) == 0
    assert "init=runs/continued" in tune_it and last_checkpoint(tmp_path / "runs/continued")
    begun = [
        load_file(folder / "model.safetensors")
        for folder in (last, last_checkpoint(tmp_path / "runs/continued"))
    ]
    name = "image_encoder.patch_embedding.weight"
    changed = (begun[0][name] - begun[1][name]).abs().max()
    assert 0 < changed < 1e-3  # two steps at the page's 1e-5: not begun anew
