"""Near-duplicate images and texts: the same picture after resizing, re-encoding, zooming, turning.

Candidates: pictures whose keypoints match in the same arrangement (`candidates`). Check: each
candidate pair is aligned by an affine map, and scored by the correlation of the fine structure
where the two overlap (`alignment`), which pictures of the same anatomy do not share.

Pictures are squeezed to a square after uniform borders are cut. Letters: `N` pictures.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from m3ae.corpora.alignment import SIDE, align
from m3ae.corpora.candidates import Index, squeezed, vote
from m3ae.corpora.keypoints import ADAPTED, Keypoints, join, keypoints
from m3ae.processes import usable_cores

BORDER = 16  # grey values that a border may differ from its own median
BLOCK = 256  # pictures searched for at a time, by one thread
PART, PAIRS = 32, 128  # pictures described, pairs aligned at a time: as the caches hold
CELLS = 2**24  # similarities of texts held at a time

Near = list[tuple[int, int, float]]  # row of `against`, row of `keep`, score
T = TypeVar("T")


class PictureRows(Protocol):
    """Pictures by row, in memory or in a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor | slice) -> "Pictures": ...


@dataclass
class Pictures:
    """Pixels uint8 (N, SIDE, SIDE) and aspects (width / height without borders) float32 (N,)."""

    pixels: Tensor
    aspects: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: Tensor | slice) -> "Pictures":
        return Pictures(self.pixels[rows], self.aspects[rows])

    def to(self, device: torch.device) -> "Pictures":
        """The same on a device."""
        return Pictures(self.pixels.to(device), self.aspects.to(device))


def content_box(grey: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what uniform borders surround; the whole where all is uniform."""
    left, top, right, bottom = 0, 0, grey.shape[1], grey.shape[0]
    for _ in range(3):  # a frame within a frame
        part = grey[top:bottom, left:right].astype(np.int16)
        edge = np.concatenate([part[0], part[-1], part[:, 0], part[:, -1]])
        inked = np.abs(part - int(np.median(edge))) > BORDER
        columns = np.flatnonzero(inked.mean(axis=0) > 0.01)
        rows = np.flatnonzero(inked.mean(axis=1) > 0.01)
        if len(columns) < 8 or len(rows) < 8:
            break
        box = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
        if box == (left, top, right, bottom):
            break
        left, top, right, bottom = map(int, box)
    return left, top, right, bottom


def picture(image: Image.Image) -> tuple[np.ndarray, float]:
    """One image for `Pictures`: pixels uint8 (SIDE, SIDE), aspect."""
    image = image.convert("RGB").convert("L")
    if max(image.size) > 8 * SIDE:
        image.thumbnail((8 * SIDE, 8 * SIDE), Image.Resampling.BOX)
    left, top, right, bottom = content_box(np.asarray(image))
    pixels = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, (left, top, right, bottom))
    aspect = (right - left) / (bottom - top)
    return np.asarray(pixels), min(max(aspect, 1 / ADAPTED), ADAPTED)


def search_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def in_threads(work: Callable[[int], T], starts: Sequence[int], threads: int) -> Iterator[T]:
    """Results in order; each thread of its own, without further ones of torch's within."""
    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    torch.set_num_threads(1)
    try:
        yield from pool.map(work, starts)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def describe(pictures: PictureRows, device: torch.device) -> Keypoints:
    """Keypoints of all pictures, on the device."""
    parts = [pictures[at : at + PART].to(device) for at in range(0, len(pictures), PART)]
    return join([keypoints(part.pixels, part.aspects) for part in parts])


class Search:
    """Looks for near-duplicates of `against` among `keep`, blocks of rows of `against` at a time.

    Places (N,) number the images through all inputs: an image is never its own duplicate. Where
    both sides are the same images, each pair is looked at once. Memory: 45 KB an image of `keep`
    that is in memory as a whole, 25 KB where not; 0.4 GB a thread.
    """

    def __init__(
        self,
        keep: PictureRows,
        against: PictureRows,
        keep_places: np.ndarray,
        places: np.ndarray,
        threshold: float,
        device: torch.device | None = None,
    ) -> None:
        self.keep, self.against, self.threshold = keep, against, threshold
        self.device = device or search_device()
        self.threads = usable_cores() if self.device.type == "cpu" else 1
        self.places, self.keep_places = torch.from_numpy(places), torch.from_numpy(keep_places)
        self.itself = np.array_equal(places, keep_places)
        self.starts = range(0, len(against), BLOCK)
        self.index: Index | None = None

    def describe_keep(self) -> None:
        """Find the keypoints of `keep`."""
        starts = range(0, len(self.keep), BLOCK)

        def work(start: int) -> Keypoints:
            found = describe(self.keep[start : start + BLOCK], self.device)
            found.descriptors = found.descriptors.half()
            return found

        parts = in_threads(work, starts, self.threads)
        self.index = Index(join(list(tqdm(parts, "keypoints of --keep", len(starts)))))

    def block(self, start: int) -> Near:
        """Near-duplicates of the rows from `start` on."""
        ours = self.against[start : start + BLOCK].to(self.device)
        described = describe(ours, self.device)
        matches = self.index.match(described, start if self.itself else 0)
        found = vote(described, self.index.keypoints, matches)
        i, j = found.ours.cpu(), found.theirs.cpu()
        other = self.places[start + i] != self.keep_places[j]
        if self.itself:
            other &= j > start + i
        near: dict[tuple[int, int], float] = {}
        pairs = torch.nonzero(other)[:, 0]
        for rows in pairs.split(PAIRS) if len(pairs) else ():
            theirs = self.keep[j[rows]].to(self.device)
            mine = ours[i[rows].to(self.device)]
            maps = squeezed(found.maps[rows.to(self.device)], mine.aspects, theirs.aspects)
            scores = align(mine.pixels, theirs.pixels, maps)[1].tolist()
            for a, b, score in zip(
                (start + i[rows]).tolist(), j[rows].tolist(), scores, strict=True
            ):
                if score >= max(self.threshold, near.get((a, b), 0)):
                    near[a, b] = score
        return [(a, b, score) for (a, b), score in sorted(near.items())]

    def run(self, starts: Sequence[int] | None = None) -> Iterator[tuple[int, Near]]:
        """The start and the near-duplicates of each block, of all or of these."""
        starts = self.starts if starts is None else starts
        if starts and self.index is None:
            self.describe_keep()
        yield from zip(starts, in_threads(self.block, starts, self.threads), strict=True)


def blocks(rows: int, columns: int) -> list[tuple[int, int]]:
    """Row ranges of a similarity matrix of which `CELLS` fit into memory."""
    size = max(1, min(512, CELLS // max(1, columns)))
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def normal_text(text: str) -> str:
    """A text without case, punctuation and extra space."""
    return " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))


def near_texts(keep: Sequence[str], against: Sequence[str], threshold: float) -> Iterator[Near]:
    """Texts of `normal_text` that are nearly the same, as `near_images`: cosine of TF-IDF values
    of words and pairs of words. Equal texts are not among them."""
    if not keep or not against:
        return
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes a second to import

    weigh = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\S+", dtype=np.float32)
    weigh.fit(chain(keep, against))
    columns = weigh.transform(keep).T.tocsr()
    rows = weigh.transform(against)
    for start, stop in blocks(len(against), len(keep)):
        near = (rows[start:stop] @ columns).tocoo()
        hit = near.data >= threshold
        triples = zip(near.row[hit] + start, near.col[hit], near.data[hit], strict=True)
        yield [(int(i), int(j), float(score)) for i, j, score in triples if keep[j] != against[i]]
