r"""Your own images and texts -> shards.

A table FILE (.csv, .tsv, .jsonl or .parquet; cells between commas, semicolons or tabs) with the
columns `image` and `text`, and if you like `split` (default: train) and `id`; a table that calls
them otherwise is read with --columns, e.g. image=filename "text=clinical notes". `image` is a path
below --raw, and rows with the same one in a split are several texts of it; in a parquet file it may
also be the image itself (binary, or a struct with `bytes`), and then each row is an image of its
own.

--test-share and --valid-share draw splits by image, or with --group COLUMN by patient, study or
case: rows with the same cell stay together. A column `split` is checked for images, and groups,
that are in two.

example: python data_prep/pairs.py --table pairs.csv --raw images --out data/mine \
             --tokenizer roberta-base --valid-share 0.1 --test-share 0.1 --group patient
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from m3ae.command import run
from m3ae.corpora.items import Drops, Item, Stored
from m3ae.corpora.prepare import corpus_parser, prepare
from m3ae.corpora.splits import (
    ORDER,
    Groups,
    add_table_options,
    check_undrawn,
    name_unused,
    read_fractions,
)
from m3ae.corpora.tables import (
    Row,
    cell,
    read_column_names,
    read_table,
    shared_images,
    split_and_image,
)
from m3ae.files import need

OPTIONAL = ("split", "id")


def read_items(
    rows: Iterable[Row], file: str, raw: Path, drops: Drops, groups: Groups
) -> dict[str, list[Item]]:
    """Items by split; rows with the same image are one item, which the first row's id names.

    An id of several images names none of them. `groups` gets theirs.
    """
    found: dict[str, dict[str, tuple[str, Path | Stored, list[str]]]] = {}
    for number, row in rows:
        try:
            split, image, stored = split_and_image(row)
            text, key = cell(row, "text"), cell(row, "id") or image
            group = groups.read(row)
            if not text:
                raise ValueError("no text")
        except ValueError as error:
            drops.add(f"row: {error}", f"{file}: row {number}")
            continue
        first = (key, stored or raw / image, [])
        found.setdefault(split, {}).setdefault(image, first)[2].append(text)
        groups.add(split, image, group)
    items: dict[str, list[Item]] = {}
    for split, some in found.items():
        images = Counter(key for key, *_ in some.values())
        if shared := [key for key, count in images.items() if count > 1]:
            said = f"{len(shared)} ids of split {split} are of several images, e.g. {shared[0]}"
            print(f"note: {file}: {said}; their files name these images", file=sys.stderr)
        items[split] = [
            Item(key if images[key] == 1 else image, place, tuple(texts), image)
            for image, (key, place, texts) in some.items()
        ]
    return items


def draw_splits(
    items: Iterable[Item], groups: Groups, fractions: dict[str, float], seed: int
) -> dict[str, list[Item]]:
    """Items by split, as `Groups.draw` has their images."""
    split_of = groups.draw(fractions, seed)
    parts: dict[str, list[Item]] = {name: [] for name in ORDER if name in ("train", *fractions)}
    for item in items:
        parts[split_of[item.image_id]].append(item)
    return parts


def make_shards(args: argparse.Namespace) -> None:
    """The whole work."""
    path, drops = need(args.table, "a table of images and texts"), Drops()
    need(args.raw, "the folder that image paths start from")
    groups, fractions = Groups(args.group), read_fractions(args)
    names = read_column_names(args.columns, ("image", "text", *OPTIONAL))
    needed = ("image", "text", *((args.group,) if args.group else ()))
    rows = list(read_table(path, needed, drops, OPTIONAL, names, args.text_encoding))
    splits = read_items(rows, path.name, args.raw, drops, groups)
    if not splits:
        raise ValueError(f"{path}: no usable row: {drops.as_dict()}")
    if fractions:
        check_undrawn(path, splits)
        splits = draw_splits(splits["train"], groups, fractions, args.seed)
    columns = dict.fromkeys(name for _, row in rows for name in row)
    unused = [name for name in columns if name not in (*needed, *OPTIONAL)]
    name_unused(path.name, unused, args.group)
    shared_images({split: [item.image_id for item in items] for split, items in splits.items()})
    if not fractions:  # these decide nothing here, so the shards do not record them
        del args.group, args.test_share, args.valid_share, args.seed
    dropped, facts = {next(iter(splits)): drops}, groups.facts() or None
    prepare(splits, dropped, args, source=path.name, facts=facts)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = corpus_parser(__doc__)
    add_table_options(parser)
    return run(make_shards, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
