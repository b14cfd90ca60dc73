"""What fine-tuning predicts after every epoch and at the end, and its measures by protocol.

Under `paper` all splits are predicted after every epoch. Under the others the test set is seen
once, at the end, by the selected weights; an epoch is measured on what selects it alone.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m3ae.checkpoints import CARD
from m3ae.data.datasets import eval_batches
from m3ae.data.questions import read_questions
from m3ae.downstream.config import FinetuneConfig
from m3ae.downstream.data import ARMS, EvalQuestions, Questions, Splits
from m3ae.downstream.model import Downstream, read_facts
from m3ae.downstream.papers import check_disjoint
from m3ae.downstream.predictions import predict, prediction_rows, rank_rows
from m3ae.downstream.ranking import read_pool, score_all
from m3ae.files import write_json, write_text
from m3ae.models.card import card_of
from m3ae.scoring.baselines import blind_baselines
from m3ae.scoring.measures import measure_answers, measure_classes, measure_ranks
from m3ae.scoring.metrics import ranks_by_rule
from m3ae.scoring.multilabel import RANKED, measure_labels
from m3ae.scoring.predictions import (
    PROTOCOLS,
    annotate,
    complete,
    kind_of,
    read_predictions,
    read_trained_on,
    rows_trained_on,
    write_predictions,
    write_trained_on,
)
from m3ae.scoring.protocols import Protocol
from m3ae.scoring.text import percent, result_lines
from m3ae.training.distributed import Processes
from m3ae.training.engine import evaluate, summarise

log = logging.getLogger(__name__)

# By `predictions.kind_of`.
MEASURES = {"answers": measure_answers, "classes": measure_classes, "labels": measure_labels}
TRAINED_ON = "trained_on.txt"


def measure(rows: list[dict[str, Any]], protocol: str, **options: Any) -> dict[str, Any]:
    """What `MEASURES` has for these rows."""
    return MEASURES[kind_of(rows[0])]([complete(rows, "predictions")], protocol, **options)


def headline(measured: dict[str, Any]) -> dict[str, float]:
    """The measures that may select an epoch: see `METRICS` in the config."""
    if "auroc" in measured:
        return {name: measured[name]["macro"]["value"] for name in RANKED}
    if "macro_f1" in measured:
        accuracy = measured["overall"]["accuracy"]
        return {"accuracy": accuracy, "macro_f1": measured["macro_f1"]["value"]}
    parts = {name: measured[name]["accuracy"] for name in ("overall", "open", "closed")}
    return {name: value for name, value in parts.items() if value is not None}


def _told_apart(targets: np.ndarray) -> np.ndarray:
    """Of which classes there are rows and others: bool (A,); targets 1, 0 or -1 (Q, A)."""
    return (targets == 1).any(axis=0) & (targets == 0).any(axis=0)


def find_trained_on(config: FinetuneConfig, train: Questions) -> list[str] | None:
    """Ids of the rows that the model trained on; None where an evaluated one does not say it.

    ValueError where `data.train` lacks one that an evaluated model's run wrote down.
    """
    if not config.eval_only:
        return train.ids()
    init = Path(config.init)
    # A run's folder, its best-PROTOCOL, its checkpoints/step-...
    places = [] if init.is_file() else [init, init.parent, init.parent.parent]
    path = next((p / TRAINED_ON for p in places if (p / TRAINED_ON).is_file()), None)
    if path is None:
        return None
    ids = read_trained_on(path)
    known = {train.shards.text_key(row) for row in range(len(train.shards))}
    if unknown := set(ids) - known:
        some = (
            f"{len(unknown)} of the {len(ids)} rows that {init} trained on, e.g. {min(unknown)!r}"
        )
        hint = "give the split that it was trained on"
        raise ValueError(f"data.train: {train.folder} lacks {some}; {hint}")
    return ids


@dataclass
class Evaluation:
    """The splits of a run, what may be answered under each protocol, and the model."""

    config: FinetuneConfig
    model: Downstream
    splits: Splits
    answers: list[str]
    known: dict[str, set[str]]
    protocols: list[Protocol]
    processes: Processes
    precision: str

    def __post_init__(self) -> None:
        config, self.train = self.config, self.splits["train"]
        self.output = Path(config.output)
        self.arms = ARMS if config.data.image == "own" else ("none",)
        if self.splits["test"].shards.num_images == 1:
            self.arms = tuple(arm for arm in self.arms if arm != "other")
        for rules in self.protocols:
            self._check_metric(rules.select)
        for rules in self.protocols if config.eval.question_only else ():
            self._question_only(rules.name)  # its mistakes before training
        self.trained_on = find_trained_on(config, self.train)
        if self.processes.first:
            (self.output / "predictions").mkdir(parents=True, exist_ok=True)
            if self.trained_on is not None:
                folder, total = config.data.train, len(self.train.shards)
                write_trained_on(self.output / TRAINED_ON, folder, self.trained_on, total)

    def _check_metric(self, name: str) -> None:
        """ValueError where the split that selects has no question of the kind that `metric` counts.

        Nothing could be selected then, which would be told after the first epoch.
        """
        split, metric = self.splits[name], self.config.eval.metric
        targets = split.targets[split.rows]
        if self.config.kind == "multilabel" and not _told_apart(targets).any():
            said = f"{split.folder} ({name}, which selects the epoch) has no finding"
            raise ValueError(f"{said} that some of its rows have and others have not")
        if metric in ("open", "closed"):
            kinds = {split.fields[row].get("answer_type") for row in split.rows.tolist()}
            if metric not in kinds:
                said = f"{split.folder} ({name}, which selects the epoch) has no {metric} question"
                raise ValueError(f"eval.metric: {metric}, but {said}; take overall")

    def run(self, epoch: int) -> dict[str, float]:
        """Measures by `split/protocol/measure`, after an epoch; predictions go to files."""
        return self._losses() if self.config.kind == "retrieval" else self._answers(epoch)

    def _losses(self) -> dict[str, float]:
        """Retrieval: the loss over fixed false texts selects the epoch (reference, fact 14)."""
        measures = {}
        for name in {rules.select: None for rules in self.protocols}:
            false_texts = self.config.data.false_texts
            data = EvalQuestions(self.splits[name], self.config.eval.batch, "own", false_texts)
            processes, workers = self.processes, self.config.data.workers
            own = (processes.rank, processes.count, workers, processes.device)
            arrays = evaluate(self.model, eval_batches(data, *own), processes, self.precision)
            loss = summarise(arrays, self.model.loss_weights)["loss"]
            chosen = [rules for rules in self.protocols if rules.select == name]
            measures |= {f"{name}/{rules.name}/loss": loss for rules in chosen}
        return measures

    def _answers(self, epoch: int) -> dict[str, float]:
        """Accuracies, and a file of predictions by split and protocol."""
        measures = {}
        for name in self.splits:
            seen = [
                rules for rules in self.protocols if rules.select == name or rules.name == "paper"
            ]
            if name == "train" or not seen:
                continue
            chances = self._chances(name, self.arms[0])
            for rules in seen:
                rows = self._rows(name, chances, rules)
                if self.processes.first:
                    file = f"epoch-{epoch:04d}-{name}-{rules.name}.jsonl"
                    write_predictions(self.output / "predictions" / file, rows)
                values = headline(measure(rows, rules.name, samples=0))
                measures |= {f"{name}/{rules.name}/{key}": value for key, value in values.items()}
        return measures

    def _chances(self, split: str, arm: str) -> np.ndarray:
        data = EvalQuestions(self.splits[split], self.config.eval.batch, arm)
        workers = self.config.data.workers
        return predict(self.model, data, self.processes, self.precision, workers=workers)

    def _rows(self, split: str, chances: np.ndarray, rules: Protocol) -> list[dict[str, Any]]:
        known, top = self.known[rules.name], self.config.eval.top
        return prediction_rows(self.splits[split], chances, self.answers, known, top)

    def finish(self, best: dict[str, int], history: dict[int, dict[str, float]]) -> None:
        """Write evaluation.json and, by protocol, the test predictions of the selected weights.

        best: the selected epoch by protocol. history: the measures of every epoch, of which, under
        `paper`, "best on test" and "last epoch" show what selecting on the test set gains.
        """
        result: dict[str, Any] = {"task": self.config.kind, "epochs": max(history)}
        ids, total = self.trained_on, len(self.train.shards)
        trained_on = None if ids is None else {"rows": len(ids), "of": total}  # None: not known
        result |= {"image": self.config.data.image, "trained_on": trained_on}
        for rules in self.protocols:
            self._load(rules.name, best[rules.name])
            entry: dict[str, Any] = {"epoch": best[rules.name], "selected_on": rules.select}
            if self.config.kind == "retrieval":
                entry |= self._rank(rules)
            else:
                entry |= self._test(rules)
                if rules.name == "paper":
                    metric = f"test/paper/{self.config.eval.metric}"
                    entry["last_epoch"] = history[max(history)].get(metric)
                    entry["best_on_test"] = max(row[metric] for row in history.values())
            result[rules.name] = entry
        if self.processes.first:
            write_json(self.output / "evaluation.json", result)
            log.info("%s", "\n".join(report(result)))
            for rules in self.protocols if not self.config.eval_only else ():
                self._describe(self.output / f"best-{rules.name}", result, rules.name)

    def _describe(self, folder: Path, result: dict[str, Any], protocol: str) -> None:
        """The card of a selected model: what it learned from, by which rules, how well."""
        data, rows = self.config.data, result["trained_on"]
        source = self.train.shards.manifest["source"]
        said = f"Fine-tuned on {rows['rows']} of the {rows['of']} training rows of {source} "
        said += f"(`{self.config.data.train}`) under the protocol {protocol}, epoch "
        said += f"{result[protocol]['epoch']}, selected on {result[protocol]['selected_on']}; "
        said += f"seed {self.config.seed}, from `{self.config.init or self.config.architecture}`."
        if data.image == "none":
            said += " A question-only model: it was shown the mean image alone."
        shown = {key: result[key] for key in ("task", "trained_on", "image", protocol)}
        text = card_of(self.model, True, data=said, numbers=numbers_of(shown))
        write_text(folder / CARD, text)

    def _load(self, protocol: str, epoch: int) -> None:
        """The weights of the selected epoch; ValueError where those kept are of another one."""
        if self.config.eval_only:
            return
        folder = self.output / f"best-{protocol}"
        facts = read_facts(folder) if folder.is_dir() else None
        kept = (facts or {}).get("epoch")
        if kept != epoch:
            hint = "this run cannot be evaluated, start it again with another output="
            raise ValueError(f"{folder}: of epoch {kept}, but the log selects {epoch}; {hint}")
        self.model.load_weights(folder)

    def _test(self, rules: Protocol) -> dict[str, Any]:
        """Predict the test set with the images of each arm; in the first process, its measures."""
        found = {}
        for arm in self.arms:
            found[arm] = self._rows("test", self._chances("test", arm), rules)
            if self.processes.first:
                name = f"-{arm}" if arm != self.arms[0] else ""
                write_predictions(self.output / f"predictions-{rules.name}{name}.jsonl", found[arm])
        return {"test": self._measure(found, rules.name)} if self.processes.first else {}

    def _measure(self, found: dict[str, list[dict[str, Any]]], protocol: str) -> dict[str, Any]:
        """Test measures with intervals, strata, blind baselines and arms."""
        train = read_questions(self.config.data.train, self.config.data.field)
        ids = self.train.ids() if self.trained_on is None else self.trained_on
        trained_on = rows_trained_on(train, ids, TRAINED_ON)
        own, *others = [complete(rows, f"arm {arm}") for arm, rows in found.items()]
        blind, notes, more = {}, [], []
        if self.config.kind != "multilabel":  # whose measures have neither strata nor baselines
            own, notes = annotate(own, trained_on, train, protocol)
            blind, more = blind_baselines(trained_on, own)
        for note in [*notes, *more]:
            log.info("%s", note)
        arms = {name: [rows] for name, rows in zip(self.arms[1:], others, strict=True)}
        if self.config.eval.question_only:
            arms["question-only"] = [complete(self._question_only(protocol), "question-only")]
        samples = self.config.eval.samples
        return measure(own, protocol, samples=samples, blind=blind, arms=arms)

    def _question_only(self, protocol: str) -> list[dict[str, Any]]:
        """Test predictions of the question-only model that `eval.question_only` names."""
        run, name = Path(self.config.eval.question_only), f"predictions-{protocol}.jsonl"
        path = next((p for p in (run / name, run / protocol / name) if p.is_file()), None)
        if path is None:
            hint = f"train that model first, with data.image=none and protocol={protocol}"
            raise FileNotFoundError(f"eval.question_only: {run / name} is not there; {hint}")
        return read_predictions(path)

    def _rank(self, rules: Protocol) -> dict[str, Any]:
        """Rank a protocol's pool by its rule; in the first process, its recalls.

        paper: the valid pool, where only an image's own captions are hits. The others: the test
        pool, where identical captions are hits too, and whose articles pre-training has not seen.
        """
        name, same = ("valid", "id") if rules.name == "paper" else ("test", "text")
        model, block, split = self.model, self.config.eval.text_block, self.splits[name]
        pool, folder = read_pool(split.pairs), self.output / "ranking" / f"{name}-{rules.name}"
        scores = score_all(
            model, model.head, pool, self.processes, self.precision, folder, text_block=block
        )
        if not self.processes.first:
            return {}
        rows = rank_rows(split, ranks_by_rule(scores, pool.image_of_text, pool.texts)[same])
        write_predictions(self.output / f"ranks-{rules.name}.jsonl", rows)
        entry = {"pool": name, "same": same}
        if rules.name != "paper":
            entry["articles"] = check_disjoint(self.config)
        return entry | {"recalls": measure_ranks([rows], samples=self.config.eval.samples)}


def numbers_of(result: dict[str, Any]) -> str:
    """The result as a block of a model card."""
    return "\n".join(f"    {line}".rstrip() for line in report(result))


def report(result: dict[str, Any]) -> list[str]:
    """The result as lines of text."""
    lines = ["rows trained on: not known, taken as those that the protocol allows"]
    if result["trained_on"]:
        lines = ["trained on {rows} of {of} rows".format(**result["trained_on"])]
    if result["image"] == "none":
        lines.append("question-only model: trained and evaluated on the mean image (data.image)")
    for name in (rules for rules in PROTOCOLS if rules in result):
        entry = result[name]
        lines += ["", f"{name}: epoch {entry['epoch']}, selected on {entry['selected_on']}"]
        if "recalls" in entry:
            lines.append(f"pool: {entry['pool']}; a hit has the same {entry['same']}")
            lines += result_lines("ranks", entry["recalls"])
            continue
        kinds = {"auroc": "labels", "open": name}
        kind = next((kinds[key] for key in kinds if key in entry["test"]), "classes")
        lines += result_lines(kind, entry["test"])
        if "best_on_test" in entry:
            last, most = percent(entry["last_epoch"]), percent(entry["best_on_test"])
            lines.append(f"last epoch {last}, best on test {most}")
    return lines
