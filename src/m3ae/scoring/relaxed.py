"""Relaxed measures of answers in sentences, beside exact match and never mixed with it.

Letters: `Q` questions, `R` runs.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from m3ae.scoring.answers import normalise_answer
from m3ae.scoring.measures import align
from m3ae.scoring.predictions import TYPES, Row, right_answers
from m3ae.scoring.statistics import (
    FEWEST_IMAGES,
    by_image,
    interval_over_seeds,
    percentile_interval,
    ratio,
    resampled_sums,
    wilson,
)

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
_UNITS = 10**6  # resampled sums are of whole numbers


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
    runs: Sequence[Sequence[Row]],
    protocol: str,
    against: Sequence[Sequence[Row]] = (),
    samples: int = 10_000,
    seed: int = 0,
    paired_seeds: bool | None = None,
) -> dict[str, Any]:
    """Relaxed measures of questions: {"definitions", "unparsed", "measures": {name: {part: E}}}.

    Parts are overall, open and closed; E = questions, value, interval, over several runs values,
    and `against` with its value and interval, the difference and its interval, as in
    `measures.measure_answers`. unparsed: by run, the predictions that say neither yes nor no.
    Raises ValueError where rows are of classes, or have no answer.
    """
    everything = align([*runs, *against])
    rows = everything[0]
    if any("type" not in row or "prediction" not in row or "label" not in row for row in rows):
        raise ValueError(
            "relaxed measures are of questions with type, prediction and answer; give --data"
        )
    image = np.unique([row["image"] for row in rows], return_inverse=True)[1]
    asked = np.array([row["label"] in _YES_NO for row in rows])
    parts = {"overall": np.ones(len(rows), dtype=bool)}
    parts |= {kind: np.array([row["type"] == kind for row in rows]) for kind in TYPES}
    values = np.array([[_of_row(row, protocol) for row in run] for run in everything])  # (R, Q, 4)
    measures: dict[str, Any] = {name: {} for name in DEFINITIONS}
    for number, name in enumerate(DEFINITIONS):
        wanted = {"overall": asked} if name == "yes_no" else parts
        for part, mask in wanted.items():
            ours, theirs = np.split(values[:, mask, number], [len(runs)])
            measures[name][part] = _entry(
                ours, theirs, image[mask], samples, seed, paired_seeds is not False
            )
    unparsed = [
        sum(yes_or_no(row["prediction"] or "") is None for row in run if row["label"] in _YES_NO)
        for run in everything[: len(runs)]
    ]
    return {"definitions": DEFINITIONS, "unparsed": unparsed, "measures": measures}


def _of_row(row: Row, protocol: str) -> tuple[float, float, float, float]:
    """The measures of a row in the order of `DEFINITIONS`, each the best of the right answers."""
    said = normalise_answer(row["prediction"] or "")
    of_answers = [token_measures(said, answer) for answer in right_answers(row, protocol)]
    recall, f1, bleu = map(max, zip(*of_answers, strict=True))
    return recall, f1, bleu, float(yes_or_no(row["prediction"] or "") == row["label"])


def _entry(
    ours: np.ndarray, theirs: np.ndarray, image: np.ndarray, samples: int, seed: int, pair: bool
) -> dict[str, Any]:
    """E of `measure_relaxed` from values (R, Q) of both sides; theirs may have no run."""
    if not len(image):
        return {"questions": 0, "value": None, "interval": None}
    image = np.unique(image, return_inverse=True)[1]
    counts = np.bincount(image)
    told = samples > 0 and len(counts) >= FEWEST_IMAGES

    def interval(low: int, *arms: np.ndarray) -> list[float] | None:
        if not told:
            return None
        first = arms[0].flat[0]
        if low == 0 and np.ptp(arms[0]) == 0 and first in (0, 1):
            return wilson(float(first), len(counts))
        sums = [by_image(values, image) for values in arms]
        if sum(map(len, arms)) > 1:
            return interval_over_seeds([ratio(hits, counts) for hits in sums], low, 1)
        whole = np.stack([counts, np.rint(_UNITS * sums[0][0])], axis=1)
        number, total = resampled_sums(whole, samples, seed).T
        return percentile_interval(total / (_UNITS * number))

    value = float(ours.mean())
    out = {"questions": len(image), "value": value, "interval": interval(0, ours)}
    out |= {"values": ours.mean(axis=1).tolist()} if len(ours) > 1 else {}
    if len(theirs):
        paired = len(ours) == len(theirs) and (pair or len(ours) == 1)
        difference = interval(-1, *([ours - theirs] if paired else [ours, theirs]))
        other = float(theirs.mean())
        out["against"] = {"value": other, "interval": interval(0, theirs)}
        out["against"] |= {"difference": value - other, "difference_interval": difference}
    return out
