"""Measures of rows with several findings each, of which a model gives every class a score.

Letters as in `measures`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from m3ae.scoring import statistics
from m3ae.scoring.measures import (
    OWN,
    VALUE,
    Arm,
    Key,
    Options,
    arm_figures,
    head_of,
    image_numbers,
    set_p,
    sides_of,
)
from m3ae.scoring.predictions import Runs

RANKED = ("auroc", "average_precision")  # of `statistics.ranked`


def measure_labels(runs: Runs, protocol: str | None = None, **options: Any) -> dict[str, Any]:
    """AUROC and average precision by class and their mean over classes, from rows with `scores`.

        {"protocol", "runs", "samples", "seed", "paired_seeds", "questions", "images",
         "left_out": {class: why}, "auroc": {"macro": E, "by_class": {class: E}},
         "average_precision": the same}

    E and options as of `measure_answers`, but value and values; of a class, `positives` too, and
    its questions are those that say something of it. Left out, of the mean too, are classes of
    which no row is, or every row. An interval of a class needs positives on two images, too.
    `protocol` is only recorded.
    """
    others = {key: options.pop(key) for key in ("blind", "arms", "against") if key in options}
    shared, sides = Options([], words=VALUE, **options), sides_of(runs, **others)
    out = {"protocol": protocol, **head_of(runs, others.get("against", ()), shared)}
    rows, image = sides[OWN][0], image_numbers(sides[OWN][0])
    out |= {"questions": len(rows), "images": int(image.max()) + 1, "left_out": {}}
    measured: dict[str, dict[str, dict[Key, Arm]]] = {name: {} for name in RANKED}
    counts: dict[str, tuple[int, int, np.ndarray]] = {}
    for name in rows[0]["scores"]:
        known = np.array([name not in row.get("unlabelled", ()) for row in rows])
        true = np.array([name in row["labels"] for row in rows])[known]
        if not true.any() or true.all():
            out["left_out"][name] = "every row is of it" if true.any() else "no row is of it"
            continue
        counts[name] = int(true.sum()), len(np.unique(image[known][true])), known
        for key, some in sides.items():
            scores = (np.array([row["scores"][name] for row in run])[known] for run in some)
            found = [statistics.ranked(score, true) for score in scores]
            for measure in RANKED:
                values, moved = zip(*(each[measure] for each in found), strict=True)
                influence = np.zeros((len(some), len(rows)))
                influence[:, known] = moved
                influence = statistics.by_image(influence, image)
                zeros = np.zeros(len(some))  # an array: no Wilson's interval, which is of fractions
                measured[measure].setdefault(name, {})[key] = Arm(
                    np.array(values), influence, zeros
                )
    for measure, by_class in measured.items():
        out[measure] = _figures(by_class, sides, counts, image, shared)
    set_p(shared)
    return out


def _figures(
    by_class: Mapping[str, Mapping[Key, Arm]],
    sides: Mapping[Key, Any],
    counts: Mapping[str, tuple[int, int, np.ndarray]],
    image: np.ndarray,
    shared: Options,
) -> dict[str, Any]:
    """`macro` and `by_class` of one measure; counts: positives, their images, rows by class."""
    if not by_class:
        return {"macro": {"value": None, "interval": None}, "by_class": {}}
    means = {}
    for key in sides:
        arms = [arm[key] for arm in by_class.values()]
        means[key] = Arm(*(np.mean(part, axis=0) for part in list(zip(*arms, strict=True))[:3]))
    entries = {
        "macro": {"classes": len(by_class), **arm_figures(means, np.bincount(image), shared)}
    }
    entries["by_class"] = {}
    for name, arms in by_class.items():
        positives, images, known = counts[name]
        rows = np.bincount(image, known)
        few = shared._replace(samples=0) if images < 2 else shared
        entry = arm_figures(arms, rows, few)
        entry |= {"questions": int(known.sum()), "images": int((rows > 0).sum())}
        entry |= {"positives": positives, "exploratory": True}
        entries["by_class"][name] = entry
    return entries
