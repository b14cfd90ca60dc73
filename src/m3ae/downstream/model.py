"""M3AE with a downstream head (paper section 3.2), and where its weights come from.

Letters: `B` pairs, `A` answers or classes, `F` false texts an image, `L` text tokens, `D` width.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from m3ae.checkpoints import last_checkpoint
from m3ae.config import Architecture, load_config
from m3ae.downstream.config import PAPER_HEAD, FinetuneConfig, HeadConfig
from m3ae.downstream.retrieval import retrieval_scores
from m3ae.files import read_json_object, write_json
from m3ae.models.heads import (
    HEADS,
    AnswerHead,
    EncoderHead,
    ITMHead,
    RetrievalHead,
    start_retrieval_head,
)
from m3ae.models.layers import masked_mean
from m3ae.models.losses import OBJECTIVES, classification_loss, reduce_losses, vqa_loss
from m3ae.models.m3ae import M3AE, Batch, build_model, initialise
from m3ae.models.pretrained import (
    at_size,
    convert_reference,
    fine_tuned_heads,
    heads_in,
    load_strictly,
    read_pretrained,
)
from m3ae.models.switches import wrap_blocks
from m3ae.models.weight_files import State, find_file, read_checkpoint
from m3ae.strict_yaml import build, read_file

log = logging.getLogger(__name__)

FACTS = "downstream.json"  # beside the weights: what the head's outputs mean
EXCLUSIVE = ("classification", "retrieval")  # whose outputs are chances of one among all
# What encoders give to fusion and to the head: keys of a batch.
TEXT_READ, IMAGE_READ = ("text_features", "text_pooled"), ("image_features", "image_pooled")


class Downstream(M3AE):
    """The encoders, fusion and poolers of M3AE under the head of one task.

    A drop-in for `M3AE` in the engine: `model(batch)`, `model.counts(batch)`. A batch holds
    `image`, `text_ids`, `text_keep` and, where a loss is wanted, `target` int64 (B,), -1 = the
    right answer is not in the list. For retrieval the texts are (B, 1+F, L), the true one first.
    For multilabel `target` is (B, A): of each class 1, 0, or -1 where it is not known.
    `head_config` says what the head reads; ValueError where the image encoder has no such block.
    """

    def __init__(
        self, config: Architecture, task: str, classes: int, head_config: HeadConfig = PAPER_HEAD
    ) -> None:
        bare = {key: dataclasses.replace(getattr(config, key), weight=0.0) for key in OBJECTIVES}
        super().__init__(dataclasses.replace(config, **bare))
        self.task, self.name = task, HEADS[task].removesuffix("_head")
        width, depth = config.fusion.width, config.image_encoder.depth
        self.head_config = head_config
        self.image_blocks = head_config.image_blocks or (depth,)
        # One answer of all is right, not each with a probability of its own.
        self.exclusive = head_config.loss == "cross_entropy" if task == "vqa" else task in EXCLUSIVE
        if task == "retrieval":
            head = RetrievalHead(width)
        elif head_config.reads == "fusion":
            head = AnswerHead(width, classes)
        else:
            head = _encoder_head(config, head_config, self.image_blocks, classes)
        if isinstance(head, AnswerHead | RetrievalHead):
            initialise(head)  # the others go by the width of their inputs, thousands of features
        setattr(self, HEADS[task], head)
        self.loss_weights = {self.name: 1.0}
        self.frozen: tuple[str, ...] = ()

    def freeze(self, parts: Sequence[str]) -> None:
        """Keep these parts as they are: no gradient, and no dropout while the others train."""
        self.frozen = tuple(parts)
        for name in self.frozen:
            getattr(self, name).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Downstream":
        """As in `torch.nn.Module`, but for the frozen parts, which stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            getattr(self, name).eval()
        return self

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path) -> "Downstream":
        """A fine-tuned model with its head, from a folder or a hub id; strict.

        `read_facts` says what its outputs mean. Raises as `M3AE.from_pretrained`.
        """
        config, state = read_pretrained(path_or_hub_id)
        facts = read_facts(path_or_hub_id)
        if facts is None:
            hint = "not fine-tuned, or no best-PROTOCOL folder; M3AE.from_pretrained reads it"
            raise ValueError(f"{path_or_hub_id}: no {FACTS} in it: {hint}")
        model = build_fine_tuned(path_or_hub_id, config, facts)
        load_strictly(model, state, str(path_or_hub_id))
        return model

    @property
    def head(self) -> torch.nn.Module:
        """The task's head."""
        return getattr(self, HEADS[self.task])

    @property
    def reads(self) -> str:
        """`head.reads`: fusion, encoders or both."""
        return self.head_config.reads

    def encode_text(self, ids: Tensor, keep: Tensor) -> Batch:
        """What is read of texts (B, L) before fusion.

        `text_features` (B, L, W) are for fusion, `text_pooled` float32 (B, W), their mean over real
        tokens, for the head.
        """
        x, read = self.text_encoder(ids, keep), {}
        if self.reads != "encoders":
            read["text_features"] = x
        if self.reads != "fusion":
            read["text_pooled"] = masked_mean(x, keep)
        return read

    def encode_image(self, image: Tensor) -> Batch:
        """What is read of images, as in a batch, before fusion.

        `image_features` (B, S, W) are for fusion; `image_pooled` float32 (B, M), CLS and mean over
        patches after each of `image_blocks`, for the head.
        """
        image, depth = self.normalise(image), len(self.image_encoder.blocks)
        if self.reads == "fusion":
            return {"image_features": self.image_encoder(image)}
        after = [*self.image_blocks]
        if self.reads == "both" and depth not in after:
            after.append(depth)
        states = self.image_encoder.states(image, after)
        tokens = [state.float() for state in states[: len(self.image_blocks)]]
        pooled = [part for x in tokens for part in (x[:, 0], x[:, 1:].mean(dim=1))]
        read = {"image_pooled": torch.cat(pooled, dim=1)}
        return read if self.reads == "encoders" else read | {"image_features": states[-1]}

    def scores(self, batch: Batch) -> Tensor:
        """Logits (B, A) of the answers or classes; for retrieval (B, 1+F) of the texts.

        What frozen encoders gave before (see `encode_text`, `encode_image`) is taken from the
        batch, which then needs no `image`.
        """
        ids, keep = batch["text_ids"], batch["text_keep"]
        if self.task == "retrieval":
            return retrieval_scores(self, self.head, batch["image"], ids, keep)
        if not any(name in batch for name in TEXT_READ):
            batch = batch | self.encode_text(ids, keep)
        if not any(name in batch for name in IMAGE_READ):
            batch = batch | self.encode_image(batch["image"])
        pooled = None
        if self.reads != "encoders":
            text = self.fusion.enter_text(batch["text_features"])
            shown = self.fusion.enter_image(batch["image_features"])
            pooled = self.fusion.pooled(text, shown, keep, 0)
        if self.reads == "fusion":
            return self.head(pooled)
        return self.head(batch["text_pooled"], batch["image_pooled"], pooled)

    def forward(
        self, batch: Batch, totals: dict[str, Tensor] | None = None, per_sample: bool = False
    ) -> dict[str, Tensor]:
        """`{name}_loss`, `{name}_count`, `{name}_correct` and `loss`, as in pre-training.

        The loss is a mean over pairs of `vqa_loss` or `classification_loss`.
        """
        scores, target = self.scores(batch).float(), batch["target"]
        if self.task == "multilabel":
            loss = vqa_loss(scores, target)
        elif not self.exclusive:
            right = F.one_hot(target.clamp(min=0), scores.shape[1]) * (target >= 0)[:, None]
            loss = vqa_loss(scores, right)
        else:
            loss = classification_loss(scores, target)  # retrieval: target 0, the true text
        if self.task == "multilabel":  # every class that is known
            correct = ((scores > 0).eq(target > 0) | (target < 0)).all(dim=1).long()
        else:
            correct = scores.argmax(dim=1).eq(target).long()
        sums = {"loss": loss, "count": torch.ones_like(correct), "correct": correct}
        sums = {f"{self.name}_{key}": values for key, values in sums.items()}
        return sums if per_sample else reduce_losses(sums, self.loss_weights, totals)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """The loss's denominator: pairs."""
        target = batch["target"]
        return {self.name: torch.full((), len(target), device=target.device)}

    @property
    def unread(self) -> list[str]:
        """The modules that the head does not read: none where it reads fusion.

        A head of the encoders alone reads no fusion, and no image block above its highest.
        """
        if self.reads != "encoders":
            return []
        top, depth = self.image_blocks[-1], len(self.image_encoder.blocks)
        above = [f"image_encoder.blocks.{number}" for number in range(top, depth)]
        return ["fusion", *above, *(["image_encoder.norm_post"] if above else [])]

    def unreached(self) -> list[str]:
        """Names of the parameters of `unread`."""
        unused = tuple(f"{name}." for name in self.unread)
        return [name for name, _ in self.named_parameters() if name.startswith(unused)]


def _encoder_head(
    config: Architecture, head: HeadConfig, blocks: Sequence[int], classes: int
) -> EncoderHead:
    image, fusion = config.image_encoder, config.fusion.width if head.reads == "both" else 0
    if blocks[-1] > image.depth:
        wrong = f"there is no block {blocks[-1]}; the image encoder has blocks 1 to {image.depth}"
        raise ValueError(f"head.image_blocks: {wrong}")
    dropouts = head.text_dropout, head.image_dropout, head.dropout
    shown = 2 * len(blocks) * image.width  # CLS and mean patch of each
    return EncoderHead(config.text_encoder.width, shown, head.width, classes, fusion, dropouts)


# ------------------------------------------------------------------------------------- weights


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


def read_facts(path_or_hub_id: str | Path) -> dict[str, Any] | None:
    """What `write_facts` wrote, None where there is nothing; ValueError where it is not that."""
    path = find_file(path_or_hub_id, FACTS)
    if path is None:
        return None
    facts = read_json_object(path)
    answers = facts.get("answers")
    fine = facts.get("task") in HEADS and isinstance(answers, list)
    if not fine or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"{path}: no task ({', '.join(HEADS)}) or no answer list in it")
    if not answers and facts["task"] != "retrieval":
        raise ValueError(f"{path}: an empty answer list")
    return facts


def build_fine_tuned(source: str | Path, config: Architecture, facts: dict[str, Any]) -> Downstream:
    """A model of a fine-tuned folder's sizes and head, not yet with its weights."""
    head = read_head(Path(source), facts)
    return Downstream(config, facts["task"], len(facts["answers"]), head)


def write_facts(folder: Path, **facts: Any) -> None:
    """task, field, answers (in the order of the head's outputs), head, protocol, sizes, source."""
    write_json(folder / FACTS, facts)


def read_head(folder: Path, facts: dict[str, Any] | None) -> HeadConfig:
    """The head of a fine-tuned folder, by its facts or else, in a run's checkpoint, its config.

    Folders that say nothing have the paper's. Raises ValueError where it is no section `head`.
    """
    place, section = folder / FACTS, (facts or {}).get("head")
    if facts is None and (folder / "config.yaml").is_file():
        place = folder / "config.yaml"
        section = read_file(place).get("head")
    return PAPER_HEAD if section is None else build(HeadConfig, section, f"{place}: head.")


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
        model = Downstream(init.model, config.task, len(answers), config.head)
    name = HEADS[config.task]
    state = {key: tensor for key, tensor in init.state.items() if "head." not in key}
    head = _head_state(init.state, name)
    if config.eval_only and (head or config.task != "retrieval"):
        check_facts(config, init, answers, head)
    else:
        if config.task == "retrieval":
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
    name, source = HEADS[config.task], init.source
    if not head:
        heads = ", ".join(sorted(heads_in(init.state))) or "no head"
        hint = "eval_only needs a checkpoint fine-tuned for this task"
        raise ValueError(f"{source}: no {name} in it ({heads}); {hint}")
    if config.task != "retrieval" and (differing := _differing_head(config.head, init)):
        raise ValueError(f"{source}: fine-tuned with {differing}")
    if init.facts is None:  # the reference's files do not say what their answers are
        last = head["last.bias"] if "last.bias" in head else next(iter(reversed(head.values())))
        outputs = last.shape[0]
        if config.task != "retrieval" and outputs != len(answers):
            wrong = f"has {outputs} answers, the data gives {len(answers)}"
            raise ValueError(f"{source}: its {name} {wrong}")
        return
    wanted = {"task": config.task, "field": config.data.field, "image": config.data.image}
    made = {"image": "own"} | init.facts  # earlier versions had no question-only models
    for key, value in wanted.items() if config.task != "retrieval" else ():
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
