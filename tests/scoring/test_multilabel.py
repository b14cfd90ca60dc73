"""AUROC and average precision by class, with intervals, against scikit-learn."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from m3ae.score import main
from m3ae.scoring.measures import align
from m3ae.scoring.multilabel import measure_labels
from m3ae.scoring.predictions import complete, read_predictions, write_predictions
from m3ae.scoring.statistics import ranked

FUNCTIONS = {"auroc": roc_auc_score, "average_precision": average_precision_score}
ROWS = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=3, max_size=30)


@settings(max_examples=100)
@given(ROWS)
def test_ranked_is_scikit_learn(rows):
    """Ties broken by the order of rows; an influence that is not the derivative of the value."""
    score, true = (np.array(column) for column in zip(*rows, strict=True))
    if true.all() or not true.any():
        return
    for name, (value, influence) in ranked(score / 5, true).items():
        assert value == pytest.approx(FUNCTIONS[name](true, score))
        assert influence.sum() == pytest.approx(0, abs=1e-9)
        for row in (0, len(rows) - 1):
            ends = []
            for step in (-1e-4, 1e-4):
                weight = np.ones(len(rows))
                weight[row] += step
                ends.append(FUNCTIONS[name](true, score, sample_weight=weight))
            assert influence[row] == pytest.approx((ends[1] - ends[0]) / 2e-4, abs=1e-5)


CLASSES = ("mass", "nodule", "effusion", "never", "always")


def rows_of(seed: int, signal: float = 1.0, images: int = 60) -> list[dict]:
    """Two texts an image; `nodule` is not said of every fifth row."""
    truth, noise = np.random.default_rng(0), np.random.default_rng(seed)
    rows = []
    for k in range(2 * images):
        labels = [name for name in CLASSES[:3] if truth.random() < 0.3] + ["always"]
        unknown = ["nodule"] if k % 5 == 0 else []
        labels = [name for name in labels if name not in unknown]
        scores = {c: float(noise.normal() + signal * (c in labels)) for c in CLASSES}
        row = {"id": f"i{k // 2:03}/{k}", "labels": labels, "scores": scores}
        rows.append(row | ({"unlabelled": unknown} if unknown else {}))
    return complete(rows, "test")


def test_by_class_and_their_mean():
    """A class without positives in the mean; rows that say nothing counted as negative ones."""
    rows = rows_of(1)
    result = measure_labels([rows], "strict", samples=10)
    assert result["left_out"] == {"never": "no row is of it", "always": "every row is of it"}
    for name, function in FUNCTIONS.items():
        found = result[name]["by_class"]
        assert list(found) == ["mass", "nodule", "effusion"]
        for label, entry in found.items():
            known = [row for row in rows if label not in row.get("unlabelled", ())]
            true = [label in row["labels"] for row in known]
            wanted = function(true, [row["scores"][label] for row in known])
            assert entry["value"] == pytest.approx(wanted)
            assert (entry["questions"], entry["positives"]) == (len(known), sum(true))
        assert found["nodule"]["questions"] == 96
        macro = result[name]["macro"]
        assert macro["classes"] == 3
        assert macro["value"] == pytest.approx(np.mean([e["value"] for e in found.values()]))
        low, high = macro["interval"]
        assert 0.01 < high - macro["value"] < 0.2 and low < macro["value"] < high
    assert measure_labels([rows_of(1, images=19)], samples=10)["auroc"]["macro"]["interval"] is None


def test_an_interval_is_that_of_the_bootstrap():
    """Questions taken for independent where two are of one image; a width that is another's."""
    rows = rows_of(3, images=150)
    for row in rows[1::2]:  # the second text of an image says what the first one says
        row |= {key: rows[rows.index(row) - 1][key] for key in ("labels", "scores")}
    result = measure_labels([rows])
    rng, images = np.random.default_rng(0), 150
    drawn = {name: [] for name in FUNCTIONS}
    true = np.array([["mass" in row["labels"]] for row in rows])[:, 0]
    score = np.array([row["scores"]["mass"] for row in rows])
    for _ in range(400):
        chosen = rng.integers(0, images, images)
        some = np.concatenate([2 * chosen, 2 * chosen + 1])
        for name, function in FUNCTIONS.items():
            drawn[name].append(function(true[some], score[some]))
    for name, values in drawn.items():
        low, high = result[name]["by_class"]["mass"]["interval"]
        assert (high - low) / 2 / 1.96 == pytest.approx(np.std(values), rel=0.15)


def test_comparisons():
    """A difference of other rows; the p of a better model; rows of other classes compared."""
    runs, worse = [rows_of(k, 2.0) for k in (1, 2)], [rows_of(k, 0.2) for k in (3, 4)]
    result = measure_labels(runs, against=worse, arms={"none": worse}, samples=10)
    macro = result["auroc"]["macro"]
    assert len(macro["values"]) == 2 and macro["against"]["p"] < 0.01
    assert macro["against"]["difference"] == pytest.approx(
        macro["value"] - macro["against"]["value"]
    )
    assert macro["against"]["difference_interval"][0] > 0
    assert macro["arms"]["none"]["value"] == macro["against"]["value"]
    assert "p_holm" in result["auroc"]["by_class"]["mass"]["against"]
    other = [{**row, "scores": {"mass": 1.0}} for row in rows_of(1)]
    with pytest.raises(ValueError, match="have other classes or labels to 'i000/0'"):
        align([rows_of(1), other])


def test_scored_from_the_file(tmp_path, capsys):
    """Scores or lists that a file loses; a value other than the rows' own."""
    rows = rows_of(1)
    for name, some in (("a", rows), ("b", rows_of(2, 0.0))):
        write_predictions(tmp_path / f"{name}.jsonl", some)
    assert read_predictions(tmp_path / "a.jsonl")[1]["scores"] == rows[1]["scores"]
    files = [str(tmp_path / "a.jsonl"), "--against", str(tmp_path / "b.jsonl")]
    assert main([*files, "--samples", "50", "--json", str(tmp_path / "x.json")]) == 0
    printed = capsys.readouterr().out
    wanted = measure_labels([rows])["auroc"]["macro"]["value"]
    found = json.loads((tmp_path / "x.json").read_text())["results"]["labels"]
    assert found["auroc"]["macro"]["value"] == pytest.approx(wanted)
    assert (
        f"{100 * wanted:.2f}" in printed and "left out, of the mean too: never (no row" in printed
    )
    assert "mean AUROC less against's: +" in printed
    assert main([*files[:1], "--relaxed"]) == 1
    assert "--relaxed is for answers, not for labels" in capsys.readouterr().err


@pytest.mark.parametrize(
    "row, message",
    [
        ({"id": "a/1", "scores": []}, "scores is .., not a number for each class"),
        ({"id": "a/1", "scores": {"x": "1"}}, "not a number for each class"),
        ({"id": "a/1", "scores": {"x": 1}, "labels": "x"}, "labels is 'x', not a list"),
    ],
)
def test_rows_that_are_wrong(tmp_path, row, message):
    """A traceback from a file of somebody else's."""
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    with pytest.raises(ValueError, match=message):
        read_predictions(tmp_path / "a.jsonl")


def test_rows_that_cannot_be_scored():
    """Classes that some rows lack counted as if they were not there."""
    rows = rows_of(1)
    other = [*rows[:-1], {**rows[-1], "scores": {"mass": 1.0}}]
    with pytest.raises(ValueError, match="has scores of other classes than the first row"):
        complete(other, "x")
    with pytest.raises(ValueError, match="'i000/0' has no answer and no label"):
        complete([{key: row[key] for key in ("id", "scores")} for row in rows], "x")
