"""Preparation of one chunk of a corpus, and of all chunks by several processes.

A chunk is a fixed number of items in input order, worked on by one process. A finished chunk is
some shard files, named by its number, and, written last, a JSON file, so that an interrupted
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
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from m3ae.corpora.items import Drops, Item, Stored
from m3ae.corpora.shard_writer import ShardWriter, ragged, shard_name
from m3ae.corpora.stored import IMAGE_BYTES, on_disk
from m3ae.data.dicom import is_dicom
from m3ae.data.images import (
    ImageError,
    as_png,
    decode,
    resize_crop,
    resize_shorter,
    resized_size,
    to_array,
)
from m3ae.files import is_unicode, naming, read_json_object, read_regular, write_json

_SHARD_BYTES = 256 * 10**6  # of images, at most, unless one image alone is larger
_CHUNK_IMAGES = 3072  # at most: grey ones of 288 px then fill a shard
_JPEG_SIDE = 65500  # the longest that libjpeg writes


@dataclass(frozen=True)
class Settings:
    """What a worker needs to know about the images and texts."""

    encoding: str
    px: int
    window: tuple[float, float] | None
    min_words: int
    fields: bool = False  # whether the shards hold the texts' task fields
    exif: bool = False  # as `images.decode`
    max_pixels: int | None = None

    @property
    def chunk_images(self) -> int:
        """Images a chunk: as many grey ones as fit a shard; coloured ones may fill three."""
        return max(16, min(_CHUNK_IMAGES, _SHARD_BYTES // (self.px * self.px)))

    @property
    def version_1_images(self) -> int:
        """Images a chunk of a preparation that an earlier version began."""
        if self.encoding == "original":
            return 512
        return max(16, min(768, 2**28 // (3 * self.px * self.px)))


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


def _bytes_of(place: Path | Stored) -> bytes:
    return read_regular(place, IMAGE_BYTES) if isinstance(place, Path) else place.read_bytes()


def _read_image(place: Path | Stored) -> tuple[bytes, list[str]]:
    """The bytes of an image, and a note where its name is of another case; raises ImageError."""
    try:
        try:
            return _bytes_of(place), []
        except FileNotFoundError:
            found = on_disk(place)
            if found == place:
                raise
            return _bytes_of(found), ["found under a name of another case"]
    except FileNotFoundError as error:
        raise ImageError("missing") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the name
        raise ImageError("unreadable", str(error)) from error


def _encode_image(item: Item, settings: Settings) -> tuple[np.ndarray | bytes, list[str]]:
    """Pixels (C, px, px) or encoded bytes of an image, and notes; raises ImageError."""
    data, renamed = _read_image(item.image)
    image, notes = decode(data, settings.window, settings.exif, settings.max_pixels)
    notes = [*notes, *renamed]
    if settings.encoding == "raw":
        return resize_crop(image, settings.px), notes
    if settings.encoding == "original":
        resized_size(image.size, settings.px)  # too elongated is known only after the resize
        return as_png(image) if is_dicom(data) else data, notes  # no header gets into shards
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
    """A shard that is being written: grey or coloured images of a chunk, or both."""

    path: Path
    channels: int | None
    writer: ShardWriter
    keys: list[str] = field(default_factory=list)  # of images
    texts: list[tuple[int, str, str, str]] = field(default_factory=list)  # image's row, `clean`
    sizes: list[int] = field(default_factory=list)  # bytes of images
    size: int = 0  # bytes of all images

    def add(self, key: str, image: np.ndarray | bytes, texts: list[tuple[str, str, str]]) -> None:
        """Append an image with its texts."""
        self.writer.append(image)
        self.texts += [(len(self.keys), *text) for text in texts]
        self.keys.append(key)
        self.sizes.append(memoryview(image).nbytes)
        self.size += self.sizes[-1]

    def finish(self, settings: Settings, lengths: Counter) -> dict[str, Any]:
        """Write the rest, count the texts' lengths in words -> manifest entry."""
        texts = [text for _, _, text, _ in self.texts]
        lengths.update(len(text.split()) for text in texts)
        tensors = {"image_of_text": np.array([row for row, *_ in self.texts], dtype=np.int64)}
        tensors |= ragged("text", (text.encode() for text in texts))
        tensors |= ragged("text_key", (key.encode() for _, key, _, _ in self.texts))
        tensors |= ragged("image_key", (key.encode() for key in self.keys))
        if settings.fields:
            tensors |= ragged("text_fields", (stored.encode() for *_, stored in self.texts))
        images, channels = len(self.keys), self.channels
        if channels is None:
            offsets = np.cumsum([0, *self.sizes], dtype=np.int64)
            tensors["image_offsets"] = offsets
            written = self.writer.finish("image_bytes", (int(offsets[-1]),), tensors)
        else:
            shape = (images, channels, settings.px, settings.px)
            written = self.writer.finish("images", shape, tensors)
        counts = {"images": images, "texts": len(texts), "channels": channels}
        return {"name": self.path.name, **written, **counts}


class _ChunkShards:
    """The shards of a chunk: for raw, grey and coloured ones; a full one is followed by another."""

    def __init__(self, index: int, folder: Path, settings: Settings) -> None:
        self.index, self.folder, self.settings = index, folder, settings
        self.lengths: Counter[int] = Counter()  # words of texts
        self._open: dict[int | None, _Shard] = {}  # by channels
        self._full: dict[int | None, list[dict[str, Any]]] = {}

    def add(self, key: str, image: np.ndarray | bytes, texts: list[tuple[str, str, str]]) -> None:
        """Append an image with its texts to the shard that it belongs in."""
        channels = len(image) if self.settings.encoding == "raw" else None
        shard = self._open.get(channels)
        full = self._full.setdefault(channels, [])
        if shard and shard.size + memoryview(image).nbytes > _SHARD_BYTES:
            full.append(shard.finish(self.settings, self.lengths))
            shard = None
        if shard is None:
            number = self.index if channels is None else 2 * self.index + (channels == 3)
            path = self.folder / shard_name(number, len(full))
            shard = self._open[channels] = _Shard(path, channels, ShardWriter(path))
        shard.add(key, image, texts)

    def finish(self) -> list[dict[str, Any]]:
        """Finish all; returns the entries of a manifest, grey ones first."""
        files = []
        for channels in sorted(self._full, key=lambda c: c or 0):
            files += self._full[channels]
            files.append(self._open[channels].finish(self.settings, self.lengths))
        return files

    def close(self) -> None:
        """Close what was not finished as it is."""
        for shard in self._open.values():
            shard.writer.close()


def prepare_chunk(
    items: list[Item], index: int, folder: Path, settings: Settings, digest: str
) -> dict[str, Any]:
    """Write the shards of one chunk (a grey and a colour one for raw) and, last, its JSON."""
    with naming(chunk_path(folder, index)):
        return _write_chunk(items, index, folder, settings, digest)


def _write_chunk(
    items: list[Item], index: int, folder: Path, settings: Settings, digest: str
) -> dict[str, Any]:
    drops, notes = Drops(), Drops()
    shards = _ChunkShards(index, folder, settings)
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
            shards.add(item.key, image, texts)
        files = shards.finish()
    finally:
        shards.close()
    counts = {"images": len(items), "texts": sum(len(item.texts) for item in items)}
    result = {"digest": digest, "files": files, **counts, "dropped": drops.as_dict()}
    result |= {"notes": notes.as_dict(), "lengths": sorted(map(list, shards.lengths.items()))}
    write_json(chunk_path(folder, index), result)
    return result


def chunk_path(folder: Path, index: int) -> Path:
    """The JSON file that says that a chunk is finished."""
    return folder / f"chunk-{index:05d}.json"


Chunk = tuple[int, list[Item], str]  # number, items, digest of their keys, texts and fields


def chunks_of(items: Iterable[Item], size: int) -> Iterator[Chunk]:
    """The items in the portions, of `size` images, that are prepared one by one."""
    iterator = iter(items)
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
    files = (item.image for item in looked_for if isinstance(item.image, Path))
    still = sum(map(_is_missing, files))
    return max(0, missing - still) if any(isinstance(i.image, Path) for i in items) else 0


def _is_missing(file: Path) -> bool:
    """Whether it would be dropped as missing, rather than as a name that no file can have."""
    try:
        file.stat()
    except FileNotFoundError:
        return on_disk(file) == file
    except (OSError, ValueError):
        pass
    return False


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
        wrong = f"{folder}: begun from other corpus files or another parser (chunk {index} differs)"
        raise ValueError(f"{wrong}; delete this folder to start again")
    try:
        wanted = {folder / file["name"]: file["bytes"] for file in result["files"]}
        whole = all(p.is_file() and p.stat().st_size == size for p, size in wanted.items())
        return result if whole and not come_back(items, result, settings) else None
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged ({error!r}); delete it") from error


def run_chunks(
    items: Iterable[Item],
    folder: Path,
    settings: Settings,
    workers: int,
    size: int,
    total: int | None = None,
) -> list[dict[str, Any]]:
    """Prepare every chunk that is not there yet; returns the results in input order.

    size: images a chunk. total: how many items there are at most, for the progress bar.
    """
    results: dict[int, dict[str, Any]] = {}
    with tqdm(desc=folder.stem, unit=" images", total=total) as bar:

        def pending() -> Iterator[Chunk]:
            for index, chunk, digest in chunks_of(items, size):
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
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for ever, or write beside the next run's."""
    multiprocessing.parent_process().join()
    os._exit(1)
