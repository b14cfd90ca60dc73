"""Blind baselines against their definition."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from m3ae.scoring.baselines import (
    blind_baselines,
    majority_answers,
    nearest_answers,
    terms,
    unit_vectors,
)


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


ASKED = st.lists(st.text("aB 9_é'-", max_size=12), min_size=1, max_size=6)


@settings(max_examples=200)
@given(ASKED, ASKED)
def test_vectors_are_those_of_sklearn(known, asked):
    """Other words, pairs or weights than the ones that the baseline is known by."""
    vectoriser = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+")
    if not any(map(terms, known)):
        return
    vectoriser.fit(known)
    column = {term: int(k) for term, k in vectoriser.vocabulary_.items()}
    found = unit_vectors(map(terms, asked), column, vectoriser.idf_)
    np.testing.assert_allclose(found.toarray(), vectoriser.transform(asked).toarray(), atol=1e-12)
    having = [sum(term in terms(text) for text in known) for term in sorted(column)]
    weights = np.log((1 + len(known)) / (1 + np.array(having))) + 1
    np.testing.assert_allclose(weights, vectoriser.idf_[[column[t] for t in sorted(column)]])


def test_blind_baselines():
    """A baseline left out without a word, changed rows, an IndexError without training rows."""
    rows = [{**row("Which organ?", "lung", "ORGAN"), "id": "a/1", "prediction": "heart"}]
    made, notes = blind_baselines(TRAIN, rows)
    assert notes == [] and rows[0]["prediction"] == "heart"
    assert {name: filled[0]["prediction"] for name, filled in made.items()} == {
        "majority": "lung",
        "nearest": "lung",
    }
    assert made["nearest"][0] == {**rows[0], "prediction": "lung"}
    made, notes = blind_baselines(TRAIN, [{"id": "a/1", "prediction": "x", "answer": "y"}])
    assert list(made) == ["majority"] and len(notes) == 2
    # What the model had right, or how sure it was, is not the baseline's.
    made, _ = blind_baselines(TRAIN, [{**rows[0], "right": True, "score": 0.9}])
    assert made["nearest"][0] == {**rows[0], "prediction": "lung"}
    made, notes = blind_baselines([row("?", "x")], rows)
    assert list(made) == ["majority"] and notes[0].endswith("training questions have no words")
    # A protocol that leaves no row to train on.
    made, notes = blind_baselines([], rows)
    assert made == {} and notes[0].endswith("there is no row that was trained on")
    made, notes = blind_baselines(TRAIN, [{"id": "a/1", "right": True, "question": "Which organ?"}])
    assert made == {} and "have no answer; give --data" in notes[0]
