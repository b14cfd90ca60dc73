"""Probes of frozen features: logistic regression and nearest neighbours, chosen within training.

Letters: `n` rows, `D` width of the features, `A` classes.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from m3ae.data.questions import read_questions
from m3ae.scoring.predictions import Row, reference

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # `C` of the linear probe, the strongest first
NEIGHBOURS = (1, 5, 20, 50)
PROBES = ("linear", "nearest")
FOLDS = 5
TEMPERATURE = 0.07  # of the neighbours' weights (Wu et al. 2018)
STEPS = 1000  # of the linear probe's solver, at most
_LEAST = 1e-6  # chance of a class that a fold has never seen

Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # X, targets, X of test -> chances


@dataclass
class Labelled:
    """Features float32 (n, D) with the label of each row and what else a measure needs of it."""

    path: Path
    features: np.ndarray
    rows: list[Row]  # id, image, and answer or labels (and unlabelled)

    @property
    def several(self) -> bool:
        """Whether a row has any number of classes."""
        return "labels" in self.rows[0]

    def images(self) -> np.ndarray:
        """The number of each row's image, int64 (n,)."""
        return np.unique([row["image"] for row in self.rows], return_inverse=True)[1]

    def classes(self) -> list[str]:
        """The classes that occur, sorted."""
        if self.several:
            return sorted({name for row in self.rows for name in row["labels"]})
        return sorted({row["answer"] for row in self.rows})

    def targets(self, classes: Sequence[str]) -> np.ndarray:
        """int64 (n, A): 1 of it, 0 not, -1 not said."""
        given = [row["labels"] if self.several else [row["answer"]] for row in self.rows]
        unsaid = [row.get("unlabelled", ()) for row in self.rows]
        pairs = zip(given, unsaid, strict=True)
        return np.array([[-1 if c in no else int(c in has) for c in classes] for has, no in pairs])


def read_labelled(path: Path, field: str, data: Path | None = None) -> Labelled:
    """A file of `m3ae.features` with the labels of the prepared split that it was made from.

    data: that split, where it is no longer at the place that the file names. Features of images
    stand with every labelled text of theirs. Raises ValueError naming what does not fit.
    """
    features, about = _read(path)
    folder = data or Path(about["data"])
    place = {key: k for k, key in enumerate(json.loads(about["keys"]))}
    by = "image" if about["what"] == "image" else "id"
    rows, kept = [], []
    for row in read_questions(folder, field):
        if row[by] not in place:
            hint = "give the split that its features are of"
            raise ValueError(f"{path}: no features of {row[by]!r}, which {folder} has; {hint}")
        label = {"labels": row["labels"]} if "labels" in row else {"answer": str(reference(row))}
        more = {key: row[key] for key in ("unlabelled",) if row.get(key)}
        rows.append({"id": row["id"], "image": row["image"], **label, **more})
        kept.append(place[row[by]])
    if not rows:
        raise ValueError(f"{folder}: no row has a {field}")
    return Labelled(path, features[kept], rows)


def _read(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; write it with python -m m3ae.features")
    try:
        with safe_open(str(path), framework="numpy") as file:
            about = file.metadata() or {}
            features = file.get_tensor("features")
    except SafetensorError as error:
        raise ValueError(f"{path}: not a file of m3ae.features ({error})") from error
    if missing := {"keys", "what", "data"} - about.keys():
        raise ValueError(f"{path}: not a file of m3ae.features (no {min(missing)} in it)")
    return features, about


# ------------------------------------------------------------------------------ probes


def probe(kind: str, train: Labelled, test: Labelled) -> tuple[list[Row], dict[str, Any]]:
    """Test rows with a probe's predictions, and what was chosen of it.

    kind: of `PROBES`. Its penalty, or number of neighbours, has the highest likelihood in
    cross-validation over the training images; the test set is predicted once. Classes are those of
    training. Rows get `scores` by class and, of one class a row, `prediction` and `score`.
    """
    classes = train.classes()
    if len(classes) < 2 and not train.several:
        raise ValueError(f"{train.path}: every row is of one class, {classes}; nothing to learn")
    if train.several != test.several or train.features.shape[1] != test.features.shape[1]:
        what = "other features or labels"
        raise ValueError(f"{test.path}: of {what} than {train.path}")
    targets, images = train.targets(classes), train.images()
    groups = min(FOLDS, int(images.max()) + 1)
    if groups < 2:
        raise ValueError(f"{train.path}: rows of one image; the choice needs two or more")
    options = PENALTIES if kind == "linear" else [k for k in NEIGHBOURS if k <= len(images) // 2]
    fits = {option: _fit(kind, option, train.several) for option in options or [1]}
    with _counting_unfinished() as unfinished:
        chosen = _choose(fits, train.features, targets, images, groups, kind)
        chances = fits[chosen](train.features, targets, test.features)
    rows = [_row(row, classes, own) for row, own in zip(test.rows, chances, strict=True)]
    name = "C" if kind == "linear" else "neighbours"
    facts = {"probe": kind, name: chosen, "classes": len(classes), "train_rows": len(images)}
    known, given = {*classes}, (row.get("labels") or [row.get("answer")] for row in test.rows)
    other = sum(known.isdisjoint(names) for names in given if names != [None])
    counts = {"fits_not_converged": len(unfinished), "test_rows_of_other_classes_alone": other}
    return rows, facts | {name: count for name, count in counts.items() if count}


@contextmanager
def _counting_unfinished() -> Iterator[list[str]]:
    """A list of the fits in the block that ended before they converged; other warnings pass on."""
    from sklearn.exceptions import ConvergenceWarning

    unfinished: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        yield unfinished
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            unfinished.append(str(warning.message))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )


def _row(row: Row, classes: list[str], chances: np.ndarray) -> Row:
    scores = {name: round(float(x), 6) for name, x in zip(classes, chances, strict=True)}
    if "labels" in row:
        return {**row, "scores": scores}
    best = classes[int(chances.argmax())]
    return {**row, "prediction": best, "score": scores[best], "scores": scores}


def _choose(
    fits: dict[Any, Fit],
    features: np.ndarray,
    targets: np.ndarray,
    images: np.ndarray,
    groups: int,
    kind: str,
) -> Any:
    """The option whose held-out chances are the likeliest; among equals the first."""
    from sklearn.model_selection import GroupKFold

    folds = list(GroupKFold(groups).split(features, groups=images))
    found = {}
    with tqdm(total=len(fits) * len(folds), desc=f"{kind} probe", unit="fit") as bar:
        for option, fit in fits.items():
            held = np.zeros(targets.shape)
            for known, out in folds:
                held[out] = fit(features[known], targets[known], features[out])
                bar.update()
            found[option] = log_likelihood(held, targets)
    return max(found, key=found.__getitem__)


def log_likelihood(chances: np.ndarray, targets: np.ndarray) -> float:
    """Mean log chance of what is true, over classes alone; chances (n, A), targets 1, 0, -1."""
    chances = chances.clip(_LEAST, 1 - _LEAST)
    each = np.where(targets == 1, np.log(chances), np.log1p(-chances))
    return float(each[targets >= 0].mean())


def _fit(kind: str, option: float, several: bool) -> Fit:
    def fit(features: np.ndarray, targets: np.ndarray, shown: np.ndarray) -> np.ndarray:
        chances = linear if kind == "linear" else nearest
        return chances(features, targets, shown, option, several)

    return fit


def linear(
    features: np.ndarray, targets: np.ndarray, shown: np.ndarray, penalty: float, several: bool
) -> np.ndarray:
    """Chances (m, A) of `shown` (m, D) by logistic regression on standardised features.

    Of one class a row a softmax; of several a sigmoid each, from the rows that speak of it.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(features)
    known, new = scaler.transform(features), scaler.transform(shown)
    chances = np.zeros((len(shown), targets.shape[1]))
    if not several:
        model = LogisticRegression(C=penalty, max_iter=STEPS)
        truth = targets.argmax(axis=1)
        if len(np.unique(truth)) == 1:
            chances[:, truth[0]] = 1
            return chances
        model.fit(known, truth)
        chances[:, model.classes_] = model.predict_proba(new)
        return chances
    for column, truth in enumerate(targets.T):
        said = truth >= 0
        if len(np.unique(truth[said])) < 2:
            chances[:, column] = truth[said].mean() if said.any() else 0.5
            continue
        model = LogisticRegression(C=penalty, max_iter=STEPS)
        chances[:, column] = model.fit(known[said], truth[said]).predict_proba(new)[:, 1]
    return chances


def nearest(
    features: np.ndarray, targets: np.ndarray, shown: np.ndarray, count: int, several: bool
) -> np.ndarray:
    """Chances (m, A) of `shown` (m, D): votes of the nearest by cosine, the nearer the heavier."""
    from sklearn.neighbors import NearestNeighbors

    del several  # a vote is the same of either
    index = NearestNeighbors(n_neighbors=min(count, len(features)), metric="cosine").fit(features)
    distance, place = index.kneighbors(shown)
    weight = np.exp((distance.min(axis=1, keepdims=True) - distance) / TEMPERATURE)[..., None]
    said = (targets >= 0)[place]  # (m, k, A)
    votes = (weight * (targets == 1)[place]).sum(axis=1)
    total = (weight * said).sum(axis=1)
    return np.divide(votes, total, out=np.full(votes.shape, 0.5), where=total > 0)
