"""A trained model that answers."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m3ae.data.datasets import Pairs, stack_texts
from m3ae.data.images import Window, decode, resize_crop
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
from m3ae.downstream.trained import Trained
from m3ae.files import is_unicode
from m3ae.training.distributed import Processes

log = logging.getLogger("m3ae")


def read_image(path: Path, px: int, window: Window = None) -> np.ndarray:
    """An image file through the transform of training: uint8 (C, px, px).

    Raises ValueError naming the file, FileNotFoundError where there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such image")
    try:
        image, notes = decode(path, window)
        pixels = resize_crop(image, px)
    except ValueError as error:
        hint = "; give --window LOW HIGH" if getattr(error, "reason", "") == "16-bit" else ""
        raise ValueError(f"{path}: cannot be used as an image: {error}{hint}") from error
    for note in notes:
        log.info("%s: %s", path, note)
    return pixels


def make_batch(trained: Trained, image: np.ndarray, texts: Sequence[str]) -> dict[str, Any]:
    """One image with each of the texts, ready for `Downstream.scores`.

    White space is collapsed as in preparing. Raises ValueError for an empty text.
    """
    texts = [" ".join(text.split()) for text in texts]
    if not all(texts) or not all(map(is_unicode, texts)):
        raise ValueError("--question: empty, or not UTF-8")
    length, special = trained.text_length, special_ids(trained.tokenizer)
    tokens = encode(trained.tokenizer, texts)
    for text, (ids, _) in zip(texts, tokens, strict=True):
        if len(ids) > length - 2:
            log.info("cut to the %d tokens that the model takes: %s", length - 2, text)
    shown = torch.from_numpy(image)
    if trained.image == "none":
        shown = torch.zeros(3, trained.image_px, trained.image_px)
    rows = [assemble(*both, length, special) for both in tokens]
    return {"image": shown.expand(len(rows), -1, -1, -1), **stack_texts(rows)}


def answer(
    trained: Trained, image: np.ndarray, texts: Sequence[str], top: int, precision: str
) -> list[dict[str, Any]]:
    """What the model says of an image uint8 (C, px, px) and each text.

    vqa and classes: question, prediction, score (probability 0-1: of that answer alone for vqa with
    `head.loss: binary` and for multilabel, else among all), top. retrieval: text and score, a
    logit.
    """
    batch = make_batch(trained, image, texts)
    if trained.task == "retrieval":  # each image with one text
        batch |= {name: batch[name][:, None] for name in ("text_ids", "text_keep")}
    logits = scores_of(trained.model, batch, trained.model.pixel_mean.device, precision)
    if trained.task == "retrieval":
        scores = zip(texts, logits[:, 0].tolist(), strict=True)
        return [{"text": text, "score": round(score, 6)} for text, score in scores]
    chances = probabilities(logits, trained.model.exclusive)
    ranked = rank_answers(chances, trained.facts["answers"], trained.known, top)
    return [{"question": text, **said} for text, said in zip(texts, ranked, strict=True)]


def predict_split(
    trained: Trained, folder: str, batch: int, top: int, precision: str
) -> list[dict[str, Any]]:
    """Rows of the predictions file for a prepared split; raises ValueError where it cannot be."""
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
    return prediction_rows(questions, chances, answers, trained.known, top)
