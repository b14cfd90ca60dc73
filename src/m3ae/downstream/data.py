"""Questions (or captions) of a prepared split, and their batches for fine-tuning.

Letters: `B` pairs, `F` false texts an image, `L` text tokens.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from m3ae.data.datasets import Pairs, loader_from, stack_images, trim
from m3ae.data.images import to_array
from m3ae.data.sampler import SAMPLE, Order, Plan, keyed
from m3ae.data.shards import Shards
from m3ae.downstream.config import DownstreamData, FinetuneConfig
from m3ae.downstream.model import IMAGE_READ
from m3ae.downstream.papers import check_disjoint
from m3ae.downstream.retrieval import draw_false_texts
from m3ae.downstream.selection import read_fields, select_training
from m3ae.files import read_json
from m3ae.models.m3ae import Batch
from m3ae.scoring.protocols import Protocol
from m3ae.training.distributed import Processes

log = logging.getLogger(__name__)

Rows = list[int]  # numbers in the shards
UNKNOWN = -1  # the right answer is not in the list
ARMS = ("own", "other", "none")  # the image shown: its own, another's, the mean image


class Questions:
    """The rows of a prepared split that a run uses, with their targets.

    `pairs` are of this split alone; those without `field` (no matter for retrieval) are left out.
    Raises ValueError naming the folder that is wrong or empty.
    """

    def __init__(self, pairs: Pairs, field: str = "label", rows: np.ndarray | None = None) -> None:
        self.pairs, self.name = pairs, field
        (shards,) = pairs.corpora
        self.shards, self.folder = shards, shards.folder
        self.fields, labelled = read_fields(shards, field)
        self.rows = labelled if rows is None else np.intersect1d(labelled, rows)
        if not len(self.rows):
            raise ValueError(f"{self.folder}: no row is left of this split")
        self.several = bool(self.fields) and isinstance(self.fields[self.rows[0]][field], list)
        self.targets = np.zeros(len(shards), dtype=np.int64)
        # What frozen encoders give for texts cut to a length and images: see `FrozenFeatures.of`.
        self.features: Callable[[Rows, Rows | None, int], Batch] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def label(self, row: int) -> str:
        """What is to be predicted for a row of the shards."""
        return str(self.fields[row][self.name])

    def all_labels(self, row: int) -> list[str]:
        """The one label of a row, or with `several` any number of them."""
        return self.fields[row][self.name] if self.several else [self.label(row)]

    def set_answers(self, answers: list[str]) -> None:
        """Fix the targets: numbers in `answers`, the head's outputs; the log counts the others.

        With `several`, of each row 1 for its labels, else 0, and -1 for what it says nothing of.
        """
        number, outside = {answer: k for k, answer in enumerate(answers)}, 0
        if self.several:
            self.targets = np.zeros((len(self.shards), len(answers)), dtype=np.int64)
        for row in self.rows:
            found = [number.get(label, UNKNOWN) for label in self.all_labels(row)]
            outside += UNKNOWN in found
            if self.several:
                self.targets[row, [k for k in found if k != UNKNOWN]] = 1
                unknown = self.fields[row].get("unlabelled", ())
                self.targets[row, [number[name] for name in unknown if name in number]] = UNKNOWN
            else:
                self.targets[row] = found[0]
        if outside:
            counts = outside, len(self)
            log.info("%s: the answers of %d of %d rows are not in the list", self.folder, *counts)

    def labels(self) -> Counter:
        """How often each label occurs."""
        return Counter(label for row in self.rows for label in self.all_labels(row))

    def images(self) -> int:
        """How many images the rows have."""
        return len(np.unique(self.shards.image_of_text[self.rows]))

    def ids(self) -> list[str]:
        """The text keys of the rows."""
        return [self.shards.text_key(int(row)) for row in self.rows]


Splits = dict[str, Questions]  # by name: train, test, valid, held_out


def read_splits(
    config: FinetuneConfig, tokenizer: Any, protocols: list[Protocol]
) -> tuple[Splits, list[str], dict[str, set[str]]]:
    """The splits of a run, the answers of the head, and those that each protocol may give."""
    data = config.data

    def read(folder: str, rows: np.ndarray | None = None) -> Questions:
        pairs = Pairs([folder], tokenizer, data.text_length, data.image_px)
        return Questions(pairs, data.field, rows)

    whole, splits = read(data.train), {"test": read(data.test)}
    if data.valid:
        splits["valid"] = read(data.valid)
    if config.kind != "retrieval" and whole.several != (config.kind == "multilabel"):
        holds = "lists, which are for" if whole.several else "no lists, as they are for"
        raise ValueError(f"data.field: {data.field} of {data.train} holds {holds} task=multilabel")
    rows, held = select_training(config, whole.shards, whole.fields, whole.rows, protocols)
    train = read(data.train, rows)
    if config.kind == "retrieval":
        if any(rules.name != "paper" for rules in protocols):
            check_disjoint(config)
        return {"train": train} | splits, [], {rules.name: set() for rules in protocols}
    if held is not None:
        splits["held_out"] = read(data.train, held)
    released = config.kind == "vqa" and config.init and Path(config.init).is_file()
    name = "reference_order" if released and config.eval_only else "paper"
    everything = read_answers(data.train, data.answers, data.field, name)
    if everything is None:
        log.info("no answers.json or classes.json beside %s: all labels of the splits", data.train)
        everything = sorted(set().union(*(split.labels() for split in [whole, *splits.values()])))
    trained = set(train.labels())
    whole_list = any(rules.known_answers == "all" for rules in protocols)
    answers = everything if whole_list else sorted(trained)
    if strange := trained - set(answers):
        some = f"{len(strange)} training labels are not in the answer list, e.g. {min(strange)!r}"
        raise ValueError(f"{data.train}: {some}")
    splits = {"train": train} | splits
    for split in splits.values():
        split.set_answers(answers)
    lists = {"all": set(answers), "train": trained}
    return splits, answers, {rules.name: lists[rules.known_answers] for rules in protocols}


def augmented(
    shards: Shards, image: int, data: DownstreamData, rng: np.random.Generator
) -> np.ndarray:
    """A random crop of an image, resized to image_px: uint8 (C, px, px); torchvision's transforms.

    `resized_crop`: area crop_scale-1 of the image, aspect ratio 3/4-4/3 (the paper's fine-tuning).
    `rand_augment` adds torchvision's RandAugment with its own defaults.
    """
    from torchvision.transforms import InterpolationMode, RandAugment, RandomResizedCrop

    picture = shards.picture(image)
    scale, bicubic = (data.crop_scale, 1.0), InterpolationMode.BICUBIC
    crop = RandomResizedCrop(data.image_px, scale, interpolation=bicubic)
    with torch.random.fork_rng(devices=[]):  # torchvision draws from the global generator
        torch.manual_seed(int(rng.integers(2**62)))
        picture = crop(picture)
        if data.augmentation == "rand_augment":
            picture = RandAugment()(picture)
    return to_array(picture.convert("RGB") if picture.mode == "RGBA" else picture)


def collate(
    questions: Questions, rows: Rows, shown: Rows | None, images: list[np.ndarray] | None = None
) -> Batch:
    """The texts of rows of the shards, each with the image of the row at its place in `shown`.

    shown None: with the mean image, which normalised is 0. images: what those rows' images became
    by augmentation. Where the images' features are known, there is no `image`.
    """
    pairs = questions.pairs
    batch = {"index": torch.tensor(rows), **pairs.texts(rows)}
    batch["target"] = torch.from_numpy(questions.targets[rows])
    batch = trim(batch)
    if questions.features is not None:
        batch |= questions.features(rows, shown, batch["text_ids"].shape[1])
    if any(name in batch for name in IMAGE_READ):
        return batch  # no picture is decoded that nobody looks at
    if shown is None:
        batch["image"] = torch.zeros(len(rows), 3, pairs.image_px, pairs.image_px)
    else:
        owners = questions.shards.image_of_text
        batch["image"] = stack_images(images or [pairs.image(int(owners[row])) for row in shown])
    return batch


def add_false_texts(
    batch: Batch, questions: Questions, rows: Rows, count: int, seed: int, positions: Sequence[int]
) -> Batch:
    """Texts (B, L) -> (B, 1+F, L): the true one, then false ones drawn by seed and positions.

    Of the run's own rows alone: with `data.fraction` it must see no other text.
    """
    known, owners = questions.rows, questions.shards.image_of_text
    false = draw_false_texts(owners[known], owners[rows], count, seed, positions)  # (B, F)
    chosen = np.concatenate([np.array(rows)[:, None], known[false]], axis=1)
    texts = questions.pairs.texts(chosen.ravel())
    return trim(batch | {key: value.view(*chosen.shape, -1) for key, value in texts.items()})


class TrainQuestions(Dataset):
    """Item i = the i-th micro-batch of one process, as in pre-training (`TrainBatches`)."""

    def __init__(self, questions: Questions, config: FinetuneConfig, plan: Plan, rank: int) -> None:
        self.questions, self.data, self.plan = questions, config.data, plan
        self.order = Order([len(questions)], None, config.seed)
        self.seed, self.rank, self.task = config.seed, rank, config.kind
        self.augments = self.data.augmentation != "none" and self.data.image == "own"
        if self.augments and questions.shards.manifest["encoding"] == "raw":
            hint = "prepare it with --encoding jpeg or original, or set none"
            wrong = f"{questions.folder} holds pixels already cropped"
            raise ValueError(f"data.augmentation: {wrong}; {hint}")

    def __len__(self) -> int:
        return self.plan.steps * self.plan.accumulation

    def __getitem__(self, item: int) -> Batch:
        step, micro = divmod(item, self.plan.accumulation)
        positions = self.plan.positions(step, self.rank, micro)
        questions, images = self.questions, None
        rows = [int(questions.rows[self.order[position]]) for position in positions]
        if self.augments:
            owners = questions.shards.image_of_text[rows]
            images = [
                augmented(questions.shards, int(image), self.data, keyed(self.seed, SAMPLE, place))
                for image, place in zip(owners, positions, strict=True)
            ]
        batch = collate(questions, rows, rows if self.data.image == "own" else None, images)
        if self.task != "retrieval":
            return batch
        return add_false_texts(batch, questions, rows, self.data.false_texts, self.seed, positions)


class EvalQuestions(Dataset):
    """All rows in order, `batch` at a time, with the images of an arm; false texts are fixed."""

    def __init__(
        self, questions: Questions, batch: int, arm: str = "own", false_texts: int = 0
    ) -> None:
        self.questions, self.batch, self.false_texts = questions, batch, false_texts
        rows = questions.rows
        if arm == "other":
            owners = questions.shards.image_of_text[rows]
            self.shown = rows[next_other(owners)]
        else:
            self.shown = None if arm == "none" else rows

    def __len__(self) -> int:
        return -(-len(self.questions) // self.batch)

    def __getitem__(self, item: int) -> Batch:
        if item >= len(self):
            raise IndexError(item)
        some = slice(item * self.batch, (item + 1) * self.batch)
        rows = self.questions.rows[some].tolist()
        shown = None if self.shown is None else self.shown[some].tolist()
        batch = collate(self.questions, rows, shown)
        if not self.false_texts:
            return batch
        return add_false_texts(batch, self.questions, rows, self.false_texts, 0, rows)


def next_other(images: np.ndarray) -> np.ndarray:
    """For each row the next one, the first after the last, of another image: int64 (Q,).

    images int64 (Q,). Raises ValueError where there is one image only.
    """
    if len(np.unique(images)) < 2:
        raise ValueError("one image only, so there is no other one to show")
    following = np.empty(len(images), dtype=np.int64)
    found = 0
    for row in [*range(len(images))[::-1], *range(len(images))[::-1]]:  # twice: it goes round
        after = (row + 1) % len(images)
        found = after if images[after] != images[row] else found
        following[row] = found
    return following


def train_loader(
    config: FinetuneConfig, questions: Questions, plan: Plan, processes: Processes, step: int
) -> DataLoader:
    """Micro-batches of this process from `step` to the end, in order."""
    dataset = TrainQuestions(questions, config, plan, processes.rank)
    workers = config.data.workers
    return loader_from(dataset, step * plan.accumulation, workers, processes.device)


def read_answers(folder: str, file: str | None, field: str, name: str) -> list[str] | None:
    """The list `name` of answers that preparation wrote beside a split, None if it wrote none.

    `file` names another one: a JSON list, or an object with the list `name`. The order is that of
    the head's outputs. Raises ValueError where the file has no such list.
    """
    parent = Path(folder).parent
    names = [parent / "answers.json", parent / "classes.json"] if file is None else [Path(file)]
    path = next((path for path in names if path.is_file()), None)
    if path is None:
        if file is not None:
            raise FileNotFoundError(f"data.answers: {file} does not exist")
        return None
    try:
        content = read_json(path)
        if isinstance(content, dict) and field in content:  # classes.json: lists by column
            content = content[field]
        answers = content[name] if isinstance(content, dict) else content
        if not all(isinstance(answer, str) for answer in answers) or not answers:
            raise ValueError("not a list of strings")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no list {name} for data.field={field} ({error})") from error
    return list(answers)
