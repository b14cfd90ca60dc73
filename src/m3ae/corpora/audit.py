"""What two sets of images share: their ids, bytes, pictures and texts (data_prep/audit.py)."""

import hashlib
import re
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from m3ae.corpora import near_duplicates as near
from m3ae.corpora.audit_work import PictureFile, StoredPictures, near_images
from m3ae.corpora.match_kinds import KINDS, MOST_MATCHES
from m3ae.corpora.prepare import finished_splits
from m3ae.data.exclusions import image_files, image_stem
from m3ae.data.images import ImageError, decode
from m3ae.data.shards import WITH_FIELDS, Shards, row_bytes
from m3ae.files import need

NEAR_TEXT_WORDS = 5
SMALL_PX = 224  # of prepared splits: fewer twins are found in them


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

    @property
    def window(self) -> tuple[float, float] | None:
        """The grey values that its split was prepared with."""
        window = self.at and opened(self.folder).manifest["options"].get("window")
        return tuple(window) if window else None

    def stored(self) -> np.ndarray | bytes:
        """The stored bytes, or pixels of a raw shard; raises OSError."""
        if self.at is None:
            return self.folder.read_bytes()
        split = opened(self.folder)
        shard, row = split.shard(self.at[0]), self.at[1]
        raw = split.manifest["encoding"] == "raw"
        return np.array(shard["images"][row]) if raw else row_bytes(shard, "image", row)

    def image(self, stored: np.ndarray | bytes | None = None) -> Image.Image:
        """The image of what is stored; raises ImageError or OSError."""
        stored = self.stored() if stored is None else stored
        if isinstance(stored, bytes):
            return decode(stored, self.window)[0]
        return Image.fromarray(stored[0] if len(stored) == 1 else stored.transpose(1, 2, 0))


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


def read_inputs(folders: Sequence[Path], stem: bool, questions: bool) -> list[Entry]:
    """Every image of the inputs, each once."""
    entries: dict[Any, Entry] = {}
    for given in folders:
        folder = need(given, "images, a prepared split or a prepared corpus").resolve()
        splits = [folder] if (folder / "manifest.json").exists() else finished_splits(folder)
        found = [entry for split in splits for entry in read_split(split, questions)]
        if not splits:
            paths = image_files(folder)
            stems = Counter(path.stem for path in paths)
            # A stem that several files have would be read as all of them, or as none.
            names = [
                path.stem if stem and stems[path.stem] == 1 else path.relative_to(folder).as_posix()
                for path in paths
            ]
            found = [Entry(name, path) for name, path in zip(names, paths, strict=True)]
            if not found:
                raise FileNotFoundError(f"{given}: no image and no prepared split in it")
        entries.update((entry.place, entry) for entry in found)
    return list(entries.values())


@dataclass
class Corpus:
    """Images that could be read, their digests and, where asked for, pictures."""

    entries: list[Entry]
    digests: list[str]
    pictures: StoredPictures | None = None

    def part(self, numbers: set[int]) -> "Corpus":
        """The entries of these numbers."""
        rows = [row for row, entry in enumerate(self.entries) if entry.number in numbers]
        pictures = self.pictures
        if pictures:
            pictures = replace(pictures, rows=pictures.rows[torch.tensor(rows, dtype=torch.long)])
        digests = [self.digests[row] for row in rows]
        return Corpus([self.entries[row] for row in rows], digests, pictures)


known: set[bytes] = set()  # keys of pictures that need no reading, in each process


def described(entry: Entry, pictures: bool) -> tuple[str, bytes, Any] | str:
    """Digest of the stored bytes, key of the picture, and this unless known; or what is wrong."""
    try:
        stored = entry.stored()
        digest = hashlib.sha256(stored)
        hexadecimal = digest.hexdigest()
        digest.update(repr(entry.window).encode())
        key = digest.digest()
        made = near.picture(entry.image(stored)) if pictures and key not in known else None
        return hexadecimal, key, made
    except (ImageError, OSError) as error:
        return f"{entry.id} ({entry.folder}): {error}"


def read_corpus(
    entries: list[Entry], folder: Path | None, workers: int
) -> tuple[Corpus, list[str]]:
    """Read every image; unreadable ones are left out and named. Pictures go to the folder."""
    todo, unreadable, kept, found = partial(described, pictures=folder is not None), [], [], []
    file = PictureFile(folder) if folder else None
    keys = set(file.rows) if file else set()
    if keys:
        print(f"pictures: {len(keys)} made before")
    spawn = get_context("spawn")
    pool = ProcessPoolExecutor(workers, spawn, known.update, (keys,)) if workers else None
    known.update(keys)
    try:
        results = pool.map(todo, entries, chunksize=32) if pool else map(todo, entries)
        for entry, result in zip(entries, tqdm(results, "images", len(entries)), strict=True):
            if isinstance(result, str):
                unreadable.append(result)
                continue
            kept.append(entry)
            found.append(result[:2])
            if file and result[2]:
                file.add(result[1], *result[2])
    finally:
        known.clear()
        if pool:
            pool.shutdown(cancel_futures=True)
        if file:
            file.close()
    pictures = file.of([key for _, key in found]) if file else None
    return Corpus(kept, [digest for digest, _ in found], pictures), unreadable


def read_sides(args: Namespace, folder: Path) -> tuple[list[Corpus], list[Entry], list[str]]:
    """The corpora of --keep and --against, all entries by number, and what cannot be read.

    An image of both sides is read once; pictures are kept in the folder. Raises ValueError where
    none of a side can be read, or for an id of the second that an exclusion list cannot hold.
    """
    given, stem = (args.keep, args.against), args.ids == "stem"
    sides = [read_inputs(folders, stem, args.questions) for folders in given]
    for name in (entry.id for entry in sides[1]):
        whole = name == name.strip() and name.splitlines() == [name]
        if not whole or name.startswith("#") or "\t" in name:
            raise ValueError(f"image id {name!r}: no list can hold it; rename the image")
    places = {place: n for n, place in enumerate(dict.fromkeys(e.place for e in chain(*sides)))}
    sides = [[replace(entry, number=places[entry.place]) for entry in side] for side in sides]
    entries = list({entry.number: entry for entry in chain(*sides)}.values())
    pictures = folder if "image" in args.kinds else None
    every, unreadable = read_corpus(entries, pictures, args.workers)
    corpora = [every.part({entry.number for entry in side}) for side in sides]
    for corpus, name in zip(corpora, ("--keep", "--against"), strict=True):
        if not corpus.entries:
            raise ValueError(f"{name}: none of its images can be read: {unreadable[0]}")
    return corpora, entries, unreadable


def small_splits(entries: Sequence[Entry]) -> str:
    """Advice where prepared splits of at most `SMALL_PX` pixels are audited; "" where none are."""
    folders = dict.fromkeys(entry.folder for entry in entries if entry.at)
    sizes = {f"{f.parent.name}/{f.name}": opened(f).manifest["px"] for f in folders}
    small = [f"{name} ({px} px)" for name, px in sizes.items() if px <= SMALL_PX]
    if not small:
        return ""
    return f"small pixels hide details, audit the raw folders if you have them: {', '.join(small)}"


def picture_numbers(entries: Sequence[Entry], pattern: str) -> np.ndarray:
    """The number that the pattern's group finds in each id, int64 (images,); -1 where none.

    With `MEDPIX` that is N of synpicN, also in MPX1007_synpicN of MedPix 2.0. ValueError where the
    group holds no number.
    """
    numbers = np.full(len(entries), -1, dtype=np.int64)
    for row, entry in enumerate(entries):
        if match := re.search(pattern, image_stem(entry.id)):
            if not re.fullmatch(r"[0-9]{1,18}", digits := match.group(1) or ""):
                raise ValueError(f"--id-pattern: finds {digits!r} in {entry.id}, no number")
            numbers[row] = int(digits)
    return numbers


def picture_ids(entries: Sequence[Entry], pattern: str) -> list[str]:
    """What the pattern finds in each id, e.g. synpicN; the name without suffix where nothing."""
    stems = [image_stem(entry.id) for entry in entries]
    found = [re.search(pattern, stem) for stem in stems]
    return [match.group() if match else stem for match, stem in zip(found, stems, strict=True)]


# A match: row in --against, row in --keep, score in [0, 1], remark.
Match = tuple[int, int, float, str]
Matches = dict[str, list[Match]]  # by kind


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
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for i, entry in enumerate(entries):
        for text in {near.normal_text(text) for text in entry.texts} - {""}:
            rows[text].append(i)
    return rows


def text_matches(keep: Corpus, against: Corpus, args: Namespace, facts: dict[str, Any]) -> Matches:
    """Matches by the same and by nearly the same text."""
    sides = theirs, ours = [rows_of_texts(corpus.entries) for corpus in (keep, against)]
    phrases = {text for rows in sides for text, images in rows.items() if len(images) > args.stock}
    counts = {"keep": len(theirs), "against": len(ours), "stock": len(phrases)}
    facts["texts"] = {**counts, "stock_examples": sorted(phrases)[:5]}
    for rows in sides:
        for text in phrases & rows.keys():
            del rows[text]
    matches: Matches = {"text": [], "near-text": []}
    for text, rows in ours.items():
        both = f"both: {text}"
        matches["text"] += [(i, j, 1.0, both) for i, j in product(rows, theirs.get(text, ()))]
    first, second = ([t for t in rows if len(t.split()) >= NEAR_TEXT_WORDS] for rows in sides)
    parts = near.near_texts(first, second, args.text_threshold)
    for part in tqdm(parts, "near texts", len(near.blocks(len(second), len(first)))):
        for b, a, score in part:
            both, places = f"{second[b]} | {first[a]}", product(ours[second[b]], theirs[first[a]])
            matches["near-text"] += [(i, j, score, both) for i, j in places]
    return matches


def find_matches(
    keep: Corpus, against: Corpus, args: Namespace, facts: dict[str, Any], folder: Path
) -> Matches:
    """The matches of each kind in `args.kinds`; a pair found from both ends once."""
    sides = (keep.entries, against.entries)
    places = [np.array([entry.number for entry in entries]) for entries in sides]
    ids = [picture_ids(entries, args.id_pattern) for entries in sides]
    # A name that many images of a side have (view1.jpg of every patient) names none of them.
    shared = {name for side in ids for name, n in Counter(side).items() if n > args.stock}
    if shared:
        facts["ids_of_many"] = {"ids": len(shared), "examples": sorted(shared)[:5]}
    ids = [[None if name in shared else name for name in side] for side in ids]
    numbers = [picture_numbers(entries, args.id_pattern) for entries in sides]
    have = [int((side >= 0).sum()) for side in numbers]
    facts["numbers"] = dict(zip(("keep", "against"), have, strict=True))
    found: dict[str, Iterable[Match]] = {"bytes": same(keep.digests, against.digests)}
    found |= {"id": same(*ids), "id-window": near_ids(*numbers, args.window)}
    if "image" in args.kinds:
        alike = near_images(keep.pictures, against.pictures, *places, args.threshold, folder)
        found["image"] = ((i, j, s, f"score {s:.3f}") for i, j, s in alike)
    if {"text", "near-text"} & set(args.kinds):
        found |= text_matches(keep, against, args, facts)
    cut: dict[str, int] = {}
    kinds = [kind for kind in KINDS if kind in args.kinds]
    matches = {kind: once(capped(found[kind], kind, cut), *places) for kind in kinds}
    if cut:
        facts["matches_not_listed"] = cut
    return matches


def capped(matches: Iterable[Match], kind: str, cut: dict[str, int]) -> Iterator[Match]:
    """The first `MOST_MATCHES` matches of each image; the others are counted in `cut`."""
    counts: Counter[int] = Counter()
    for match in matches:
        counts[match[0]] += 1
        if counts[match[0]] <= MOST_MATCHES:
            yield match
        else:
            cut[kind] = cut.get(kind, 0) + 1


def once(matches: Iterable[Match], keep: np.ndarray, against: np.ndarray) -> list[Match]:
    """Best match of each pair as (image left out, image kept, score, remark), by number of entry.

    An image is no match of itself. Of two that stand on both sides, the later one is left out.
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
