"""The manifest of a prepared split: what is in it, and whether it is what the reader relies on."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORMAT = "m3ae-shards"
VERSION = 2  # 1: token ids inside the shards
_READ = (1, 2)  # versions
ENCODINGS = ("raw", "jpeg", "original")
WITH_FIELDS = "vqa"  # the kind of shards whose texts are questions, with task fields
AGAIN = "prepare the split again, or copy it again"
_MANIFEST_KEYS = ("kind", "source", "encoding", "px", "tokenizer", "options", "counts", "files")
_MOST = 2**40  # no count or size is larger: products of two fit an int64


def read_manifest(folder: Path) -> dict[str, Any]:
    """The checked manifest of a split folder; raises ValueError or FileNotFoundError naming it."""
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        hint = "no prepared split; give the folder of a split, e.g. OUT/train"
        if Path(f"{folder}.partial").exists():
            hint = "its preparation was not finished"
        raise FileNotFoundError(f"{path}: not there ({hint})")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = (manifest["format"], manifest["version"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a manifest of shards ({error}); {AGAIN}") from error
    if found not in [(FORMAT, version) for version in _READ]:
        form = f"format {found[0]} version {found[1]}"
        reads = f"this code reads {FORMAT} version {' and '.join(map(str, _READ))}"
        raise ValueError(f"{path}: {form}, {reads}; prepare the split again")
    if wrong := _wrong_entry(manifest):
        raise ValueError(f"{path}: {wrong}; {AGAIN}")
    return manifest


def _wrong_entry(manifest: dict[str, Any]) -> str | None:
    """What in a manifest is other than the reader relies on: the first such thing, or None."""
    missing = [name for name in _MANIFEST_KEYS if name not in manifest]
    if missing:
        return f"no {', '.join(missing)} in it"
    if manifest["encoding"] not in ENCODINGS:
        return f"unknown image encoding {manifest['encoding']!r}"
    if not _has(manifest, kind=is_text, source=is_text):
        return "kind or source is no text"
    if not (is_count(manifest["px"]) and 1 <= manifest["px"] < 2**16):
        return f"px is {manifest['px']!r}"
    optional = {"exif": (type(None), bool), "max_pixels": (type(None), int)}
    given = {name: lambda v, kinds=kinds: type(v) in kinds for name, kinds in optional.items()}
    if not _has(manifest["options"], window=_is_window, **given):
        return "options are not readable"
    tokenizer, counts, files = (manifest[name] for name in ("tokenizer", "counts", "files"))
    tokenizer_kinds = {"name": is_text, "fingerprint": is_text, "size": is_count}
    if tokenizer is not None and not _has(tokenizer, **tokenizer_kinds):
        return "tokenizer is not one's name, fingerprint and size"
    if tokenizer is not None and not holds_tokens(manifest) and not _has(manifest, tokens=_is_file):
        return "tokens is not the entry of a file"
    if not _has(counts, images=is_count, texts=is_count):
        return "counts are no numbers"
    if not isinstance(files, list):
        return "files is no list"
    channels = (1, 3) if manifest["encoding"] == "raw" else (None,)
    kinds = dict.fromkeys(("bytes", "images", "texts"), is_count)
    kinds |= {"name": _is_file_name, "sha256": is_text, "channels": lambda c: c in channels}
    for number, file in enumerate(files):
        if not _has(file, **kinds):
            return f"entry {number} of files is not one of a shard"
    if len({file["name"] for file in files}) < len(files):
        return "a file occurs twice"
    if any(counts[name] != sum(file[name] for file in files) for name in ("images", "texts")):
        return f"counts {counts} are not the sums of its files"
    return None


def _has(value: Any, **kinds: Callable[[Any], bool]) -> bool:
    """Whether a value is an object whose members are of these kinds; a missing one is null."""
    return isinstance(value, dict) and all(fits(value.get(name)) for name, fits in kinds.items())


def is_count(value: Any) -> bool:
    """Whether a value from JSON is a number of things or bytes."""
    return type(value) is int and 0 <= value < _MOST


def is_text(value: Any) -> bool:
    """Whether a value from JSON is a text."""
    return isinstance(value, str)


def _is_file_name(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"\w[\w.-]*", value, re.ASCII))


def _is_file(value: Any) -> bool:
    return _has(value, name=_is_file_name, bytes=is_count, sha256=is_text)


def holds_tokens(manifest: dict[str, Any]) -> bool:
    """Whether the shards themselves hold token ids, if there are any: those of version 1."""
    return manifest["version"] == 1


def _is_window(value: Any) -> bool:
    """Two numbers, or null."""
    numbers = isinstance(value, list) and [type(side) in (int, float) for side in value]
    return value is None or numbers == [True, True]
