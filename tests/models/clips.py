"""A small CLIP with the module names of the original release, written by hand."""

from collections import OrderedDict

import torch
from torch import Tensor, nn

WIDTH, HEADS, HIDDEN, PX, PATCH, DEPTH = 16, 2, 24, 32, 8, 3


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        up, down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.mlp = nn.Sequential(OrderedDict(c_fc=up, gelu=QuickGELU(), c_proj=down))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*[Block() for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class Visual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(WIDTH))
        self.positional_embedding = nn.Parameter(torch.randn(1 + (PX // PATCH) ** 2, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = Transformer(DEPTH)
        self.proj = nn.Parameter(torch.randn(WIDTH, 8))

    def forward(self, image: Tensor) -> Tensor:
        """Normalised images -> all tokens before the projection, as M3AE takes them."""
        x = self.conv1(image).flatten(2).transpose(1, 2)
        cls = self.class_embedding.expand(x.shape[0], 1, -1)
        x = torch.cat([cls, x], dim=1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x)))


class Clip(nn.Module):
    """With the text tower and the numbers that the original release keeps beside `visual`."""

    def __init__(self) -> None:
        super().__init__()
        self.visual, self.transformer = Visual(), Transformer(1)
        self.token_embedding, self.ln_final = nn.Embedding(20, WIDTH), nn.LayerNorm(WIDTH)
        self.positional_embedding = nn.Parameter(torch.randn(7, WIDTH))
        self.text_projection = nn.Parameter(torch.randn(WIDTH, 8))
        self.logit_scale = nn.Parameter(torch.ones(()))
        for name in ("input_resolution", "context_length", "vocab_size"):
            self.register_buffer(name, torch.tensor(7))
        self.register_buffer("attn_mask", torch.zeros(7, 7), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.visual(image)


def clip(seed: int = 0) -> Clip:
    """With random weights that leave no bias at 0 and no LayerNorm weight at 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Clip().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def picture(px: int = PX) -> Tensor:
    return torch.randn(2, 3, px, px, generator=torch.Generator().manual_seed(1))
