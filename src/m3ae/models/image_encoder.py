"""Image encoder: CLIP's ViT or a plain ViT (paper section 2.1; reference, model facts 1, 2, 9).

Letters: `B` images, `N` patches, `K` kept patches, `D` width.
CLIP differs from a plain ViT in four places: no bias in the patch embedding, a LayerNorm before
the blocks, QuickGELU, and an image normalisation of its own.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3ae.config import ImageEncoderConfig
from m3ae.models.layers import PreNormBlock, take

# Mean and standard deviation of the pixels (0-1), red, green, blue.
NORMALISATION = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "vit": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class ImageEncoder(nn.Module):
    """ViT on whole images or on kept patches; LayerNorm on all tokens, no projection.

    `depth` counts the blocks that are built: the published model uses 11 of CLIP's 12.
    """

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        width, px, eps = config.width, config.patch_px, config.layer_norm_eps
        if config.image_px % px:
            raise ValueError(f"image_px {config.image_px} is not a multiple of patch_px {px}")
        self.config = config
        self.kind, self.grid, self.patch_px = config.kind, config.image_px // px, px
        self.patch_embedding = nn.Conv2d(3, width, px, px, bias=config.kind == "vit")
        self.class_token = nn.Parameter(torch.empty(width))
        self.position_embedding = nn.Parameter(torch.empty(1 + self.grid**2, width))
        self.norm_pre = nn.LayerNorm(width, eps) if config.kind == "clip" else nn.Identity()
        hidden = int(width * config.mlp_ratio)
        self.blocks = nn.ModuleList(
            PreNormBlock(width, config.heads, hidden, config.activation, eps)
            for _ in range(config.depth)
        )
        self.norm_post = nn.LayerNorm(width, eps)

    def embed(self, image: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) -> patch embeddings with positions (B, N, D)."""
        patches = self.patch_embedding(image).flatten(2).transpose(1, 2)  # (B, N, D)
        return patches + self.position_embedding[1:]

    def encode(self, patches: Tensor, kept: Tensor | None = None) -> Tensor:
        """Embedded patches (B, N, D), kept int64 (B, K) or None -> (B, 1+K or 1+N, D), CLS first.

        Kept patches stay in the order given (reference, model fact 2).
        """
        if kept is not None:
            patches = take(patches, kept)
        x = self._enter(patches)
        for block in self.blocks:
            x = block(x)
        return self.norm_post(x)

    def encode_streams(self, streams: list[Tensor]) -> list[Tensor]:
        """`encode` of several (B, N, D), whole or kept alone, in one run through the blocks.

        So a step has half as many operations, for which a small batch on a GPU waits.
        """
        if len(streams) == 1:
            return [self.encode(streams[0])]
        entered = [self._enter(stream) for stream in streams]
        sizes = [tuple(stream.shape[:2]) for stream in entered]
        x = torch.cat([stream.flatten(0, 1) for stream in entered])
        for block in self.blocks:
            x = block(x, None, sizes)
        parts = self.norm_post(x).split([rows * tokens for rows, tokens in sizes])
        return [part.unflatten(0, size) for part, size in zip(parts, sizes, strict=True)]

    def _enter(self, patches: Tensor) -> Tensor:
        """Embedded patches (B, N, D) -> what the first block reads (B, 1+N, D)."""
        cls = (self.class_token + self.position_embedding[0]).expand(patches.shape[0], 1, -1)
        return self.norm_pre(torch.cat([cls.to(patches.dtype), patches], dim=1))

    def states(self, image: Tensor, after: Sequence[int]) -> list[Tensor]:
        """Normalised images -> the tokens (B, 1+N, D) after each of these blocks, in rising order.

        Blocks count from 1. After the last one it is what `forward` gives; none above the highest
        is computed.
        """
        x, found = self._enter(self.embed(image)), []
        for number, block in enumerate(self.blocks[: max(after)], start=1):
            x = block(x)
            if number in after:
                found.append(self.norm_post(x) if number == len(self.blocks) else x)
        return found

    def forward(self, image: Tensor, kept: Tensor | None = None) -> Tensor:
        """`embed`, then `encode`."""
        return self.encode(self.embed(image), kept)


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """Position embeddings (1+N, D) resized to a grid x grid image, CLS row kept -> (1+grid^2, D).

    Bicubic, align_corners False, no antialiasing (reference, model fact 9). Raises ValueError if
    they are not those of a square image.
    """
    old = math.isqrt(len(positions) - 1)
    if 1 + old * old != len(positions):
        raise ValueError(f"position embedding of {len(positions)} rows is not 1 + a square")
    if old == grid:
        return positions
    patches = positions[1:].float().T.reshape(1, -1, old, old)  # (1, D, old, old)
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([positions[:1], patches[0].flatten(1).T.to(positions.dtype)])
