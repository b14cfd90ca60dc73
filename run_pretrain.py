"""Pre-train M3AE. One process: python; several: torchrun. The same command again resumes.

python run_pretrain.py --config configs/pretrain/quickstart.yaml
torchrun --nproc_per_node 8 run_pretrain.py --config configs/pretrain/m3ae.yaml optim.lr=2e-5
"""

import sys

from m3ae.command import read_run_arguments

if __name__ == "__main__":
    read_run_arguments(__doc__)  # --help and mistakes, before imports that take seconds

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from m3ae.checkpoints import last_checkpoint
from m3ae.config import Config, load_config
from m3ae.data.datasets import EvalBatches, Pairs, eval_batches, train_loader
from m3ae.data.sampler import Plan
from m3ae.data.texts import check_tokenizer, load_tokenizer
from m3ae.files import write_json
from m3ae.models import M3AE, build_model
from m3ae.models.param_groups import param_groups
from m3ae.pretraining import cost
from m3ae.pretraining.card import write_pretrained_card
from m3ae.pretraining.evaluation import ThreeArms
from m3ae.pretraining.reconstruction import draw_reconstructions
from m3ae.reports.pretraining import write_report
from m3ae.training.checkpoint import finished, resume
from m3ae.training.command import run_script
from m3ae.training.distributed import Processes
from m3ae.training.engine import Trainer, evaluate, summarise, to_device
from m3ae.training.logs import RunLog, log_facts, record_run, start_tracker
from m3ae.training.loop import Loop, due_at
from m3ae.training.optim import build_optimizer
from m3ae.training.precision import resolve_precision
from m3ae.training.saving import Saver
from m3ae.training.sharding import shard

log = logging.getLogger("m3ae")


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit status. User mistakes end in one line on stderr and status 2."""
    return run_script(__doc__, load_config, pretrain, argv)


def pretrain(config: Config, processes: Processes, dry_run: bool = False) -> None:
    """A whole run: data, model, optimiser, resume, loop, final evaluation."""
    run, train = Path(config.output), config.train
    if not dry_run and finished(run, config, processes, train.steps):
        return

    # ---------------------------------------------------------------- data
    tokenizer = load_tokenizer(tokenizer_source(config))
    check_tokenizer(tokenizer, config.model.text_encoder, config.data.text_length)
    shape = (tokenizer, config.data.text_length, config.model.image_encoder.image_px)
    pairs = Pairs(config.data.train, *shape, exclude=config.data.exclude)
    held_out = Pairs(config.data.valid, *shape) if config.data.valid else None
    sizes = (train.steps, train.batch_global, train.batch_per_process, processes.count)
    plan = Plan(len(pairs), *sizes)
    precision = resolve_precision(train.precision, processes.device)
    facts = cost.facts(config, pairs, held_out, plan, processes.device, precision)
    log_facts(facts)
    if dry_run:
        build_model(config)  # are its weights there, and do they fit?
        return

    # ---------------------------------------------------------------- model, optimiser
    model = build_model(config).to(processes.device)
    torch.manual_seed(config.seed + processes.rank)  # dropout differs between processes
    shares = shard(build_model(config).to(processes.device), processes) if train.shard else None
    optimizer = build_optimizer(param_groups(shares or model, config.optim), config.optim)
    trainer = Trainer(model, optimizer, processes, precision, config.optim.clip_norm, shares)

    # ---------------------------------------------------------------- resume
    step = resume(run, trainer, config)
    record_run(run, config, facts, processes)
    run_log = RunLog(run, step, processes.first, start_tracker(train.tracker, config, processes))
    if step == 0:
        note_frozen(model, run_log)
    if step == 0 or due_at(step, plan.steps, config.eval.every):  # unless it was broken off, done
        held_out_losses(config, trainer, held_out, run_log, step)

    # ---------------------------------------------------------------- loop
    loader = train_loader(config, pairs, plan, processes.rank, step, processes.device)
    saver = Saver(run, trainer, config, tokenizer)
    with Loop(saver, loader, plan, step, lambda index: pairs[index].key) as loop:
        for step, batches in loop:
            trainer.train_step(batches)
            if loop.due(train.log_every):
                loop.log(run_log, facts["gflop_per_sample"])
            if loop.due(train.checkpoint_every):
                saver.save(step)
            if loop.due(config.eval.every):
                held_out_losses(config, trainer, held_out, run_log, step)

    # ---------------------------------------------------------------- final evaluation
    result, started = {"step": step}, time.perf_counter()
    if held_out is not None:
        result |= ThreeArms(trainer.whole(), held_out, config.eval, processes, precision).run()
        result["seconds"] = round(time.perf_counter() - started, 1)
    if processes.first:
        write_json(run / "evaluation.json", result)
        write_pretrained_card(last_checkpoint(run), model, config, result)
        run_log.close()
        log.info("report: %s", write_report(run))


def note_frozen(model: M3AE, run_log: RunLog) -> None:
    """Say which parameters no loss reaches."""
    if frozen := ", ".join(model.unreached()):
        log.info("no loss reaches, so frozen: %s", frozen)
        run_log.write("note", 0, message=f"no loss reaches, so frozen: {frozen}")


def held_out_losses(
    config: Config, trainer: Trainer, held_out: Pairs | None, run_log: RunLog, step: int
) -> None:
    """A line of losses on held-out pairs, always the same, and a picture of reconstructions.

    Nothing where the log has it.
    """
    if held_out is None or trainer.processes.any(run_log.has("eval", step)):
        return
    model, processes = trainer.whole(), trainer.processes
    options = config.eval
    fixed = EvalBatches(held_out, config.model, options.seed, options.samples, options.batch)
    started, workers = time.perf_counter(), config.data.workers
    own = eval_batches(fixed, processes.rank, processes.count, workers, processes.device)
    arrays = evaluate(model, own, processes, trainer.precision)
    values = summarise(arrays, model.loss_weights)
    seconds = round(time.perf_counter() - started, 2)  # for which training waited
    run_log.write("eval", step, **values, seconds=seconds)
    shown = [f"{key} {value:.3f}" for key, value in values.items() if key != "samples"]
    log.info("step %d, held out: %s", step, ", ".join(shown))
    if processes.first and options.pictures and "mim" in model.loss_weights:
        path = Path(config.output) / "pictures" / f"step-{step:08d}.png"
        keys = ("index", "image", "text_ids", "text_keep", "patch_order")  # what MIM reads
        batch = fixed[0]
        batch = {key: batch[key][: options.pictures] for key in keys}
        texts = [held_out.text(int(index)) for index in batch["index"]]
        draw_reconstructions(model, to_device(batch, processes.device), texts, path)


def tokenizer_source(config: Config) -> str:
    """Hub id or folder of the tokeniser; raises ValueError if the config names none."""
    init = config.init if config.init and not Path(config.init).is_file() else None
    start = str(last_checkpoint(Path(init))) if init else config.model.text_encoder.weights
    source = config.data.tokenizer or start
    if source is None:
        raise ValueError("data.tokenizer: set it, since model.text_encoder.weights is null")
    return source


if __name__ == "__main__":
    sys.exit(main())
