"""A checkpoint of the authors' code -> a folder that everything here reads: `m3ae.convert`."""

import argparse
import dataclasses
import logging
import math
from pathlib import Path
from typing import Any

from m3ae.config import Architecture, load_config
from m3ae.data.texts import check_tokenizer, load_tokenizer
from m3ae.downstream.config import PAPER_HEAD
from m3ae.downstream.data import read_answers
from m3ae.downstream.evaluation import numbers_of
from m3ae.downstream.model import Downstream, write_facts
from m3ae.files import read_json_object, write_text
from m3ae.models.card import NOT_STATED, card_of
from m3ae.models.heads import HEADS
from m3ae.models.losses import OBJECTIVES
from m3ae.models.m3ae import M3AE
from m3ae.models.pretrained import (
    at_size,
    convert_reference,
    fine_tuned_heads,
    heads_in,
    load_strictly,
)
from m3ae.models.weight_files import State, read_checkpoint

log = logging.getLogger("m3ae")


def sizes_of(state: State, model: Architecture, source: str) -> Architecture:
    """The architecture at the image side of a checkpoint, with the heads that it has."""
    positions = state.get("image_encoder.position_embedding")
    if positions is None:
        raise ValueError(f"{source}: lacks image_encoder.position_embedding: no checkpoint of M3AE")
    model = at_size(model, math.isqrt(len(positions) - 1) * model.image_encoder.patch_px)
    absent = [name for name in OBJECTIVES if f"{name}_head" not in heads_in(state)]
    bare = {name: dataclasses.replace(getattr(model, name), weight=0.0) for name in absent}
    return dataclasses.replace(model, **bare)


def task_of(state: State, task: str | None, source: str) -> str | None:
    """The task of a checkpoint's head, None where it has no head of fine-tuning.

    Raises ValueError where there are several and none is asked for, or not the one that is.
    """
    tasks = [task for task, head in HEADS.items() if head in fine_tuned_heads(state)]
    if task is not None and task not in tasks:
        raise ValueError(f"{source}: no head of --task {task} in it ({', '.join(tasks) or 'none'})")
    if task is None and len(tasks) > 1:
        raise ValueError(f"{source}: heads of {', '.join(tasks)}; say which with --task")
    return task or next(iter(tasks), None)


def model_of(
    state: State, sizes: Architecture, task: str | None, answers: list[str], source: str
) -> M3AE:
    """The model of a checkpoint's tensors, strictly; of a fine-tuned one with the head of its task.

    Raises ValueError naming what does not fit.
    """
    sizes = sizes_of(state, sizes, source)
    if task is None:
        model = M3AE(sizes)
    else:
        if unused := sorted(heads_in(state) - {HEADS[task]}):
            log.info("%s: dropped %s", source, ", ".join(unused))
        state = {key: x for key, x in state.items() if key.partition(".")[0] not in unused}
        model = Downstream(sizes, task, len(answers))
    load_strictly(model, state, source)
    return model


def answers_of(task: str | None, args: argparse.Namespace) -> list[str]:
    """The answers in the order of a head's outputs; ValueError where they are not given."""
    if task in (None, "retrieval"):
        return []
    if args.answers is None:
        wrong = f"has a {HEADS[task]}; give --answers, what its outputs mean"
        raise ValueError(f"{args.checkpoint}: {wrong}")
    name = "reference_order" if task == "vqa" else "paper"
    return read_answers("", args.answers, args.field, name)


def released_card(model: M3AE, args: argparse.Namespace, tokenizer: bool) -> str:
    """The model card; what nobody stated stands there as such."""
    task = getattr(model, "task", None)
    numbers = data = NOT_STATED
    if args.data:
        data = f"Fine-tuned on {args.data}." if task else f"Pre-trained on {args.data}."
    if args.evaluation:
        content = read_json_object(Path(args.evaluation))
        if not {"task", "trained_on", "image"} <= content.keys():
            raise ValueError(f"{args.evaluation}: not the evaluation.json of a fine-tuning run")
        numbers = numbers_of(content)
        data += " Protocols are named with the numbers."
    elif task is None:
        numbers = "None: it is pre-trained, and to be fine-tuned."
    return card_of(
        model,
        tokenizer,
        name=args.push or "this folder",
        title=args.push.rpartition("/")[2] if args.push else "M3AE",
        licence=args.licence or "other",
        origin=f", converted from `{Path(args.checkpoint).name}`",
        data=data,
        numbers=numbers,
    )


def push(folder: Path, name: str) -> None:
    """Upload a folder as a model repository of the hub, with the login of this machine."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(name, exist_ok=True)
    api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload the model")


def convert(args: argparse.Namespace) -> None:
    """The whole work of the command; raises ValueError naming what does not fit."""
    if args.out.exists() and any(args.out.iterdir()):
        raise ValueError(f"{args.out}: not empty; give a new folder")
    config = load_config(args.config, args.set)
    state = convert_reference(read_checkpoint(args.checkpoint))
    task = task_of(state, args.task, args.checkpoint)
    answers = answers_of(task, args)
    model = model_of(state, config.model, task, answers, args.checkpoint)
    if args.push:
        wanted = ["data", "licence", *(["evaluation"] if task else [])]
        if lacking := [f"--{option}" for option in wanted if not getattr(args, option)]:
            raise ValueError(f"--push: the card lacks {', '.join(lacking)}")
    tokenizer, text = None, model.config.text_encoder
    if source := args.tokenizer or config.data.tokenizer or text.weights:
        tokenizer = load_tokenizer(source)
        check_tokenizer(tokenizer, text, config.data.text_length)
    else:
        log.info("no --tokenizer given: %s has none", args.out)
    card = released_card(model, args, tokenizer is not None)
    model.save_pretrained(args.out, tokenizer)
    write_text(args.out / "README.md", card)
    if task:
        write_facts(args.out, **_facts(model, args, answers, config.data.text_length))
    log.info("%s: %s in %s", args.checkpoint, task or "pre-trained", args.out)
    if args.push:
        push(args.out, args.push)


def _facts(
    model: Downstream, args: argparse.Namespace, answers: list[str], text_length: int
) -> dict[str, Any]:
    """What `write_facts` writes: answers are known under the paper's protocol, the authors'."""
    return {
        "task": model.task,
        "field": args.field,
        "answers": answers,
        "known": {"paper": sorted(answers)},
        "protocol": "paper",
        "source": args.data,
        "image_px": model.config.image_encoder.image_px,
        "text_length": text_length,
        "image": "own",
        "head": dataclasses.asdict(PAPER_HEAD),
    }
