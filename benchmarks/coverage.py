"""How often the 95 % intervals of `m3ae.scoring` hold the true value, by simulation.

    python benchmarks/coverage.py --simulations 2000 --out coverage.json

An answer is right where a normal variable is below a threshold; it is made of an image's part
(0.15), a question's (0.35), what a model makes of the question (0.15) and what a seed does (0.35),
and each seed moves the threshold of its model. So the true accuracy of a seed is known, and that
of a model is the mean over seeds. `ratio` is the variance between seeds over that of the statistic
from drawing images; with one run the true value is that run's. Statistics:

    mean, paired, unpaired    accuracy, 200 images with 1 to 4 questions; difference of two models
                              whose seeds are shared (half of what they move), or not
    mean_20, paired_20        the same on 20 images, the fewest that have an interval
    recall                    500 captions, one an image
    macro_f1, macro_f1_paired 20 classes of 8 to 91 in 600 images; the difference of two models
    macro_f1_KxN              K classes, N images, one run; the smallest class has 6 (7x100) and 2.5

Prints JSON: by statistic, runs and ratio the coverage, its standard error and the mean width.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri
from tqdm import tqdm

from m3ae.scoring.statistics import (
    Measured,
    by_image,
    interval_over_seeds,
    macro_f1,
    percentile_interval,
    ratio,
    resampled_sums,
)

RUNS = (1, 2, 3, 5)
RATIOS = (0.1, 0.3, 1.0, 3.0, 10.0)
PARTS = {"image": 0.15, "question": 0.35, "model": 0.15, "seed": 0.35}
RESAMPLES = 1000  # of a single run's bootstrap


class Design(NamedTuple):
    """What is simulated: one or two models, shared seeds or not, classes where there are any."""

    right: tuple[float, ...]  # mean fraction of right answers of each model
    shared: float = 0.0  # fraction of the seeds' variance that two models share
    images: int = 200
    most: int = 4  # questions on an image, 1 to this
    classes: int = 0
    skew: float = 0.8  # class k is drawn in proportion to (1 + k) ** -skew


DESIGNS = {
    "mean": Design((0.65,)),
    "paired": Design((0.65, 0.55), shared=0.5),
    "unpaired": Design((0.65, 0.55)),
    "mean_20": Design((0.65,), images=20),
    "paired_20": Design((0.65, 0.55), shared=0.5, images=20),
    "recall": Design((0.2,), images=500, most=1),
    "macro_f1": Design((0.65,), images=600, most=1, classes=20),
    "macro_f1_paired": Design((0.65, 0.55), shared=0.5, images=600, most=1, classes=20),
    "macro_f1_7x100": Design((0.65,), images=100, most=1, classes=7, skew=1.0),
    "macro_f1_45x500": Design((0.65,), images=500, most=1, classes=45, skew=1.0),
}


def class_draws(design: Design) -> tuple[np.ndarray, np.ndarray]:
    """Probability of each class (C,), and of each wrong class by answer (C, C)."""
    of_class = (1.0 + np.arange(design.classes)) ** -design.skew
    of_class /= of_class.sum()
    wrong = np.sqrt(of_class) * (1 - np.eye(design.classes))
    return of_class, wrong / wrong.sum(axis=1, keepdims=True)


def thresholds(design: Design) -> np.ndarray:
    """Of each model and class, (A, C): classes differ in how hard they are; C = 1 without."""
    spread = 0.5 * np.sin(1.7 * np.arange(max(1, design.classes)))
    return ndtri(np.array(design.right))[:, None] + (spread if design.classes else 0)


def true_values(design: Design, moved: np.ndarray) -> np.ndarray:
    """The statistic of seeds that move the models' thresholds by moved (N, A): (N,)."""
    right = ndtr(thresholds(design) + moved[..., None])  # (N, A, C)
    values = right[..., 0]
    if design.classes:
        of_class, wrong = class_draws(design)
        said = of_class * right + (of_class * (1 - right)) @ wrong
        values = (2 * of_class * right / (of_class + said)).mean(axis=-1)
    return values[:, 0] - (values[:, 1] if values.shape[1] > 1 else 0)


def moves(design: Design, count: int, size: float, rng: np.random.Generator) -> np.ndarray:
    """How much each of `count` seeds moves each model's threshold, (count, A)."""
    own = rng.standard_normal((count, len(design.right)))
    common = rng.standard_normal((count, 1))
    return size * (np.sqrt(design.shared) * common + np.sqrt(1 - design.shared) * own)


def draw(design: Design, moved: np.ndarray, rng: np.random.Generator) -> list[Any]:
    """One data set: of each model hits (R, I) and counts (I,), or what `macro_f1` takes."""
    per_image = rng.integers(1, design.most + 1, design.images)
    image = np.repeat(np.arange(design.images), per_image)
    runs, models, questions = *moved.shape, len(image)
    weight = {name: np.sqrt(part) for name, part in PARTS.items()}
    same = weight["image"] * rng.standard_normal(design.images)[image]
    same += weight["question"] * rng.standard_normal(questions)
    kind, other = np.zeros(questions, dtype=int), np.zeros(0)
    if design.classes:
        of_class, wrong = class_draws(design)
        kind = rng.choice(design.classes, questions, p=of_class)
        places = rng.random((questions, 1)) > wrong.cumsum(axis=1)[kind]
        other = np.minimum(places.sum(axis=1), design.classes - 1)
    arms = []
    for model in range(models):
        value = same + weight["model"] * rng.standard_normal(questions)
        value = value + weight["seed"] * rng.standard_normal((runs, questions))
        right = value < thresholds(design)[model, kind] + moved[:, model, None]
        if design.classes:
            classes = np.arange(design.classes)[:, None]
            true, said = classes == kind, classes == np.where(right, kind, other)[:, None]
            arms.append((said & true, said.astype(int), true.astype(int)))
        else:
            arms.append((by_image(right, image), per_image))
    return arms


def measured(design: Design, arm: Any) -> Measured:
    """Values, less their bias, and influence of a model's runs."""
    if not design.classes:
        return ratio(*arm)
    values, influence, bias = macro_f1(*arm)
    return values - bias, influence


def interval(design: Design, arms: list[Any], seed: int) -> list[float]:
    """As `m3ae.scoring.measures` computes it."""
    found = [measured(design, arm) for arm in arms]
    low = -1.0 if len(arms) > 1 else 0.0
    if len(found[0][0]) == 1 and not design.classes:
        totals = np.stack([arms[0][1], *(arm[0][0] for arm in arms)], axis=1)
        count, *hits = resampled_sums(totals, RESAMPLES, seed).T
        values = (hits[0] - (hits[1] if len(hits) > 1 else 0)) / count
        return percentile_interval(values, design.images)
    if len(arms) > 1 and design.shared:
        found = [(found[0][0] - found[1][0], found[0][1] - found[1][1])]
    return interval_over_seeds(found, low, 1.0)


def size_of_moves(design: Design, wanted: float, rng: np.random.Generator) -> float:
    """How far seeds must move thresholds for `wanted` times the variance from drawing images."""
    still = np.zeros((1, len(design.right)))
    drawn = []
    for _ in range(400):
        value, *other = (measured(design, arm)[0][0] for arm in draw(design, still, rng))
        drawn.append(value - sum(other))
    unit = moves(design, 4000, 1.0, rng)
    low, high = 0.0, 3.0
    for _ in range(30):
        middle = (low + high) / 2
        enough = true_values(design, middle * unit).var() > wanted * np.var(drawn)
        low, high = (low, middle) if enough else (middle, high)
    return middle


def cell(
    name: str,
    runs: int,
    wanted: float | None,
    simulations: int,
    seed: int,
    bar: tqdm | None = None,
    interval: Callable[[Design, list[Any], int], list[float]] = interval,
) -> dict[str, Any]:
    """Coverage of a statistic with so many runs, at a ratio (None: seeds do not differ)."""
    design, rng = DESIGNS[name], np.random.default_rng([seed, runs, round(100 * (wanted or 0))])
    size = size_of_moves(design, wanted, rng) if wanted else 0.0
    truth = true_values(design, moves(design, 200_000 if wanted else 1, size, rng)).mean()
    inside, widths = 0, 0.0
    for number in range(simulations):
        arms = draw(design, moves(design, runs, size, rng), rng)
        low, high = interval(design, arms, number)
        inside += low <= truth <= high
        widths += high - low
        if bar is not None:
            bar.update()
    coverage = inside / simulations
    return {
        "statistic": name,
        "runs": runs,
        "ratio": wanted,
        "coverage": coverage,
        "standard_error": float(np.sqrt(coverage * (1 - coverage) / simulations)),
        "width": widths / simulations,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the cells as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--simulations", type=int, default=2000, metavar="N", help="of each cell (%(default)s)")
    add("--seed", type=int, default=0)
    add("--out", type=Path, metavar="FILE", help="write the JSON there too")
    args = parser.parse_args(argv)
    if args.simulations < 1:
        parser.error(f"--simulations {args.simulations}: below 1")
    cells = [(name, 1, None) for name in DESIGNS if name != "unpaired"]
    several = [name for name in DESIGNS if not name[-2:].isdigit()]
    cells += [(name, runs, wanted) for name in several for runs in RUNS[1:] for wanted in RATIOS]
    with tqdm(total=len(cells) * args.simulations, unit="data set") as bar:
        found = [cell(*which, args.simulations, args.seed, bar) for which in cells]
    text = json.dumps(
        {"simulations": args.simulations, "seed": args.seed, "cells": found}, indent=1
    )
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
