"""Intervals and comparisons against plain loops over the same resamples."""

import math
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from m3ae.scoring import statistics
from m3ae.scoring.predictions import complete
from m3ae.scoring.statistics import (
    Bootstrap,
    align,
    evaluate,
    evaluate_classes,
    evaluate_vqa,
    interval,
    mcnemar,
    mean_and_sd,
    resampled_macro_f1,
)


def rows_of(right: list[int], per_image: int = 3, **more: object) -> list[dict]:
    """Questions with the answer "a", right where `right` is 1, `per_image` on each image."""
    rows = [
        {
            "id": f"i{k // per_image}/{k}",
            "answer": "A",
            "prediction": "a" if ok else "b",
            "type": "closed" if k % 2 else "open",
            "question_type": "XYZ"[k % 3],
            **more,
        }
        for k, ok in enumerate(right)
    ]
    return complete(rows, "test")


RIGHT = st.lists(st.integers(0, 1), min_size=1, max_size=30)


# ------------------------------------------------------------------ resampling


def drawn_images(bootstrap: Bootstrap) -> list[list[int]]:
    """The images of each resample, one by one, from the same random numbers."""
    rng = np.random.default_rng([bootstrap.seed, 0])
    even = [1 / bootstrap.images] * bootstrap.images
    times = rng.multinomial(bootstrap.images, even, size=bootstrap.samples)
    return [[image for image, n in enumerate(row) for _ in range(n)] for row in times]


def percentile(values: list[float], share: float) -> float:
    """Linear between order statistics."""
    values = sorted(values)
    place = share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


@settings(max_examples=60)
@given(right=RIGHT, per_image=st.integers(1, 4), seed=st.integers(0, 9))
def test_interval_is_a_plain_loop(right, per_image, seed):
    """Questions drawn instead of images, a mean of image means, a wrong percentile."""
    rows = rows_of(right, per_image)
    bootstrap = Bootstrap([row["image"] for row in rows], samples=40, seed=seed)
    names = sorted({row["image"] for row in rows})
    result = evaluate_vqa(rows, "paper", samples=40, seed=seed)
    for part in ("overall", "open", "closed"):
        here = [part in ("overall", row["type"]) for row in rows]
        chosen = [ok for ok, use in zip(right, here, strict=True) if use]
        entry = result[part]
        assert entry["questions"] == len(chosen)
        if not chosen:
            assert entry["accuracy"] is entry["interval"] is None
            continue
        assert entry["accuracy"] == sum(chosen) / len(chosen)
        values = []
        for images in drawn_images(bootstrap):
            pool = [
                ok
                for image in images
                for ok, row, use in zip(right, rows, here, strict=True)
                if use and row["image"] == names[image]
            ]
            values += [sum(pool) / len(pool)] if pool else []
        if len({row["image"] for row, use in zip(rows, here, strict=True) if use}) < 3:
            assert entry["interval"] is None
        else:
            wanted = [percentile(values, 0.025), percentile(values, 0.975)]
            assert entry["interval"] == pytest.approx(wanted, abs=1e-12)


def test_blocks_draw_the_same(monkeypatch):
    """Resamples that depend on how many of them fit into memory."""
    bootstrap = Bootstrap([str(k % 7) for k in range(20)], samples=50, seed=3)
    values = np.arange(40).reshape(20, 2)
    whole = bootstrap.sums(values)
    assert whole.shape == (50, 2)
    monkeypatch.setattr(statistics, "_BLOCK", 7 * 8)
    assert (bootstrap.sums(values) == whole).all()
    assert (Bootstrap(["a"] * 20, 0).sums(values)).shape == (0, 2)


def test_spread_is_the_known_one():
    """An interval of the wrong level: with one question an image, it is the binomial's."""
    rows = rows_of([k % 4 != 0 for k in range(400)], per_image=1)
    low, high = evaluate_vqa(rows, "paper")["overall"]["interval"]
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.005)


def test_clusters_widen_the_interval():
    """Questions of one image taken as independent: an interval far too narrow."""
    right = [int(k // 10 % 2 == 0) for k in range(400)]  # ten questions an image, all alike
    together = rows_of(right, per_image=10)
    apart = [{**row, "image": row["id"]} for row in together]
    widths = [
        np.diff(evaluate_vqa(rows, "paper")["overall"]["interval"])[0] for rows in (together, apart)
    ]
    assert widths[0] / widths[1] == pytest.approx(math.sqrt(10), rel=0.1)


def test_few_images_have_no_interval():
    """A part of one image shown as known exactly."""
    assert interval(np.array([0.5, 0.7]), 2) is None
    assert interval(np.array([]), 9) is None
    assert interval(np.array([np.nan, 0.5, 0.7]), 3) == pytest.approx([0.505, 0.695])


@settings(max_examples=40)
@given(right=RIGHT, seed=st.integers(0, 99))
def test_order_of_rows_changes_nothing(right, seed):
    """Numbers that depend on the order of a file."""
    rows, other = rows_of(right), rows_of(right[::-1])
    mixed, other_mixed = rows[:], other[:]
    random.Random(seed).shuffle(mixed)
    random.Random(seed + 1).shuffle(other_mixed)
    options = {"samples": 20, "blind": {"b": other}, "against": [other, rows]}
    first = evaluate([rows, other], "paper", **options)
    options |= {"blind": {"b": other_mixed}, "against": [other_mixed, mixed]}
    assert evaluate([mixed, other_mixed], "paper", **options) == first


# ------------------------------------------------------------------ comparison


@given(both=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_mcnemar_is_the_binomial_sum(both):
    """One-sided, or with the concordant questions counted."""
    first, second = (np.array([pair[k] for pair in both], dtype=bool) for k in (0, 1))
    b = sum(x and not y for x, y in both)
    c = sum(y and not x for x, y in both)
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
    p = min(Fraction(1), Fraction(2 * tail, 2 ** (b + c)))
    found = mcnemar(first, second)
    assert (found["only_first"], found["only_second"]) == (b, c)
    assert found["p"] == pytest.approx(float(p))


@given(right=RIGHT)
@settings(max_examples=40)
def test_a_run_equals_itself(right):
    """A comparison that draws other images for each side."""
    rows = rows_of(right)
    result = evaluate([rows], "strict", against=[rows], blind={"same": rows}, samples=20)
    for entry in (result["overall"]["against"], result["overall"]["blind"]["same"]):
        assert entry["difference"] == 0
        assert entry["difference_interval"] in (None, [0, 0])
        assert entry["mcnemar"] == {"only_first": 0, "only_second": 0, "p": 1}


def test_paired_is_narrower_and_signed():
    """Difference of the wrong sign, or of two models drawn apart."""
    rng = random.Random(0)
    second = [int(rng.random() < 0.5) for _ in range(300)]
    first = [ok or int(k % 10 == 0) for k, ok in enumerate(second)]
    result = evaluate([rows_of(first)], "paper", against=[rows_of(second)])["overall"]
    compared = result["against"]
    assert compared["difference"] == pytest.approx((sum(first) - sum(second)) / 300)
    low, high = compared["difference_interval"]
    assert 0 < low < compared["difference"] < high
    assert high - low < np.diff(result["interval"])[0] / 2
    assert compared["mcnemar"]["only_second"] == 0 and compared["mcnemar"]["only_first"] > 5


def test_other_questions_are_refused():
    """Two files compared position by position although they are of other questions."""
    rows = rows_of([1, 0, 1])
    other = [{**rows[0], "id": "x"}, *rows[1:]]
    for runs, message in (
        ([rows, rows[:2]], r"file 2 \(2 rows\) and the first one \(3\) .* 'i0/2'"),
        ([rows, other], "'i0/0'"),
        ([rows, [*rows, other[0]]], r"\(4 rows\) .* 'x'"),
        ([rows, [*rows, rows[0]]], "an id twice"),
        ([rows, [{**row, "label": "c"} for row in rows]], "other answers to 'i0/0'"),
    ):
        with pytest.raises(ValueError, match=message):
            align(runs)
        with pytest.raises(ValueError, match=message):
            evaluate(runs[:1], "paper", against=runs[1:])
    with pytest.raises(ValueError, match="no prediction to score"):
        evaluate([[]], "paper")


# ------------------------------------------------------------------ seeds


def test_mean_and_sd():
    """The deviation of a population for that of a sample."""
    assert mean_and_sd([0.5]) == (0.5, None)
    assert mean_and_sd([1, 2, 3]) == (2, 1)


@settings(max_examples=30)
@given(st.data(), st.integers(2, 4), st.integers(1, 3), st.integers(9, 20))
def test_seeds_are_a_plain_loop(data, runs, other, questions):
    """Images drawn anew for each seed, seeds of one side used for the other, or not drawn."""
    flags = st.lists(st.integers(0, 1), min_size=questions, max_size=questions)
    ours, theirs = ([data.draw(flags) for _ in range(n)] for n in (runs, other))
    rows = rows_of(ours[0])
    result = evaluate(
        [rows_of(r) for r in ours],
        "paper",
        samples=30,
        seed=5,
        against=[rows_of(r) for r in theirs],
    )["overall"]
    means = [sum(r) / questions for r in ours]
    assert result["accuracies"] == means
    assert result["accuracy"] == pytest.approx(np.mean(means))
    assert result["sd"] == pytest.approx(np.std(means, ddof=1))
    bootstrap = Bootstrap([row["image"] for row in rows], 30, 5)
    names = sorted({row["image"] for row in rows})
    weights = [bootstrap.run_weights(n, k) for k, n in enumerate((runs, other))]
    own, differences = [], []
    for s, images in enumerate(drawn_images(bootstrap)):
        sides = []
        for weight, arm in zip(weights, (ours, theirs), strict=True):
            means = []
            for right in arm:
                pool = [
                    ok
                    for image in images
                    for ok, row in zip(right, rows, strict=True)
                    if row["image"] == names[image]
                ]
                means.append(sum(pool) / len(pool))
            sides.append(sum(w * m for w, m in zip(weight[s], means, strict=True)))
        own.append(sides[0])
        differences.append(sides[0] - sides[1])
    for found, values in (
        (result["interval"], own),
        (result["against"]["difference_interval"], differences),
    ):
        wanted = [percentile(values, 0.025), percentile(values, 0.975)]
        assert found == pytest.approx(wanted, abs=1e-12)
    assert "mcnemar" not in result["against"]


def test_run_weights():
    """Runs that are never drawn twice, or weights that do not sum to 1."""
    weights = Bootstrap(["a"], 4000).run_weights(3, 0)
    assert weights.sum(axis=1) == pytest.approx(1) and weights.mean(axis=0) == pytest.approx(
        1 / 3, abs=0.02
    )
    assert (weights == 1).any()
    assert (weights != Bootstrap(["a"], 4000).run_weights(3, 1)).any()


# ------------------------------------------------------------------ parts and classes


def test_parts():
    """Strata of a flag that some rows lack, types lost, an order that depends on the file."""
    rows = [
        {**row, "leaked_twin": k == 0, "near_duplicate": None if k else True}
        for k, row in enumerate(rows_of([1, 0, 1, 1]))
    ]
    result = evaluate_vqa(rows, "paper", samples=0)
    assert result["overall"] == {"questions": 4, "images": 2, "accuracy": 0.75, "interval": None}
    assert {name: e["accuracy"] for name, e in result["question_type"].items()} == {
        "X": 1,
        "Y": 0,
        "Z": 1,
    }
    assert list(result["strata"]) == ["leaked_twin"]
    assert result["strata"]["leaked_twin"]["yes"]["questions"] == 1
    assert result["strata"]["leaked_twin"]["no"]["accuracy"] == pytest.approx(2 / 3)


def class_rows(truth: str, said: str) -> list[dict]:
    rows = [
        {"id": f"i{k // 2}/{k}", "answer": a, "prediction": None if p == "-" else p}
        for k, (a, p) in enumerate(zip(truth, said, strict=True))
    ]
    return complete(rows, "test")


def test_classes():
    """Macro-F1 over the wrong classes, a confusion matrix turned round, missing ones as right."""
    result = evaluate_classes([class_rows("aabbcc", "aabac-")], samples=50)
    assert result["overall"]["accuracy"] == pytest.approx(4 / 6)
    assert result["confusion"] == {
        "classes": ["a", "b", "c"],
        "matrix": [[2, 0, 0], [1, 1, 0], [0, 0, 1]],
    }
    assert result["macro_f1"]["value"] == pytest.approx((4 / 5 + 2 / 3 + 2 / 3) / 3)
    assert "open" not in result
    runs = [class_rows("aabbcc", said) for said in ("aabbcc", "aabbca")]
    both = evaluate_classes(runs, samples=50)
    assert both["confusion"]["matrix"] == [[4, 0, 0], [0, 4, 0], [1, 0, 3]]
    assert both["macro_f1"]["values"][0] == 1 and both["macro_f1"]["sd"] > 0


@settings(max_examples=25)
@given(
    pairs=st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=1, max_size=12
    )
)
def test_resampled_macro_f1_is_the_library(pairs):
    """F1 of a resample over classes that are not in it, or over pooled counts."""
    truth, said = zip(*pairs, strict=True)
    images = [str(k // 2) for k in range(len(pairs))]
    bootstrap = Bootstrap(images, samples=10, seed=1)
    found = resampled_macro_f1(bootstrap, truth, said)
    for value, drawn in zip(found, drawn_images(bootstrap), strict=True):
        chosen = [k for image in drawn for k in range(len(pairs)) if bootstrap.image[k] == image]
        wanted = f1_score(
            [truth[k] for k in chosen], [said[k] for k in chosen], average="macro", zero_division=0
        )
        assert value == pytest.approx(wanted)
