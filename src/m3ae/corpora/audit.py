"""What two sets of images share: their ids, bytes, pictures and texts (data_prep/audit.py)."""

import argparse
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from m3ae.corpora.near_duplicates import (
    Pictures,
    blocks,
    near_images,
    near_texts,
    normal_text,
    picture,
)
from m3ae.corpora.prepare import finished_splits
from m3ae.data.exclusions import IMAGE_SUFFIXES, image_stem
from m3ae.data.images import ImageError, decode
from m3ae.data.shards import WITH_FIELDS, Shards, row_bytes
from m3ae.files import need

KINDS = ("bytes", "id", "image", "text", "near-text", "id-window")  # the surest first
NEAR_TEXT_WORDS = 5


# ------------------------------------------------------------------ inputs


@dataclass(frozen=True)
class Entry:
    """An image: where it lies (a file, or a row of a shard of a split), its id, its texts."""

    id: str
    folder: Path
    at: tuple[int, int] | None = None
    texts: tuple[str, ...] = ()
    number: int = -1  # among the images of all inputs

    @property
    def place(self) -> tuple[Path, Any]:
        """The same for the same image, however its folder was written."""
        return self.folder, self.at

    def read(self) -> tuple[bytes, Image.Image]:
        """The stored bytes and the image; raises ImageError or OSError."""
        if self.at is None:
            data = self.folder.read_bytes()
            return data, decode(data)[0]
        split = opened(self.folder)
        shard, row = split.shard(self.at[0]), self.at[1]
        if split.manifest["encoding"] == "raw":
            pixels = np.array(shard["images"][row])
            grey = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
            return pixels.tobytes(), Image.fromarray(grey)
        data, window = row_bytes(shard, "image", row), split.manifest["options"].get("window")
        return data, decode(data, tuple(window) if window else None)[0]


opened = lru_cache(maxsize=16)(Shards)


def read_split(folder: Path, questions: bool) -> Iterator[Entry]:
    """The images of a prepared split."""
    split = opened(folder)
    texts: dict[int, list[str]] = defaultdict(list)
    if questions or split.manifest["kind"] != WITH_FIELDS:
        for i, j in enumerate(split.image_of_text.tolist()):
            texts[j].append(split.text(i))
    number = 0
    for k, file in enumerate(split.files):
        for row in range(file["images"]):
            yield Entry(split.image_key(number), folder, (k, row), tuple(texts.get(number, ())))
            number += 1


def read_inputs(folders: Sequence[Path], ids: str, questions: bool) -> list[Entry]:
    """Every image of the inputs, each once."""
    entries: dict[Any, Entry] = {}
    for given in folders:
        folder = need(given, "images, a prepared split or a prepared corpus").resolve()
        splits = [folder] if (folder / "manifest.json").exists() else finished_splits(folder)
        found = [entry for split in splits for entry in read_split(split, questions)]
        if not splits:
            paths = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES]
            stem = ids == "stem"
            names = [path.stem if stem else path.relative_to(folder).as_posix() for path in paths]
            found = [Entry(name, path) for name, path in zip(names, paths, strict=True)]
            if not found:
                raise FileNotFoundError(f"{given}: no image and no prepared split in it")
        entries.update((entry.place, entry) for entry in found)
    return list(entries.values())


# ------------------------------------------------------------------ what is compared


@dataclass
class Corpus:
    """Images that could be read, their digests and, where asked for, pictures."""

    entries: list[Entry]
    digests: list[str]
    pictures: Pictures | None = None

    def part(self, numbers: set[int]) -> "Corpus":
        """The entries of these numbers."""
        rows = [row for row, entry in enumerate(self.entries) if entry.number in numbers]
        pictures = self.pictures and self.pictures[torch.tensor(rows, dtype=torch.long)]
        digests = [self.digests[row] for row in rows]
        return Corpus([self.entries[row] for row in rows], digests, pictures)


def describe(entry: Entry, pictures: bool) -> tuple[str, Any] | str:
    """Digest of the stored bytes and the picture of an image; or what is wrong with it."""
    try:
        data, image = entry.read()
        return hashlib.sha256(data).hexdigest(), picture(image) if pictures else None
    except (ImageError, OSError) as error:
        return f"{entry.id} ({entry.folder}): {error}"


def read_corpus(
    entries: list[Entry], label: str, pictures: bool, workers: int, unreadable: list[str]
) -> Corpus:
    """Read every image; unreadable ones are left out and named."""
    todo, kept, digests, pixels, boxes = partial(describe, pictures=pictures), [], [], [], []
    pool = ProcessPoolExecutor(workers, get_context("spawn")) if workers else None
    try:
        results = pool.map(todo, entries, chunksize=32) if pool else map(todo, entries)
        for entry, result in zip(entries, tqdm(results, label, len(entries)), strict=True):
            if isinstance(result, str):
                unreadable.append(result)
                continue
            kept.append(entry)
            digests.append(result[0])
            if pictures:
                pixels.append(result[1][0])
                boxes.append(result[1][1])
    finally:
        if pool:
            pool.shutdown(cancel_futures=True)
    if not pixels:
        return Corpus(kept, digests)
    stacked = Pictures(torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.stack(boxes)))
    return Corpus(kept, digests, stacked)


def read_sides(
    given: Sequence[Sequence[Path]], ids: str, questions: bool, pictures: bool, workers: int
) -> tuple[list[Corpus], list[Entry], list[str]]:
    """The corpora of two sides, the entries of both by number, and what cannot be read.

    An image of both sides is read once. Raises ValueError where none of a side can be read, or for
    an id of the second that an exclusion list cannot hold.
    """
    sides = [read_inputs(folders, ids, questions) for folders in given]
    for name in (entry.id for entry in sides[1]):
        broken = name.startswith("#") or name != name.strip() or "\t" in name
        if broken or name.splitlines() != [name]:
            raise ValueError(f"image id {name!r}: no list can hold it; rename the image")
    places = {place: n for n, place in enumerate(dict.fromkeys(e.place for e in chain(*sides)))}
    sides = [[replace(entry, number=places[entry.place]) for entry in side] for side in sides]
    entries = list({entry.number: entry for entry in chain(*sides)}.values())
    unreadable: list[str] = []
    every = read_corpus(entries, "images", pictures, workers, unreadable)
    corpora = [every.part({entry.number for entry in side}) for side in sides]
    for corpus, name in zip(corpora, ("--keep", "--against"), strict=True):
        if not corpus.entries:
            raise ValueError(f"{name}: none of its images can be read: {unreadable[0]}")
    return corpora, entries, unreadable


def medpix_numbers(entries: Sequence[Entry]) -> np.ndarray:
    """N of the id synpicN, int64 (images,); -1 for other ids."""
    found = [re.fullmatch(r"synpic(\d{1,9})", image_stem(entry.id)) for entry in entries]
    return np.array([int(match.group(1)) if match else -1 for match in found], dtype=np.int64)


# ------------------------------------------------------------------ matches

# A match: row in --against, row in --keep, score in [0, 1], remark.
Match = tuple[int, int, float, str]


def same(keep: Iterable[Any], against: Iterable[Any]) -> Iterator[Match]:
    """Rows with the same value; None matches nothing."""
    rows = defaultdict(list)
    for j, value in enumerate(keep):
        if value is not None:
            rows[value].append(j)
    for i, value in enumerate(against):
        yield from ((i, j, 1.0, "") for j in rows.get(value, ()))


def near_ids(keep: np.ndarray, against: np.ndarray, window: int) -> Iterator[Match]:
    """MedPix numbers at most `window` apart, but not the same."""
    order = np.argsort(keep)
    low = np.searchsorted(keep[order], against - window)
    high = np.searchsorted(keep[order], against + window, side="right")
    for i in np.flatnonzero((against >= 0) & (high > low)):
        for j in order[low[i] : high[i]]:
            apart = abs(int(against[i] - keep[j]))
            if keep[j] >= 0 and apart:
                yield int(i), int(j), 1 / (1 + apart), f"numbers {apart} apart"


def rows_of_texts(entries: Sequence[Entry]) -> dict[str, list[int]]:
    """Images of each normalised text."""
    rows: dict[str, list[int]] = defaultdict(list)
    for i, entry in enumerate(entries):
        for text in {normal_text(text) for text in entry.texts} - {""}:
            rows[text].append(i)
    return rows


def text_matches(
    keep: Corpus, against: Corpus, threshold: float, stock: int, facts: dict[str, Any]
) -> dict[str, list[Match]]:
    """Matches by the same and by nearly the same text."""
    theirs, ours = (rows_of_texts(corpus.entries) for corpus in (keep, against))
    counts = {"keep": len(theirs), "against": len(ours)}
    both = [*theirs.items(), *ours.items()]
    phrases = {text for text, images in both if len(images) > stock}
    for rows in (theirs, ours):
        for text in phrases & rows.keys():
            del rows[text]
    examples = sorted(phrases)[:5]
    facts["texts"] = {**counts, "stock": len(phrases), "stock_examples": examples}
    equal = [
        (i, j, 1.0, f"both: {text}")
        for text in ours
        for i in ours[text]
        for j in theirs.get(text, ())
    ]
    first, second = (
        [text for text in rows if len(text.split()) >= NEAR_TEXT_WORDS] for rows in (theirs, ours)
    )
    parts = near_texts(first, second, threshold)
    found = tqdm(parts, "near texts", len(blocks(len(second), len(first))))
    near = [
        (i, j, score, f"{second[b]} | {first[a]}")
        for part in found
        for b, a, score in part
        for i in ours[second[b]]
        for j in theirs[first[a]]
    ]
    return {"text": equal, "near-text": near}


def find_matches(
    keep: Corpus, against: Corpus, args: argparse.Namespace, facts: dict[str, Any]
) -> dict[str, list[Match]]:
    """The matches of each kind in `args.kinds`; a pair found from both ends once."""
    sides = (keep.entries, against.entries)
    places = [np.array([entry.number for entry in entries]) for entries in sides]
    ids = [[image_stem(entry.id) for entry in entries] for entries in sides]
    found: dict[str, Iterable[Match]] = {
        "bytes": same(keep.digests, against.digests),
        "id": same(*ids),
        "id-window": near_ids(*map(medpix_numbers, sides), args.window),
    }
    if "image" in args.kinds:
        parts = near_images(keep.pictures, against.pictures, *places, args.threshold)
        total = len(blocks(len(against.entries), len(keep.entries)))
        found["image"] = (
            (i, j, score, f"score {score:.3f}")
            for part in tqdm(parts, "near images", total)
            for i, j, score in part
        )
    if {"text", "near-text"} & set(args.kinds):
        found |= text_matches(keep, against, args.text_threshold, args.stock, facts)
    return {kind: once(found[kind], *places) for kind in KINDS if kind in args.kinds}


def once(matches: Iterable[Match], keep: np.ndarray, against: np.ndarray) -> list[Match]:
    """Best match of each pair as (image left out, image kept, score, remark), by number of entry.

    An image is no match of itself. Of two images that both stand on both sides, the later one is
    left out, from whichever end the pair was found.
    """
    both = set(keep.tolist()) & set(against.tolist())
    best: dict[tuple[int, int], Match] = {}
    for i, j, score, remark in matches:
        left, kept = int(against[i]), int(keep[j])
        if left < kept and left in both and kept in both:
            left, kept = kept, left
        if left != kept and score > best.get((left, kept), (0, 0, -1.0))[2]:
            best[left, kept] = (left, kept, score, remark)
    return [best[pair] for pair in sorted(best)]
