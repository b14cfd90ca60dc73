"""Blind baselines: answers to questions on images that are never looked at."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from m3ae.scoring.predictions import Row, reference

_BLOCK = 512  # questions compared with all training questions at a time


def commonest(answers: Iterable[str]) -> str:
    """The answer that occurs most often; among equals the one that occurs first."""
    return Counter(answers).most_common(1)[0][0]


def majority_answers(train: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """For each row the commonest training answer to questions of its `question_type`.

    A type that training lacks, or rows without types, get the commonest answer of all.
    """
    by_type: dict[str | None, list[str]] = defaultdict(list)
    for row in train:
        by_type[row.get("question_type")].append(reference(row))
    best = {kind: commonest(answers) for kind, answers in by_type.items()}
    overall = commonest(reference(row) for row in train)
    return [best.get(row.get("question_type"), overall) for row in rows]


def nearest_answers(train: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """For each row the answer to the training question that is nearest by its words.

    Questions are vectors of their words and word pairs (lower case, numbers and single letters
    too), weighted by TF-IDF as the training questions have it, compared by cosine. Of several
    nearest ones (corpora repeat their questions) the commonest answer counts, then the first in
    training order; a question without a known word is equally near to all.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes a second to import

    vectoriser = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+")
    try:
        known = vectoriser.fit_transform([row["question"] for row in train])
    except ValueError as error:
        raise ValueError(f"the training questions have no words ({error})") from error
    answers = [reference(row) for row in train]
    questions = list(dict.fromkeys(row["question"] for row in rows))
    found: dict[str, str] = {}
    for begin in range(0, len(questions), _BLOCK):
        block = questions[begin : begin + _BLOCK]
        # Rounded: equal cosines must tie whatever the order that their products are added in.
        cosines = np.round((vectoriser.transform(block) @ known.T).toarray(), 9)
        for question, row in zip(block, cosines, strict=True):
            nearest = np.flatnonzero(row == row.max())
            found[question] = commonest(answers[int(i)] for i in nearest)
    return [found[row["question"]] for row in rows]


def blind_baselines(
    train: Sequence[Row], rows: Sequence[Row]
) -> tuple[dict[str, list[Row]], list[str]]:
    """The rows with each baseline's prediction, by its name, and which one could not be had."""
    notes = []
    made = {"majority": majority_answers(train, rows)}
    if all("question" in row for row in rows):
        made["nearest"] = nearest_answers(train, rows)
    else:
        notes.append(
            "nearest question: not computed, for the predictions have no question; give --data"
        )
    if not all("question_type" in row for row in rows):
        notes.append("majority: over all questions, for the predictions have no question_type")
    filled = {
        name: [{**row, "prediction": answer} for row, answer in zip(rows, said, strict=True)]
        for name, said in made.items()
    }
    return filled, notes
