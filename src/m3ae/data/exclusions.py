"""Exclusion lists: images to leave out, one id a line (anything after a tab is a remark)."""

from pathlib import Path, PurePosixPath

import numpy as np

from m3ae.data.shards import Shards
from m3ae.files import need

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp"}


def image_stem(key: str) -> str:
    """An image key without folders and without the suffix of an image file."""
    name = PurePosixPath(key)
    return name.stem if name.suffix.lower() in IMAGE_SUFFIXES else name.name


def image_keys(split: Shards) -> list[str]:
    """The key of every image of a split."""
    return [split.image_key(image) for image in range(split.num_images)]


def listed(split: Shards, ids: set[str]) -> np.ndarray:
    """Which images of a split are listed, by their key or its stem: bool (images,)."""
    keys = image_keys(split)
    return np.fromiter((key in ids or image_stem(key) in ids for key in keys), bool)


def read_exclusions(*files: str | Path) -> set[str]:
    """Ids of these lists: the part of each line before the first tab; # starts a remark."""
    texts = [need(Path(file), "a list of image ids").read_text(encoding="utf-8") for file in files]
    lines = [line for text in texts for line in text.splitlines() if not line.startswith("#")]
    return {line.split("\t")[0].strip() for line in lines} - {""}
