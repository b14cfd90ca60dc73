"""Downstream measures: pure functions of full prediction arrays; all values are fractions, 0-1.

Letters: `I` images, `T` texts, `Q` questions, `A` answers.
"""

from collections.abc import Sequence

import torch
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
