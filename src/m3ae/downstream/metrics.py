"""Downstream measures: pure functions of full prediction arrays; all values are fractions, 0-1.

Letters: `I` images, `T` texts, `Q` questions, `A` answers.
"""

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.metrics import confusion_matrix, f1_score
from torch import Tensor


def recall_at_k(scores: Tensor, image_of_text: Tensor, ks: Sequence[int]) -> dict[str, float]:
    """Retrieval recall both ways from the scores (I, T) of every image with every text.

    image_of_text int64 (T,) is the image that each text belongs to. `t2i_r{k}`: share of texts
    whose image is among the k best; `i2t_r{k}`: share of images with one of their texts among the
    k best. Raises ValueError when an image has no text, or a shape does not fit.
    """
    images, texts = scores.shape
    if image_of_text.shape != (texts,):
        shape = tuple(image_of_text.shape)
        raise ValueError(f"image_of_text is {shape}, but scores have {texts} texts")
    own = torch.arange(images)[:, None] == image_of_text.cpu()[None]  # (I, T)
    if not own.any(dim=1).all():
        raise ValueError(f"image {int((~own.any(dim=1)).nonzero()[0])} has no text")
    scores, out = scores.cpu(), {}
    for k in ks:
        best_images = scores.topk(min(k, images), dim=0).indices  # (k, T)
        best_texts = scores.topk(min(k, texts), dim=1).indices  # (I, k)
        out[f"t2i_r{k}"] = own.gather(0, best_images).any(dim=0).double().mean().item()
        out[f"i2t_r{k}"] = own.gather(1, best_texts).any(dim=1).double().mean().item()
    return out


def vqa_accuracy(scores: Tensor, targets: Tensor, closed: Tensor) -> dict[str, float]:
    """Mean target of the best-scored answer: over open, closed and all questions.

    scores and targets (Q, A), targets 0-1 (reference, objective fact 13); closed bool (Q,). A part
    without a question is nan. Raises ValueError when the shapes differ.
    """
    if scores.shape != targets.shape or closed.shape != scores.shape[:1]:
        shapes = [tuple(x.shape) for x in (scores, targets, closed)]
        raise ValueError(f"scores, targets, closed are {shapes}, not (Q, A), (Q, A), (Q,)")
    right = targets.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0].double()
    parts = {"open": right[~closed], "closed": right[closed], "overall": right}
    return {name: part.mean().item() for name, part in parts.items()}


def macro_f1(answers: Sequence[str], predictions: Sequence[str | None]) -> float:
    """Unweighted mean of F1 over the classes that are an answer or a prediction (scikit-learn).

    answers and predictions: names of classes; None, no prediction, is of no class.
    """
    labels, known, said = _labels(answers, predictions)
    return float(f1_score(known, said, labels=labels, average="macro", zero_division=0))


def confusion(
    answers: Sequence[str], predictions: Sequence[str | None]
) -> tuple[list[str], np.ndarray]:
    """The sorted classes (C) and the matrix int64 (C, C): rows answers, columns predictions.

    Pairs without a prediction (None) are in no column.
    """
    labels, known, said = _labels(answers, predictions)
    matrix = confusion_matrix(known, said, labels=labels)
    return sorted({*answers, *predictions} - {None}), matrix


def _labels(
    answers: Sequence[str], predictions: Sequence[str | None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers of all classes, of the answers, of the predictions; no prediction is number C."""
    number = {name: k for k, name in enumerate(sorted({*answers, *predictions} - {None}))}
    said = [len(number) if name is None else number[name] for name in predictions]
    return np.arange(len(number)), np.array([number[name] for name in answers]), np.array(said)
