"""Preparation of one chunk of a corpus, and of all chunks by several processes.

A chunk is a fixed number of items in input order, worked on by one process. A finished chunk is
one or two shard files, named by its number, and, written last, a JSON file, so that an interrupted
run continues. Images go to their file as they come, so that memory does not grow with the chunk.
"""

import hashlib
import io
import json
import multiprocessing
import os
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from m3ae.corpora.items import Drops, Item
from m3ae.corpora.shard_writer import ShardWriter, ragged, ragged_tokens, shard_name
from m3ae.corpora.stored import IMAGE_BYTES
from m3ae.data.images import ImageError, decode, resize_crop, resize_shorter, resized_size, to_array
from m3ae.files import is_unicode, naming, read_json_object, read_regular, write_json

_SHARD_BYTES = 256 * 2**20
_JPEG_SIDE = 65500  # the longest that libjpeg writes


@dataclass(frozen=True)
class Settings:
    """What a worker needs to know about the images and texts."""

    encoding: str
    px: int
    window: tuple[float, float] | None
    min_words: int
    tokenizer: str | None  # a file of the tokenizers library
    fields: bool = False  # whether the shards hold the texts' task fields

    @property
    def chunk_images(self) -> int:
        """Images a chunk: as many as fit a shard, if all are colour; 768 at 288 px."""
        if self.encoding == "original":
            return 512
        return max(16, min(768, _SHARD_BYTES // (3 * self.px * self.px)))


@lru_cache(maxsize=1)
def _load_tokenizer(path: str) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenize(path: str, texts: list[str]) -> list[tuple[list[int], list[int]]]:
    """What `texts.encode` gives, without transformers: 500 MiB less in every worker."""
    encoded = _load_tokenizer(path).encode_batch(texts, add_special_tokens=False)
    return [(text.ids, text.word_ids) for text in encoded]


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
        image = item.image
        data = read_regular(image, IMAGE_BYTES) if isinstance(image, Path) else image.read_bytes()
    except FileNotFoundError as error:
        raise ImageError("missing") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise ImageError("unreadable", str(error)) from error
    image, notes = decode(data, settings.window)
    if settings.encoding == "raw":
        return resize_crop(image, settings.px), notes
    if settings.encoding == "original":
        resized_size(image.size, settings.px)  # too elongated is known only after the resize
        return data, notes
    if max(size := resized_size(image.size, settings.px)) > _JPEG_SIDE:
        resized = f"{image.width} x {image.height} resized to {size[0]} x {size[1]}"
        raise ImageError("too elongated for JPEG", resized)
    pixels = to_array(resize_shorter(image, settings.px))
    out = io.BytesIO()
    shown = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
    Image.fromarray(shown).save(out, "JPEG", quality=90)
    return out.getvalue(), notes


@dataclass
class _Shard:
    """A shard that is being written: the grey or the coloured images of a chunk, or all."""

    path: Path
    channels: int | None
    writer: ShardWriter
    keys: list[str] = field(default_factory=list)  # of images
    texts: list[tuple[int, str, str, str]] = field(default_factory=list)  # image's row, `clean`
    sizes: list[int] = field(default_factory=list)  # bytes of images


def prepare_chunk(
    items: list[Item], index: int, folder: Path, settings: Settings, digest: str
) -> dict[str, Any]:
    """Write the shards of one chunk (a grey and a colour one for raw) and, last, its JSON."""
    with naming(chunk_path(folder, index)):
        return _write_chunk(items, index, folder, settings, digest)


def _write_chunk(
    items: list[Item], index: int, folder: Path, settings: Settings, digest: str
) -> dict[str, Any]:
    drops, notes, lengths = Drops(), Drops(), Counter()
    shards: dict[int | None, _Shard] = {}
    files = []
    try:
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
            if channels not in shards:
                number = index if channels is None else 2 * index + (channels == 3)
                path = folder / shard_name(number)
                shards[channels] = _Shard(path, channels, ShardWriter(path))
            shard = shards[channels]
            shard.writer.append(image)
            shard.texts += [(len(shard.keys), *text) for text in texts]
            shard.keys.append(item.key)
            shard.sizes.append(len(image))
        for channels in sorted(shards, key=lambda c: c or 0):
            files.append(_finish_shard(shards[channels], settings, lengths))
    finally:
        for shard in shards.values():
            shard.writer.close()
    seen = {"images": len(items), "texts": sum(len(item.texts) for item in items)}
    result = {"digest": digest, "files": files, **seen, "dropped": drops.as_dict()}
    result |= {"notes": notes.as_dict(), "lengths": sorted(map(list, lengths.items()))}
    write_json(chunk_path(folder, index), result)
    return result


def chunk_path(folder: Path, index: int) -> Path:
    """The JSON file that says that a chunk is finished."""
    return folder / f"chunk-{index:05d}.json"


def _finish_shard(shard: _Shard, settings: Settings, lengths: Counter) -> dict[str, Any]:
    """Write the rest of a shard, count its texts' lengths (tokens or words) -> manifest entry."""
    texts = [text for _, _, text, _ in shard.texts]
    tensors = {"image_of_text": np.array([row for row, *_ in shard.texts], dtype=np.int64)}
    tensors |= ragged("text", (text.encode() for text in texts))
    tensors |= ragged("text_key", (key.encode() for _, key, _, _ in shard.texts))
    tensors |= ragged("image_key", (key.encode() for key in shard.keys))
    if settings.fields:
        tensors |= ragged("text_fields", (stored.encode() for *_, stored in shard.texts))
    if settings.tokenizer is None:
        lengths.update(len(text.split()) for text in texts)
    else:
        tokens = tokenize(settings.tokenizer, texts)
        lengths.update(len(ids) for ids, _ in tokens)
        tensors |= ragged_tokens(tokens)
    images, channels = len(shard.keys), shard.channels
    if channels is None:
        offsets = np.cumsum([0, *shard.sizes], dtype=np.int64)
        tensors["image_offsets"] = offsets
        written = shard.writer.finish("image_bytes", (int(offsets[-1]),), tensors)
    else:
        shape = (images, channels, settings.px, settings.px)
        written = shard.writer.finish("images", shape, tensors)
    counts = {"images": images, "texts": len(texts), "channels": channels}
    return {"name": shard.path.name, **written, **counts}


Chunk = tuple[int, list[Item], str]  # number, items, digest of their keys, texts and fields


def chunks_of(items: Iterable[Item], settings: Settings) -> Iterator[Chunk]:
    """The items in the portions that are prepared one by one."""
    iterator, size = iter(items), settings.chunk_images
    for index in range(10**9):
        chunk = list(islice(iterator, size))
        if not chunk:
            return
        facts = [(item.key, item.image.name, item.texts, *item.fields) for item in chunk]
        yield index, chunk, hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def come_back(items: list[Item], result: dict[str, Any], settings: Settings) -> int:
    """How many files that were missing when a chunk was prepared are there now."""
    missing = result["dropped"].get("image: missing", {"count": 0})["count"]
    if not missing:
        return 0
    looked_for = (item for item in items if clean(item, settings.min_words, Drops()))
    still = sum(isinstance(i.image, Path) and not i.image.is_file() for i in looked_for)
    return max(0, missing - still) if any(isinstance(i.image, Path) for i in items) else 0


def _finished(
    folder: Path, index: int, items: list[Item], digest: str, settings: Settings
) -> dict[str, Any] | None:
    """The result of a chunk that an earlier run finished and whose files are there, or None.

    None too where images that it lacked have come since.
    """
    path = chunk_path(folder, index)
    if not path.exists():
        return None
    result = read_json_object(path)
    if result.get("digest") != digest:
        said = f"{folder}: begun from other corpus files or another parser (chunk {index} differs)"
        raise ValueError(f"{said}; delete this folder to start again")
    try:
        wanted = {folder / file["name"]: file["bytes"] for file in result["files"]}
        whole = all(p.is_file() and p.stat().st_size == size for p, size in wanted.items())
        return result if whole and not come_back(items, result, settings) else None
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged ({error!r}); delete it") from error


def run_chunks(
    items: Iterable[Item], folder: Path, settings: Settings, workers: int, total: int | None = None
) -> list[dict[str, Any]]:
    """Prepare every chunk that is not there yet; returns the results in input order.

    total: how many items there are at most, for the progress bar.
    """
    results: dict[int, dict[str, Any]] = {}
    with tqdm(desc=folder.stem, unit=" images", total=total) as bar:

        def pending() -> Iterator[Chunk]:
            for index, chunk, digest in chunks_of(items, settings):
                if done := _finished(folder, index, chunk, digest, settings):
                    results[index] = done
                    bar.initial += done["images"]
                    bar.update(done["images"])
                else:
                    yield index, chunk, digest

        for index, result in _results(pending(), folder, settings, workers):
            results[index] = result
            bar.update(result["images"])
    return [results[index] for index in sorted(results)]


def _results(
    pending: Iterator[Chunk], folder: Path, settings: Settings, workers: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and result of each chunk; two a worker are in flight at most: memory stays bounded."""
    if workers == 0:
        for index, chunk, digest in pending:
            yield index, prepare_chunk(chunk, index, folder, settings, digest)
        return
    context = multiprocessing.get_context("spawn")  # fork is unsafe once threads run
    with ProcessPoolExecutor(workers, context, _start_worker) as pool:
        flying: deque = deque()
        try:
            for index, chunk, digest in pending:
                job = pool.submit(prepare_chunk, chunk, index, folder, settings, digest)
                flying.append((index, job))
                if len(flying) >= 2 * workers:
                    first, job = flying.popleft()
                    yield first, job.result()
            while flying:
                first, job = flying.popleft()
                yield first, job.result()
        except BrokenProcessPool as error:
            again = "the same command, with fewer --workers, continues"
            raise ValueError(f"a worker process was killed (out of memory?); {again}") from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _start_worker() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # processes are the parallelism here
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for ever, or write beside the next run's."""
    multiprocessing.parent_process().join()
    os._exit(1)
