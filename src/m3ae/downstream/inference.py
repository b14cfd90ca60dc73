"""What a trained model says of images and texts as they come from somebody, prepared or not.

An image is a file's path (what Pillow opens, or DICOM), the bytes of such a file, a PIL image, or
an array uint8 (H, W) or (H, W, 3).

Letters: `B` pairs, `I` images, `T` texts, `L` text tokens, `C` channels.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from m3ae.data.datasets import stack_images, stack_texts
from m3ae.data.images import Window, as_png, decode, resize_crop
from m3ae.data.texts import assemble, encode, special_ids
from m3ae.downstream.predictions import probabilities, rank_answers, scores_of
from m3ae.downstream.ranking import Pool, score_all
from m3ae.downstream.trained import Trained
from m3ae.files import is_unicode
from m3ae.training.distributed import Processes

log = logging.getLogger("m3ae")

ImageLike = str | Path | bytes | Image.Image | np.ndarray
Answer = dict[str, Any]
_AS_RGB, _AS_RGBA = ("CMYK", "YCbCr", "HSV", "LAB"), ("PA", "RGBa", "La")  # which PNG has not

# ------------------------------------------------------------------------------ what goes in


def read_image(
    image: ImageLike,
    px: int,
    window: Window = None,
    exif: bool = False,
    max_pixels: int | None = None,
) -> np.ndarray:
    """An image through the transform of training: uint8 (C, px, px).

    Raises ValueError naming the file, FileNotFoundError where there is none.
    """
    name, source = f"an image ({type(image).__name__})", image
    if isinstance(image, str | Path):
        name, source = str(image), Path(image)
        if not os.path.isfile(source):  # False also for a name that is too long
            raise FileNotFoundError(f"{name}: no such image")
    try:
        if isinstance(source, Image.Image | np.ndarray):
            source = _as_file(source)
        decoded, notes = decode(source, window, exif, max_pixels)
        pixels = resize_crop(decoded, px)
    except ValueError as error:
        hint = "; give --window LOW HIGH" if getattr(error, "reason", "") == "16-bit" else ""
        raise ValueError(f"{name}: cannot be used as an image: {error}{hint}") from error
    for note in notes:
        log.info("%s: %s", name, note)
    return pixels


def _as_file(image: Image.Image | np.ndarray) -> bytes:
    """A picture in memory as PNG, so that it goes the way of every file: alpha, palette, depth."""
    if isinstance(image, np.ndarray):
        shape, fits = image.shape, image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))
        if not fits or image.dtype not in (np.uint8, np.uint16) or not image.size:
            is_so = f"{image.dtype} {shape}"
            raise ValueError(f"it is {is_so}; give uint8 (height, width) or (height, width, 3)")
        image = Image.fromarray(image)
    if image.mode in _AS_RGB + _AS_RGBA:
        image = image.convert("RGB" if image.mode in _AS_RGB else "RGBA")
    if image.mode == "F":
        raise ValueError("its grey values are floats; give whole ones, of 8 or 16 bits")
    return as_png(image)


def wrong_text(text: str, keep_going: bool = False) -> ValueError | None:
    """What is wrong with a text, raised unless `keep_going`; None of one that can be used."""
    if text.strip() and is_unicode(text):
        return None
    error = ValueError("a question is empty, or not UTF-8")
    if keep_going:
        return error
    raise error


def tokens_of(trained: Trained, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """`text_ids` int64 and `text_keep` bool (T, L) of texts; white space is collapsed as prepared.

    Raises ValueError for an empty one; `cut_notes` says which are cut.
    """
    texts = [" ".join(text.split()) for text in texts]
    for text in texts:
        wrong_text(text)
    length, special = trained.text_length, special_ids(trained.tokenizer)
    tokens = encode(trained.tokenizer, texts)
    return stack_texts([assemble(*both, length, special) for both in tokens])


def cut_notes(trained: Trained, texts: Sequence[str]) -> list[str]:
    """Which texts are longer than the model takes, for whoever sent them.

    Not logged here: what is asked on a page is nobody else's business.
    """
    taken = trained.text_length - 2
    lengths = [len(ids) for ids, _ in encode(trained.tokenizer, list(texts))]
    cut = [(text, n) for text, n in zip(texts, lengths, strict=True) if n > taken]
    return [f"cut to the first {taken} of {n} tokens: {text}" for text, n in cut]


def make_batch(
    trained: Trained, images: Sequence[np.ndarray], texts: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Images uint8 (C, px, px), each with its text, ready for `Downstream.scores`.

    Texts keep the length of training, so that an answer has the same digits whatever other texts
    are in its batch; beside hundreds of image tokens their padding costs little.
    """
    batch = tokens_of(trained, texts)
    if trained.image == "none":
        px = trained.image_px
        return batch | {"image": torch.zeros(len(texts), 3, px, px)}
    return batch | {"image": stack_images(list(images))}


# ------------------------------------------------------------------------------ what comes out


def answers_to(
    trained: Trained,
    images: Sequence[np.ndarray],
    texts: Sequence[str],
    top: int = 5,
    precision: str = "fp32",
    strict: bool = True,
) -> list[Answer]:
    """One forward pass: images uint8 (C, px, px), each with its text.

    Each gets `question`, `prediction`, `score` and `top`, or, of a retrieval model, `text` and
    `score`. `strict`: only answers that the model's protocol may give.
    """
    if not texts:
        return []
    batch = make_batch(trained, images, texts)
    if trained.task == "retrieval":  # each image with one text
        batch |= {name: batch[name][:, None] for name in ("text_ids", "text_keep")}
    logits = scores_of(trained.model, batch, trained.device, precision)
    if trained.task == "retrieval":
        scores = zip(texts, logits[:, 0].tolist(), strict=True)
        return [{"text": text, "score": round(score, 6)} for text, score in scores]
    chances = probabilities(logits, trained.model.exclusive)
    known = trained.known if strict else None
    ranked = rank_answers(chances, trained.facts["answers"], known, top)
    return [{"question": text, **said} for text, said in zip(texts, ranked, strict=True)]


def match_head(trained: Trained) -> nn.Module:
    """What says whether an image and a text match; raises ValueError for a model without."""
    model, task = trained.model, trained.task
    if task == "retrieval":
        return model.head
    if task is None and hasattr(model, "itm_head"):
        return model.itm_head
    what = f"fine-tuned for {task}" if task else "pre-trained without ITM"
    hint = "take a pre-trained model with an ITM head, or one fine-tuned for retrieval"
    raise ValueError(f"{trained.folder}: {what}, so it cannot rank; {hint}")


def match_scores(
    trained: Trained, images: Sequence[np.ndarray], texts: Sequence[str], precision: str = "fp32"
) -> np.ndarray:
    """How well images uint8 (C, px, px), read when needed, and texts match: float32 (I, T).

    Log-odds by `match_head`; each image and each text is encoded once.
    """
    head = match_head(trained)
    if not images or not texts:
        raise ValueError("nothing to rank: give at least one image and one caption")
    owners = torch.zeros(len(texts), dtype=torch.int64)  # nobody asks which are right
    pool = Pool(images, **tokens_of(trained, texts), image_of_text=owners, texts=list(texts))
    return score_all(
        trained.model, head, pool, Processes(0, 0, 1, trained.device), precision
    ).numpy()
