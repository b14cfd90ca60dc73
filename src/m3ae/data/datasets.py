"""Samples of prepared corpora, and their assembly into batches for the model.

Letters: `B` pairs, `L` text tokens, `N` patches, `M` scored tokens (padded). Every random choice
comes from a generator keyed by seed and place, so a batch is a function of both and nothing else.
"""

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from m3ae.config import Architecture, Config
from m3ae.data.exclusions import listed, read_exclusions, say_unmatched, unmatched
from m3ae.data.masking import (
    draw_in_batch_negatives,
    draw_matches,
    draw_patch_order,
    scored_positions,
)
from m3ae.data.sampler import GROUP, SAMPLE, SUBSET, Order, Plan, keyed
from m3ae.data.shards import Shards
from m3ae.data.texts import (
    assemble,
    encode,
    mask_tokens,
    max_scored,
    mlm_scored,
    ordinary_ids,
    special_ids,
)
from m3ae.processes import start_loading, usable_cores

log = logging.getLogger(__name__)

Generators = list[np.random.Generator]


@dataclass
class Sample:
    """One text with its image: image uint8 (C, H, W), ids and words int64 (L,)."""

    index: int
    key: str
    corpus: int
    image_id: int
    image: np.ndarray
    ids: np.ndarray
    words: np.ndarray


class Pairs:
    """Several prepared folders as one list of image-text pairs.

    `exclude`: files that list images to leave out (`data.exclusions`); their texts go too, and
    what is left is numbered without gaps. Raises ValueError or FileNotFoundError naming the folder
    or list that is wrong, ValueError where nothing is left of a folder or a list names no image.
    """

    def __init__(
        self,
        folders: Sequence[str],
        tokenizer: Any,
        text_length: int,
        image_px: int,
        exclude: Sequence[str] | None = None,
    ) -> None:
        self.corpora = [Shards(folder, tokenizer) for folder in folders]
        self.tokenizer, self.text_length, self.image_px = tokenizer, text_length, image_px
        self.special = special_ids(tokenizer)
        self.images, self.rows = _keep(self.corpora, exclude or ())
        self.sizes = [len(rows) for rows in self.rows]
        self.starts = np.cumsum([0, *self.sizes])
        self.image_starts = np.cumsum([0, *map(len, self.images)])
        for corpus in self.corpora:
            corpus.image(0, image_px)  # a size that these shards cannot give is named now
            if not corpus.manifest["tokenizer"]:
                log.info("%s holds no tokens: tokenising while reading", corpus.folder)
            side, encoding = corpus.manifest["px"], corpus.manifest["encoding"]
            if encoding == "jpeg" and side < image_px:
                warning = "%s: prepared at %d px, enlarged to %d; prepare with --px %d to see more"
                log.warning(warning, corpus.folder, side, image_px, image_px)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def find(self, index: int) -> tuple[int, int]:
        """Corpus and row in it of a sample."""
        corpus = int(np.searchsorted(self.starts, index, side="right")) - 1
        return corpus, int(self.rows[corpus][index - self.starts[corpus]])

    def text(self, index: int) -> str:
        """The text as it was written."""
        corpus, row = self.find(index)
        return self.corpora[corpus].text(row)

    def image_id(self, index: int) -> int:
        """The number of a sample's image through all corpora."""
        corpus, row = self.find(index)
        image = self.corpora[corpus].image_of_text[row]
        return int(self.image_starts[corpus] + np.searchsorted(self.images[corpus], image))

    def image(self, image_id: int) -> np.ndarray:
        """Image by its number through all corpora, uint8 (C, H, W)."""
        corpus = int(np.searchsorted(self.image_starts, image_id, side="right")) - 1
        row = int(self.images[corpus][image_id - self.image_starts[corpus]])
        return self.corpora[corpus].image(row, self.image_px)

    def tokens(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and word indices of a sample's text, both int64 (text_length,)."""
        corpus, row = self.find(index)
        shards = self.corpora[corpus]
        tokens = shards.tokens(row) or encode(self.tokenizer, [shards.text(row)])[0]
        return assemble(*tokens, self.text_length, self.special)

    def texts(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """`text_ids` int64 and `text_keep` bool of these samples, both (B, L)."""
        return stack_texts([self.tokens(int(index)) for index in indices])

    def __getitem__(self, index: int) -> Sample:
        corpus, row = self.find(index)
        key, image_id = self.corpora[corpus].text_key(row), self.image_id(index)
        return Sample(index, key, corpus, image_id, self.image(image_id), *self.tokens(index))


def _keep(
    corpora: Sequence[Shards], exclude: Sequence[str]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Rows of the images and of the texts of each corpus that no list leaves out, rising."""
    if not exclude:
        return [np.arange(c.num_images) for c in corpora], [np.arange(len(c)) for c in corpora]
    ids, named = read_exclusions(*exclude), set()
    images, texts = [], []
    for corpus in corpora:
        found, ids_here = listed(corpus, ids)
        named |= ids_here
        kept = _kept(corpus, ~found)
        images.append(kept[0])
        texts.append(kept[1])
    lists = {file: read_exclusions(file) for file in exclude}
    for file, lost in unmatched(lists, named, corpora[0].image_key(0)).items():
        log.warning("data.exclude: %s", say_unmatched(file, lists[file], lost))
    return images, texts


def _kept(corpus: Shards, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the images to keep, bool (images,), and of their texts."""
    images = np.flatnonzero(keep)
    texts = np.flatnonzero(keep[corpus.image_of_text])
    lost = f"{len(keep) - len(images)} of {len(keep)} images"
    lost += f", {len(corpus) - len(texts)} of {len(corpus)} texts"
    log.info("%s: data.exclude leaves out %s", corpus.folder, lost)
    if not len(texts):
        hint = "take the folder out of data.train or the list out of data.exclude"
        raise ValueError(f"{corpus.folder}: data.exclude lists all of its images; {hint}")
    return images, texts


class Assembler:
    """Samples -> a batch with masks, patch orders and ITM pairs drawn."""

    def __init__(self, model: Architecture, pairs: Pairs) -> None:
        self.model, self.pairs = model, pairs
        self.patches = (model.image_encoder.image_px // model.image_encoder.patch_px) ** 2
        self.ordinary = ordinary_ids(pairs.tokenizer)
        self.most_scored = max_scored(pairs.text_length, model.mlm.ratio, model.mlm.sampling)

    def __call__(
        self, samples: list[Sample], sample_rngs: Generators, group_rngs: Generators
    ) -> dict[str, Tensor]:
        """One generator a sample, one an ITM group of consecutive samples."""
        batch = {
            "index": torch.tensor([sample.index for sample in samples]),
            "image": stack_images([sample.image for sample in samples]),
            **stack_texts([(sample.ids, sample.words) for sample in samples]),
        }
        if self.model.mlm.weight:
            self._mask_texts(batch, samples, sample_rngs)
        if self.model.mim.weight:
            orders = [draw_patch_order(self.patches, rng) for rng in sample_rngs]
            batch["patch_order"] = torch.from_numpy(np.stack(orders))
        if self.model.itm.weight:
            self._draw_matches(batch, samples, group_rngs)
        return trim(batch)

    def _mask_texts(self, batch: dict, samples: list[Sample], rngs: Generators) -> None:
        config, mask = self.model.mlm, self.pairs.special["mask"]
        rows = []
        for sample, rng in zip(samples, rngs, strict=True):
            scored = mlm_scored(sample.words, config.ratio, config.sampling, rng)
            rows.append(mask_tokens(sample.ids, scored, mask, self.ordinary, rng))
        masked, labels = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*rows, strict=True))
        batch["mlm_ids"], batch["mlm_labels"] = masked, labels
        # Padded to one length here, so that a step on a GPU need not wait to learn the length.
        positions, targets = scored_positions(labels, self.most_scored)
        batch["mlm_positions"], batch["mlm_targets"] = positions, targets

    def _draw_matches(self, batch: dict, samples: list[Sample], rngs: Generators) -> None:
        group, matches, shown = self.model.itm.group, [], []
        for number, rng in enumerate(rngs):
            first = number * group
            members = samples[first : first + group]
            images = np.array([sample.image_id for sample in members])
            corpora = np.array([sample.corpus for sample in members])
            if self.model.itm.negatives == "in_batch":
                match, rows = draw_in_batch_negatives(images, corpora, rng)
                shown.append(rows + first)
            else:
                match = draw_matches(len(members), rng)
                starts = self.pairs.image_starts
                shown.append(rng.integers(starts[corpora], starts[corpora + 1]))
            matches.append(match)
        match, shown = np.concatenate(matches), np.concatenate(shown)
        batch["itm_match"] = torch.from_numpy(match)
        if self.model.itm.negatives == "in_batch":
            batch["itm_image"] = torch.from_numpy(shown)
        else:
            # Uniform over the corpus, so possibly the same image: the reference's draw.
            images = [
                sample.image if own else self.pairs.image(int(image))
                for sample, own, image in zip(samples, match, shown, strict=True)
            ]
            batch["negative_image"] = stack_images(images)
            batch["itm_negative_rows"] = torch.from_numpy(np.flatnonzero(~match))


def trim(batch: dict[str, Tensor], multiple: int = 8) -> dict[str, Tensor]:
    """Cut the padding that all texts of a batch share: columns up to the longest, rounded up.

    Padding is no key of any attention, so no loss changes; masks were drawn before. Texts are
    (B, L), or (B, 1+F, L) with false ones.
    """
    longest = int(batch["text_keep"].sum(dim=-1).max())
    length = min(-(-longest // multiple) * multiple, batch["text_keep"].shape[-1])
    columns = ("text_ids", "text_keep", "mlm_ids", "mlm_labels")
    return batch | {key: batch[key][..., :length] for key in columns if key in batch}


def stack_texts(rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Tensor]:
    """Ids and words of `assemble` -> `text_ids` int64, `text_keep` bool (B, L): not padding."""
    ids, words = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*rows, strict=True))
    real = (words >= 0).sum(dim=1, keepdim=True) + 2  # words and the two special ones around them
    return {"text_ids": ids, "text_keep": torch.arange(ids.shape[1]) < real}


def stack_images(images: list[np.ndarray]) -> Tensor:
    """Images (C, H, W) -> (B, C, H, W), C = 1 where all are grey, else 3."""
    channels = max(image.shape[0] for image in images)
    full = [np.broadcast_to(image, (channels, *image.shape[1:])) for image in images]
    return torch.from_numpy(np.stack(full))


class TrainBatches(Dataset):
    """Item i = the i-th micro-batch of one process, counted from step 0."""

    def __init__(
        self, pairs: Pairs, order: Order, plan: Plan, model: Architecture, seed: int, rank: int
    ) -> None:
        self.pairs, self.order, self.plan = pairs, order, plan
        self.seed, self.rank, self.group = seed, rank, model.itm.group
        self.assemble = Assembler(model, pairs)

    def __len__(self) -> int:
        return self.plan.steps * self.plan.accumulation

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        step, micro = divmod(item, self.plan.accumulation)
        positions = self.plan.positions(step, self.rank, micro)
        samples = [self.pairs[self.order[position]] for position in positions]
        # A position is counted through all epochs, so it says the epoch too.
        rngs = [keyed(self.seed, SAMPLE, position) for position in positions]
        groups = range(positions.start // self.group, -(-positions.stop // self.group))
        return self.assemble(samples, rngs, [keyed(self.seed, GROUP, group) for group in groups])


class EvalBatches(Dataset):
    """Held-out pairs with fixed masks and pairings: batch i of `batches`, the same every time.

    `samples` 0 takes all pairs, else a fixed random subset. `draw` numbers the mask draw. A
    sample's masks follow from (seed, its key, draw), so they do not depend on its neighbours.
    """

    def __init__(
        self, pairs: Pairs, model: Architecture, seed: int, samples: int, batch: int, draw: int = 0
    ) -> None:
        self.pairs, self.seed, self.draw, self.group = pairs, seed, draw, model.itm.group
        self.indices = keyed(seed, SUBSET).permutation(len(pairs))[: samples or len(pairs)]
        self.batch = batch
        self.assemble = Assembler(model, pairs)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch)

    def __getitem__(self, item: int) -> dict[str, Tensor]:
        if item >= len(self):
            raise IndexError(item)
        chosen = self.indices[item * self.batch : (item + 1) * self.batch]
        samples = [self.pairs[int(index)] for index in chosen]
        ids = [zlib.crc32(sample.key.encode()) for sample in samples]
        rngs = [keyed(self.seed, SAMPLE, number, self.draw) for number in ids]
        groups = [keyed(self.seed, GROUP, number, self.draw) for number in ids[:: self.group]]
        return self.assemble(samples, rngs, groups)


def train_loader(
    config: Config, pairs: Pairs, plan: Plan, rank: int, start_step: int, device: torch.device
) -> DataLoader:
    """Micro-batches of process `rank` from `start_step` to the end, in order."""
    order = Order(pairs.sizes, config.data.train_weights, config.seed)
    dataset = TrainBatches(pairs, order, plan, config.model, config.seed, rank)
    return loader_from(dataset, start_step * plan.accumulation, config.data.workers, device)


def loader_from(dataset: Dataset, item: int, workers: int, device: torch.device) -> DataLoader:
    """The items of a data set, which are batches, from one on."""
    return _loader(dataset, range(item, len(dataset)), workers, device)


def eval_batches(
    dataset: Dataset, rank: int, processes: int, workers: int, device: torch.device
) -> DataLoader:
    """The batches of process `rank`: every `processes`-th."""
    own = range(rank, len(dataset), processes)
    return _loader(dataset, own, min(workers, len(own)), device)


@cache
def usable_workers(asked: int) -> int:
    """Data-loading processes to start: as many as asked for, but no more than there are cores.

    More would only wait for each other. Once a process, the log says what was taken instead.
    """
    cores = usable_cores()
    if asked > cores:
        usable = f"{cores} core{'s' if cores > 1 else ''} may be used"
        log.info("data.workers: %d asked for, %s: %d taken", asked, usable, cores)
    return min(asked, cores)


def _loader(dataset: Dataset, items: range, workers: int, device: torch.device) -> DataLoader:
    workers = usable_workers(workers)
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=items,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=start_loading,
        generator=torch.Generator().manual_seed(0),  # leaves the global one alone
    )
