"""What an audit has done so far, kept in a folder beside its list, so that it goes on if stopped.

`pictures` holds, one after the other, the pictures that were read, by the digest of what they were
made of; `blocks.jsonl` the finished blocks of the search, by the digest of all that went into it.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from m3ae.corpora.alignment import SIDE
from m3ae.corpora.near_duplicates import BLOCK, Near, PictureRows, Pictures, Search
from m3ae.files import write_text

FORMAT = 1  # of pictures and of the search; another one begins anew
RECORD = np.dtype([("key", "V32"), ("aspect", "<f4"), ("pixels", "u1", (SIDE, SIDE))])


@dataclass
class StoredPictures:
    """Pictures of rows int64 (N,) of a file of `RECORD`, read when asked for."""

    path: Path
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Tensor | slice) -> Pictures:
        # Mapped anew each time: else all that was ever read counts as this process's memory.
        records = np.memmap(self.path, RECORD, "r")[self.rows[rows].numpy()]
        return Pictures(torch.from_numpy(records["pixels"]), torch.from_numpy(records["aspect"]))

    def keys(self) -> np.ndarray:
        """The keys of the pictures, in order."""
        records = np.memmap(self.path, RECORD, "r")
        return records["key"][self.rows.numpy()]


class PictureFile:
    """The file of pictures of a folder; a record that was cut short is read and written again."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / f"pictures-{FORMAT}"
        whole = self.path.stat().st_size // RECORD.itemsize if self.path.exists() else 0
        self.file = open(self.path, "ab")
        self.file.truncate(whole * RECORD.itemsize)
        keys = np.memmap(self.path, RECORD, "r")["key"] if whole else ()
        self.rows = {key.tobytes(): row for row, key in enumerate(keys)}

    def add(self, key: bytes, pixels: np.ndarray, aspect: float) -> None:
        """Write a picture, unless it is there."""
        if key not in self.rows:
            self.file.write(np.array((key, aspect, pixels), RECORD).tobytes())
            self.rows[key] = len(self.rows)

    def close(self) -> None:
        """No more pictures follow."""
        self.file.close()

    def of(self, keys: Sequence[bytes]) -> StoredPictures:
        """The pictures of these keys."""
        rows = torch.tensor([self.rows[key] for key in keys], dtype=torch.long)
        return StoredPictures(self.path, rows)


def search_key(search: Search) -> str:
    """The digest of all that the result of a search depends on."""
    text = f"{FORMAT} {BLOCK} {search.threshold} {search.device.type}"
    digest = hashlib.sha256(text.encode())
    for pictures, places in ((search.keep, search.keep_places), (search.against, search.places)):
        digest.update(pictures.keys().tobytes())
        digest.update(places.numpy().tobytes())
    return digest.hexdigest()


def finished_blocks(path: Path, key: str) -> dict[int, Near]:
    """The blocks in a file of a search of this key; a line that was cut short counts as none."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    lines = [json.loads(line) for line in lines if line.endswith("\n")]
    if lines and lines[0] != {"search": key}:
        print(f"{path}: of other images or options, the search begins anew")
        lines = []
    return {line["start"]: [tuple(pair) for pair in line["near"]] for line in lines[1:]}


def near_images(
    keep: PictureRows,
    against: PictureRows,
    keep_places: np.ndarray,
    places: np.ndarray,
    threshold: float,
    folder: Path | None = None,
) -> Iterator[tuple[int, int, float]]:
    """Near-duplicates of pictures in `Search`; with a folder, of `StoredPictures`, its finished
    blocks are not searched again."""
    search = Search(keep, against, keep_places, places, threshold)
    done: dict[int, Near] = {}
    path = folder and folder / "blocks.jsonl"
    if path:
        key = search_key(search)
        done = finished_blocks(path, key)
        lines = [{"search": key}, *({"start": k, "near": near} for k, near in done.items())]
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
    where = f"on {search.device}" + (f", {search.threads} threads" if search.threads > 1 else "")
    again = f", {len(done)} of {len(search.starts)} blocks done before" if done else ""
    print(f"near images: {where}{again}")
    todo = [start for start in search.starts if start not in done]
    for near in done.values():
        yield from near
    bar = tqdm(
        total=len(against), initial=max(0, len(against) - len(todo) * BLOCK), desc="near images"
    )
    for start, near in search.run(todo):
        if path:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"start": start, "near": near}) + "\n")
        bar.update(min(BLOCK, len(against) - start))
        yield from near
    bar.close()
