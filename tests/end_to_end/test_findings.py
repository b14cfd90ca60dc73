"""Findings of phantoms from a table to scored predictions, through the commands."""

import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from data_prep import phantoms, table
from m3ae import predict, score
from m3ae.data.shards import Shards
from m3ae.downstream.trained import load_trained
from m3ae.scoring.predictions import read_predictions


@pytest.fixture(scope="module")
def findings(shards, tmp_path_factory) -> Path:
    """60 phantoms whose findings are their modality and plane, joined; `never` in no test row."""
    folder = tmp_path_factory.mktemp("findings")
    sizes = ["--layouts", "tables", "--tables", "60", "--workers", "1", "--px", "64"]
    assert phantoms.main(["--out", str(folder / "raw"), *sizes]) == 0
    place = folder / "raw" / "tables"
    with open(place / "classes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = ["sep=;", "image;findings;split"]
    for k, row in enumerate(rows):
        more = "|never" if row["split"] == "train" and k % 9 == 0 else ""
        lines.append(f"{row['image']};{row['modality']} | {row['plane']}{more};{row['split']}")
    (place / "findings.csv").write_text("\n".join(lines))
    prepare = ["--raw", str(place / "images"), "--table", str(place / "findings.csv")]
    prepare += ["--out", str(folder / "out"), "--px", "64", "--workers", "0"]
    more = ["--findings", "findings", "--tokenizer", str(shards / "tokenizer")]
    assert table.main([*prepare, *more]) == 0
    return folder / "out"


def test_from_a_table_to_scores(findings, tune, tmp_path, capsys):
    """Targets of another row or class; scores of other weights; a value that scoring lacks."""
    splits = [f"data.{split}={findings}/{split}" for split in ("train", "valid", "test")]
    run = tmp_path / "run"
    more = ["train.epochs=6", "eval.samples=50", "train.answer_bias=prior", *splits]
    assert tune(*more, config="findings") == 0
    result = json.loads((run / "evaluation.json").read_text())["strict"]["test"]
    assert result["left_out"] == {"never": "no row is of it"}
    rows = read_predictions(run / "predictions-strict.jsonl")
    test = Shards(findings / "test")
    assert [row["labels"] for row in rows] == [test.fields(i)["labels"] for i in range(len(test))]
    assert set(rows[0]["scores"]) == set(
        json.loads((findings / "classes.json").read_text())["labels"]["train"]
    )
    by_class = result["auroc"]["by_class"]
    for name, entry in by_class.items():
        true = [name in row["labels"] for row in rows]
        wanted = roc_auc_score(true, [row["scores"][name] for row in rows])
        assert entry["value"] == pytest.approx(wanted)
    # Modalities look so different that a few steps tell them apart.
    assert max(entry["value"] for entry in by_class.values()) > 0.7
    assert set(result["auroc"]["macro"]["arms"]) == {"other", "none"}
    assert "left out, of the mean too: never (no row is of it)" in capsys.readouterr().err
    page = (run / "report.html").read_text()
    assert "Left out, of the means too: never" in page and page.count("data:image/jpeg") > 5
    assert score.main([str(run / "predictions-strict.jsonl"), "--json", str(tmp_path / "x")]) == 0
    again = json.loads((tmp_path / "x").read_text())["results"]["labels"]
    assert again["auroc"]["macro"]["value"] == result["auroc"]["macro"]["value"]
    assert again["auroc"]["macro"]["arms"].keys() == {"other", "none"}
    data = ["--data", str(findings / "test"), "--field", "labels"]
    assert score.main([str(run / "predictions-strict.jsonl"), *data]) == 0
    assert "no id missing or unknown" in capsys.readouterr().out
    out = tmp_path / "again.jsonl"
    files = ["--model", str(run), "--data", str(findings / "test"), "--out", str(out)]
    assert predict.main(files) == 0
    for row, other in zip(rows, read_predictions(out), strict=True):
        assert row["labels"] == other["labels"]
        assert row["scores"] == pytest.approx(other["scores"], abs=1e-5)
    # Evaluated alone, it is the same.
    assert (
        tune(*more[1:], f"init={run}/best-strict", "eval_only=true", config="findings", name="b")
        == 0
    )
    assert json.loads((tmp_path / "b/evaluation.json").read_text())["strict"]["test"] == result


def test_the_loss_of_several_classes(findings, tune, tmp_path):
    """A loss over classes that a row does not speak of, or of one class of all."""
    splits = [f"data.{split}={findings}/{split}" for split in ("train", "valid", "test")]
    assert tune("train.epochs=1", *splits, config="findings") == 0
    trained = load_trained(tmp_path / "run" / "best-strict")
    head = load_file(tmp_path / "run/best-strict/model.safetensors")
    assert "multilabel_head.2.bias" in head or any(k.startswith("multilabel_head") for k in head)
    batch = {"image": torch.zeros(2, 3, 64, 64), "text_ids": torch.full((2, 4), 5)}
    batch["text_keep"] = torch.ones(2, 4, dtype=torch.bool)
    classes = len(trained.facts["answers"])
    batch["target"] = torch.full((2, classes), -1)
    batch["target"][0, :2] = torch.tensor([1, 0])
    with torch.no_grad():
        logits = trained.model.scores(batch)
        losses = trained.model(batch, per_sample=True)["multilabel_loss"]
    wanted = torch.nn.functional.softplus(-logits[0, 0]) + torch.nn.functional.softplus(
        logits[0, 1]
    )
    assert torch.allclose(losses, torch.stack([wanted, torch.zeros(())]))


@pytest.mark.parametrize(
    "more, message",
    [
        (["task=classification", "eval.metric=accuracy"], "holds lists, which are for task=multi"),
        (["data.field=label"], "has no 'label'"),
        (["eval.metric=overall"], "is none of multilabel's: auroc, average_precision"),
    ],
)
def test_mistakes(findings, tune, capsys, more, message):
    """A list of findings learned as one class; a metric that there is not, told after an epoch."""
    splits = [f"data.{split}={findings}/{split}" for split in ("train", "valid", "test")]
    assert tune(*splits, *more, config="findings") == 2
    assert message in capsys.readouterr().err
