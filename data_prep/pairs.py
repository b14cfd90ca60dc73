r"""Your own images and texts -> shards.

A table FILE (.csv, .tsv, .jsonl or .parquet) with the columns `image` and `text`, and if you like
`split` (default: train) and `id`. `image` is a path relative to --raw; in a parquet file it may
also be the image itself (binary, or a struct with `bytes`), and then each row is an image of its
own; else several rows with the same image in a split are several texts of it. Rows whose path
leaves --raw are left out.

example: python data_prep/pairs.py --table pairs.csv --raw images --out data/mine \
             --tokenizer roberta-base
"""

import argparse
import csv
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from m3ae.command import exit_status
from m3ae.corpora.items import Drops, Item, Stored
from m3ae.corpora.prepare import add_arguments, prepare
from m3ae.corpora.stored import InParquet, holds_images, parquet_rows
from m3ae.corpora.tables import read_lines
from m3ae.files import need

Row = tuple[str, dict[str, Any]]  # where it stands, its columns


def read_csv(path: Path, delimiter: str) -> Iterator[Row]:
    """Rows of a table with a header line."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        # strict: else a quote that is never closed swallows rows without a word.
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            _need_columns(path, reader.fieldnames or ())
            for row in reader:
                yield f"{path.name}:{reader.line_num}", row
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: {error}; repair the table") from error


def read_jsonl(path: Path, drops: Drops) -> Iterator[Row]:
    """Rows of a file with one JSON object a line."""
    for number, line in read_lines(path):
        where = f"{path.name}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            drops.add("row: not JSON", f"{where}: {error}")
            continue
        if isinstance(row, dict):
            yield where, row
        else:
            drops.add("row: not an object", f"{where}: {line[:60]}")


def read_parquet(path: Path) -> Iterator[Row]:
    """Rows of a parquet file; images stored in it come as `InParquet`."""
    stored = holds_images(path, "image")
    columns = ["text"] if stored else ["image", "text"]
    for row in parquet_rows([path], columns, ("split", "id"), image="image" if stored else ""):
        if stored:
            row.values["image"] = InParquet(row.file, row.row_group, row.row, "image")
        yield row.where, row.values


def _need_columns(path: Path, names: Sequence[str]) -> None:
    for name in ("image", "text"):
        if name not in names:
            raise ValueError(f"{path}: no column {name!r}; it has {', '.join(names) or 'none'}")


def inside(raw: Path, image: str) -> Path | None:
    """The image's path, or None where it leaves `raw` (links inside `raw` may point anywhere)."""
    path = Path(os.path.normpath(raw / image))
    return path if path.is_relative_to(os.path.normpath(raw)) and "\0" not in image else None


def _check(row: dict[str, Any]) -> str:
    """Why a row cannot be used, or "". None, a column that is not there and "" are the same."""
    image, text, split, name = (row.get(column) for column in ("image", "text", "split", "id"))
    if image in (None, "") or text in (None, ""):
        return "no image or no text"
    if None in row:
        return "more cells than columns"
    if not isinstance(image, str | InParquet) or not isinstance(text, str):
        return "image or text is not a string"
    if not isinstance(name, str | int | None) or isinstance(name, bool):
        return "id is neither a string nor a whole number"
    split = "train" if split in (None, "") else str(split)
    if split == "tokenizer" or not re.fullmatch(r"\w[\w-]*", split):
        return "a split is named by letters, digits, _ and -"
    return ""


def read_items(rows: Iterator[Row], raw: Path, drops: Drops) -> dict[str, list[Item]]:
    """Items by split; rows with the same image are one item. The first row's id names it."""
    found: dict[str, dict[str, tuple[str, Path | Stored, list[str]]]] = {}
    for where, row in rows:
        reason = _check(row)
        if reason:
            drops.add(f"row: {reason}", f"{where}: {str(row)[:60]}")
            continue
        image, split = row["image"], str(row.get("split") or "train")
        name = image.name if isinstance(image, InParquet) else image
        source = image if isinstance(image, InParquet) else inside(raw, name)
        if source is None:
            drops.add("row: image path leaves --raw", f"{where}: {name}")
            continue
        key = name if row.get("id") in (None, "") else str(row["id"])
        _, _, texts = found.setdefault(split, {}).setdefault(name, (key, source, []))
        texts.append(row["text"])
    return {
        split: [
            Item(key, source, tuple(texts), name) for name, (key, source, texts) in images.items()
        ]
        for split, images in found.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument(
        "--table", type=Path, required=True, metavar="FILE", help=".csv, .tsv, .jsonl or .parquet"
    )
    args = parser.parse_args(argv)

    def body() -> None:
        path = need(args.table, "a table of images and texts")
        need(args.raw, "the folder that image paths start from")
        drops = Drops()
        readers = {
            ".csv": lambda: read_csv(path, ","),
            ".tsv": lambda: read_csv(path, "\t"),
            ".jsonl": lambda: read_jsonl(path, drops),
            ".parquet": lambda: read_parquet(path),
        }
        if path.suffix not in readers:
            raise ValueError(f"{path}: a table ends in {', '.join(readers)}")
        splits = read_items(readers[path.suffix](), args.raw, drops)
        if not splits:
            raise ValueError(f"{path}: no usable row: {drops.as_dict()}")
        for name, items in splits.items():
            others = {item.image_id for split in splits if split != name for item in splits[split]}
            shared = [item.image_id for item in items if item.image_id in others]
            if shared:
                print(
                    f"warning: {len(shared)} images of split {name} are in another split too, "
                    f"e.g. {shared[0]}",
                    file=sys.stderr,
                )
        prepare(splits, {next(iter(splits)): drops}, args, source=path.name)

    return exit_status(body)


if __name__ == "__main__":
    sys.exit(main())
