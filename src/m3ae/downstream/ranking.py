"""Image-text retrieval by fused scores: every image of a pool ranked against every text.

Each image and each text is encoded once; a pair costs the fusion alone, less what layer 0 and the
last layer can save: self-attention and the cross-attention inputs of the first layer depend on one
side only and are computed once a block, the last layer is computed at the two CLS tokens.

Memory: encoded texts are held, 4 L D bytes each in float32 (2,000 of 40 tokens at width 768: 245
MB); encoded images are not, but for one block of them (8 of 325 tokens: 40 MB with its keys and
values; all 2,000 would be 2 GB for layer 0 alone).

Letters: `I` images, `T` texts, `L` text tokens, `S` image tokens, `D` fusion width.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from m3ae.data.datasets import Pairs, stack_images, trim
from m3ae.downstream.retrieval import match_score
from m3ae.files import read_json, replacing, write_json
from m3ae.models.m3ae import M3AE
from m3ae.training.distributed import Processes
from m3ae.training.engine import evaluating, to_device
from m3ae.training.precision import autocast

Blocks = dict[int, np.ndarray]  # scores by the number of a block of images

# ------------------------------------------------------------------------------------- the pool


@dataclass
class Pool:
    """What is ranked.

    images: I arrays, uint8 (C, H, W) or normalised float32, read when needed; text_ids int64 and
    text_keep bool (T, L); image_of_text int64 (T,); texts: T strings as they were written.
    """

    images: Sequence[np.ndarray]
    text_ids: Tensor
    text_keep: Tensor
    image_of_text: Tensor
    texts: list[str]


class _Images(Sequence):
    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return int(self.pairs.image_starts[-1])

    def __getitem__(self, image: int) -> np.ndarray:
        return self.pairs.image(image)


def read_pool(pairs: Pairs) -> Pool:
    """All images and texts of prepared folders, e.g. a test split."""
    everything = range(len(pairs))
    owners = torch.tensor([pairs.image_id(index) for index in everything])
    texts = [pairs.text(index) for index in everything]
    return Pool(_Images(pairs), **pairs.texts(everything), image_of_text=owners, texts=texts)


# ------------------------------------------------------------------------------------- scores


@dataclass
class TextBlock:
    """Texts of similar length, as they enter the fusion.

    columns: their numbers in the pool; stream (t, l, D) and keep (t, l), l their longest.
    """

    columns: Tensor
    stream: Tensor
    keep: Tensor


def encode_texts(
    model: M3AE, ids: Tensor, keep: Tensor, block: int, device: torch.device
) -> list[TextBlock]:
    """Texts (T, L), sorted by length, in blocks with little padding; each encoded once."""
    order = keep.sum(dim=1).argsort(stable=True, descending=True)  # the most memory first
    blocks = []
    for columns in order.split(block):
        cut = to_device(trim({"text_ids": ids[columns], "text_keep": keep[columns]}), device)
        stream = model.text_encoder(cut["text_ids"], cut["text_keep"])
        blocks.append(TextBlock(columns, model.fusion.enter_text(stream), cut["text_keep"]))
    return blocks


def encode_images(model: M3AE, images: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Images (C, H, W) as they enter the fusion, (n, S, D)."""
    pixels = stack_images([np.asarray(image) for image in images]).to(device)
    return model.fusion.enter_image(model.image_encoder(model.normalise(pixels)))


def score_block(
    model: M3AE,
    head: nn.Module,
    images: Tensor,
    texts: list[TextBlock],
    done: Callable[[int], object] = lambda pairs: None,
) -> Tensor:
    """Encoded images (n, S, D) with all encoded texts -> scores float32 (n, T).

    `done` is told how many pairs have been scored since it was last called.
    """
    fusion = model.fusion
    shown = fusion.image_alone(images)
    scores = torch.empty(len(images), sum(len(b.keep) for b in texts), device=images.device)
    for block in texts:
        told = fusion.text_alone(block.stream, block.keep)
        columns = block.columns.to(images.device)
        for row in range(len(images)):
            pair = fusion.first_layer(told, shown.repeated(row, len(block.keep)), block.keep)
            pooled = fusion.pooled(*pair, block.keep, 1)
            scores[row, columns] = match_score(head, pooled).float()
            done(len(block.keep))
    return scores


def score_all(
    model: M3AE,
    head: nn.Module,
    pool: Pool,
    processes: Processes,
    precision: str = "fp32",
    out: str | Path | None = None,
    image_block: int = 8,
    text_block: int = 64,
) -> Tensor:
    """Scores of every image with every text, float32 (I, T); every process must call it.

    model and head (a retrieval or an ITM head) are on the process's device. `image_block` images
    are ranked before they are written, `text_block` texts against one image at a time. With a
    folder `out` that all processes share, an interrupted ranking goes on after its last whole
    block, with any number of processes. Raises ValueError when `out` belongs to other weights or
    another pool, or a score is not finite.
    """
    images, texts = len(pool.images), len(pool.text_ids)
    blocks = [range(i, min(i + image_block, images)) for i in range(0, images, image_block)]
    found, finished = {}, set()
    if out is not None:
        out, settings = Path(out), {"precision": precision, "image_block": image_block}

        def read() -> Blocks:
            return _resume(out, fingerprint(model, head, pool) | settings, blocks, texts)

        found, finished = _in_first(processes, read)
    missing = [number for number in range(len(blocks)) if number not in finished]
    mine = missing[processes.rank :: processes.count]
    title = "ranking" if processes.count == 1 else f"ranking, process 1 of {processes.count}"
    total = sum(len(blocks[number]) for number in mine) * texts
    device = processes.device
    with (
        evaluating(model),
        autocast(device, precision),
        tqdm(total=total, desc=title, unit="pair", disable=not processes.first) as bar,
    ):
        encoded = []
        if mine:
            encoded = encode_texts(model, pool.text_ids, pool.text_keep, text_block, device)
        for number in mine:
            rows = blocks[number]
            stream = encode_images(model, [pool.images[row] for row in rows], device)
            scores = score_block(model, head, stream, encoded, bar.update).cpu().numpy()
            if len(wrong := np.argwhere(~np.isfinite(scores))):
                pair = f"image {rows[wrong[0, 0]]} with text {wrong[0, 1]}"
                hint = f"not finite under {precision}; use train.precision=fp32"
                raise ValueError(f"the score of {pair} is {hint}")
            found[number] = scores
            if out is not None:  # the whole file or none
                with replacing(_path(out, number)) as temporary, open(temporary, "wb") as file:
                    np.save(file, scores)
    whole: Blocks = {}
    for part in processes.gather(found):
        whole |= part
    return torch.from_numpy(np.concatenate([whole[number] for number in range(len(blocks))]))


# ------------------------------------------------------------------------------------- files


def fingerprint(model: M3AE, head: nn.Module, pool: Pool) -> dict[str, str]:
    """Digests of all that scores follow from: weights with their sizes, images, texts."""
    config = model.config
    encoders = (config.image_encoder, config.text_encoder)
    sizes = [dataclasses.replace(encoder, weights=None) for encoder in encoders]
    weights = hashlib.sha256(str([*sizes, config.fusion]).encode())
    for part in (model.image_encoder, model.text_encoder, model.fusion, head):
        for name, tensor in part.state_dict().items():
            weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            weights.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    images = hashlib.sha256(str(len(pool.images)).encode())
    for row in range(len(pool.images)):
        image = np.ascontiguousarray(pool.images[row])
        images.update(f"{image.dtype} {image.shape}".encode())
        images.update(image.view(np.uint8))
    texts = hashlib.sha256(str(tuple(pool.text_ids.shape)).encode())
    for tensor in (pool.text_ids, pool.text_keep):
        texts.update(np.ascontiguousarray(tensor.cpu().numpy()).view(np.uint8))
    digests = {"weights": weights, "images": images, "texts": texts}
    return {name: digest.hexdigest() for name, digest in digests.items()}


def _path(out: Path, number: int) -> Path:
    return out / f"scores-{number:05d}.npy"


def _in_first(processes: Processes, read: Callable[[], Blocks]) -> tuple[Blocks, set[int]]:
    """What the first process reads, {} in the others, and its numbers in all of them."""
    found, error = {}, None
    if processes.first:
        try:
            found = read()
        except (ValueError, OSError) as problem:
            error = str(problem)  # raised by all processes, so that none waits for the others
    error, finished = processes.from_first((error, set(found)))
    if error is not None:
        raise ValueError(error)
    return found, finished


def _resume(out: Path, facts: dict[str, Any], blocks: list[range], texts: int) -> Blocks:
    """The whole blocks of a ranking's folder, which is made if need be."""
    out.mkdir(parents=True, exist_ok=True)
    record = out / "ranking.json"
    if record.exists():
        try:
            saved = read_json(record)
            other = [key for key in facts if saved[key] != facts[key]]
        except (ValueError, KeyError, TypeError) as error:
            message = f"{record}: not the record of a ranking ({error}); delete {out}"
            raise ValueError(message) from error
        if other:
            which = f"of another ranking (of other {', '.join(other)})"
            raise ValueError(f"{out}: holds scores {which}; delete it or choose another")
    elif any(out.glob("scores-*.npy")):
        raise ValueError(f"{out}: has scores but no ranking.json to say of what; delete it")
    else:
        write_json(record, facts)
    found = {}
    for number, rows in enumerate(blocks):
        path, wanted = _path(out, number), (len(rows), texts)
        if path.exists():
            try:
                scores = np.load(path)
            except Exception as error:  # whatever numpy's parser of headers stumbles over
                raise ValueError(f"{path}: cannot be read ({error}); delete it") from error
            if scores.shape != wanted or scores.dtype != np.float32:
                wrong = f"{scores.dtype} {scores.shape}, not float32 {wanted}"
                raise ValueError(f"{path}: {wrong}; delete it")
            found[number] = scores
    return found
