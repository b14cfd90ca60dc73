"""Reconstruction, matching and fine-tuning heads (paper sections 2.2, 2.3; reference, facts 3-6).

Letters: `B` pairs, `L` text tokens, `N` patches, `K` kept patches, `D` fusion width, `V` words.
Either modality can have either decoder: `mlp` (the paper's for text) or `transformer` (its for
images); the paper's pair is the default, the other two are for ablations.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3ae.config import MIMConfig, MLMConfig
from m3ae.models.layers import PreNormBlock, sincos_2d, take

# Of fine-tuning, by task; M3AE has none of them.
HEADS = {"vqa": "vqa_head", "classification": "cls_head", "multilabel": "multilabel_head"}
HEADS |= {"retrieval": "retrieval_head"}
MLM_LAYER_NORM_EPS = 1e-12  # reference, model fact 6
DECODER_LAYER_NORM_EPS = 1e-5


def decoder_blocks(config: MLMConfig | MIMConfig) -> nn.ModuleList:
    """CLIP's blocks, QuickGELU and no dropout (reference, model fact 1)."""
    width, heads = config.decoder_width, config.decoder_heads
    return nn.ModuleList(
        PreNormBlock(width, heads, 4 * width, "quick_gelu", DECODER_LAYER_NORM_EPS)
        for _ in range(config.decoder_depth)
    )


class MLMHead(nn.Module):
    """Text features -> word logits: dense, GELU, LayerNorm, untied vocabulary projection."""

    def __init__(self, config: MLMConfig, width: int, vocab_size: int) -> None:
        super().__init__()
        self.has_context = config.decoder == "transformer"
        if self.has_context:
            self.embed = nn.Linear(width, config.decoder_width)
            self.blocks = decoder_blocks(config)
            width = config.decoder_width
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, MLM_LAYER_NORM_EPS)
        self.vocabulary = nn.Linear(width, vocab_size)

    def context(self, text: Tensor, keep: Tensor) -> Tensor:
        """The transformer decoder's blocks over all tokens (B, L, D); nothing with `mlp`."""
        if not self.has_context:
            return text
        text = self.embed(text)
        for block in self.blocks:
            text = block(text, keep)
        return text

    def forward(self, text: Tensor) -> Tensor:
        """Features at any positions (..., D), after `context` -> what `vocabulary` reads (..., D).

        `vocabulary` gives the logits (..., V).
        """
        return self.norm(F.gelu(self.dense(text)))


class MIMHead(nn.Module):
    """Image features of the kept patches -> normalised pixels of the removed ones."""

    def __init__(self, config: MIMConfig, width: int, grid: int, patch_px: int) -> None:
        super().__init__()
        self.mask_before_fusion = config.decoder == "mlp"
        table_width = width if self.mask_before_fusion else config.decoder_width
        self.mask_token = nn.Parameter(torch.empty(table_width))
        # Fixed, and rebuilt for every image size: not part of a checkpoint.
        self.register_buffer("positions", sincos_2d(table_width, grid), persistent=False)
        if self.mask_before_fusion:
            self.dense = nn.Linear(width, width)
        else:
            self.embed = nn.Linear(width, config.decoder_width)
            self.blocks = decoder_blocks(config)
            width = config.decoder_width
        self.norm = nn.LayerNorm(width, DECODER_LAYER_NORM_EPS)
        self.pixels = nn.Linear(width, 3 * patch_px**2)

    def fill(self, image: Tensor, patch_order: Tensor) -> Tensor:
        """Kept tokens (B, 1+K, W) -> all tokens in their places (B, 1+N, W), positions added.

        patch_order int64 (B, N) begins with the kept patches, in the order of the tokens.
        """
        missing = patch_order.shape[1] - (image.shape[1] - 1)
        mask = self.mask_token.to(image.dtype).expand(len(image), missing, -1)
        patches = torch.cat([image[:, 1:], mask], dim=1)  # (B, N, W) in patch_order
        patches = take(patches, patch_order.argsort(dim=1))
        return torch.cat([image[:, :1], patches], dim=1) + self.positions

    def join(self, image: Tensor, patch_order: Tensor) -> Tensor:
        """Before fusion, with decoder `mlp`: mask tokens with positions appended (B, 1+N, D).

        A per-token decoder could not see the kept patches, so the mask tokens travel through
        fusion. Order: CLS, kept, removed. With `transformer` nothing is appended.
        """
        if not self.mask_before_fusion:
            return image
        removed = patch_order[:, image.shape[1] - 1 :]
        tokens = self.mask_token + self.positions[1:][removed]  # (B, N-K, D)
        return torch.cat([image, tokens.to(image.dtype)], dim=1)

    def forward(self, image: Tensor, patch_order: Tensor, kept: int) -> Tensor:
        """Image stream at layer k -> predicted pixels of the removed patches (B, N-K, pixels)."""
        removed = patch_order[:, kept:]
        if self.mask_before_fusion:
            x = F.gelu(self.dense(image[:, 1 + kept :]))
            return self.pixels(self.norm(x))
        x = self.fill(self.embed(image), patch_order)
        for block in self.blocks:
            x = block(x)
        return self.pixels(self.norm(take(x, 1 + removed)))  # row 0 is CLS


class ITMHead(nn.Module):
    """Both poolers -> 2 classes, 1 = the image and the text belong together."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.classes = nn.Linear(2 * width, 2)

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, 2D) -> logits (B, 2)."""
        return self.classes(pooled)


def _hidden(width: int) -> list[nn.Module]:
    """The hidden layer of the paper's MLP, (B, 2D) -> (B, 2D)."""
    return [nn.Linear(2 * width, 2 * width), nn.LayerNorm(2 * width), nn.GELU()]


class AnswerHead(nn.Sequential):
    """Both poolers -> answers (VQA) or classes (one or several): the paper's two-layer MLP.

    Pooled features (B, 2D) -> logits (B, classes).
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__(*_hidden(width), nn.Linear(2 * width, classes))

    @property
    def last(self) -> nn.Linear:
        """The layer of the logits."""
        return self[-1]


class EncoderHead(nn.Module):
    """Pooled features of both encoders -> answers or classes. Ours, not the paper's.

    text (B, E), image (B, M) -> logits (B, classes), linear in [t, v, t * v], where t and v
    (B, width) are GELU(linear) of the standardised inputs. With a `fusion_width` D also in
    the paper's hidden layer over both poolers, pooled (B, 2D).
    Means and scales are buffers, part of a checkpoint: `standardise` sets them.
    """

    def __init__(
        self,
        text_width: int,
        image_width: int,
        width: int,
        classes: int,
        fusion_width: int = 0,
        dropouts: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ) -> None:
        super().__init__()
        for name, size in (("text", text_width), ("image", image_width)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_scale", torch.ones(size))
        self.text, self.image = nn.Linear(text_width, width), nn.Linear(image_width, width)
        # Of the text's input, of the image's; of the image's hidden layer and of the last input.
        self.text_dropout, self.image_dropout, self.dropout = map(nn.Dropout, dropouts)
        self.fused = nn.Sequential(*_hidden(fusion_width)) if fusion_width else None
        self.last = nn.Linear(3 * width + 2 * fusion_width, classes)

    @torch.no_grad()
    def standardise(self, text: Tensor, image: Tensor) -> None:
        """Take means and standard deviations over rows: text (n, E), image (m, M), float32.

        What hardly varies (below 1e-3: one text for all, or one image) is centred, not magnified.
        """
        for name, rows in (("text", text), ("image", image)):
            scale = rows.std(dim=0, correction=0)
            getattr(self, f"{name}_mean").copy_(rows.mean(dim=0))
            getattr(self, f"{name}_scale").copy_(scale.where(scale > 1e-3, 1.0))

    def forward(self, text: Tensor, image: Tensor, pooled: Tensor | None = None) -> Tensor:
        """text (B, E), image (B, M), with a fusion width pooled (B, 2D) -> logits (B, classes)."""
        text = (text.float() - self.text_mean) / self.text_scale
        image = (image.float() - self.image_mean) / self.image_scale
        t = F.gelu(self.text(self.text_dropout(text)))
        v = self.dropout(F.gelu(self.image(self.image_dropout(image))))
        read = [t, v, t * v]
        if self.fused is not None:
            read.append(self.fused(pooled))
        return self.last(self.dropout(torch.cat(read, dim=1)))


@torch.no_grad()
def start_answer_head(
    head: AnswerHead | EncoderHead,
    counts: Tensor,
    exclusive: bool = False,
    rows: int | None = None,
) -> None:
    """Set the last bias to the log odds of every answer's frequency, counts int64 (classes,).

    rows: of how many these are the counts, where some have no answer or several.

    With it the first logits state these frequencies. From zero the binary cross-entropy of
    hundreds of answers begins some fifty times as high, and the first steps go into pushing all of
    them down. An answer that never occurs counts half a time. `exclusive`: one answer of all is
    right, so the bias is the log frequency.
    """
    frequency = (counts.double() + 0.5) / ((counts.sum() if rows is None else rows) + 1.0)
    head.last.bias.copy_(frequency.log() if exclusive else torch.logit(frequency))


class RetrievalHead(nn.Linear):
    """Both poolers -> one score, the higher the better the image fits the text.

    Pooled features (..., 2D) -> scores (..., 1).
    """

    def __init__(self, width: int) -> None:
        super().__init__(2 * width, 1)


@torch.no_grad()
def start_retrieval_head(head: RetrievalHead, itm_head: ITMHead) -> None:
    """Copy the "match" row of the ITM head (reference, fact 14); the two share no memory."""
    head.weight.copy_(itm_head.classes.weight[1:])
    head.bias.copy_(itm_head.classes.bias[1:])
