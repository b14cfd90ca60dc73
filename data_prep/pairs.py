r"""Your own images and texts -> shards.

A table FILE (.csv, .tsv, .jsonl or .parquet) with the columns `image` and `text`, and if you like
`split` (default: train) and `id`. `image` is a path relative to --raw; in a parquet file it may
also be the image itself (a struct with `bytes`), and then each row is an image of its own; else
several rows with the same image in a split are several texts of it. Rows whose path leaves --raw
are left out.

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
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from m3ae.data.prepare import (
    Drops,
    Item,
    Stored,
    add_arguments,
    need,
    prepare,
    read_lines,
    run,
)

Row = tuple[str, dict[str, Any]]  # where it stands, its columns


def read_csv(path: Path, delimiter: str) -> Iterator[Row]:
    """Rows of a table with a header line."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        _need_columns(path, reader.fieldnames or ())
        try:
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


@lru_cache(maxsize=1)
def _image_column(path: Path, group: int) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path).read_row_group(group, columns=["image"])["image"]


@dataclass(frozen=True)
class InParquet:
    """An image stored in a row of a parquet file."""

    path: Path
    group: int
    row: int
    name: str

    def read_bytes(self) -> bytes:
        """The encoded image; the row group read last stays in memory."""
        return _image_column(self.path, self.group)[self.row]["bytes"].as_py() or b""


def read_parquet(path: Path) -> Iterator[Row]:
    """Rows of a parquet file; images stored in it come as `InParquet`."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("parquet tables need pyarrow: pip install 'm3ae[parquet]'") from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: not a parquet file ({error})") from error
    schema = file.schema_arrow
    _need_columns(path, schema.names)
    stored = pyarrow.types.is_struct(schema.field("image").type)
    columns = [name for name in ("text", "split", "id") if name in schema.names]
    columns += [] if stored else ["image"]
    for group in range(file.num_row_groups):
        for number, row in enumerate(file.read_row_group(group, columns=columns).to_pylist()):
            where = f"{path.name} row group {group} row {number}"
            if stored:
                # Not named by its path, which some tables repeat for different images.
                row["image"] = InParquet(path, group, number, f"{path.stem}-{group}-{number}")
            yield where, row


def _need_columns(path: Path, names: Sequence[str]) -> None:
    for name in ("image", "text"):
        if name not in names:
            raise ValueError(f"{path}: no column {name!r}; it has {', '.join(names) or 'none'}")


def inside(raw: Path, image: str) -> Path | None:
    """The image's path, or None where it leaves `raw` (links inside `raw` may point anywhere)."""
    path = Path(os.path.normpath(raw / image))
    return path if path.is_relative_to(os.path.normpath(raw)) else None


def read_items(rows: Iterator[Row], raw: Path, drops: Drops) -> dict[str, list[Item]]:
    """Items by split; rows with the same image are one item. The first row's id names it."""
    found: dict[str, dict[str, tuple[str, Path | Stored, list[str]]]] = {}
    for where, row in rows:
        image, text, split = row.get("image"), row.get("text"), row.get("split") or "train"
        if not image or text is None or text == "":
            drops.add("row: no image or no text", where)
            continue
        if not re.fullmatch(r"\w[\w-]*", str(split)) or split == "tokenizer":
            drops.add("row: a split is named by letters, digits, _ and -", f"{where}: {split!r}")
            continue
        name = image.name if isinstance(image, InParquet) else str(image)
        source = image if isinstance(image, InParquet) else inside(raw, name)
        if source is None:
            drops.add("row: image path leaves --raw", f"{where}: {name}")
            continue
        key = name if row.get("id") in (None, "") else str(row["id"])
        _, _, texts = found.setdefault(str(split), {}).setdefault(name, (key, source, []))
        texts.append(str(text))
    return {split: [Item(key, source, tuple(texts), name)
                    for name, (key, source, texts) in images.items()]
            for split, images in found.items()}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--table", type=Path, required=True, metavar="FILE",
                        help=".csv, .tsv, .jsonl or .parquet")  # fmt: skip
    args = parser.parse_args(argv)

    def body() -> None:
        path = need(args.table, "a table of images and texts")
        need(args.raw, "the folder that image paths start from")
        drops = Drops()
        readers = {".csv": lambda: read_csv(path, ","), ".tsv": lambda: read_csv(path, "\t"),
                   ".jsonl": lambda: read_jsonl(path, drops),
                   ".parquet": lambda: read_parquet(path)}  # fmt: skip
        if path.suffix not in readers:
            raise ValueError(f"{path}: a table ends in {', '.join(readers)}")
        splits = read_items(readers[path.suffix](), args.raw, drops)
        if not splits:
            raise ValueError(f"{path}: no usable row: {drops.as_dict()}")
        for name, items in splits.items():
            others = {item.image_id for split in splits if split != name for item in splits[split]}
            shared = [item.image_id for item in items if item.image_id in others]
            if shared:
                print(f"warning: {len(shared)} images of split {name} are in another split too, "
                      f"e.g. {shared[0]}", file=sys.stderr)  # fmt: skip
        prepare(splits, {next(iter(splits)): drops}, args, source=path.name)

    return run(body)


if __name__ == "__main__":
    sys.exit(main())
