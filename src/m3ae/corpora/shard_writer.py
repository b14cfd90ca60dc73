"""Writing shards, whose form `m3ae.data.shards` states.

The same rows give the same bytes: the library's own writer promises no order.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m3ae.data.shards import DTYPES

_IMAGES = ("images", "image_bytes")  # first in a file
_HEADER = 2048  # bytes before the first tensor: the longest header, of 14 tensors, has 1,400
_WRITEBACK = 8 * 2**20
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

Tensors = dict[str, np.ndarray]


def shard_name(number: int, part: int = 0) -> str:
    """File name of a shard; `part`: how many full ones of its chunk and channels came before it."""
    return f"shard-{number:05d}{f'-{part}' if part else ''}.safetensors"


def ragged(name: str, rows: Iterable[bytes]) -> Tensors:
    """Rows of bytes as `NAME_bytes` (flat) and `NAME_offsets` (rows + 1)."""
    rows = list(rows)
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return {f"{name}_bytes": np.frombuffer(b"".join(rows), np.uint8), f"{name}_offsets": offsets}


class ShardWriter:
    """A safetensors file whose images are appended one by one and never held."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w+b")
        self._file.write(bytes(_HEADER))
        self._size = self._begun = 0

    def append(self, data: bytes | np.ndarray) -> None:
        """Add an image, or a part of the images: bytes, or a contiguous array uint8."""
        self._size += self._file.write(data)
        if self._size - self._begun >= _WRITEBACK:
            self._start_writeback()

    def finish(
        self,
        name: str,
        shape: Sequence[int],
        tensors: Tensors,
        metadata: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Add all other tensors and close; returns the file's `bytes` and `sha256`.

        `name`, `shape`: what the appended bytes are, images or image_bytes; "" where there are
        none. `metadata`: what the file says of itself.
        """
        header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
        if name:
            place = [0, self._size]
            header[name] = {"dtype": "U8", "shape": list(shape), "data_offsets": place}
        if self._size % 8:
            tensors = {**tensors, "padding": np.zeros(-self._size % 8, np.uint8)}
        order = sorted(tensors, key=lambda n: (n != "padding", -tensors[n].dtype.itemsize, n))
        end = self._size
        for other in order:
            array = np.ascontiguousarray(tensors[other])
            begin, end = end, end + array.nbytes
            kind, place = _NAMES[array.dtype.newbyteorder("<")], [begin, end]
            header[other] = {"dtype": kind, "shape": list(array.shape), "data_offsets": place}
            self._file.write(array.reshape(-1).view(np.uint8))
        text = json.dumps(header, separators=(",", ":")).encode()
        if len(text) > _HEADER - 8:
            raise ValueError(f"{self._file.name}: a header of {len(text)} bytes")
        with self._file as file:
            file.flush()
            self._start_writeback()  # the disk works while the checksum is computed
            file.seek(0)
            file.write(struct.pack("<Q", _HEADER - 8) + text.ljust(_HEADER - 8))
            file.flush()
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        return {"bytes": _HEADER + end, "sha256": digest}

    def close(self) -> None:
        """Close the file as it is; harmless after `finish`."""
        self._file.close()

    def _start_writeback(self) -> None:
        # Linux begins to write these pages at this advice, and does not wait: else fsync, which
        # keeps the processor idle, writes the whole file.
        self._file.flush()
        if hasattr(os, "posix_fadvise"):
            begin, length = _HEADER + self._begun, self._size - self._begun
            os.posix_fadvise(self._file.fileno(), begin, length, os.POSIX_FADV_DONTNEED)
        self._begun = self._size


def write_shard(
    path: Path, tensors: Tensors, metadata: dict[str, str] | None = None
) -> dict[str, Any]:
    """Write one safetensors file; returns its `bytes` and `sha256`. `metadata`: of the file."""
    writer = ShardWriter(path)
    try:
        first = next((name for name in _IMAGES if name in tensors), "")
        if not first:
            return writer.finish("", (), tensors, metadata)
        images = np.ascontiguousarray(tensors[first])
        flat = images.reshape(-1).view(np.uint8)
        for begin in range(0, len(flat), _WRITEBACK):
            writer.append(flat[begin : begin + _WRITEBACK])
        rest = {name: array for name, array in tensors.items() if name != first}
        return writer.finish(first, images.shape, rest, metadata)
    finally:
        writer.close()


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """The value with `sha256`: the digest of everything else in it, as JSON."""
    rest = {name: part for name, part in value.items() if name != "sha256"}
    text = json.dumps(rest, sort_keys=True)
    return {**rest, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def is_sealed(value: dict[str, Any]) -> bool:
    """Whether `sha256` is still that of everything else."""
    return value.get("sha256") == seal(value)["sha256"]
