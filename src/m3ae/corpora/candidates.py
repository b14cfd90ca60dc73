"""Pairs of pictures that share keypoints in the same arrangement, and the maps between them.

Descriptors are compared by matrix products within words: regions of the descriptors' space around
centres, so that 1 % of all products are made. Matches of two pictures vote: each says how one lies
on the other, and a candidate needs `LEAST_VOTES` that say the same.

Letters: `N` pictures, `K` keypoints of each, `Q` matches, `G` pairs of pictures, `M` their matches.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from m3ae.corpora.keypoints import Keypoints, extents, mirrored

WORD, MOST_WORDS = 512, 1024  # descriptors a word, about
PROBES = 3  # words in which a descriptor is looked for
LEAST_COSINE, MOST_MATCHES = 0.9, 8  # of a descriptor with each form of a picture
MATCHES = 24  # of a pair of pictures that vote
LEAST_VOTES = 2.0
CANDIDATES = 16  # pictures that a picture is aligned with, at most
NEAR, STRETCH = 0.05, 0.12  # how far votes may differ: of half the longer side, of the distance
SIZES, ANGLES = 0.5, 0.5  # logarithm of the scale, radians
APART = 0.03  # keypoints nearer than that are one vote
OWN_WEIGHT = 0.02  # of the best match's own turn and scale against the places of the others


@dataclass
class Candidates:
    """Rows of the pictures in ours and theirs, int64 (G,), and maps of ours onto theirs, float32
    (G, 2, 3)."""

    ours: Tensor
    theirs: Tensor
    maps: Tensor


def centres(descriptors: Tensor, words: int, steps: int = 8) -> Tensor:
    """Centres (words, 128) of the descriptors, by k-means on the sphere; the same on every run."""
    if not len(descriptors):
        return descriptors.new_zeros(1, descriptors.shape[1], dtype=torch.float32)
    drawn = torch.randperm(len(descriptors), generator=torch.Generator().manual_seed(0))
    drawn = descriptors[drawn[: 64 * words].to(descriptors.device)].float().cpu()
    found = drawn[:words].clone()
    for _ in range(steps):
        word = torch.cat([(part @ found.T).argmax(1) for part in drawn.split(8192)])
        total = torch.zeros_like(found).index_add_(0, word, drawn)
        some = torch.bincount(word, minlength=words) > 0
        found = torch.where(some[:, None], F.normalize(total, dim=1), found)
    return found.to(descriptors.device)


def ranks(groups: Tensor) -> Tensor:
    """The place of each row within its run of equal values."""
    _, counts = torch.unique_consecutive(groups, return_counts=True)
    return torch.arange(len(groups), device=groups.device) - torch.repeat_interleave(
        counts.cumsum(0) - counts, counts
    )


def by_group(groups: Tensor, values: Tensor) -> Tensor:
    """The order by group, and within one by falling value."""
    order = torch.argsort(values, descending=True, stable=True)
    return order[torch.argsort(groups[order], stable=True)]


class Index:
    """Keypoints of pictures by the words of their descriptors."""

    def __init__(self, keypoints: Keypoints) -> None:
        self.keypoints = keypoints
        number = torch.nonzero(keypoints.there.flatten())[:, 0]
        descriptors = keypoints.descriptors.flatten(0, 1)
        words = max(1, min(MOST_WORDS, len(number) // WORD))
        self.centres = centres(descriptors[number], words)
        parts = number.split(8192)
        word = [(descriptors[part].float() @ self.centres.T).argmax(1) for part in parts]
        word = torch.cat([*word, number.new_empty(0)])
        order = torch.argsort(word, stable=True)  # within a word by number
        self.numbers = number[order]
        self.descriptors = descriptors[self.numbers]
        keypoints.descriptors = descriptors[:0]  # held once
        ends = torch.bincount(word, minlength=words).cumsum(0).tolist()
        self.words = list(zip([0, *ends][:-1], ends, strict=True))

    def match(self, keypoints: Keypoints, first: int) -> tuple[Tensor, ...]:
        """Matches of pictures' keypoints with those of the index from picture `first` on.

        Returns, (Q,) each, their numbers in `keypoints`, whether mirrored, numbers in the index
        and cosines; at most `MOST_MATCHES` for a keypoint and its mirror image.
        """
        number = torch.nonzero(keypoints.there.flatten())[:, 0]
        plain = keypoints.descriptors.flatten(0, 1)[number]
        first *= self.keypoints.there.shape[1]
        found = [(number[:0], number[:0], number[:0], plain.new_empty(0))]
        for mirror, ours in enumerate((plain, mirrored(plain))):
            probes = min(PROBES, len(self.centres))
            word = (ours @ self.centres.T).topk(probes, 1).indices.flatten()
            row = torch.argsort(word, stable=True)
            ends = torch.bincount(word, minlength=len(self.centres)).cumsum(0).tolist()
            row = row // probes
            for (start, stop), low, high in zip(self.words, [0, *ends][:-1], ends, strict=True):
                if first and stop > start:
                    start += int(torch.searchsorted(self.numbers[start:stop], first))
                if low == high or start == stop:
                    continue
                mine = row[low:high]
                cosine = ours[mine] @ self.descriptors[start:stop].float().T
                cosine, theirs = cosine.topk(min(MOST_MATCHES, stop - start), 1)
                i, j = torch.nonzero(cosine >= LEAST_COSINE, as_tuple=True)
                both = torch.full_like(i, mirror)
                at = self.numbers[start + theirs[i, j]]
                found.append((number[mine[i]], both, at, cosine[i, j]))
        ours, mirror, theirs, cosine = (torch.cat(part) for part in zip(*found, strict=True))
        keypoint = ours * 2 + mirror
        order = by_group(keypoint, cosine)
        order = order[ranks(keypoint[order]) < MOST_MATCHES]
        return ours[order], mirror[order], theirs[order], cosine[order]


@dataclass
class Votes:
    """Matches of pairs: places, sizes and directions of keypoints, (G, M) each; which there are."""

    ours: tuple[Tensor, Tensor]
    theirs: tuple[Tensor, Tensor]
    scale: Tensor
    turn: Tensor
    there: Tensor

    def agree(self) -> Tensor:
        """Which matches lie as each match says, (G, M, M), as weights: 1 for each place."""
        (x, y), (to_x, to_y) = self.ours, self.theirs
        cos, sin = self.scale * self.turn.cos(), self.scale * self.turn.sin()
        dx, dy = x[:, None] - x[:, :, None], y[:, None] - y[:, :, None]
        miss_x = cos[..., None] * dx - sin[..., None] * dy - (to_x[:, None] - to_x[:, :, None])
        miss_y = sin[..., None] * dx + cos[..., None] * dy - (to_y[:, None] - to_y[:, :, None])
        scale = self.scale[..., None]
        far = (dx**2 + dy**2).sqrt() * scale
        near = (miss_x**2 + miss_y**2).sqrt() < NEAR * scale.clamp(min=1) + STRETCH * far
        sizes = (self.scale.log()[:, None] - self.scale.log()[..., None]).abs() < SIZES
        turns = (self.turn[:, None] - self.turn[..., None] + math.pi) % (2 * math.pi) - math.pi
        both = self.there[:, None] & self.there[..., None]
        say = (near & sizes & (turns.abs() < ANGLES) & both).float()
        one_place = ((dx.abs() + dy.abs()) < APART).float()
        return say / (say @ one_place).clamp(min=1)

    def fit(self, best: Tensor, weights: Tensor) -> Tensor:
        """Affine maps (G, 2, 3) that take the matches of these weights (G, M) to their places, and
        where these are few, turn and scale as the match `best` (G,) says."""
        rows = torch.arange(len(best), device=best.device)
        scale, turn = self.scale[rows, best], self.turn[rows, best]
        cos, sin = scale * turn.cos(), scale * turn.sin()
        own = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
        share = (weights / weights.sum(1, keepdim=True))[:, None]
        ours, theirs = torch.stack(self.ours, 1), torch.stack(self.theirs, 1)  # (G, 2, M)
        middle, to = ((points * share).sum(2, keepdim=True) for points in (ours, theirs))
        ours, theirs = (ours - middle) * weights[:, None], theirs - to
        one = torch.eye(2, device=own.device) * OWN_WEIGHT
        inner = ours @ (torch.stack(self.ours, 1) - middle).mT + one
        linear = (theirs @ ours.mT + OWN_WEIGHT * own) @ torch.linalg.inv(inner)
        return torch.cat([linear, to - linear @ middle], -1)


def vote(ours: Keypoints, index: Keypoints, matches: tuple[Tensor, ...]) -> Candidates:
    """The candidates of pictures, at most `CANDIDATES` each; maps in the keypoints' coordinates."""
    at, mirror, to, cosine = matches
    k, others = ours.there.shape[1], len(index)
    pair = (at // k * others + to // k) * 2 + mirror
    order = by_group(pair, cosine)
    pair, at, to = pair[order], at[order], to[order]
    group, counts = torch.unique_consecutive(pair, return_counts=True)
    start = counts.cumsum(0) - counts
    some = counts >= LEAST_VOTES
    group, counts, start = group[some], counts[some], start[some]
    slot = torch.arange(MATCHES, device=at.device)
    there = slot < counts[:, None]
    row = (start[:, None] + slot).clamp(max=max(0, len(at) - 1))
    at, to = at[row], to[row]
    x, y, angle, size = (v.flatten()[at] for v in (ours.x, ours.y, ours.angle, ours.size))
    flip = (group % 2 == 1)[:, None]
    x, angle = torch.where(flip, -x, x), torch.where(flip, math.pi - angle, angle)
    theirs = (index.x.flatten()[to], index.y.flatten()[to])
    scale, turn = index.size.flatten()[to] / size, index.angle.flatten()[to] - angle
    votes = Votes((x, y), theirs, scale, turn, there)
    weights = votes.agree()
    most, best = weights.sum(2).max(1)
    rows = torch.arange(len(group), device=group.device)
    maps = votes.fit(best, weights[rows, best])
    maps[:, :, 0] = torch.where(flip, -maps[:, :, 0], maps[:, :, 0])
    picture = group // 2 // others
    order = by_group(picture, most)
    order = order[(ranks(picture[order]) < CANDIDATES) & (most[order] > LEAST_VOTES - 0.01)]
    return Candidates(picture[order], group[order] // 2 % others, maps[order])


def squeezed(maps: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
    """Maps between pictures in true proportions, of these aspects (G,), as maps between squares."""
    return (
        maps
        * torch.cat([extents(ours), torch.ones_like(ours)[:, None]], 1)[:, None]
        / extents(theirs)[..., None]
    )
