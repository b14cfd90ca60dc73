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

from m3ae.config import Architecture
from m3ae.downstream.config import PAPER_HEAD, HeadConfig, own_class
from m3ae.downstream.retrieval import retrieval_scores
from m3ae.files import read_json_object, write_json
from m3ae.models.heads import (
    HEADS,
    AnswerHead,
    EncoderHead,
    RetrievalHead,
)
from m3ae.models.layers import masked_mean
from m3ae.models.losses import OBJECTIVES, classification_loss, reduce_losses, vqa_loss
from m3ae.models.m3ae import M3AE, Batch, initialise
from m3ae.models.pretrained import (
    load_strictly,
    read_pretrained,
)
from m3ae.models.weight_files import find_file
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

    A head of one's own is a subclass that names its `kind` and makes another head; it may read
    something else (`scores`) or learn by another loss (`forward`, `counts`): docs/backbone.md.
    """

    kind: str  # of a subclass: vqa, classification or multilabel, whose data and measures it takes

    def __init__(
        self, config: Architecture, task: str, classes: int, head_config: HeadConfig = PAPER_HEAD
    ) -> None:
        bare = {key: dataclasses.replace(getattr(config, key), weight=0.0) for key in OBJECTIVES}
        super().__init__(dataclasses.replace(config, **bare))
        self.task, self.name = task, HEADS[task].removesuffix("_head")
        depth = config.image_encoder.depth
        self.head_config = head_config
        self.image_blocks = head_config.image_blocks or (depth,)
        # One answer of all is right, not each with a probability of its own.
        self.exclusive = head_config.loss == "cross_entropy" if task == "vqa" else task in EXCLUSIVE
        setattr(self, HEADS[task], self.make_head(config, classes))
        self.loss_weights = {self.name: 1.0}
        self.frozen: tuple[str, ...] = ()

    def make_head(self, config: Architecture, classes: int) -> torch.nn.Module:
        """The task's head, all of whose tensors are new: what `scores` calls."""
        if self.task == "retrieval":
            head = RetrievalHead(config.fusion.width)
        elif self.reads == "fusion":
            head = AnswerHead(config.fusion.width, classes)
        else:
            head = _encoder_head(config, self.head_config, self.image_blocks, classes)
        if isinstance(head, AnswerHead | RetrievalHead):
            initialise(head)  # the others go by the width of their inputs, thousands of features
        return head

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


def read_facts(path_or_hub_id: str | Path) -> dict[str, Any] | None:
    """What `write_facts` wrote, None where there is nothing; ValueError where it is not that."""
    path = find_file(path_or_hub_id, FACTS)
    if path is None:
        return None
    facts = read_json_object(path)
    answers = facts.get("answers")
    fine = facts.get("task") in HEADS and isinstance(answers, list)
    fine = fine and isinstance(facts.get("class", ""), str)
    if not fine or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"{path}: no task ({', '.join(HEADS)}) or no answer list in it")
    if not answers and facts["task"] != "retrieval":
        raise ValueError(f"{path}: an empty answer list")
    return facts


def build_fine_tuned(source: str | Path, config: Architecture, facts: dict[str, Any]) -> Downstream:
    """A model of a fine-tuned folder's sizes and head, not yet with its weights."""
    head, own = read_head(Path(source), facts), facts.get("class")
    try:
        kind = class_of(own, loaded=True) if own else Downstream
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return kind(config, facts["task"], len(facts["answers"]), head)


def class_of(task: str, loaded: bool = False) -> type[Downstream]:
    """`Downstream`, or the subclass that a config's task names; raises as `config.own_class`."""
    if task in HEADS:
        return Downstream
    found = own_class(task, loaded)
    if not (isinstance(found, type) and issubclass(found, Downstream)):
        raise ValueError(f"task: {task} is no subclass of m3ae.downstream.model.Downstream")
    return found


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
