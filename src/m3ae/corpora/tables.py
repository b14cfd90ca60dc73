"""Files of rows: lines, JSON and tables; what is wrong with them is counted or named."""

import csv
import gzip
import json
import math
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from m3ae.corpora.items import Drops, Stored, is_inside
from m3ae.corpora.stored import InParquet, column_names, holds_images, parquet_rows
from m3ae.files import is_unicode

Row = tuple[int, dict[str, Any]]  # number from 1, cells by column

_DELIMITERS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t"}


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line that is not blank; bad UTF-8 as lone surrogates."""
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line.rstrip("\r\n")


def read_json_list(path: Path) -> list[Any]:
    """The list in a JSON file; raises ValueError naming the file if it is none."""
    try:
        rows = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: a {type(rows).__name__} where a list of questions should be")
    return rows


def read_table(
    path: Path, columns: Sequence[str], drops: Drops, optional: Sequence[str] = ()
) -> Iterator[Row]:
    """Rows of a .csv (or .csv.gz), .tsv, .jsonl or .parquet file that has `columns`.

    Cells come as they stand; bytes that are not UTF-8 as lone surrogates, images in a column
    `image` as `InParquet`, and parquet columns that are not asked for as None. What is no row is
    counted. Raises ValueError naming the file where it is damaged or has not one of each column.
    """
    ending = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    if ending in _DELIMITERS:
        return _read_delimited(path, columns, drops, optional, _DELIMITERS[ending])
    if ending == ".jsonl":
        return _read_json_lines(path, drops)
    if ending == ".parquet":
        return _read_parquet(path, columns, optional)
    raise ValueError(f"{path}: a table ends in .csv, .tsv, .jsonl, .parquet")


def _read_delimited(
    path: Path, columns: Sequence[str], drops: Drops, optional: Sequence[str], delimiter: str
) -> Iterator[Row]:
    opened = gzip.open if path.suffix == ".gz" else open
    line = 0
    try:
        with opened(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            # strict: else a quote that is never closed swallows rows without a word.
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(reader, [])]
            for name in (*columns, *optional):
                count = header.count(name)
                if count > 1 or (not count and name in columns):
                    many, has = "more than one" if count else "no", ", ".join(header) or "none"
                    raise ValueError(f"{path}: {many} column {name!r}; it has {has}")
            for number, cells in enumerate((cells for cells in reader if cells), start=1):
                line = reader.line_num
                if len(cells) == len(header):
                    yield number, dict(zip(header, cells, strict=True))
                else:
                    where = f"{path.name}: row {number}, line {line}: {len(cells)}"
                    drops.add("row: more or fewer cells than the header has", where)
    except csv.Error as error:
        raise ValueError(f"{path}: after line {line}: {error}; repair or download it") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: damaged ({error}); download it again") from error


def _read_json_lines(path: Path, drops: Drops) -> Iterator[Row]:
    for number, (line, text) in enumerate(read_lines(path), start=1):
        where = f"{path.name}: row {number}, line {line}"
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            drops.add("row: not JSON", f"{where}: {error}")
            continue
        if isinstance(row, dict):
            yield number, row
        else:
            drops.add("row: not an object", where)


def _read_parquet(path: Path, columns: Sequence[str], optional: Sequence[str]) -> Iterator[Row]:
    stored = "image" in columns and holds_images(path, "image")
    read = [name for name in columns if not (stored and name == "image")]
    others = dict.fromkeys(column_names(path))
    rows = parquet_rows([path], read, optional, image="image" if stored else "")
    for number, (place, row) in enumerate(rows, start=1):
        yield number, {**others, **row, **({"image": place} if stored else {})}


def cell(row: dict[str, Any], name: str) -> str:
    """A cell as text without outer white space, "" where it is null or not there.

    Raises ValueError, whose message is a reason to leave the row out.
    """
    value = row.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{name} is neither text nor a number")
    text = str(value).strip()
    if not is_unicode(text):
        raise ValueError(f"{name} not UTF-8")
    return text


def split_and_image(row: dict[str, Any]) -> tuple[str, str, Stored | None]:
    """A row's split (default: train), its image's name, and the image if the table holds it.

    Raises ValueError as `cell` does, also where the image leads out of --raw.
    """
    stored, split = row.get("image"), cell(row, "split") or "train"
    if not re.fullmatch(r"\w[\w-]*", split) or split == "tokenizer":
        raise ValueError("a split is named by letters, digits, _ and -")
    if isinstance(stored, InParquet):
        return split, stored.name, stored
    name = cell(row, "image")
    if not name:
        raise ValueError("no image")
    if not is_inside(name):
        raise ValueError("image leads outside --raw")
    return split, str(PurePosixPath(name)), None


def shared_images(images: dict[str, Iterable[str]], what: str = "images") -> set[str]:
    """Images that are in two of the splits or more; each split that has some is named on stderr.

    `what` else they are.
    """
    sets = {split: set(some) for split, some in images.items()}
    places = Counter(chain(*sets.values()))
    shared = {name for name, count in places.items() if count > 1}
    for split, some in sets.items():
        if found := some & shared:
            say = f"{len(found)} {what} of split {split} are in another split too"
            print(f"warning: {say}, e.g. {min(found)}", file=sys.stderr)
    return shared
