"""Files of rows: lines, JSON and tables; what is wrong with them is counted or named."""

import codecs
import csv
import gzip
import io
import json
import math
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from m3ae.corpora.items import Drops, Stored
from m3ae.corpora.stored import InParquet, column_names, holds_images, parquet_rows
from m3ae.files import is_unicode, most_expanded, printable, redecoded

Row = tuple[int, dict[str, Any]]  # number from 1, cells by column

csv.field_size_limit(2**31 - 1)  # reports are longer than the 128 KiB that it allows
_SEPARATOR = re.compile(r'"?sep=([^\w\s"]|\t)"?[\r\n]*', re.IGNORECASE)  # Excel's own first line
_DELIMITERS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t"}


def read_lines(path: Path, encoding: str | None = None) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line that is not blank; bad UTF-8 as lone surrogates.

    encoding: of lines that are not UTF-8.
    """
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, redecoded(line.rstrip("\r\n"), encoding)


def read_json_list(path: Path, encoding: str | None = None) -> list[Any]:
    """The list in a JSON file; bad UTF-8 as lone surrogates, or read in `encoding`.

    Raises ValueError naming the file if it is none.
    """
    data = path.read_bytes()
    try:
        rows = json.loads(data.decode(json.detect_encoding(data), "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: a {type(rows).__name__} where a list of questions should be")
    return [_redecode(row, encoding) if isinstance(row, dict) else row for row in rows]


def read_table(
    path: Path,
    columns: Sequence[str],
    drops: Drops,
    optional: Sequence[str] = (),
    names: Mapping[str, str] | None = None,
    encoding: str | None = None,
) -> Iterator[Row]:
    """Rows of a .csv (or .csv.gz), .tsv, .jsonl or .parquet file that has `columns`.

    Cells come as they stand; bytes that are not UTF-8 as lone surrogates, images in a column
    `image` as `InParquet`, and parquet columns that are not asked for as None. What is no row is
    counted. `names`: what the file calls some of the columns; `encoding`: of cells that are not
    UTF-8. Raises ValueError naming the file where it is damaged or has not one of each column.
    """
    wanted = {name: (names or {}).get(name, name) for name in (*columns, *optional)}
    asked = {name: wanted[name] for name in wanted if name in columns or name in (names or {})}
    others = [column for column in wanted.values() if column not in asked.values()]
    header = _Header(path, asked, others, hint=names is not None, encoding=encoding)
    ending = "".join(path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:])
    if ending.lower() in _DELIMITERS:
        rows = _read_delimited(header, drops, _DELIMITERS[ending.lower()])
    elif ending.lower() == ".jsonl":
        rows = _read_json_lines(header, drops)
    elif ending.lower() == ".parquet":
        rows = _read_parquet(header, wanted["image"] if "image" in columns else "")
    else:
        raise ValueError(f"{path}: a table ends in .csv, .tsv, .jsonl, .parquet")
    if encoding is not None:
        rows = ((number, _redecode(row, encoding)) for number, row in rows)
    return ((number, _rename(row, wanted)) for number, row in rows)


def _redecode(row: dict[str, Any], encoding: str | None) -> dict[str, Any]:
    return {k: redecoded(v, encoding) if isinstance(v, str) else v for k, v in row.items()}


def _rename(row: dict[str, Any], wanted: Mapping[str, str]) -> dict[str, Any]:
    """A row by the names that are asked for; `wanted`: the file's name of each."""
    if all(name == column for name, column in wanted.items()):
        return row
    found = {name: row[column] for name, column in wanted.items() if column in row}
    for column in (column for column in row if column not in wanted.values()):
        found[f"{column} (of the file)" if column in wanted else column] = row[column]
    return found


@dataclass(frozen=True)
class _Header:
    """The columns that a file should have, by its own names; of needed ones, ours too."""

    path: Path
    needed: dict[str, str]
    optional: list[str]
    hint: bool  # whether --columns is there to be named
    encoding: str | None  # of names that are not UTF-8

    def cells(self, line: str, delimiter: str) -> list[str]:
        """The names in a line, without outer white space; none where something else cuts it."""
        try:
            (names,) = csv.reader([line], delimiter=delimiter, strict=True)
        except (csv.Error, ValueError):  # the real reading says what is wrong with the file
            return []
        return [redecoded(name.strip(), self.encoding) for name in names]

    def likeness(self, has: Sequence[str]) -> tuple[int, int]:
        """How many of the needed columns are there; without any, how many are there at all."""
        found = len(set(self.needed.values()).intersection(has))
        return found, 0 if found else len(has)

    def check(self, has: Sequence[str]) -> None:
        """Raise ValueError unless each needed column is there once and no optional one twice."""
        columns = [*self.needed.items(), *(("", column) for column in self.optional)]
        for name, column in columns:
            count = has.count(column)
            if count > 1 or (name and not count):
                many = "more than one" if count else "no"
                found = printable(", ".join(has)) or "none"
                message = f"{self.path}: {many} column {column!r}; it has {found}"
                use = f"; say which one to take with --columns {name}=COLUMN"
                raise ValueError(message + (use if self.hint and not count else ""))


def _refuse_utf16(path: Path, head: bytes) -> None:
    """Raise ValueError where a file's first bytes are those of UTF-16, as Excel writes it."""
    if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or b"\0" in head[:2]:
        raise ValueError(f"{path}: is UTF-16; save it as UTF-8 (Excel: `CSV UTF-8`)")


class _Bounded(io.RawIOBase):
    """A gzip file that ends in ValueError where it expands to more than `most_expanded`."""

    def __init__(self, path: Path) -> None:
        self.path, self.file, self.most = path, gzip.open(path), most_expanded(path)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def readinto(self, into: Any) -> int:
        count = self.file.readinto(into)
        if self.file.tell() > self.most:
            raise ValueError(f"{self.path}: expands to more than {self.most} bytes; a bomb")
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


def _opened(path: Path) -> BinaryIO:
    return io.BufferedReader(_Bounded(path)) if path.suffix.lower() == ".gz" else open(path, "rb")


def _read_delimited(header: _Header, drops: Drops, delimiter: str) -> Iterator[Row]:
    path, line = header.path, 0
    try:
        with _opened(path) as file:
            _refuse_utf16(path, file.read(2))
        with io.TextIOWrapper(
            _opened(path), encoding="utf-8-sig", errors="surrogateescape", newline=""
        ) as file:
            first = file.readline()
            said = _SEPARATOR.fullmatch(first)
            if said:
                delimiter = said[1]
            else:  # spreadsheets write the separator of their country, whatever the ending
                marks = [delimiter, *(mark for mark in ",;\t" if mark != delimiter)]
                marks = [mark for mark in marks if header.cells(first, mark)] or marks[:1]
                delimiter = max(marks, key=lambda mark: header.likeness(header.cells(first, mark)))
                file.seek(0)
            # strict: else a quote that is never closed swallows rows without a word.
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            has = [redecoded(name.strip(), header.encoding) for name in next(reader, [])]
            header.check(has)
            for number, cells in enumerate((cells for cells in reader if cells), start=1):
                line = reader.line_num + bool(said)
                if len(cells) == len(has):
                    yield number, dict(zip(has, cells, strict=True))
                else:
                    where = f"{path.name}: row {number}, line {line}: {len(cells)}"
                    drops.add("row: more or fewer cells than the header has", where)
    except csv.Error as error:
        raise ValueError(f"{path}: after line {line}: {error}; repair or download it") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: damaged ({error}); download it again") from error


def _read_json_lines(header: _Header, drops: Drops) -> Iterator[Row]:
    path, has = header.path, dict[str, None]()
    with open(path, "rb") as file:
        _refuse_utf16(path, file.read(2))
    for number, (line, text) in enumerate(read_lines(path), start=1):
        where = f"{path.name}: row {number}, line {line}"
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            drops.add("row: not JSON", f"{where}: {error}")
            continue
        if isinstance(row, dict):
            has |= dict.fromkeys(row)
            yield number, row
        else:
            drops.add("row: not an object", where)
    if has:
        header.check(list(has))


def _read_parquet(header: _Header, image: str) -> Iterator[Row]:
    path, has = header.path, column_names(header.path)
    header.check(has)
    stored = image if image and holds_images(path, image) else ""
    read = [column for column in dict.fromkeys(header.needed.values()) if column != stored]
    others = dict.fromkeys(has)
    rows = parquet_rows([path], read, header.optional, image=stored)
    for number, (place, row) in enumerate(rows, start=1):
        yield number, {**others, **row, **({stored: place} if stored else {})}


def read_column_names(given: Sequence[str] | None, known: Sequence[str]) -> dict[str, str]:
    """What a table calls columns, from --columns NAME=COLUMN ...; ValueError where it is none."""
    names: dict[str, str] = {}
    for pair in given or ():
        name, _, column = (part.strip() for part in pair.partition("="))
        if name not in known or name in names or not column:
            form = f"NAME=COLUMN, each NAME once, of {', '.join(known)}"
            raise ValueError(f"--columns {pair}: should be {form}")
        names[name] = column
    return names


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


def path_below(raw: Path, name: str) -> str:
    """Where a file lies below --raw, however it is written; ValueError where it lies elsewhere.

    With backslashes, as an absolute path, or by way of `..`.
    """
    if "\0" in name or re.match(r"[A-Za-z]:[\\/]", name):
        raise ValueError("image leads outside --raw")
    if "\\" in name and not os.path.isfile(raw / name):
        name = name.replace("\\", "/")
    path = os.path.normpath(name)
    if os.path.isabs(path):
        places = (os.path.abspath(raw), os.path.realpath(raw))
        found = [os.path.relpath(path, place) for place in places]
        path = next((part for part in found if not _leads_out(part)), path)
    if _leads_out(path):
        raise ValueError("image leads outside --raw")
    return path


def _leads_out(path: str) -> bool:
    return path in (".", "..") or path.startswith(("../", "/"))


def split_of(row: dict[str, Any]) -> str:
    """A row's split (default: train); raises ValueError as `cell` does."""
    split = cell(row, "split") or "train"
    if not re.fullmatch(r"\w[\w-]*", split) or split == "tokenizer":
        raise ValueError("a split is named by letters, digits, _ and -")
    return split


def image_of(row: dict[str, Any], raw: Path) -> tuple[str, Stored | None]:
    """The name of a row's image, and the image if the table holds it.

    Raises ValueError as `cell` does, also where the image leads out of --raw.
    """
    stored = row.get("image")
    if isinstance(stored, InParquet):
        return stored.name, stored
    name = cell(row, "image")
    if not name:
        raise ValueError("no image")
    return path_below(raw, name), None


def shared_images(images: dict[str, Iterable[str]], what: str = "images") -> set[str]:
    """Images that are in two of the splits or more; each split that has some is named on stderr.

    `what` else they are.
    """
    sets = {split: set(names) for split, names in images.items()}
    places = Counter(chain(*sets.values()))
    shared = {name for name, count in places.items() if count > 1}
    for split, names in sets.items():
        if found := names & shared:
            say = f"{len(found)} {what} of split {split} are in another split too"
            print(f"warning: {say}, e.g. {printable(min(found))}", file=sys.stderr)
    return shared
