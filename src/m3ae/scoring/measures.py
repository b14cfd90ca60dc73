"""Measures with intervals and comparisons, from rows: answers, classes, ranks.

Letters: `Q` questions, `I` images, `P` parts, `R` runs (seeds), `S` resamples, `C` classes.

The 95 % interval of one run is the percentile bootstrap over images, of several
`statistics.interval_over_seeds`. Runs of two arms are paired, file by file, where there are equally
many (`paired_seeds` None); False takes their seeds as drawn apart.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from m3ae.scoring import statistics
from m3ae.scoring.metrics import confusion
from m3ae.scoring.predictions import FLAGS, TYPES, Row, Rows, Runs, is_right, reference

Key = tuple[str, ...]
OWN: Key = ("own",)
VALUE = ("value", "values")


def align(runs: Runs) -> list[list[Row]]:
    """Every run's rows in the first one's order; ValueError where they are of other questions."""
    order, aligned = [row["id"] for row in runs[0]], []
    for number, run in enumerate(runs, start=1):
        by_id = {row["id"]: row for row in run}
        differing = sorted(set(order) ^ set(by_id))
        both = f"prediction file {number} ({len(run)} rows) and the first one ({len(order)})"
        if differing or len(run) != len(order):
            example = repr(differing[0]) if differing else "an id twice"
            raise ValueError(f"{both} are not of the same questions, e.g. {example}")
        aligned.append([by_id[key] for key in order])
        for ours, theirs in zip(runs[0], aligned[-1], strict=True):
            if _asked(ours) != _asked(theirs):
                what = "images or pools" if "rank" in ours else "answers"
                what = "classes or labels" if "scores" in ours else what
                raise ValueError(f"{both} have other {what} to {ours['id']!r}")
    return aligned


def _asked(row: Row) -> tuple[Any, ...]:
    """What must be equal in two rows of one id."""
    if "scores" in row:
        return tuple(tuple(sorted(row.get(key, ()))) for key in ("scores", "labels", "unlabelled"))
    return (row["image"], row["pool"]) if "rank" in row else ("type" in row, reference(row))


def image_numbers(rows: Rows) -> np.ndarray:
    """The number of each row's image, int64 (Q,), in the order of their names."""
    return np.unique([row["image"] for row in rows], return_inverse=True)[1]


def parts_of(rows: Rows) -> dict[Key, np.ndarray]:
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


def sides_of(
    runs: Runs,
    blind: Mapping[str, Rows] | None = None,
    arms: Mapping[str, Runs] | None = None,
    against: Runs = (),
) -> dict[Key, list[list[Row]]]:
    """The runs to measure (`OWN`) and all that they are compared with, aligned, by place."""
    if not runs or not runs[0]:
        raise ValueError("no prediction to score")
    sides: dict[Key, Runs] = {OWN: runs}
    sides |= {("blind", name): [rows] for name, rows in (blind or {}).items()}
    sides |= {("arms", name): list(some) for name, some in (arms or {}).items()}
    sides |= {("against",): list(against)} if against else {}
    everything = iter(align([run for some in sides.values() for run in some]))
    return {key: [next(everything) for _ in some] for key, some in sides.items()}


def put(place: dict[str, Any], key: Key, value: Any) -> None:
    """Set a value in nested dictionaries, of which missing ones are made."""
    for step in key[:-1]:
        place = place.setdefault(step, {})
    place[key[-1]] = value


class Arm(NamedTuple):
    """A measure of an arm's runs on the images of a part, or the differences of two arms."""

    values: np.ndarray  # (R,)
    influence: np.ndarray  # (R, I)
    bias: np.ndarray | float = 0.0  # (R,) of macro-F1
    resampled: np.ndarray | None = None  # (S,), of a single run whose interval is the bootstrap's


class Options(NamedTuple):
    """What all measures of a result share."""

    due: list[tuple[dict[str, Any], Key, dict[str, Any], np.ndarray]]  # what awaits its p: entry,
    samples: int = 10_000  # place in it, comparison, its differences by image (I,)
    seed: int = 0
    paired_seeds: bool | None = None
    words: tuple[str, str] = ("accuracy", "accuracies")  # what one value and several are called


def _minus(arm: Arm, other: Arm) -> Arm:
    """The differences of paired arms."""
    pairs = zip(arm, other, strict=True)
    return Arm(*(None if ours is None else ours - theirs for ours, theirs in pairs))


def _interval(arms: Sequence[Arm], low: float) -> list[float] | None:
    """Of an arm's mean, or of two's difference, in [low, 1].

    Where all or none are right nothing varies: Wilson, by images; none of macro-F1, which hangs on
    its smallest classes. A difference of 0 everywhere has no width.
    """
    arm, *other = arms
    if not other and np.ptp(arm.values) == 0 and not arm.influence.any():
        fraction = float(arm.values[0] - low) / (1 - low)
        if fraction in (0, 1) and isinstance(arm.bias, float):
            ends = statistics.wilson(fraction, arm.influence.shape[1])
            return [low + (1 - low) * end for end in ends]
        return [0.0, 0.0] if low < 0 and not arm.values.any() else None
    if not other and arm.resampled is not None:
        return statistics.percentile_interval(arm.resampled, arm.influence.shape[1])
    measured = [(each.values - each.bias, each.influence) for each in arms]
    return statistics.interval_over_seeds(measured, low, 1.0)


def arm_figures(sides: Mapping[Key, Arm], counts: np.ndarray, options: Options) -> dict[str, Any]:
    """Figures of a part, with a comparison for each side but `OWN`; counts (I,): its questions."""
    inside, own = counts > 0, sides[OWN]
    one, several = options.words
    told = bool(options.samples) and inside.sum() >= statistics.FEWEST_IMAGES
    entry: dict[str, Any] = {}
    for key, arm in sides.items():
        mean, sd = statistics.mean_and_sd(arm.values)
        figures = {one: mean, "interval": _interval([arm], 0.0) if told else None}
        if len(arm.values) > 1:
            figures |= {several: arm.values.tolist(), "sd": sd}
        if key == OWN:
            entry |= figures
            continue
        paired = len(own.values) == len(arm.values) and options.paired_seeds is not False
        both = [_minus(own, arm)] if paired else [own, arm]
        figures["difference"] = float(own.values.mean() - arm.values.mean())
        figures["difference_interval"] = _interval(both, -1.0) if told else None
        figures["p"] = None
        if max(len(own.values), len(arm.values)) > 1:
            figures["paired_seeds"] = paired
        if told:
            moved = figures["difference"] * counts / counts.sum()
            moved[inside] += own.influence.mean(axis=0) - arm.influence.mean(axis=0)
            options.due.append((entry, key, figures, moved))
        put(entry, key, figures)
    return entry


def measure_parts(
    right: Mapping[Key, np.ndarray], masks: np.ndarray, image: np.ndarray, options: Options
) -> list[dict[str, Any]]:
    """An entry a part; masks bool (P, Q), image int64 (Q,).

    right (R, P, Q) of each side: bool, or fractions of a power of 2, so that sums are exact.
    """
    counts = statistics.by_image(masks, image)  # (P, I)
    hits = {key: statistics.by_image(array, image) for key, array in right.items()}  # (R, P, I)
    single = [key for key, array in hits.items() if len(array) == 1]
    totals = np.concatenate([counts, *(hits[key][0] for key in single)])
    sums = statistics.resampled_sums(totals.T, options.samples if single else 0, options.seed)
    drawn, *found = np.split(sums.T, 1 + len(single))  # (P, S)
    with np.errstate(invalid="ignore"):
        resampled = {key: some / drawn for key, some in zip(single, found, strict=True)}
    entries = []
    for part, inside in enumerate(counts > 0):
        if not inside.any():
            entry: dict[str, Any] = {options.words[0]: None, "interval": None}
            nothing = {**entry, "difference": None, "difference_interval": None, "p": None}
            for key in list(hits)[1:]:
                put(entry, key, dict(nothing))
        else:
            sides = {}
            for key, array in hits.items():
                arm = Arm(*statistics.ratio(array[:, part, inside], counts[part, inside]))
                sides[key] = arm._replace(resampled=resampled[key][part] if key in single else None)
            entry = arm_figures(sides, counts[part], options)
        images = int(inside.sum())
        told = OWN in single and options.samples and images >= statistics.FEWEST_IMAGES
        for key in single[1:] if told and right[OWN].dtype == bool else ():
            test = statistics.mcnemar(right[OWN][0, part], right[key][0, part])
            put(entry, (*key, "mcnemar"), test)
        entry |= {"questions": int(masks[part].sum()), "images": images}
        entries.append(entry)
    return entries


def set_p(options: Options) -> None:
    """Give the comparisons that await it their p, and p_holm among the exploratory ones."""
    if not options.due:
        return
    p = statistics.sign_flips(np.array([moved for *_, moved in options.due]), options.seed)
    families: dict[Key, list[dict[str, Any]]] = {}
    for (entry, key, compared, _), value in zip(options.due, p, strict=True):
        compared["p"] = float(value)
        if "exploratory" in entry:
            families.setdefault(key, []).append(compared)
    for family in families.values():
        adjusted = statistics.holm([compared["p"] for compared in family])
        for compared, value in zip(family, adjusted, strict=True):
            compared["p_holm"] = value


def measure_answers(
    runs: Runs,
    protocol: str | None,
    blind: Mapping[str, Rows] | None = None,
    arms: Mapping[str, Runs] | None = None,
    against: Runs = (),
    **options: Any,
) -> dict[str, Any]:
    """Accuracy (0-1) of runs over the same questions (`predictions.complete`), whole and in parts.

    `blind`: rows of baselines by name; `arms`: runs by name, e.g. with another's image; `against`:
    another model's runs. Options: samples=10_000 (0: no interval, no p), seed=0, paired_seeds=None.

        {"protocol", "runs", "samples", "seed", "paired_seeds", "overall": E, "open": E,
         "closed": E, "question_type": {name: E}, "strata": {flag: {"yes": E, "no": E}}}

    E = questions, images, accuracy (mean over runs), interval ([low, high]; None below 20 images),
    over several runs accuracies and sd, and "blind": {name: C}, "arms": {name: C}, "against": C.
    C = accuracy, interval, difference (runs less it), difference_interval, p (`sign_flips`),
    mcnemar of single runs, paired_seeds of several. Types and strata are `exploratory`, with
    p_holm: adjusted among all of them. Without a question, accuracy is None.
    """
    shared = Options([], **options)
    sides = sides_of(runs, blind, arms, against)
    rows = sides[OWN][0]
    parts = parts_of(rows)
    masks = np.array(list(parts.values()))
    right = {
        key: np.array([[is_right(row, protocol) for row in run] for run in some])[:, None] & masks
        for key, some in sides.items()
    }
    out = {"protocol": protocol, **head_of(runs, against, shared)}
    entries = measure_parts(right, masks, image_numbers(rows), shared)
    for key, entry in zip(parts, entries, strict=True):
        entry |= {"exploratory": True} if len(key) > 1 else {}
        put(out, key, entry)
    set_p(shared)
    return out


def head_of(runs: Runs, against: Runs, options: Options) -> dict[str, Any]:
    """What a result says of itself; paired_seeds: of the comparison `against`, or None."""
    same = len(runs) == len(against)
    if against and options.paired_seeds and not same:
        raise ValueError(f"pairs of seeds, but {len(runs)} files against {len(against)}")
    paired = (same and options.paired_seeds is not False) if against else None
    shared = {"samples": options.samples, "seed": options.seed, "paired_seeds": paired}
    return {"runs": len(runs), **shared}


def measure_classes(runs: Runs, protocol: str | None = None, **options: Any) -> dict[str, Any]:
    """`measure_answers` with its options, and of all rows macro_f1 and the confusion matrix.

    macro_f1: as E, of `classes`, those that are an answer or that one of `runs` predicts; for one
    run, scikit-learn's macro average. What another side predicts besides is wrong, but no class of
    the mean, so that a comparison does not move the value. confusion: `metrics.confusion` over all
    runs. `protocol` is only recorded. Rows without answers (kept as right or wrong) have neither.
    """
    out = measure_answers(runs, protocol, **options)
    others = {key: options.pop(key) for key in ("blind", "arms", "against") if key in options}
    sides, shared = sides_of(runs, **others), Options([], words=VALUE, **options)
    if None in (truth := [reference(row) for row in sides[OWN][0]]):
        return out
    said = {key: [[r.get("prediction") for r in run] for run in sides[key]] for key in sides}
    classes, matrix = confusion(truth * len(runs), [name for run in said[OWN] for name in run])
    image, number = image_numbers(sides[OWN][0]), np.array(classes, dtype=object)[:, None]
    true = number == np.array(truth, dtype=object)  # (C, Q)
    measured = {}
    for key, some in said.items():
        predicted = number == np.array(some, dtype=object)[:, None]  # (R, C, Q)
        counted = (statistics.by_image(x, image) for x in (predicted & true, predicted, true))
        measured[key] = Arm(*statistics.macro_f1(*counted))
    figures = arm_figures(measured, np.bincount(image), shared)
    set_p(shared)
    out["macro_f1"] = {"classes": len(classes), **figures}
    out["confusion"] = {"classes": classes, "matrix": matrix.tolist()}
    return out


def measure_ranks(runs: Runs, against: Runs = (), **options: Any) -> dict[str, Any]:
    """Recall at 1, 5, 10 and the median rank, from rows with id, image, way, rank and pool.

        {"runs", "samples", "seed", "paired_seeds", "t2i": W, "i2t": W}

    W = pool (how many were ranked), median_rank (over all runs), r1, r5, r10: as E and options of
    `measure_answers`, but value and values. Images are drawn with their texts, the pool stays.
    """
    shared = Options([], words=VALUE, **options)
    out = head_of(runs, against, shared)
    ks = np.array([1, 5, 10])
    for way in ("t2i", "i2t"):
        ours, theirs = (
            [[row for row in run if row["way"] == way] for run in some] for some in (runs, against)
        )
        if not any(ours + theirs):
            continue
        sides = sides_of(ours, against=theirs)
        rows = sides[OWN][0]
        ranks = {key: np.array([[r["rank"] for r in run] for run in sides[key]]) for key in sides}
        right = {key: array[:, None] <= ks[:, None] for key, array in ranks.items()}
        masks = np.ones((len(ks), len(rows)), dtype=bool)
        entries = measure_parts(right, masks, image_numbers(rows), shared)
        out[way] = {"pool": rows[0]["pool"], "median_rank": float(np.median(ranks[OWN]))}
        out[way] |= {f"r{k}": entry for k, entry in zip(ks, entries, strict=True)}
    set_p(shared)
    return out
