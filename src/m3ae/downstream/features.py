"""Features of images, texts and pairs: one tensor of a batch, and those of a whole prepared split.

Letters: `B` rows of a batch, `D` width.
"""

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from m3ae.data.datasets import Pairs, stack_images, trim
from m3ae.downstream.trained import Trained
from m3ae.models.layers import masked_mean
from m3ae.models.m3ae import M3AE
from m3ae.training.engine import evaluating, to_device
from m3ae.training.precision import autocast


def image_features(model: M3AE, image: Tensor, pool: str) -> Tensor:
    """Images as in a batch -> (B, D) of the image encoder, before fusion."""
    x = model.image_encoder(model.normalise(image))
    return x[:, 0].float() if pool == "cls" else x[:, 1:].float().mean(dim=1)


def text_features(model: M3AE, ids: Tensor, keep: Tensor, pool: str) -> Tensor:
    """Token ids int64 (B, L), keep bool (B, L) -> (B, D) of the text encoder, before fusion."""
    x = model.text_encoder(ids, keep)
    return x[:, 0].float() if pool == "cls" else masked_mean(x, keep)


def pair_features(model: M3AE, image: Tensor, ids: Tensor, keep: Tensor, pool: str) -> Tensor:
    """Pairs -> (B, 2D) after fusion, text half first."""
    pair = model.encode_pair(image, ids, keep)
    if pool == "cls":
        return pair.pooled.float()
    return torch.cat([masked_mean(pair.text, keep), pair.image[:, 1:].float().mean(dim=1)], dim=1)


def extract(
    trained: Trained, folder: str, what: str, pool: str, batch: int, precision: str
) -> tuple[np.ndarray, list[str]]:
    """Features float32 (n, D) and keys of a prepared split, in its order.

    Raises ValueError naming the first row whose features are not finite, for pairs of a model that
    runs no fusion, and as `Pairs`.
    """
    if what == "pair":
        trained.need_fusion("it has no features of a pair; take --what image or text")
    pairs = Pairs([folder], trained.tokenizer, trained.text_length, trained.image_px)
    shards, model = pairs.corpora[0], trained.model
    device = trained.device

    def compute(rows: list[int]) -> Tensor:
        shown = rows if what == "image" else shards.image_of_text[rows]
        if what != "text":
            image = stack_images([pairs.image(int(row)) for row in shown]).to(device)
        if what == "image":
            return image_features(model, image, pool)
        texts = to_device(trim(pairs.texts(rows)), device)
        ids, keep = texts["text_ids"], texts["text_keep"]
        if what == "text":
            return text_features(model, ids, keep, pool)
        return pair_features(model, image, ids, keep, pool)

    key, count = shards.text_key, len(shards)
    if what == "image":
        key, count = shards.image_key, shards.num_images
    keys, features = [key(row) for row in range(count)], np.zeros((0, 0), np.float32)
    with evaluating(model), autocast(device, precision):
        for begin in tqdm(range(0, count, batch), unit="batch", desc=f"{what} features"):
            rows = list(range(begin, min(begin + batch, count)))
            part = compute(rows).float().cpu().numpy()
            if not begin:
                features = np.empty((count, part.shape[1]), np.float32)
            features[begin : begin + len(part)] = part
    wrong = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(wrong):
        rows = f"{len(wrong)} features are not finite, e.g. of {keys[wrong[0]]}"
        raise ValueError(f"{folder}: {rows}; try --precision fp32")
    return features, keys
