"""Vision transformers (Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929): a small one of ours, and timm's.

Both give ``tokens``, of the class and of the patches, with some patches hidden, and the ``attention`` of the class.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.heads import keep_scale


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(*self._heads_of(x))
        return self.proj(y.transpose(1, 2).flatten(2))

    def of_class(self, x: Tensor) -> Tensor:
        """How much the class token looks at every token, ``[N, heads, 1 + T]``."""
        q, k, _ = self._heads_of(x)
        return (q[:, :, :1] @ k.mT / q.shape[-1] ** 0.5).softmax(-1)[:, :, 0]

    def _heads_of(self, x: Tensor) -> Tensor:
        """Queries, keys and values, ``[3, N, heads, tokens, width]``."""
        n, t, _ = x.shape
        return self.qkv(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)


class Block(nn.Module):
    """Attention and an MLP, each after a norm and around a shortcut."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Square images of any size that is whole patches, to the class token behind the last norm, ``[N, dim]``.

    Args:
        channels, image_size: of the images; positions are learned at this size, and interpolated for views of another.
        patch_size: side of the patches; divides ``image_size``.
        dim, heads, blocks: width, heads of ``dim / heads`` each, depth.
    """

    def __init__(self, channels: int, image_size: int, patch_size: int, dim: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        side = image_size // patch_size
        self.patches = nn.Conv2d(channels, dim, patch_size, patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, dim, side, side))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim)
        self.apply(keep_scale)
        for w in (self.class_token, self.positions):
            nn.init.trunc_normal_(w, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        return self.tokens(images)[:, 0]

    def tokens(self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """``[N, 1 + T, dim]``; patches where ``mask``, bool ``[N, T]``, is true are ``mask_token`` to the blocks."""
        x = self._embedded(images, mask, mask_token)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def attention(self, images: Tensor) -> Tensor:
        """Of the class token in the last block on every patch, ``[N, heads, side, side]``."""
        x = self._embedded(images, None, None)
        *before, last = self.blocks
        for block in before:
            x = block(x)
        weights = last.attn.of_class(last.norm1(x))[:, :, 1:]
        return weights.unflatten(2, (images.shape[-1] // self.patch_size, -1))

    def _embedded(self, images: Tensor, mask: Tensor | None, mask_token: Tensor | None) -> Tensor:
        side = images.shape[-1] // self.patch_size
        x = self.patches(images).flatten(2).mT
        if mask is not None:
            x = torch.where(mask[:, :, None], mask_token.to(x.dtype), x)
        positions = self.positions
        if side != positions.shape[-1]:
            positions = F.interpolate(positions, (side, side), mode="bicubic", align_corners=False)
        first = self.class_token.expand(len(x), -1, -1)
        return torch.cat([first.to(x.dtype), x + positions.flatten(2).mT.to(x.dtype)], dim=1)


class TimmViT(nn.Module):
    """A ``VisionTransformer`` of timm's with a class token, and what ours can do beside ``forward``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.patch_size = model, model.patch_embed.patch_size[0]

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def tokens(self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        m = self.model
        x = m.norm(m.blocks(self._embedded(images, mask, mask_token)))
        return torch.cat([x[:, :1], x[:, m.num_prefix_tokens :]], dim=1)  # without the registers

    def attention(self, images: Tensor) -> Tensor:
        m = self.model
        x = self._embedded(images, None, None)
        *before, last = m.blocks
        for block in before:
            x = block(x)
        x = last.norm1(x)
        attn = last.attn
        n, t, _ = x.shape
        q, k, _ = attn.qkv(x).view(n, t, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        weights = (attn.q_norm(q[:, :, :1]) @ attn.k_norm(k).mT * attn.scale).softmax(-1)[
            :, :, 0, m.num_prefix_tokens :
        ]
        return weights.unflatten(2, (images.shape[-1] // self.patch_size, -1))

    def _embedded(self, images: Tensor, mask: Tensor | None, mask_token: Tensor | None) -> Tensor:
        m = self.model
        x = m.patch_embed(images)
        if mask is not None:
            x = torch.where(mask.view(*x.shape[:-1], 1), mask_token.to(x.dtype), x)
        return m.norm_pre(m.patch_drop(m._pos_embed(x)))
