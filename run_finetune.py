"""Fine-tune M3AE, or evaluate a fine-tuned model. The same command again resumes.

    python run_finetune.py --config configs/finetune/vqa_rad.yaml init=runs/pretrain/m3ae
    torchrun --nproc_per_node 8 run_finetune.py --config configs/finetune/slake.yaml \\
        init=RUN protocol=both
    python run_finetune.py --config configs/finetune/vqa_rad.yaml init=FINE_TUNED \\
        eval_only=true output=runs/check
"""

import dataclasses
import logging
import math
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm

from m3ae.config import to_yaml
from m3ae.data.sampler import Plan
from m3ae.data.shards import read_manifest
from m3ae.data.texts import check_tokenizer, load_tokenizer
from m3ae.downstream.config import FinetuneConfig, load_finetune_config
from m3ae.downstream.data import read_splits, train_loader
from m3ae.downstream.evaluation import Evaluation
from m3ae.downstream.frozen import encode_frozen
from m3ae.downstream.model import Downstream, Init, build_downstream, read_init, write_facts
from m3ae.files import write_json
from m3ae.models.heads import start_answer_head
from m3ae.scoring.protocols import Protocol, protocols_of
from m3ae.strict_yaml import parse
from m3ae.training.checkpoint import (
    check_same_config,
    checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from m3ae.training.command import run_script
from m3ae.training.distributed import Processes
from m3ae.training.engine import Trainer, resolve_precision
from m3ae.training.logs import RunLog, environment, peak_memory_gib, read_log
from m3ae.training.optim import build_optimizer, set_lr

log = logging.getLogger("m3ae")


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit status. User mistakes end in one line on stderr and status 2."""
    return run_script(__doc__, load_finetune_config, finetune_all, argv)


def finetune_all(config: FinetuneConfig, group: Processes, dry_run: bool = False) -> None:
    """The runs that a config stands for, one after the other."""
    for part in runs_of(config):
        finetune(part, group, dry_run)


def runs_of(config: FinetuneConfig) -> list[FinetuneConfig]:
    """One training run serves both protocols where they train on the same rows, else two do."""
    if config.protocol != "both" or config.eval_only:
        return [config]
    source = read_manifest(Path(config.data.train))["source"]
    protocols = protocols_of("both", source, bool(config.data.valid))
    if all(rules.select != "held_out" for rules in protocols):
        return [config]
    log.info("protocol=both: %s trains on other rows under each, so there are two runs", source)
    return [
        dataclasses.replace(config, protocol=name, output=str(Path(config.output) / name))
        for name in ("paper", "strict")
    ]


def finetune(config: FinetuneConfig, group: Processes, dry_run: bool = False) -> None:
    """A whole run: data, model, optimiser, resume, loop, final evaluation."""
    run = Path(config.output)
    if finished(run, config) and not dry_run:
        log.info("%s is finished; nothing to do (another output= starts a new run)", run)
        return
    if config.train.threads:
        torch.set_num_threads(config.train.threads)

    # ---------------------------------------------------------------- weights, data
    init = read_init(config)
    tokenizer = load_tokenizer(tokenizer_source(config, init))
    check_tokenizer(tokenizer, init.model.text_encoder, config.data.text_length)
    source = read_manifest(Path(config.data.train))["source"]
    protocols = protocols_of(config.protocol, source, bool(config.data.valid))
    splits, answers, known = read_splits(config, tokenizer, protocols)
    train = splits["train"]
    per_epoch = math.ceil(len(train) / config.train.batch_global)
    plan = Plan(
        len(train),
        per_epoch * config.train.epochs,
        config.train.batch_global,
        config.train.batch_per_process,
        group.count,
    )

    # ---------------------------------------------------------------- model, optimiser
    precision = resolve_precision(config.train.precision, group.device)
    facts = {
        "run": config.output,
        "init": init.source,
        "source": source,
        "protocols": [rules.name for rules in protocols],
        "answers": len(answers),
        **{f"{name}_rows": len(split) for name, split in splits.items()},
        "steps": plan.steps,
        "steps_an_epoch": per_epoch,
        "batch_global": plan.batch_global,
        "accumulation": plan.accumulation,
        "processes": group.count,
        "precision": precision,
        "image_px": config.data.image_px,
    }
    model = build_downstream(config, init, answers).to(group.device)
    if config.train.answer_bias == "prior" and not config.eval_only:
        labels = train.labels()
        start_answer_head(model.head, torch.tensor([labels[answer] for answer in answers]))
    facts["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    if model.frozen:
        facts["frozen"] = ", ".join(model.frozen)
        facts["trained_parameters"] = sum(
            parameter.numel() for parameter in model.parameters() if parameter.requires_grad
        )
    for name, value in facts.items():
        log.info("%-16s %s", name.replace("_", " "), value)
    if dry_run:
        return
    run.mkdir(parents=True, exist_ok=True)
    if group.first:
        (run / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        write_json(
            run / "environment.json",
            {"seed": config.seed} | facts | environment(group.device, group.count),
        )
    described = {
        "task": config.task,
        "field": config.data.field,
        "answers": answers,
        "known": {name: sorted(labels) for name, labels in known.items()},
        "protocol": config.protocol,
        "source": source,
        "image_px": config.data.image_px,
        "text_length": config.data.text_length,
    }
    evaluation = Evaluation(config, model, splits, answers, known, protocols, group, precision)
    if config.eval_only:
        measures = evaluation.run(epoch=0)
        log.info("%s", ", ".join(f"{key} {value:.4f}" for key, value in measures.items()))
        evaluation.finish(dict.fromkeys((rules.name for rules in protocols), 0), {0: measures})
        return

    encode_frozen(model, splits, config, group, precision)
    torch.manual_seed(config.seed + group.rank)  # dropout differs between processes
    optimizer = build_optimizer(model, config.optim)
    trainer = Trainer(model, optimizer, group, precision, config.optim.clip_norm)

    # ---------------------------------------------------------------- resume
    step = 0
    if saved := checkpoints(run):
        step = load_checkpoint(saved[-1], model, optimizer, trainer.scaler, config, group)
        log.info("resuming from %s", saved[-1])
    run_log = RunLog(run, step, active=group.first)
    best = best_epochs(run, protocols, config) if step else {}

    # ---------------------------------------------------------------- loop
    loader = iter(train_loader(config, train, plan, group.rank, step, group.device))
    model.train()
    bar = tqdm(total=plan.steps, initial=step, unit="step", disable=not group.first)
    started, since = time.perf_counter(), step
    while step < plan.steps:
        set_lr(optimizer, step, plan.steps, config.optim)
        trainer.train_step([next(loader) for _ in range(plan.accumulation)])
        step += 1
        bar.update()
        ends, epoch = step % per_epoch == 0, step // per_epoch
        if ends or step % config.train.log_every == 0:
            if trainer.failed.item():
                raise ValueError(
                    f"a loss or gradient is not finite at or just before step {step}; lower "
                    "optim.lr, set optim.clip_norm or use train.precision=fp32"
                )
            values = trainer.read()
            speed = (step - since) * plan.batch_global / (time.perf_counter() - started)
            rates = {entry["name"]: entry["lr"] for entry in optimizer.param_groups}
            memory = peak_memory_gib(group.device)
            run_log.write(
                "train", step, **values, lr=rates, samples_per_s=speed, peak_memory_gib=memory
            )
            bar.set_postfix_str(f"loss {values['loss']:.3f}")
            started, since = time.perf_counter(), step
        if not ends:
            continue
        measures = evaluation.run(epoch)
        run_log.write("eval", step, epoch=epoch, **measures)
        log.info("epoch %d: %s", epoch, ", ".join(f"{k} {v:.4f}" for k, v in measures.items()))
        for name in keep_best(best, measures, epoch, protocols, config):
            if group.first:
                save_best(model, run / f"best-{name}", tokenizer, described, epoch)
        if step == plan.steps or epoch % config.train.checkpoint_every == 0:
            save_checkpoint(run, step, model, optimizer, trainer.scaler, config, tokenizer, group)
        started, since = time.perf_counter(), step
    bar.close()

    # ---------------------------------------------------------------- final evaluation
    history = {entry["epoch"]: entry for entry in read_log(run, "eval")} if group.first else None
    evaluation.finish({name: epoch for name, (_, epoch) in best.items()}, group.from_first(history))
    run_log.close()


def finished(run: Path, config: FinetuneConfig) -> bool:
    """Whether this very run has ended; raises ValueError if another one has in its folder."""
    if not (run / "evaluation.json").exists():
        return False
    saved = parse((run / "config.yaml").read_text(encoding="utf-8"), str(run / "config.yaml"))
    check_same_config(saved, config, 0, run)
    return True


def tokenizer_source(config: FinetuneConfig, init: Init) -> str:
    """Hub id or folder of the tokeniser; raises ValueError if nothing names one."""
    source = config.data.tokenizer or init.tokenizer or init.model.text_encoder.weights
    if source is None:
        raise ValueError("data.tokenizer: set it, since neither init nor the text encoder has one")
    return source


def best_epochs(
    run: Path, protocols: list[Protocol], config: FinetuneConfig
) -> dict[str, tuple[float, int]]:
    """Value and number of the best epoch so far under each protocol, by the run's log."""
    best: dict[str, tuple[float, int]] = {}
    for entry in read_log(run, "eval"):
        keep_best(best, entry, entry["epoch"], protocols, config)
    return best


def keep_best(
    best: dict[str, tuple[float, int]],
    measures: dict[str, float],
    epoch: int,
    protocols: list[Protocol],
    config: FinetuneConfig,
) -> list[str]:
    """Note an epoch under each protocol where it is the best so far; returns their names."""
    improved = []
    for rules in protocols:
        value = measures[f"{rules.select}/{rules.name}/{config.eval.metric}"]
        value = -value if config.eval.metric == "loss" else value
        if rules.name not in best or value > best[rules.name][0]:
            best[rules.name] = (value, epoch)
            improved.append(rules.name)
    return improved


def save_best(
    model: Downstream, folder: Path, tokenizer: object, described: dict, epoch: int
) -> None:
    """The model of the best epoch so far, as `python -m m3ae.predict` reads it."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part, tokenizer)
    write_facts(part, **described, epoch=epoch)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


if __name__ == "__main__":
    sys.exit(main())
