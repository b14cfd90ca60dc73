"""The three pre-training losses as sums over a pair's units (paper section 2.2).

Letters: `B` pairs, `M` scored tokens a text (padded), `N` patches, `K` kept patches, `V` words.
A loss is the sum over its units (scored tokens, removed patches, pairs) divided by their number in
the whole global batch, so that processes and micro-batches never change the gradient.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from m3ae.pretraining.masking import NOT_SCORED

OBJECTIVES = ("mlm", "mim", "itm")


@dataclass
class Outputs:
    """What the heads say, with what they should have said; None where an objective is off."""

    mlm_logits: Tensor | None = None  # (B, M, V)
    mlm_targets: Tensor | None = None  # (B, M), -100 = padding
    mim_pixels: Tensor | None = None  # (B, N-K, 3 patch_px^2)
    mim_targets: Tensor | None = None  # likewise
    itm_logits: Tensor | None = None  # (B, 2), 1 = match
    itm_targets: Tensor | None = None  # bool (B,)


def scored_positions(labels: Tensor, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Positions and labels of the scored tokens, padded to `most` (default: the batch's maximum).

    labels (B, L), -100 = not scored -> positions (B, M), targets (B, M); padding reads position 0
    and has target -100. Raises ValueError if a row has more than `most`.
    """
    scored = labels.ne(NOT_SCORED)
    largest = int(scored.sum(dim=1).max()) if len(labels) else 0  # host sync on a GPU: do it early
    most = max(1, largest) if most is None else most
    if largest > most:
        raise ValueError(f"a text has {largest} scored tokens, more than {most}")
    # A stable sort brings scored tokens to the front in their order.
    positions = scored.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    targets = labels.gather(1, positions)
    return positions * targets.ne(NOT_SCORED), targets


def patch_pixels(image: Tensor, patch_px: int) -> Tensor:
    """Normalised images (B, 3, H, W) -> pixels of each patch (B, N, 3 patch_px^2).

    Pixels are in row, column, channel order (reference, model fact 4).
    """
    rows, columns = image.shape[2] // patch_px, image.shape[3] // patch_px
    x = image.unflatten(3, (columns, patch_px)).unflatten(2, (rows, patch_px))
    return x.permute(0, 2, 4, 3, 5, 1).reshape(len(image), rows * columns, -1)


def mim_target(
    image: Tensor, patch_order: Tensor, kept: int, patch_px: int, normalise: bool
) -> Tensor:
    """What MIM must predict: pixels of the removed patches (B, N-K, 3 patch_px^2), float32.

    With `normalise`, each patch has mean 0 and unbiased variance 1, eps 1e-6 (reference, model
    fact 4).
    """
    pixels = patch_pixels(image.float(), patch_px)
    removed = patch_order[:, kept:, None].expand(-1, -1, pixels.shape[-1])
    pixels = pixels.gather(1, removed)
    if normalise:
        variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)  # unbiased
        pixels = (pixels - mean) / (variance + 1e-6).sqrt()
    return pixels


def sample_sums(outputs: Outputs) -> dict[str, Tensor]:
    """Loss sum, unit count and correct count of every pair: `{name}_{loss,count,correct}` (B,)."""
    sums: dict[str, Tensor] = {}
    if outputs.mlm_logits is not None:
        logits, targets = outputs.mlm_logits.float(), outputs.mlm_targets
        loss = F.cross_entropy(
            logits.transpose(1, 2), targets, ignore_index=NOT_SCORED, reduction="none"
        )
        scored = targets.ne(NOT_SCORED)
        sums["mlm_loss"] = loss.sum(dim=1)
        sums["mlm_count"] = scored.sum(dim=1)
        sums["mlm_correct"] = (logits.argmax(dim=-1).eq(targets) & scored).sum(dim=1)
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
    sums: dict[str, Tensor], weights: dict[str, float], totals: dict[str, Tensor] | None
) -> dict[str, Tensor]:
    """Per-pair sums -> scalars: losses divided by `totals` (default: this batch's own counts).

    `loss` is their weighted sum. A total of 0 counts as 1: loss 0, gradients 0, never NaN.
    """
    out = {key: value.sum() for key, value in sums.items()}
    for name in weights:
        if f"{name}_loss" in out:
            total = out[f"{name}_count"] if totals is None else totals[name]
            out[f"{name}_loss"] = out[f"{name}_loss"] / torch.as_tensor(total).clamp(min=1)
    terms = [weight * out[f"{name}_loss"] for name, weight in weights.items() if weight]
    return {"loss": torch.stack(terms).sum()} | out
