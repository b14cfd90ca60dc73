"""M3AE: two encoders, a fusion module, three heads, and one step of pre-training (paper fig. 1).

Letters: `B` pairs, `N` patches, `K` kept patches, `L` text tokens, `D` fusion width.
Differences from the reference, all of them: MLM, MIM and ITM share what is equal (`share: true`),
so with dropout on MIM and ITM see one draw of the text encoder's dropout where the reference draws
one a pass; the losses without dropout are equal (tests/models/test_share.py).
"""

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from m3ae.config import Architecture, Config, ModelConfig, architecture_of
from m3ae.data.masking import NOT_SCORED, kept_patches, scored_positions
from m3ae.models import pretrained
from m3ae.models.fusion import Fusion
from m3ae.models.heads import ITMHead, MIMHead, MLMHead
from m3ae.models.image_encoder import NORMALISATION, ImageEncoder
from m3ae.models.layers import Maps, sincos_2d, take
from m3ae.models.losses import OBJECTIVES, Outputs, mim_target, reduce_losses, sample_sums
from m3ae.models.switches import wrap_blocks
from m3ae.models.text_encoder import TextEncoder

Batch = dict[str, Tensor]


@dataclasses.dataclass
class Pair:
    """Features of a pair: text (B, L, D), image (B, 1+N, D), pooled (B, 2D) text then image."""

    text: Tensor
    image: Tensor
    pooled: Tensor


class M3AE(nn.Module):
    """The published model; `model(batch)` is a pre-training step's forward pass.

    A plain architecture, as saved models have, computes what the passes share once.
    """

    def __init__(self, config: Architecture | ModelConfig) -> None:
        super().__init__()
        self.config = architecture_of(config)
        self.share = config.share if isinstance(config, ModelConfig) else True
        image, text, fusion = config.image_encoder, config.text_encoder, config.fusion
        mlm, mim = config.mlm, config.mim
        self.image_encoder = ImageEncoder(image)
        self.text_encoder = TextEncoder(text)
        self.fusion = Fusion(fusion, text.width, image.width)
        self.mlm_layer = fusion.depth if mlm.layer == -1 else mlm.layer
        self.mim_layer = fusion.depth if mim.layer == -1 else mim.layer
        weights = {name: getattr(config, name).weight for name in OBJECTIVES}
        self.loss_weights = {name: weight for name, weight in weights.items() if weight}
        if mlm.weight:  # only the heads that a loss uses
            self.mlm_head = MLMHead(mlm, fusion.width, text.vocab_size)
        if mim.weight:
            self.mim_head = MIMHead(mim, fusion.width, self.image_encoder.grid, image.patch_px)
        if config.itm.weight:
            self.itm_head = ITMHead(fusion.width)
        mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in NORMALISATION[image.kind])
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)
        initialise(self)

    # ------------------------------------------------------------------------------ inputs

    def normalise(self, image: Tensor) -> Tensor:
        """uint8 (B, 1 or 3, H, W) -> normalised float32 (B, 3, H, W); floats pass unchanged."""
        if image.is_floating_point():
            return image
        return (image.float() / 255 - self.pixel_mean) / self.pixel_std  # 1 channel broadcasts to 3

    def kept(self, batch: Batch) -> Tensor:
        """The kept patches (B, K) of MIM."""
        order = batch["patch_order"]
        return order[:, : kept_patches(order.shape[1], self.config.mim.ratio)]

    # ------------------------------------------------------------------------------ features

    def encode_pair(
        self, image: Tensor, text_ids: Tensor, text_keep: Tensor, maps: Maps = None
    ) -> Pair:
        """Whole image and text through encoders, all fusion layers and poolers.

        image as in a batch, text_ids int64 (B, L), text_keep bool (B, L). `maps` collects the
        cross-attention maps of every layer (see `Fusion.run`).
        """
        image = self.fusion.enter_image(self.image_encoder(self.normalise(image)))
        text = self.fusion.enter_text(self.text_encoder(text_ids, text_keep))
        text, image = self.fusion.run(text, image, text_keep, 0, self.fusion.depth, maps)[-1]
        return Pair(text, image, self.fusion.pool(text, image))

    # ------------------------------------------------------------------------------ a step

    def forward(
        self, batch: Batch, totals: dict[str, Tensor] | None = None, per_sample: bool = False
    ) -> dict[str, Tensor]:
        """Losses, counts and correct counts of the active objectives; `loss` = weighted sum.

        `totals` (from `counts`, summed over micro-batches and processes) replaces this batch's
        own denominators. `per_sample` gives (B,) sums instead of scalars, without `loss`.
        """
        sums = sample_sums(self.outputs(batch))
        return sums if per_sample else reduce_losses(sums, self.loss_weights, totals)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Denominators of the active losses, from the batch alone: int64 scalars."""
        texts = batch["text_ids"]
        size = torch.full((), len(texts), device=texts.device)  # no copy from the host, as tensor()
        counts = {}
        if "mlm" in self.loss_weights:
            counts["mlm"] = batch["mlm_labels"].ne(NOT_SCORED).sum()
        if "mim" in self.loss_weights:
            patches = batch["patch_order"].shape[1]
            counts["mim"] = size * (patches - kept_patches(patches, self.config.mim.ratio))
        if "itm" in self.loss_weights:
            counts["itm"] = size
        return counts

    def outputs(self, batch: Batch) -> Outputs:
        """What the heads of the active objectives predict for a batch, with their targets."""
        image = self.normalise(batch["image"])
        passes = self._outputs_shared if self.share else self._outputs_plain
        out = passes(batch, image)
        if "mlm" in self.loss_weights:
            out.mlm_vocabulary = self.mlm_head.vocabulary
        if "mim" in self.loss_weights:
            patch_px, normalise = self.image_encoder.patch_px, self.config.mim.normalise_target
            removed = batch["patch_order"][:, self.kept(batch).shape[1] :]
            out.mim_targets = mim_target(image, removed, patch_px, normalise)
        if "itm" in self.loss_weights:
            out.itm_targets = batch["itm_match"]
        return out

    def _outputs_shared(self, batch: Batch, image: Tensor) -> Outputs:
        """Everything that two passes have in common is computed once.

        `image` is normalised: float32 (B, 3, H, W).
        """
        has = self.loss_weights.__contains__
        out, keep = Outputs(), batch["text_keep"]
        # Images: whole ones, kept patches and the corpus's negatives, each embedded once.
        patches = self.image_encoder.embed(image)
        kept = self.kept(batch) if has("mim") else None
        rows = self._negative_rows(batch) if has("itm") else None
        streams = {}
        if has("mlm") or has("itm"):
            streams["whole"] = patches
        if has("mim"):
            streams["kept"] = take(patches, kept)
        if rows is not None:
            negatives = self.normalise(batch["negative_image"][rows])
            streams["negatives"] = self.image_encoder.embed(negatives)
        encoded = self.image_encoder.encode_streams(list(streams.values()))
        images = dict(zip(streams, map(self.fusion.enter_image, encoded), strict=True))
        # Texts: masked ones for MLM, unmasked ones for MIM and ITM, in one call.
        ids = [batch["mlm_ids"]] if has("mlm") else []
        ids += [batch["text_ids"]] if has("mim") or has("itm") else []
        texts = self.text_encoder(torch.cat(ids), torch.cat([keep] * len(ids)))
        texts = self.fusion.enter_text(texts).chunk(len(ids))
        # MIM: kept patches, only as far as layer k, whose text side nobody reads.
        if has("mim"):
            shown = self.mim_head.join(images["kept"], batch["patch_order"])
            shown = self.fusion.read_image(texts[-1], shown, keep, self.mim_layer)
            out.mim_pixels = self.mim_head(shown, batch["patch_order"], kept.shape[1])
        # MLM and ITM see whole images: one call as far as both go, then each its own last layer.
        pairs, ends = [], []
        if has("mlm"):
            pairs.append((texts[0], images["whole"]))
            ends.append(self.mlm_layer)
        if has("itm"):
            shown = images["whole"]
            if rows is None:
                shown = shown[batch["itm_image"]]
            else:
                shown = shown.index_copy(0, rows, images["negatives"].to(shown.dtype))
            pairs.append((texts[-1], shown))
            ends.append(self.fusion.depth)
        if not pairs:
            return out
        common = max(0, min(ends) - 1)
        text, shown = (torch.cat(stream) for stream in zip(*pairs, strict=True))
        text, shown = self.fusion.run(text, shown, torch.cat([keep] * len(pairs)), 0, common)[-1]
        pairs = list(zip(text.chunk(len(pairs)), shown.chunk(len(pairs)), strict=True))
        if has("mlm"):
            out.mlm_hidden, out.mlm_targets = self._mlm(*pairs[0], keep, common, batch)
        if has("itm"):
            out.itm_logits = self.itm_head(self.fusion.pooled(*pairs[-1], keep, common))
        return out

    def _mlm(
        self, text: Tensor, image: Tensor, keep: Tensor, start: int, batch: Batch
    ) -> tuple[Tensor, Tensor]:
        """The last MLM layer: text side only, and without a decoder scored positions only."""
        if "mlm_positions" in batch:
            positions, targets = batch["mlm_positions"], batch["mlm_targets"]
        else:
            positions, targets = scored_positions(batch["mlm_labels"])
        head = self.mlm_head
        read = None if head.has_context else positions
        text = self.fusion.read_text(text, image, keep, start, self.mlm_layer, read)
        if head.has_context:
            text = take(head.context(text, keep), positions)
        return head(text), targets

    def _negative_rows(self, batch: Batch) -> Tensor | None:
        """Pairs whose image is another one of the corpus; None where negatives are in the batch."""
        if "itm_image" in batch:
            return None
        rows = batch.get("itm_negative_rows")
        return batch["itm_match"].logical_not().nonzero()[:, 0] if rows is None else rows

    def _outputs_plain(self, batch: Batch, image: Tensor) -> Outputs:
        """The reference's step: three whole passes. The twin that `share: true` must equal.

        `image` is normalised: float32 (B, 3, H, W).
        """
        out, keep = Outputs(), batch["text_keep"]

        def fuse(image: Tensor, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
            text = self.fusion.enter_text(self.text_encoder(ids, keep))
            return self.fusion.run(text, image, keep, 0, self.fusion.depth)

        if "mlm" in self.loss_weights:
            states = fuse(self.fusion.enter_image(self.image_encoder(image)), batch["mlm_ids"])
            text = self.mlm_head.context(states[self.mlm_layer][0], keep)
            out.mlm_hidden, out.mlm_targets = self.mlm_head(text), batch["mlm_labels"]
        if "mim" in self.loss_weights:
            kept, order = self.kept(batch), batch["patch_order"]
            entered = self.fusion.enter_image(self.image_encoder(image, kept))
            states = fuse(self.mim_head.join(entered, order), batch["text_ids"])
            out.mim_pixels = self.mim_head(states[self.mim_layer][1], order, kept.shape[1])
        if "itm" in self.loss_weights:
            if "itm_image" in batch:
                shown = image[batch["itm_image"]]
            else:
                match = batch["itm_match"][:, None, None, None]
                shown = torch.where(match, image, self.normalise(batch["negative_image"]))
            states = fuse(self.fusion.enter_image(self.image_encoder(shown)), batch["text_ids"])
            out.itm_logits = self.itm_head(self.fusion.pool(*states[-1]))
        return out

    # ------------------------------------------------------------------------------ parameters

    def unreached(self) -> list[str]:
        """Names of the parameters that no active loss reaches, by the rules of this forward."""
        has, depth = self.loss_weights.__contains__, self.fusion.depth
        mlm, mim, itm = has("mlm") * self.mlm_layer, has("mim") * self.mim_layer, has("itm") * depth
        text_layers, image_layers = max(mlm, mim - 1, itm), max(mlm - 1, mim, itm)
        unused = [f"fusion.text_layers.{i}." for i in range(max(0, text_layers), depth)]
        unused += [f"fusion.image_layers.{i}." for i in range(max(0, image_layers), depth)]
        if not has("itm"):
            unused += ["fusion.text_pooler.", "fusion.image_pooler."]
        if not (has("mlm") or mim or has("itm")):
            unused += ["text_encoder.", "fusion.text_projection."]
        if not (has("mim") or mlm or has("itm")):
            unused += ["image_encoder.", "fusion.image_projection."]
        return [name for name, _ in self.named_parameters() if name.startswith(tuple(unused))]

    def freeze_unreached(self) -> None:
        """No gradients for what no loss reaches, for all else yes."""
        unreached = set(self.unreached())
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in unreached)

    # ------------------------------------------------------------------------------ files

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path) -> "M3AE":
        """The model that `save_pretrained` wrote, from a folder or a hub id; strict.

        Of a fine-tuned one it is the backbone: encoders, fusion and poolers. Raises ValueError or
        FileNotFoundError naming what does not fit.
        """
        config, state = pretrained.read_pretrained(path_or_hub_id)
        model, source = cls(config), str(path_or_hub_id)
        pretrained.load_strictly(model, pretrained.without_heads(state, source), source)
        return model

    def load_weights(self, folder: str | Path) -> None:
        """Take the weights of such a folder, whose sizes must be this model's; strict."""
        pretrained.load_strictly(self, pretrained.read_pretrained(folder)[1], str(folder))

    def save_pretrained(
        self, path: str | Path, tokenizer: object = None, state: pretrained.State | None = None
    ) -> None:
        """Weights (safetensors), config.json, model card and, if given, the tokeniser.

        state: a copy of `state_dict` to be written instead of what the model has now.
        """
        pretrained.save_pretrained(self, path, tokenizer, state)


def build_model(config: Config) -> M3AE:
    """An M3AE with the weights of `config.init`, or else fresh with the encoders' own if given.

    Initial weights follow from `config.seed`. Parameters that no loss reaches are frozen. Raises
    ValueError when a weight file does not fit the sizes in the config.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = M3AE(config.model)
    image, text = config.model.image_encoder, config.model.text_encoder
    if config.init is not None:
        pretrained.start_from(model, config.init)
    if image.weights is not None and config.init is None:
        pretrained.load_image_encoder(model.image_encoder, image.weights)
    if text.weights is not None and config.init is None:
        pretrained.load_text_encoder(model.text_encoder, text.weights)
    model.freeze_unreached()
    wrap_blocks(model, config.model)
    return model


def initialise(model: nn.Module) -> None:
    """Everything normal(0, 0.02), biases 0, LayerNorm 1 and 0 (reference, model fact 10).

    The MIM decoder's attention inputs are Xavier-uniform over query, key and value as one matrix.
    """
    for name, parameter in model.named_parameters():
        if name == "image_encoder.position_embedding":
            # The reference always loads this one. From scratch, positions of std 0.02 are lost
            # beside patch embeddings of about 0.6, so they start as the sine-cosine table.
            table = sincos_2d(parameter.shape[1], round((parameter.shape[0] - 1) ** 0.5))
            with torch.no_grad():
                parameter.copy_(table)
        elif parameter.ndim == 1 and not name.endswith(("class_token", "mask_token")):
            nn.init.constant_(parameter, 1.0 if name.endswith("weight") else 0.0)
        elif "mim_head.blocks" in name and name.endswith("query_key_value.weight"):
            nn.init.xavier_uniform_(parameter)
        else:
            nn.init.normal_(parameter, std=0.02)
