"""Keypoints of pictures: places that are found again after a zoom, a turn, another encoding.

The difference of Gaussians has extremes at spots of every size. Each gives a keypoint with a place,
a size, a direction (of the strongest gradients around it) and a descriptor: histograms of gradient
directions in 4 x 4 cells around it, in its own size and direction (Lowe, IJCV 2004; the roots of
Arandjelovic and Zisserman, CVPR 2012).

Pictures are uint8 (N, SIDE, SIDE), squeezed to a square; keypoints are found in their true
proportions: longer side 2, centre (0, 0). Letters: `N` pictures, `K` keypoints, `L` levels of blur.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from m3ae.corpora.alignment import SIDE, grey, sample

KEYPOINTS = 96  # of a picture, at most
SIGMAS = [1.3 * 1.3**level for level in range(9)]  # of the levels of blur, pixels
LEAST_CONTRAST = 3e-4  # of an extreme, grey values (0-1)
MOST_EDGE = 12.0  # ratio of curvatures, as (trace**2 / determinant): edges have no place
CELLS, BINS = 4, 8  # of a descriptor: cells a side, directions
PATCH = 16  # pixels a side that a descriptor is made of
SPACING = 0.75  # of these, in sigmas
TURNS = 24  # directions that a keypoint's own is chosen from
ADAPTED = 4  # the longer side is at most so many times the shorter one


@dataclass
class Keypoints:
    """(N, K) each: place, sigma and direction (radians); descriptors (N, K, 128) of length 1, and
    whether there is one."""

    x: Tensor
    y: Tensor
    size: Tensor
    angle: Tensor
    descriptors: Tensor
    there: Tensor

    def __len__(self) -> int:
        return len(self.x)


def join(parts: list[Keypoints]) -> Keypoints:
    """Keypoints of all parts."""
    names = Keypoints.__dataclass_fields__
    return Keypoints(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def extents(aspects: Tensor) -> Tensor:
    """Width and height of pictures of these aspects (width / height), half the longer side: 1."""
    return torch.stack([aspects.clamp(max=1), (1 / aspects).clamp(max=1)], -1)


def levels(pixels: Tensor, aspects: Tensor) -> Tensor:
    """Pictures in their true proportions, blurred: (N, L, SIDE, SIDE)."""
    maps = torch.diag_embed(1 / extents(aspects))
    maps = torch.cat([maps, torch.zeros_like(maps[..., :1])], -1)
    place = torch.arange(SIDE, dtype=torch.float32, device=pixels.device)
    apart = (place[:, None] - place) ** 2
    sigmas = torch.tensor(SIGMAS, device=pixels.device)[:, None, None]
    weights = torch.exp(-apart / (2 * sigmas**2))
    weights = weights / weights.sum(-1, keepdim=True)
    return weights @ sample(grey(pixels), maps, SIDE) @ weights.transpose(1, 2)


def extreme(values: Tensor, largest: bool) -> Tensor:
    """Largest or smallest value of each 3 x 3 x 3 neighbourhood of (N, L, H, W)."""
    choose = torch.maximum if largest else torch.minimum
    for dim in (1, 2, 3):
        whole = values.clone()
        n = values.shape[dim] - 1
        for to, source in ((0, 1), (1, 0)):
            part = whole.narrow(dim, to, n)
            part.copy_(choose(part, values.narrow(dim, source, n)))
        values = whole
    return values


def spots(differences: Tensor, aspects: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Extremes of differences (N, L - 1, SIDE, SIDE): strength, level, row, column (N, K)."""
    inner = differences[:, 1:-1]
    is_extreme = inner == extreme(differences, True)[:, 1:-1]
    is_extreme |= inner == extreme(differences, False)[:, 1:-1]
    reach = extents(aspects) * (SIDE / 2) - 2
    from_centre = (torch.arange(SIDE, device=aspects.device) + 0.5 - SIDE / 2).abs()
    inside = (from_centre < reach[:, 1:])[:, :, None] & (from_centre < reach[:, :1])[:, None]
    strength, place = (inner.abs() * is_extreme * inside[:, None]).flatten(1).topk(4 * KEYPOINTS)
    level, y, x = place // SIDE**2 + 1, place // SIDE % SIDE, place % SIDE
    rows = torch.arange(len(x), device=x.device)[:, None]

    def at(down: int, right: int) -> Tensor:
        return differences[
            rows, level, (y + down).clamp(0, SIDE - 1), (x + right).clamp(0, SIDE - 1)
        ]

    xx, yy = at(0, 1) + at(0, -1) - 2 * at(0, 0), at(1, 0) + at(-1, 0) - 2 * at(0, 0)
    xy = (at(1, 1) + at(-1, -1) - at(1, -1) - at(-1, 1)) / 4
    spot = (xx + yy) ** 2 < MOST_EDGE * (xx * yy - xy**2)
    strength = strength.where(spot & (strength > LEAST_CONTRAST), 0)
    strength, order = strength.topk(KEYPOINTS)
    return strength, level.gather(1, order), y.gather(1, order), x.gather(1, order)


def window(side: int, sigma: float, device: torch.device) -> Tensor:
    """Weights (side, side) that fall off from the centre."""
    from_centre = torch.arange(side, device=device) - (side - 1) / 2
    return torch.exp(-(from_centre[:, None] ** 2 + from_centre**2) / (2 * sigma**2))


def gradients(
    stack: Tensor, places: tuple[Tensor, Tensor, Tensor], angle: Tensor, side: int, spacing: float
) -> tuple[Tensor, Tensor]:
    """Strength and direction of gradients around keypoints, (N, K, side, side), in their frame.

    places: column, row and level (N, K) in `stack` (N, L, SIDE, SIDE).
    """
    x, y, level = (place[..., None, None] for place in places)
    n, k = angle.shape
    sigma = torch.tensor(SIGMAS, device=angle.device)[places[2]]
    step = (torch.arange(side + 2, device=angle.device) - (side + 1) / 2) * spacing
    across, down = step[None, :], step[:, None]
    cos, sin = ((sigma * turn)[..., None, None] for turn in (angle.cos(), angle.sin()))
    columns, rows = x + cos * across - sin * down, y + sin * across + cos * down
    depth = (level / ((stack.shape[1] - 1) / 2) - 1).expand_as(columns)
    grid = torch.stack([columns / ((SIDE - 1) / 2) - 1, rows / ((SIDE - 1) / 2) - 1, depth], -1)
    grid = grid.view(n, 1, k, (side + 2) ** 2, 3)
    patch = F.grid_sample(stack[:, None], grid, padding_mode="border", align_corners=True)
    patch = patch.view(n, k, side + 2, side + 2)
    right = patch[..., 1:-1, 2:] - patch[..., 1:-1, :-2]
    below = patch[..., 2:, 1:-1] - patch[..., :-2, 1:-1]
    return (right**2 + below**2).sqrt(), torch.atan2(below, right)


def histogram(strength: Tensor, angle: Tensor, bins: int, reach: float) -> Tensor:
    """Shares of gradients (N, K, s, s) in directions, (N, K, bins, s**2); `reach` in bins."""
    turn = (angle / (2 * math.pi) * bins) % bins
    apart = (turn[:, :, None] - torch.arange(bins, device=angle.device).view(-1, 1, 1)).abs()
    apart = torch.minimum(apart, bins - apart)
    return (strength[:, :, None] * (reach - apart).clamp(min=0)).flatten(3)


def directions(strength: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """The two main directions around keypoints (N, K, 2), and the share of each in the first."""
    weighted = strength * window(strength.shape[-1], 3, angle.device)
    share = histogram(weighted, angle, TURNS, 1.5).sum(-1)
    share = share + 0.6 * (share.roll(1, 2) + share.roll(-1, 2))
    before, after = share.roll(1, 2), share.roll(-1, 2)
    top, place = share.where((share >= before) & (share > after), 0).topk(2, 2)
    before, after, here = (values.gather(2, place) for values in (before, after, share))
    offset = (before - after) / 2 / (before + after - 2 * here).clamp(max=-1e-6)
    return (place + offset) * (2 * math.pi / TURNS), top / top[..., :1].clamp(min=1e-12)


def describe(strength: Tensor, angle: Tensor) -> Tensor:
    """Descriptors (N, K, BINS * CELLS**2) of length 1 from gradients (N, K, PATCH, PATCH)."""
    wide = PATCH // CELLS
    pixel = torch.arange(PATCH, device=angle.device) + 0.5
    centre = torch.arange(CELLS, device=angle.device) * wide + wide / 2
    share = (1 - (pixel[:, None] - centre).abs() / wide).clamp(min=0)
    cells = torch.einsum("ya,xb->yxab", share, share).reshape(PATCH**2, CELLS**2)
    weighted = strength * window(PATCH, PATCH / 2, angle.device)
    values = (histogram(weighted, angle, BINS, 1.0) @ cells).flatten(2)
    values = F.normalize(values, dim=2, eps=1e-6).clamp(max=0.2)  # no gradient may rule
    return (values / values.sum(2, keepdim=True).clamp(min=1e-6)).sqrt()


def mirrored(descriptors: Tensor) -> Tensor:
    """Descriptors (..., 128) of the mirrored pictures' keypoints: their frames upside down."""
    values = descriptors.view(*descriptors.shape[:-1], BINS, CELLS, CELLS)
    back = (-torch.arange(BINS, device=descriptors.device)) % BINS
    return values.index_select(-3, back).flip(-2).flatten(-3)


def keypoints(pixels: Tensor, aspects: Tensor) -> Keypoints:
    """Keypoints of pictures uint8 (N, SIDE, SIDE) of these aspects (width / height)."""
    stack = levels(pixels, aspects)
    strength, level, y, x = spots(stack[:, 1:] - stack[:, :-1], aspects)
    upright = torch.zeros_like(strength)
    angle, share = directions(*gradients(stack, (x, y, level), upright, 8, 1.0))
    # A second direction that is nearly as strong gives a second keypoint.
    second = (strength * 0.999).where(share[..., 1] > 0.8, 0)
    strength, order = torch.stack([strength, second], 2).flatten(1).topk(KEYPOINTS)
    angle, place = angle.flatten(1).gather(1, order), order // 2
    x, y, level = (values.gather(1, place) for values in (x, y, level))
    descriptors = describe(*gradients(stack, (x, y, level), angle, PATCH, SPACING))
    sigma = torch.tensor(SIGMAS, device=x.device)[level]
    half = SIDE / 2
    return Keypoints(
        (x + 0.5) / half - 1, (y + 0.5) / half - 1, sigma / half, angle, descriptors, strength > 0
    )
