"""Accuracy with intervals, from rows of predictions: bootstrap over images, paired comparison.

Letters: `Q` questions, `I` images, `S` resamples, `R` runs (seeds), `K` columns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest

from m3ae.scoring.predictions import FLAGS, TYPES, Row, is_right, reference

LEVEL = 0.95
FEWEST_IMAGES = 3  # with fewer, a resample has no image of the part in over 5 % of cases
_BLOCK = 2**24  # numbers of resampled counts held at a time


# ------------------------------------------------------------------ resampling


class Bootstrap:
    """Resamples of images with replacement, all questions of an image together.

    The questions of an image are not independent, so the image is the unit that is drawn (cluster
    bootstrap; Davison and Hinkley 1997, section 3.8). What is drawn depends on the set of image
    names, `samples` and `seed` alone, not on the order of the rows.
    """

    def __init__(self, images: Sequence[str], samples: int = 10_000, seed: int = 0) -> None:
        number = {name: k for k, name in enumerate(sorted(set(images)))}
        self.image = np.array([number[name] for name in images], dtype=np.int64)  # (Q,)
        self.images, self.samples, self.seed = len(number), samples, seed

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum over the drawn images' questions: values (Q, K) of whole numbers -> float64 (S, K).

        Sums of whole numbers are exact, so no order of addition can change the result.
        """
        totals = np.zeros((self.images, values.shape[1]))
        np.add.at(totals, self.image, values.astype(np.float64))
        rng = np.random.default_rng([self.seed, 0])
        even = np.full(self.images, 1 / self.images)
        block = max(1, _BLOCK // self.images)
        parts = [np.zeros((0, values.shape[1]))]
        for begin in range(0, self.samples, block):
            times = rng.multinomial(self.images, even, size=min(block, self.samples - begin))
            parts.append(times.astype(np.float64) @ totals)
        return np.concatenate(parts)

    def run_weights(self, runs: int, stream: int) -> np.ndarray:
        """Weight (S, R) of each run in each resample: runs drawn with replacement, sum 1.

        Drawing among R runs shows (R-1)/R of their variance, so few seeds give a narrow interval.
        """
        rng = np.random.default_rng([self.seed, 1 + stream])
        return rng.multinomial(runs, np.full(runs, 1 / runs), size=self.samples) / runs


def interval(values: np.ndarray, images: int) -> list[float] | None:
    """Percentile interval (Efron 1979) of resampled values (S,), 95 %; [low, high].

    A resample without a question of the part has no value (nan) and is left out. None with fewer
    than 3 images in the part, or without resamples. Where every question is right, or none is, the
    interval has no width, for resamples show only what occurred.
    """
    values = values[~np.isnan(values)]
    if images < FEWEST_IMAGES or not len(values):
        return None
    tail = 50 * (1 - LEVEL)
    return [float(x) for x in np.percentile(values, [tail, 100 - tail])]


def mcnemar(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """McNemar's test (1947), exact and two-sided, of two runs on the same questions.

    first, second bool (Q,): right or not. The questions that only one of them has right are as many
    for each under the null: binomial with 1/2. It takes questions as independent, which those of
    one image are not: the interval of the paired difference is the safer of the two.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    total = only_first + only_second
    p = float(binomtest(only_first, total, 0.5).pvalue) if total else 1.0
    return {"only_first": only_first, "only_second": only_second, "p": p}


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (n - 1) over seeds; None for the latter with one seed."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None


# ------------------------------------------------------------------ rows


def align(runs: Sequence[Sequence[Row]]) -> list[list[Row]]:
    """Every run's rows in the first one's order; ValueError where they are of other questions."""
    order = [row["id"] for row in runs[0]]
    aligned = []
    for number, run in enumerate(runs, start=1):
        by_id = {row["id"]: row for row in run}
        differing = sorted(set(order) ^ set(by_id))
        if differing or len(run) != len(order):
            example = repr(differing[0]) if differing else "an id twice"
            raise ValueError(
                f"prediction file {number} ({len(run)} rows) and the first one "
                f"({len(order)}) are not of the same questions, e.g. {example}"
            )
        aligned.append([by_id[key] for key in order])
        for ours, theirs in zip(runs[0], aligned[-1], strict=True):
            if ("type" in ours, reference(ours)) != ("type" in theirs, reference(theirs)):
                raise ValueError(
                    f"prediction file {number} and the first one have other answers "
                    f"to {ours['id']!r}"
                )
    return aligned


def parts_of(rows: Sequence[Row]) -> dict[tuple[str, ...], np.ndarray]:
    """Masks bool (Q,) of what is reported apart; keys such as (question_type, PRES)."""
    parts = {("overall",): np.ones(len(rows), dtype=bool)}
    if "type" in rows[0]:
        parts |= {(kind,): np.array([row["type"] == kind for row in rows]) for kind in TYPES}
    if "question_type" in rows[0]:
        kinds = [row["question_type"].strip() or "(none)" for row in rows]
        for kind in sorted(set(kinds)):
            parts["question_type", kind] = np.array([other == kind for other in kinds])
    for flag in FLAGS:
        if all(row.get(flag) is not None for row in rows):
            has = np.array([row[flag] for row in rows])
            parts |= {("strata", flag, "yes"): has, ("strata", flag, "no"): ~has}
    return parts


def evaluate_vqa(rows: Sequence[Row], protocol: str, **options: Any) -> dict[str, Any]:
    """`evaluate` of one run; per-epoch scores need no intervals: samples=0."""
    return evaluate([rows], protocol, **options)


def evaluate(
    runs: Sequence[Sequence[Row]],
    protocol: str,
    blind: Mapping[str, Sequence[Row]] | None = None,
    against: Sequence[Sequence[Row]] = (),
    samples: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy (0-1) of runs over the same questions: overall, open, closed, by type, by stratum.

    `runs`: rows of `predictions.complete`, one list a seed. `blind`: rows of baselines by name.
    `against`: the runs that these are compared with. Entries of the result are

        {"overall": E, "open": E, "closed": E, "question_type": {name: E},
         "strata": {flag: {"yes": E, "no": E}}}

    with E = questions, images, accuracy (mean over runs), interval ([low, high] or None); over
    several runs also accuracies and sd; and by baseline and for `against` its accuracy, the paired
    difference (runs minus it) and the interval of that, `mcnemar` between single runs. In a
    resample, images are drawn, and the runs on each side are drawn among themselves. A part
    without a question has accuracy None. Classes: `evaluate_classes` adds to this.
    """
    runs, *others = _arms(runs, blind or {}, against)
    rows = runs[0]
    parts = parts_of(rows)
    masks = np.array(list(parts.values()))  # (P, Q)
    bootstrap = Bootstrap([row["image"] for row in rows], samples, seed)
    arms = [_arm(bootstrap, arm, protocol, masks, k) for k, arm in enumerate([runs, *others])]
    names = [*(blind or {}), *(["against"] if against else [])]
    out: dict[str, Any] = {
        "protocol": protocol,
        "runs": len(runs),
        "samples": samples,
        "seed": seed,
    }
    for part, (key, mask) in enumerate(parts.items()):
        images = len(np.unique(bootstrap.image[mask]))
        entry = {
            "questions": int(mask.sum()),
            "images": images,
            **_own(arms[0], mask, part, images),
        }
        for name, arm in zip(names, arms[1:], strict=True):
            compared = _compared(arms[0], arm, mask, part, images)
            if name == "against":
                entry[name] = compared
            else:
                entry.setdefault("blind", {})[name] = compared
        place = out
        for step in key[:-1]:
            place = place.setdefault(step, {})
        place[key[-1]] = entry
    return out


def _arms(
    runs: Sequence[Sequence[Row]],
    blind: Mapping[str, Sequence[Row]],
    against: Sequence[Sequence[Row]],
) -> list[list[list[Row]]]:
    """The runs of each arm, all aligned: those to score, each baseline, those compared with."""
    if not runs or not runs[0]:
        raise ValueError("no prediction to score")
    everything = align([*runs, *blind.values(), *against])
    middle = len(runs) + len(blind)
    baselines = [[rows] for rows in everything[len(runs) : middle]]
    return [everything[: len(runs)], *baselines, *([everything[middle:]] if against else [])]


def _arm(
    bootstrap: Bootstrap, runs: list[list[Row]], protocol: str, masks: np.ndarray, stream: int
) -> tuple[np.ndarray, np.ndarray]:
    """right bool (R, Q) of an arm, and its resampled accuracy (P, S): mean over drawn runs."""
    right = np.array([[is_right(row, protocol) for row in run] for run in runs])
    columns = np.concatenate([masks[None], masks[None] & right[:, None]])  # (1 + R, P, Q)
    sums = bootstrap.sums(columns.reshape(-1, right.shape[1]).T)
    count, *hits = np.moveaxis(sums.reshape(bootstrap.samples, *columns.shape[:2]), 0, -1)
    weights = bootstrap.run_weights(len(runs), stream).T  # (R, S)
    mean = sum(hit * weight for hit, weight in zip(hits, weights, strict=True))  # (P, S)
    return right, np.divide(mean, count, out=np.full_like(count, np.nan), where=count > 0)


def _own(
    arm: tuple[np.ndarray, np.ndarray], mask: np.ndarray, part: int, images: int
) -> dict[str, Any]:
    """accuracy and interval of a part, and over several runs accuracies and sd."""
    right, resampled = arm
    if not mask.any():
        return {"accuracy": None, "interval": None}
    accuracies = [float(run[mask].mean()) for run in right]
    mean, sd = mean_and_sd(accuracies)
    several = {"accuracies": accuracies, "sd": sd} if len(right) > 1 else {}
    return {"accuracy": mean, "interval": interval(resampled[part], images), **several}


def _compared(
    arm: tuple[np.ndarray, np.ndarray],
    other: tuple[np.ndarray, np.ndarray],
    mask: np.ndarray,
    part: int,
    images: int,
) -> dict[str, Any]:
    """The other arm's own figures, and the first one's difference from it."""
    out = _own(other, mask, part, images)
    (right, resampled), (right_other, resampled_other) = arm, other
    if not mask.any():
        return {**out, "difference": None, "difference_interval": None}
    out["difference"] = float(right[:, mask].mean() - right_other[:, mask].mean())
    out["difference_interval"] = interval(resampled[part] - resampled_other[part], images)
    if len(right) == len(right_other) == 1:
        out["mcnemar"] = mcnemar(right[0, mask], right_other[0, mask])
    return out


# ------------------------------------------------------------------ classes


def evaluate_classes(runs: Sequence[Sequence[Row]], **options: Any) -> dict[str, Any]:
    """`evaluate`, and of all rows macro_f1 with its interval and the confusion matrix.

    macro_f1: mean over runs of the unweighted mean of F1 over the classes that are an answer or a
    prediction. confusion: rows are answers, columns predictions, summed over runs; a missing
    prediction is in no column.
    """
    from m3ae.scoring.metrics import confusion, macro_f1

    out = evaluate(runs, "paper", **options)
    runs = align(runs)
    truth = [reference(row) for row in runs[0]]
    predicted = [[row["prediction"] for row in run] for run in runs]
    values = [macro_f1(truth, names) for names in predicted]
    mean, sd = mean_and_sd(values)
    bootstrap = Bootstrap([row["image"] for row in runs[0]], out["samples"], out["seed"])
    resampled = np.stack([resampled_macro_f1(bootstrap, truth, names) for names in predicted])
    weights = bootstrap.run_weights(len(runs), 0).T
    out["macro_f1"] = {
        "value": mean,
        "interval": interval((weights * resampled).sum(axis=0), bootstrap.images),
        **({"values": values, "sd": sd} if len(runs) > 1 else {}),
    }
    flat = [name for names in predicted for name in names]
    classes, matrix = confusion(truth * len(runs), flat)
    out["confusion"] = {"classes": classes, "matrix": matrix.tolist()}
    return out


def resampled_macro_f1(
    bootstrap: Bootstrap, truth: Sequence[str], predicted: Sequence[str | None]
) -> np.ndarray:
    """Macro-F1 of each resample, (S,): over the classes that occur in it."""
    classes = sorted({*truth, *predicted} - {None})
    true = np.array([[name == other for other in classes] for name in truth])  # (Q, C)
    said = np.array([[name == other for other in classes] for name in predicted])
    sums = bootstrap.sums(np.concatenate([true & said, true, said], axis=1))
    hits, of_true, of_said = np.split(sums, 3, axis=1)
    both = of_true + of_said
    f1 = np.divide(2 * hits, both, out=np.zeros_like(both), where=both > 0)
    return f1.sum(axis=1) / (both > 0).sum(axis=1)
