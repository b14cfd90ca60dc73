"""Attention and the three kinds of Transformer block the model is made of.

Letters: `B` rows, `Q` queries, `S` keys, `D` width, `H` heads.
`keep` is bool (B, S): True = a real token, False = padding, never attended to.
"""

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from m3ae.config import FusionConfig, TextEncoderConfig

Maps = list[Tensor] | None  # a list collects attention maps (B, H, Q, S)
Sizes = list[tuple[int, int]]  # rows and tokens of streams that are packed end to end


class _QuickGELU(torch.autograd.Function):
    """By SiLU, x sigmoid(x): five passes over the data where products and sigmoids take eight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.silu(1.702 * x).div_(1.702)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.ops.aten.silu_backward(grad, 1.702 * ctx.saved_tensors[0])


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation of GELU, x sigmoid(1.702 x)."""
    return _QuickGELU.apply(x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu}


def attention_with_maps(
    q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Slow twin of `scaled_dot_product_attention` that also returns the maps.

    q (B, H, Q, d), k and v (B, H, S, d) -> values (B, H, Q, d), maps (B, H, Q, S), rows sum to 1.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if keep is not None:
        scores = scores.masked_fill(~keep[:, None, None, :], float("-inf"))
    maps = scores.softmax(dim=-1)
    return maps @ v, maps


def _attention_kernel(k: Tensor) -> AbstractContextManager:
    """The library's choice, but for short rows in half precision on a CPU.

    There the backward pass of the fused kernel has a fixed cost: 42 ms against 13 ms unfused for
    32 x 6 heads of 65 keys, 90 against 60 at 145; at 325 keys the fused one wins (forward and
    backward, torch 2.15, bf16, one thread). In fp32 the two are close up to 65 keys, and the fused
    one wins beyond.
    """
    if k.device.type == "cpu" and k.dtype != torch.float32 and k.shape[-2] < 200:
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


class Attention(nn.Module):
    """What both kinds of multi-head attention share: heads, the mixing of values, the output.

    inputs: names of the layers that give queries, keys and values, and how many each gives.
    """

    def __init__(self, width: int, heads: int, dropout: float, inputs: dict[str, int]) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads, self.dropout = heads, dropout
        for name, parts in inputs.items():
            setattr(self, name, nn.Linear(width, parts * width))
        self.out = nn.Linear(width, width)

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """`parts` inputs side by side (B, S, parts D) -> each as (B, H, S, d), without a copy."""
        parted = x.unflatten(-1, (parts, self.heads, -1)).unbind(2)
        return tuple(part.transpose(1, 2) for part in parted)

    def mix(
        self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None, maps: Maps = None
    ) -> Tensor:
        """Queries (B, H, Q, d), keys and values (B, H, S, d) -> (B, Q, D)."""
        return self.out(self._values(q, k, v, keep, maps))

    def _values(
        self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None = None, maps: Maps = None
    ) -> Tensor:
        """The same before the output layer.

        With `maps` the slow twin runs (no dropout: for pictures and parity only).
        """
        if maps is not None:
            mixed, attention = attention_with_maps(q, k, v, keep)
            maps.append(attention)
        else:
            mask = None if keep is None else keep[:, None, None, :]
            dropout = self.dropout if self.training else 0.0
            with _attention_kernel(k):
                mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        return mixed.transpose(1, 2).flatten(2)  # (B, Q, D)


class SelfAttention(Attention):
    """A stream attends to itself; queries, keys and values are one product."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__(width, heads, dropout, {"query_key_value": 3})

    def forward(
        self, x: Tensor, keep: Tensor | None = None, read: Tensor | None = None, maps: Maps = None
    ) -> Tensor:
        """x (B, S, D) -> (B, S, D); with `read` int64 (B, Q) at these positions alone (B, Q, D)."""
        if read is None:
            return self.mix(*self._split(self.query_key_value(x), 3), keep, maps)
        sizes = x.shape[-1], 2 * x.shape[-1]
        (query, rest), (query_bias, rest_bias) = (
            part.split(sizes) for part in self.query_key_value.parameters()
        )
        (q,) = self._split(F.linear(take(x, read), query, query_bias), 1)
        return self.mix(q, *self._split(F.linear(x, rest, rest_bias), 2), keep, maps)

    def packed(self, x: Tensor, sizes: Sizes) -> Tensor:
        """Several streams (B, S, D) of these sizes, end to end: each attends to itself alone.

        x (sum of B S, D) -> likewise.
        """
        parts = self.query_key_value(x).split([rows * tokens for rows, tokens in sizes])
        streams = (part.unflatten(0, size) for part, size in zip(parts, sizes, strict=True))
        values = [self._values(*self._split(stream, 3)).flatten(0, 1) for stream in streams]
        return self.out(torch.cat(values))


class CrossAttention(Attention):
    """One stream attends to the other; keys and values are one product."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__(width, heads, dropout, {"query": 1, "key_value": 2})

    def queries(self, x: Tensor) -> Tensor:
        """x (B, Q, D) -> (B, H, Q, d)."""
        return self._split(self.query(x), 1)[0]

    def keys_values(self, source: Tensor) -> tuple[Tensor, ...]:
        """source (B, S, D) -> keys and values, each (B, H, S, d)."""
        return self._split(self.key_value(source), 2)

    def forward(
        self, x: Tensor, source: Tensor, keep: Tensor | None = None, maps: Maps = None
    ) -> Tensor:
        """x (B, Q, D) attends to source (B, S, D) -> (B, Q, D)."""
        return self.mix(self.queries(x), *self.keys_values(source), keep, maps)


# Runs a function without keeping what it computes; for functions that draw no random numbers.
recomputed = functools.partial(
    checkpoint, use_reentrant=False, preserve_rng_state=False, determinism_check="none"
)


class FeedForward(nn.Module):
    """Two linear layers with an activation between them.

    What the activation gives, four widths a token, is not kept for the backward pass but computed
    there again: an eighth of a step's memory for a thousandth of its arithmetic.
    """

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        hidden = self.up(x)
        # A compiler chooses itself what to keep.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return recomputed(self._finish, hidden, self.down.weight, self.down.bias)
        return self._finish(hidden, self.down.weight, self.down.bias)

    def _finish(self, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(self.activation(hidden), weight, bias)


class PreNormBlock(nn.Module):
    """The block of ViT and CLIP: x + attention(norm(x)), x + feed_forward(norm(x)). No dropout."""

    def __init__(self, width: int, heads: int, hidden: int, activation: str, eps: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps)
        self.attention = SelfAttention(width, heads)
        self.feed_forward_norm = nn.LayerNorm(width, eps)
        self.feed_forward = FeedForward(width, hidden, activation)

    def forward(self, x: Tensor, keep: Tensor | None = None, sizes: Sizes | None = None) -> Tensor:
        """(B, S, D) -> (B, S, D); with `sizes` packed streams (see `SelfAttention.packed`)."""
        read, own = self.attention_norm(x), self.attention
        x = x + (own(read, keep) if sizes is None else own.packed(read, sizes))
        return x + self.feed_forward(self.feed_forward_norm(x))


class PostNormBlock(nn.Module):
    """The block of BERT and RoBERTa: norm(x + attention(x)), norm(x + feed_forward(x)).

    With `cross=True` it is one stream of a fusion layer: norm(x + cross_attention(x, other))
    stands between the two (paper section 2.1).
    """

    def __init__(
        self, config: TextEncoderConfig | FusionConfig, hidden: int, cross: bool = False
    ) -> None:
        super().__init__()
        width, eps = config.width, config.layer_norm_eps
        self.attention = SelfAttention(width, config.heads, config.attention_dropout)
        self.attention_norm = nn.LayerNorm(width, eps)
        if cross:
            self.cross_attention = CrossAttention(width, config.heads, config.attention_dropout)
            self.cross_attention_norm = nn.LayerNorm(width, eps)
        self.feed_forward = FeedForward(width, hidden, "gelu")
        self.feed_forward_norm = nn.LayerNorm(width, eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        keep: Tensor | None = None,
        other: Tensor | None = None,
        other_keep: Tensor | None = None,
        read: Tensor | None = None,
        maps: Maps = None,
    ) -> Tensor:
        """x (B, S, D), the other stream (B, S', D) if `cross` -> (B, S, D).

        `read` int64 (B, Q) names the positions whose output is wanted: only those are computed
        as queries, -> (B, Q, D). `maps` collects those of cross-attention, (B, H, Q, S').
        """
        x = self.attend(x, keep, read)
        if other is None:
            return self.finish(x)
        return self.finish(x, self.cross_attention(x, other, other_keep, maps))

    def attend(self, x: Tensor, keep: Tensor | None = None, read: Tensor | None = None) -> Tensor:
        """The self-attention part, which depends on this stream alone -> (B, S or Q, D)."""
        attended = self.attention(x, keep, read)
        x = x if read is None else take(x, read)
        return self.attention_norm(x + self.dropout(attended))

    def finish(self, x: Tensor, crossed: Tensor | None = None) -> Tensor:
        """The rest: what cross-attention gave, if any, then the feed-forward part."""
        if crossed is not None:
            x = self.cross_attention_norm(x + self.dropout(crossed))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


def take(x: Tensor, rows: Tensor) -> Tensor:
    """x (B, S, D) at positions `rows` int64 (B, Q) -> (B, Q, D)."""
    return x.gather(1, rows[:, :, None].expand(-1, -1, x.shape[-1]))


def masked_mean(x: Tensor, keep: Tensor) -> Tensor:
    """Mean over the tokens that are real: x (B, L, D), keep bool (B, L) -> (B, D) float32."""
    real = keep[..., None].float()
    return (x.float() * real).sum(dim=1) / real.sum(dim=1)


def sincos_2d(width: int, grid: int) -> Tensor:
    """Fixed 2-D sine-cosine position table (1 + grid^2, width); row 0, of the CLS token, is zero.

    The first half of the channels encodes the column (x), the second the row (y); each half is
    sines, then cosines (reference, model fact 3). Raises ValueError if width is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"a 2-D sine-cosine table needs a width divisible by 4, not {width}")
    omega = 1.0 / 10000 ** (torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    y, x = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    halves = []
    for axis in (x, y):
        angle = axis.flatten().double()[:, None] * omega[None]  # (N, width / 4)
        halves.append(torch.cat([angle.sin(), angle.cos()], dim=1))
    table = torch.cat(halves, dim=1)
    return torch.cat([torch.zeros(1, width), table.float()])
