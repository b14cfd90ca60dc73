"""Pre-train M3AE. One process: python; several: torchrun. The same command again resumes.

python run_pretrain.py --config configs/pretrain/quickstart.yaml
torchrun --nproc_per_node 8 run_pretrain.py --config configs/pretrain/m3ae.yaml optim.lr=2e-5
"""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm

from m3ae.config import Config, load_config, to_yaml
from m3ae.data.datasets import EvalBatches, Pairs, eval_batches, train_loader
from m3ae.data.sampler import Plan
from m3ae.data.texts import check_tokenizer, load_tokenizer
from m3ae.files import write_json
from m3ae.models import M3AE, build_model
from m3ae.pretraining import cost
from m3ae.pretraining.evaluation import ThreeArms
from m3ae.pretraining.reconstruction import draw_reconstructions
from m3ae.reports.pretraining import write_report
from m3ae.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from m3ae.training.command import run_script
from m3ae.training.distributed import Processes
from m3ae.training.engine import (
    Trainer,
    evaluate,
    resolve_precision,
    summarise,
    to_device,
)
from m3ae.training.logs import RunLog, environment, peak_memory_gib
from m3ae.training.loop import peak_flops
from m3ae.training.optim import build_optimizer, set_lr

log = logging.getLogger("m3ae")


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the exit status. User mistakes end in one line on stderr and status 2."""
    return run_script(__doc__, load_config, pretrain, argv)


def pretrain(config: Config, group: Processes, dry_run: bool = False) -> None:
    """A whole run: data, model, optimiser, resume, loop, final evaluation."""
    run = Path(config.output)
    if (run / "evaluation.json").exists() and not dry_run:
        if finished_steps(run) >= config.train.steps:
            log.info("%s is finished; nothing to do (another output= starts a new run)", run)
            return
    if config.train.threads:
        torch.set_num_threads(config.train.threads)

    # ---------------------------------------------------------------- data
    tokenizer = load_tokenizer(tokenizer_source(config))
    check_tokenizer(tokenizer, config.model.text_encoder, config.data.text_length)
    shape = (tokenizer, config.data.text_length, config.model.image_encoder.image_px)
    pairs = Pairs(config.data.train, *shape, exclude=config.data.exclude)
    held_out = Pairs(config.data.valid, *shape) if config.data.valid else None
    plan = Plan(
        len(pairs),
        config.train.steps,
        config.train.batch_global,
        config.train.batch_per_process,
        group.count,
    )

    # ---------------------------------------------------------------- model, optimiser
    precision = resolve_precision(config.train.precision, group.device)
    facts = cost.facts(config, pairs, held_out, plan, precision)
    for line in cost.lines(facts):
        log.info("%s", line)
    if dry_run:
        return
    torch.manual_seed(config.seed)
    model = build_model(config).to(group.device)
    frozen = model.unreached()
    if frozen:
        log.info("no loss reaches, so frozen: %s", ", ".join(frozen))
    torch.manual_seed(config.seed + group.rank)  # dropout differs between processes
    optimizer = build_optimizer(model, config.optim)
    trainer = Trainer(model, optimizer, group, precision, config.optim.clip_norm)

    # ---------------------------------------------------------------- resume
    step = 0
    run.mkdir(parents=True, exist_ok=True)
    if saved := checkpoints(run):
        step = load_checkpoint(saved[-1], model, optimizer, trainer.scaler, config, group)
        log.info("resuming from %s", saved[-1])
    run_log = RunLog(run, step, active=group.first)
    if group.first:
        (run / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        facts = {"seed": config.seed} | facts | environment(group.device, group.count)
        write_json(run / "environment.json", facts)
        if frozen and step == 0:
            run_log.write("note", 0, message=f"no loss reaches, so frozen: {', '.join(frozen)}")

    # ---------------------------------------------------------------- loop
    def held_out_losses(step: int) -> None:
        if held_out is None:
            return
        fixed = EvalBatches(
            held_out, config.model, config.eval.seed, config.eval.samples, config.eval.batch
        )
        share = eval_batches(fixed, group.rank, group.count)
        arrays = evaluate(model, share, group, precision)
        values = summarise(arrays, model.weights)
        run_log.write("eval", step, **values)
        log.info("step %d, held out: %s", step, short(values))
        if group.first and config.eval.pictures and "mim" in model.weights:
            path = run / "pictures" / f"step-{step:08d}.png"
            picture(model, fixed, config.eval.pictures, group, path)

    if step == 0:
        held_out_losses(0)
    loader = iter(train_loader(config, pairs, plan, group.rank, step, group.device))
    model.train()
    bar = tqdm(total=plan.steps, initial=step, unit="step", disable=not group.first)
    window = Window(step)
    while step < plan.steps:
        started = time.perf_counter()
        batches = [next(loader) for _ in range(plan.accumulation)]
        window.waited += time.perf_counter() - started
        set_lr(optimizer, step, plan.steps, config.optim)
        trainer.train_step(batches)
        step += 1
        bar.update()
        last = step == plan.steps
        due = last or step % config.train.checkpoint_every == 0
        if last or due or step % config.train.log_every == 0:
            if trainer.failed.item():  # before anything of a failed step is written
                raise ValueError(non_finite(trainer, batches, pairs, step))
        if last or step % config.train.log_every == 0:
            values = trainer.read()
            speed = window.read(step, plan, facts["gflop_per_sample"], group.device)
            rates = {entry["name"]: entry["lr"] for entry in optimizer.param_groups}
            samples = step * plan.batch_global
            run_log.write("train", step, samples=samples, **values, lr=rates, **speed)
            bar.set_postfix_str(f"loss {values['loss']:.3f}")
        if last or (config.eval.every and step % config.eval.every == 0):
            held_out_losses(step)
            window.restart(step)
        if due:
            save_checkpoint(run, step, model, optimizer, trainer.scaler, config, tokenizer, group)
            window.restart(step)
    bar.close()

    # ---------------------------------------------------------------- final evaluation
    result: dict = {"step": step}
    if held_out is not None:
        started = time.perf_counter()
        result |= ThreeArms(model, held_out, config.eval, group, precision).run()
        result["seconds"] = round(time.perf_counter() - started, 1)
    if group.first:
        write_json(run / "evaluation.json", result)
        run_log.close()
        log.info("report: %s", write_report(run))


class Window:
    """Speed between two log lines, evaluation and checkpoints left out."""

    def __init__(self, step: int) -> None:
        self.restart(step)

    def restart(self, step: int) -> None:
        """Begin to measure again at a step."""
        self.step, self.waited, self.started = step, 0.0, time.perf_counter()

    def read(
        self, step: int, plan: Plan, gflop: float, device: torch.device
    ) -> dict[str, float | None]:
        """Speed, waiting, FLOP utilisation and memory since the last reading."""
        seconds = time.perf_counter() - self.started
        rate = (step - self.step) * plan.batch_global / seconds
        peak = peak_flops(device)
        values = {
            "samples_per_s": rate,
            "seconds": seconds,
            "data_wait_s": self.waited,
            "mfu": None if peak is None else rate * gflop * 1e9 / plan.processes / peak,
            "peak_memory_gib": peak_memory_gib(device),
        }
        self.restart(step)
        return values


def finished_steps(run: Path) -> int:
    """Steps that a finished run was trained for."""
    return json.loads((run / "evaluation.json").read_text(encoding="utf-8"))["step"]


def tokenizer_source(config: Config) -> str:
    """Hub id or folder of the tokeniser; raises ValueError if the config names none."""
    source = config.data.tokenizer or config.model.text_encoder.weights
    if source is None:
        raise ValueError("data.tokenizer: set it, since model.text_encoder.weights is null")
    return source


def short(values: dict[str, float]) -> str:
    """Losses and accuracies on one line."""
    shown = [f"{key} {value:.3f}" for key, value in values.items() if key != "samples"]
    return ", ".join(shown)


def picture(model: M3AE, fixed: EvalBatches, rows: int, group: Processes, path: Path) -> None:
    """Reconstructions of the first `rows` held-out pairs, always the same ones."""
    path.parent.mkdir(exist_ok=True)
    batch = fixed[0]
    keys = ("index", "image", "text_ids", "text_keep", "patch_order")  # what MIM reads
    batch = {key: batch[key][:rows] for key in keys}
    texts = [fixed.pairs.text(int(index)) for index in batch["index"]]
    draw_reconstructions(model, to_device(batch, group.device), texts, path)


def non_finite(trainer: Trainer, batches: list, pairs: Pairs, step: int) -> str:
    """One line that names the samples whose loss is not finite."""
    bad = []
    with torch.no_grad(), contextlib.suppress(RuntimeError):
        for batch in batches:
            batch = to_device(batch, trainer.processes.device)
            for key, value in trainer.model(batch, per_sample=True).items():
                rows = (~torch.isfinite(value)).nonzero()[:, 0].tolist()
                bad += [(key, int(batch["index"][row])) for row in rows]
    named = []
    for key, index in bad[:5]:
        corpus, row = pairs.find(index)
        named.append(f"{key} of {pairs.corpora[corpus].text_key(row)}")
    where = "; ".join(named) or "a gradient, or a sample of another process or an earlier step"
    return (
        f"a loss or gradient is not finite at or just before step {step} ({where}). Checkpoints "
        f"up to then are kept; lower optim.lr, set optim.clip_norm or use train.precision=fp32"
    )


if __name__ == "__main__":
    sys.exit(main())
