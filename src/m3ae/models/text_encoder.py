"""Text encoder: RoBERTa and BERT (paper section 2.1; reference, model fact 6).

Letters: `B` texts, `L` tokens, `D` width. The two differ only in how positions are counted.
"""

import torch
from torch import Tensor, nn

from m3ae.models.layers import PostNormBlock

KINDS = ("roberta", "bert")


class TextEncoder(nn.Module):
    """Embeddings and post-norm blocks; all token types are 0, no pooler."""

    def __init__(
        self,
        *,
        kind: str,
        vocab_size: int,
        type_vocab_size: int,
        width: int,
        depth: int,
        heads: int,
        mlp_width: int,
        max_positions: int,
        layer_norm_eps: float,
        dropout: float,
        attention_dropout: float,
        pad_id: int,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"text encoder kind {kind!r} is not one of {', '.join(KINDS)}")
        self.kind, self.pad_id = kind, pad_id
        self.word_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(max_positions, width)
        self.type_embedding = nn.Embedding(type_vocab_size, width)
        self.embedding_norm = nn.LayerNorm(width, eps=layer_norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            PostNormBlock(
                width=width,
                heads=heads,
                hidden=mlp_width,
                layer_norm_eps=layer_norm_eps,
                dropout=dropout,
                attention_dropout=attention_dropout,
            )
            for _ in range(depth)
        )

    def positions(self, ids: Tensor) -> Tensor:
        """Position of each token (B, L): BERT counts from 0; RoBERTa from pad_id + 1.

        RoBERTa's padding, recognised by its id, stays at pad_id and does not count.
        """
        if self.kind == "bert":
            return torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        real = ids.ne(self.pad_id)
        return real.cumsum(dim=1) * real + self.pad_id

    def forward(self, ids: Tensor, keep: Tensor) -> Tensor:
        """Token ids int64 (B, L), keep bool (B, L), True = real token -> (B, L, D)."""
        x = self.word_embedding(ids) + self.position_embedding(self.positions(ids))
        x = self.dropout(self.embedding_norm(x + self.type_embedding.weight[0]))
        for block in self.blocks:
            x = block(x, keep)
        return x
