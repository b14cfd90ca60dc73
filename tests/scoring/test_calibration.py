"""Calibration against its definition, and its interval against scores whose error is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3ae.scoring.calibration import accuracy_by_coverage, measure_calibration, why_not
from m3ae.scoring.predictions import complete


def rows_of(scores: list[float], right: list[bool], a_question: int = 2) -> list[dict]:
    rows = [
        {"id": f"i{k // a_question}/{k}", "prediction": "x", "score": score, "right": bool(hit)}
        for k, (score, hit) in enumerate(zip(scores, right, strict=True))
    ]
    return complete(rows, "file")


def test_reliability_table():
    """Bins of equal width, which leave most answers in one; an error weighted by bins."""
    scores = [0.9, 0.9, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    right = [True, False, False, False, True, True, False, True]
    found = measure_calibration([rows_of(scores, right)], "strict", bins=2)
    assert [entry["questions"] for entry in found["bins"]] == [4, 4]
    assert [entry["score"] for entry in found["bins"]] == pytest.approx([0.25, 0.725])
    assert [entry["accuracy"] for entry in found["bins"]] == [0.5, 0.5]
    assert found["error"] == pytest.approx((0.25 + 0.225) / 2)
    assert found["interval"] is None and found["by_chance"] is None  # 4 images
    alike = measure_calibration([rows_of([0.5] * 8, right)], "strict")
    assert [entry["questions"] for entry in alike["bins"]] == [8] and alike["error"] == 0
    # The answers of several runs are pooled.
    pooled = measure_calibration([rows_of([0.5] * 8, right)] * 2, "strict")
    assert (pooled["questions"], pooled["bins"]) == (16, [{**alike["bins"][0], "questions": 16}])


def test_accuracy_by_coverage():
    """The most certain answers withheld, or equal scores in the order of the file."""
    kept = accuracy_by_coverage(np.array([0.1, 0.9, 0.5, 0.5]), np.array([0.0, 1, 1, 0]))
    assert kept == pytest.approx([1, 0.75, 2 / 3, 0.5])
    found = measure_calibration([rows_of([0.1, 0.9, 0.5, 0.5], [0, 1, 1, 0])], "strict")
    at = {entry["coverage"]: entry for entry in found["coverage"]}
    assert at[1.0] == {"coverage": 1.0, "questions": 4, "accuracy": 0.5}
    assert (at[0.75]["accuracy"], at[0.25]["questions"]) == (pytest.approx(2 / 3), 1)
    assert found["area"] == pytest.approx(kept.mean()) and found["accuracy"] == 0.5


ANSWERS = st.lists(st.tuples(st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.booleans()), min_size=1)


@settings(max_examples=100)
@given(ANSWERS, st.randoms())
def test_order_does_not_matter(answers, random):
    """Figures that change with the order of the rows."""
    shuffled = random.sample(answers, len(answers))
    first, second = (
        measure_calibration([rows_of(*zip(*some, strict=True))], "strict", samples=0)
        for some in (answers, shuffled)
    )
    assert first["error"] == pytest.approx(second["error"])
    assert first["area"] == pytest.approx(second["area"])
    assert [entry["questions"] for entry in first["bins"]] == [
        entry["questions"] for entry in second["bins"]
    ]


@pytest.mark.parametrize("shrunk, error", [(1.0, 0.0), (0.2, 0.2)])
def test_the_interval_holds_the_truth(shrunk, error):
    """A percentile interval: resamples add noise, so it lies above the truth (0 of 60 here)."""
    rng = np.random.default_rng(0)
    held, above = 0, []
    for _ in range(60):
        scores = rng.uniform(size=400)
        right = rng.uniform(size=400) < 0.5 + shrunk * (scores - 0.5)
        found = measure_calibration([rows_of(scores.tolist(), right)], "strict", samples=300)
        held += found["interval"][0] <= error <= found["interval"][1]
        above.append(found["error"] - error)
    assert held >= 51  # 85 %
    if error == 0:
        assert np.mean(above) == pytest.approx(found["by_chance"], abs=0.01)


def test_why_not():
    """Logits read as probabilities, or answers without a score as uncertain ones."""
    rows = rows_of([0.5, 0.7], [True, False])
    assert why_not([rows]) is None
    assert why_not([[{**rows[0], "score": 3.2}, rows[1]]]) == (
        "scores are not within 0 and 1, e.g. 3.2"
    )
    bare = [{k: x for k, x in row.items() if k != "score"} for row in rows]
    assert why_not([bare]) == ""
    assert why_not([rows, bare]) == "2 of 4 predictions have no score"
