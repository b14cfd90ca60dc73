"""Exclusion lists: images to leave out, one id a line (anything after a tab is a remark)."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from m3ae.data.shards import Shards, row_bytes
from m3ae.files import need

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp"}


def image_stem(key: str) -> str:
    """An image key without folders and without the suffix of an image file."""
    name = PurePosixPath(key)
    return name.stem if name.suffix.lower() in IMAGE_SUFFIXES else name.name


def read_lists(files: Sequence[str]) -> set[str]:
    """Ids of all lists; raises FileNotFoundError naming a missing file."""
    return {name for file in files for name in read_exclusions(Path(file))}


def image_keys(split: Shards) -> list[str]:
    """The key of every image of a split."""
    return [
        row_bytes(split.shard(k), "image_key", row).decode()
        for k, file in enumerate(split.files)
        for row in range(file["images"])
    ]


def listed(split: Shards, ids: set[str]) -> np.ndarray:
    """Which images of a split are listed, by their key or its stem: bool (images,)."""
    keys = image_keys(split)
    return np.fromiter((key in ids or image_stem(key) in ids for key in keys), bool)


def read_exclusions(path: Path) -> set[str]:
    """Ids of an exclusion list: the part of each line before the first tab; # starts a remark."""
    lines = need(path, "a list of image ids").read_text(encoding="utf-8").splitlines()
    ids = {line.split("\t")[0].strip() for line in lines if not line.startswith("#")}
    return ids - {""}
