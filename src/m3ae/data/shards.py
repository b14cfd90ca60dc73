"""Shards: the prepared form of a corpus. Write, read, verify.

A split is a folder: `manifest.json` and `shard-00000.safetensors`, ... Tensors of a shard with n
images and m texts (ragged ones are `NAME_bytes` uint8, flat, with `NAME_offsets` int64):

    images         uint8 (n, C, px, px)   encoding raw: what the model normalises, C = 1 or 3
    image_bytes    encoding jpeg (shorter side px, not cropped) or original (the file's bytes)
    text_bytes     m texts, UTF-8; text_key_bytes (m) and image_key_bytes (n): their keys
    token_ids, token_words   int32, flat, with token_offsets (m + 1): ids without special tokens,
                             not truncated, and the word that each belongs to; only with a tokenizer
    image_of_text  int64 (m,)             row of the text's image in this shard
    text_fields_bytes                     kind vqa: m JSON objects, UTF-8 (see questions.py)
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m3ae.data.images import ImageError, decode, resize_crop

FORMAT = "m3ae-shards"
VERSION = 1
ENCODINGS = ("raw", "jpeg", "original")
WITH_FIELDS = "vqa"  # the kind of shards whose texts are questions, with task fields
_MANIFEST_KEYS = ("kind", "source", "encoding", "px", "tokenizer", "options", "counts", "files")
_OPEN_SHARDS = 256  # memory maps held at a time, each a file descriptor
_DTYPES = {"U8": np.dtype("<u1"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
AGAIN = "prepare the split again, or copy it again"


# ------------------------------------------------------------------ write


def ragged(name: str, rows: Iterable[bytes]) -> dict[str, np.ndarray]:
    """Rows of bytes as `NAME_bytes` (flat) and `NAME_offsets` (rows + 1)."""
    rows = list(rows)
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return {f"{name}_bytes": np.frombuffer(b"".join(rows), np.uint8), f"{name}_offsets": offsets}


def ragged_tokens(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> dict[str, np.ndarray]:
    """(ids, word indices) of each text as the three token tensors of a shard."""
    offsets = np.cumsum([0, *(len(ids) for ids, _ in rows)], dtype=np.int64)
    ids = np.array([number for ids, _ in rows for number in ids], dtype=np.int32)
    words = np.array([number for _, words in rows for number in words], dtype=np.int32)
    return {"token_ids": ids, "token_words": words, "token_offsets": offsets}


def write_shard(path: Path, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """Write one safetensors file; returns its `bytes` and `sha256`.

    The same tensors give the same bytes: the library's own writer promises no order.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header, end = {}, 0
    for name, array in ordered:
        begin, end = end, end + array.nbytes
        header[name] = {"dtype": _NAMES[array.dtype.newbyteorder("<")], "shape": list(array.shape),
                        "data_offsets": [begin, end]}  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at multiples of 8
    digest, size = hashlib.sha256(), 0
    with open(path, "wb") as file:
        arrays = (np.ascontiguousarray(array).reshape(-1).view(np.uint8) for _, array in ordered)
        for part in (struct.pack("<Q", len(text)), text, *arrays):
            file.write(part)
            digest.update(part)
            size += len(part)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that it is either the old one or the whole new one."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


# ------------------------------------------------------------------ read


def read_manifest(folder: Path) -> dict[str, Any]:
    """The checked manifest of a split folder; raises ValueError or FileNotFoundError naming it."""
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        hint = "its preparation was not finished" if Path(f"{folder}.partial").exists() else (
            "no prepared split; give the folder of a split, e.g. OUT/train")  # fmt: skip
        raise FileNotFoundError(f"{path}: not there ({hint})")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = (manifest["format"], manifest["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a manifest of shards ({error}); {AGAIN}") from error
    if found != (FORMAT, VERSION):
        raise ValueError(f"{path}: format {found[0]} version {found[1]}, this code reads {FORMAT} "
                         f"version {VERSION}; prepare the split again")  # fmt: skip
    missing = [name for name in _MANIFEST_KEYS if name not in manifest]
    if missing:
        raise ValueError(f"{path}: no {', '.join(missing)} in it; {AGAIN}")
    if manifest["encoding"] not in ENCODINGS:
        raise ValueError(f"{path}: unknown image encoding {manifest['encoding']!r}; {AGAIN}")
    return manifest


def map_shard(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a shard as a read-only view of the mapped file; checks the header."""
    try:
        data = np.asarray(np.memmap(path, np.uint8, "r"))
        start = 8 + int(data[:8].view("<u8")[0])
        header = json.loads(data[8:start].tobytes())
        tensors = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = (start + offset for offset in entry["data_offsets"])
            flat = data[begin:end].view(_DTYPES[entry["dtype"]])
            tensors[name] = flat.reshape(entry["shape"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"{path}: corrupt header ({error}); {AGAIN}") from error
    return tensors


def _check_shapes(path: Path, tensors: dict[str, np.ndarray], entry: dict, manifest: dict) -> None:
    """Raise ValueError where a shard's tensors are not what the manifest says."""
    n, m, px = entry["images"], entry["texts"], manifest["px"]
    raw = manifest["encoding"] == "raw"
    wanted = {"text_offsets": (m + 1,), "text_key_offsets": (m + 1,), "image_of_text": (m,),
              "image_key_offsets": (n + 1,)}  # fmt: skip
    wanted |= {"images": (n, entry["channels"], px, px)} if raw else {"image_offsets": (n + 1,)}
    wanted |= {"token_offsets": (m + 1,)} if manifest["tokenizer"] else {}
    wanted |= {"text_fields_offsets": (m + 1,)} if manifest["kind"] == WITH_FIELDS else {}
    for name, shape in wanted.items():
        found = tensors[name].shape if name in tensors else "missing"
        if found != shape:
            raise ValueError(f"{path}: {name} is {found}, the manifest says {shape}; {AGAIN}")


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
        if tokenizer is not None and self.manifest["tokenizer"]:
            self._check_tokenizer(tokenizer)
        self._image_starts = np.cumsum([0, *(file["images"] for file in self.files)])
        self._text_starts = np.cumsum([0, *(file["texts"] for file in self.files)])
        self.num_images = int(self._image_starts[-1])
        self._check_files()
        rows = [self.shard(k)["image_of_text"] + self._image_starts[k]
                for k in range(len(self.files))]  # fmt: skip
        self.image_of_text = np.concatenate([np.zeros(0, np.int64), *rows])
        self._open.clear()

    def _check_tokenizer(self, tokenizer: Any) -> None:
        from m3ae.data.texts import fingerprint  # transformers takes seconds to import

        made, given = self.manifest["tokenizer"], fingerprint(tokenizer)
        if made["fingerprint"] != given:
            name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
            raise ValueError(
                f"{self.folder}: its tokens are of tokenizer {made['name']} "
                f"({made['fingerprint']}), not of {name} ({given}); set that tokenizer in the "
                "config, or prepare the corpus with this one or with none"
            )

    def _check_files(self) -> None:
        counts = self.manifest["counts"]
        if (counts["images"], counts["texts"]) != (self.num_images, len(self)):
            raise ValueError(f"{self.folder / 'manifest.json'}: counts {counts} are not the sums "
                             f"of its files; {AGAIN}")  # fmt: skip
        for file in self.files:
            path = self.folder / file["name"]
            if not path.is_file():
                raise FileNotFoundError(f"{path}: missing; {AGAIN}")
            if path.stat().st_size != file["bytes"]:
                raise ValueError(f"{path}: {path.stat().st_size} bytes where the manifest says "
                                 f"{file['bytes']} (cut short?); {AGAIN}")  # fmt: skip

    def __len__(self) -> int:
        return int(self._text_starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def shard(self, k: int) -> dict[str, np.ndarray]:
        """The tensors of file k, mapped; checked against the manifest when first touched."""
        if k not in self._open:
            path = self.folder / self.files[k]["name"]
            tensors = map_shard(path)
            _check_shapes(path, tensors, self.files[k], self.manifest)
            while len(self._open) >= _OPEN_SHARDS:
                self._open.pop(next(iter(self._open)))
            self._open[k] = tensors
        return self._open[k]

    def _find(self, starts: np.ndarray, index: int, what: str) -> tuple[dict[str, np.ndarray], int]:
        """The shard and the row in it of a global text or image index."""
        if not 0 <= index < starts[-1]:
            raise IndexError(f"{self.folder}: {what} {index} of {starts[-1]}")
        k = int(np.searchsorted(starts, index, side="right")) - 1
        return self.shard(k), int(index - starts[k])

    def text(self, i: int) -> str:
        """Text i."""
        shard, row = self._find(self._text_starts, i, "text")
        return row_bytes(shard, "text", row).decode()

    def text_key(self, i: int) -> str:
        """Key of text i, e.g. ROCO_00001/0."""
        shard, row = self._find(self._text_starts, i, "text")
        return row_bytes(shard, "text_key", row).decode()

    def fields(self, i: int) -> dict[str, Any]:
        """Task fields of text i, e.g. its answer; ValueError where the shards hold none."""
        if self.manifest["kind"] != WITH_FIELDS:
            raise ValueError(f"{self.folder}: holds {self.manifest['kind']}, no questions; prepare "
                             "it with a script of questions, e.g. data_prep/vqa_rad.py")
        shard, row = self._find(self._text_starts, i, "text")
        try:
            return json.loads(row_bytes(shard, "text_fields", row))
        except ValueError as error:
            raise ValueError(f"{self.folder}: fields of text {i}: {error}; {AGAIN}") from error

    def image_key(self, j: int) -> str:
        """Key of image j, e.g. ROCO_00001."""
        shard, row = self._find(self._image_starts, j, "image")
        return row_bytes(shard, "image_key", row).decode()

    def tokens(self, i: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Token ids and word indices of text i, both int64 (tokens,); None without tokens."""
        if not self.manifest["tokenizer"]:
            return None
        shard, row = self._find(self._text_starts, i, "text")
        begin, end = shard["token_offsets"][row : row + 2]
        ids, words = shard["token_ids"][begin:end], shard["token_words"][begin:end]
        return ids.astype(np.int64), words.astype(np.int64)

    def image(self, j: int, px: int) -> np.ndarray:
        """Pixels of image j, uint8 (C, px, px), C = 1 or 3; raw shards hold one size only."""
        shard, row = self._find(self._image_starts, j, "image")
        if self.manifest["encoding"] == "raw":
            if px != self.manifest["px"]:
                raise ValueError(
                    f"{self.folder}: raw shards of {self.manifest['px']} px cannot give {px} px; "
                    f"prepare with --px {px}, or with --encoding jpeg or original for any size"
                )
            return np.array(shard["images"][row])
        window = self.manifest["options"].get("window")
        try:
            image, _ = decode(row_bytes(shard, "image", row), tuple(window) if window else None)
            return resize_crop(image, px)
        except ImageError as error:
            key = self.image_key(j)
            raise ValueError(f"{self.folder}: image {key}: {error}; {AGAIN}") from error


def row_bytes(shard: dict[str, np.ndarray], name: str, row: int) -> bytes:
    """One row of a ragged tensor."""
    begin, end = shard[f"{name}_offsets"][row : row + 2]
    return shard[f"{name}_bytes"][begin:end].tobytes()


# ------------------------------------------------------------------ verify


def verify(folder: str | Path) -> list[str]:
    """Problems of a split, none if sound: every sha256, offset, key, text, token and image."""
    try:
        split = Shards(folder)
    except (ValueError, FileNotFoundError) as error:
        return [str(error)]
    problems = []
    for k, file in enumerate(split.files):
        path = split.folder / file["name"]
        with open(path, "rb") as handle:
            if hashlib.file_digest(handle, "sha256").hexdigest() != file["sha256"]:
                problems.append(f"{path}: sha256 is not the manifest's; {AGAIN}")
        problems += [f"{path}: {problem}; {AGAIN}" for problem in _offset_problems(split, k)]
    if problems:
        return problems  # rows cannot be trusted
    for j in range(split.num_images):
        try:
            split.image(j, split.manifest["px"])
            split.image_key(j)
        except ValueError as error:
            problems.append(f"image {j}: {error}")
    for i in range(len(split)):
        try:
            split.text(i), split.text_key(i)
            if split.manifest["kind"] == WITH_FIELDS:
                split.fields(i)
        except ValueError as error:  # also UnicodeDecodeError
            problems.append(f"{split.folder}: text {i}: {error}")
    keys = [split.text_key(i) for i in range(len(split))] if not problems else []
    if len(set(keys)) != len(keys):
        problems.append(f"{split.folder}: {len(keys) - len(set(keys))} text keys occur twice")
    return problems


def _offset_problems(split: Shards, k: int) -> list[str]:
    """Offsets of shard k that do not rise from 0 to the end of what they cut."""
    shard, file = split.shard(k), split.files[k]
    problems = []
    for name, offsets in shard.items():
        if not name.endswith("_offsets"):
            continue
        flat = "token_ids" if name == "token_offsets" else name.replace("_offsets", "_bytes")
        total = len(shard[flat]) if flat in shard else -1
        if offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 0).any():
            problems.append(f"{name} do not rise from 0 to the length of {flat}")
    rows = shard["image_of_text"]
    if len(rows) and not (0 <= rows.min() and rows.max() < file["images"]):
        problems.append("image_of_text points outside the shard")
    made = split.manifest["tokenizer"]
    if made:
        ids, words = shard["token_ids"], shard["token_words"]
        if len(ids) != len(words):
            problems.append("token_ids and token_words differ in length")
        if len(ids) and not (0 <= ids.min() and ids.max() < made["size"]):
            problems.append(f"token ids outside the tokenizer's 0-{made['size'] - 1}")
    return problems
