"""Where the weights of a fine-tuning come from, and whether they fit."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch

from m3ae.checkpoints import last_checkpoint
from m3ae.config import Architecture, load_config
from m3ae.downstream.config import PAPER_HEAD, FinetuneConfig, HeadConfig
from m3ae.downstream.model import Downstream, class_of, read_facts, read_head
from m3ae.models.heads import (
    HEADS,
    ITMHead,
    start_retrieval_head,
)
from m3ae.models.m3ae import build_model
from m3ae.models.pretrained import (
    at_size,
    convert_reference,
    fine_tuned_heads,
    heads_in,
    load_strictly,
    read_pretrained,
)
from m3ae.models.switches import wrap_blocks
from m3ae.models.weight_files import State, read_checkpoint

log = logging.getLogger(__name__)


@dataclasses.dataclass
class Init:
    """What fine-tuning starts from: sizes, all tensors found, facts of a fine-tuned one."""

    source: str
    model: Architecture
    state: State
    facts: dict[str, Any] | None
    tokenizer: str | None
    head: HeadConfig = PAPER_HEAD  # of a fine-tuned one


def read_init(config: FinetuneConfig) -> Init:
    """Sizes and weights of `init`, at the image side of `data.image_px`.

    A run folder stands for its last checkpoint; a file is a checkpoint of the reference, whose
    sizes are the architecture's. Without `init`: what a pre-training with the architecture's config
    and seed would start from. Raises ValueError or FileNotFoundError naming what is wrong.
    """
    px = config.data.image_px
    if config.init is None:
        whole = load_config(config.architecture, config.architecture_set)
        whole = dataclasses.replace(whole, model=at_size(whole.model, px))
        state = build_model(whole).state_dict()
        return Init(config.architecture, whole.model, state, None, whole.data.tokenizer)
    if Path(config.init).is_file():
        model = load_config(config.architecture, config.architecture_set).model
        state = convert_reference(read_checkpoint(config.init))
        return Init(config.init, at_size(model, px, state), state, None, None)
    folder = last_checkpoint(Path(config.init))
    model, state = read_pretrained(folder)
    facts = read_facts(folder) if fine_tuned_heads(state) else None
    model = at_size(model, px, state)
    return Init(str(folder), model, state, facts, str(folder), read_head(folder, facts))


def _head_state(state: State, name: str) -> State:
    """A head's tensors under its own names; {} where it has none."""
    mine = f"{name}."
    return {key.removeprefix(mine): state[key] for key in state if key.startswith(mine)}


def build_downstream(config: FinetuneConfig, init: Init, answers: list[str]) -> Downstream:
    """The model of a task with the weights of `init`.

    Encoders, fusion and poolers are taken from it, strictly. For training the head is new (for
    retrieval it starts as the "match" row of the ITM head) and follows from `config.seed`; with
    `eval_only` it must be `init`'s and of the same answers. `train.freeze` and the switches of
    `model` are applied.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        kind = class_of(config.task)
        model = kind(init.model, config.kind, len(answers), config.head)
    name = HEADS[config.kind]
    state = {key: tensor for key, tensor in init.state.items() if "head." not in key}
    head = _head_state(init.state, name)
    if config.eval_only and (head or config.kind != "retrieval"):
        check_facts(config, init, answers, head)
    else:
        if config.kind == "retrieval":
            _start_from_itm(model, init)
        head = model.head.state_dict()
    state |= {f"{name}.{key}": tensor for key, tensor in head.items()}
    dropped = heads_in(init.state) - ({name} if config.eval_only else set())
    if dropped:
        log.info("%s: not used here: %s", init.source, ", ".join(sorted(dropped)))
    load_strictly(model, state, init.source)
    model.freeze_unreached()
    wrap_blocks(model, config.model)
    model.freeze(config.train.freeze or ())
    return model


def _start_from_itm(model: Downstream, init: Init) -> None:
    """The retrieval head from the ITM head of `init` (reference, fact 14)."""
    itm, state = ITMHead(init.model.fusion.width), _head_state(init.state, "itm_head")
    if not state:
        hint = "give a model pre-trained with model.itm.weight above 0"
        raise ValueError(f"{init.source}: no itm_head in it, from which retrieval starts; {hint}")
    itm.load_state_dict(state)
    start_retrieval_head(model.head, itm)


def check_facts(config: FinetuneConfig, init: Init, answers: list[str], head: State) -> None:
    """Raise ValueError unless `init` holds a head for this task and these answers."""
    name, source = HEADS[config.kind], init.source
    if not head:
        heads = ", ".join(sorted(heads_in(init.state))) or "no head"
        hint = "eval_only needs a checkpoint fine-tuned for this task"
        raise ValueError(f"{source}: no {name} in it ({heads}); {hint}")
    if config.kind != "retrieval" and (differing := _differing_head(config.head, init)):
        raise ValueError(f"{source}: fine-tuned with {differing}")
    if init.facts is None:  # the reference's files do not say what their answers are
        last = head["last.bias"] if "last.bias" in head else next(iter(reversed(head.values())))
        outputs = last.shape[0]
        if config.kind != "retrieval" and outputs != len(answers):
            wrong = f"has {outputs} answers, the data gives {len(answers)}"
            raise ValueError(f"{source}: its {name} {wrong}")
        return
    wanted = {"task": config.kind, "field": config.data.field, "image": config.data.image}
    made = {"image": "own"} | init.facts  # earlier versions had no question-only models
    wanted["class"] = None if config.task == config.kind else config.task
    made.setdefault("class", None)
    for key, value in wanted.items() if config.kind != "retrieval" else ():
        if made[key] != value:
            wrong = f"fine-tuned for {key} {made[key]!r}, the config says {value!r}"
            raise ValueError(f"{source}: {wrong}")
    if made["answers"] != answers:
        strange = ", ".join(sorted(set(made["answers"]) ^ set(answers))[:3])
        lists = f"{len(answers)} here, {len(made['answers'])} there; e.g. {strange}"
        raise ValueError(f"{source}: fine-tuned on another answer list ({lists})")


def _differing_head(asked: HeadConfig, init: Init) -> str:
    """In which keys the head asked for is not the one of `init`; "" where it is the same."""
    keys = ["reads", "loss"]
    keys += ["image_blocks", "width"] if "fusion" not in (asked.reads, init.head.reads) else []
    made, wanted = dataclasses.asdict(init.head), dataclasses.asdict(asked)
    for section in (made, wanted):
        section["image_blocks"] = list(section["image_blocks"] or [init.model.image_encoder.depth])
    return ", ".join(
        f"head.{key} {made[key]}, the config says {wanted[key]}"
        for key in keys
        if made[key] != wanted[key]
    )
