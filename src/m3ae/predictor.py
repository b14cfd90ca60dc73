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

from m3ae.data.datasets import Pairs, trim
from m3ae.data.images import Window
from m3ae.data.shards import WITH_FIELDS, read_manifest
from m3ae.downstream.data import EvalQuestions, Questions
from m3ae.downstream.inference import (
    Answer,
    ImageLike,
    answers_to,
    cut_notes,
    match_scores,
    read_image,
    tokens_of,
    wrong_text,
)
from m3ae.downstream.predictions import predict, prediction_rows
from m3ae.downstream.trained import Trained, find_checkpoint, load_trained, pick_device
from m3ae.training.distributed import Processes
from m3ae.training.precision import resolve_precision

log = logging.getLogger("m3ae")


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
                read.append(wrong_text(text, keep_going) or last[1])
            usable = [k for k, pixels in enumerate(read) if isinstance(pixels, np.ndarray)]
            texts = [some[k][1] for k in usable]
            self._say_cut(texts)
            shown = [read[k] for k in usable]
            said = iter(answers_to(self.trained, shown, texts, top, self.precision, strict))
            for (_, text), pixels in zip(some, read, strict=True):
                if isinstance(pixels, np.ndarray):
                    yield next(said)
                else:
                    yield {"question": text, "prediction": "", "error": str(pixels)}

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
        self._say_cut(texts)
        return trim(tokens_of(self.trained, texts))

    # ------------------------------------------------------------------------------ ranking

    def match_scores(self, images: Sequence[ImageLike], captions: Sequence[str]) -> np.ndarray:
        """How well each image and each caption match: float32 (I, T), log-odds.

        Of a pre-trained model by its ITM head, of a retrieval model by its own. Each image and
        each text is encoded once. Raises ValueError for a model that has neither.
        """
        self._say_cut(captions)
        return match_scores(self.trained, _Read(self, images), captions, self.precision)

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

    def _say_cut(self, texts: Sequence[str]) -> None:
        for note in cut_notes(self.trained, texts):
            log.info(note)

    def _need_answers(self) -> None:
        if self.trained.task is None:
            tune = f"run_finetune.py --config configs/finetune/... init={self.trained.folder}"
            hint = f"fine-tune it first ({tune}), or let it rank captions or images"
            raise ValueError(f"{self.trained.folder}: pre-trained, without an answer head; {hint}")


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
    alone = Processes(0, 0, 1, trained.device)
    chances = predict(trained.model, data, alone, precision, folder)
    known = trained.known if strict else None
    return prediction_rows(questions, chances, answers, known, top)
