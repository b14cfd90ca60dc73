"""A trained model that answers questions about images, or ranks captions and images.

    from m3ae.predictor import Predictor
    predictor = Predictor.from_pretrained("runs/mine")
    predictor("x.png", "Is there a mass?")["prediction"]

An image is a file's path (what Pillow opens, or DICOM), the bytes of such a file, a PIL image, or
an array uint8 (H, W) or (H, W, 3). Not a medical device.

Letters: `I` images, `T` texts, `C` channels.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from m3ae.data.datasets import Pairs, stack_images, stack_texts, trim
from m3ae.data.images import Window, as_png, decode, resize_crop
from m3ae.data.shards import WITH_FIELDS, read_manifest
from m3ae.data.texts import assemble, encode, special_ids
from m3ae.downstream.data import EvalQuestions, Questions
from m3ae.downstream.predictions import (
    predict,
    prediction_rows,
    probabilities,
    rank_answers,
    scores_of,
)
from m3ae.downstream.ranking import Pool, score_all
from m3ae.downstream.trained import Trained, find_checkpoint, load_trained, pick_device
from m3ae.files import is_unicode
from m3ae.training.distributed import Processes
from m3ae.training.precision import resolve_precision

log = logging.getLogger("m3ae")

ImageLike = str | Path | bytes | Image.Image | np.ndarray
Answer = dict[str, Any]
_AS_RGB, _AS_RGBA = ("CMYK", "YCbCr", "HSV", "LAB"), ("PA", "RGBa", "La")  # which PNG has not


class Predictor:
    """A model in eval mode on a device, with its tokeniser and what its outputs mean.

    `batch` pairs go through it at a time, and no more images are in memory. `window`, `exif`,
    `max_pixels`: as `images.decode`.
    """

    def __init__(
        self,
        trained: Trained,
        precision: str = "fp32",
        batch: int = 32,
        window: Window = None,
        exif: bool = False,
        max_pixels: int | None = None,
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch {batch}: below 1")
        self.trained, self.precision, self.batch = trained, precision, batch
        self.decoding = (window, exif, max_pixels)

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        *,
        protocol: str | None = None,
        device: str | None = None,
        precision: str = "auto",
        batch: int = 32,
        window: Window = None,
        exif: bool = False,
        max_pixels: int | None = None,
    ) -> "Predictor":
        """The model of a run folder, a checkpoint folder or a hub id, strictly.

        `protocol`: whose best epoch and answers (default: the first there is of strict,
        image_disjoint, paper); `device`: default a GPU where there is one. Raises ValueError or
        FileNotFoundError naming what is wrong.
        """
        place = pick_device(device)
        trained = load_trained(find_checkpoint(Path(path_or_hub_id), protocol), protocol)
        trained.model.to(place)
        return cls(trained, resolve_precision(precision, place), batch, window, exif, max_pixels)

    # ------------------------------------------------------------------------------ answers

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        questions: str | Sequence[str],
        top: int = 5,
        strict: bool = True,
    ) -> Answer | list[Answer]:
        """What the model says: of one image and one question a dict, of lists a list of them.

        Two lists are taken in step; one image is shown with each question, one question asked of
        each image. A dict holds `question`, `prediction`, `score` (its probability: alone for
        `head.loss: binary`, else among all) and `top`, pairs of answer and probability, best first.
        `strict`: only answers that the model's protocol may give; False: all that its head has.
        Raises ValueError naming an image that cannot be read, and for a model without answers.
        """
        alone = isinstance(questions, str) and not isinstance(images, list | tuple)
        pairs = list(_in_step(images, questions))
        found = list(self.stream(pairs, top, strict))
        return found[0] if alone else found

    def stream(
        self,
        pairs: Iterable[tuple[ImageLike, str]],
        top: int = 5,
        strict: bool = True,
        keep_going: bool = False,
    ) -> Iterator[Answer]:
        """As a call, of any number of pairs as they come; a batch of images is held at a time.

        `keep_going`: an image or a question that cannot be used gives a dict with an empty
        `prediction` and `error`, what is wrong with it, instead of ending in a ValueError.
        """
        self._need_answers()
        if top < 1:
            raise ValueError(f"top {top}: below 1")
        pairs = iter(pairs)
        while some := list(islice(pairs, self.batch)):
            read, last = [], (None, None)  # one image with many questions is read once
            for image, text in some:
                if not _same(image, last[0]):
                    last = image, self._read(image, keep_going)
                read.append(_wrong_text(text, keep_going) or last[1])
            usable = [k for k, pixels in enumerate(read) if isinstance(pixels, np.ndarray)]
            texts = [some[k][1] for k in usable]
            said = iter(self._answers([read[k] for k in usable], texts, top, strict))
            for (_, text), pixels in zip(some, read, strict=True):
                if isinstance(pixels, np.ndarray):
                    yield next(said)
                else:
                    yield {"question": text, "prediction": "", "error": str(pixels)}

    def _answers(
        self, images: list[np.ndarray], texts: list[str], top: int, strict: bool
    ) -> list[Answer]:
        """One forward pass: images uint8 (C, px, px), each with its text."""
        if not texts:
            return []
        trained = self.trained
        batch = make_batch(trained, images, texts)
        if trained.task == "retrieval":  # each image with one text
            batch |= {name: batch[name][:, None] for name in ("text_ids", "text_keep")}
        logits = scores_of(trained.model, batch, self._device, self.precision)
        if trained.task == "retrieval":
            scores = zip(texts, logits[:, 0].tolist(), strict=True)
            return [{"text": text, "score": round(score, 6)} for text, score in scores]
        chances = probabilities(logits, trained.model.exclusive)
        known = trained.known if strict else None
        ranked = rank_answers(chances, trained.facts["answers"], known, top)
        return [{"question": text, **said} for text, said in zip(texts, ranked, strict=True)]

    def _read(self, image: ImageLike, keep_going: bool) -> np.ndarray | Exception:
        try:
            return self.read(image)
        except (ValueError, OSError) as error:
            if not keep_going:
                raise
            return error

    def read(self, image: ImageLike) -> np.ndarray:
        """An image through the transform of training: uint8 (C, px, px).

        Raises ValueError naming it, FileNotFoundError where there is no such file.
        """
        return read_image(image, self.trained.image_px, *self.decoding)

    def tokens(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """`text_ids` int64 and `text_keep` bool (T, L) of texts; ValueError for an empty one."""
        return trim(tokens_of(self.trained, texts))

    # ------------------------------------------------------------------------------ ranking

    def match_scores(self, images: Sequence[ImageLike], captions: Sequence[str]) -> np.ndarray:
        """How well each image and each caption match: float32 (I, T), log-odds.

        Of a pre-trained model by its ITM head, of a retrieval model by its own. Each image and
        each text is encoded once. Raises ValueError for a model that has neither.
        """
        trained, head = self.trained, self._match_head()
        if not images or not captions:
            raise ValueError("nothing to rank: give at least one image and one caption")
        texts = tokens_of(trained, captions)
        owners = torch.zeros(len(captions), dtype=torch.int64)  # nobody asks which are right
        pool = Pool(_Read(self, images), **texts, image_of_text=owners, texts=list(captions))
        alone = Processes(0, 0, 1, self._device)
        return score_all(trained.model, head, pool, alone, self.precision).numpy()

    def rank_captions(self, image: ImageLike, captions: Sequence[str]) -> list[Answer]:
        """Captions with `score` (log-odds) for an image, the best match first."""
        (scores,) = self.match_scores([image], captions).tolist()
        found = [{"text": x, "score": y} for x, y in zip(captions, scores, strict=True)]
        return sorted(found, key=lambda entry: -entry["score"])

    def rank_images(self, caption: str, images: Sequence[ImageLike]) -> list[Answer]:
        """Images by `number` (their place in `images`, from 0) with `score`, the best first."""
        scores = self.match_scores(images, [caption])[:, 0].tolist()
        found = [{"number": number, "score": score} for number, score in enumerate(scores)]
        return sorted(found, key=lambda entry: -entry["score"])

    @property
    def _device(self) -> torch.device:
        return self.trained.model.pixel_mean.device

    def _need_answers(self) -> None:
        if self.trained.task is None:
            tune = f"run_finetune.py --config configs/finetune/... init={self.trained.folder}"
            hint = f"fine-tune it first ({tune}), or let it rank captions or images"
            raise ValueError(f"{self.trained.folder}: pre-trained, without an answer head; {hint}")

    def _match_head(self) -> nn.Module:
        model, task = self.trained.model, self.trained.task
        if task == "retrieval":
            return model.head
        if task is None and hasattr(model, "itm_head"):
            return model.itm_head
        what = f"fine-tuned for {task}" if task else "pre-trained without ITM"
        hint = "take a pre-trained model with an ITM head, or one fine-tuned for retrieval"
        raise ValueError(f"{self.trained.folder}: {what}, so it cannot rank; {hint}")


class _Read(Sequence):
    """Images as `score_all` asks for them, one at a time."""

    def __init__(self, predictor: Predictor, images: Sequence[ImageLike]) -> None:
        self.predictor, self.images = predictor, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> np.ndarray:
        return self.predictor.read(self.images[number])


# ------------------------------------------------------------------------------ what goes in


def _in_step(
    images: ImageLike | Sequence[ImageLike], questions: str | Sequence[str]
) -> Iterator[tuple[ImageLike, str]]:
    """Pairs of a call's images and questions; ValueError where their numbers differ."""
    several = isinstance(images, list | tuple)
    if isinstance(questions, str):
        questions = [questions] * (len(images) if several else 1)
    elif not several:
        images, several = [images] * len(questions), True
    images = images if several else [images]
    if len(images) != len(questions):
        counts = f"{len(images)} images and {len(questions)} questions"
        raise ValueError(f"{counts}: give as many, or one of either")
    return zip(images, questions, strict=True)


def _same(image: ImageLike, other: ImageLike | None) -> bool:
    return image is other or (isinstance(image, str | Path) and image == other)


def _wrong_text(text: str, keep_going: bool) -> ValueError | None:
    """What is wrong with a question, raised unless `keep_going`."""
    if text.strip() and is_unicode(text):
        return None
    error = ValueError("a question is empty, or not UTF-8")
    if keep_going:
        return error
    raise error


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
        if not source.is_file():
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


def tokens_of(trained: Trained, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """`text_ids` int64 and `text_keep` bool (T, L) of texts; white space is collapsed as prepared.

    A text that is cut is named in the log. Raises ValueError for an empty one.
    """
    texts = [" ".join(text.split()) for text in texts]
    for text in texts:
        _wrong_text(text, keep_going=False)
    length, special = trained.text_length, special_ids(trained.tokenizer)
    tokens = encode(trained.tokenizer, texts)
    for text, (ids, _) in zip(texts, tokens, strict=True):
        if len(ids) > length - 2:
            log.info("cut to the %d tokens that the model takes: %s", length - 2, text)
    return stack_texts([assemble(*both, length, special) for both in tokens])


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


# ------------------------------------------------------------------------------ prepared splits


def predict_split(
    trained: Trained, folder: str, batch: int, top: int, precision: str, strict: bool = True
) -> list[dict[str, Any]]:
    """Rows of the predictions file for a prepared split; raises ValueError where it cannot be.

    `strict` as in a call of `Predictor`.
    """
    if trained.task == "retrieval":
        hint = "evaluate it with run_finetune.py eval_only=true"
        raise ValueError(f"{trained.folder}: a retrieval model, whose scores rank texts; {hint}")
    if read_manifest(Path(folder))["kind"] != WITH_FIELDS:
        hint = "prepare it with data_prep/table.py, or a script of questions"
        raise ValueError(f"{folder}: holds pairs without answers or classes; {hint}")
    answers, field = trained.facts["answers"], trained.facts.get("field", "label")
    pairs = Pairs([folder], trained.tokenizer, trained.text_length, trained.image_px)
    questions = Questions(pairs, field)
    questions.set_answers(answers)
    data = EvalQuestions(questions, batch, trained.image)
    alone = Processes(0, 0, 1, trained.model.pixel_mean.device)
    chances = predict(trained.model, data, alone, precision, folder)
    known = trained.known if strict else None
    return prediction_rows(questions, chances, answers, known, top)
