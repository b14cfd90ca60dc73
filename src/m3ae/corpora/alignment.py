"""Two pictures laid over one another by an affine map, and how well their fine structure agrees.

Pictures are uint8 (P, SIDE, SIDE), squeezed to a square; coordinates are (x, y) in [-1, 1] over a
picture. A map (2, 3) takes a place in ours to the same place in theirs. Letters: `P` pairs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 128  # of a picture, pixels
ROUGH, LEAST_ROUGH = 24, 0.55  # side in pixels and score of a start map worth refining
FINE, FINE_STEPS = 64, 5  # side in pixels and Gauss-Newton steps
WINDOW, FLOOR = 9, 0.03  # pixels and grey values (0-1) of local contrast
SCORED = (5, 0.01)  # the same for the score: faint structure counts, not only edges of bones
BLOCK, TRIMMED = 8, 0.15  # pixels of a block; part of the overlap that overlays may differ in
MARGIN = 0.06  # of half a picture at its edges, where something of a frame may be left
LEAST_OVERLAP = 0.5  # part of the smaller picture
LEAST_AREA = 0.1  # part of the larger picture that the smaller one shows


def sample(images: Tensor, maps: Tensor, side: int) -> Tensor:
    """Images (B, C, H, W) seen through maps (B, 2, 3): (B, C, side, side), edges repeated."""
    grid = F.affine_grid(maps, [len(maps), 1, side, side], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


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


def grey(pixels: Tensor, side: int = SIDE) -> Tensor:
    """Pictures uint8 (P, SIDE, SIDE) -> grey values 0-1 at `side` pixels, float32 (P, 1, ...)."""
    return F.avg_pool2d(pixels[:, None].float() / 255, SIDE // side)


def shrink(pixels: Tensor, side: int) -> Tensor:
    """The fine structure of `grey` pictures."""
    return even_out(grey(pixels, side), WINDOW, FLOOR)


def compose(first: Tensor, second: Tensor) -> Tensor:
    """The map `first` after `second`, (..., 2, 3)."""
    linear, shift = first[..., :2], first[..., 2:]
    return torch.cat([linear @ second[..., :2], linear @ second[..., 2:] + shift], -1)


def invert(maps: Tensor) -> Tensor:
    """The inverse maps, (..., 2, 3)."""
    a, b, c, d = maps[..., 0, 0], maps[..., 0, 1], maps[..., 1, 0], maps[..., 1, 1]
    rows = torch.stack([torch.stack([d, -b], -1), torch.stack([-c, a], -1)], -2)
    inverse = rows / (a * d - b * c)[..., None, None]
    return torch.cat([inverse, -inverse @ maps[..., 2:]], -1)


def areas(maps: Tensor) -> Tensor:
    """How much of their picture ours covers, (P,); above 1 ours shows more than theirs."""
    return (maps[:, 0, 0] * maps[:, 1, 1] - maps[:, 0, 1] * maps[:, 1, 0]).abs()


def overlap(maps: Tensor, side: int) -> Tensor:
    """Which pixels of ours lie in theirs, both without margins, float32 (P, side**2) of 0 and 1."""
    grid = F.affine_grid(maps, [len(maps), 1, side, side], align_corners=False)
    own = (torch.arange(side, device=maps.device) + 0.5 - side / 2).abs() < (1 - MARGIN) * side / 2
    inside = (grid.abs() <= 1 - MARGIN).all(-1) & own[:, None] & own
    return inside.flatten(1).float()


def refine(ours: Tensor, theirs: Tensor, maps: Tensor, steps: int) -> Tensor:
    """Gauss-Newton steps on the six numbers of each map, by squared difference of (P, 1, s, s)."""
    side, device = ours.shape[-1], ours.device
    gx = (theirs.roll(-1, 3) - theirs.roll(1, 3)) * (side / 4)
    gy = (theirs.roll(-1, 2) - theirs.roll(1, 2)) * (side / 4)
    stack = torch.cat([theirs, gx, gy], 1)
    one = torch.eye(2, 3, device=device)[None]
    place = F.affine_grid(one, [1, 1, side, side], align_corners=False).view(1, -1, 2)
    ones = torch.cat([place, torch.ones(1, side * side, 1, device=device)], -1)  # x, y, 1
    target = ours.flatten(1)
    for _ in range(steps):
        value, gx, gy = sample(stack, maps, side).flatten(2).unbind(1)
        inside = overlap(maps, side)
        jacobian = torch.cat([gx[..., None] * ones, gy[..., None] * ones], -1)
        weighted = (jacobian * inside[..., None]).transpose(1, 2)
        normal = weighted @ jacobian
        damping = 1e-3 * normal.diagonal(dim1=1, dim2=2).mean(1) + 1e-4
        normal = normal + damping[:, None, None] * torch.eye(6, device=device)
        change = torch.linalg.solve(normal, weighted @ (target - value)[..., None])
        maps = maps + change.view(-1, 2, 3).clamp(-0.1, 0.1)
    return maps


def agreement(ours: Tensor, theirs: Tensor, inside: Tensor, trimmed: float) -> Tensor:
    """Correlation of structure (P, 1, s, s) over `inside` (P, s**2), without the blocks that agree
    least: `trimmed` of the area, so that a text or an arrow in one picture counts little; (P,)."""
    side = ours.shape[-1]
    count = inside.sum(1, keepdim=True).clamp(min=1)
    a, b = ours.flatten(1), theirs.flatten(1)
    a = (a - (a * inside).sum(1, keepdim=True) / count) * inside
    b = (b - (b * inside).sum(1, keepdim=True) / count) * inside
    parts = torch.stack([a * b, a * a, b * b, inside], 1).view(-1, 4, side, side)
    parts = F.avg_pool2d(parts, BLOCK).flatten(2)
    order = (parts[:, 1] + parts[:, 2] - 2 * parts[:, 0]).argsort(
        dim=1, descending=True, stable=True
    )
    parts = parts.gather(2, order[:, None].expand(-1, 4, -1))
    area = parts[:, 3]
    kept = area.cumsum(1) - area / 2 >= trimmed * area.sum(1, keepdim=True)
    ab, aa, bb, _ = (parts * kept[:, None]).sum(2).unbind(1)
    return ab / (aa * bb).sqrt().clamp(min=1e-6)


def score(ours: Tensor, theirs: Tensor, maps: Tensor, side: int) -> Tensor:
    """How well the fine structure agrees where pictures overlap, (P,); ours shows the less."""
    # Seen through the map at twice the side, then shrunk, both pictures keep the same detail.
    # Evened out after the map: the same window of both.
    seen = F.avg_pool2d(sample(grey(theirs, 2 * side), maps, 2 * side), 2)
    a, b = (even_out(x, *SCORED) for x in (grey(ours, side), seen))
    return agreement(a, b, overlap(maps, side), TRIMMED)


def rough_score(ours: Tensor, theirs: Tensor, maps: Tensor) -> Tensor:
    """`score` at a few pixels, tolerant of a map that is not exact yet, (P,)."""
    one = torch.eye(2, 3, device=maps.device).expand(len(maps), -1, -1)
    seen = [
        F.avg_pool2d(sample(grey(pixels, 64), m, 2 * ROUGH), 2)
        for pixels, m in ((ours, one), (theirs, maps))
    ]
    inside = overlap(maps, ROUGH)
    value = agreement(*(even_out(x, 7, FLOOR) for x in seen), inside, 0)
    return value.where(inside.mean(1) > LEAST_OVERLAP - 0.1, 0)


def align(ours: Tensor, theirs: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures and start maps (P, 2, 3) -> aligned maps, scores (P,), 0 where no twins."""
    larger = (areas(maps) > 1)[:, None, None]  # ours shows more: look from the other side
    back = torch.where(larger, invert(maps), maps)
    a, b = torch.where(larger, theirs, ours), torch.where(larger, ours, theirs)
    values = torch.zeros(len(maps), device=maps.device)
    rows = torch.nonzero(rough_score(a, b, back) > LEAST_ROUGH)[:, 0]
    if len(rows):
        a, b = a[rows], b[rows]
        finer = refine(shrink(a, FINE), shrink(b, FINE), back[rows], FINE_STEPS)
        area = areas(finer)
        plausible = (
            (overlap(finer, FINE).mean(1) > LEAST_OVERLAP) & (area > LEAST_AREA) & (area < 2)
        )
        back[rows], values[rows] = finer, score(a, b, finer, FINE).where(plausible, 0)
    return torch.where(larger, invert(back), back), values
