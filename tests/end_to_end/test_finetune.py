"""run_finetune from the command line: protocols, files, resuming, evaluation alone, mistakes."""

import json
import math
import re
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

import run_finetune
import run_pretrain
from m3ae.checkpoints import checkpoints
from m3ae.config import load_config
from m3ae.data.datasets import Pairs
from m3ae.data.questions import read_questions
from m3ae.data.shards import Shards
from m3ae.downstream.trained import load_trained
from m3ae.models import build_model
from m3ae.scoring.predictions import read_predictions, read_trained_on, write_trained_on
from m3ae.training.logs import read_log
from tests.end_to_end.conftest import stop_after_saving
from tests.faults.runs import Forked


def scores(folder) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def test_both_protocols(tune, tmp_path, questions):
    """Rows, answers or selection of one protocol in the other's run."""
    assert tune("protocol=both") == 0
    train, test = (Shards(questions / split) for split in ("train", "test"))
    leaked = sum(bool(train.fields(i)["leaked"]) for i in range(len(train)))
    facts = {}
    for name in ("paper", "strict"):
        run = tmp_path / "run" / name
        facts[name] = json.loads((run / "environment.json").read_text())
        rows = read_predictions(run / f"predictions-{name}.jsonl")
        assert len(rows) == len(test) and {"open", "closed"} == {row["type"] for row in rows}
        assert rows[0]["top"][0] == [rows[0]["prediction"], rows[0]["score"]]
        entry = scores(run)[name]
        right = sum(row["prediction"] == row["label"] for row in rows)
        assert entry["test"]["overall"]["accuracy"] == pytest.approx(right / len(rows))
        assert {"majority", "nearest"} == entry["test"]["overall"]["blind"].keys()
        assert {"other", "none"} == entry["test"]["overall"]["arms"].keys()
        assert "leaked_twin" in entry["test"]["strata"]
        assert (run / f"best-{name}" / "downstream.json").is_file()
        assert f"Test results ({name})" in (run / "report.html").read_text()
    assert facts["paper"]["train_rows"] == len(train) and leaked
    assert facts["strict"]["train_rows"] + facts["strict"]["held_out_rows"] == len(train) - leaked
    assert scores(tmp_path / "run/paper")["paper"]["selected_on"] == "test"
    logs = {name: read_log(tmp_path / "run" / name, "eval") for name in facts}
    overall = [line["test/paper/overall"] for line in logs["paper"]]
    assert scores(tmp_path / "run/paper")["paper"]["best_on_test"] == max(overall)
    assert len(list((tmp_path / "run/paper/predictions").glob("*-test-paper.jsonl"))) == 2
    # Under strict nobody sees the test set before the end.
    assert {key for line in logs["strict"] for key in line if "/" in key} == {
        f"held_out/strict/{part}" for part in ("overall", "open", "closed")
    }
    assert not list((tmp_path / "run/strict/predictions").glob("*test*"))
    assert scores(tmp_path / "run/strict")["strict"]["selected_on"] == "held_out"


def test_one_run_serves_both_where_there_is_a_valid_split(tune, tmp_path, questions):
    """Two trainings where one would do, or strict answers that training has never seen."""
    answers = json.loads((questions / "answers.json").read_text())["paper"]
    more = tmp_path / "answers.json"
    more.write_text(json.dumps([*answers, "an answer of the test set alone"]))
    own = tmp_path / "own"  # another source than VQA-RAD, without leaked rows
    shutil.copytree(questions, own)
    for split in ("train", "test"):
        manifest = json.loads((own / split / "manifest.json").read_text())
        (own / split / "manifest.json").write_text(json.dumps(manifest | {"source": "own"}))
    splits = [
        f"data.{name}={own}/{split}"
        for name, split in (("train", "test"), ("valid", "test"), ("test", "test"))
    ]
    assert tune("protocol=both", f"data.answers={more}", "train.epochs=1", *splits) == 0
    result = scores(tmp_path / "run")
    assert {"paper", "strict"} <= result.keys()
    assert {result[name]["selected_on"] for name in ("paper", "strict")} == {"valid"}
    facts = json.loads((tmp_path / "run/best-strict/downstream.json").read_text())
    assert "an answer of the test set alone" in facts["known"]["paper"]
    assert "an answer of the test set alone" not in facts["known"]["strict"]
    for row in read_predictions(tmp_path / "run/predictions-strict.jsonl"):
        assert row["prediction"] in facts["known"]["strict"]
    measured = {key.rpartition("/")[0] for key in read_log(tmp_path / "run", "eval")[0]} - {""}
    assert measured == {"valid/paper", "valid/strict", "test/paper"}


def test_strict_is_the_default(tune, tmp_path):
    """A figure selected on the test set by whoever names no protocol."""
    assert tune("train.epochs=1") == 0
    assert (tmp_path / "run/predictions-strict.jsonl").is_file()
    # A run that was ended between its figures and its page has the page after the next start.
    (tmp_path / "run/report.html").unlink()
    assert tune("train.epochs=1") == 0 and (tmp_path / "run/report.html").is_file()


def test_rows_trained_on(tune, tmp_path, questions):
    """Strata and baselines over rows that the run held out, or was not allowed to see."""
    assert tune("protocol=strict", "train.epochs=1", "data.held_out=0.4") == 0
    ids = read_trained_on(tmp_path / "run/trained_on.txt")
    first = (tmp_path / "run/trained_on.txt").read_text().splitlines()[0]
    facts = json.loads((tmp_path / "run/environment.json").read_text())
    train = read_questions(questions / "train")
    assert first == f"# {questions}/train: {len(ids)} of {len(train)} rows"
    assert len(ids) == facts["train_rows"] < len(train) - facts["held_out_rows"]
    held = {row["id"] for row in read_predictions_of(tmp_path / "run", "held_out", "strict")}
    leaked = {row["id"] for row in train if row["leaked"]}
    assert {*ids} == {row["id"] for row in train} - held - leaked and held and leaked
    images = {row["image"] for row in train if row["id"] in ids}
    allowed = {row["image"] for row in train if row["id"] not in leaked}
    rows = read_predictions(tmp_path / "run/predictions-strict.jsonl")
    seen = sum(row["image"] in images for row in rows)
    test = scores(tmp_path / "run")["strict"]["test"]
    assert test["strata"]["image_in_train"]["yes"]["questions"] == seen
    assert seen < sum(row["image"] in allowed for row in rows)
    # An evaluation alone takes them from the run that trained, whatever its own config allows.
    write_trained_on(tmp_path / "run/trained_on.txt", "split", ids[:9], len(train))
    more = [f"init={tmp_path}/run/best-strict", "eval_only=true", "data.held_out=0.4"]
    assert tune(*more, name="check") == 0
    assert read_trained_on(tmp_path / "check/trained_on.txt") == ids[:9]
    strata = scores(tmp_path / "check")["strict"]["test"]["strata"]
    assert strata["image_in_train"]["yes"]["questions"] < seen


def test_rows_of_another_split(tune, tmp_path, questions, capsys):
    """Strata of an evaluated model over rows of a split that it never saw."""
    assert tune("protocol=strict", "train.epochs=1") == 0
    known = tmp_path / "run/trained_on.txt"
    known.write_text(known.read_text().replace("synpic", "other", 1))
    more = [f"init={tmp_path}/run/best-strict", "eval_only=true"]
    assert tune(*more, name="check") == 2
    assert "lacks 1 of the" in capsys.readouterr().err


def read_predictions_of(run, split: str, protocol: str) -> list[dict]:
    return read_predictions(run / f"predictions/epoch-0001-{split}-{protocol}.jsonl")


def test_arms(tune, tmp_path, questions, shards):
    """Another arm's picture, one's own picture as another's, or a mean image that is not 0."""
    run = tmp_path / "run"
    assert tune("protocol=strict", "train.epochs=4", "optim.lr=1.0e-2") == 0
    trained = load_trained(run / "best-strict")
    test = Shards(questions / "test")
    owners = test.image_of_text
    told = {}
    for name, suffix in (("own", ""), ("other", "-other"), ("none", "-none")):
        rows = read_predictions(run / f"predictions-strict{suffix}.jsonl")
        told[name] = {row["id"]: row["score"] for row in rows}
        assert len(rows) == len(test) and {row["image"] for row in rows} == {
            test.image_key(j) for j in range(test.num_images)
        }
    assert told["own"] != told["other"] != told["none"] != told["own"]
    for row in (0, 7, len(test) - 1):
        after = [*range(row + 1, len(test)), *range(row)]
        other = next(owners[k] for k in after if owners[k] != owners[row])
        pixels = {
            "own": torch.from_numpy(test.image(int(owners[row]), 64)),
            "other": torch.from_numpy(test.image(int(other), 64)),
            "none": torch.zeros(3, 64, 64),
        }
        words = trained.tokenizer(test.text(row), add_special_tokens=False)["input_ids"]
        ids = [trained.tokenizer.cls_token_id, *words[:22], trained.tokenizer.sep_token_id]
        for name, image in pixels.items():
            batch = {"image": image[None], "text_ids": torch.tensor([ids])}
            batch["text_keep"] = torch.ones_like(batch["text_ids"]).bool()
            with torch.no_grad():
                chances = trained.model.scores(batch)[0].sigmoid()
            answers = trained.facts["answers"]
            best = max(float(chances[answers.index(answer)]) for answer in trained.known)
            assert told[name][test.text_key(row)] == pytest.approx(best, abs=1e-5), (row, name)


def test_the_question_only_model(tune, tmp_path, monkeypatch, capsys):
    """A picture that it sees all the same; other steps; a comparison with another protocol's."""
    alone = tmp_path / "alone"
    assert tune(f"eval.question_only={alone}", name="early") == 2
    assert "data.image=none and protocol=strict" in capsys.readouterr().err
    assert not (tmp_path / "early").exists()
    real = Pairs.image
    monkeypatch.setattr(Pairs, "image", lambda *_: pytest.fail("an image was read"))
    assert tune("data.image=none", "data.augmentation=resized_crop", name="alone") == 0
    assert "question-only model" in capsys.readouterr().err
    monkeypatch.setattr(Pairs, "image", real)
    assert "arms" not in scores(alone)["strict"]["test"]["overall"]
    assert not list(alone.glob("predictions-strict-*"))
    assert tune(f"eval.question_only={alone}", name="run") == 0
    assert read_log(alone, "train")[-1]["step"] == read_log(tmp_path / "run", "train")[-1]["step"]
    said = capsys.readouterr().err
    for line in ("another's image", "mean image", "question-only"):
        assert re.search(rf"{line}: overall  +[+-][0-9.]+ \[", said), line
    entry = scores(tmp_path / "run")["strict"]["test"]["overall"]["arms"]["question-only"]
    assert entry["accuracy"] == scores(alone)["strict"]["test"]["overall"]["accuracy"]


def test_interrupted_at_the_very_end(tune, tmp_path, monkeypatch):
    """A final evaluation that cannot be repeated, or is of the last weights and not the best."""
    assert tune("train.epochs=3", "protocol=strict", name="whole") == 0

    stop_after_saving(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        tune("train.epochs=3", name="cut")
    monkeypatch.undo()
    assert tune("train.epochs=3", name="cut") == 0
    one, two = (
        load_file(checkpoints(tmp_path / name)[-1] / "model.safetensors")
        for name in ("whole", "cut")
    )
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    logs = [
        [line | {"seconds": None} for line in read_log(tmp_path / name, "eval")]
        for name in ("whole", "cut")
    ]
    assert logs[0] == logs[1] and len(logs[0]) == 3
    assert scores(tmp_path / "whole") == scores(tmp_path / "cut")


def test_evaluation_alone_repeats_the_run(tune, tmp_path, capsys):
    """An evaluation that reads other weights, another answer order, or writes over the run."""
    assert tune(name="run") == 0
    best = f"init={tmp_path}/run/best-strict"
    assert tune(best, "eval_only=true", name="check") == 0
    mine, theirs = (scores(tmp_path / name)["strict"]["test"] for name in ("run", "check"))
    assert mine == theirs
    assert tune(best, "eval_only=true", "protocol=paper", name="paper") == 2
    assert "another answer list" in capsys.readouterr().err


def test_from_pretraining(small_run, tune, tmp_path):
    """A fine-tuning that starts from random weights though `init` names a run."""
    assert run_pretrain.main(small_run(steps=4)) == 0
    assert tune(f"init={tmp_path}/run", "train.epochs=1", "optim.lr=0.0", name="tuned") == 0
    before = load_file(checkpoints(tmp_path / "run")[-1] / "model.safetensors")
    after = load_file(checkpoints(tmp_path / "tuned")[-1] / "model.safetensors")
    shared = before.keys() & after.keys()
    assert len(shared) > 50 and all(torch.equal(before[name], after[name]) for name in shared)


def test_the_control_starts_where_pretraining_started(small_run, tune, tmp_path):
    """A control whose initial weights are others than those that pre-training began with."""
    assert run_pretrain.main(small_run(steps=2)) == 0
    run = tmp_path / "run"
    assert (
        tune(
            f"architecture={run}/config.yaml",
            "architecture_set=[]",
            "optim.lr=0.0",
            "train.epochs=1",
            name="control",
        )
        == 0
    )
    started = build_model(load_config(run / "config.yaml")).state_dict()
    tuned = load_file(checkpoints(tmp_path / "control")[-1] / "model.safetensors")
    for name, tensor in tuned.items():
        assert name.startswith("vqa_head.") or torch.equal(tensor, started[name]), name


def test_retrieval(small_run, tune, shards, tmp_path):
    """A pool that is not ranked, or ranked by other weights than the selected ones."""
    assert run_pretrain.main(small_run(steps=4)) == 0
    folders = [
        f"data.{name}={shards}/{split}"
        for name, split in (("train", "train"), ("valid", "valid"), ("test", "test"))
    ]
    more = [f"init={tmp_path}/run", "data.false_texts=3", "data.augmentation=none", *folders]
    assert (
        tune(
            *more,
            "protocol=both",
            "train={batch_global: 8, batch_per_process: 4}",
            name="irtr",
            config="roco_retrieval",
        )
        == 0
    )
    for name, pool, images in (("paper", "valid", 4), ("strict", "test", 16)):
        entry = scores(tmp_path / "irtr")[name]
        assert (entry["pool"], entry["same"]) == (pool, {"valid": "id", "test": "text"}[pool])
        ranks = read_predictions(tmp_path / f"irtr/ranks-{name}.jsonl")
        split = Shards(shards / pool)
        for way, keys in (
            ("t2i", [split.text_key(k) for k in range(len(split))]),
            ("i2t", [split.image_key(k) for k in range(images)]),
        ):
            rows = [row for row in ranks if row["way"] == way]
            assert [row["id"] for row in rows] == keys
            assert {row["pool"] for row in rows} == {images if way == "t2i" else len(split)}
            for k in (1, 5, 10):
                wanted = sum(row["rank"] <= k for row in rows) / len(rows)
                assert entry["recalls"][way][f"r{k}"]["value"] == pytest.approx(wanted)
    logged = {key for line in read_log(tmp_path / "irtr", "eval") for key in line if "/" in key}
    assert logged == {"valid/paper/loss", "valid/strict/loss"}
    zero = [*more, "eval_only=true"]
    assert tune(*zero, name="zero", config="roco_retrieval") == 0
    assert scores(tmp_path / "zero")["strict"]["recalls"]["t2i"]["r10"]["value"] >= 0
    assert not (tmp_path / "zero/trained_on.txt").exists()  # nothing was trained on


def test_augmentation_is_repeatable_and_needs_whole_images(questions, tune, tmp_path, capsys):
    """Crops drawn from a generator that another epoch or process shares."""
    assert tune("data.augmentation=resized_crop") == 2
    assert "holds pixels already cropped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.test=nowhere"], "nowhere"),
        (["data.field=colour"], "data.field: .*has no 'colour', only"),
        (["eval.metric=accuracy"], "eval.metric: 'accuracy' is none of vqa's: overall"),
        (["eval_only=true"], "eval_only: needs init="),
        (["init=./nowhere"], "nowhere"),
        (["data.image_px=32"], "raw shards of 64 px cannot give 32 px"),
        (["data.answers=nowhere.json"], "nowhere.json does not exist"),
        (["protocol=lenient"], "protocol"),
        (["train.batch_global=30"], "train.batch_global: 30 is no multiple"),
        (["task=retrieval", "eval.metric=loss"], "data.valid: retrieval selects"),
        (["task=retrieval", "eval.metric=loss", "train.answer_bias=prior"], "train.answer_bias"),
    ],
)
def test_mistakes_end_in_one_line(tune, tmp_path, capsys, overrides, message):
    """A traceback, a message that does not say what is wrong, or a run begun in spite of it."""
    assert tune(*overrides) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert re.search(f"error: .*{message}", lines[-1])
    assert not (tmp_path / "run").exists()


def test_a_metric_that_cannot_select(tune, tmp_path, questions, capsys, monkeypatch):
    """An hour of training that ends at the first evaluation, where nothing can be selected."""
    real = Shards.fields
    monkeypatch.setattr(
        Shards, "fields", lambda self, row: real(self, row) | {"answer_type": "closed"}
    )
    assert tune("eval.metric=open", "protocol=paper") == 2
    message = capsys.readouterr().err
    assert "eval.metric: open, but" in message and "has no open question; take overall" in message
    assert not (tmp_path / "run/log.jsonl").exists()


@pytest.mark.parametrize("freeze", ["null", "[image_encoder, text_encoder]"])
def test_two_processes(tune, tmp_path, freeze):
    """Rows that two processes evaluate twice or not at all, or a gradient of half a batch."""
    assert tune("train.epochs=1", f"train.freeze={freeze}", name="one") == 0
    arguments = yaml.safe_load((tmp_path / "one" / "config.yaml").read_text())
    arguments |= {"output": str(tmp_path / "two")}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(arguments))
    given = ["--config", str(tmp_path / "config.yaml")]
    codes = Forked(run_finetune.main, given, 2, tmp_path / "said").wait()
    assert codes == [0, 0], (tmp_path / "said").read_text()[-2000:]
    one, two = (
        read_predictions(tmp_path / name / "predictions-strict.jsonl") for name in ("one", "two")
    )
    assert [row["id"] for row in one] == [row["id"] for row in two]
    for row, other in zip(one, two, strict=True):
        assert row["score"] == pytest.approx(other["score"], abs=2e-3)
    losses = [read_log(tmp_path / name, "train")[0]["loss"] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_head_that_starts_at_the_prior(tune, tmp_path, questions):
    """A prior counted over rows of other splits, or of another order than the head's outputs."""
    first = {}
    for bias in ("zero", "prior"):
        more = ["protocol=strict", "train.epochs=1", "train.log_every=1"]
        assert tune(f"train.answer_bias={bias}", *more, name=bias) == 0
        first[bias] = read_log(tmp_path / bias, "train")[0]["loss"]
    facts = json.loads((tmp_path / "zero" / "best-strict" / "downstream.json").read_text())
    train = Shards(questions / "train")
    labels = [train.fields(row)["label"] for row in range(len(train))]
    shares = [labels.count(answer) / len(labels) for answer in facts["answers"]]
    entropies = [-p * math.log(p) - (1 - p) * math.log(1 - p) for p in shares]
    assert first["zero"] == pytest.approx(len(shares) * math.log(2), rel=0.05)
    assert first["prior"] == pytest.approx(sum(entropies), rel=0.2)


def test_labels_outside_the_list(tune, tmp_path, capsys):
    """Training rows that silently teach nothing."""
    (tmp_path / "short.json").write_text(json.dumps(["yes", "no"]))
    assert tune(f"data.answers={tmp_path}/short.json", "protocol=paper") == 2
    assert "training labels are not in the answer list" in capsys.readouterr().err


def test_a_finished_run_is_left_alone(tune, tmp_path, capsys):
    """A result that a second start replaces, with the same or with another config."""
    assert tune("train.epochs=1") == 0
    before = (tmp_path / "run" / "evaluation.json").stat().st_mtime_ns
    assert tune("train.epochs=1") == 0
    assert "is finished" in capsys.readouterr().err
    assert tune("train.epochs=1", "optim.lr=1.0e-4") == 2
    assert "optim.lr" in capsys.readouterr().err
    assert (tmp_path / "run" / "evaluation.json").stat().st_mtime_ns == before
