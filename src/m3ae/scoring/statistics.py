"""Intervals and tests on arrays: bootstrap over images, few seeds, sign flips, McNemar, Holm.

Letters: `Q` questions, `I` images, `S` resamples, `R` runs (seeds), `C` classes, `K` columns. The
questions of an image are not independent, so whole images are drawn and flipped (cluster
bootstrap; Davison and Hinkley 1997, section 3.8).

A measure of R runs is its values (R,) and their influence (R, I): by how much each image moves
them. Over the images they add up to 0, and I/(I-1) times the sum of their squares is the variance
of the value from drawing images: of a ratio the linearised one, of macro-F1 the jackknife's.
"""

from collections.abc import Sequence

import numpy as np
from scipy.special import bdtr, ndtr, stdtrit

LEVEL = 0.95
FEWEST_IMAGES = 20  # with fewer, no interval and no p
FLIPS = 10_000
_EXACT = 14  # with fewer images that differ, all sign flips are counted
_POWER = 1.75  # see `interval_over_seeds`
_BLOCK = 2**24  # numbers drawn at a time

Measured = tuple[np.ndarray, np.ndarray]  # values (R,), influence (R, I)


def by_image(values: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Sums (..., I) over each image's questions of values (..., Q); image int64 (Q,), from 0."""
    totals = np.zeros((int(image.max()) + 1, *values.shape[:-1]))
    np.add.at(totals, image, np.moveaxis(values, -1, 0).astype(np.float64))
    return np.moveaxis(totals, 0, -1)


def ratio(hits: np.ndarray, counts: np.ndarray) -> Measured:
    """Sum of hits (R, I) over that of counts (I,): values and influence, e.g. of an accuracy."""
    values = hits.sum(axis=1) / counts.sum()
    return values, (hits - values[:, None] * counts) / counts.sum()


def macro_f1(hits: np.ndarray, said: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean F1 over C classes: values (R,), influence (R, I), bias (R,), by the jackknife.

    Right (R, C, I), predicted (R, C, I), answers (C, I), by image. A class that is neither an
    answer nor predicted has F1 0. F1 of a small class is biased (Quenouille 1956, Tukey 1958).
    """
    images, both = true.shape[1], said + true
    values = (2 * hits.sum(-1) / np.maximum(both.sum(-1), 1)).mean(axis=1)
    right, total = (x.sum(-1, keepdims=True) - x for x in (hits, both))  # without an image
    without = (2 * right / np.maximum(total, 1)).mean(axis=1)  # (R, I)
    middle = without.mean(axis=1)
    influence = (middle[:, None] - without) * (images - 1) / images
    return values, influence, (images - 1) * (middle - values)


def ranked(score: np.ndarray, true: np.ndarray) -> dict[str, tuple[float, np.ndarray]]:
    """`auroc` and `average_precision`, as scikit-learn has them: value and influence (Q,) of each.

    score float (Q,), true bool (Q,), of which some are and some are not. Equal scores are one
    threshold. Influence: the derivative by a question's weight, the linearised one.
    """
    values, place = np.unique(-score, return_inverse=True)  # thresholds, the highest first
    true_at, false_at = (np.bincount(place, group, len(values)) for group in (true, ~true))
    trues, falses = np.cumsum(true_at), np.cumsum(false_at)  # at each threshold and above
    positives, negatives = trues[-1], falses[-1]
    below = (negatives - falses + false_at / 2) / negatives  # of negatives, ties by half
    above = (trues - true_at / 2) / positives
    auroc = float((true_at * below).sum() / positives)
    moved = np.where(true, (below[place] - auroc) / positives, (above[place] - auroc) / negatives)
    precision, count = trues / (trues + falses), trues + falses
    average = float((true_at * precision).sum() / positives)
    # A question counts in the precision at its threshold and at all lower ones.
    lower = (np.cumsum((true_at * part / count)[::-1])[::-1] for part in (1 - precision, precision))
    gained, lost = (part[place] / positives for part in lower)
    shift = np.where(true, (precision[place] - average) / positives + gained, -lost)
    return {"auroc": (auroc, moved), "average_precision": (average, shift)}


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (n - 1) over seeds; None for the latter with one seed."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None


def resampled_sums(totals: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Sums (S, K) over images drawn with replacement: exact, of totals (I, K) in whole numbers."""
    images = len(totals)
    rng, even = np.random.default_rng([seed, 0]), np.full(images, 1 / images)
    block, parts = max(1, _BLOCK // images), [np.zeros((0, totals.shape[1]))]
    for begin in range(0, samples, block):
        times = rng.multinomial(images, even, size=min(block, samples - begin))
        parts.append(times.astype(np.float64) @ totals)
    return np.concatenate(parts)


def percentile_interval(values: np.ndarray, images: float = np.inf) -> list[float]:
    """95 % percentile interval of resampled values (S,); nan are left out.

    With the number of images drawn, expanded for few of them: levels as of a t quantile and the
    variance's I/(I-1) (Hesterberg 2015), 2.4 for 2.5 % at 200, 1.6 % at 20.
    """
    tail = 100 * ndtr(-stdtrit(images - 1, (1 + LEVEL) / 2) / np.sqrt(1 - 1 / images))
    return np.percentile(values[~np.isnan(values)], [tail, 100 - tail]).tolist()


def interval_over_seeds(arms: Sequence[Measured], low: float, high: float) -> list[float]:
    """95 % interval, within low and high, of the mean over runs, or of two arms' difference.

    Of paired seeds the differences are one arm; a single run stands for itself. Two variances add
    up: that from drawing images, known well (influence of the mean run, less what of it is noise of
    single runs), and that between runs over their number, with R - 1 degrees of freedom. The
    squared half-width is their sum times t2_images + (t2_seeds - t2_images) part^1.75: the seeds'
    part of the sum, squared t quantiles. Welch-Satterthwaite covers too seldom with two runs,
    Cochran-Cox too often (benchmarks/coverage.py). It is at least half as wide as from images only.
    """
    images = arms[0][1].shape[1]
    mean, change, noise, seeds = 0.0, np.zeros(images), 0.0, []
    # One arm has one sign.
    for sign, (values, influence) in zip((1, -1), arms, strict=False):
        runs, middle = len(values), influence.mean(axis=0)
        mean, change = mean + sign * values.mean(), change + sign * middle
        if runs > 1:
            noise += ((influence - middle) ** 2).sum() / (runs * (runs - 1))
            seeds.append((values.var(ddof=1) / runs, runs - 1))
    drawn, noise = (images / (images - 1) * x for x in ((change**2).sum(), noise))
    t2_images = stdtrit(images - 1, (1 + LEVEL) / 2) ** 2
    square = t2_images * drawn
    if seeds:
        between, freedom = (sum(column) for column in zip(*seeds, strict=True))
        total = max(drawn - noise, 0.0) + between
        if len({df for _, df in seeds}) > 1 and between:  # of equal numbers, pooled covers best
            freedom = between**2 / sum(variance**2 / df for variance, df in seeds)  # Satterthwaite
        t2_seeds = stdtrit(freedom, (1 + LEVEL) / 2) ** 2
        part = between / total if between else 0.0
        wider = total * (t2_images + (t2_seeds - t2_images) * part**_POWER)
        square = max(wider, square / 4)
    half = float(np.sqrt(square))
    return [max(low, float(mean) - half), min(high, float(mean) + half)]


def wilson(fraction: float, count: float) -> list[float]:
    """Wilson's 95 % interval (1927) of a fraction of `count` independent trials.

    Of questions in images, count = questions / design effect: where all or none are right, the
    correlation within an image, which cannot be estimated, is taken as 1, so count = images.
    """
    z2 = stdtrit(np.inf, (1 + LEVEL) / 2) ** 2 / count
    half = np.sqrt(z2 * (fraction * (1 - fraction) + z2 / 4))
    low, high = ((fraction + z2 / 2 + side * half) / (1 + z2) for side in (-1, 1))
    return [max(0.0, float(low)), min(1.0, float(high))]


def sign_flips(differences: np.ndarray, seed: int = 0) -> np.ndarray:
    """Two-sided p (K,) of sums of differences (K, I) against flips of whole images' signs.

    Under the null an image could as well have come out the other way round. Counted exactly where
    fewer than 14 images differ; else (1 + k) / (1 + n) over n = 10,000 random flips. The runs are
    taken as they are: the p tells nothing of other seeds, which the interval does.
    """
    images = differences.shape[1]
    size = np.abs(differences).sum(axis=1)
    observed = np.abs(differences.sum(axis=1)) - 1e-9 * size  # ties count, whatever the rounding
    reached = np.zeros(len(differences))
    rng, block = np.random.default_rng([seed, 1]), max(1, _BLOCK // images)
    for begin in range(0, FLIPS, block):
        flips = rng.integers(0, 2, (min(block, FLIPS - begin), images), dtype=np.int8)
        sums = (2.0 * flips - 1) @ differences.T
        reached += (np.abs(sums) >= observed).sum(axis=0)
    p = (1 + reached) / (1 + FLIPS)
    for column, row in enumerate(differences):
        row = row[np.abs(row) > 1e-12 * size[column]]  # what rounding leaves is no difference
        if len(row) < _EXACT:
            signs = 1 - 2.0 * (np.arange(2 ** len(row))[:, None] >> np.arange(len(row)) & 1)
            p[column] = (np.abs(signs @ row) >= observed[column]).mean()
    return p


def mcnemar(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """McNemar's test (1947), exact and two-sided, of two runs on the same questions.

    first, second bool (Q,): right or not. What only one of them has right is as often either under
    the null. It takes the questions of an image as independent: `sign_flips` is the safer of both.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    total = only_first + only_second
    p = min(1.0, 2 * float(bdtr(min(only_first, only_second), total, 0.5))) if total else 1.0
    return {"only_first": only_first, "only_second": only_second, "p": p}


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjustment (1979) of the p values of one family, in their order."""
    values = np.asarray(p, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    return np.minimum(1.0, steps)[np.argsort(order)].tolist()
