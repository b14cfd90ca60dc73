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
import json
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
from m3ae.files import replacing, write_json
from m3ae.models.m3ae import M3AE
from m3ae.training.distributed import Processes
from m3ae.training.engine import autocast, evaluating

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
    owners = []
    for index in range(len(pairs)):
        corpus, row = pairs.find(index)
        place = np.searchsorted(pairs.images[corpus], pairs.corpora[corpus].image_of_text[row])
        owners.append(int(place + pairs.image_starts[corpus]))
    tokens = pairs.texts(range(len(pairs)))
    texts = [pairs.text(index) for index in range(len(pairs))]
    owner = torch.tensor(owners)
    return Pool(_Images(pairs), tokens["text_ids"], tokens["text_keep"], owner, texts)


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
        cut = trim({"text_ids": ids[columns], "text_keep": keep[columns]})
        cut = {key: tensor.to(device) for key, tensor in cut.items()}
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
    found: dict[int, np.ndarray] = {}
    finished: set[int] = set()
    if out is not None:
        out, settings = Path(out), {"precision": precision, "image_block": image_block}
        found, finished = _resume(
            out, lambda: fingerprint(model, head, pool) | settings, blocks, texts, processes
        )
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
            if not np.isfinite(scores).all():
                row, column = np.argwhere(~np.isfinite(scores))[0]
                raise ValueError(
                    f"the score of image {rows[row]} with text {column} is not "
                    f"finite under {precision}; use train.precision=fp32"
                )
            found[number] = scores
            if out is not None:
                _write_block(_path(out, number), scores)
    whole: dict[int, np.ndarray] = {}
    for part in processes.gather(found):
        whole |= part
    return torch.from_numpy(np.concatenate([whole[number] for number in range(len(blocks))]))


# ------------------------------------------------------------------------------------- files


def fingerprint(model: M3AE, head: nn.Module, pool: Pool) -> dict[str, str]:
    """Digests of all that scores follow from: weights with their sizes, images, texts."""
    parts = ("image_encoder", "text_encoder", "fusion")
    sizes = [
        dataclasses.replace(getattr(model.config, part), weights=None)
        if part != "fusion"
        else model.config.fusion
        for part in parts
    ]
    weights = hashlib.sha256(str(sizes).encode())
    for part in (*(getattr(model, part) for part in parts), head):
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


def _resume(
    out: Path,
    facts: Callable[[], dict[str, Any]],
    blocks: list[range],
    texts: int,
    processes: Processes,
) -> tuple[dict[int, np.ndarray], set[int]]:
    """The whole blocks of a ranking's folder, {} but in the first process, and their numbers."""
    found, error = {}, None
    if processes.first:
        try:
            found = _open(out, facts(), blocks, texts)
        except (ValueError, OSError) as problem:
            error = str(problem)  # raised by all processes, so that none waits for the others
    error, finished = processes.from_first((error, set(found)))
    if error is not None:
        raise ValueError(error)
    return found, finished


def _open(out: Path, facts: dict, blocks: list[range], texts: int) -> dict[int, np.ndarray]:
    """The whole blocks of a ranking's folder, which is made if need be."""
    out.mkdir(parents=True, exist_ok=True)
    record = out / "ranking.json"
    if record.exists():
        try:
            saved = json.loads(record.read_text(encoding="utf-8"))
            other = [key for key in facts if saved[key] != facts[key]]
        except (ValueError, KeyError, TypeError) as error:
            message = f"{record}: not the record of a ranking ({error}); delete {out}"
            raise ValueError(message) from error
        if other:
            raise ValueError(
                f"{out}: holds scores of another ranking (of other "
                f"{', '.join(other)}); delete it or choose another"
            )
    elif any(out.glob("scores-*.npy")):
        raise ValueError(f"{out}: has scores but no ranking.json to say of what; delete it")
    else:
        write_json(record, facts)
    found = {}
    for number, rows in enumerate(blocks):
        path = _path(out, number)
        if path.exists():
            try:
                scores = np.load(path)
            except (ValueError, OSError, EOFError) as error:
                raise ValueError(f"{path}: cannot be read ({error}); delete it") from error
            if scores.shape != (len(rows), texts) or scores.dtype != np.float32:
                raise ValueError(
                    f"{path}: {scores.dtype} {scores.shape}, not float32 "
                    f"{(len(rows), texts)}; delete it"
                )
            found[number] = scores
    return found


def _write_block(path: Path, scores: np.ndarray) -> None:
    """The whole file or none."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, scores)
