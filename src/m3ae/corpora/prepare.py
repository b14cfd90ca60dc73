"""Raw corpus to shards: what every script of data_prep/ shares.

A script parses its corpus into `Item`s and calls `prepare`. Finished chunks stay in
OUT/SPLIT.partial, so that the same command continues an interrupted run. What is written does not
depend on the number of workers or on interruptions.
"""

import argparse
import hashlib
import json
import os
import re
import shlex
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
from m3ae.config import TEXT_TOKENS
from m3ae.corpora.chunks import (
    Settings,
    chunk_path,
    chunks_of,
    clean,
    come_back,
    run_chunks,
    tokenize,
)
from m3ae.corpora.items import Drops, Item
from m3ae.corpora.shard_writer import seal
from m3ae.corpora.splits import ORDER
from m3ae.corpora.verification import read_chunks
from m3ae.data import shards
from m3ae.data.exclusions import (
    IMAGE_FILES,
    find_listed,
    read_exclusions,
    say_unmatched,
    unmatched,
)
from m3ae.files import (
    file_sha256,
    is_unicode,
    printable,
    read_json_object,
    redecoded,
    replacing,
    write_json,
)
from m3ae.processes import alone_in, usable_cores

_NOT_OPTIONS = ("raw", "out", "workers", "split", "tokenizer")  # nothing written depends on them
_IF_GIVEN = ("columns", "group", "text_encoding")  # else shards say no more than before them
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
    add("--encoding", choices=shards.ENCODINGS, default="raw", help=kinds)
    add("--px", type=int, default=288, help="image side in pixels (default: %(default)s)")
    names = "hub id, folder, or train:N (a WordPiece of N entries trained on the train texts); "
    names += "without it texts are tokenised at training time"
    add("--tokenizer", metavar="NAME", help=names)
    add("--workers", type=int, default=usable_cores(), metavar="N", help="processes; 0: none")
    add("--limit", type=int, metavar="N", help="only the first N images of each split")
    add("--split", action="append", metavar="NAME", help="only this split; may be repeated")
    window = "grey values of 16-bit images that become 0 and 255; else these are left out"
    add("--window", type=float, nargs=2, metavar=("LOW", "HIGH"), help=window)
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
        if name in _NOT_OPTIONS or (name in _IF_GIVEN and value is None):
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
        said = f"{place}: prepared with other options ({differing})"
        raise ValueError(f"{said}; give those, another --out, or delete that folder")


def _tokenizer(
    args: argparse.Namespace, splits: Splits, excluded: Container[tuple[str, ...]]
) -> tuple[Any, dict[str, Any] | None]:
    """The tokenizer, if any, and its manifest entry (name, fingerprint, size)."""
    name = args.tokenizer
    if name is None:
        return None, None
    from m3ae.data.texts import fingerprint, load_tokenizer  # transformers takes seconds to import

    place = name
    if name.startswith("train:"):
        place = str(args.out / "tokenizer")
        _train_tokenizer(args, splits, excluded, args.out / "tokenizer")
    tokenizer = load_tokenizer(place)
    size = max(tokenizer.get_vocab().values()) + 1
    return tokenizer, {"name": name, "fingerprint": fingerprint(tokenizer), "size": size}


def _save_tokenizer(tokenizer: Any, path: Path) -> str:
    """Write what workers load; returns the path. ValueError if the model would see other tokens."""
    from m3ae.data.texts import encode

    probes = ["Axial CT of the chest: 5.6 cm mass.", "T2-weighted MRI, naïve FLAIR; x-ray", "a  B"]
    probes.append(" ".join(probes * 40))  # longer than any limit
    with replacing(path) as temporary:
        tokenizer.backend_tokenizer.save(str(temporary))
    if [tuple(row) for row in encode(tokenizer, probes)] != tokenize(str(path), probes):
        said = "the tokenizers library alone gives other tokens than transformers"
        raise ValueError(f"{tokenizer.name_or_path}: {said}; convert it to a plain fast tokenizer")
    return str(path)


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
    lost = unmatched(file, ids, named, names[0][0] if names else "")
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
    tokenizer, made = _tokenizer(args, splits, excluded)
    window, fields = tuple(args.window) if args.window else None, kind == shards.WITH_FIELDS
    settings = Settings(args.encoding, args.px, window, args.min_words, None, fields)
    entries = {"format": shards.FORMAT, "version": shards.VERSION, "kind": kind, "source": source}
    entries |= {"encoding": args.encoding, "px": args.px, "tokenizer": made}
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


def _decisive(facts: dict[str, Any]) -> dict[str, Any]:
    """What of a manifest must be the same for a split to be continued or left as it is."""
    made = facts["tokenizer"] and facts["tokenizer"]["fingerprint"]
    return facts["options"] | {"source": facts["source"], "kind": facts["kind"], "tokenizer": made}


def _prepare_split(
    work: _Work, final: Path, facts: dict[str, Any], settings: Settings, tokenizer: Any
) -> None:
    """Bring one split from nothing, from a part or from a whole to `final`."""
    partial, wanted = partial_folder(final), _decisive(facts)
    if final.exists():
        _same_or_raise(final, _decisive(shards.read_manifest(final)), wanted)
        work.items = list(work.items)
        if not _missing_came(work.items, final, settings):
            print(f"{final}: already prepared with these options; delete it to do it again")
            return
    partial.mkdir(exist_ok=True)
    begun = partial / "options.json"
    if begun.exists():
        _same_or_raise(partial, read_json_object(begun), wanted)
    else:
        write_json(begun, wanted)
    if not (partial / "manifest.json").exists():
        if tokenizer is not None:
            path = partial / f"tokenizer-{facts['tokenizer']['fingerprint']}.json"
            settings = replace(settings, tokenizer=_save_tokenizer(tokenizer, path))
        files: dict[str, str] = {}
        texts: Counter[str] = Counter()
        items = _noted(work.items, files, texts)
        results = run_chunks(items, partial, settings, work.workers, work.total)
        manifest = {**facts, **_summary(results, work, settings), "chunks": CHUNKS}
        if not manifest["counts"]["images"]:
            shutil.rmtree(partial)
            raise ValueError(f"{final}: no image is left to prepare: {_first_drops(work.drops)}")
        often = [[text, n] for text, n in texts.most_common(5) if n >= REPEATED]
        if often and not settings.fields:  # the same question is asked of many images
            manifest["report"]["repeated_texts"] = often
        for path in partial.glob("chunks*.json"):  # of a repair
            path.unlink()
        if files:
            write_json(partial / IMAGE_FILES, files)
        write_json(partial / CHUNKS, seal({"facts": facts, "chunks": results}), indent=None)
        write_json(partial / "manifest.json", seal(manifest))
    kept = {file["name"] for file in shards.read_manifest(partial)["files"]}
    leftovers = ("options.json", "chunk-*", "tokenizer-*", "shard-*", "*.tmp")
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
    parts, back = list(chunks_of(items, settings)), {}
    others = [digest for _, _, digest in parts] != [chunk["digest"] for chunk in record["chunks"]]
    if others:
        said = "made from other files, names or texts than --raw has now; delete it to do it again"
        print(f"warning: {final}: {said}", file=sys.stderr)
        return False
    for (index, some, _), chunk in zip(parts, record["chunks"], strict=True):
        if count := come_back(some, chunk, settings):
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


def partial_folder(final: Path) -> Path:
    """Where a split is until it is finished."""
    return final.with_name(final.name + ".partial")


def finished_splits(out: Path) -> list[Path]:
    """The folders in OUT that have a manifest and are not `partial_folder`s."""
    found = sorted(path.parent for path in out.glob("*/manifest.json"))
    return [split for split in found if split.suffix != ".partial"]


def say_missing(raw: Path, splits: Container[str]) -> None:
    """Name those of train, valid and test that a corpus has not."""
    for split in (name for name in ("train", "valid", "test") if name not in splits):
        print(f"{raw}: no split {split} in it, it is left out")


def reopen(
    final: Path, record: dict[str, Any], broken: Container[str], numbers: Container[int] = ()
) -> tuple[int, int]:
    """Turn a finished split into a begun one without some chunks.

    Those that have a file in `broken`, or whose number is in `numbers`. `record`: of
    `verification.read_chunks`. Returns the numbers of these chunks and of all. The preparation
    command then makes them again; where this is interrupted, it can be repeated.
    """
    partial = partial_folder(final)
    if partial.exists():
        said = f"{partial}: an unfinished preparation of {final.name} is in the way"
        raise ValueError(f"{said}; finish it elsewhere or delete it")
    lost = 0
    write_json(final / "options.json", _decisive(record["facts"]))
    for index, chunk in enumerate(record["chunks"]):
        path = chunk_path(final, index)
        if index in numbers or any(file["name"] in broken for file in chunk["files"]):
            path.unlink(missing_ok=True)
            lost += 1
        else:
            write_json(path, chunk)
    (final / "manifest.json").unlink(missing_ok=True)  # no split any more, whatever happens next
    os.replace(final, partial)
    return lost, len(record["chunks"])


def command(facts: dict[str, Any], out: Path) -> str:
    """The preparation command of a split as far as its manifest, which keeps no paths, tells."""
    words = ["python data_prep/SCRIPT.py --raw RAW --out", shlex.quote(str(out))]
    options = facts["options"] | {"tokenizer": facts["tokenizer"] and facts["tokenizer"]["name"]}
    for name, value in sorted(options.items()):
        if value is None or value is False:
            continue
        values = value if isinstance(value, list) else [] if value is True else [value]
        plain = [re.sub(r" [0-9a-f]{16}$", "", str(part)) for part in values]  # a file's digest
        words += [f"--{name.replace('_', '-')}", *map(shlex.quote, plain)]
    return " ".join(words)


def _first_drops(drops: Drops) -> str:
    found = [f"{why}: {n} (e.g. {drops.examples[why][0]})" for why, n in drops.counts.items()]
    return "; ".join(sorted(found)) or "the corpus is empty"


def _summary(results: list[dict[str, Any]], work: _Work, settings: Settings) -> dict[str, Any]:
    """counts, files and report of a split's manifest from the results of its chunks.

    What was seen is what was prepared, what chunks dropped, and what `_select` left out.
    """
    drops, notes, lengths = work.drops, Drops(), Counter()
    drops.merge(work.left_out.as_dict())
    left = {f"{what}s": 0 for what in ("image", "text")}
    for reason, count in work.left_out.counts.items():
        left[f"{reason.partition(':')[0]}s"] += count
    for result in results:
        drops.merge(result["dropped"])
        notes.merge(result["notes"])
        lengths.update(dict(result["lengths"]))
    files = [file for result in results for file in result["files"]]
    counts = {what: sum(file[what] for file in files) for what in ("images", "texts")}
    report: dict[str, Any] = {
        f"{what}_seen": sum(result[what] for result in results) + left[what] for what in counts
    }
    report |= {"dropped": drops.as_dict(), "notes": notes.as_dict()}
    report["text_lengths"] = length_statistics(lengths, settings.tokenizer is not None)
    return {"counts": counts, "files": files, "report": report}


def length_statistics(lengths: Counter, tokens: bool) -> dict[str, Any]:
    """Mean, percentiles and the fraction that 64 tokens cut; in words without a tokenizer."""
    total = sum(lengths.values())
    result: dict[str, Any] = {"unit": "tokens without specials" if tokens else "words"}
    if not total:
        return result
    result["mean"] = round(sum(length * n for length, n in lengths.items()) / total, 2)
    running, levels = 0, [5, 25, 50, 75, 95, 99, 100]
    for length in sorted(lengths):
        running += lengths[length]
        while levels and running * 100 >= levels[0] * total:
            result[f"p{levels.pop(0)}"] = length
    if tokens:
        cut = sum(n for length, n in lengths.items() if length > TEXT_TOKENS - 2)
        result[f"share_cut_at_{TEXT_TOKENS}"] = round(cut / total, 4)
    return result


def write_report(out: Path, source: str, facts: dict[str, Any] | None = None) -> dict[str, Any]:
    """OUT/report.json from the manifests of all finished splits, and a table on the screen.

    `facts` (what a script counted in the raw corpus) go into it; without them, those stay that an
    earlier report holds.
    """
    if facts is None and (out / "report.json").exists():
        facts = read_json_object(out / "report.json")
    report: dict[str, Any] = {**(facts or {}), "source": source, "splits": {}}
    rank = {name: number for number, name in enumerate(ORDER)}
    for split in sorted(finished_splits(out), key=lambda path: rank.get(path.name, len(rank))):
        manifest = shards.read_manifest(split)
        kept = ("counts", "encoding", "px", "tokenizer", "options", "report")
        report["splits"][split.name] = {name: manifest[name] for name in kept}
    write_json(out / "report.json", report)
    print(f"\n{source} -> {out}\n{'split':<12}{'images':>9}{'of':>9}{'texts':>9}{'of':>9}")
    for name, split in report["splits"].items():
        counts, seen = split["counts"], split["report"]
        images = f"{counts['images']:>9}{seen['images_seen']:>9}"
        print(f"{name:<12}{images}{counts['texts']:>9}{seen['texts_seen']:>9}")
        for what in ("dropped", "notes"):
            for reason, entry in seen[what].items():
                example = printable(f"{reason}  (e.g. {entry['examples'][0]})")
                print(f"    {what} {entry['count']:>7}  {example}")
        for text, count in seen.get("repeated_texts", ()):
            print(f"    {count} texts read: {printable(text[:80])}")
        print(f"    text lengths: {seen['text_lengths']}")
    for name, value in (facts or {}).items():
        if name not in ("source", "splits"):
            print(f"{name}: {json.dumps(value)}")
    return report
