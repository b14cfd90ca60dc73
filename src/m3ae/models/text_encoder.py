"""Text encoder: RoBERTa and BERT (paper section 2.1; reference, model fact 6).

Letters: `B` texts, `L` tokens, `D` width. The two differ only in how positions are counted.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from m3ae.config import TextEncoderConfig
from m3ae.models.layers import PostNormBlock


class TextEncoder(nn.Module):
    """Embeddings and post-norm blocks; all token types are 0, no pooler."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.kind, self.pad_id = config.kind, config.pad_id
        self.word_embedding = nn.Embedding(config.vocab_size, config.width)
        self.position_embedding = nn.Embedding(config.max_positions, config.width)
        self.type_embedding = nn.Embedding(config.type_vocab_size, config.width)
        self.embedding_norm = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            PostNormBlock(config, config.mlp_width) for _ in range(config.depth)
        )

    def positions(self, ids: Tensor) -> Tensor:
        """Position of each token (B, L): BERT counts from 0; RoBERTa from pad_id + 1.

        RoBERTa's padding, recognised by its id, stays at pad_id and does not count.
        """
        if self.kind == "bert":
            return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        real = ids.ne(self.pad_id)
        return real.cumsum(dim=1) * real + self.pad_id

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids int64 (B, L) -> what the first block reads (B, L, D)."""
        x = self.word_embedding(ids) + self.position_embedding(self.positions(ids))
        return self.dropout(self.embedding_norm(x + self.type_embedding.weight[0]))

    def states(self, ids: Tensor, keep: Tensor, after: Sequence[int]) -> list[Tensor]:
        """As `forward`, but the tokens (B, L, D) after each of these blocks, in rising order.

        Blocks count from 1, as in `ImageEncoder.states`.
        """
        x, found = self.embed(ids), []
        for number, block in enumerate(self.blocks[: max(after)], start=1):
            x = block(x, keep)
            if number in after:
                found.append(x)
        return found

    def forward(self, ids: Tensor, keep: Tensor) -> Tensor:
        """Token ids int64 (B, L), keep bool (B, L), True = real token -> (B, L, D)."""
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, keep)
        return x
