"""Raw corpus to shards: what every script of data_prep/ shares.

A script parses its corpus into `Item`s and calls `prepare`. Finished chunks stay in
OUT/SPLIT.partial, so that the same command continues an interrupted run. What is written does not
depend on the number of workers or on interruptions.
"""

import argparse
import hashlib
import os
import shutil
import sys
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from m3ae.command import parser_for
from m3ae.corpora.chunks import (
    Settings,
    chunks_of,
    clean,
    come_back,
    run_chunks,
)
from m3ae.corpora.items import Drops, Item
from m3ae.corpora.reopening import CHUNK_IMAGES, chunk_images, decisive, partial_folder, reopen
from m3ae.corpora.report import first_drops, length_statistics, summarise, write_report
from m3ae.corpora.shard_writer import seal
from m3ae.corpora.token_files import PATTERN, describe_tokenizer, write_tokens
from m3ae.corpora.verification import finished_splits as finished_splits
from m3ae.corpora.verification import read_chunks
from m3ae.data import shards
from m3ae.data.exclusions import (
    IMAGE_FILES,
    find_listed,
    read_exclusions,
    say_unmatched,
    unmatched,
)
from m3ae.data.images import MAX_PIXELS
from m3ae.data.manifest import ENCODINGS, FORMAT, VERSION
from m3ae.files import file_sha256, is_unicode, read_json_object, redecoded, write_json
from m3ae.processes import alone_in, usable_cores

_NOT_OPTIONS = ("raw", "out", "workers", "split", "tokenizer")  # nothing written depends on them
_IF_GIVEN = ("columns", "group", "text_encoding", "findings", "separator", "no_finding", "as")
_IF_GIVEN += ("template", "exif", "max_pixels")  # else shards say no more than before them
CHUNKS = "chunks.json"
REPEATED = 10  # times that a text occurs, from which on it is named

Splits = dict[str, Iterable[Item]]


def corpus_parser(text: str | None) -> argparse.ArgumentParser:
    """The parser of a preparation script, with the options that all of them have."""
    parser = parser_for(text)
    add = parser.add_argument
    add("--raw", type=Path, required=True, metavar="DIR", help="the corpus as downloaded")
    add("--out", type=Path, required=True, metavar="DIR", help="where the prepared corpus goes")
    kinds = "raw: pixels after resize and centre crop (fastest); jpeg: shorter side resized, "
    kinds += "quality 90; original: the file's bytes (default: %(default)s)"
    add("--encoding", choices=ENCODINGS, default="raw", help=kinds)
    add("--px", type=int, default=288, help="image side in pixels (default: %(default)s)")
    names = "hub id, folder, or train:N (a WordPiece of N entries trained on the train texts); "
    names += "without it texts are tokenised at training time"
    add("--tokenizer", metavar="NAME", help=names)
    add("--workers", type=int, default=usable_cores(), metavar="N", help="processes; 0: none")
    add("--limit", type=int, metavar="N", help="only the first N images of each split")
    add("--split", action="append", metavar="NAME", help="only this split; may be repeated")
    window = "grey values of 16-bit images that become 0 and 255; else these are left out, and "
    window += "DICOM has its own window"
    add("--window", type=float, nargs=2, metavar=("LOW", "HIGH"), help=window)
    add("--exif", action="store_true", help="turn images as their EXIF says (published: ignored)")
    most = f"larger images are left out, by their header (default: {MAX_PIXELS})"
    add("--max-pixels", type=int, metavar="N", help=most)
    exclude = "image ids to leave out, one a line (anything after a tab is a remark)"
    add("--exclude", type=Path, metavar="FILE", help=exclude)
    encoding = "of texts that are not UTF-8, e.g. latin-1 or cp1252; else these are left out"
    add("--text-encoding", metavar="NAME", help=encoding)
    words = "texts of fewer words are left out (default: 3, the paper's; questions: 1)"
    add("--min-words", type=int, metavar="N", help=words)
    return parser


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options that decide what is written; a file counts by its content, not its place."""
    options: dict[str, Any] = {}
    for name, value in sorted(vars(args).items()):
        if name in _NOT_OPTIONS or (name in _IF_GIVEN and value in (None, False)):
            continue
        many = isinstance(value, list) and all(isinstance(part, Path) for part in value)
        options[name] = [*map(_plain, value)] if many else _plain(value)
    return options


def _plain(value: Any) -> Any:
    """An option's value as JSON has it."""
    if not isinstance(value, Path):
        return value
    return f"{value.name} {file_sha256(value)[:16]}" if value.is_file() else value.name


def compare(found: dict[str, Any], wanted: dict[str, Any], names: Iterable[str]) -> str:
    """What differs of these options between those found and those wanted; "" where nothing does."""
    differing = [name for name in sorted(names) if found.get(name) != wanted.get(name)]
    return "; ".join(f"{n} was {found.get(n)!r}, is {wanted.get(n)!r}" for n in differing)


def _same_or_raise(place: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise ValueError naming what differs between the options of `place` and today's."""
    if differing := compare(found, wanted, found | wanted):
        message = f"{place}: prepared with other options ({differing})"
        only_tokens = differing.startswith("tokenizer was ") and ";" not in differing
        hint = "; data_prep/tokens.py replaces the tokens alone" if only_tokens else ""
        raise ValueError(f"{message}; give those, another --out, or delete that folder{hint}")


def _tokenizer(
    args: argparse.Namespace, splits: Splits, excluded: Container[tuple[str, ...]]
) -> tuple[Any, dict[str, Any] | None]:
    """The tokenizer, if any, and its manifest entry (name, fingerprint, size)."""
    name = args.tokenizer
    if name is None:
        return None, None
    from m3ae.data.texts import load_tokenizer  # transformers takes seconds to import

    place = name
    if name.startswith("train:"):
        place = str(args.out / "tokenizer")
        _train_tokenizer(args, splits, excluded, args.out / "tokenizer")
    tokenizer = load_tokenizer(place)
    return tokenizer, describe_tokenizer(tokenizer, name)


def _train_tokenizer(
    args: argparse.Namespace, splits: Splits, excluded: Container[tuple[str, ...]], folder: Path
) -> None:
    """Train on the kept texts of split `train`, unless an earlier run of this command did."""
    from m3ae.data.texts import train_wordpiece

    size = args.tokenizer.removeprefix("train:")
    if not size.isdigit() or int(size) < 10:
        raise ValueError(f"--tokenizer {args.tokenizer}: train:N needs a whole number of entries")
    if "train" not in splits:
        raise ValueError(f"--tokenizer {args.tokenizer}: the corpus has no split 'train'")

    def texts() -> Iterator[str]:
        for item in _select(splits["train"], excluded, args, Drops()):
            yield from (text for _, text, _ in clean(item, args.min_words, Drops()))

    digest = hashlib.sha256()
    for text in texts():
        digest.update(text.encode() + b"\n")
    facts = {"entries": int(size), "texts": digest.hexdigest()[:16]}
    record = folder / "trained_on.json"
    if record.exists():
        _same_or_raise(folder, read_json_object(record), facts)
    else:
        train_wordpiece(texts(), int(size), folder)
        write_json(record, facts)


def _find_excluded(
    splits: Splits, file: Path | None
) -> tuple[set[tuple[str, ...]], dict[str, Any]]:
    """Names of the items that --exclude lists, in any split, and counts of its ids to report.

    Raises ValueError where an id may be several images, or no id is one.
    """
    if file is None:
        return set(), {}
    ids = read_exclusions(file)
    names = list(dict.fromkeys(item.names for items in splits.values() for item in items))
    named = find_listed(names, ids, file)
    excluded = {names[number] for numbers in named.values() for number in numbers}
    lost = unmatched({file: ids}, named, names[0][0] if names else "").get(file, [])
    if lost:
        print(f"warning: --exclude {say_unmatched(file, ids, lost)}", file=sys.stderr)
    counts = {"ids": len(ids), "images": len(excluded), "ids_of_no_image": len(lost)}
    return excluded, {"exclude": {**counts, "examples": lost[:20]}}


def _select(
    items: Iterable[Item],
    excluded: Container[tuple[str, ...]],
    args: argparse.Namespace,
    left_out: Drops,
) -> Iterator[Item]:
    """The items to prepare: excluded ones and repeated keys left out, at most --limit of them."""
    known: set[str] = set()
    for item in items:
        if args.limit is not None and len(known) >= args.limit:
            return
        why = ""
        if item.names in excluded:
            why = "in the --exclude list"
        elif not is_unicode("".join(item.names)):
            why = "key not UTF-8"
        elif item.key in known:
            why = "key occurs twice, first one kept"
        if why:
            left_out.add(f"image: {why}", item.key)
            left_out.add("text: its image was left out", item.key, len(item.texts))
            continue
        known.add(item.key)
        texts = tuple(redecoded(text, args.text_encoding) for text in item.texts)
        yield replace(item, texts=texts) if texts != item.texts else item


def prepare(
    splits: Splits,
    dropped: dict[str, Drops],
    args: argparse.Namespace,
    source: str,
    kind: str = "pairs",
    facts: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the shards of every split and OUT/report.json; returns the report.

    `splits`: items by split, each an iterable that can be run through more than once. `dropped`:
    what the parser left out. `args`: of `corpus_parser`; a script's own options count as the
    shards'. `kind`: pairs, or vqa for items with fields. `facts`: more for the report. Raises
    ValueError where OUT holds a split made with other options, or where no image is left.
    """
    if args.min_words is None:
        args.min_words = 1 if kind == shards.WITH_FIELDS else 3
    if unknown := set(args.split or ()) - set(splits):
        raise ValueError(f"--split {min(unknown)}: the corpus has {', '.join(splits)}")
    if args.max_pixels is not None and args.max_pixels < 1:
        raise ValueError(f"--max-pixels {args.max_pixels}: below 1")
    if args.px < 1 or args.workers < 0:
        raise ValueError(f"--px {args.px} --workers {args.workers}: out of range")
    redecoded("\udc80", args.text_encoding)  # a wrong name is an error now, not after hours
    args.out.mkdir(parents=True, exist_ok=True)
    with alone_in(args.out):
        return _prepare(splits, dropped, args, source, kind, facts)


def _prepare(
    splits: Splits,
    dropped: dict[str, Drops],
    args: argparse.Namespace,
    source: str,
    kind: str,
    facts: dict[str, Any] | None,
) -> dict[str, Any]:
    excluded, exclusion_counts = _find_excluded(splits, args.exclude)
    tokenizer, tokenizer_facts = _tokenizer(args, splits, excluded)
    window, fields = tuple(args.window) if args.window else None, kind == shards.WITH_FIELDS
    settings = Settings(
        args.encoding, args.px, window, args.min_words, fields, args.exif, args.max_pixels
    )
    entries = {"format": FORMAT, "version": VERSION, "kind": kind, "source": source}
    entries |= {"encoding": args.encoding, "px": args.px, "tokenizer": tokenizer_facts}
    entries["options"] = options_of(args)
    entries["made_with"] = {"pillow": PIL.__version__, "numpy": np.__version__}
    for name in (name for name in splits if name in (args.split or splits)):
        drops = Drops()
        drops.merge(dropped.get(name, Drops()).as_dict())
        left_out = Drops()
        kept = _select(splits[name], excluded, args, left_out)
        work = _Work(kept, drops, left_out, args.workers, _total(splits[name], args.limit))
        _prepare_split(work, args.out / name, entries, settings, tokenizer)
    if exclusion_counts:
        facts = {**(facts or {}), **exclusion_counts}
    return write_report(args.out, source, facts)


@dataclass
class _Work:
    """A split's items, what the parser and `_select` left out of it, and how it is worked on."""

    items: Iterable[Item]
    drops: Drops
    left_out: Drops  # filled while the items are run through
    workers: int
    total: int | None  # items at most, for the progress bar


def _total(items: Iterable[Item], limit: int | None) -> int | None:
    known = len(items) if isinstance(items, Sized) else None
    return min(filter(None, (known, limit)), default=None)


def _prepare_split(
    work: _Work, final: Path, facts: dict[str, Any], settings: Settings, tokenizer: Any
) -> None:
    """Bring one split from nothing, from a part or from a whole to `final`."""
    partial, wanted = partial_folder(final), decisive(facts)
    if final.exists():
        _same_or_raise(final, decisive(shards.read_manifest(final)), wanted)
        work.items = list(work.items)
        if not _missing_came(work.items, final, settings):
            print(f"{final}: already prepared with these options; delete it to do it again")
            return
    partial.mkdir(exist_ok=True)
    size = settings.chunk_images
    begun = partial / "options.json"
    if begun.exists():
        found = read_json_object(begun)
        size = found.pop(CHUNK_IMAGES, settings.version_1_images)
        _same_or_raise(partial, found, wanted)
    else:
        write_json(begun, {**wanted, CHUNK_IMAGES: settings.chunk_images})
    if not (partial / "manifest.json").exists():
        files: dict[str, str] = {}
        texts: Counter[str] = Counter()
        items = _noted(work.items, files, texts)
        results = run_chunks(items, partial, settings, work.workers, size, work.total)
        manifest = {**facts, **summarise(results, work.drops, work.left_out), "chunks": CHUNKS}
        if not manifest["counts"]["images"]:
            shutil.rmtree(partial)
            raise ValueError(f"{final}: no image is left to prepare: {first_drops(work.drops)}")
        often = [[text, n] for text, n in texts.most_common(5) if n >= REPEATED]
        if often and not settings.fields:  # the same question is asked of many images
            manifest["report"]["repeated_texts"] = often
        for path in partial.glob("chunks*.json"):  # of a repair
            path.unlink()
        if files:
            write_json(partial / IMAGE_FILES, files)
        record = {"facts": {k: v for k, v in facts.items() if k != "tokenizer"}, CHUNK_IMAGES: size}
        write_json(partial / CHUNKS, seal({**record, "chunks": results}), indent=None)
        add_tokens(partial, manifest, tokenizer)
        write_json(partial / "manifest.json", seal(manifest))
    kept = file_names(shards.read_manifest(partial))
    leftovers = ("options.json", "chunk-*", "tokenizer-*", "shard-*", PATTERN, "*.tmp")
    for path in {path for pattern in leftovers for path in partial.glob(pattern)}:
        if path.name not in kept:
            path.unlink()
    os.replace(partial, final)


def _missing_came(items: list[Item], final: Path, settings: Settings) -> bool:
    """Whether images that a finished split lacks have come since; it is then a begun one again.

    Says where it was made from other files than there are now.
    """
    try:
        record = read_chunks(final)
    except FileNotFoundError:  # of an earlier version
        return False
    parts, back = list(chunks_of(items, chunk_images(record) or settings.chunk_images)), {}
    others = [digest for _, _, digest in parts] != [chunk["digest"] for chunk in record["chunks"]]
    if others:
        message = "made from other files, names or texts than --raw has now"
        print(f"warning: {final}: {message}; delete it to do it again", file=sys.stderr)
        return False
    for (index, chunk_items, _), chunk in zip(parts, record["chunks"], strict=True):
        if count := come_back(chunk_items, chunk, settings):
            back[index] = count
    if back:
        print(f"{final}: {sum(back.values())} images that were missing have come; taken in")
        reopen(final, record, set(), back)
    return bool(back)


def _noted(items: Iterable[Item], files: dict[str, str], texts: Counter[str]) -> Iterator[Item]:
    """The items as they are; `files` gets the file of each whose key is another name."""
    for item in items:
        if len(item.names) > 1:
            files[item.key] = item.image_id
        texts.update(item.texts)
        yield item


def add_tokens(folder: Path, manifest: dict[str, Any], tokenizer: Any) -> None:
    """Write the token ids of a split, and enter them in its manifest; "tokens": null without."""
    manifest["tokens"] = None
    if tokenizer is not None:
        facts = manifest["tokenizer"]
        manifest["tokens"], lengths = write_tokens(folder, manifest["files"], tokenizer, facts)
        manifest["report"]["text_lengths"] = length_statistics(lengths, tokens=True)


def file_names(manifest: dict[str, Any]) -> set[str]:
    """Names of the shards of a split and of its file of token ids."""
    tokens = manifest.get("tokens")
    return {file["name"] for file in manifest["files"]} | ({tokens["name"]} if tokens else set())
