"""Images inside other files: members of a zip archive, rows of parquet files.

Nothing is extracted to disk. Each process keeps the archives that it reads open and the parquet row
group that it read last in memory. pyarrow is needed for parquet alone, and imported there.
"""

import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from m3ae.corpora.items import Stored
from m3ae.data.exclusions import IMAGE_SUFFIXES
from m3ae.files import most_expanded, one_line, printable

_ROWS = 16  # of a column of images that are in memory at a time
_SUFFIXES = (".jpg", ".jpeg", ".png")
IMAGE_BYTES = 100_000_000  # an encoded image is far smaller; what is more is a bomb
# What zipfile and its decompressors raise for damaged, encrypted or unknown content.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error)
_ZIP_ERRORS += (EOFError, RuntimeError, ValueError, OverflowError)
SPLIT_NAMES = {"train": ("train",), "valid": ("validation", "valid", "val"), "test": ("test",)}
SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}

Stamp = tuple[int, int]  # when a file was changed and its size: what caches know it by


def _stamp(path: Path) -> Stamp:
    facts = path.stat()
    return facts.st_mtime_ns, facts.st_size


@lru_cache(maxsize=4)
def _archive(path: Path, stamp: Stamp) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return _archive(path, _stamp(path))
    except _ZIP_ERRORS as error:
        raise ValueError(
            f"{path}: not a readable zip archive ({error}); download it again"
        ) from error


def zip_names(archive: Path) -> list[str]:
    """Names of the files (no folders) in a zip, in its order; ValueError where it is none."""
    names = _open_zip(archive).namelist()
    return [name for name in names if name and not name.endswith(("/", "\\"))]


def plain_name(member: str) -> str:
    """The name of a zip's member between slashes; archives made on Windows have backslashes."""
    return member.replace("\\", "/")


class FileNames:
    """The files of a folder or archive, found though the case or the suffix is another."""

    def __init__(self, names: Iterable[str]) -> None:
        self.exact, self.folded = set(names), dict[str, str]()
        for name in sorted(self.exact):
            self.folded.setdefault(name.casefold(), name)

    def find(self, stem: str) -> str | None:
        """STEM.jpg, else what is nearest to it; None where there is nothing like it."""
        for name in (f"{stem}{suffix}" for suffix in _SUFFIXES):
            found = name if name in self.exact else self.folded.get(name.casefold())
            if found:
                return found
        return None


def _by_folded(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(plain_name(name).casefold(), []).append(name)
    return found


@lru_cache(maxsize=64)
def _folder_names(folder: Path, stamp: Stamp) -> dict[str, list[str]]:
    return _by_folded(os.listdir(folder))


@lru_cache(maxsize=4)
def _zip_members(archive: Path, stamp: Stamp) -> dict[str, list[str]]:
    return _by_folded(zip_names(archive))


def on_disk(image: Path | Stored) -> Path | Stored:
    """An image by the name that its folder or zip has, where that is another by case alone.

    The image itself where there is no such file, or several (a.jpg and A.JPG for a.JPG).
    """
    if isinstance(image, InZip):
        members = _zip_members(image.archive, _stamp(image.archive))
        names = members.get(plain_name(image.member).casefold(), [])
        return replace(image, member=names[0]) if len(names) == 1 else image
    if isinstance(image, Path) and os.path.isdir(image.parent):  # False for a name that is too long
        names = _folder_names(image.parent, _stamp(image.parent))
        names = names.get(image.name.casefold(), [])
        return image.with_name(names[0]) if len(names) == 1 else image
    return image


def has_images(folder: Path) -> bool:
    """Whether a folder is there and has an image file, or a folder, in it."""
    return folder.is_dir() and any(
        path.suffix.lower() in IMAGE_SUFFIXES or path.is_dir() for path in folder.iterdir()
    )


@dataclass(frozen=True)
class InZip:
    """An image in a zip archive; `member` is its whole name there."""

    archive: Path
    member: str

    @property
    def name(self) -> str:
        """The member's file name."""
        return PurePosixPath(self.member).name

    def read_bytes(self) -> bytes:
        """The encoded image; FileNotFoundError where it is not in there, OSError where damaged."""
        try:
            archive = _open_zip(self.archive)
            info = archive.getinfo(self.member)
            if info.file_size > IMAGE_BYTES:
                raise OSError(f"{self.member} of {self.archive}: claims {info.file_size} bytes")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise OSError(f"{self.member} of {self.archive}: neither stored nor deflated")
            with archive.open(
                info
            ) as file:  # one byte more than it claims, then its sum is checked
                return file.read(info.file_size) + file.read(1)
        except KeyError as error:
            raise FileNotFoundError(f"{self.archive}: has no {self.member}") from error
        except _ZIP_ERRORS as error:
            raise OSError(f"{self.member} of {self.archive}: {error}") from error


def _pyarrow() -> ModuleType:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("parquet files need pyarrow: pip install 'm3ae[parquet]'") from error
    return pyarrow


@lru_cache(maxsize=2)
def _parquet(path: Path, stamp: Stamp) -> Any:
    return _pyarrow().parquet.ParquetFile(path)


def _open_parquet(path: Path) -> Any:
    pyarrow = _pyarrow()
    try:
        return _parquet(path, _stamp(path))
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError, UnicodeError) as error:
        raise ValueError(
            f"{path}: not a parquet file ({one_line(error)}); download it again"
        ) from error


class _ImageColumn:
    """A column of one row group, read forward some rows at a time; going back begins anew.

    Whole, a group may be larger than the memory, or than a column of structs may be.
    """

    def __init__(self, path: Path, row_group: int, column: str) -> None:
        self.file, self.row_group, self.column = _open_parquet(path), row_group, column
        self._begin()

    def _begin(self) -> None:
        groups, columns = [self.row_group], [self.column]
        self.batches = self.file.iter_batches(_ROWS, row_groups=groups, columns=columns)
        self.first, self.values = 0, ()

    def __getitem__(self, row: int) -> Any:
        if row < self.first:
            self._begin()
        while row >= self.first + len(self.values):
            self.first += len(self.values)
            batch = next(self.batches, None)
            if batch is None:
                raise LookupError(f"the column ends before row {row}")
            self.values = batch.column(0)
        return self.values[row - self.first].as_py()


@lru_cache(maxsize=1)
def _image_column(path: Path, stamp: Stamp, row_group: int, column: str) -> _ImageColumn:
    return _ImageColumn(path, row_group, column)


@dataclass(frozen=True)
class InParquet:
    """A row of a parquet file and, in its `column`, an image: {bytes, path} or the bytes alone.

    Not named by that path, which some files repeat for different images.
    """

    file: Path
    row_group: int
    row: int
    column: str = ""
    prefix: str = ""  # where several files have one name

    @property
    def name(self) -> str:
        """FILE-ROWGROUP-ROW."""
        return f"{self.prefix}{self.file.stem}-{self.row_group}-{self.row}"

    @property
    def where(self) -> str:
        """For messages."""
        return f"{self.file.name} row group {self.row_group} row {self.row}"

    def read_bytes(self) -> bytes:
        """The encoded image, empty where the row has none; OSError where the file is damaged."""
        pyarrow = _pyarrow()
        try:
            column = _image_column(self.file, _stamp(self.file), self.row_group, self.column)
            value = column[self.row]
        except FileNotFoundError:
            raise
        except (pyarrow.ArrowException, OSError, ValueError, LookupError) as error:
            raise OSError(f"{self.where} of {self.file}: {one_line(error)}") from error
        data = (value.get("bytes") if isinstance(value, dict) else value) or b""
        if len(data) > IMAGE_BYTES:
            raise OSError(f"{self.where} of {self.file}: {len(data)} bytes")
        return data


def column_names(file: Path) -> list[str]:
    """The columns of a parquet file; ValueError where it is none."""
    return _open_parquet(file).schema_arrow.names


def holds_images(file: Path, column: str) -> bool:
    """Whether a column holds images: a struct with binary `bytes`, or plain binary.

    Raises ValueError where the file is no parquet file or has no such column.
    """
    types, kind = _pyarrow().types, _schema(file, (column,)).field(column).type
    if types.is_struct(kind):
        position = kind.get_field_index("bytes")
        kind = kind.field(position).type if position >= 0 else kind
    return types.is_binary(kind) or types.is_large_binary(kind)


def _schema(file: Path, columns: Iterable[str]) -> Any:
    """The file's schema; raises ValueError unless each column is in it once."""
    schema = _open_parquet(file).schema_arrow
    for name in columns:
        if schema.names.count(name) != 1:
            has = printable(", ".join(schema.names)) or "none"
            many = "no" if name not in schema.names else "more than one"
            raise ValueError(f"{file}: {many} column {name!r}; it has {has}")
    return schema


def parquet_rows(
    files: Iterable[Path], columns: Sequence[str], optional: Sequence[str] = (), image: str = ""
) -> Iterator[tuple[InParquet, dict[str, Any]]]:
    """Place and columns of each row, a row group at a time, without the bytes of any image.

    `columns` must be there, `optional` ones are left out of a file's rows where they are not. Text
    that is not UTF-8 comes with lone surrogates, as from `tables.read_lines`; other values as
    Python has them, null as None. With `image`, that column must hold images, which are read from
    the place. Raises ValueError naming the file and, where a column is wrong, what it has.
    """
    pyarrow = _pyarrow()
    for path in files:
        names = _schema(path, (*columns, *([image] if image else ()))).names
        wanted = [*columns, *(name for name in optional if name in names)]
        _schema(path, wanted)
        if image and not holds_images(path, image):
            found = f"{path}: column {image!r} is {_schema(path, ()).field(image).type}"
            raise ValueError(f"{found}; it should hold images, as {{bytes, path}} or binary")
        schema, most = _schema(path, ()), most_expanded(path)
        texts = [name for name in wanted if _is_string(schema.field(name).type)]
        # So a text that many rows have is in memory once.
        file = pyarrow.parquet.ParquetFile(path, read_dictionary=texts)
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            try:
                values, most = _row_group(file, group, wanted, most)
                if short := [name for name in wanted if len(values[name]) != rows]:
                    raise ValueError(f"{', '.join(short)} should have {rows} rows")
            except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
                raise ValueError(
                    f"{path}: row group {group} cannot be read: {one_line(error)}"
                ) from error
            for row in range(rows):
                place = InParquet(path, group, row, image)
                yield place, {name: values[name][row] for name in wanted}


def _row_group(
    file: Any, group: int, wanted: Sequence[str], most: int
) -> tuple[dict[str, list[Any]], int]:
    """Values by column, and how many of `most` bytes are left; ValueError where they are more."""
    # Of the group as a whole: pyarrow aborts the process where a column's statistics are damaged.
    facts = file.metadata.row_group(group)
    most -= facts.total_byte_size + facts.num_rows * len(wanted)
    if most >= 0:
        table = file.read_row_group(group, columns=wanted)
        values = {name: _values(table[name]) for name in wanted}
        most -= sum(len(x) for column in values.values() for x in column if isinstance(x, str))
    if most < 0:
        raise ValueError("its texts are 200 times the file; a bomb")
    return values, most


def _is_string(kind: Any) -> bool:
    types = _pyarrow().types
    return types.is_string(kind) or types.is_large_string(kind)


def _values(column: Any) -> list[Any]:
    """A column's Python values; text is decoded here, as one bad byte would end the reading."""
    pyarrow, values = _pyarrow(), []
    for part in column.chunks:
        if not pyarrow.types.is_dictionary(part.type):
            values += _decoded(part)
            continue
        words = _decoded(part.dictionary)
        places = part.indices.drop_null()
        if len(places) and not 0 <= min(places.to_pylist()) <= max(places.to_pylist()) < len(words):
            raise ValueError("texts that are not in it")
        values += [None if index is None else words[index] for index in part.indices.to_pylist()]
    return values


def _decoded(array: Any) -> list[Any]:
    if not _is_string(array.type):
        return array.to_pylist()
    encoded = array.cast(_pyarrow().large_binary()).to_pylist()
    return [None if text is None else text.decode("utf-8", "surrogateescape") for text in encoded]


def parquet_splits(raw: Path) -> dict[str, list[Path]]:
    """The parquet files of train, valid and test in the hub's layouts; {} where there are none.

    Read are DIR/data/SPLIT-00000-of-00004-HASH.parquet, SPLIT.parquet and SPLIT/*.parquet, and the
    same in DIR itself; SPLIT is train, validation (or valid, val) or test. Raises ValueError where
    a split is in two places or one of its numbered parts is missing.
    """
    splits = {}
    for split, names in SPLIT_NAMES.items():
        places = []
        for base, name in product((raw / "data", raw), names):
            places.append([*base.glob(f"{name}-*.parquet"), *base.glob(f"{name}.parquet")])
            places.append([*(base / name).glob("*.parquet")])
        places = [sorted(found) for found in places if found]
        if len(places) > 1:
            two = f"in two places, {places[0][0]} and {places[1][0]}"
            raise ValueError(f"{raw}: parquet files of split {split} {two}; keep one")
        if places:
            splits[split] = places[0]
            _check_parts(raw, split, places[0])
    return splits


def _check_parts(raw: Path, split: str, files: list[Path]) -> None:
    """Raise ValueError unless files named NUMBER-of-TOTAL are all there, once."""
    parts = [re.search(r"(\d{5})-of-(\d{5})", path.name) for path in files]
    if not any(parts):
        return
    found = [(int(part[1]), int(part[2])) if part else (-1, -1) for part in parts]
    total = found[-1][1]
    if found != [(number, total) for number in range(total)]:
        said = f"{raw}: split {split} should be {total} parquet files by their names, found "
        said += ", ".join(path.name for path in files)
        raise ValueError(f"{said}; download the missing, remove others")
