"""Image-text retrieval by fused scores: its training side (paper section 3.2; reference, fact 14).

Letters: `B` images, `F` false texts an image, `L` text tokens, `T` texts of the corpus. Difference
from the reference: its false texts are any other sample's of the corpus, so possibly another text
of the same image; ours are always another image's.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from m3ae.data.sampler import keyed
from m3ae.models.m3ae import M3AE

FALSE_TEXTS = 100  # first word of the random key, apart from those of m3ae.data.sampler


def draw_false_texts(
    image_of_text: np.ndarray, images: np.ndarray, count: int, seed: int, positions: Sequence[int]
) -> np.ndarray:
    """False texts of each image of a batch, uniform over the texts of all other images.

    image_of_text int64 (T,), images int64 (B,) in the same numbering, positions = place of each
    in the run's order, which with the seed is all a draw depends on -> int64 (B, count), texts by
    number, each drawn independently (so a text may come twice, as in the reference). Raises
    ValueError when all texts are of one image.
    """
    out = np.empty((len(images), count), dtype=np.int64)
    for row, (image, position) in enumerate(zip(images, positions, strict=True)):
        if (image_of_text == image).all():
            raise ValueError(f"no false text for image {image}: the corpus has no other image")
        rng = keyed(seed, FALSE_TEXTS, position)
        drawn = rng.integers(len(image_of_text), size=count)
        while (own := image_of_text[drawn] == image).any():
            drawn[own] = rng.integers(len(image_of_text), size=own.sum())
        out[row] = drawn
    return out


def retrieval_scores(
    model: M3AE, head: nn.Module, image: Tensor, text_ids: Tensor, text_keep: Tensor
) -> Tensor:
    """Scores of each image with its own texts, the image encoded once.

    image as in a batch, text_ids int64 and text_keep bool (B, 1+F, L) -> (B, 1+F). The image
    encoder has no dropout, so training sees the same as with 1+F encodings; fusion runs on whole
    pairs, each with its own dropout.
    """
    images, texts, _ = text_ids.shape
    ids, keep = text_ids.flatten(0, 1), text_keep.flatten(0, 1)
    text = model.fusion.enter_text(model.text_encoder(ids, keep))
    shown = model.fusion.enter_image(model.image_encoder(model.normalise(image)))
    pooled = model.fusion.pooled(text, shown.repeat_interleave(texts, dim=0), keep, 0)
    return match_score(head, pooled).view(images, texts)


def match_score(head: nn.Module, pooled: Tensor) -> Tensor:
    """Both poolers (B, 2D) -> scores (B,): the retrieval head's, or an ITM head's log-odds.

    In the head's own precision also under autocast: in bf16, of 8 bits, many texts would tie.
    """
    with torch.autocast(pooled.device.type, enabled=False):
        logits = head(pooled.to(next(head.parameters()).dtype))
    return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
