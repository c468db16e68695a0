"""The text encoder: a tokenizer and a transformer over its tokens, as in CLIP but of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from methods.tokenizer import Tokenizer, restored


class TextEncoder(nn.Module):
    """Captions to features ``[N, dim]``.

    Args:
        tokenizer: of the captions. It travels with the weights, in the ``state_dict``.
        dim: width of the tokens and of the features.
        layers, heads: of the transformer, pre-norm.
        pooling: ``last``, as in CLIP: every token sees those before it, and the end token is read; ``mean``: every
            token sees all, and their mean is read.
        dropout: of the residual branches.
        word_dropout: in training, the share of tokens that are blanked, anew each time.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        dim: int,
        layers: int,
        heads: int,
        pooling: str = "last",
        dropout: float = 0.0,
        word_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"text_heads: expected a divisor of text_width {dim}, got {heads}")
        self.tokenizer, self.dim, self.pooling, self.word_dropout = tokenizer, dim, pooling, word_dropout
        self.tokens = nn.Embedding(tokenizer.vocab_size, dim)
        self.positions = nn.Parameter(torch.randn(tokenizer.context, dim) / 4)
        block = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)
        nn.init.normal_(self.tokens.weight, std=dim**-0.5)
        for layer in self.blocks.layers if pooling == "mean" else ():
            # A bag of words to begin with: branches add nothing yet, and do not drown the tokens in their first steps
            nn.init.zeros_(layer.self_attn.out_proj.weight)
            nn.init.zeros_(layer.linear2.weight)

    def forward(self, captions: Sequence[str]) -> Tensor:
        device = self.positions.device
        ids, ends = (t.to(device) for t in self.tokenizer(captions))
        length = ids.shape[1]
        x = self.dim**0.5 * self.tokens(ids)
        if self.training and self.word_dropout:
            x = x * (torch.rand(ids.shape, device=device) >= self.word_dropout)[..., None]
        x = x + self.positions[:length]
        if self.pooling == "mean":
            outside = torch.arange(length, device=device) > ends[:, None]
            x = self.blocks(x, src_key_padding_mask=outside).masked_fill(outside[..., None], 0.0)
            return self.norm(x.sum(1) / (ends + 1)[:, None])
        # Nothing looks at what stands behind the end token: causality is all the masking there is
        mask = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
        x = self.blocks(x, mask=mask, is_causal=True)
        return self.norm(x[torch.arange(len(x), device=device), ends])

    def get_extra_state(self) -> dict[str, Any]:
        return self.tokenizer.state()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.tokenizer = restored(state)
