"""Tars of image-text pairs in the WebDataset convention: KEY.jpg beside KEY.txt or KEY.json.

Tars are read in place: no member is extracted, no name in them becomes a path.
"""

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from m3ae.corpora.items import Drops, Item, is_inside
from m3ae.data.exclusions import IMAGE_SUFFIXES

_TEXT_BYTES = 2**24  # a text is far smaller
_IMAGE_BYTES = 2**30  # so is an encoded image
_NAME = re.compile(r"((?:.*/|)[^./][^.]*)\.([^/]*)", re.DOTALL)  # key and suffix
_META = re.compile(r"__[^/]*__($|/)")  # names that the package skips too


@dataclass(frozen=True)
class InTar:
    """A member of a tar, by its place in it."""

    archive: Path
    member: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        """TAR/MEMBER, for messages."""
        return f"{self.archive.name}/{self.member}"

    def read_bytes(self) -> bytes:
        """The member's bytes; OSError where the tar ends before they do, or they are too many."""
        if self.size > _IMAGE_BYTES:
            raise OSError(f"{self.name}: claims {self.size} bytes")
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise OSError(f"{self.name}: {len(data)} of {self.size} bytes (cut short?)")
        return data


@dataclass
class Sample:
    """Members of one key in one tar: the image's place, and the text members by suffix."""

    key: str
    images: list[InTar] = field(default_factory=list)
    texts: dict[str, InTar] = field(default_factory=dict)


def read_members(archive: Path, drops: Drops) -> Iterator[InTar]:
    """The files in a tar, in its order; what is no file, or leads elsewhere, is counted.

    Raises ValueError where it is no tar, compressed, or damaged.
    """
    end = 0
    try:
        with tarfile.open(archive, "r:") as file:
            for info in file:
                end = info.offset_data + (-(-info.size // 512) * 512 if info.isreg() else 0)
                where = f"{archive.name}/{info.name}"
                if info.isdir() or _META.match(info.name):
                    continue
                if not info.isreg() or info.issparse():
                    drops.add("member: a link, device or sparse file", where)
                elif not is_inside(info.name):
                    drops.add("member: name leads outside the tar", where)
                else:
                    yield InTar(archive, info.name, info.offset_data, info.size)
    except (tarfile.TarError, EOFError, OverflowError, UnicodeError) as error:
        hint = "download it again, or unpack it (gunzip) if it is compressed"
        raise ValueError(f"{archive}: not a readable tar ({error}); {hint}") from error
    _check_end(archive, end)


def _check_end(archive: Path, end: int) -> None:
    """Raise ValueError unless only zeros follow the last member: else tarfile stopped too early."""
    with open(archive, "rb") as file:
        file.seek(end)
        while block := file.read(2**20):
            if block.strip(b"\0"):
                raise ValueError(f"{archive}: damaged after byte {end}; download it again")


def read_samples(archive: Path, drops: Drops, others: Counter[str]) -> list[Sample]:
    """The samples of a tar in the order of their first members; `others`: suffixes not read."""
    samples: dict[str, Sample] = {}
    seen = set()
    for place in read_members(archive, drops):
        parts = _NAME.fullmatch(place.member)
        if not parts:
            drops.add("member: name without a suffix", place.name)
            continue
        key, suffix = parts[1], parts[2].lower()
        if (key, suffix) in seen:
            drops.add("member: occurs twice, first one kept", place.name)
            continue
        seen.add((key, suffix))
        if f".{suffix}" in IMAGE_SUFFIXES:
            samples.setdefault(key, Sample(key)).images.append(place)
        elif suffix in ("txt", "json"):
            samples.setdefault(key, Sample(key)).texts[suffix] = place
        else:
            others[suffix] += 1
    return list(samples.values())


def read_texts(sample: Sample, column: str | None, lines: bool) -> tuple[str, ...]:
    """Texts of a sample: of `column` in its .json, else its .txt, each line one if `lines`.

    Raises ValueError, whose message is a reason to leave the sample out.
    """
    suffix = "txt" if column is None else "json"
    if suffix not in sample.texts:
        raise ValueError(f"no .{suffix}")
    place = sample.texts[suffix]
    if place.size > _TEXT_BYTES:
        raise ValueError(f".{suffix} of more than {_TEXT_BYTES} bytes")
    text = place.read_bytes().decode("utf-8-sig", "surrogateescape")
    if column is not None:
        return _texts_of_json(text, column)
    texts = [line for line in (text.splitlines() if lines else [text]) if line.strip()]
    if not texts:
        raise ValueError("empty .txt")
    return tuple(texts)


def _texts_of_json(text: str, column: str) -> tuple[str, ...]:
    """A text or a list of texts of an object, or the texts of a list of objects."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(".json is not JSON") from error
    rows = value if isinstance(value, list) else [value]
    if not rows or not all(isinstance(row, dict) and column in row for row in rows):
        raise ValueError(f"no {column} in .json")
    found: list[Any] = []
    for row in rows:
        found += row[column] if isinstance(row[column], list) else [row[column]]
    if not found or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{column} in .json is no text")
    return tuple(found)


def to_items(
    archives: dict[str, Path], drops: Drops, column: str | None, lines: bool
) -> tuple[list[Item], dict[str, int]]:
    """Items of the samples of these tars, by name, and how many members of which suffix are unread.

    A key that several tars have becomes NAME/KEY.
    """
    others: Counter[str] = Counter()
    samples = {name: read_samples(path, drops, others) for name, path in archives.items()}
    known = Counter(sample.key for found in samples.values() for sample in found)
    items = []
    for name, members in samples.items():
        for sample in members:
            where = f"{name}/{sample.key}"
            if len(sample.images) != 1:
                count = "no image" if not sample.images else "several images"
                drops.add(f"sample: {count}", where)
                continue
            try:
                texts = read_texts(sample, column, lines)
            except ValueError as error:
                drops.add(f"sample: {error}", where)
                continue
            key = sample.key if known[sample.key] == 1 else where
            place = sample.images[0]
            items.append(Item(key, place, texts, f"{name}/{place.member}"))
    return items, dict(sorted(others.items()))
