"""From a model and a split to what stands in its file of predictions or of ranks.

Letters: `Q` questions, `A` answers.
"""

from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from m3ae.data.datasets import eval_batches
from m3ae.downstream.data import EvalQuestions, Questions
from m3ae.downstream.model import Downstream
from m3ae.models.m3ae import Batch
from m3ae.training.distributed import Processes
from m3ae.training.engine import evaluating, to_device
from m3ae.training.precision import autocast

_ASIDE = ("question_id", "answer", "label", "answer_type", "question_type")  # have their own names


def scores_of(model: Downstream, batch: Batch, device: torch.device, precision: str) -> np.ndarray:
    """Logits float32 of a batch: (B, A); for retrieval (B, 1+F)."""
    with evaluating(model), autocast(device, precision):
        return model.scores(to_device(batch, device)).float().cpu().numpy()


def predict(
    model: Downstream,
    data: EvalQuestions,
    processes: Processes,
    precision: str,
    title: str = "",
    workers: int = 0,
) -> np.ndarray:
    """`probabilities` (Q, A) of all rows of a split, in its order; every process must call it.

    With a title, under a progress bar.
    """
    rows, logits = [], []
    own = eval_batches(data, processes.rank, processes.count, workers, processes.device)
    rounds = processes.rounds(own)
    for batch in tqdm(rounds, desc=title, total=len(own), unit="batch", disable=not title):
        rows.append(batch["index"].numpy())
        logits.append(scores_of(model, batch, processes.device, precision))
    mine = (np.concatenate(rows), np.concatenate(logits)) if rows else None
    found = [part for part in processes.gather(mine) if part is not None]
    rows, logits = (np.concatenate(parts) for parts in zip(*found, strict=True))
    logits = logits[np.argsort(rows)]  # no row is read twice, so the order is that of `data`
    return probabilities(logits, model.exclusive)


def probabilities(logits: np.ndarray, exclusive: bool) -> np.ndarray:
    """Logits (Q, A) -> probabilities: of each answer alone, or `exclusive` of one among all.

    In float64: in float32 every logit above 17 is a probability of 1, and the first of them wins.
    """
    values = torch.from_numpy(logits).double()
    return (values.softmax(dim=1) if exclusive else values.sigmoid()).numpy()


def rank_answers(
    chances: np.ndarray, answers: list[str], known: set[str] | None, top: int
) -> list[dict[str, Any]]:
    """(Q, A) -> for each row `prediction`, `score` (its chance) and `top`: both of the best ones.

    `known` restricts what may be answered.
    """
    allowed = np.flatnonzero([known is None or text in known for text in answers])
    best = allowed[np.argsort(-chances[:, allowed], axis=1, kind="stable")[:, :top]]
    ranked = []
    for row, order in zip(chances, best, strict=True):
        first = [[answers[k], round(float(row[k]), 6)] for k in order]
        ranked.append({"prediction": first[0][0], "score": first[0][1], "top": first})
    return ranked


def class_scores(
    chances: np.ndarray, answers: list[str], known: set[str] | None
) -> list[dict[str, Any]]:
    """(Q, A) -> for each row `scores`: the chance of each class that is `known` (None: all)."""
    kept = [(k, name) for k, name in enumerate(answers) if known is None or name in known]
    return [{"scores": {name: round(float(row[k]), 6) for k, name in kept}} for row in chances]


def prediction_rows(
    questions: Questions, chances: np.ndarray, answers: list[str], known: set[str] | None, top: int
) -> list[dict[str, Any]]:
    """One object a question for the predictions file; see `rank_answers`, `class_scores`."""
    shards, rows = questions.shards, []
    if questions.several:
        given = class_scores(chances, answers, known)
    else:
        given = rank_answers(chances, answers, known, top)
    for row, said in zip(questions.rows.tolist(), given, strict=True):
        fields, label = questions.fields[row], questions.label(row)
        image = shards.image_key(int(shards.image_of_text[row]))
        entry = {"id": shards.text_key(row), "image": image, "question": shards.text(row)}
        if questions.several:
            entry |= {"labels": questions.all_labels(row), **said}
        else:
            entry |= {"answer": str(fields.get("answer", label)), "label": label, **said}
        if "answer_type" in fields:
            entry |= {"type": fields["answer_type"], "question_type": fields["question_type"]}
        rows.append(entry | {key: fields[key] for key in fields if key not in _ASIDE})
    return rows


def rank_rows(questions: Questions, places: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """`metrics.ranks` of a pool as objects for the file of ranks: of each text, of each image."""
    shards = questions.shards
    pool = {"t2i": shards.num_images, "i2t": len(shards)}
    images = [shards.image_key(image) for image in range(shards.num_images)]
    owners = {"t2i": [images[k] for k in shards.image_of_text], "i2t": images}
    keys = {"t2i": [shards.text_key(text) for text in range(len(shards))], "i2t": images}
    return [
        {"id": key, "image": image, "way": way, "rank": int(rank), "pool": pool[way]}
        for way in pool
        for key, image, rank in zip(keys[way], owners[way], places[way], strict=True)
    ]
