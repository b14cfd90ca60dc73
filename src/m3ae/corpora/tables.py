"""Files of rows: lines, JSON and tables; what is wrong with them is counted or named."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from m3ae.corpora.items import Drops


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line that is not blank.

    Bytes that are not UTF-8 come as lone surrogates: `prepare` drops the texts that hold them.
    """
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
    path: Path, columns: Sequence[str], drops: Drops
) -> Iterator[tuple[int, dict[str, str]]]:
    """Number (from 1) and cells by column of each row of a .csv or .csv.gz with a header line.

    Cells come as they stand; bytes that are not UTF-8 as lone surrogates. Rows that have not as
    many cells as the header are counted. Raises ValueError naming the file where it is damaged or
    lacks one of `columns`.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    line = 0
    try:
        with opened(path, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            for name in columns:
                if header.count(name) != 1:
                    many = "no" if name not in header else "more than one"
                    has = ", ".join(header) or "none"
                    raise ValueError(f"{path}: {many} column {name!r}; it has {has}")
            rows = (cells for cells in reader if cells)
            for number, cells in enumerate(rows, start=1):
                line = reader.line_num
                if len(cells) == len(header):
                    yield number, dict(zip(header, cells, strict=True))
                else:
                    reason = "row: more or fewer cells than the header has"
                    drops.add(reason, f"{path.name}: row {number}, line {line}: {len(cells)}")
    except csv.Error as error:
        raise ValueError(f"{path}: after line {line}: {error}; repair or download it") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: damaged ({error}); download it again") from error
