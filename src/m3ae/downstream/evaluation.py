"""What fine-tuning predicts after every epoch and at the end, and its measures by protocol.

Letters: `Q` questions, `A` answers.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m3ae.data.questions import read_questions
from m3ae.downstream.config import FinetuneConfig
from m3ae.downstream.data import EvalQuestions, Questions, share
from m3ae.downstream.model import Downstream
from m3ae.downstream.ranking import read_pool, score_all
from m3ae.files import write_json
from m3ae.models.pretrained import read_pretrained
from m3ae.scoring.baselines import blind_baselines
from m3ae.scoring.metrics import ranks_by_rule, recalls
from m3ae.scoring.predictions import (
    annotate,
    complete,
    read_predictions,
    training_rows,
    write_predictions,
)
from m3ae.scoring.protocols import Protocol
from m3ae.scoring.statistics import evaluate_classes, evaluate_vqa
from m3ae.training.distributed import Processes
from m3ae.training.engine import autocast, evaluate, evaluating, summarise, to_device

log = logging.getLogger(__name__)

_ASIDE = ("question_id", "answer", "label", "answer_type", "question_type")  # have their own names


def predict(
    model: Downstream, data: EvalQuestions, processes: Processes, precision: str
) -> np.ndarray:
    """Logits float32 (Q, A) of all rows of a split, in its order; every process must call it."""
    rows, logits = [], []
    with evaluating(model):
        for batch in share(data, processes.rank, processes.count):
            batch = to_device(batch, processes.device)
            with autocast(processes.device, precision):
                scores = model.scores(batch)
            rows.append(batch["index"].cpu().numpy())
            logits.append(scores.float().cpu().numpy())
    mine = (np.concatenate(rows), np.concatenate(logits)) if rows else None
    found = [part for part in processes.gather(mine) if part is not None]
    rows = np.concatenate([part[0] for part in found])
    logits = np.concatenate([part[1] for part in found])
    return logits[np.argsort(rows)]  # no row is read twice, so the order is that of `data`


def probabilities(logits: np.ndarray, task: str) -> np.ndarray:
    """Logits (Q, A) -> probabilities: of each answer alone (VQA), or of one of the classes."""
    values = torch.from_numpy(logits)
    return (values.sigmoid() if task == "vqa" else values.softmax(dim=1)).numpy()


def prediction_rows(
    questions: Questions, scores: np.ndarray, answers: list[str], known: set[str] | None, top: int
) -> list[dict[str, Any]]:
    """One object a question for the predictions file; `known` restricts what may be answered."""
    allowed = np.array([known is None or answer in known for answer in answers])
    scores = np.where(allowed, scores, -1.0)
    best = np.argsort(-scores, axis=1, kind="stable")[:, : min(top, int(allowed.sum()))]
    shards, rows = questions.shards, []
    for row, order, values in zip(questions.rows, best, scores, strict=True):
        fields = questions.fields[row]
        label = questions.label(row)
        ranked = [[answers[k], round(float(values[k]), 6)] for k in order]
        entry = {
            "id": shards.text_key(int(row)),
            "image": shards.image_key(int(shards.image_of_text[row])),
            "question": shards.text(int(row)),
            "answer": str(fields.get("answer", label)),
            "label": label,
            "prediction": ranked[0][0],
            "score": ranked[0][1],
            "top": ranked,
        }
        if "answer_type" in fields:
            entry |= {"type": fields["answer_type"], "question_type": fields["question_type"]}
        rows.append(entry | {key: fields[key] for key in fields if key not in _ASIDE})
    return rows


def score(rows: list[dict[str, Any]], protocol: str, **options: Any) -> dict[str, Any]:
    """`evaluate_vqa` of questions, `evaluate_classes` of classes."""
    rows = complete(rows, "predictions")
    if "type" in rows[0]:
        return evaluate_vqa(rows, protocol, **options)
    return evaluate_classes([rows], **options)


def headline(scored: dict[str, Any]) -> dict[str, float]:
    """The measures that may select an epoch: see `METRICS` in the config."""
    if "macro_f1" in scored:
        return {"accuracy": scored["overall"]["accuracy"], "macro_f1": scored["macro_f1"]["value"]}
    parts = {name: scored[name]["accuracy"] for name in ("overall", "open", "closed")}
    return {name: value for name, value in parts.items() if value is not None}


class Evaluation:
    """The evaluated splits of a run, what may be answered under each protocol, and the model."""

    def __init__(
        self,
        config: FinetuneConfig,
        model: Downstream,
        splits: dict[str, Questions],
        answers: list[str],
        known: dict[str, set[str]],
        protocols: list[Protocol],
        group: Processes,
        precision: str,
    ) -> None:
        self.config, self.model, self.answers, self.known = config, model, answers, known
        self.protocols, self.group, self.precision = protocols, group, precision
        self.splits = {name: split for name, split in splits.items() if name != "train"}
        self.train = splits["train"]
        self.output = Path(config.output)
        if group.first:
            (self.output / "predictions").mkdir(parents=True, exist_ok=True)

    def run(self, epoch: int) -> dict[str, float]:
        """Measures by `split/protocol/measure`, after an epoch; predictions go to files."""
        return self._losses() if self.config.task == "retrieval" else self._answers(epoch)

    def _losses(self) -> dict[str, float]:
        """Retrieval: the loss over fixed false texts selects the epoch (reference, fact 14)."""
        measures = {}
        for name, split in self.splits.items():
            batches = share(EvalQuestions(split, self.config), self.group.rank, self.group.count)
            arrays = evaluate(self.model, batches, self.group, self.precision)
            loss = summarise(arrays, self.model.weights)["loss"]
            measures |= {f"{name}/{rules.name}/loss": loss for rules in self.protocols}
        return measures

    def _answers(self, epoch: int) -> dict[str, float]:
        """Accuracies, and a file of predictions by split and protocol."""
        measures = {}
        for name, split in self.splits.items():
            data = EvalQuestions(split, self.config)
            scores = predict(self.model, data, self.group, self.precision)
            scores = probabilities(scores, self.config.task)
            for rules in self.protocols:
                rows = prediction_rows(
                    split, scores, self.answers, self.known[rules.name], self.config.eval.top
                )
                if self.group.first:
                    write_predictions(self._file(epoch, name, rules.name), rows)
                values = headline(score(rows, rules.name, samples=0))
                measures |= {f"{name}/{rules.name}/{key}": value for key, value in values.items()}
        return measures

    def _file(self, epoch: int, split: str, protocol: str) -> Path:
        return self.output / "predictions" / f"epoch-{epoch:04d}-{split}-{protocol}.jsonl"

    def finish(self, best: dict[str, int], history: dict[int, dict[str, float]]) -> None:
        """Write evaluation.json and, by protocol, predictions-PROTOCOL.jsonl of the best epoch.

        best: the selected epoch by protocol. history: the measures of every epoch, of which "best
        on test" and "last epoch" show what selecting on the test set would have gained.
        """
        result: dict[str, Any] = {"task": self.config.task, "epochs": max(history)}
        for rules in self.protocols:
            epoch = best[rules.name]
            entry: dict[str, Any] = {"epoch": epoch, "selected_on": rules.select}
            if self.config.task == "retrieval":
                entry |= self._rank(rules)
            elif self.group.first:
                metric = f"test/{rules.name}/{self.config.eval.metric}"
                entry["last_epoch"] = history[max(history)].get(metric)
                entry["best_on_test"] = max(row[metric] for row in history.values())
                entry["test"] = self._score(self._file(epoch, "test", rules.name), rules.name)
                shutil.copyfile(
                    self._file(epoch, "test", rules.name),
                    self.output / f"predictions-{rules.name}.jsonl",
                )
            result[rules.name] = entry
        if self.group.first:
            write_json(self.output / "evaluation.json", result)
            log.info("%s", "\n".join(table(result)))

    def _score(self, file: Path, protocol: str) -> dict[str, Any]:
        """Test measures with intervals, strata and blind baselines."""
        train = read_questions(self.config.data.train, self.config.data.field)
        rows, notes = annotate(read_predictions(file), train, protocol)
        rows = complete(rows, str(file))
        blind, more = blind_baselines(training_rows(train, protocol), rows)
        for note in [*notes, *more]:
            log.info("%s", note)
        return score(rows, protocol, samples=self.config.eval.samples, blind=blind)

    def _rank(self, rules: Protocol) -> dict[str, Any]:
        """Recalls of every evaluated pool, ranked by the selected weights."""
        recalled = {}
        weights = self.output / f"best-{rules.name}"
        if weights.is_dir():
            self.model.load_state_dict(read_pretrained(weights)[1])
        for name, split in self.splits.items():
            pool = read_pool(split.pairs)
            scores = score_all(
                self.model,
                self.model.head,
                pool,
                self.group,
                self.precision,
                self.output / "ranking" / f"{name}-{rules.name}",
                text_block=self.config.eval.text_block,
            )
            places = ranks_by_rule(scores, pool.image_of_text, pool.texts)
            by_rule = {rule: recalls(place) for rule, place in places.items()}
            recalled[name] = {"images": len(pool.images), "texts": len(pool.texts), **by_rule}
        return recalled


def table(result: dict[str, Any]) -> list[str]:
    """The result as lines of text, percent with 95 % intervals."""
    lines = []
    for name in [key for key, value in result.items() if isinstance(value, dict)]:
        entry = result[name]
        lines.append(f"protocol {name}: epoch {entry['epoch']}, selected on {entry['selected_on']}")
        if result["task"] == "retrieval":
            for pool in [key for key, value in entry.items() if isinstance(value, dict)]:
                for rule in ("id", "text"):
                    recalled = entry[pool][rule].items()
                    values = ", ".join(f"{key} {100 * value:.2f}" for key, value in recalled)
                    size = entry[pool]["images"]
                    lines.append(f"  {pool} ({size} images), same {rule}: {values}")
            continue
        for part in ("overall", "open", "closed"):
            if part in entry["test"]:
                lines.append(f"  {part:8} {percent(entry['test'][part])}")
        blind = entry["test"]["overall"].get("blind", {})
        lines += [f"  blind {key}: {percent(value)}" for key, value in blind.items()]
        if "macro_f1" in entry["test"]:
            lines.append(f"  macro F1 {100 * entry['test']['macro_f1']['value']:.2f}")
        lines.append(
            f"  last epoch {100 * entry['last_epoch']:.2f}, best on test "
            f"{100 * entry['best_on_test']:.2f}"
        )
    return lines


def percent(entry: dict[str, Any]) -> str:
    """Accuracy and interval of an entry of `statistics.evaluate`."""
    if entry["accuracy"] is None:
        return "no question"
    text = f"{100 * entry['accuracy']:.2f}"
    if entry["interval"]:
        text += f" [{100 * entry['interval'][0]:.1f}, {100 * entry['interval'][1]:.1f}]"
    return f"{text} of {entry['questions']}" if "questions" in entry else text
