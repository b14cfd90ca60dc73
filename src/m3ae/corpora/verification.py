"""Whether prepared splits are sound: checksums, offsets, rows, and the record of their making."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m3ae.corpora.shard_writer import is_sealed
from m3ae.corpora.token_files import find_tokenizer
from m3ae.data import shards
from m3ae.data.shards import AGAIN, Shards, read_manifest
from m3ae.files import file_sha256, need


def split_folders(folder: Path) -> list[Path]:
    """The folder itself if it is a split, else the finished splits in it; one at least."""
    marks = ("manifest.json", "chunks*.json")  # one of them may be lost
    need(folder, "a prepared corpus or split")
    if any(path for mark in marks for path in folder.glob(mark)):
        return [folder]
    if not (found := finished_splits(folder, marks)):
        raise FileNotFoundError(f"{folder}: no split in it (no */manifest.json)")
    return found


def finished_splits(out: Path, marks: Sequence[str] = ("manifest.json",)) -> list[Path]:
    """The folders in OUT that have one of these files and are not unfinished ones."""
    found = {path.parent for mark in marks for path in out.glob(f"*/{mark}")}
    return sorted(split for split in found if split.suffix != ".partial")


def verify(folder: Path) -> list[str]:
    """Problems of a split, none if sound: every sha256, offset, key, text, token and image."""
    return [problem for _, problem in find_problems(folder)]


def find_problems(folder: Path) -> list[tuple[str, str]]:
    """(name of the damaged file, what is wrong with it); "" where no file alone is to blame."""
    try:
        manifest = read_manifest(folder)
    except (ValueError, OSError) as error:
        return [("manifest.json", str(error))]
    problems = _manifest_problems(folder, manifest)
    for file in manifest["files"]:
        problems += [(file["name"], found) for found in _file_problems(folder, file, manifest)]
    if manifest["tokenizer"] and not shards.holds_tokens(manifest):
        name = manifest["tokens"]["name"]
        problems += [(name, found) for found in token_problems(folder, manifest)]
    if problems:
        return problems  # rows cannot be trusted
    split = Shards(folder)
    for k, file in enumerate(split.files):
        problems += [(file["name"], found) for found in _row_problems(split, k)]
    if not problems:
        keys = {split.text_key(i) for i in range(len(split))}
        if len(keys) < len(split):
            problems.append(("", f"{folder}: {len(split) - len(keys)} text keys occur twice"))
    return problems


def _manifest_problems(folder: Path, manifest: dict[str, Any]) -> list[tuple[str, str]]:
    path, files = folder / "manifest.json", manifest["files"]
    if {"sha256", "chunks"} & manifest.keys() and not is_sealed(manifest):
        return [("manifest.json", f"{path}: its sha256 is not that of what it says; {AGAIN}")]
    if "chunks" not in manifest:
        return []  # of an earlier version
    try:
        chunks = read_chunks(folder)["chunks"]
    except (ValueError, OSError) as error:
        return [("chunks.json", str(error))]
    if [file for chunk in chunks for file in chunk["files"]] != files:
        return [("chunks.json", f"{path}: lists other files than {manifest['chunks']}; {AGAIN}")]
    return []


def read_chunks(folder: Path) -> dict[str, Any]:
    """The record of how a split was made: `facts` of its manifest, and `chunks` in input order.

    The tokenizer in `facts` is that of the token ids that are there now. Needs no manifest. Raises
    FileNotFoundError where there is no record, ValueError where it is damaged.
    """
    paths = sorted(folder.glob("chunks*.json"))
    if not paths:
        lost = "no chunks.json in it, which says how it was made (an earlier version had none)"
        raise FileNotFoundError(f"{folder}: {lost}")
    if len(paths) > 1:
        try:  # data_prep/tokens.py was killed: the manifest says which one counts
            paths = [folder / str(read_manifest(folder).get("chunks"))]
        except (ValueError, FileNotFoundError) as error:
            message = "several chunks*.json, and no manifest to say which one counts"
            raise ValueError(f"{folder}: {message}; {AGAIN}") from error
    try:
        record = json.loads(paths[0].read_text(encoding="utf-8"))
        sealed = isinstance(record, dict) and is_sealed(record)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{paths[0]}: damaged ({error}); copy it again") from error
    if not sealed:
        raise ValueError(f"{paths[0]}: its sha256 is not that of what it says; copy it again")
    tokenizer = _current_tokenizer(folder) or record["facts"].get("tokenizer")
    record["facts"]["tokenizer"] = tokenizer
    return record


def _current_tokenizer(folder: Path) -> dict[str, Any] | None:
    """By the manifest if it is sound, else by the file of token ids."""
    try:
        manifest = read_manifest(folder)
    except (ValueError, FileNotFoundError):
        return find_tokenizer(folder)
    sealed = "sha256" not in manifest or is_sealed(manifest)
    return manifest["tokenizer"] if sealed else find_tokenizer(folder)


def _file_problems(folder: Path, file: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    """What is wrong with one shard as a file: size, header, shapes, sha256, offsets."""
    path = folder / file["name"]
    try:
        shards.check_size(path, file)
        tensors = shards.map_shard(path)
        shards.check_shapes(path, tensors, file, manifest)
    except (ValueError, OSError) as error:
        return [str(error)]
    if file_sha256(path) != file["sha256"]:
        return [f"{path}: sha256 is not the manifest's; {AGAIN}"]
    tokenizer = manifest["tokenizer"] if shards.holds_tokens(manifest) else None
    found = _offset_problems(tensors, file["images"], tokenizer)
    return [f"{path}: {problem}; {AGAIN}" for problem in found]


def token_problems(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """What is wrong with the file of token ids, which there must be one of."""
    file = manifest["tokens"]
    path = folder / file["name"]
    try:
        shards.check_size(path, file)
        tensors = shards.map_shard(path)
        shards.check_tokens(path, tensors, manifest)
    except (ValueError, FileNotFoundError) as error:
        return [str(error)]
    if file_sha256(path) != file["sha256"]:
        return [f"{path}: sha256 is not the manifest's; {AGAIN}"]
    found = _rising_problems(tensors) + _id_problems(tensors, manifest["tokenizer"])
    return [f"{path}: {problem}; {AGAIN}" for problem in found]


def _row_problems(split: Shards, k: int) -> list[str]:
    """Images that do not decode, and texts, keys and fields that cannot be read, of shard k."""
    problems = []
    for j in range(split.image_starts[k], split.image_starts[k + 1]):
        try:
            split.image(j, split.manifest["px"])
            split.image_key(j)
        except ValueError as error:
            problems.append(f"image {j}: {error}")
    for i in range(split.text_starts[k], split.text_starts[k + 1]):
        try:
            split.text(i), split.text_key(i)
            if split.manifest["kind"] == shards.WITH_FIELDS:
                split.fields(i)
        except ValueError as error:
            problems.append(f"text {i}: {error}")
    return problems


def _offset_problems(
    shard: dict[str, np.ndarray], images: int, tokenizer: dict[str, Any] | None
) -> list[str]:
    """Offsets that do not rise from 0 to the end of what they cut; rows and ids out of range."""
    problems = _rising_problems(shard)
    rows = shard["image_of_text"]
    if len(rows) and not (0 <= rows.min() and rows.max() < images):
        problems.append("image_of_text points outside the shard")
    if tokenizer:
        problems += _id_problems(shard, tokenizer)
    return problems


def _rising_problems(tensors: dict[str, np.ndarray]) -> list[str]:
    problems = []
    for name, offsets in tensors.items():
        if not name.endswith("_offsets"):
            continue
        flat = "token_ids" if name == "token_offsets" else name.replace("_offsets", "_bytes")
        total = len(tensors[flat]) if flat in tensors else -1
        if offsets[0] != 0 or offsets[-1] != total or (np.diff(offsets) < 0).any():
            problems.append(f"{name} do not rise from 0 to the length of {flat}")
    return problems


def _id_problems(tensors: dict[str, np.ndarray], tokenizer: dict[str, Any]) -> list[str]:
    ids, words, problems = tensors["token_ids"], tensors["token_words"], []
    if len(ids) != len(words):
        problems.append("token_ids and token_words differ in length")
    if len(ids) and not (0 <= ids.min() and ids.max() < tokenizer["size"]):
        problems.append(f"token ids outside the tokenizer's 0-{tokenizer['size'] - 1}")
    return problems
