"""Multi-modal fusion: co-attention layers over the two streams (paper section 2.1).

Letters: `B` pairs, `L` text tokens, `S` image tokens (CLS first), `D` width.
"Layer k" means the features after k layers: 0 = what enters fusion, `depth` = the last.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from m3ae.config import FusionConfig
from m3ae.models.layers import Maps, PostNormBlock, take


class Alone(NamedTuple):
    """A stream inside the first layer, as far as it depends on this stream alone.

    x (B, S, D) after self-attention; queries, keys and values (B, H, S, d) of cross-attention:
    the queries ask the other stream, the keys and values answer it.
    """

    x: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor

    def repeated(self, row: int, times: int) -> "Alone":
        """One row as B = `times` equal ones, without a copy."""
        return Alone(*(part[row].expand(times, *part.shape[1:]) for part in self))


class Fusion(nn.Module):
    """Projections to the common width, modality type embeddings, co-attention layers, poolers.

    Both streams of a layer read the previous layer's pair: parallel, not sequential. No LayerNorm
    follows the type embedding (reference, section 1).
    """

    def __init__(self, config: FusionConfig, text_width: int, image_width: int) -> None:
        super().__init__()
        width, self.depth = config.width, config.depth
        self.text_projection = nn.Linear(text_width, width)
        self.image_projection = nn.Linear(image_width, width)
        self.type_embedding = nn.Embedding(2, width)  # row 0 text, row 1 image
        self.text_layers, self.image_layers = nn.ModuleList(), nn.ModuleList()
        for stream in (self.text_layers, self.image_layers):
            for _ in range(config.depth):
                stream.append(PostNormBlock(config, int(width * config.mlp_ratio), cross=True))
        self.text_pooler = nn.Linear(width, width)
        self.image_pooler = nn.Linear(width, width)

    def enter_text(self, encoded: Tensor) -> Tensor:
        """Encoded text (B, L, text width) -> layer 0 (B, L, D)."""
        return self.text_projection(encoded) + self.type_embedding.weight[0]

    def enter_image(self, encoded: Tensor) -> Tensor:
        """Encoded image (B, S, image width) -> layer 0 (B, S, D)."""
        return self.image_projection(encoded) + self.type_embedding.weight[1]

    def layer(
        self, index: int, text: Tensor, image: Tensor, keep: Tensor, read: Tensor | None, maps: Maps
    ) -> tuple[Tensor, Tensor]:
        """One layer on both streams, at the positions `read` (B, Q) of each, or at all."""
        return (
            self.text_layers[index](text, keep, image, None, read, maps),
            self.image_layers[index](image, None, text, keep, read, maps),
        )

    def run(
        self, text: Tensor, image: Tensor, keep: Tensor, start: int, stop: int, maps: Maps = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Layers start..stop-1 on both streams -> the pair after each, the input pair first.

        A list in `maps` collects the cross-attention maps: (B, H, L, S) of the text stream, then
        (B, H, S, L) of the image stream, layer by layer.
        """
        states = [(text, image)]
        for index in range(start, stop):
            states.append(self.layer(index, *states[-1], keep, None, maps))
        return states

    def read_text(
        self, text: Tensor, image: Tensor, keep: Tensor, start: int, stop: int, read: Tensor | None
    ) -> Tensor:
        """From layer `start` to the text features after layer `stop`, at `read` (B, Q) or all.

        The last layer computes the text side alone, at these positions alone.
        """
        if start == stop:
            return text if read is None else take(text, read)
        text, image = self.run(text, image, keep, start, stop - 1)[-1]
        return self.text_layers[stop - 1](text, keep, image, None, read)

    def read_image(self, text: Tensor, image: Tensor, keep: Tensor, stop: int) -> Tensor:
        """From layer 0 to the image features after layer `stop`, likewise the image side alone."""
        if stop == 0:
            return image
        text, image = self.run(text, image, keep, 0, stop - 1)[-1]
        return self.image_layers[stop - 1](image, None, text, keep)

    def text_alone(self, text: Tensor, keep: Tensor) -> Alone:
        """Layer 0 of the text stream (B, L, D) -> its part of the first layer."""
        return _alone(self.text_layers[0], self.image_layers[0], text, keep)

    def image_alone(self, image: Tensor) -> Alone:
        """Layer 0 of the image stream (B, S, D) -> its part of the first layer."""
        return _alone(self.image_layers[0], self.text_layers[0], image, None)

    def first_layer(self, text: Alone, image: Alone, keep: Tensor) -> tuple[Tensor, Tensor]:
        """The rest of the first layer -> the pair after it, as `run` from 0 to 1 gives.

        Both sides have B rows (see `Alone.repeated`). Not for training where a side is repeated:
        its pairs would share one draw of dropout.
        """
        text_layer, image_layer = self.text_layers[0], self.image_layers[0]
        told = text_layer.cross_attention.mix(text.queries, image.keys, image.values)
        shown = image_layer.cross_attention.mix(image.queries, text.keys, text.values, keep)
        return text_layer.finish(text.x, told), image_layer.finish(image.x, shown)

    def pooled(self, text: Tensor, image: Tensor, keep: Tensor, start: int) -> Tensor:
        """From layer `start` to both poolers, the last layer at the two CLS tokens -> (B, 2D)."""
        if start < self.depth:
            last = self.depth - 1
            text, image = self.run(text, image, keep, start, last)[-1]
            cls = torch.zeros(text.shape[0], 1, dtype=torch.int64, device=text.device)
            text, image = self.layer(last, text, image, keep, cls, None)
        return self.pool(text, image)

    def pool(self, text: Tensor, image: Tensor) -> Tensor:
        """Two streams after the last layer (only token 0 is read) -> (B, 2D), text then image."""
        pooled = [self.text_pooler(text[:, 0]), self.image_pooler(image[:, 0])]
        return torch.cat(pooled, dim=-1).tanh()


def _alone(own: PostNormBlock, other: PostNormBlock, x: Tensor, keep: Tensor | None) -> Alone:
    attended = own.attend(x, keep)
    # The other stream reads this one as it entered the layer: the streams are parallel.
    return Alone(
        attended, own.cross_attention.queries(attended), *other.cross_attention.keys_values(x)
    )
