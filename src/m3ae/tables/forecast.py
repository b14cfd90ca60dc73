"""What cells will cost, before they run: `run_tables.py --dry-run`."""

import json
import shlex
import statistics
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from m3ae.config import Architecture, load_config
from m3ae.downstream.config import FinetuneConfig
from m3ae.downstream.model import Downstream
from m3ae.pretraining.cost import activation_bytes, meta_batch, step_flops
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
    print(f"{hours:.3g} hours in all for the others whose steps are known, at {flops / 1e12:.3g} TFLOP/s ({source})")


def how_to_prepare(path: str, sources: dict[str, Source]) -> str:
    """The command that makes a prepared folder, and where its corpus is to be had."""
    known = max((name for name in sources if Path(path).is_relative_to(name)), key=len, default=None)
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
            rates.append(statistics.median(speeds) * _step_flops(config.model, config.data.text_length))
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
    if cell.kind == "pretrain":
        each = _step_flops(config.model, config.data.text_length)
    else:
        each = _finetune_flops(architecture(cell), config.task, config.data.text_length,
                               config.data.false_texts if config.task == "retrieval" else 0,
                               config.train.freeze or ())
    return each * config.train.batch_global * steps


def architecture(cell: Cell) -> Architecture:
    """The model of a fine-tuning, at its image side."""
    config: FinetuneConfig = cell.resolved
    model = cell.init.resolved.model if cell.init else load_config(config.architecture, config.architecture_set).model
    return _at(model, config.data.image_px)


@cache
def _at(model: Any, px: int) -> Architecture:
    import dataclasses

    from m3ae.config import architecture_of

    model = architecture_of(model)
    return dataclasses.replace(model, image_encoder=dataclasses.replace(model.image_encoder, image_px=px))


_step_flops = cache(step_flops)


@cache
def _finetune_flops(model: Architecture, task: str, length: int, false_texts: int, freeze: tuple[str, ...]) -> float:
    """FLOP a text (for retrieval: an image) of a training step, counted on the meta device."""
    with torch.device("meta"):
        network = Downstream(model, task, 500)
        batch = meta_batch_of(model, length, false_texts)
    network.freeze(freeze)
    counter = FlopCounterMode(display=False)
    with counter:
        network(batch)["loss"].backward()
    return counter.get_total_flops() / len(batch["image"])


def meta_batch_of(model: Architecture, length: int, false_texts: int) -> dict[str, torch.Tensor]:
    """The shapes of a batch of two."""
    px = model.image_encoder.image_px
    shape = (2, 1 + false_texts, length) if false_texts else (2, length)
    return {
        "image": torch.zeros(2, 3, px, px),
        "text_ids": torch.zeros(shape, dtype=torch.int64),
        "text_keep": torch.ones(shape, dtype=torch.bool),
        "target": torch.zeros(2, dtype=torch.int64),
    }


def memory_gib(cell: Cell) -> float:
    """Rough memory of a process: weights, gradients and optimiser, and activations of a batch."""
    config = cell.resolved
    if cell.kind == "pretrain":
        model, share = config.model, 1.0
    else:
        model = architecture(cell)
        share = 0.5 * (1 + (config.data.false_texts if config.task == "retrieval" else 0))
    precision = "fp32" if config.train.precision == "fp32" else "bf16"
    activations = activation_bytes(model, config.data.text_length, precision) * share
    return (_parameters(model) * 16 + activations * config.train.batch_per_process) / 2**30


@cache
def _parameters(model: Architecture) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Downstream(model, "vqa", 500).parameters())
