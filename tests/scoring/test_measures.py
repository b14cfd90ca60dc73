"""Measures with intervals and comparisons against plain loops over the same resamples."""

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm, t
from sklearn.metrics import f1_score

from m3ae.scoring.measures import align, measure_answers, measure_classes, measure_ranks
from m3ae.scoring.predictions import complete
from m3ae.scoring.statistics import interval_over_seeds, ratio, sign_flips, wilson


def rows_of(right: list[int], per_image: int = 3, **more: object) -> list[dict]:
    """Questions with the answer "a", right where `right` is 1, `per_image` on each image."""
    rows = [
        {
            "id": f"i{k // per_image:03}/{k}",
            "answer": "A",
            "prediction": "a" if ok else "b",
            "type": "closed" if k % 2 else "open",
            "question_type": "XYZ"[k % 3],
            **more,
        }
        for k, ok in enumerate(right)
    ]
    return complete(rows, "test")


def drawn(seed: int, count: int, right: float = 0.5) -> list[int]:
    rng = random.Random(seed)
    return [int(rng.random() < right) for _ in range(count)]


RIGHT = st.lists(st.integers(0, 1), min_size=60, max_size=90)


# ------------------------------------------------------------------ one run


def percentile(values: list[float], fraction: float) -> float:
    """Linear between order statistics."""
    values = sorted(values)
    place = fraction * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def drawn_images(images: int, samples: int, seed: int) -> list[list[int]]:
    """The images of each resample, one by one, from the same random numbers."""
    times = np.random.default_rng([seed, 0]).multinomial(
        images, [1 / images] * images, size=samples
    )
    return [[image for image, n in enumerate(row) for _ in range(n)] for row in times]


@settings(max_examples=60)
@given(right=RIGHT, per_image=st.integers(1, 3), seed=st.integers(0, 9))
def test_interval_is_a_plain_loop(right, per_image, seed):
    """Questions drawn instead of images, a mean of image means, a wrong percentile."""
    rows, other = rows_of(right, per_image), rows_of(right[::-1], per_image)
    names = sorted({row["image"] for row in rows})
    result = measure_answers([rows], "paper", against=[other], samples=40, seed=seed)
    for part in ("overall", "open", "closed"):
        here = [k for k, row in enumerate(rows) if part in ("overall", row["type"])]
        entry = result[part]
        assert entry["questions"] == len(here)
        assert entry["accuracy"] == pytest.approx(sum(right[k] for k in here) / len(here))
        values, differences = [], []
        for images in drawn_images(len(names), 40, seed):
            pool = [k for image in images for k in here if rows[k]["image"] == names[image]]
            values.append(sum(right[k] for k in pool) / len(pool))
            differences.append(values[-1] - sum(right[-1 - k] for k in pool) / len(pool))
        found = [(entry["interval"], values)] if 0 < entry["accuracy"] < 1 else []
        if any(right[k] != right[-1 - k] for k in here):
            found.append((entry["against"]["difference_interval"], differences))
        for ends, sample in found:
            images = len({rows[k]["image"] for k in here})
            tail = norm.cdf(-t.ppf(0.975, images - 1) * math.sqrt(images / (images - 1)))
            wanted = [percentile(sample, tail), percentile(sample, 1 - tail)]
            assert ends == pytest.approx(wanted, abs=1e-12)


def test_spread_is_the_known_one():
    """An interval of the wrong level: with one question an image, it is the binomial's."""
    rows = rows_of([k % 4 != 0 for k in range(400)], per_image=1)
    low, high = measure_answers([rows], "paper")["overall"]["interval"]
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.005)


@pytest.mark.parametrize("runs", [1, 2])
def test_clusters_widen_the_interval(runs):
    """Questions of one image taken as independent: an interval far too narrow."""
    right = [int(k // 10 % 2 == 0) for k in range(400)]  # ten questions an image, all alike
    together = rows_of(right, per_image=10)
    apart = [{**row, "image": row["id"]} for row in together]
    widths = [
        np.diff(measure_answers([rows] * runs, "paper")["overall"]["interval"])[0]
        for rows in (together, apart)
    ]
    assert widths[0] / widths[1] == pytest.approx(math.sqrt(10), rel=0.1)


@settings(max_examples=40)
@given(right=RIGHT, seed=st.integers(0, 99), runs=st.integers(1, 2))
def test_order_of_rows_changes_nothing(right, seed, runs):
    """Numbers that depend on the order of a file."""
    rows, other = rows_of(right), rows_of(right[::-1])
    mixed, other_mixed = rows[:], other[:]
    random.Random(seed).shuffle(mixed)
    random.Random(seed + 1).shuffle(other_mixed)
    options = {"samples": 20, "blind": {"b": other}, "against": [other, rows]}
    first = measure_answers([rows, other][:runs], "paper", **options)
    options |= {"blind": {"b": other_mixed}, "against": [other_mixed, mixed]}
    assert measure_answers([mixed, other_mixed][:runs], "paper", **options) == first


# ------------------------------------------------------------------ seeds


@settings(max_examples=30)
@given(st.data(), st.integers(2, 4), st.integers(1, 4), st.sampled_from([None, False]))
def test_several_runs(data, runs, others, paired_seeds):
    """Seeds of one side used for the other, pairs that are none, differences over all questions."""
    flags = st.lists(st.integers(0, 1), min_size=66, max_size=66)
    ours, theirs = ([data.draw(flags) for _ in range(n)] for n in (runs, others))
    result = measure_answers(
        [rows_of(r) for r in ours],
        "paper",
        against=[rows_of(r) for r in theirs],
        paired_seeds=paired_seeds,
    )
    entry, paired = result["overall"], runs == others and paired_seeds is None
    means = [sum(r) / 66 for r in ours]
    assert entry["accuracies"] == pytest.approx(means)
    assert entry["accuracy"] == pytest.approx(np.mean(means))
    assert entry["sd"] == pytest.approx(np.std(means, ddof=1))
    one, two = (
        ratio(np.array(arm).reshape(-1, 22, 3).sum(axis=2), np.full(22, 3))
        for arm in (ours, theirs)
    )
    if one[1].any():
        assert entry["interval"] == pytest.approx(interval_over_seeds([one], 0, 1))
    both = [(one[0] - two[0], one[1] - two[1])] if paired else [one, two]
    compared = entry["against"]
    assert result["paired_seeds"] == compared["paired_seeds"] == paired
    if compared["difference"] or any(measure.any() for measure in both[0]):
        wanted = interval_over_seeds(both, -1, 1)
        assert compared["difference_interval"] == pytest.approx(wanted)
    moved = (np.mean(ours, axis=0) - np.mean(theirs, axis=0)).reshape(22, 3).sum(axis=1)
    assert compared["p"] == pytest.approx(sign_flips(moved[None])[0])
    assert "mcnemar" not in compared


@pytest.mark.parametrize("runs", [1, 2, 3, 5])
def test_a_file_set_equals_itself(runs):
    """Seeds drawn anew for each side: +0.00 [-2.4, +2.4] of files against themselves."""
    files = [rows_of(drawn(seed, 240, 0.6)) for seed in range(runs)]
    result = measure_answers(files, "strict", against=files, arms={"own": files}, blind={})
    for part in (result["overall"], result["open"], result["question_type"]["X"]):
        for entry in (part["against"], part["arms"]["own"]):
            assert entry["difference"] == 0 and entry["difference_interval"] == [0, 0]
            assert entry["p"] == 1
            if runs == 1:
                assert entry["mcnemar"] == {"only_first": 0, "only_second": 0, "p": 1}
    apart = measure_answers(files, "strict", against=files, paired_seeds=False)
    assert apart["paired_seeds"] is False and result["paired_seeds"] is True
    if runs > 1:
        low, high = apart["overall"]["against"]["difference_interval"]
        assert low < -0.001 and high > 0.001


def test_arms_of_other_numbers_are_unpaired():
    """Three seeds paired with the first three of five, or a pair that is asked for in vain."""
    files = [rows_of(drawn(seed, 120)) for seed in range(5)]
    result = measure_answers(files[:3], "paper", against=files, arms={"own": files[:3]})
    assert result["paired_seeds"] is False
    assert result["overall"]["against"]["paired_seeds"] is False
    assert result["overall"]["arms"]["own"]["paired_seeds"] is True
    with pytest.raises(ValueError, match="3 files against 5"):
        measure_answers(files[:3], "paper", against=files, paired_seeds=True)
    blind = {"b": files[4]}  # of one run, whatever is asked for
    assert measure_answers(files[:3], "paper", blind=blind, paired_seeds=True)["runs"] == 3
    assert measure_answers(files[:3], "paper")["paired_seeds"] is None


def test_paired_is_narrower_and_signed():
    """Difference of the wrong sign, or of two models drawn apart."""
    second = drawn(0, 300)
    first = [ok or int(k % 10 == 0) for k, ok in enumerate(second)]
    result = measure_answers([rows_of(first)], "paper", against=[rows_of(second)])["overall"]
    compared = result["against"]
    assert compared["difference"] == pytest.approx((sum(first) - sum(second)) / 300)
    low, high = compared["difference_interval"]
    assert 0 < low < compared["difference"] < high
    assert high - low < np.diff(result["interval"])[0] / 2
    assert compared["p"] < 0.001
    assert compared["mcnemar"]["only_second"] == 0 and compared["mcnemar"]["only_first"] > 5


def test_other_questions_are_refused():
    """Two files compared position by position although they are of other questions."""
    rows = rows_of([1, 0, 1])
    other = [{**rows[0], "id": "x"}, *rows[1:]]
    for runs, message in (
        ([rows, rows[:2]], r"file 2 \(2 rows\) and the first one \(3\) .* 'i000/2'"),
        ([rows, other], "'i000/0'"),
        ([rows, [*rows, other[0]]], r"\(4 rows\) .* 'x'"),
        ([rows, [*rows, rows[0]]], "an id twice"),
        ([rows, [{**row, "label": "c"} for row in rows]], "other answers to 'i000/0'"),
    ):
        with pytest.raises(ValueError, match=message):
            align(runs)
        with pytest.raises(ValueError, match=message):
            measure_answers(runs[:1], "paper", against=runs[1:])
    with pytest.raises(ValueError, match="no prediction to score"):
        measure_answers([[]], "paper")


# ------------------------------------------------------------------ parts


def test_parts():
    """Strata of a flag that some rows lack, types lost, an order that depends on the file."""
    rows = [
        {**row, "leaked_twin": k == 0, "near_duplicate": None if k else True}
        for k, row in enumerate(rows_of([1, 0, 1, 1]))
    ]
    result = measure_answers([rows], "paper", samples=0)
    overall = {"questions": 4, "images": 2, "accuracy": 0.75, "interval": None}
    assert result["overall"] == overall
    accuracies = {name: entry["accuracy"] for name, entry in result["question_type"].items()}
    assert accuracies == {"X": 1, "Y": 0, "Z": 1}
    assert list(result["strata"]) == ["leaked_twin"]
    assert result["strata"]["leaked_twin"]["yes"]["questions"] == 1
    assert result["strata"]["leaked_twin"]["no"]["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("runs", [1, 3])
def test_small_strata(runs):
    """An interval, or a p, of 19 images; of 20 that are all right, one without width."""

    def rows(right: int) -> list[dict]:
        flagged = rows_of([int(k < right) for k in range(60)], per_image=1)
        return [
            {**row, "leaked_twin": k < 20, "near_duplicate": k < 19}
            for k, row in enumerate(flagged)
        ]

    result = measure_answers([rows(30)] * runs, "paper", against=[rows(0)] * runs)
    few, enough = (result["strata"][flag]["yes"] for flag in ("near_duplicate", "leaked_twin"))
    assert few["images"] == 19 and few["interval"] is None
    assert few["against"]["difference_interval"] is few["against"]["p"] is None
    assert "mcnemar" not in few["against"] and "p_holm" not in few["against"]
    low = wilson(1.0, 20)[0]
    assert enough["interval"] == [low, 1] and low == pytest.approx(0.8389, abs=1e-4)
    assert enough["against"]["interval"] == pytest.approx([0, 1 - low])
    assert enough["against"]["difference_interval"] == pytest.approx([2 * low - 1, 1])
    assert enough["against"]["p"] < 0.001
    several = rows_of([1] * 60, per_image=3)  # an image's questions tell one thing
    assert measure_answers([several] * runs, "paper")["overall"]["interval"] == [low, 1]


def test_strata_are_exploratory():
    """Holm over each stratum alone, with overall among them, or over other comparisons' p."""
    ours, theirs = rows_of(drawn(0, 240, 0.7)), rows_of(drawn(1, 240, 0.6))
    ours = [{**row, "leaked_twin": k % 2 == 0} for k, row in enumerate(ours)]
    result = measure_answers([ours], "paper", against=[theirs], blind={"b": theirs})
    apart = [*result["question_type"].values(), *result["strata"]["leaked_twin"].values()]
    compared = sorted((entry["against"] for entry in apart), key=lambda entry: entry["p"])
    assert len(compared) == 5 and all(entry["exploratory"] is True for entry in apart)
    largest = 0.0
    for entry, times in zip(compared, (5, 4, 3, 2, 1), strict=True):
        largest = max(largest, min(1, times * entry["p"]))
        assert entry["p_holm"] == pytest.approx(largest)
    for part in ("overall", "open", "closed"):
        assert "exploratory" not in result[part] and "p_holm" not in result[part]["against"]
    assert [e["blind"]["b"]["p_holm"] for e in apart] == [e["against"]["p_holm"] for e in apart]


def test_right_or_wrong_is_enough():
    """Kept files without the corpus's words that cannot be scored."""
    kept = [
        {
            "id": f"i{k}/0",
            "image": f"i{k}",
            "type": "open",
            "right": {"paper": k < 5, "strict": k < 9},
        }
        for k in range(30)
    ]
    rows = complete(kept, "kept")
    for protocol, right in (("paper", 5), ("strict", 9)):
        entry = measure_answers([rows, rows], protocol, against=[rows, rows])["overall"]
        assert entry["accuracy"] == right / 30
    classes = complete([{"id": f"i{k}/0", "right": k < 9} for k in range(30)], "kept")
    assert "macro_f1" not in measure_classes([classes])


# ------------------------------------------------------------------ classes


def class_rows(truth: str, said: str) -> list[dict]:
    rows = [
        {"id": f"i{k // 2}/{k}", "answer": a, "prediction": None if p == "-" else p}
        for k, (a, p) in enumerate(zip(truth, said, strict=True))
    ]
    return complete(rows, "test")


def test_classes():
    """Macro-F1 over the wrong classes, a confusion matrix turned round, missing ones as right."""
    result = measure_classes([class_rows("aabbcc", "aabac-")], "strict", samples=50)
    assert result["protocol"] == "strict"
    assert result["overall"]["accuracy"] == pytest.approx(4 / 6)
    matrix = [[2, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert result["confusion"] == {"classes": ["a", "b", "c"], "matrix": matrix}
    assert result["macro_f1"]["value"] == pytest.approx((4 / 5 + 2 / 3 + 2 / 3) / 3)
    assert result["macro_f1"]["interval"] is None and "open" not in result
    runs = [class_rows("aabbcc", said) for said in ("aabbcc", "aabbca")]
    both = measure_classes(runs, samples=50)
    assert both["confusion"]["matrix"] == [[4, 0, 0], [0, 4, 0], [1, 0, 3]]
    assert both["macro_f1"]["values"][0] == 1 and both["macro_f1"]["sd"] > 0


PAIRS = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("abcd"), st.sampled_from("abce")),
    min_size=1,
    max_size=12,
)


@settings(max_examples=60)
@given(pairs=PAIRS)
def test_macro_f1_is_the_library(pairs):
    """F1 of classes that do not occur, and a value that another side, or run, moves."""
    truth, said, other = ("".join(column) for column in zip(*pairs, strict=True))
    ours, theirs = class_rows(truth, said), class_rows(truth, other)

    def wanted(predicted: str, labels: set[str]) -> float:
        options = {"average": "macro", "zero_division": 0, "labels": sorted(labels)}
        return pytest.approx(f1_score(list(truth), list(predicted), **options))

    f1 = measure_classes([ours], against=[theirs], samples=0)["macro_f1"]
    labels = {*truth, *said}
    assert f1["value"] == wanted(said, labels) and f1["classes"] == len(labels)
    plain = f1_score(list(truth), list(said), average="macro", zero_division=0)
    assert f1["value"] == pytest.approx(plain)
    assert f1["against"]["value"] == wanted(other, labels)
    assert f1["against"]["difference"] == pytest.approx(f1["value"] - f1["against"]["value"])
    both = measure_classes([ours, theirs], samples=0)["macro_f1"]
    labels |= {*other}
    assert both["values"] == [wanted(said, labels), wanted(other, labels)]


def some_classes(seed: int, right: float, count: int = 300) -> list[dict]:
    rng, truth = random.Random(seed), random.Random(0)
    answers = [truth.choice("aaaabbc") for _ in range(count)]
    said = [a if rng.random() < right else rng.choice("abc") for a in answers]
    return class_rows("".join(answers), "".join(said))


def test_macro_f1_compared():
    """No paired difference of macro-F1, one without the pairing, a p of accuracy's."""
    better, worse = ([some_classes(s + e, r) for s in range(3)] for e, r in ((1, 0.8), (9, 0.5)))
    for runs in (1, 3):
        f1 = measure_classes(better[:runs], against=worse[:runs])["macro_f1"]
        low, high = f1["interval"]
        assert low < f1["value"] < high
        compared = f1["against"]
        low, high = compared["difference_interval"]
        assert 0 < low < compared["difference"] < high < 1 and compared["p"] < 0.001
        same = measure_classes(better[:runs], against=better[:runs])["macro_f1"]["against"]
        assert same["difference_interval"] == [0, 0] and same["p"] == 1
    assert measure_classes([some_classes(1, 1.0)])["macro_f1"]["interval"] is None  # all right


# ------------------------------------------------------------------ ranks


def rank_rows(seed: int, mean: float, captions: int = 2) -> list[dict]:
    rng = random.Random(seed)
    return [
        {
            "id": f"i{k}/{j}",
            "image": f"i{k}",
            "way": way,
            "rank": 1 + int(rng.expovariate(1 / mean)),
        }
        | {"pool": 80}
        for way, count in (("t2i", captions), ("i2t", 1))
        for k in range(40)
        for j in range(count)
    ]


def test_ranks():
    """Ranks of one way counted in the other, captions of an image as independent, k too small."""
    ours, theirs = rank_rows(0, 3), rank_rows(1, 9)
    result = measure_ranks([ours], against=[theirs])
    json.dumps(result)
    assert result["paired_seeds"] is True and result["runs"] == 1
    for way, count in (("t2i", 80), ("i2t", 40)):
        ranks = [row["rank"] for row in ours if row["way"] == way]
        other = [row["rank"] for row in theirs if row["way"] == way]
        assert result[way]["median_rank"] == np.median(ranks) and result[way]["pool"] == 80
        for k in (1, 5, 10):
            entry = result[way][f"r{k}"]
            assert (entry["questions"], entry["images"]) == (count, 40)
            assert entry["value"] == pytest.approx(sum(r <= k for r in ranks) / count)
            difference = entry["value"] - sum(r <= k for r in other) / count
            assert entry["against"]["difference"] == pytest.approx(difference)
        low, high = result[way]["r5"]["against"]["difference_interval"]
        assert 0 < low < high and result[way]["r5"]["against"]["p"] < 0.01
    answers = rows_of([int(row["rank"] <= 5) for row in ours[:80]], per_image=2)
    order = {row["image"]: f"i{int(row['image'][1:])}" for row in answers}
    answers = [{**row, "image": order[row["image"]]} for row in answers]
    assert (
        result["t2i"]["r5"]["interval"]
        == measure_answers([answers], "paper")["overall"]["interval"]
    )


def test_ranks_of_several_seeds():
    """Pools of other sizes compared, a way that no file has, seeds of retrieval left unpaired."""
    files = [rank_rows(seed, 4) for seed in range(3)]
    result = measure_ranks(files, against=files)
    entry = result["i2t"]["r1"]
    assert len(entry["values"]) == 3 and entry["against"]["difference_interval"] == [0, 0]
    one_way = [[row for row in run if row["way"] == "t2i"] for run in files]
    assert "i2t" not in measure_ranks(one_way)
    with pytest.raises(ValueError, match="not of the same questions"):
        measure_ranks(files, against=one_way)
    other = [{**row, "pool": 90} for row in files[0]]
    with pytest.raises(ValueError, match="other images or pools to"):
        measure_ranks(files[:1], against=[other])
