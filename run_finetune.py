"""Fine-tune M3AE, or evaluate a fine-tuned model. The same command again resumes.

    python run_finetune.py --config configs/finetune/vqa_rad.yaml init=runs/pretrain/m3ae
    torchrun --nproc_per_node 8 run_finetune.py --config configs/finetune/slake.yaml \\
        init=RUN protocol=both
    python run_finetune.py --config configs/finetune/vqa_rad.yaml init=FINE_TUNED \\
        eval_only=true output=runs/check
"""

import sys

from m3ae.command import read_run_arguments

if __name__ == "__main__":
    read_run_arguments(__doc__)  # --help and mistakes, before imports that take seconds

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from m3ae.data.sampler import Plan
from m3ae.data.shards import Shards, read_manifest
from m3ae.data.texts import check_tokenizer, load_tokenizer
from m3ae.downstream.config import FinetuneConfig, load_finetune_config
from m3ae.downstream.data import Questions, read_splits, train_loader
from m3ae.downstream.epochs import Epochs, read_history
from m3ae.downstream.evaluation import Evaluation
from m3ae.downstream.frozen import encode_frozen, standardise_head
from m3ae.downstream.model import Downstream
from m3ae.downstream.selection import read_fields, same_rows
from m3ae.downstream.starting import Init, build_downstream, read_init
from m3ae.models.heads import start_answer_head
from m3ae.models.param_groups import param_groups
from m3ae.scoring.protocols import Protocol, protocols_of
from m3ae.training.checkpoint import finished, resume
from m3ae.training.command import run_script
from m3ae.training.distributed import Processes
from m3ae.training.engine import Trainer
from m3ae.training.logs import RunLog, log_facts, record_run, start_tracker
from m3ae.training.loop import Loop
from m3ae.training.optim import build_optimizer
from m3ae.training.precision import resolve_precision
from m3ae.training.saving import Saver

log = logging.getLogger("m3ae")


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit status. User mistakes end in one line on stderr and status 2."""
    return run_script(__doc__, load_finetune_config, finetune_all, argv)


def finetune_all(config: FinetuneConfig, processes: Processes, dry_run: bool = False) -> None:
    """The runs that a config stands for, one after the other."""
    for one in runs_of(config):
        finetune(one, processes, dry_run)


def runs_of(config: FinetuneConfig) -> list[FinetuneConfig]:
    """One training run serves both protocols where they train on the same rows, else two do."""
    if config.protocol != "both" or config.eval_only:
        return [config]
    protocols = read_protocols(config, "both")
    fields, _ = read_fields(Shards(Path(config.data.train)), config.data.field)
    if all(rules.select != "held_out" for rules in protocols) and same_rows(protocols, fields):
        return [config]
    log.info("protocol=both: each trains on other rows, so there are two runs")
    return [
        dataclasses.replace(config, protocol=name, output=str(Path(config.output) / name))
        for name in ("paper", "strict")
    ]


def finetune(config: FinetuneConfig, processes: Processes, dry_run: bool = False) -> None:
    """A whole run: weights, data, model, optimiser, resume, loop, final evaluation."""
    run, train = Path(config.output), config.train
    if not dry_run and finished(run, config, processes):
        report(run, processes, again=False)  # if it ended in between, or before there were reports
        return

    # ---------------------------------------------------------------- weights, data
    init = read_init(config)
    tokenizer = load_tokenizer(tokenizer_source(config, init))
    check_tokenizer(tokenizer, init.model.text_encoder, config.data.text_length)
    protocols = read_protocols(config, config.protocol)
    splits, answers, known = read_splits(config, tokenizer, protocols)
    rows = splits["train"]
    plan, per_epoch = plan_of(config, len(rows), processes)

    # ---------------------------------------------------------------- model, optimiser
    model = build_downstream(config, init, answers).to(processes.device)
    start_head(config, model, rows, answers)
    precision = resolve_precision(train.precision, processes.device)
    log_facts(facts := facts_of(config, init, model, splits, answers, protocols, plan, precision))
    if dry_run:
        return
    evaluation = Evaluation(config, model, splits, answers, known, protocols, processes, precision)
    if config.eval_only:
        record_run(run, config, facts, processes)
        evaluation.finish({rules.name: 0 for rules in protocols}, {0: evaluation.run(epoch=0)})
        report(run, processes)
        return
    encode_frozen(model, splits, config, processes, precision)
    torch.manual_seed(config.seed + processes.rank)  # dropout differs between processes
    optimizer = build_optimizer(param_groups(model, config.optim), config.optim)
    trainer = Trainer(model, optimizer, processes, precision, config.optim.clip_norm)

    # ---------------------------------------------------------------- resume
    step = resume(run, trainer, config)
    if not step:
        standardise_head(model, rows, config, processes, precision)
    record_run(run, config, facts, processes)
    run_log = RunLog(run, step, processes.first, start_tracker(train.tracker, config, processes))
    epochs = Epochs(evaluation, tokenizer, run_log, per_epoch)
    epochs.go_on(step, plan.steps)

    # ---------------------------------------------------------------- loop
    loader = train_loader(config, rows, plan, processes, step)
    saver = Saver(run, trainer, config, tokenizer)
    with Loop(saver, loader, plan, step, lambda index: rows.pairs[index].key) as loop:
        for step, batches in loop:
            trainer.train_step(batches)
            if loop.due(train.log_every, per_epoch):
                loop.log(run_log)
            if loop.due(per_epoch * train.checkpoint_every):
                saver.save(step)
            if loop.due(epochs.every):
                epochs.end(step)

    # ---------------------------------------------------------------- final evaluation
    evaluation.finish(epochs.chosen, read_history(evaluation))
    run_log.close()
    report(run, processes)


def report(run: Path, processes: Processes, again: bool = True) -> None:
    """Write the run's report.html, in the first process; `again`: also where there is one."""
    if processes.first and (again or not (run / "report.html").exists()):
        from m3ae.reports.finetuning import write_report  # matplotlib, which --help does without

        log.info("report: %s", write_report(run))


def read_protocols(config: FinetuneConfig, name: str) -> list[Protocol]:
    """The rules that a name stands for on this run's data."""
    source = read_manifest(Path(config.data.train))["source"]
    return protocols_of(name, source, bool(config.data.valid))


def plan_of(config: FinetuneConfig, rows: int, processes: Processes) -> tuple[Plan, int]:
    """The plan and the steps an epoch, whose last batch is filled from the next epoch."""
    train = config.train
    per_epoch = math.ceil(rows / train.batch_global)
    sizes = (per_epoch * train.epochs, train.batch_global, train.batch_per_process, processes.count)
    return Plan(rows, *sizes), per_epoch


def start_head(
    config: FinetuneConfig, model: Downstream, rows: Questions, answers: list[str]
) -> None:
    """With `answer_bias: prior`, the head starts at the answers' log odds in the training rows."""
    if config.train.answer_bias == "prior" and not config.eval_only:
        if not hasattr(model.head, "last"):
            raise ValueError(
                f"train.answer_bias: prior needs a head with `last`; {config.task}'s has none"
            )
        labels = rows.labels()
        counts = torch.tensor([labels[answer] for answer in answers])
        exclusive = model.exclusive and config.kind == "vqa"
        start_answer_head(model.head, counts, exclusive, len(rows))


def facts_of(
    config: FinetuneConfig,
    init: Init,
    model: Downstream,
    splits: dict[str, Questions],
    answers: list[str],
    protocols: list[Protocol],
    plan: Plan,
    precision: str,
) -> dict[str, object]:
    """Figures of a run, by name."""
    parameters = list(model.parameters())
    facts = {
        "run": config.output,
        "init": init.source,
        "source": read_manifest(Path(config.data.train))["source"],
        "protocols": [rules.name for rules in protocols],
        "answers": len(answers),
        "train_images": splits["train"].images(),
        **{f"{name}_rows": len(split) for name, split in splits.items()},
        "steps": plan.steps,
        "steps_an_epoch": plan.steps // config.train.epochs,
        "batch_global": plan.batch_global,
        "accumulation": plan.accumulation,
        "processes": plan.processes,
        "precision": precision,
        "image_px": config.data.image_px,
        "parameters": sum(parameter.numel() for parameter in parameters),
    }
    if model.unread:
        facts["frozen_as_unread"] = ", ".join(model.unread)
    if model.frozen or model.unread:
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        facts |= {"frozen": ", ".join(model.frozen), "trained_parameters": trained}
    return facts


def tokenizer_source(config: FinetuneConfig, init: Init) -> str:
    """Hub id or folder of the tokeniser; raises ValueError if nothing names one."""
    source = config.data.tokenizer or init.tokenizer or init.model.text_encoder.weights
    if source is None:
        raise ValueError("data.tokenizer: set it, since neither init nor the text encoder has one")
    return source


if __name__ == "__main__":
    sys.exit(main())
