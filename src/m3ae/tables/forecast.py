"""What cells will cost, before they run: `run_tables.py --dry-run`."""

import dataclasses
import json
import shlex
import statistics
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from m3ae.config import (
    Architecture,
    Config,
    ITMConfig,
    MIMConfig,
    MLMConfig,
    ModelConfig,
    architecture_of,
    load_config,
)
from m3ae.downstream.config import FinetuneConfig
from m3ae.downstream.model import Downstream
from m3ae.files import read_text
from m3ae.models import M3AE
from m3ae.pretraining.cost import meta_batch
from m3ae.tables.cells import Cell
from m3ae.tables.definition import Source, read_shared
from m3ae.tables.runner import is_done
from m3ae.training.precision import resolve_precision

# Bytes an activation value costs a block, by token and width, in 16 bit, with fused attention
# (Korthikanti et al. 2022, "Reducing Activation Recomputation", eq. 1 without its attention term).
# Counting as `cost.activation_bytes` does takes a second a model: too long for a whole table.
_ACTIVATION_BYTES = 34
# Of fine-tuning, which builds none of them: the same for all, so that models are counted once.
_HEADS = {
    "mlm": MLMConfig(0.0, 0.5, "exact", 0, "mlp", 1, 1, 1),
    "mim": MIMConfig(0.0, 0.5, 0, "mlp", 1, 1, 1, False),
    "itm": ITMConfig(0.0, "in_batch", 2),
}


def show(cells: Sequence[Cell], out: Path, launcher: str, rate: float | None) -> None:
    """Print for each cell command, what it lacks, hours and memory; then what to prepare."""
    flops, source = known_rate(cells, out, rate)
    hours = 0.0
    lacking: dict[str, None] = {}
    for cell in cells:
        done = is_done(cell, out)
        lacking |= dict.fromkeys(cell.lacks)
        cost = flops_of(cell)
        told = "steps follow from the data" if cost is None else hours_of(cost / flops)
        told = "evaluation alone, not counted" if cell.steps == 0 else told
        hours += 0.0 if done or cost is None else cost / flops / 3600
        print(f"\n{cell.id}{'  (finished)' if done else ''}")
        print(f"  {shlex.join(cell.command(out, launcher))}")
        print(f"  {told}, {memory_gib(cell):.1f} GiB a process in {_precision(cell.resolved)}")
        if cell.lacks:
            print(f"  lacks {', '.join(cell.lacks)}")
    if lacking:
        print("\nTo prepare:")
        sources = read_shared("data", Source)
        for line in dict.fromkeys(how_to_prepare(path, sources) for path in lacking):
            print(f"  {line}")
    print(f"\n{len(cells)} cells, {sum(is_done(cell, out) for cell in cells)} finished")
    told = f"{hours_of(hours * 3600)} in all for the others whose steps are known"
    print(f"{told}, at {flops / 1e12:.3g} TFLOP/s ({source})")


def hours_of(seconds: float) -> str:
    """As text, without an exponent."""
    hours = seconds / 3600
    return f"{hours:,.0f} h" if hours >= 10 else f"{hours:.2f} h"


def how_to_prepare(path: str, sources: dict[str, Source]) -> str:
    """The command that makes a prepared folder, and where its corpus is to be had."""
    known = max(
        (name for name in sources if Path(path).is_relative_to(name)), key=len, default=None
    )
    if known is None:
        return f"{path}: a file or folder of your own"
    return f"{known}: {sources[known].prepare}  (get: {sources[known].get})"


def _speeds(log: Path) -> list[float]:
    """Samples a second of a run's steps."""
    try:
        lines = [json.loads(line) for line in read_text(log).split("\n") if line]
        return [float(line["samples_per_s"]) for line in lines if line["kind"] == "train"]
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{log}: not a run's log ({error!r})") from error


def known_rate(cells: Sequence[Cell], out: Path, given: float | None) -> tuple[float, str]:
    """FLOP/s of a run, and where that figure is from: given, finished cells, a matrix product."""
    if given:
        return given * 1e12, "given"
    rates = []
    for cell in cells:
        log = cell.folder(out) / "log.jsonl"
        if cell.kind == "pretrain" and is_done(cell, out) and log.is_file():
            speeds = _speeds(log)
            config = cell.resolved
            rates.append(
                statistics.median(speeds) * _pretrain_flops(config.model, config.data.text_length)
            )
    if rates:
        return statistics.median(rates), f"of {len(rates)} finished pre-trainings"
    return product_rate(), "a matrix product here; give --rate"


def product_rate() -> float:
    """FLOP/s of a matrix product in the precision that training would use here."""
    device = _device()
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    left = torch.ones(side, side, device=device, dtype=dtype)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        (left @ left)[0, 0].item()
        times.append(time.perf_counter() - started)
    return 2 * side**3 / min(times)


def flops_of(cell: Cell) -> float | None:
    """FLOP of a cell's training; None where its steps follow from data that are lacking."""
    config, steps = cell.resolved, cell.steps
    if not steps:
        return steps
    length, pairs = config.data.text_length, config.train.batch_global * steps
    if cell.kind == "pretrain":
        return pairs * _pretrain_flops(config.model, length)
    false_texts = config.data.false_texts if config.kind == "retrieval" else 0
    frozen = config.train.freeze or ()
    once = () if config.kind == "retrieval" else frozen  # whose features are computed once
    if config.data.augmentation != "none":
        once = tuple(name for name in once if name != "image_encoder")
    each, first = _finetune_flops(architecture(cell), length, false_texts, frozen, once)
    return pairs * (each + first / config.train.epochs)


def architecture(cell: Cell) -> Architecture:
    """The model of a fine-tuning, at its image side and without the heads of pre-training."""
    config: FinetuneConfig = cell.resolved
    if cell.init is not None:
        model: Architecture = cell.init.resolved.model
    else:
        model = load_config(config.architecture, config.architecture_set).model
    image = dataclasses.replace(model.image_encoder, image_px=config.data.image_px)
    return dataclasses.replace(architecture_of(model), image_encoder=image, **_HEADS)


@cache
def _pretrain_flops(model: ModelConfig, length: int) -> float:
    """FLOP a pair of a training step: a forward pass on the meta device, and twice it backward.

    Within a thousandth of `cost.step_flops` for the paper's model, in a quarter of the time.
    """
    pairs = max(8, model.itm.group)
    with torch.device("meta"):
        network, batch = M3AE(model), meta_batch(model, length, pairs)
    return 3 * _forward(lambda: network(batch)) / pairs


@cache
def _finetune_flops(
    model: Architecture,
    length: int,
    false_texts: int,
    frozen: tuple[str, ...],
    once: tuple[str, ...],
) -> tuple[float, float]:
    """FLOP of a training step a question, or an image with its true and false texts; FLOP once.

    A forward pass counted on the meta device. Backward costs twice as much: once for the weights,
    once for what is below them.
    """
    network, batch = _meta_model(model), meta_batch_of(model, length)
    texts = 1 + false_texts
    image = _forward(lambda: network.image_encoder(batch["image"]))
    text = _forward(lambda: network.text_encoder(batch["text_ids"], batch["text_keep"]))
    whole = _forward(lambda: network.scores(batch))
    encoders = {"image_encoder": image, "text_encoder": text * texts}
    each, first = 0.0, 0.0
    for name, flops in encoders.items():
        each += 0 if name in once else flops if name in frozen else 3 * flops
        first += flops if name in once else 0
    below = any(name not in frozen for name in encoders)
    passes = 3 if "fusion" not in frozen else 2 if below else 1
    return each + passes * (whole - image - text) * texts, first


def _forward(call: Callable[[], object]) -> float:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        call()
    return counter.get_total_flops()


@cache
def _meta_model(model: Architecture) -> Downstream:
    with torch.device("meta"):
        return Downstream(model, "vqa", 500)


def meta_batch_of(model: Architecture, length: int) -> dict[str, torch.Tensor]:
    """The shapes of a batch of one."""
    px = model.image_encoder.image_px
    with torch.device("meta"):
        return {
            "image": torch.zeros(1, 3, px, px),
            "text_ids": torch.zeros((1, length), dtype=torch.int64),
            "text_keep": torch.ones((1, length), dtype=torch.bool),
        }


def memory_gib(cell: Cell) -> float:
    """Rough memory of a process: weights, gradients and optimiser, and activations of a batch."""
    config = cell.resolved
    if cell.kind == "pretrain":
        every = trained = _parameters(config.model)
        values = _pretrain_values(config.model, config.data.text_length)
    else:
        network = _meta_model(architecture(cell))
        every = sum(parameter.numel() for parameter in network.parameters())
        parts = [getattr(network, name) for name in config.train.freeze or ()]
        trained = every - sum(p.numel() for part in parts for p in part.parameters())
        values = _finetune_values(cell)
        if config.eval_only:
            trained = values = 0
    activations = values * _ACTIVATION_BYTES * (2 if _precision(config) == "fp32" else 1)
    return (every * 4 + trained * 12 + activations * config.train.batch_per_process) / 2**30


def _pretrain_values(model: Architecture, length: int) -> float:
    """Activation values of a pair in all blocks, tokens times width, all three objectives on."""
    image, text, fusion = model.image_encoder, model.text_encoder, model.fusion
    patches = (image.image_px // image.patch_px) ** 2
    kept = int(patches * (1 - model.mim.ratio))
    values = (patches + kept) * image.width * image.depth + 2 * length * text.width * text.depth
    layers = 2 * fusion.depth + model.mim.layer
    return values + (patches + length) * fusion.width * layers * 1.5  # self- and cross-attention


def _finetune_values(cell: Cell) -> float:
    """Likewise of a question, or of an image with its texts, in what is not frozen."""
    config, model = cell.resolved, architecture(cell)
    image, text, fusion = model.image_encoder, model.text_encoder, model.fusion
    patches, length = (image.image_px // image.patch_px) ** 2, config.data.text_length
    texts = 1 + config.data.false_texts if config.kind == "retrieval" else 1
    values = {
        "image_encoder": patches * image.width * image.depth,
        "text_encoder": texts * length * text.width * text.depth,
        "fusion": texts * (patches + length) * fusion.width * fusion.depth * 1.5,
    }
    return sum(n for name, n in values.items() if name not in (config.train.freeze or ()))


def _precision(config: Config | FinetuneConfig) -> str:
    """What training here would compute in."""
    return resolve_precision(config.train.precision, _device())


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@cache
def _parameters(model: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in M3AE(model).parameters())
