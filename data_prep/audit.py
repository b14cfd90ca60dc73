r"""Find what one corpus shares with another, so that it can be left out: images, ids and texts.

--keep is what to evaluate on, --against what to train on; each is one or more folders of images,
prepared splits, or prepared corpora (all their splits). The same folder on both sides is searched
for duplicates within it, each pair once. Kinds of match, each with a flag --no-KIND:

  id         the same id: file name without suffix, or image key. Means nothing between corpora
             that both number their images 1, 2, ...: --no-id there
  id-window  MedPix pictures (synpicNNNNN) whose numbers are at most --window apart, so of one case
  bytes      the same file or, in raw shards, the same pixels
  image      the same picture, though resized, re-encoded, cropped, turned, flipped or of other
             contrast; a score of at least --threshold. docs/results/audit.md: what is found
  text       the same text but for case, punctuation and spaces
  near-text  texts of five words or more with a similarity of at least --text-threshold

Texts are those of prepared splits. A text of more than --stock images on one side is a stock phrase
and matches nothing; questions are compared only with --questions.

OUT is the list for --exclude of the preparation scripts and data.exclude of the configs,
`id<TAB>reason`: the images of --against that match. OUT.json holds counts and every pair, OUT.html
the pairs side by side: look at it before you believe the list.

example: python data_prep/audit.py --keep vqa_rad/images --against vqa_med/Train_images \
             --out exclude.txt
         python data_prep/audit.py --keep data/roco --against data/roco --out twins.txt
"""

import argparse
import base64
import hashlib
import html
import io
import os
import re
import sys
from collections import Counter, defaultdict
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

from m3ae.command import exit_status
from m3ae.corpora.near_duplicates import (
    THRESHOLD,
    Pictures,
    blocks,
    near_images,
    near_texts,
    normal_text,
    picture,
)
from m3ae.data.exclusions import IMAGE_SUFFIXES, image_stem
from m3ae.data.images import ImageError, decode
from m3ae.data.shards import WITH_FIELDS, Shards, row_bytes
from m3ae.files import need, write_json

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


def splits_of(folder: Path) -> list[Path]:
    """The prepared splits that a folder is or holds."""
    found = [
        path.parent
        for path in sorted([*folder.glob("manifest.json"), *folder.glob("*/manifest.json")])
    ]
    return [path for path in found if path.suffix != ".partial"]


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
        splits = splits_of(folder)
        for split in splits:
            entries.update((entry.place, entry) for entry in read_split(split, questions))
        if splits:
            continue
        paths = [
            path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES
        ]
        if not paths:
            raise FileNotFoundError(f"{given}: no image and no prepared split in it")
        for path in paths:
            name = path.relative_to(folder).as_posix() if ids == "path" else path.stem
            entries[(path, None)] = Entry(name, path)
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
        return Corpus(
            [self.entries[row] for row in rows], [self.digests[row] for row in rows], pictures
        )


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
    sides = [rows_of_texts(corpus.entries) for corpus in (keep, against)]
    phrases = {text for rows in sides for text, images in rows.items() if len(images) > stock}
    facts["texts"] = {
        "keep": len(sides[0]),
        "against": len(sides[1]),
        "stock": len(phrases),
        "stock_examples": sorted(phrases)[:5],
    }
    ours, theirs = (
        {text: images for text, images in rows.items() if text not in phrases}
        for rows in (sides[1], sides[0])
    )
    equal = [
        (i, j, 1.0, f"both: {text}")
        for text in ours
        if text in theirs
        for i in ours[text]
        for j in theirs[text]
    ]
    first, second = (
        [text for text in rows if len(text.split()) >= NEAR_TEXT_WORDS] for rows in (theirs, ours)
    )
    found = tqdm(
        near_texts(first, second, threshold), "near texts", len(blocks(len(second), len(first)))
    )
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
    """The matches of each kind that is not switched off; a pair found from both ends once."""
    places = [np.array([entry.number for entry in corpus.entries]) for corpus in (keep, against)]
    ids = [[image_stem(entry.id) for entry in corpus.entries] for corpus in (keep, against)]
    found: dict[str, Iterable[Match]] = {
        "bytes": same(keep.digests, against.digests),
        "id": same(*ids),
        "id-window": near_ids(
            medpix_numbers(keep.entries), medpix_numbers(against.entries), args.window
        ),
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


# ------------------------------------------------------------------ output


@dataclass(frozen=True)
class Pair:
    """An image to leave out, the one it matches, and by which kinds: score and remark of each."""

    left: Entry
    kept: Entry
    by: dict[str, tuple[float, str]]

    @property
    def kind(self) -> str:
        """The surest kind."""
        return next(kind for kind in KINDS if kind in self.by)

    @property
    def reason(self) -> str:
        """For the exclusion list and the page."""
        kinds = (
            kind + (f" ({self.by[kind][1]})" if self.by[kind][1] else "")
            for kind in KINDS
            if kind in self.by
        )
        return one_line(f"{self.kept.id}: {', '.join(kinds)}")

    def plain(self) -> dict[str, Any]:
        """For the JSON report."""
        return {
            "id": self.left.id,
            "in": str(self.left.folder),
            "matches": self.kept.id,
            "matches_in": str(self.kept.folder),
            "by": {kind: round(score, 4) for kind, (score, _) in self.by.items()},
            "remarks": [remark for _, remark in self.by.values() if remark],
        }


def one_line(text: str) -> str:
    """A text without tabs and line ends, which would break a list."""
    return " ".join(text.split())


def check_ids(entries: Sequence[Entry]) -> None:
    """Raise ValueError for an id that an exclusion list cannot hold."""
    for name in (entry.id for entry in entries):
        broken = name.startswith("#") or name != name.strip() or "\t" in name
        if broken or name.splitlines() != [name]:
            raise ValueError(f"image id {name!r}: no list can hold it; rename the image")


def collect(found: dict[str, list[Match]], entries: Sequence[Entry]) -> list[Pair]:
    """Matches of all kinds by pair of images."""
    by: dict[tuple[int, int], dict[str, tuple[float, str]]] = defaultdict(dict)
    for kind, matches in found.items():
        for left, kept, score, remark in matches:
            by[left, kept][kind] = (score, remark)
    return [Pair(entries[left], entries[kept], by[left, kept]) for left, kept in sorted(by)]


def exclusions(pairs: Sequence[Pair]) -> list[str]:
    """Lines `id<TAB>reason`, an id once, with its surest match."""
    best: dict[str, Pair] = {}
    for pair in sorted(pairs, key=lambda pair: (KINDS.index(pair.kind), -pair.by[pair.kind][0])):
        best.setdefault(pair.left.id, pair)
    return [f"{name}\t{best[name].reason}\n" for name in sorted(best)]


def _inline(entry: Entry) -> str:
    image = entry.read()[1].convert("RGB")
    image.thumbnail((220, 220), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=75)
    data = base64.b64encode(out.getvalue()).decode()
    return f'<img alt="" src="data:image/jpeg;base64,{data}">'


STYLE = """body{font:14px/1.4 sans-serif;margin:24px;max-width:1000px}
img{max-width:220px;max-height:220px;display:block;margin-bottom:4px}
table{border-collapse:collapse;width:100%}
td,th{padding:8px 12px;border-top:1px solid #ccc;vertical-align:top;text-align:left}
td{overflow-wrap:anywhere;font-size:12px}th{background:#f3f3f3}"""
LEGEND = {
    "bytes": "the same file or the same stored pixels",
    "id": "the same id; the pictures may differ",
    "image": "near-duplicate pictures; score = correlation of fine structure after alignment",
    "text": "the same text; the pictures may differ",
    "near-text": "nearly the same text; score = cosine similarity of words and word pairs",
    "id-window": "neighbouring MedPix numbers: often one case, often not",
}


def page(pairs: Sequence[Pair], most: int) -> Iterator[str]:
    """Lines of an HTML page: pairs by kind, the least certain ones first, `most` at the most."""
    groups = {kind: [pair for pair in pairs if pair.kind == kind] for kind in KINDS}
    groups = {kind: group for kind, group in groups.items() if group}
    yield "<!doctype html><html lang=en><meta charset=utf-8><title>Shared images and texts</title>"
    yield f"<style>{STYLE}</style><h1>{len(pairs)} pairs</h1>"
    yield "<p>Left: leave out. Right: what it matches. A pair stands once, under its surest kind."
    yield "<ul>"
    for kind, group in groups.items():
        yield f'<li><a href="#{kind}">{kind}</a>: {len(group)} pairs, {LEGEND[kind]}'
    yield "</ul>"
    # Small groups are shown whole, large ones share what is left.
    left, shown = most, {}
    for number, kind in enumerate(sorted(groups, key=lambda kind: len(groups[kind]))):
        shown[kind] = min(len(groups[kind]), left // (len(groups) - number))
        left -= shown[kind]
    for kind, group in groups.items():
        more = len(group) - shown[kind]
        yield f'<h2 id="{kind}">{kind}: {len(group)} pairs</h2>'
        rest = f" <b>{more} more are not shown</b> (--page-pairs)." if more else ""
        yield f"<p>{LEGEND[kind]}.{rest}"
        yield "<table><tr><th>leave out<th>matches<th>by"
        ordered = sorted(group, key=lambda pair: (pair.by[pair.kind][0], pair.left.id))
        for pair in tqdm(ordered[: shown[kind]], f"page: {kind}"):
            cells = [
                f"<td>{_inline(entry)}{html.escape(entry.id)}<br>{html.escape(_source(entry))}"
                for entry in (pair.left, pair.kept)
            ]
            yield f"<tr>{''.join(cells)}<td>{html.escape(pair.reason)}"
        yield "</table>"


def _source(entry: Entry) -> str:
    """The last folders of where an image lies."""
    return "/".join((entry.folder.parent if entry.at is None else entry.folder).parts[-2:])


def report(
    keep: Corpus, against: Corpus, pairs: Sequence[Pair], args: argparse.Namespace
) -> dict[str, Any]:
    """Counts of pairs and of images to leave out, by kind."""
    by = Counter(kind for pair in pairs for kind in pair.by)
    images = {kind: len({pair.left.number for pair in pairs if kind in pair.by}) for kind in by}
    return {
        "keep": len(keep.entries),
        "against": len(against.entries),
        "options": {
            "kinds": args.kinds,
            "threshold": args.threshold,
            "window": args.window,
            "text_threshold": args.text_threshold,
            "stock": args.stock,
            "questions": args.questions,
        },
        "pairs": len(pairs),
        "images": len({pair.left.number for pair in pairs}),
        "by_kind": {
            kind: {"pairs": by[kind], "images": images.get(kind, 0)} for kind in args.kinds
        },
    }


def audit(args: argparse.Namespace) -> None:
    """The whole work."""
    args.kinds = [kind for kind in KINDS if not getattr(args, "no_" + kind.replace("-", "_"))]
    if not args.kinds:
        raise ValueError("every kind of match is switched off: nothing to look for")
    for name in ("threshold", "text_threshold"):
        if not 0 < getattr(args, name) <= 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: not in (0, 1]")
    for name in ("window", "stock", "page_pairs", "workers"):
        if getattr(args, name) < 0:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: below 0")
    sides = [read_inputs(given, args.ids, args.questions) for given in (args.keep, args.against)]
    check_ids(sides[1])
    places = {place: n for n, place in enumerate(dict.fromkeys(e.place for e in chain(*sides)))}
    sides = [[replace(entry, number=places[entry.place]) for entry in side] for side in sides]
    entries = list({entry.number: entry for entry in chain(*sides)}.values())
    unreadable: list[str] = []
    every = read_corpus(entries, "images", "image" in args.kinds, args.workers, unreadable)
    keep, against = (every.part({entry.number for entry in side}) for side in sides)
    for side, name in ((keep, "--keep"), (against, "--against")):
        if not side.entries:
            raise ValueError(f"{name}: none of its images can be read: {unreadable[0]}")
    facts: dict[str, Any] = {}
    pairs = collect(find_matches(keep, against, args, facts), entries)
    lines = ["# Images to leave out (--exclude, data.exclude): id, tab, what it matches and how\n"]
    lines += exclusions(pairs)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    counts = report(keep, against, pairs, args) | facts | {"unreadable": unreadable}
    args.out.write_text("".join(lines), encoding="utf-8")
    write_json(Path(f"{args.out}.json"), counts | {"list": [pair.plain() for pair in pairs]})
    with open(f"{args.out}.html", "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in page(pairs, args.page_pairs))
    print(
        f"{counts['images']} of {len(against.entries)} images match one of {len(keep.entries)} "
        f"({len(pairs)} pairs); {len(unreadable)} unreadable"
    )
    for kind, count in counts["by_kind"].items():
        print(f"    {kind:<10}{count['pairs']:>8} pairs{count['images']:>8} images")
    if facts:
        print(f"    texts: {facts['texts']}")
    print(f"{args.out} (list), {args.out}.json, {args.out}.html")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--keep", type=Path, nargs="+", required=True, metavar="DIR", help="images to keep")
    add(
        "--against",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="images of which the matching ones are listed",
    )
    add("--out", type=Path, required=True, metavar="FILE", help="the exclusion list")
    for kind in KINDS:
        add(f"--no-{kind}", action="store_true", help=f"no matches by {kind}")
    add("--threshold", type=float, default=THRESHOLD, help="of images (default: %(default)s)")
    add("--text-threshold", type=float, default=0.8, help="of near texts (default: %(default)s)")
    add("--window", type=int, default=2, metavar="N", help="of MedPix numbers (default: 2)")
    add(
        "--stock",
        type=int,
        default=20,
        metavar="N",
        help="texts of more than N images are stock phrases (default: %(default)s)",
    )
    add("--questions", action="store_true", help="compare the texts of corpora of questions too")
    add(
        "--ids",
        choices=["stem", "path"],
        default="stem",
        help="name files by name without suffix (default) or by path in their folder",
    )
    add(
        "--page-pairs",
        type=int,
        default=500,
        metavar="N",
        help="pairs on the page, at most (default: %(default)s)",
    )
    add("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes; 0: none")
    args = parser.parse_args(argv)
    return exit_status(lambda: audit(args))


if __name__ == "__main__":
    sys.exit(main())
