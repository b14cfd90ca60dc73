"""Blind baselines: answers to questions on images that are never looked at."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from m3ae.scoring.predictions import Row, Rows, reference

_BLOCK = 512  # questions compared with all training questions at a time
_MODELS = ("right", "score", "top")  # a baseline's rows have no such things of the model's


def commonest(answers: Iterable[str]) -> str:
    """The answer that occurs most often; among equals the one that occurs first."""
    return Counter(answers).most_common(1)[0][0]


def majority_answers(train: Rows, rows: Rows) -> list[str]:
    """For each row the commonest training answer to questions of its `question_type`.

    A type that training lacks, or rows without types, get the commonest answer of all.
    """
    by_type: dict[str | None, list[str]] = defaultdict(list)
    for row in train:
        by_type[row.get("question_type")].append(reference(row))
    best = {kind: commonest(answers) for kind, answers in by_type.items()}
    overall = commonest(reference(row) for row in train)
    return [best.get(row.get("question_type"), overall) for row in rows]


def nearest_answers(train: Rows, rows: Rows) -> list[str]:
    """For each row the answer to the training question that is nearest by its words.

    Questions are vectors of their terms, words and word pairs, weighted by TF-IDF as the training
    questions have it, compared by cosine. Of several nearest ones (corpora repeat their questions)
    the commonest answer counts, then the first in training order; a question without a known term
    is equally near to all.
    """
    asked, answers = [terms(row["question"]) for row in train], [reference(row) for row in train]
    column = {term: k for k, term in enumerate(dict.fromkeys(term for q in asked for term in q))}
    having = Counter(term for question in asked for term in set(question))
    # Smoothed, as scikit-learn has it, which scoring does without.
    idf = np.log((1 + len(asked)) / (1 + np.array([having[term] for term in column]))) + 1
    known = unit_vectors(asked, column, idf)
    questions = list(dict.fromkeys(row["question"] for row in rows))
    found: dict[str, str] = {}
    for begin in range(0, len(questions), _BLOCK):
        block = questions[begin : begin + _BLOCK]
        # Rounded: equal cosines must tie whatever the order that their products are added in.
        vectors = unit_vectors(map(terms, block), column, idf)
        cosines = np.round((vectors @ known.T).toarray(), 9)
        for question, row in zip(block, cosines, strict=True):
            nearest = np.flatnonzero(row == row.max())
            found[question] = commonest(answers[int(i)] for i in nearest)
    return [found[row["question"]] for row in rows]


def terms(question: str) -> list[str]:
    """Words and pairs of neighbouring ones: lower case, numbers and single letters too."""
    words = re.findall(r"\w+", question.lower())
    return words + [" ".join(pair) for pair in pairwise(words)]


def unit_vectors(
    questions: Iterable[Sequence[str]], column: dict[str, int], idf: np.ndarray
) -> Any:
    """Questions' terms as a sparse matrix (Q, terms): count times idf, rows of length 1.

    idf: the weight of each term. A question without a known term is a row of zeros.
    """
    from scipy.sparse import csr_array, diags_array

    counts = [Counter(column[t] for t in terms if t in column) for terms in questions]
    ends = np.cumsum([0, *map(len, counts)])
    columns = np.array([k for count in counts for k in count], dtype=np.int64)
    values = np.array([n for count in counts for n in count.values()]) * idf[columns]
    matrix = csr_array((values, columns, ends), shape=(len(counts), len(idf)))
    lengths = np.sqrt((matrix * matrix).sum(axis=1))
    return diags_array(1 / np.where(lengths > 0, lengths, 1)) @ matrix


def blind_baselines(train: Rows, rows: Rows) -> tuple[dict[str, list[Row]], list[str]]:
    """Rows with each baseline's prediction from the rows trained on, by name; what is lacking."""
    if not train:
        return {}, ["blind baselines: not computed, there is no row that was trained on"]
    if any(reference(row) is None for row in rows):
        return {}, ["blind baselines: not computed, the predictions have no answer; give --data"]
    notes, rows = [], [{k: x for k, x in row.items() if k not in _MODELS} for row in rows]
    made = {"majority": majority_answers(train, rows)}
    if not all("question" in row for row in rows):
        notes.append("nearest question: not computed, the predictions have none; give --data")
    elif not any(re.search(r"\w", row["question"]) for row in train):
        notes.append("nearest question: not computed, the training questions have no words")
    else:
        made["nearest"] = nearest_answers(train, rows)
    if not all("question_type" in row for row in rows):
        notes.append("majority: over all questions, for the predictions have no question_type")
    filled = {
        name: [{**row, "prediction": answer} for row, answer in zip(rows, said, strict=True)]
        for name, said in made.items()
    }
    return filled, notes
