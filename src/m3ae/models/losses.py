"""The three pre-training losses as sums over a pair's units (paper section 2.2).

Letters: `B` pairs, `M` scored tokens a text (padded), `N` patches, `K` kept patches, `V` words.
A loss is the sum over its units (scored tokens, removed patches, pairs) divided by their number in
the whole global batch, so that processes and micro-batches never change the gradient.
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3ae.data.masking import NOT_SCORED
from m3ae.models.layers import recomputed, take

OBJECTIVES = ("mlm", "mim", "itm")
WORD_ROWS = 512  # 103 MB of float32 logits over RoBERTa's 50,265 words


@dataclass
class Outputs:
    """What the heads say, with what they should have said; None where an objective is off."""

    mlm_hidden: Tensor | None = None  # (B, M, D), what the last layer of the MLM head reads
    mlm_vocabulary: nn.Module | None = None  # that layer, D -> V
    mlm_targets: Tensor | None = None  # (B, M), -100 = padding
    mim_pixels: Tensor | None = None  # (B, N-K, 3 patch_px^2)
    mim_targets: Tensor | None = None  # likewise
    itm_logits: Tensor | None = None  # (B, 2), 1 = match
    itm_targets: Tensor | None = None  # bool (B,)

    @property
    def mlm_logits(self) -> Tensor:
        """All of them, (B, M, V); `sample_sums` computes some at a time."""
        return self.mlm_vocabulary(self.mlm_hidden)


def patch_pixels(image: Tensor, patch_px: int) -> Tensor:
    """Normalised images (B, 3, H, W) -> pixels of each patch (B, N, 3 patch_px^2).

    Pixels are in row, column, channel order (reference, model fact 4).
    """
    rows, columns = image.shape[2] // patch_px, image.shape[3] // patch_px
    x = image.unflatten(3, (columns, patch_px)).unflatten(2, (rows, patch_px))
    return x.permute(0, 2, 4, 3, 5, 1).reshape(len(image), rows * columns, -1)


def mim_target(image: Tensor, removed: Tensor, patch_px: int, normalise: bool) -> Tensor:
    """What MIM must predict: pixels of the `removed` patches (B, N-K), float32 (B, N-K, pixels).

    With `normalise`, each patch has mean 0 and unbiased variance 1, eps 1e-6 (reference, model
    fact 4).
    """
    pixels = take(patch_pixels(image.float(), patch_px), removed)
    if normalise:
        variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)  # unbiased
        pixels = (pixels - mean) / (variance + 1e-6).sqrt()
    return pixels


def word_losses(hidden: Tensor, vocabulary: nn.Module, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy (B, M), 0 where not scored, and whether the likeliest word is right (B, M).

    hidden (B, M, D), targets int64 (B, M). Beyond `WORD_ROWS` tokens the logits are computed in
    parts, and again in the backward pass, so they are never all there.
    """
    rows, words = hidden.flatten(0, 1), targets.flatten()

    def part(rows: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        logits = vocabulary(rows).float()
        loss = F.cross_entropy(logits, words, ignore_index=NOT_SCORED, reduction="none")
        return loss, logits.argmax(dim=-1).eq(words)

    parts = list(zip(rows.split(WORD_ROWS), words.split(WORD_ROWS), strict=True))
    compute = functools.partial(recomputed, part) if len(parts) > 1 else part
    losses, correct = zip(*(compute(*some) for some in parts), strict=True)
    return torch.cat(losses).view_as(targets), torch.cat(correct).view_as(targets)


def sample_sums(outputs: Outputs) -> dict[str, Tensor]:
    """Loss sum, unit count and correct count of every pair: `{name}_{loss,count,correct}` (B,)."""
    sums: dict[str, Tensor] = {}
    if outputs.mlm_hidden is not None:
        targets = outputs.mlm_targets
        loss, correct = word_losses(outputs.mlm_hidden, outputs.mlm_vocabulary, targets)
        sums["mlm_loss"] = loss.sum(dim=1)
        sums["mlm_count"] = targets.ne(NOT_SCORED).sum(dim=1)
        sums["mlm_correct"] = correct.sum(dim=1)
    if outputs.mim_pixels is not None:
        error = (outputs.mim_pixels.float() - outputs.mim_targets).square().mean(dim=-1)
        sums["mim_loss"] = error.sum(dim=1)
        sums["mim_count"] = torch.full_like(error[:, 0], error.shape[1], dtype=torch.int64)
    if outputs.itm_logits is not None:
        logits, targets = outputs.itm_logits.float(), outputs.itm_targets.long()
        sums["itm_loss"] = F.cross_entropy(logits, targets, reduction="none")
        sums["itm_count"] = torch.ones_like(targets)
        sums["itm_correct"] = logits.argmax(dim=-1).eq(targets).long()
    return sums


def reduce_losses(
    sums: dict[str, Tensor], loss_weights: dict[str, float], totals: dict[str, Tensor] | None
) -> dict[str, Tensor]:
    """Per-pair sums -> scalars: losses divided by `totals` (default: this batch's own counts).

    `loss` is their weighted sum. A total of 0 counts as 1: loss 0, gradients 0, never NaN.
    """
    out = {key: value.sum() for key, value in sums.items()}
    for name in loss_weights:
        if f"{name}_loss" in out:
            total = out[f"{name}_count"] if totals is None else totals[name]
            out[f"{name}_loss"] = out[f"{name}_loss"] / torch.as_tensor(total).clamp(min=1)
    terms = [weight * out[f"{name}_loss"] for name, weight in loss_weights.items() if weight]
    return {"loss": torch.stack(terms).sum()} | out


def vqa_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of each question, summed over answers.

    logits (Q, A), targets float (Q, A) in 0-1 -> (Q,). Its mean over questions is the reference's
    loss: the mean over questions and answers, times A. A target of -1 is unknown and costs 0.
    """
    right = targets.float().clamp(min=0)
    loss = F.binary_cross_entropy_with_logits(logits.float(), right, reduction="none")
    return loss.masked_fill(targets < 0, 0.0).sum(dim=-1)


def classification_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Cross-entropy of each pair: logits (Q, C), classes int64 (Q,) -> (Q,).

    A class of -1 is unknown and costs 0.
    """
    return F.cross_entropy(logits.float(), classes, ignore_index=-1, reduction="none")
