"""The text encoder: a tokenizer and a transformer over its tokens, as in CLIP but of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from methods.tokenizer import Tokenizer, restored


class TextEncoder(nn.Module):
    """Captions to features ``[N, dim]``: every token sees those before it, and the end token is read.

    Args:
        tokenizer: of the captions. It travels with the weights, in the ``state_dict``.
        dim: width of the tokens and of the features.
        layers, heads: of the transformer, pre-norm.
        dropout: of the residual branches.
        word_dropout: in training, the share of tokens that are left out, anew each time.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        dim: int,
        layers: int,
        heads: int,
        dropout: float = 0.0,
        word_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"text_heads: expected a divisor of text_width {dim}, got {heads}")
        self.tokenizer, self.dim, self.word_dropout = tokenizer, dim, word_dropout
        self.tokens = nn.Embedding(tokenizer.vocab_size, dim)
        self.positions = nn.Parameter(0.01 * torch.randn(tokenizer.context, dim))
        block = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, captions: Sequence[str]) -> Tensor:
        device = self.positions.device
        ids, ends = (t.to(device) for t in self.tokenizer(captions))
        length = ids.shape[1]
        x = self.tokens(ids)
        if self.training and self.word_dropout:
            x = x * (torch.rand(ids.shape, device=device) >= self.word_dropout)[..., None]
        # Nothing looks at what stands behind the end token: causality is all the masking there is
        mask = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
        x = self.blocks(x + self.positions[:length], mask=mask, is_causal=True)
        return x[torch.arange(len(x), device=device), ends]

    def get_extra_state(self) -> dict[str, Any]:
        return self.tokenizer.state()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.tokenizer = restored(state)
