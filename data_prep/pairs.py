r"""Your own images and texts -> shards.

A table FILE (.csv, .tsv, .jsonl or .parquet; cells between commas, semicolons or tabs), or several
of them, a pattern ("data/*.parquet") or a folder of the hub's parquet files, with the columns
`image` and `text`, and if you like `split` (default: train) and `id`; a table that calls them
otherwise is read with --columns, e.g. image=filename "text=clinical notes". `image` is a path below
--raw, however it is written, of a picture or a DICOM file, and rows with the same one in a split
are several texts of it; in a parquet file it may also be the image itself (binary, or a struct with
`bytes`), and then each row is an image of its own. An `id` that several images have names none of
them: their paths do.

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
from m3ae.corpora.items import Item, Stored
from m3ae.corpora.own_table import SPLIT_AND_ID, OwnTable, add_table_options, read_own_table
from m3ae.corpora.prepare import corpus_parser, prepare
from m3ae.corpora.splits import ORDER, Groups, check_undrawn, read_fractions
from m3ae.corpora.tables import cell, shared_images, split_of
from m3ae.files import printable


def read_items(table: OwnTable) -> dict[str, list[Item]]:
    """Items by split; rows with the same image are one item, which the first row's id names.

    An id of several images names none of them.
    """
    found: dict[str, dict[str, tuple[str, Path | Stored, list[str]]]] = {}
    for where, _, row in table.rows:
        split = image = ""
        try:
            split = split_of(row)
            image, stored = table.image(row)
            text, key = cell(row, "text"), cell(row, "id") or image
            group = table.groups.read(row)
            if not text:
                raise ValueError("no text")
        except ValueError as error:
            table.leave_out(error, where, split, image)
            continue
        first = (key, stored or table.raw / image, [])
        found.setdefault(split, {}).setdefault(image, first)[2].append(text)
        table.groups.add(split, image, group)
    items: dict[str, list[Item]] = {}
    for split, some in found.items():
        images = Counter(key for key, *_ in some.values())
        if shared := [key for key, count in images.items() if count > 1]:
            said = f"{len(shared)} ids of split {split} are of several images"
            said = printable(f"{said}, e.g. {shared[0]}")
            print(f"note: {table.name}: {said}; their files name these images", file=sys.stderr)
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
    fractions, source = read_fractions(args), args.table[0].name
    table = read_own_table(args, ("image", "text"), SPLIT_AND_ID)
    splits = read_items(table)
    if not splits:
        raise table.no_usable_row()
    if fractions:
        check_undrawn(table.name, splits)
        splits = draw_splits(splits["train"], table.groups, fractions, args.seed)
    images = {split: {item.image_id for item in items} for split, items in splits.items()}
    shared_images(images)
    dropped, facts = table.book(images, drawn=bool(fractions))
    if not fractions:  # these decide nothing here, so the shards do not record them
        del args.group, args.test_share, args.valid_share, args.seed
    facts |= table.groups.facts()
    prepare(splits, dropped, args, source=source, facts=facts or None)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = corpus_parser(__doc__)
    add_table_options(parser)
    return run(make_shards, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
