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

from m3ae.config import Architecture, ModelConfig, architecture_of, load_config
from m3ae.downstream.config import FinetuneConfig
from m3ae.downstream.model import Downstream
from m3ae.models import M3AE
from m3ae.models.losses import OBJECTIVES
from m3ae.pretraining.cost import activation_bytes, meta_batch
from m3ae.tables.cells import Cell
from m3ae.tables.definition import Source, read_shared
from m3ae.tables.runner import is_done


def show(cells: Sequence[Cell], out: Path, launcher: str, rate: float | None) -> None:
    """Print for each cell command, what it lacks, hours and memory; then what to prepare."""
    flops, source = known_rate(cells, out, rate)
    hours = 0.0
    lacking: dict[str, None] = {}
    for cell in cells:
        done = is_done(cell, out)
        lacking |= dict.fromkeys(cell.lacks)
        cost = flops_of(cell)
        told = "steps follow from the data" if cost is None else f"{cost / flops / 3600:.2g} h"
        hours += 0.0 if done or cost is None else cost / flops / 3600
        print(f"\n{cell.id}{'  (finished)' if done else ''}")
        print(f"  {shlex.join(cell.command(out, launcher))}")
        print(f"  {told}, {memory_gib(cell):.1f} GiB a process")
        if cell.lacks:
            print(f"  lacks {', '.join(cell.lacks)}")
    if lacking:
        print("\nTo prepare:")
        sources = read_shared("data", Source)
        for line in dict.fromkeys(how_to_prepare(path, sources) for path in lacking):
            print(f"  {line}")
    print(f"\n{len(cells)} cells, {sum(is_done(cell, out) for cell in cells)} finished")
    print(
        f"{hours:.3g} hours in all for the others whose steps are known, at {flops / 1e12:.3g} TFLOP/s ({source})"
    )


def how_to_prepare(path: str, sources: dict[str, Source]) -> str:
    """The command that makes a prepared folder, and where its corpus is to be had."""
    known = max(
        (name for name in sources if Path(path).is_relative_to(name)), key=len, default=None
    )
    if known is None:
        return f"{path}: a file or folder of your own"
    return f"{known}: {sources[known].prepare}  (get: {sources[known].get})"


def known_rate(cells: Sequence[Cell], out: Path, given: float | None) -> tuple[float, str]:
    """FLOP/s of a run, and where that figure is from: given, finished cells, a matrix product."""
    if given:
        return given * 1e12, "given"
    rates = []
    for cell in cells:
        log = cell.folder(out) / "log.jsonl"
        if cell.kind == "pretrain" and is_done(cell, out) and log.is_file():
            lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
            speeds = [line["samples_per_s"] for line in lines if line["kind"] == "train"]
            config = cell.resolved
            rates.append(
                statistics.median(speeds) * _pretrain_flops(config.model, config.data.text_length)
            )
    if rates:
        return statistics.median(rates), f"of {len(rates)} finished pre-trainings"
    return product_rate(), "a matrix product here; give --rate"


def product_rate() -> float:
    """FLOP/s of a matrix product in the precision that training would use here."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
    if steps is None:
        return None
    length = config.data.text_length
    if cell.kind == "pretrain":
        each = _pretrain_flops(config.model, length)
    else:
        false_texts = config.data.false_texts if config.task == "retrieval" else 0
        each = _finetune_flops(architecture(cell), length, false_texts, config.train.freeze or ())
    return each * config.train.batch_global * steps


def architecture(cell: Cell) -> Architecture:
    """The model of a fine-tuning, at its image side and without the heads of pre-training."""
    config: FinetuneConfig = cell.resolved
    if cell.init is not None:
        model: Architecture = cell.init.resolved.model
    else:
        model = load_config(config.architecture, config.architecture_set).model
    image = dataclasses.replace(model.image_encoder, image_px=config.data.image_px)
    base = load_config("configs/pretrain/m3ae.yaml").model  # any heads will do: none is built
    heads = {name: getattr(base, name) for name in OBJECTIVES}
    return dataclasses.replace(architecture_of(model), image_encoder=image, **heads)


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
    model: Architecture, length: int, false_texts: int, freeze: tuple[str, ...]
) -> float:
    """FLOP of a training step a question, or an image with its true and false texts.

    A forward pass counted on the meta device; backward costs twice as much, but for frozen parts.
    """
    network, batch = _meta_model(model), meta_batch_of(model, length)
    texts = 1 + false_texts
    image = _forward(lambda: network.image_encoder(batch["image"]))
    text = _forward(lambda: network.text_encoder(batch["text_ids"], batch["text_keep"]))
    whole = _forward(lambda: network.scores(batch))
    trained = {"image_encoder": image, "text_encoder": text * texts}
    trained["fusion"] = (whole - image - text) * texts
    # Features of frozen encoders are computed once; what is above them needs no gradient of them.
    return sum(flops * 3 for name, flops in trained.items() if name not in freeze)


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
    pairs: float = config.train.batch_per_process
    if cell.kind == "pretrain":
        model = architecture_of(config.model)
    else:
        model = architecture(cell)
        # One pass over whole images where pre-training has three; a retrieval image has more texts.
        pairs *= 0.5 * (1 + (config.data.false_texts if config.task == "retrieval" else 0))
    precision = "fp32" if config.train.precision == "fp32" else "bf16"
    activations = activation_bytes(model, config.data.text_length, precision) * pairs
    return (_parameters(model) * 16 + activations) / 2**30


def _parameters(model: Architecture) -> int:
    """Parameters without the heads of pre-training."""
    base = load_config("configs/pretrain/m3ae.yaml").model
    heads = {name: getattr(base, name) for name in OBJECTIVES}
    bare = _meta_model(dataclasses.replace(model, **heads))
    return sum(parameter.numel() for parameter in bare.parameters())
