"""Multi-modal fusion: co-attention layers over the two streams (paper section 2.1).

Letters: `B` pairs, `L` text tokens, `S` image tokens (CLS first), `D` width.
"Layer k" means the features after k layers: 0 = what enters fusion, `depth` = the last.
"""

import torch
from torch import Tensor, nn

from m3ae.models.layers import PostNormBlock, take


class Fusion(nn.Module):
    """Projections to the common width, modality type embeddings, co-attention layers, poolers.

    Both streams of a layer read the previous layer's pair: parallel, not sequential. No LayerNorm
    follows the type embedding (reference, section 1).
    """

    def __init__(
        self, text_width: int, image_width: int, width: int, depth: int, heads: int,
        mlp_ratio: float, dropout: float, attention_dropout: float, layer_norm_eps: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.depth = depth
        self.text_projection = nn.Linear(text_width, width)
        self.image_projection = nn.Linear(image_width, width)
        self.type_embedding = nn.Embedding(2, width)  # row 0 text, row 1 image


        def layer() -> PostNormBlock:
            hidden = int(width * mlp_ratio)
            return PostNormBlock(
                width, heads, hidden, layer_norm_eps, dropout, attention_dropout, cross=True
            )

        self.text_layers = nn.ModuleList(layer() for _ in range(depth))
        self.image_layers = nn.ModuleList(layer() for _ in range(depth))
        self.text_pooler = nn.Linear(width, width)
        self.image_pooler = nn.Linear(width, width)

    def enter_text(self, encoded: Tensor) -> Tensor:
        """Encoded text (B, L, text width) -> layer 0 (B, L, D)."""
        return self.text_projection(encoded) + self.type_embedding.weight[0]

    def enter_image(self, encoded: Tensor) -> Tensor:
        """Encoded image (B, S, image width) -> layer 0 (B, S, D)."""
        return self.image_projection(encoded) + self.type_embedding.weight[1]

    def run(
        self, text: Tensor, image: Tensor, text_keep: Tensor, start: int, stop: int,
        maps: list | None = None,
    ) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
        """Layers start..stop-1 on both streams -> the pair after each, the input pair first.

        A list in `maps` collects the cross-attention maps: (B, H, L, S) of the text stream, then
        (B, H, S, L) of the image stream, layer by layer.
        """
        states = [(text, image)]
        for index in range(start, stop):
            text, image = states[-1]
            states.append(
                (
                    self.text_layers[index](text, text_keep, image, None, maps=maps),
                    self.image_layers[index](image, None, text, text_keep, maps=maps),
                )
            )
        return states

    def read_text(
        self, text: Tensor, image: Tensor, text_keep: Tensor, start: int, stop: int,
        read: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """From layer `start` to the text features after layer `stop`, at `read` (B, Q) or all.

        The last layer computes the text side alone, at these positions alone.
        """
        if start == stop:
            return text if read is None else take(text, read)
        text, image = self.run(text, image, text_keep, start, stop - 1)[-1]
        return self.text_layers[stop - 1](text, text_keep, image, None, read)

    def read_image(
        self, text: Tensor, image: Tensor, text_keep: Tensor, start: int, stop: int,
        read: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The same for the image side."""
        if start == stop:
            return image if read is None else take(image, read)
        text, image = self.run(text, image, text_keep, start, stop - 1)[-1]
        return self.image_layers[stop - 1](image, None, text, text_keep, read)

    def pool(self, text: Tensor, image: Tensor) -> Tensor:
        """Two streams after the last layer (only token 0 is read) -> (B, 2D), text then image."""
        pooled = [self.text_pooler(text[:, 0]), self.image_pooler(image[:, 0])]
        return torch.cat(pooled, dim=-1).tanh()
