"""`python -m m3ae.probe`: the right rows, the right measures, nothing chosen on the test set."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from sklearn.metrics import accuracy_score, roc_auc_score

from m3ae import features, probe
from m3ae.data.shards import Shards
from m3ae.downstream import probes
from m3ae.downstream.probes import PENALTIES, Labelled, log_likelihood, nearest, read_labelled
from m3ae.scoring.predictions import read_predictions
from tests.test_predict import corpus, models  # noqa: F401  (fixtures)


def made(path, seed: int, images: int = 60, signal: float = 2.0, classes: int = 3) -> Labelled:
    """Two rows an image, whose features tell their class by `signal`."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, images).repeat(2)
    centres = np.random.default_rng(0).normal(size=(classes, 8))
    x = signal * centres[label] + rng.normal(size=(2 * images, 8))
    rows = [
        {"id": f"{path}-{k}", "image": f"{path}-{k // 2}", "answer": f"c{name}"}
        for k, name in enumerate(label)
    ]
    return Labelled(path, x.astype(np.float32), rows)


@pytest.mark.parametrize("kind", probes.PROBES)
def test_features_that_tell_and_features_that_do_not(tmp_path, kind):
    """Rows of features beside another row's label; a probe better than its features."""
    rows, chosen = probes.probe(kind, made("a", 1), made("b", 2))
    assert np.mean([row["prediction"] == row["answer"] for row in rows]) > 0.9
    assert all(sum(row["scores"].values()) == pytest.approx(1, abs=1e-4) for row in rows)
    assert chosen["train_rows"] == 120 and chosen["classes"] == 3
    rows, _ = probes.probe(kind, made("a", 1, signal=0), made("b", 2, signal=0))
    assert np.mean([row["prediction"] == row["answer"] for row in rows]) < 0.55


def test_nothing_is_chosen_on_the_test_set():
    """A penalty, a scale or a list of classes from test labels or features."""
    train, test = made("a", 1, signal=0.5), made("b", 2, signal=0.5)
    rows, chosen = probes.probe("linear", train, test)
    assert chosen["C"] in PENALTIES
    other = [{**row, "answer": "new"} for row in test.rows[:-1]]
    half, again = probes.probe("linear", train, Labelled("c", test.features[:-1] * 1, other))
    assert again == chosen | {"test_rows_of_other_classes_alone": len(other)}
    assert [row["scores"] for row in half] == [row["scores"] for row in rows[:-1]]


def test_images_are_not_split_between_folds():
    """A choice made on images that are trained on: one neighbour, the image itself, would win."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(40, 6)).repeat(2, axis=0)  # both rows of an image look alike
    rows = [{"id": str(k), "image": str(k // 2), "answer": "ab"[(k // 2) % 2]} for k in range(80)]
    _, chosen = probes.probe("nearest", Labelled("a", image, rows), Labelled("b", image, rows))
    assert chosen["neighbours"] > 1


def test_fits_that_do_not_converge_are_counted(monkeypatch, recwarn):
    """A solver that was stopped, and nobody told."""
    monkeypatch.setattr(probes, "STEPS", 1)
    _, chosen = probes.probe("linear", made("a", 1), made("b", 2))
    assert chosen["fits_not_converged"] == 5 * len(PENALTIES) + 1 and not recwarn.list
    monkeypatch.undo()
    assert "fits_not_converged" not in probes.probe("linear", made("a", 1), made("b", 2))[1]


def test_votes_of_neighbours_by_hand():
    """A vote of the farthest, of rows that say nothing, or without its weight."""
    known = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]])
    targets = np.array([[1, 0], [0, 1], [-1, 1]])
    (found,) = nearest(known, targets, np.array([[2.0, 0.0]]), 2, True)
    far = np.exp(-(1 - 1 / np.sqrt(1.01)) / probes.TEMPERATURE)
    assert found == pytest.approx([1, far / (1 + far)])
    (found,) = nearest(known, targets, np.array([[1.0, 0.1]]), 1, True)
    assert found == pytest.approx([0.5, 1])


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_likelihood_is_highest_at_the_truth(seed):
    """A choice by the unlikeliest, or by rows that say nothing of a class."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(-1, 2, (9, 3))
    targets[0] = [1, 0, -1]
    chances = rng.uniform(size=(9, 3))
    best = log_likelihood(np.where(targets == 1, 1.0, 0.0), targets)
    assert best >= log_likelihood(chances, targets)
    unsaid = np.where(targets < 0, rng.uniform(size=(9, 3)), chances)
    assert log_likelihood(unsaid, targets) == log_likelihood(chances, targets)


def test_from_features_to_a_comparison(models, corpus, tmp_path, capsys):  # noqa: F811
    """Labels of another row or split; measures of another model; a difference of the wrong sign."""
    for name in ("classes", "pre"):
        for split in ("train", "test"):
            words = ["--model", str(models / name), "--data", f"{corpus}/vqa/{split}"]
            out = tmp_path / f"{name}_{split}.safetensors"
            assert features.main([*words, "--what", "pair", "--out", str(out)]) == 0
    files = {
        option: str(tmp_path / name)
        for option, name in (
            ("--train", "classes_train.safetensors"),
            ("--test", "classes_test.safetensors"),
            ("--against-train", "pre_train.safetensors"),
            ("--against-test", "pre_test.safetensors"),
        )
    }
    words = [word for pair in files.items() for word in pair]
    out = ["--json", str(tmp_path / "x.json"), "--out", str(tmp_path), "--samples", "50"]
    capsys.readouterr()
    assert probe.main([*words, *out]) == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "x.json").read_text())["results"]
    shards = Shards(corpus / "vqa/test")
    for kind in probes.PROBES:
        rows = read_predictions(tmp_path / f"{kind}.jsonl")
        truth = [shards.fields(k)["label"] for k in range(len(shards))]
        assert [row["answer"] for row in rows] == truth
        assert f"{kind} probe: " in printed
        found = result[kind]["classes"]["overall"]
        assert found["accuracy"] == accuracy_score(truth, [row["prediction"] for row in rows])
        against = found["against"]
        gain = found["accuracy"] - against["accuracy"]
        assert against["difference"] == pytest.approx(gain)
        assert "majority" in found["blind"]
        for name, entry in result[kind]["labels"]["auroc"]["by_class"].items():
            score = [row["scores"][name] for row in rows]
            wanted = roc_auc_score([label == name for label in truth], score)
            assert entry["value"] == pytest.approx(wanted)
        assert result[kind]["labels"]["auroc"]["macro"]["against"]["value"] is not None


def write(path, keys: list, data, what: str = "text") -> None:
    about = {"keys": json.dumps(keys), "data": str(data), "what": what}
    save_file({"features": np.ones((len(keys), 2), np.float32)}, path, metadata=about)


def test_features_of_images_stand_with_each_text(corpus, tmp_path):  # noqa: F811
    """Features of images in the order of the texts, or labels that are null."""
    shards = Shards(corpus / "classes/train")
    keys = [shards.image_key(k) for k in range(shards.num_images)]
    about = {"keys": json.dumps(keys), "data": "moved", "what": "image"}
    x = np.arange(len(keys), dtype=np.float32)[:, None]
    save_file({"features": x}, tmp_path / "x.safetensors", metadata=about)
    read = read_labelled(tmp_path / "x.safetensors", "organ", corpus / "classes/train")
    assert [keys[int(k)] for k in read.features[:, 0]] == [row["image"] for row in read.rows]
    labels = [shards.fields(k)["organ"] for k in range(len(shards))]
    assert [row["answer"] for row in read.rows] == [name for name in labels if name is not None]


def test_several_findings():
    """A class learned from rows that say nothing of it, or that one class excludes another."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(80, 4))
    rows = [
        {
            "id": str(k),
            "image": str(k),
            "labels": [n for n, v in zip("ab", x[k], strict=False) if v > 0],
        }
        for k in range(80)
    ]
    for row in rows[::2]:
        row["unlabelled"], row["labels"] = ["b"], [name for name in row["labels"] if name != "b"]
    for kind in probes.PROBES:
        found, _ = probes.probe(kind, Labelled("a", x, rows), Labelled("b", x, rows))
        for column, name in enumerate("ab"):
            truth = x[:, column] > 0
            assert roc_auc_score(truth, [row["scores"][name] for row in found]) > 0.9, kind


def test_mistakes(corpus, tmp_path, capsys):  # noqa: F811
    """A traceback, or a probe of rows that are not those of the labels."""
    (tmp_path / "bad.safetensors").write_bytes(b"x")
    write(tmp_path / "few.safetensors", ["a"], corpus / "vqa/train")
    few, data = str(tmp_path / "few.safetensors"), str(corpus / "vqa/train")
    for words, told in (
        (["--train", "none", "--test", few], "not there"),
        (["--train", str(tmp_path / "bad.safetensors"), "--test", few], "not a file of"),
        (["--train", few, "--test", few], "no features of"),
        (["--train", few, "--test", few, "--against-test", few], "belong together"),
        (["--train", few, "--test", few, "--samples", "-1"], "0 or above"),
        (["--train", few, "--test", few, "--train-data", f"{data}x"], "not there"),
    ):
        assert probe.main(words) == 2 and told in capsys.readouterr().err, words
    one = Labelled(
        "a", np.ones((4, 2)), [{"id": str(k), "image": str(k), "answer": "x"} for k in range(4)]
    )
    with pytest.raises(ValueError, match="of one class"):
        probes.probe("linear", one, one)
