"""Downstream measures of full prediction arrays, or tensors on the CPU; values are fractions.

Letters: `I` images, `T` texts, `Q` questions, `A` answers, `C` classes.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def recall_at_k(scores: ArrayLike, image_of_text: ArrayLike, ks: Sequence[int]) -> dict[str, float]:
    """Retrieval recall both ways from the scores (I, T) of every image with every text.

    image_of_text int64 (T,) is the image that each text belongs to. `t2i_r{k}`: texts whose image
    is among the k best; `i2t_r{k}`: images with one of their texts among the k best. Raises
    ValueError when an image has no text, or a shape does not fit.
    """
    scores, image_of_text = np.asarray(scores), np.asarray(image_of_text)
    return recalls(ranks(scores, own_texts(image_of_text, scores.shape)), ks)


def own_texts(image_of_text: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Which texts belong to which image by number: bool (I, T); raises as `recall_at_k`."""
    images, texts = shape
    if image_of_text.shape != (texts,):
        raise ValueError(f"image_of_text is {image_of_text.shape}, but scores have {texts} texts")
    own = np.arange(images)[:, None] == image_of_text[None]
    if not (has := own.any(axis=1)).all():
        raise ValueError(f"image {int(has.argmin())} has no text")
    return own


def same_words(image_of_text: np.ndarray, texts: Sequence[str], images: int) -> np.ndarray:
    """Whether an image has a text of the same words, whatever their case or marks: bool (I, T).

    Raises ValueError when there are not T texts.
    """
    if len(texts) != len(image_of_text):
        raise ValueError(f"{len(texts)} texts, but image_of_text has {len(image_of_text)}")
    words = [" ".join(re.findall(r"\w+", text.casefold())) or text.strip() for text in texts]
    _, number = np.unique(np.array(words, dtype=object), return_inverse=True)
    has = np.zeros((images, int(number.max()) + 1), dtype=bool)
    has[image_of_text, number] = True
    return has[:, number]


def ranks(scores: np.ndarray, hits: np.ndarray) -> dict[str, np.ndarray]:
    """Place (1 = best) of the best hit: `t2i` int64 (T,) of images, `i2t` int64 (I,) of texts.

    scores (I, T), hits bool (I, T). Of equal scores the wrong ones come first, so that a model
    which scores everything alike finds nothing.
    """
    places = {}
    for way, axis in (("t2i", 0), ("i2t", 1)):
        best = np.where(hits, scores, -np.inf).max(axis=axis, keepdims=True)
        places[way] = 1 + ((scores >= best) & ~hits).sum(axis=axis)
    return places


def ranks_by_rule(
    scores: ArrayLike, image_of_text: ArrayLike, texts: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """`ranks` under two rules for captions that occur more than once; raises as `same_words`.

    `id`: only an image's own texts count (the reference's rule). `text`: a text counts for every
    image that has a text of the same words.
    """
    scores, owner = np.asarray(scores), np.asarray(image_of_text)
    own = own_texts(owner, scores.shape)
    hits = {"id": own, "text": same_words(owner, texts, len(scores))}
    return {rule: ranks(scores, found) for rule, found in hits.items()}


def recalls(places: dict[str, np.ndarray], ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """`ranks` -> `t2i_r{k}` and `i2t_r{k}`, the fractions at place k or better."""
    return {f"{way}_r{k}": float((places[way] <= k).mean()) for k in ks for way in places}


def vqa_accuracy(scores: ArrayLike, targets: ArrayLike, closed: ArrayLike) -> dict[str, float]:
    """Mean target of the best-scored answer: over open, closed and all questions.

    scores and targets (Q, A), targets 0-1 (reference, objective fact 13); closed bool (Q,). A part
    without a question is nan. Raises ValueError when the shapes differ.
    """
    scores, targets, closed = (np.asarray(array) for array in (scores, targets, closed))
    if scores.shape != targets.shape or closed.shape != scores.shape[:1]:
        shapes = [array.shape for array in (scores, targets, closed)]
        raise ValueError(f"scores, targets, closed are {shapes}, not (Q, A), (Q, A), (Q,)")
    right = np.take_along_axis(targets, scores.argmax(axis=1)[:, None], axis=1)[:, 0].astype(float)
    parts = {"open": right[~closed], "closed": right[closed], "overall": right}
    return {name: float(part.mean()) if len(part) else np.nan for name, part in parts.items()}


def confusion(
    answers: Sequence[str], predictions: Sequence[str | None]
) -> tuple[list[str], np.ndarray]:
    """The sorted classes (C) and the matrix int64 (C, C): rows answers, columns predictions.

    Pairs without a prediction (None) are in no column.
    """
    classes = sorted({*answers, *predictions} - {None})
    number = {name: k for k, name in enumerate(classes)}
    matrix = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for answer, prediction in zip(answers, predictions, strict=True):
        if prediction is not None:
            matrix[number[answer], number[prediction]] += 1
    return classes, matrix
