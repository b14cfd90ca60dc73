"""Questions about one picture as it comes from somebody: checked, answered, ranked, explained.

What `m3ae.serve` shows rests on these functions; none of them writes a file.
"""

import io
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from m3ae.data.dicom import is_dicom
from m3ae.data.images import Window, decode, resize_crop
from m3ae.data.questions import read_questions
from m3ae.downstream.attention import picture_of_words
from m3ae.downstream.evaluation import TRAINED_ON
from m3ae.downstream.inference import answers_to, cut_notes, match_head, match_scores
from m3ae.downstream.trained import Trained
from m3ae.files import is_unicode
from m3ae.scoring.baselines import blind_baselines
from m3ae.scoring.predictions import Row, read_trained_on, rows_trained_on
from m3ae.strict_yaml import read_file

MOST_BYTES, MOST_PIXELS = 50_000_000, 50_000_000  # of an uploaded file, of its picture
MOST_CAPTIONS, MOST_LETTERS = 200, 2_000  # of a ranking, of a text

# Pillow's limit and Python's warnings belong to the whole process: one picture is read at a time.
_READING = threading.Lock()


class RefusedError(ValueError):
    """What cannot be used, in a sentence for whoever sent it."""


def check_size(data: bytes, most_bytes: int = MOST_BYTES, most_pixels: int = MOST_PIXELS) -> None:
    """RefusedError for a file or a picture that is too large, from the header: nothing is decoded.

    What is no picture at all is left to the decoder, and so is DICOM, which checks its own header.
    """
    if len(data) > most_bytes:
        size = f"{len(data) / 1e6:,.0f} MB, more than the {most_bytes / 1e6:,.0f} MB"
        raise RefusedError(f"This file has {size} that this page takes.")
    if is_dicom(data):
        return
    limit = f"more than the {most_pixels / 1e6:,.0f} million pixels that this page takes"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
        except Image.DecompressionBombError:
            raise RefusedError(f"This picture has {limit}; make it smaller.") from None
        except (OSError, ValueError, SyntaxError, EOFError):
            return
    if width * height > most_pixels:
        raise RefusedError(f"This picture is {width:,} x {height:,}, {limit}; make it smaller.")


@dataclass
class Picture:
    """A picture in memory: what each of several models sees of it, and what is to be said of it."""

    pixels: dict[int, np.ndarray]  # side: uint8 (C, side, side)
    notes: list[str]


def read_picture(
    data: bytes, sides: Sequence[int], window: Window = None, most_pixels: int = MOST_PIXELS
) -> Picture:
    """An image file's bytes through the transform of training, at each side in pixels.

    Raises RefusedError for what cannot be used.
    """
    with _READING:
        check_size(data, most_pixels=most_pixels)
        try:
            image, notes = decode(data, window, max_pixels=most_pixels)
            return Picture({side: resize_crop(image, side) for side in sides}, notes)
        except (ValueError, ImportError) as error:
            hint = ", start the page with --window LOW HIGH" if "window" in str(error) else ""
            message = f"This file cannot be used as a picture: {error}{hint}."
            raise RefusedError(message) from error


def clean_text(text: str, what: str) -> str:
    """A text as preparing has it, white space collapsed; RefusedError where there is none."""
    text = " ".join(text.split())
    if not text or not is_unicode(text):
        raise RefusedError(f"Type {what} first.")
    if len(text) > MOST_LETTERS:
        said = f"{len(text):,} letters, more than the {MOST_LETTERS:,}"
        raise RefusedError(f"This text has {said} that this page takes.")
    return text


@dataclass
class Answered:
    """What a model says of a picture and a question."""

    question: str
    top: list[tuple[str, float]]  # answers or classes and their probabilities, the likeliest first
    exclusive: bool  # probabilities of one among all, else of each alone
    blind: dict[str, str]  # what each blind baseline says
    attention: Image.Image | None  # which patches each word looked at
    notes: list[str]


@dataclass
class Asker:
    """A model that answers questions; safe to call from several threads, one at a time is served.

    `blind_rows`: the rows that it trained on, or [] with `blind_note` saying why there are none.
    """

    trained: Trained
    precision: str = "fp32"
    blind_rows: list[Row] = field(default_factory=list)
    blind_note: str = ""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        if self.trained.task in (None, "retrieval"):
            kind = self.trained.task or "pre-trained"
            raise ValueError(f"{self.trained.folder}: {kind}, so it answers no questions")

    def ask(self, picture: Picture, question: str, top: int = 5) -> Answered:
        """The `top` answers, what blind baselines would have said, and the attention, if any."""
        trained = self.trained
        question = clean_text(question, "a question")
        pixels, notes = picture.pixels[trained.image_px], list(picture.notes)
        with self._lock:
            (found,) = answers_to(trained, [pixels], [question], top, self.precision)
            first = [(text, score) for text, score in found["top"]]
            attention, more = self._attention(pixels, question, first[0])
        notes += [*more, *cut_notes(trained, [question])]
        said = self.blind(question)
        return Answered(question, first, trained.model.exclusive, said, attention, notes)

    def _attention(
        self, pixels: np.ndarray, question: str, first: tuple[str, float]
    ) -> tuple[Image.Image | None, list[str]]:
        if self.trained.image == "none":
            return None, ["a question-only model, which sees no image"]
        try:
            said = f"{first[0]} ({first[1]:.1%})"
            return picture_of_words(self.trained, pixels, question, subtitle=said), []
        except ValueError as error:  # no word in the text, no fusion in the model
            return None, [str(error)]

    def blind(self, question: str) -> dict[str, str]:
        """What `scoring.baselines` say to a question, by name; {} without the training rows."""
        if not self.blind_rows or self.trained.task == "multilabel":
            return {}
        # Of a question that nobody has sorted the type is not known, so it is left out of training.
        rows = [{k: x for k, x in row.items() if k != "question_type"} for row in self.blind_rows]
        asked = {"id": "asked", "question": question, "answer": "", "label": ""}
        asked |= {"type": "open"} if "type" in rows[0] else {}
        made, _ = blind_baselines(rows, [asked])
        return {name: said[0]["prediction"] for name, said in made.items()}


# ------------------------------------------------------------------------------ ranking


@dataclass
class Ranker:
    """A model that says how well captions match a picture; safe to call from several threads."""

    trained: Trained
    precision: str = "fp32"

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        match_head(self.trained)  # a model that cannot is told at once

    def rank(self, picture: Picture, captions: str) -> tuple[list[tuple[str, float]], list[str]]:
        """Captions, one a line, with their log-odds of a match, the best first; and notes."""
        trained, lines = self.trained, [line for line in captions.splitlines() if line.strip()]
        if len(lines) > MOST_CAPTIONS:
            said = f"{len(lines):,} captions, more than the {MOST_CAPTIONS:,}"
            raise RefusedError(f"These are {said} that this page takes.")
        texts = [clean_text(line, "captions") for line in lines or [""]]
        texts = list(dict.fromkeys(texts))
        with self._lock:
            (scores,) = match_scores(
                trained, [picture.pixels[trained.image_px]], texts, self.precision
            )
        ranked = zip(texts, scores.tolist(), strict=True)
        notes = [*picture.notes, *cut_notes(trained, texts)]
        return sorted(ranked, key=lambda pair: -pair[1]), notes


# ------------------------------------------------------------------------------ training rows


def rows_of_training(trained: Trained) -> tuple[list[Row], str]:
    """The rows that a run's model trained on; or [], and why they are not to be had.

    They come from the run's trained_on.txt and the split that its config.yaml names.
    """
    run = trained.folder.parent
    listed, config = run / TRAINED_ON, run / "config.yaml"
    if not (listed.is_file() and config.is_file()):
        return [], f"{run} has no {TRAINED_ON} and config.yaml to say what was trained on"
    data = read_file(config).get("data", {})
    folder = Path(str(data.get("train")))
    if not (folder / "manifest.json").is_file():
        return [], f"the split that was trained on (data.train: {folder}) is not here"
    rows = read_questions(folder, data.get("field", "label"))
    return rows_trained_on(rows, read_trained_on(listed), str(listed)), ""
