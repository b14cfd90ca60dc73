"""What is at a path, whatever the path: digests of prepared splits, folders of weights, files."""

import dataclasses
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from m3ae.checkpoints import newest_whole
from m3ae.data.shards import read_manifest
from m3ae.files import file_sha256

FILES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors", ".json", ".txt", ".tsv")


def contents(config: Any) -> dict[str, list[str | None]]:
    """Digests of what the paths of a config's section `data` lead to, by key."""
    found = {}
    for key, value in dataclasses.asdict(config.data).items():
        given = value if isinstance(value, tuple) else (value,)
        if given and all(isinstance(one, str) and Path(one).exists() for one in given):
            found[f"data.{key}"] = [content_of(one) for one in given]
    return found


def content_of(path: str | None) -> str | None:
    """Digest of a prepared split, a folder of weights or a file; a hub id stands for itself.

    None for a local path which is not there: an absolute one, one below data/ or runs/, a file.
    """
    if path is None:
        return None
    place = Path(path)
    place = newest_whole(place) or place
    if place.is_dir():
        if any(place.glob("shard-*")) and not (place / "manifest.json").is_file():
            return None  # a split that is being prepared, or was broken off
        return _folder_digest(place, stamp(place))
    if place.is_file():
        return _file_digest(place, stamp(place))
    local = place.is_absolute() or place.parts[0] in ("data", "runs", "..")
    return None if local or place.suffix in FILES else f"hub:{path}"


def stamp(path: Path) -> tuple[int, int]:
    """What changes when a split or file does: its time and size."""
    stat = (path / "manifest.json" if (path / "manifest.json").is_file() else path).stat()
    return stat.st_mtime_ns, stat.st_size


@cache
def _file_digest(path: Path, _: tuple[int, int]) -> str:
    return file_sha256(path)


@cache
def _folder_digest(folder: Path, _: tuple[int, int]) -> str:
    """Of a prepared split what its manifest says of the content, and its answer list."""
    if not (folder / "manifest.json").is_file():
        files = [path for path in sorted(folder.glob("*")) if path.is_file()]
        content: Any = {path.name: file_sha256(path) for path in files}
    else:
        manifest = read_manifest(folder)
        content = {key: manifest[key] for key in ("kind", "source", "encoding", "px", "counts")}
        content["tokens"] = (manifest["tokenizer"] or {}).get("fingerprint")
        content["files"] = [file["sha256"] for file in manifest["files"]]
        lists = [folder.parent / name for name in ("answers.json", "classes.json")]
        content["answers"] = [file_sha256(path) for path in lists if path.is_file()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
