"""Near-duplicate images and texts: the same picture after resizing, re-encoding, cropping, turning.

Candidates: thumbnails of a few views of each picture (crops, small rotations, the eight symmetries
of the square) are compared with those of every other picture. Check: each candidate pair is aligned
by an affine map, and scored by the correlation of the fine structure where the two overlap, which
pictures of the same anatomy do not share.

Pictures are squeezed to a square after uniform borders are cut. Coordinates are (x, y) in [-1, 1]
over a picture. Letters: `N` pictures, `V` views, `P` pairs.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, product

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SIDE = 64  # of a picture, pixels
BORDER = 16  # grey values that a border may differ from its own median

THUMB = 16  # side of a view, pixels
# Crops of the whole image, before borders are cut: part of its sides (0: the centre square, as in
# raw shards), place across and down.
CROPS = ((0, 0.5, 0.5), (0.9, 0.5, 0.5), (0.8, 0.5, 0.5), *product((0.9, 0.8), (0, 1), (0, 1)))
BASES = 2  # the first views: whole, centre square; of two views compared, one is among them
TURNS = (-7, 7)  # degrees of further views
CANDIDATES = 5  # pictures that a picture is aligned with, at most
LEAST = 0.5  # correlation of thumbnails that makes a candidate

STARTS = 2  # views from which a candidate pair is aligned
COARSE, COARSE_STEPS = 32, 8  # side in pixels and Gauss-Newton steps of the alignment
FINE, FINE_STEPS = 64, 5
LIKELY = 0.35  # coarse score that makes a pair worth the fine steps
WINDOW, FLOOR = 9, 0.03  # pixels and grey values (0-1) of local contrast
SCORED = (5, 0.01)  # the same for the score: faint structure counts, not only edges of bones
LEAST_OVERLAP = 0.35  # part of the smaller picture
AREAS = (0.25, 4)  # how much larger one picture may show things

PAIRS = 256  # pairs aligned at a time
CELLS = 2**24  # similarities held at a time

Near = list[tuple[int, int, float]]  # row of `against`, row of `keep`, score


@dataclass
class Pictures:
    """Pixels uint8 (N, SIDE, SIDE) and, in coordinates of the picture, what is left of each of its
    `CROPS` without borders: left, top, right, bottom, float32 (N, crops, 4)."""

    pixels: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: Tensor | slice) -> "Pictures":
        return Pictures(self.pixels[rows], self.boxes[rows])


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


def picture(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """One image for `Pictures`: pixels uint8 (SIDE, SIDE), boxes float32 (crops, 4)."""
    image = image.convert("RGB").convert("L")
    if max(image.size) > 16 * SIDE:
        image.thumbnail((16 * SIDE, 16 * SIDE), Image.Resampling.BOX)
    grey = np.asarray(image)
    whole = content_box(grey)
    height, width = grey.shape
    boxes = []
    for part, across, down in CROPS:
        w, h = (part * width, part * height) if part else (min(width, height),) * 2
        x, y = round(across * (width - w)), round(down * (height - h))
        box = content_box(grey[y : y + max(1, round(h)), x : x + max(1, round(w))])
        boxes.append(np.add(box, (x, y, x, y)))
    start, size = np.array(whole[:2] * 2), np.array([whole[2] - whole[0], whole[3] - whole[1]] * 2)
    pixels = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, whole)
    return np.asarray(pixels), (2 * (np.array(boxes) - start) / size - 1).astype(np.float32)


def view_maps(boxes: Tensor) -> Tensor:
    """Maps of the views onto their pictures, (N, V, 2, 3); the first `BASES` are no crops."""
    left, top, right, bottom = boxes.unbind(-1)
    zero = torch.zeros_like(left)
    across = torch.stack([(right - left) / 2, zero, (left + right) / 2], -1)
    down = torch.stack([zero, (bottom - top) / 2, (top + bottom) / 2], -1)
    angles = [np.deg2rad(angle) for angle in (0, 0, *TURNS)]
    scales = (1, 0.9, *[0.97] * len(TURNS))
    fixed = [
        [[s * np.cos(t), -s * np.sin(t), 0], [s * np.sin(t), s * np.cos(t), 0]]
        for s, t in zip(scales, angles, strict=True)
    ]
    fixed = torch.tensor(fixed, dtype=torch.float32).expand(len(boxes), -1, -1, -1)
    return torch.cat([fixed[:, :1], torch.stack([across, down], -2), fixed[:, 1:]], 1)


@cache
def symmetries() -> Tensor:
    """The eight symmetries of the square as maps (8, 2, 3)."""
    turns = product((1, -1), ((1, 0), (0, 1), (-1, 0), (0, -1)))
    maps = [[[flip * a, -flip * b, 0], [b, a, 0]] for flip, (a, b) in turns]
    return torch.tensor(maps, dtype=torch.float32)


def sample(images: Tensor, maps: Tensor, side: int, mode: str = "bilinear") -> Tensor:
    """Images (B, C, H, W) seen through maps (B, 2, 3): (B, C, side, side), edges repeated."""
    grid = F.affine_grid(maps, [len(maps), 1, side, side], align_corners=False)
    return F.grid_sample(images, grid, mode, padding_mode="border", align_corners=False)


def blur(images: Tensor, width: int) -> Tensor:
    """Mean over windows of `width` (odd) pixels, done twice; (B, 1, H, W)."""
    for _ in range(2):
        for window in ((width, 1), (1, width)):
            pad = (window[0] // 2, window[1] // 2)
            images = F.avg_pool2d(images, window, 1, pad, count_include_pad=False)
    return images


def even_out(images: Tensor, width: int, floor: float) -> Tensor:
    """Grey values less their local mean, over their local deviation plus `floor`."""
    centred = images - blur(images, width)
    return centred / (blur(centred**2, width).clamp(min=0).sqrt() + floor)


def unit(vectors: Tensor) -> Tensor:
    """Rows with mean 0 and length 1; rows without any contrast become 0."""
    centred = vectors - vectors.mean(-1, keepdim=True)
    norm = centred.norm(dim=-1, keepdim=True)
    return torch.where(norm > 1e-3, centred / norm.clamp(min=1e-3), 0)


def smaller(pixels: Tensor, side: int) -> Tensor:
    """Pictures uint8 (P, SIDE, SIDE) -> grey values 0-1 at `side` pixels, float32 (P, 1, ...)."""
    return F.avg_pool2d(pixels[:, None].float() / 255, SIDE // side)


def shrink(pixels: Tensor, side: int) -> Tensor:
    """The fine structure of `smaller` pictures."""
    return even_out(smaller(pixels, side), WINDOW, FLOOR)


def views(pictures: Pictures) -> Tensor:
    """Thumbnails of all views, float32 (N, V, THUMB**2), each of mean 0 and length 1."""
    small = smaller(pictures.pixels, 32)
    maps = view_maps(pictures.boxes)
    n, v = maps.shape[:2]
    seen = sample(small.repeat_interleave(v, 0), maps.reshape(-1, 2, 3), THUMB)
    flat = seen.flatten(1).std(1) < 0.02
    seen = even_out(seen, 7, 0.05).flatten(1)
    seen[flat] = 0
    return unit(seen).view(n, v, -1)


def turned(thumbs: Tensor) -> Tensor:
    """Thumbnails (N, V, T) through the eight symmetries: (8, N, V, T)."""
    n, v, _ = thumbs.shape
    images = thumbs.reshape(1, n * v, THUMB, THUMB).expand(8, -1, -1, -1)
    return sample(images, symmetries(), THUMB, "nearest").view(8, n, v, -1)


def best_view(ours: Tensor, theirs: Tensor) -> Tensor:
    """Best correlation over views and symmetries of each picture with each, (N, M).

    `ours` (8, N, V, T) of `turned`, `theirs` (M, V, T) of `views`.
    """
    best = torch.full((ours.shape[1], len(theirs)), -1.0)
    for symmetry in ours:
        for a in range(symmetry.shape[1]):
            for b in range(theirs.shape[1] if a < BASES else BASES):
                torch.maximum(best, symmetry[:, a] @ theirs[:, b].T, out=best)
    return best


def start_maps(ours: Tensor, theirs: Tensor, our_maps: Tensor, their_maps: Tensor) -> Tensor:
    """For pairs, the best `STARTS` maps of our picture onto theirs by view, (P, STARTS, 2, 3).

    `ours` (8, P, V, T) and `theirs` (P, V, T) are thumbnails, the maps (P, V, 2, 3).
    """
    scores = torch.einsum("spvt,pwt->psvw", ours, theirs)
    scores[:, :, BASES:, BASES:] = -1
    v = scores.shape[-1]
    best = scores.flatten(1).topk(STARTS).indices
    symmetry, a, b = best // (v * v), best // v % v, best % v
    rows = torch.arange(len(best))[:, None]
    onto_ours = compose(our_maps[rows, a], symmetries()[symmetry])
    return compose(their_maps[rows, b], invert(onto_ours))


def compose(first: Tensor, second: Tensor) -> Tensor:
    """The map `first` after `second`, (..., 2, 3)."""
    linear, shift = first[..., :2], first[..., 2:]
    return torch.cat([linear @ second[..., :2], linear @ second[..., 2:] + shift], -1)


def invert(maps: Tensor) -> Tensor:
    """The inverse maps, (..., 2, 3)."""
    inverse = torch.linalg.inv(maps[..., :2])
    return torch.cat([inverse, -inverse @ maps[..., 2:]], -1)


def refine(ours: Tensor, theirs: Tensor, maps: Tensor, steps: int) -> Tensor:
    """Gauss-Newton steps on the six numbers of each map, by squared difference of (P, 1, s, s)."""
    side = ours.shape[-1]
    gx = (theirs.roll(-1, 3) - theirs.roll(1, 3)) * (side / 4)
    gy = (theirs.roll(-1, 2) - theirs.roll(1, 2)) * (side / 4)
    stack = torch.cat([theirs, gx, gy], 1)
    place = F.affine_grid(torch.eye(2, 3)[None], [1, 1, side, side], align_corners=False)
    ones = torch.cat([place.view(1, -1, 2), torch.ones(1, side * side, 1)], -1)  # x, y, 1
    target = ours.flatten(1)
    for _ in range(steps):
        value, gx, gy = sample(stack, maps, side).flatten(2).unbind(1)
        inside = overlap(maps, side)
        jacobian = torch.cat([gx[..., None] * ones, gy[..., None] * ones], -1)
        weighted = (jacobian * inside[..., None]).transpose(1, 2)
        normal = weighted @ jacobian
        damping = 1e-3 * normal.diagonal(dim1=1, dim2=2).mean(1) + 1e-4
        normal = normal + damping[:, None, None] * torch.eye(6)
        change = torch.linalg.solve(normal, weighted @ (target - value)[..., None])
        maps = maps + change.view(-1, 2, 3).clamp(-0.1, 0.1)
    return maps


def overlap(maps: Tensor, side: int) -> Tensor:
    """Which pixels of ours lie in theirs, float32 (P, side**2) of 0 and 1."""
    grid = F.affine_grid(maps, [len(maps), 1, side, side], align_corners=False)
    return (grid.abs() <= 1).all(-1).flatten(1).float()


def similarity(ours: Tensor, theirs: Tensor, maps: Tensor, side: int) -> Tensor:
    """Correlation of the fine structure where pictures uint8 (P, SIDE, SIDE) overlap, (P,)."""
    a, b = smaller(ours, side), smaller(theirs, side)
    # Evened out after the map: the same window of both pictures.
    a, b = (even_out(x, *SCORED).flatten(1) for x in (a, sample(b, maps, side)))
    inside = overlap(maps, side)
    count = inside.sum(1, keepdim=True).clamp(min=1)
    a = (a - (a * inside).sum(1, keepdim=True) / count) * inside
    b = (b - (b * inside).sum(1, keepdim=True) / count) * inside
    score = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-3)
    area = torch.linalg.det(maps[:, :, :2]).abs()
    covered = inside.mean(1) * area.clamp(min=1)  # of the smaller picture
    plausible = (covered > LEAST_OVERLAP) & (area > AREAS[0]) & (area < AREAS[1])
    return torch.where(plausible, score, 0)


def align(ours: Tensor, theirs: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures uint8 (P, SIDE, SIDE) and start maps (P, STARTS, 2, 3) -> aligned maps (P, 2, 3),
    scores (P,)."""
    p, starts = maps.shape[:2]
    a, b = (shrink(pixels, COARSE).repeat_interleave(starts, 0) for pixels in (ours, theirs))
    maps = refine(a, b, maps.flatten(0, 1), COARSE_STEPS)
    each = (pixels.repeat_interleave(starts, 0) for pixels in (ours, theirs))
    score, best = similarity(*each, maps, COARSE).view(p, starts).max(1)
    maps = maps.view(p, starts, 2, 3)[torch.arange(p), best]
    likely = torch.nonzero(score > LIKELY)[:, 0]
    if len(likely):
        a, b, start = ours[likely], theirs[likely], maps[likely]
        finer = refine(shrink(a, FINE), shrink(b, FINE), start, FINE_STEPS)
        both = torch.stack([similarity(a, b, m, FINE) for m in (start, finer)])
        score[likely], which = both.max(0)
        maps[likely] = torch.where(which[:, None, None] == 1, finer, start)
    return maps, score.where(score > LIKELY, 0)


def near_images(
    keep: Pictures, against: Pictures, keep_places: np.ndarray, places: np.ndarray, threshold: float
) -> Iterator[Near]:
    """Near-duplicates, a list for each block of rows of `against`.

    Places (N,) number the images through all inputs: an image is never its own duplicate. Memory
    is a multiple of `keep` (15 KB an image), whatever the length of `against`.
    """
    theirs, their_maps = views(keep), view_maps(keep.boxes)
    for start, stop in blocks(len(against), len(keep)):
        block = against[start:stop]
        ours, our_maps = turned(views(block)), view_maps(block.boxes)
        best = best_view(ours, theirs)
        best[torch.from_numpy(places[start:stop, None] == keep_places[None])] = -1
        value, column = best.topk(min(CANDIDATES, len(keep)), 1)
        row, place = torch.nonzero(value >= LEAST, as_tuple=True)
        column, found = column[row, place], []
        for first in range(0, len(row), PAIRS):
            part = slice(first, first + PAIRS)
            i, j = row[part], column[part]
            maps = start_maps(ours[:, i], theirs[j], our_maps[i], their_maps[j])
            score = align(block.pixels[i], keep.pixels[j], maps)[1]
            for k in torch.nonzero(score >= threshold)[:, 0].tolist():
                found.append((start + int(i[k]), int(j[k]), float(score[k])))
        yield found


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
