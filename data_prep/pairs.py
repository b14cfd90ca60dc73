r"""Your own images and texts -> shards.

A table FILE (.csv, .tsv, .jsonl or .parquet) with the columns `image` and `text`, and if you like
`split` (default: train) and `id`. `image` is a path below --raw, and rows with the same one in a
split are several texts of it; in a parquet file it may also be the image itself (binary, or a
struct with `bytes`), and then each row is an image of its own.

example: python data_prep/pairs.py --table pairs.csv --raw images --out data/mine \
             --tokenizer roberta-base
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from m3ae.command import run
from m3ae.corpora.items import Drops, Item, Stored
from m3ae.corpora.prepare import corpus_parser, prepare
from m3ae.corpora.tables import Row, cell, read_table, shared_images, split_and_image
from m3ae.files import need


def read_items(rows: Iterable[Row], file: str, raw: Path, drops: Drops) -> dict[str, list[Item]]:
    """Items by split; rows with the same image are one item, which the first row's id names."""
    found: dict[str, dict[str, tuple[str, Path | Stored, list[str]]]] = {}
    for number, row in rows:
        try:
            split, image, stored = split_and_image(row)
            text, key = cell(row, "text"), cell(row, "id") or image
            if not text:
                raise ValueError("no text")
        except ValueError as error:
            drops.add(f"row: {error}", f"{file}: row {number}")
            continue
        first = (key, stored or raw / image, [])
        found.setdefault(split, {}).setdefault(image, first)[2].append(text)
    return {
        split: [Item(key, place, tuple(texts), name) for name, (key, place, texts) in some.items()]
        for split, some in found.items()
    }


def make_shards(args: argparse.Namespace) -> None:
    """The whole work."""
    path, drops = need(args.table, "a table of images and texts"), Drops()
    need(args.raw, "the folder that image paths start from")
    rows = read_table(path, ("image", "text"), drops, ("split", "id"))
    splits = read_items(rows, path.name, args.raw, drops)
    if not splits:
        raise ValueError(f"{path}: no usable row: {drops.as_dict()}")
    shared_images({split: [item.image_id for item in items] for split, items in splits.items()})
    prepare(splits, {next(iter(splits)): drops}, args, source=path.name)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser, kinds = corpus_parser(__doc__), ".csv, .tsv, .jsonl or .parquet"
    parser.add_argument("--table", type=Path, required=True, metavar="FILE", help=kinds)
    return run(make_shards, parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
