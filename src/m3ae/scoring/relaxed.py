"""Relaxed measures of answers in sentences, beside exact match and never mixed with it.

Letters: `Q` questions, `P` measures by part, `R` runs.
"""

import math
import re
from collections import Counter
from typing import Any

import numpy as np

from m3ae.scoring.answers import answer_label, keeps_its_form, normalise_answer
from m3ae.scoring.measures import (
    OWN,
    VALUE,
    Options,
    image_numbers,
    measure_parts,
    parts_of,
    put,
    set_p,
    sides_of,
)
from m3ae.scoring.predictions import TYPES, Row, Runs, right_answers

DEFINITIONS = {
    "token_recall": "the part of the answer's words that the prediction has, an answer's word as "
    "often as it stands there; words are those of the normalised texts, here and below, and of "
    "several accepted answers the best one counts",
    "token_f1": "harmonic mean of token recall and precision, the part of the prediction's words "
    "that the answer has",
    "bleu_1": "that precision, times exp(1 - answer's words / prediction's words) where the "
    "prediction has fewer words than the answer",
    "yes_no": "of questions answered by yes or no: the first yes or no among the prediction's "
    "words is the answer; where there is neither it is wrong",
}
_YES_NO = ("yes", "no")
_FINE = 2**32  # sums of values that are rounded to such a fraction are exact


def token_measures(prediction: str, answer: str) -> tuple[float, float, float]:
    """Token recall, F1 and BLEU-1, 0-1, of two normalised texts; without words, if both are so."""
    said, true = prediction.split(), answer.split()
    if not said or not true:
        return (float(said == true),) * 3
    common = (Counter(said) & Counter(true)).total()
    brevity = min(1.0, math.exp(1 - len(true) / len(said)))
    return common / len(true), 2 * common / (len(said) + len(true)), brevity * common / len(said)


def yes_or_no(prediction: str) -> str | None:
    """The first word of a text that is yes or no, in any case; None without one."""
    return next(iter(re.findall(r"\b(?:yes|no)\b", prediction.lower())), None)


def measure_relaxed(
    runs: Runs, protocol: str, against: Runs = (), **options: Any
) -> dict[str, Any]:
    """Relaxed measures of questions: {"definitions", "unparsed", "measures": {name: {part: E}}}.

    Parts are overall, open and closed; E and options as of `measures.measure_answers`, but `value`
    and `values` for accuracy and accuracies. unparsed: by run, the predictions that say neither yes
    nor no. ValueError where rows are of classes, or have no answer.
    """
    shared, sides = Options([], words=VALUE, **options), sides_of(runs, against=against)
    rows = sides[OWN][0]
    if not all(row.keys() >= {"type", "prediction", "label"} for row in rows):
        raise ValueError("relaxed measures need a type, a prediction and an answer; give --data")
    parts, words = parts_of(rows), [name for name in DEFINITIONS if name != "yes_no"]
    masks = {(name, kind): parts[kind,] for name in words for kind in ("overall", *TYPES)}
    masks["yes_no", "overall"] = np.array([row["label"] in _YES_NO for row in rows])
    column = [list(DEFINITIONS).index(name) for name, _ in masks]
    inside, values = np.array(list(masks.values())), {}
    for key, some in sides.items():
        array = np.array([[_of_row(row, protocol) for row in run] for run in some])  # (R, Q, 4)
        exact = np.rint(_FINE * array) / _FINE
        values[key] = np.moveaxis(exact[..., column], 1, 2) * inside  # (R, P, Q)
    entries = measure_parts(values, inside, image_numbers(rows), shared)
    measures: dict[str, Any] = {}
    for key, entry in zip(masks, entries, strict=True):
        put(measures, key, entry)
    set_p(shared)
    unparsed = [
        sum(yes_or_no(row["prediction"] or "") is None for row in run if row["label"] in _YES_NO)
        for run in sides[OWN]
    ]
    return {"definitions": DEFINITIONS, "unparsed": unparsed, "measures": measures}


def _of_row(row: Row, protocol: str) -> tuple[float, float, float, float]:
    """The measures of a row in the order of `DEFINITIONS`, each the best of the right answers."""
    form = answer_label if keeps_its_form(row["label"]) else normalise_answer
    said = form(row["prediction"] or "")
    of_answers = [token_measures(said, answer) for answer in right_answers(row, protocol)]
    recall, f1, bleu = map(max, zip(*of_answers, strict=True))
    return recall, f1, bleu, float(yes_or_no(row["prediction"] or "") == row["label"])
