"""Preparation of one chunk of a corpus, and of all chunks by several processes.

A chunk is a fixed number of items in input order, worked on by one process. A finished chunk is
one or two shard files and, written last, a JSON file, so that an interrupted run continues.
"""

import hashlib
import io
import json
import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

from m3ae.data import shards
from m3ae.data.images import ImageError, decode, resize_crop, resize_shorter, resized_size, to_array

_EXAMPLES = 20
_SHARD_BYTES = 256 * 2**20


class Stored(Protocol):
    """An image inside another file; cheap to pickle."""

    name: str

    def read_bytes(self) -> bytes:
        """The encoded image."""


@dataclass(frozen=True)
class Item:
    """An image with its texts. `image_id` is what --exclude lists name it by (default: key).

    `fields`: nothing, or for each text (a question) its task fields, JSON-able; among them
    `question_id`, by which the text's key ends.
    """

    key: str
    image: Path | Stored
    texts: tuple[str, ...]
    image_id: str = ""
    fields: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.fields and len(self.fields) != len(self.texts):
            raise ValueError(f"{self.key}: {len(self.texts)} texts, {len(self.fields)} fields")


@dataclass
class Drops:
    """What was left out or remarkable: a count and the first examples for each reason."""

    counts: Counter = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """Count one more; the first 20 examples of a reason are kept."""
        self.counts[reason] += count
        known = self.examples.setdefault(reason, [])
        if len(known) < _EXAMPLES:
            # Undecodable bytes of a file come as lone surrogates, which no file can be given.
            known.append(example.encode("utf-8", "backslashreplace").decode())

    def merge(self, other: dict[str, Any]) -> None:
        """Add what another one's `as_dict` holds."""
        for reason, entry in other.items():
            self.counts[reason] += entry["count"]
            known = self.examples.setdefault(reason, [])
            known += entry["examples"][: _EXAMPLES - len(known)]

    def as_dict(self) -> dict[str, Any]:
        """Reason -> count and examples, sorted by reason."""
        return {reason: {"count": self.counts[reason], "examples": self.examples[reason]}
                for reason in sorted(self.counts)}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What a worker needs to know about the images and texts."""

    encoding: str
    px: int
    window: tuple[float, float] | None
    min_words: int
    tokenizer: str | None  # a hub id or folder
    fields: bool = False  # whether the shards hold the texts' task fields

    @property
    def chunk_images(self) -> int:
        """Images a chunk: as many as fit a shard, if all are colour; 768 at 288 px."""
        if self.encoding == "original":
            return 512
        return max(16, min(768, _SHARD_BYTES // (3 * self.px * self.px)))


# ------------------------------------------------------------------ one chunk (in a worker)


@lru_cache(maxsize=1)
def _load_tokenizer(name: str) -> Any:
    from m3ae.data.texts import load_tokenizer  # transformers takes seconds to import

    return load_tokenizer(name)


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates, the mark of bytes that were not UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def clean(item: Item, min_words: int, drops: Drops) -> list[tuple[str, str, str]]:
    """(key, text, fields as JSON) of the texts that stay (reference, data fact 20).

    White space is collapsed, texts of fewer than `min_words` words are left out, and so are those
    that no file can be given: lone surrogates in the text or in its fields.
    """
    kept = []
    for index, text in enumerate(item.texts):
        fields = item.fields[index] if item.fields else {}
        key, text = f"{item.key}/{fields.get('question_id', index)}", " ".join(text.split())
        stored = json.dumps(fields, ensure_ascii=False, sort_keys=True)
        if not is_unicode(text + stored):
            drops.add("text: not UTF-8", key)
        elif len(text.split()) < min_words:
            drops.add(f"text: fewer than {min_words} words", f"{key}: {text}")
        else:
            kept.append((key, text, stored))
    return kept


def _encode_image(item: Item, settings: Settings) -> tuple[np.ndarray | bytes, list[str]]:
    """Pixels (C, px, px) or encoded bytes of an image, and notes; raises ImageError."""
    try:
        data = item.image.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        if isinstance(error, FileNotFoundError):
            raise ImageError("missing") from error
        raise ImageError("unreadable", str(error)) from error
    image, notes = decode(data, settings.window)
    if settings.encoding == "raw":
        return resize_crop(image, settings.px), notes
    if settings.encoding == "original":
        resized_size(image.size, settings.px)  # too elongated is known only after the resize
        return data, notes
    pixels = to_array(resize_shorter(image, settings.px))
    out = io.BytesIO()
    grey = len(pixels) == 1
    Image.fromarray(pixels[0] if grey else pixels.transpose(1, 2, 0)).save(out, "JPEG", quality=90)
    return out.getvalue(), notes


def prepare_chunk(
    items: list[Item], index: int, folder: Path, settings: Settings, digest: str
) -> dict[str, Any]:
    """Write the shards of one chunk (a grey and a colour one for raw) and, last, its JSON."""
    drops, notes = Drops(), Drops()
    groups: dict[int | None, list[tuple[Item, Any, list[tuple[str, str, str]]]]] = {}
    for item in items:
        texts = clean(item, settings.min_words, drops)
        if not texts:
            drops.add("image: no text left", item.key)
            continue
        try:
            image, seen = _encode_image(item, settings)
        except ImageError as error:
            drops.add(f"image: {error.reason}", f"{item.key} ({item.image.name}): {error}")
            drops.add("text: its image was left out", item.key, len(texts))
            continue
        for note in seen:
            notes.add(note, item.key)
        channels = len(image) if settings.encoding == "raw" else None
        groups.setdefault(channels, []).append((item, image, texts))
    lengths: Counter = Counter()
    files = []
    for channels in sorted(groups, key=lambda c: c or 0):
        path = folder / f"chunk-{index:05d}-{channels or 0}.safetensors"
        tensors = _tensors(groups[channels], settings, lengths)
        entry = {"name": path.name, **shards.write_shard(path, tensors)}
        counts = {"images": len(groups[channels]), "texts": len(tensors["image_of_text"])}
        files.append({**entry, **counts, "channels": channels})
    result = {"digest": digest, "files": files, "images": len(items),
              "texts": sum(len(item.texts) for item in items), "dropped": drops.as_dict(),
              "notes": notes.as_dict(), "lengths": sorted(lengths.items())}  # fmt: skip
    shards.write_json(folder / f"chunk-{index:05d}.json", result)
    return result


def _tensors(
    rows: list[tuple[Item, Any, list[tuple[str, str, str]]]], settings: Settings, lengths: Counter
) -> dict[str, np.ndarray]:
    """The tensors of one shard; adds the texts' lengths, in tokens or else words, to `lengths`."""
    texts = [text for _, _, kept in rows for _, text, _ in kept]
    keys = [key for _, _, kept in rows for key, _, _ in kept]
    owners = [row for row, (_, _, kept) in enumerate(rows) for _ in kept]
    images = [image for _, image, _ in rows]
    tensors = {"image_of_text": np.array(owners, dtype=np.int64)}
    tensors |= shards.ragged("text", (text.encode() for text in texts))
    tensors |= shards.ragged("text_key", (key.encode() for key in keys))
    tensors |= shards.ragged("image_key", (item.key.encode() for item, _, _ in rows))
    if settings.fields:
        fields = (stored.encode() for _, _, kept in rows for _, _, stored in kept)
        tensors |= shards.ragged("text_fields", fields)
    tensors |= {"images": np.stack(images)} if settings.encoding == "raw" else (
        shards.ragged("image", images))  # fmt: skip
    if settings.tokenizer is None:
        lengths.update(len(text.split()) for text in texts)
        return tensors
    from m3ae.data.texts import encode

    tokens = encode(_load_tokenizer(settings.tokenizer), texts)
    lengths.update(len(ids) for ids, _ in tokens)
    return tensors | shards.ragged_tokens(tokens)


# ------------------------------------------------------------------ all chunks


def _chunks(items: Iterable[Item], size: int) -> Iterator[tuple[int, list[Item], str]]:
    """Number, items and a digest of keys, texts and fields of each chunk."""
    iterator = iter(items)
    for index in range(10**9):
        chunk = list(islice(iterator, size))
        if not chunk:
            return
        facts = json.dumps([(item.key, item.image.name, item.texts, *item.fields)
                            for item in chunk])  # fmt: skip
        yield index, chunk, hashlib.sha256(facts.encode()).hexdigest()


def _finished(folder: Path, index: int, digest: str) -> dict[str, Any] | None:
    """The result of a chunk that an earlier run finished, or None."""
    path = folder / f"chunk-{index:05d}.json"
    if not path.exists():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    if result["digest"] != digest:
        raise ValueError(f"{folder}: begun from other corpus files or another parser (chunk "
                         f"{index} differs); delete this folder to start again")  # fmt: skip
    return result


def run_chunks(
    items: Iterable[Item], folder: Path, settings: Settings, workers: int
) -> list[dict[str, Any]]:
    """Prepare every chunk that is not there yet; returns the results in input order."""
    results: dict[int, dict[str, Any]] = {}
    with tqdm(desc=folder.stem, unit=" images") as bar:
        todo: Iterator[tuple[int, list[Item], str]] = iter(_chunks(items, settings.chunk_images))

        def pending() -> Iterator[tuple[int, list[Item], str]]:
            for index, chunk, digest in todo:
                done = _finished(folder, index, digest)
                if done is None:
                    yield index, chunk, digest
                else:
                    results[index] = done
                    bar.initial += done["images"]
                    bar.update(done["images"])

        def collect(index: int, result: dict[str, Any]) -> None:
            results[index] = result
            bar.update(result["images"])

        if workers == 0:
            for index, chunk, digest in pending():
                collect(index, prepare_chunk(chunk, index, folder, settings, digest))
        else:
            _run_parallel(pending(), collect, folder, settings, workers)
    return [results[index] for index in sorted(results)]


def _run_parallel(
    pending: Iterator[tuple[int, list[Item], str]],
    collect: Callable[[int, dict[str, Any]], None],
    folder: Path,
    settings: Settings,
    workers: int,
) -> None:
    """At most two chunks a worker are in flight, so that memory stays bounded."""
    context = multiprocessing.get_context("spawn")  # fork is unsafe once threads run
    with ProcessPoolExecutor(workers, context, _start_worker) as pool:
        flying: deque = deque()
        try:
            for index, chunk, digest in pending:
                job = pool.submit(prepare_chunk, chunk, index, folder, settings, digest)
                flying.append((index, job))
                if len(flying) >= 2 * workers:
                    first, job = flying.popleft()
                    collect(first, job.result())
            while flying:
                first, job = flying.popleft()
                collect(first, job.result())
        except BrokenProcessPool as error:
            raise ValueError("a worker process was killed (out of memory?); the same command, "
                             "with fewer --workers, continues") from error  # fmt: skip
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are the parallelism here
