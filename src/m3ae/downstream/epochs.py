"""The end of an epoch: measured, kept where it is the best so far, and only then in the log."""

import dataclasses
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m3ae.checkpoints import writing
from m3ae.data.shards import read_manifest
from m3ae.downstream.evaluation import Evaluation
from m3ae.downstream.model import write_facts
from m3ae.training.logs import RunLog, read_log
from m3ae.training.loop import due_at

log = logging.getLogger(__name__)


def read_history(evaluation: Evaluation) -> dict[int, dict[str, float]]:
    """The measures of every epoch so far, from the first process's log; all must call it."""
    processes = evaluation.processes
    lines = read_log(evaluation.output, "eval") if processes.first else None
    return {line["epoch"]: line for line in processes.from_first(lines)}


@dataclass
class Epochs:
    """The epochs of a run that `evaluation` measures; the best so far under each protocol.

    Their models go to the run's best-PROTOCOL, as `python -m m3ae.predict` reads them.
    """

    evaluation: Evaluation
    tokenizer: Any
    run_log: RunLog
    steps: int  # an epoch
    best: dict[str, tuple[float, int]] = field(default_factory=dict)  # value, epoch

    @property
    def every(self) -> int:
        """Steps from one evaluation to the next."""
        return self.steps * self.evaluation.config.eval.every

    @property
    def chosen(self) -> dict[str, int]:
        """The best epoch under each protocol."""
        return {name: epoch for name, (_, epoch) in self.best.items()}

    def go_on(self, step: int, last: int) -> None:
        """Take up a run after `step` of `last` steps; every process must call it.

        Its epochs so far are noted, one whose evaluation was broken off is measured.
        """
        if not step:
            return
        for epoch, measures in read_history(self.evaluation).items():
            self.note(epoch, measures)
        evaluated = self.evaluation.processes.any(self.run_log.has("eval", step))
        if due_at(step, last, self.every) and not evaluated:
            self.end(step)

    def end(self, step: int) -> None:
        """Measure the epoch that ended with this step; every process must call it."""
        epoch, started = step // self.steps, time.perf_counter()
        measures = self.evaluation.run(epoch)
        for name in self.note(epoch, measures):
            self._save(self.evaluation.output / f"best-{name}", epoch)
        seconds = round(time.perf_counter() - started, 2)  # for which training waited
        self.run_log.write("eval", step, epoch=epoch, **measures, seconds=seconds)
        log.info("epoch %d: %s", epoch, ", ".join(f"{k} {v:.4f}" for k, v in measures.items()))

    def note(self, epoch: int, measures: dict[str, float]) -> list[str]:
        """Take an epoch for the best under each protocol where it is; returns their names."""
        improved, metric = [], self.evaluation.config.eval.metric
        for rules in self.evaluation.protocols:
            value = measures[f"{rules.select}/{rules.name}/{metric}"]
            value = -value if metric == "loss" else value
            if rules.name not in self.best or value > self.best[rules.name][0]:
                self.best[rules.name] = (value, epoch)
                improved.append(rules.name)
        return improved

    def _save(self, folder: Path, epoch: int) -> None:
        evaluation, config = self.evaluation, self.evaluation.config
        if not evaluation.processes.first:
            return
        with writing(folder, epoch=epoch) as part:
            evaluation.model.save_pretrained(part, self.tokenizer)
            write_facts(
                part,
                task=config.kind,
                field=config.data.field,
                answers=evaluation.answers,
                known={name: sorted(labels) for name, labels in evaluation.known.items()},
                protocol=config.protocol,
                source=read_manifest(Path(config.data.train))["source"],
                image_px=config.data.image_px,
                text_length=config.data.text_length,
                image=config.data.image,
                head=dataclasses.asdict(config.head),
                epoch=epoch,
                **({} if config.task == config.kind else {"class": config.task}),
            )
