"""Shards: the prepared form of a corpus, and its reading; `m3ae.corpora` writes and verifies it.

A split is a folder: `manifest.json`, `shard-00000.safetensors`, ... (numbers may be left out),
with a tokenizer `tokens-FINGERPRINT.safetensors`, and `chunks.json`, which only repairs read.
Tensors of a shard with n images and m texts (ragged ones are `NAME_bytes` uint8, flat, with
`NAME_offsets` int64):

    images         uint8 (n, C, px, px)   encoding raw: what the model normalises, C = 1 or 3
    image_bytes    encoding jpeg (shorter side px, not cropped) or original (the file's bytes)
    text_bytes     m texts, UTF-8; text_key_bytes (m) and image_key_bytes (n): their keys
    image_of_text  int64 (m,)             row of the text's image in this shard
    text_fields_bytes                     kind vqa: m JSON objects, UTF-8 (see questions.py)
    padding        uint8, up to 7 zeros after the images, so that integers are aligned

The images come first in a file, since they are written before the number of them is known. Token
ids lie in a file of their own, so that another tokenizer copies no images; its tensors, of all
texts of the split in the order of the shards:

    token_ids, token_words   int32, flat, with token_offsets (texts + 1): ids without special
                             tokens, not truncated, and the word that each belongs to

In format version 1, which is still read, each shard holds those of its own texts.
"""

import json
import mmap
import os
import time
import weakref
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from m3ae.data.images import ImageError, decode, resize_crop
from m3ae.data.manifest import AGAIN, WITH_FIELDS, holds_tokens, is_count, is_text, read_manifest

try:
    import resource  # how many files a process may open; not on every platform
except ImportError:
    resource = None

_OTHER_FILES = 200  # descriptors left for all but memory maps, each of which holds one
_MOST_MAPS = 32_000  # Linux gives a process 65,530
# What a header that is no header of tensors makes the code that reads it raise.
_BROKEN = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
DTYPES = {"U8": np.dtype("<u1"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8")}


def map_shard(path: Path, scattered: bool = False) -> dict[str, np.ndarray]:
    """Every tensor of a shard as a read-only view of the mapped file.

    scattered: rows are read here and there, so that the system should not read ahead. Raises
    ValueError naming the file where the header is not sound: tensors must fill the file from the
    header to the end, without gaps or overlaps.
    """
    try:
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if scattered and hasattr(mmap, "MADV_RANDOM"):
            mapped.madvise(mmap.MADV_RANDOM)
        data = np.frombuffer(mapped, np.uint8)
        header, start = _header(data)
        header.pop("__metadata__", None)
        tensors, filled = {}, start
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = (start + offset for offset in entry["data_offsets"])
            if begin != filled or end < begin:
                raise ValueError(f"{name} begins at {begin}, the one before it ends at {filled}")
            if not all(is_count(side) for side in entry["shape"]):
                raise ValueError(f"{name} is of shape {entry['shape']}")
            flat = data[begin:end].view(DTYPES[entry["dtype"]])
            tensors[name], filled = flat.reshape(entry["shape"]), end
        if filled != len(data):
            raise ValueError(f"tensors end at {filled}, the file at {len(data)}")
    except _BROKEN as error:
        raise ValueError(f"{path}: corrupt header ({error}); {AGAIN}") from error
    return tensors


def _header(data: np.ndarray) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file and where it ends; raises one of `_BROKEN`."""
    start = 8 + int(data[:8].view("<u8")[0])
    if start > len(data):
        raise ValueError(f"a header of {start - 8} bytes in a file of {len(data)}")
    return json.loads(data[8:start].tobytes()), start


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself beside its tensors; ValueError naming it if broken."""
    try:
        metadata = _header(np.memmap(path, np.uint8, "r"))[0].get("__metadata__", {})
        if not isinstance(metadata, dict) or not all(map(is_text, metadata.values())):
            raise ValueError("metadata is no table of texts")
    except _BROKEN as error:
        raise ValueError(f"{path}: corrupt header ({error}); {AGAIN}") from error
    return metadata


def stamp(path: str) -> tuple[int, int, int] | None:
    """What changes where a file is replaced, altered or cut short; None where it is gone."""
    try:
        facts = os.stat(path)
    except FileNotFoundError:
        return None
    return facts.st_ino, facts.st_size, facts.st_mtime_ns


def check_size(path: Path, file: dict[str, Any]) -> None:
    """Raise where a file is missing or of another size than its entry in the manifest says."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing; {AGAIN}")
    if (size := path.stat().st_size) != (expected := file["bytes"]):
        wrong = f"{size} bytes where the manifest says {expected} (cut short?)"
        raise ValueError(f"{path}: {wrong}; {AGAIN}")


def check_shapes(path: Path, tensors: dict[str, np.ndarray], entry: dict, manifest: dict) -> None:
    """Raise ValueError where a shard's tensors are not what the manifest says.

    A flat tensor may have any length: its offsets say it, which `verify` compares.
    """
    n, m, px = entry["images"], entry["texts"], manifest["px"]
    wanted: _Shapes = {"image_of_text": ("I64", (m,))}
    ragged = {"text": m, "text_key": m, "image_key": n}
    if manifest["kind"] == WITH_FIELDS:
        ragged["text_fields"] = m
    if manifest["encoding"] == "raw":
        wanted["images"] = ("U8", (n, entry["channels"], px, px))
    else:
        ragged["image"] = n
    for name, rows in ragged.items():
        wanted[f"{name}_offsets"] = ("I64", (rows + 1,))
        wanted[f"{name}_bytes"] = ("U8", (None,))
    if manifest["tokenizer"] and holds_tokens(manifest):
        wanted |= _token_shapes(m)
    _check_tensors(path, tensors, wanted)


def check_tokens(path: Path, tensors: dict[str, np.ndarray], manifest: dict[str, Any]) -> None:
    """Raise ValueError where a file of token ids is not what the manifest says."""
    _check_tensors(path, tensors, _token_shapes(manifest["counts"]["texts"]))
    wanted = manifest["tokenizer"]["fingerprint"]
    if (fingerprint := read_metadata(path).get("fingerprint")) != wanted:
        raise ValueError(f"{path}: of tokenizer {fingerprint}, the manifest says {wanted}; {AGAIN}")


_Shapes = dict[str, tuple[str, tuple[int | None, ...]]]  # by tensor: type, sides; None: any


def _token_shapes(texts: int) -> _Shapes:
    flat = {name: ("I32", (None,)) for name in ("token_ids", "token_words")}
    return {"token_offsets": ("I64", (texts + 1,)), **flat}


def _check_tensors(path: Path, tensors: dict[str, np.ndarray], wanted: _Shapes) -> None:
    for name, (dtype, shape) in wanted.items():
        found = tensors[name].shape if name in tensors else "missing"
        flat = shape == (None,) and len(found) == 1
        if found != shape and not flat:
            raise ValueError(f"{path}: {name} is {found}, the manifest says {shape}; {AGAIN}")
        if tensors[name].dtype != DTYPES[dtype]:
            raise ValueError(f"{path}: {name} is not of type {dtype}; {AGAIN}")


_opened: deque[tuple["weakref.ref[Shards]", int]] = deque()  # maps of all splits, oldest first


def _most_maps() -> int:
    """Shards that this process may keep mapped, of all splits: as many as it may open files."""
    if resource is None:
        return 256
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(16, min(_MOST_MAPS, limit if limit > 0 else _MOST_MAPS) - _OTHER_FILES)


class Shards:
    """A prepared split, read by memory map; a sample is a text with its image.

    Cheap to pickle and safe in worker processes: files are mapped when first touched. With a
    tokenizer, it must be the one the shards were made with. Raises ValueError or
    FileNotFoundError naming the wrong file.
    """

    def __init__(self, folder: str | Path, tokenizer: Any = None) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.files: list[dict[str, Any]] = self.manifest["files"]
        self._open: dict[int, dict[str, np.ndarray]] = {}
        self._tokens: dict[str, np.ndarray] | None = None  # the file of token ids, when mapped
        self._checked: dict[int, int] = {}  # when a file was last seen to be as it was
        if tokenizer is not None and self.manifest["tokenizer"]:
            self._check_tokenizer(tokenizer)
        self.image_starts = np.cumsum([0, *(file["images"] for file in self.files)])
        self.text_starts = np.cumsum([0, *(file["texts"] for file in self.files)])
        self.num_images = int(self.image_starts[-1])
        for file in self.files:
            check_size(self.folder / file["name"], file)
        files = [*self.files, self.manifest["tokens"]] if self._token_file() else self.files
        self._paths = [f"{folder}/{file['name']}" for file in files]
        self._stamps = [stamp(path) for path in self._paths]
        firsts = self.image_starts[:-1]
        rows = [self.shard(k)["image_of_text"] + first for k, first in enumerate(firsts)]
        self.image_of_text = np.concatenate([np.zeros(0, np.int64), *rows])
        self._open.clear()
        if self._token_file():
            self._map_tokens()  # a wrong file is named now

    def _check_tokenizer(self, tokenizer: Any) -> None:
        from m3ae.data.texts import fingerprint  # transformers takes seconds to import

        facts, given = self.manifest["tokenizer"], fingerprint(tokenizer)
        if facts["fingerprint"] != given:
            name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
            those = f"{facts['name']} ({facts['fingerprint']}), not of {name} ({given})"
            hint = "set that tokenizer in the config, or prepare with this one or with none"
            raise ValueError(f"{self.folder}: its tokens are of tokenizer {those}; {hint}")

    def __len__(self) -> int:
        return int(self.text_starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}, "_tokens": None}

    def _token_file(self) -> bool:
        return bool(self.manifest["tokenizer"]) and not holds_tokens(self.manifest)

    def _check_same(self, k: int) -> None:
        """ValueError where file k (-1: of token ids) is not what it was; once a millisecond.

        Reading a map of a file that was cut short since kills the process (SIGBUS).
        """
        if self._checked.get(k) != (moment := time.monotonic_ns() >> 20):
            if stamp(self._paths[k]) != self._stamps[k]:
                wrong = "replaced or altered since the run began to read it"
                raise ValueError(f"{self._paths[k]}: {wrong}; {AGAIN}")
            self._checked[k] = moment

    def _map_tokens(self) -> dict[str, np.ndarray]:
        """The tensors of the file of token ids, mapped; checked when first touched."""
        if self._tokens is None:
            file = self.manifest["tokens"]
            path = self.folder / file["name"]
            check_size(path, file)
            tensors = map_shard(path)
            check_tokens(path, tensors, self.manifest)
            self._tokens = tensors
        self._check_same(-1)
        return self._tokens

    def shard(self, k: int) -> dict[str, np.ndarray]:
        """The tensors of file k, mapped; checked against the manifest when first touched."""
        if k not in self._open:
            path = self.folder / self.files[k]["name"]
            while len(_opened) >= _most_maps():
                owner, oldest = _opened.popleft()
                if (owner := owner()) is not None:
                    owner._open.pop(oldest, None)
            tensors = map_shard(path, scattered=True)
            check_shapes(path, tensors, self.files[k], self.manifest)
            self._open[k] = tensors
            _opened.append((weakref.ref(self), k))
        self._check_same(k)
        return self._open[k]

    def _check_index(self, starts: np.ndarray, index: int, what: str) -> None:
        if not 0 <= index < starts[-1]:
            raise IndexError(f"{self.folder}: {what} {index} of {starts[-1]}")

    def _find(self, starts: np.ndarray, index: int, what: str) -> tuple[dict[str, np.ndarray], int]:
        """The shard and the row in it of a global text or image index."""
        self._check_index(starts, index, what)
        k = int(np.searchsorted(starts, index, side="right")) - 1
        return self.shard(k), int(index - starts[k])

    def _string(self, starts: np.ndarray, index: int, name: str) -> str:
        shard, row = self._find(starts, index, name.removesuffix("_key"))
        try:
            return row_bytes(shard, name, row).decode()
        except ValueError as error:
            raise ValueError(f"{self.folder}: {name} {index}: {error}; {AGAIN}") from error

    def text(self, i: int) -> str:
        """Text i."""
        return self._string(self.text_starts, i, "text")

    def text_key(self, i: int) -> str:
        """Key of text i, e.g. ROCO_00001/0."""
        return self._string(self.text_starts, i, "text_key")

    def fields(self, i: int) -> dict[str, Any]:
        """Task fields of text i, e.g. its answer; ValueError where the shards hold none."""
        if self.manifest["kind"] != WITH_FIELDS:
            hint = "prepare it with a script of questions, e.g. data_prep/vqa_rad.py"
            raise ValueError(f"{self.folder}: holds {self.manifest['kind']}, no questions; {hint}")
        shard, row = self._find(self.text_starts, i, "text")
        try:
            return json.loads(row_bytes(shard, "text_fields", row))
        except ValueError as error:
            raise ValueError(f"{self.folder}: fields of text {i}: {error}; {AGAIN}") from error

    def image_key(self, j: int) -> str:
        """Key of image j, e.g. ROCO_00001."""
        return self._string(self.image_starts, j, "image_key")

    def tokens(self, i: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Token ids and word indices of text i, both int64 (tokens,); None without tokens."""
        if not self.manifest["tokenizer"]:
            return None
        if holds_tokens(self.manifest):
            tensors, row = self._find(self.text_starts, i, "text")
        else:
            self._check_index(self.text_starts, i, "text")
            tensors, row = self._map_tokens(), i
        begin, end = tensors["token_offsets"][row : row + 2]
        ids, words = tensors["token_ids"][begin:end], tensors["token_words"][begin:end]
        return ids.astype(np.int64), words.astype(np.int64)

    def image(self, j: int, px: int) -> np.ndarray:
        """Pixels of image j, uint8 (C, px, px), C = 1 or 3; raw shards hold one size only."""
        shard, row = self._find(self.image_starts, j, "image")
        if self.manifest["encoding"] == "raw":
            if px != (side := self.manifest["px"]):
                hint = f"prepare with --px {px}, or with --encoding jpeg or original for any size; "
                hint += f"or fine-tune with data.image_px={side}"
                wrong = f"raw shards of {side} px cannot give {px} px"
                raise ValueError(f"{self.folder}: {wrong}; {hint}")
            return np.array(_fetch(shard["images"][row]))
        try:
            return resize_crop(self.picture(j), px)
        except ImageError as error:
            raise ValueError(f"{self.folder}: image {self.image_key(j)}: {error}") from error

    def image_bytes(self, j: int) -> bytes:
        """The encoded bytes of image j; encodings jpeg and original only."""
        shard, row = self._find(self.image_starts, j, "image")
        begin, end = shard["image_offsets"][row : row + 2]
        return _fetch(shard["image_bytes"][begin:end]).tobytes()

    def picture(self, j: int) -> Image.Image:
        """Image j decoded but neither resized nor cropped; encodings jpeg and original only."""
        try:
            options = self.manifest["options"]
            turn, most = bool(options.get("exif")), options.get("max_pixels")
            return decode(self.image_bytes(j), options.get("window"), turn, most)[0]
        except ImageError as error:
            key = self.image_key(j)
            raise ValueError(f"{self.folder}: image {key}: {error}; {AGAIN}") from error


def _fetch(part: np.ndarray) -> np.ndarray:
    """A part of a mapped tensor whose pages are asked for at once; else each waits for the disk."""
    if len(part) and hasattr(mmap, "MADV_WILLNEED"):
        whole = part
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        begin = part.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
        page = begin - begin % mmap.PAGESIZE
        whole.base.obj.madvise(mmap.MADV_WILLNEED, page, begin + part.nbytes - page)
    return part


def row_bytes(shard: dict[str, np.ndarray], name: str, row: int) -> bytes:
    """One row of a ragged tensor."""
    begin, end = shard[f"{name}_offsets"][row : row + 2]
    return shard[f"{name}_bytes"][begin:end].tobytes()
