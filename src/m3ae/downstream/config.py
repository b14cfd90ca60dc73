"""Configuration of fine-tuning: like `m3ae.config`, for `configs/finetune/`.

`configs/finetune/finetune.yaml` holds every key with its meaning, unit and source.
"""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from m3ae.config import OptimConfig, Switches, check_run, read_with_overrides, require
from m3ae.strict_yaml import build


@dataclass(frozen=True)
class DownstreamData:
    """Section `data`."""

    train: str
    valid: str | None
    test: str
    answers: str | None
    field: str
    fraction: float
    held_out: float
    image: Literal["own", "none"]
    image_px: int
    text_length: int
    tokenizer: str | None
    augmentation: Literal["none", "resized_crop", "rand_augment"]
    crop_scale: float
    false_texts: int
    workers: int


@dataclass(frozen=True)
class HeadConfig:
    """Section `head`."""

    reads: Literal["fusion", "encoders", "both"]
    image_blocks: tuple[int, ...] | None
    width: int
    text_dropout: float
    image_dropout: float
    dropout: float
    loss: Literal["binary", "cross_entropy"]


# The paper's, of which only the first and the last count: of models and runs that name none.
PAPER_HEAD = HeadConfig("fusion", None, 512, 0.1, 0.5, 0.3, "binary")


@dataclass(frozen=True)
class DownstreamTrain:
    """Section `train`."""

    epochs: int
    batch_global: int
    batch_per_process: int
    precision: Literal["auto", "bf16", "fp16", "fp32"]
    device: Literal["auto", "cpu", "cuda"]
    tf32: bool
    deterministic: bool
    timeout_minutes: float
    skip_non_finite: int
    threads: int | None
    answer_bias: Literal["zero", "prior"]
    freeze: tuple[Literal["image_encoder", "text_encoder", "fusion"], ...] | None
    log_every: int
    checkpoint_every: int
    keep_checkpoints: int
    keep_every: int
    on_save_error: Literal["stop", "continue"]
    tracker: Literal["trackio", "wandb"] | None


@dataclass(frozen=True)
class DownstreamEval:
    """Section `eval`."""

    every: int
    batch: int
    metric: str
    top: int
    samples: int
    question_only: str | None
    text_block: int


@dataclass(frozen=True)
class FinetuneConfig:
    """A whole fine-tuning run."""

    seed: int
    output: str
    task: str
    init: str | None
    architecture: str
    architecture_set: tuple[str, ...]
    eval_only: bool
    protocol: Literal["paper", "strict", "image_disjoint", "both"]
    model: Switches
    head: HeadConfig
    data: DownstreamData
    optim: OptimConfig
    train: DownstreamTrain
    eval: DownstreamEval

    @property
    def kind(self) -> str:
        """The task that the data and the measures are of: `task`, or what its own class says."""
        return self.task if self.task in METRICS else own_class(self.task).kind


METRICS = {
    "vqa": ("overall", "open", "closed"),
    "classification": ("accuracy", "macro_f1"),
    "multilabel": ("auroc", "average_precision"),
    "retrieval": ("loss",),
}


def own_class(task: str, loaded: bool = False) -> Any:
    """The class that a `task` such as my_package.MyTask names (docs/backbone.md).

    `loaded`: only of a package that is imported already, as a name in a file must run nothing.
    Raises ValueError where there is none, or it has no `kind` that is a task here.
    """
    package, _, name = task.rpartition(".")
    if not package:
        known = ", ".join(METRICS)
        raise ValueError(f"task: {task!r} is none of {known}, nor a class (my_package.MyTask)")
    if loaded and package not in sys.modules:
        hint = f"import {package} first, or say --task {task}"
        raise ValueError(f"its head is a class of its own, {task}; {hint}")
    try:
        found = getattr(importlib.import_module(package), name, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{package}.".startswith(f"{error.name}."):
            raise
        hint = "PYTHONPATH=FOLDER says where it lies"
        raise ValueError(f"task: {task}: there is no package {error.name}; {hint}") from error
    if getattr(found, "kind", None) not in ("vqa", "classification", "multilabel"):
        wrong = f"{package} has no class {name} whose `kind` is vqa, classification or multilabel"
        raise ValueError(f"task: {task}: {wrong}")
    return found


def load_finetune_config(path: str | Path, overrides: Sequence[str] = ()) -> FinetuneConfig:
    """As `m3ae.config.load_config`, and raises the same."""
    config = build(FinetuneConfig, read_with_overrides(path, overrides), "")
    _check(config)
    return config


def _check(config: FinetuneConfig) -> None:
    """Values that no run could work with; raises ValueError naming the key."""
    check_run(config)
    data, train, evaluation = config.data, config.train, config.eval
    known = METRICS[config.kind]
    wrong = f"{evaluation.metric!r} is none of {config.kind}'s: {', '.join(known)}"
    require(evaluation.metric in known, f"eval.metric: {wrong}")
    for key in ("every", "samples"):  # in pre-training 0 stands for something
        require(getattr(evaluation, key) >= 1, f"eval.{key}: {getattr(evaluation, key)} is below 1")
    fresh = config.eval_only and config.init is None
    require(not fresh, "eval_only: needs init= (a fine-tuned checkpoint)")
    _check_head(config)
    if config.kind == "retrieval":
        require(train.answer_bias == "zero", "train.answer_bias: prior is not for retrieval")
        require(data.valid is not None, "data.valid: retrieval selects on it; give a folder")
        shown = data.image == "own" and evaluation.question_only is None
        require(shown, "data.image, eval.question_only: retrieval has no arm without images")


def _check_head(config: FinetuneConfig) -> None:
    head = config.head
    known = config.kind != "retrieval" or head.reads == "fusion"
    require(known, f"head.reads: {head.reads} is not for retrieval, which ranks by fusion")
    blocks = head.image_blocks
    if blocks is not None:
        wrong = f"{list(blocks)} are no numbers of blocks in rising order"
        require(list(blocks) == sorted({*blocks}) and bool(blocks), f"head.image_blocks: {wrong}")
