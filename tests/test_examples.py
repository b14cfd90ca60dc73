"""The scripts in examples/, on a tiny model and phantoms."""

import csv

import pytest
from PIL import Image

from examples import own_vqa, probe, rank_captions, score_own_system
from m3ae.config import load_config
from m3ae.data.shards import Shards
from m3ae.data.texts import load_tokenizer
from m3ae.models import build_model
from tests.conftest import SMALL
from tests.recipe import ROOT


@pytest.fixture(scope="module")
def model(shards, tmp_path_factory):
    """An untrained model of the quickstart's kind, at 64 px."""
    folder = tmp_path_factory.mktemp("model")
    sizes = [line for line in SMALL if line.startswith("model.")]
    config = load_config(ROOT / "configs/pretrain/quickstart.yaml", sizes)
    build_model(config).save_pretrained(folder, load_tokenizer(shards / "tokenizer"))
    return str(folder)


@pytest.fixture(scope="module")
def own(questions, tmp_path_factory):
    """A table of 30 questions about 10 pictures."""
    folder = tmp_path_factory.mktemp("own")
    split = Shards(questions / "train")
    rows = [["image", "question", "answer"]]
    for number in range(10):
        Image.fromarray(split.image(number, 64)[0]).save(folder / f"{number}.png")
        for row in (split.image_of_text == number).nonzero()[0][:3].tolist():
            rows.append([f"{number}.png", split.text(row), split.fields(row)["label"]])
    with open(folder / "questions.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def test_probe(model, questions, capsys):
    """An example that no longer runs; features out of step with their labels are not seen here."""
    probe.main(["--model", model, "--train", f"{questions}/train", "--test", f"{questions}/test"])
    assert "44 test rows: linear probe 0." in capsys.readouterr().out


def test_own_vqa(model, own, tmp_path, capsys):
    """A script that prepares what it cannot train on, or answers with another model."""
    run = ["--model", model, "--table", f"{own}/questions.csv", "--raw", str(own)]
    run += ["--out", str(tmp_path / "run"), "--px", "64", "data.text_length=24", "data.workers=0"]
    run += ["data.augmentation=none", "train.epochs=1", "train.batch_global=8", "eval.samples=20"]
    own_vqa.main([*run, "train.batch_per_process=8"])
    assert capsys.readouterr().out.count(", in the table: ") == 5
    assert (tmp_path / "run/evaluation.json").is_file()


def test_rank_captions(model, own, capsys):
    """Fewer lines than pairs, or in another order than that of the scores."""
    words = ["--images", f"{own}/0.png", f"{own}/1.png", "--captions", "a", "b", "c"]
    rank_captions.main(["--model", model, *words])
    lines = capsys.readouterr().out.splitlines()
    scores = [float(line.split()[0]) for line in lines if line.startswith("    ")]
    assert len(scores) == 12 and all(scores[k] >= scores[k + 1] for k in (0, 1, 3, 4, 6, 8, 10))


def test_score_own_system(questions, tmp_path, capsys):
    """A file that is not scored, or not that of the system."""
    words = ["--train", f"{questions}/train", "--test", f"{questions}/test"]
    with pytest.raises(SystemExit) as end:
        score_own_system.main([*words, "--out", str(tmp_path / "mine.jsonl")])
    assert end.value.code == 0 and "overall" in capsys.readouterr().out
    assert len((tmp_path / "mine.jsonl").read_text().splitlines()) == 44
