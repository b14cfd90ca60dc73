"""Blind baselines against their definition."""

import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3ae.scoring.baselines import blind_baselines, majority_answers, nearest_answers


def row(question: str, label: str = "", kind: str = "PRES") -> dict:
    return {"question": question, "label": label, "question_type": kind, "type": "open"}


TRAIN = [
    row("Is there a mass?", "no"),
    row("Is there a mass?", "yes"),
    row("Is there a mass?", "yes"),
    row("Which organ is shown?", "lung", "ORGAN"),
    row("Which organ system is this?", "chest", "ORGAN"),
]


def test_majority():
    """The majority of all types for each of them, or a failure on a type that training lacks."""
    rows = [row("?", kind=kind) for kind in ("PRES", "ORGAN", "SIZE")]
    assert majority_answers(TRAIN, rows) == ["yes", "lung", "yes"]  # lung: the first of equals
    assert majority_answers(TRAIN, [{"question": "?"}]) == ["yes"]


def test_nearest():
    """The first of equal questions for the commonest answer, punctuation or case that matter."""
    questions = ["is there a MASS", "Which organ system?", "Organ?", "Xyzzy"]
    assert nearest_answers(TRAIN, [row(q) for q in questions]) == ["yes", "chest", "lung", "yes"]
    # "a" alone tells these two apart.
    train = [row("Is it a?", "first"), row("Is it b?", "second")]
    assert nearest_answers(train, [row("Is it b"), row("is it a")]) == ["second", "first"]
    # Equally near, but for the last digit of a sum.
    train = [row("mass a a left", "first"), row("a is", "other"), row("left the a a", "second")]
    assert nearest_answers(train, [row("a")]) == ["first"]
    with pytest.raises(ValueError, match="no words"):
        nearest_answers([row("?", "x")], [row("What?")])


WORDS = st.lists(st.sampled_from("is a mass organ the left".split()), min_size=1, max_size=5)


def terms_of(words: list[str]) -> Counter:
    return Counter(words + [" ".join(pair) for pair in pairwise(words)])


def vector(words: list[str], weights: dict[str, float]) -> dict[str, float]:
    out = {term: n * weights[term] for term, n in terms_of(words).items() if term in weights}
    length = math.sqrt(sum(x * x for x in out.values())) or 1
    return {term: x / length for term, x in out.items()}


@settings(max_examples=100)
@given(st.lists(st.tuples(WORDS, st.sampled_from("xyz")), min_size=1, max_size=8), WORDS)
def test_nearest_is_a_plain_loop(known, asked):
    """Weights of the test questions, words without their pairs, ties that rounding decides."""
    document = Counter(term for words, _ in known for term in terms_of(words).keys())
    weights = {term: math.log((1 + len(known)) / (1 + n)) + 1 for term, n in document.items()}
    target = vector(asked, weights)
    cosines = [
        sum(x * target.get(term, 0) for term, x in vector(words, weights).items())
        for words, _ in known
    ]
    near = [label for (_, label), c in zip(known, cosines, strict=True) if c > max(cosines) - 1e-9]
    train = [row(" ".join(words), label) for words, label in known]
    assert nearest_answers(train, [row(" ".join(asked))]) == [Counter(near).most_common(1)[0][0]]


def test_blind_baselines():
    """A baseline that is left out without a word, or that changes the rows it is compared with."""
    rows = [{**row("Which organ?", "lung", "ORGAN"), "id": "a/1", "prediction": "heart"}]
    made, notes = blind_baselines(TRAIN, rows)
    assert notes == [] and rows[0]["prediction"] == "heart"
    assert {name: filled[0]["prediction"] for name, filled in made.items()} == {
        "majority": "lung",
        "nearest": "lung",
    }
    assert made["nearest"][0] == {**rows[0], "prediction": "lung"}
    made, notes = blind_baselines(TRAIN, [{"id": "a/1", "prediction": "x"}])
    assert list(made) == ["majority"] and len(notes) == 2
