"""Where a vision transformer looks: the attention of its class token in the last block, as a picture."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.augment import as_float
from methods.encoders import Encoder
from methods.pictures import pyplot

SHOWN = 10


@torch.no_grad()
def draw_attention(path: Path, encoder: Encoder, images: Tensor) -> None:
    """Some of the uint8 images in the first row; below them the attention on their patches, the mean over the heads.

    The images are spread evenly over those given.
    """
    chosen = images[:: -(-len(images) // SHOWN)]
    x = as_float(chosen).to(encoder.mean.device)
    attention = encoder.attention(x).float().mean(1, keepdim=True)
    shown = F.interpolate(attention, x.shape[2:], mode="nearest")[:, 0].cpu().numpy()
    plt = pyplot()
    figure, axes = plt.subplots(2, len(chosen), figsize=(len(chosen), 2), layout="constrained", squeeze=False)
    for column, image, weights in zip(axes.T, x.cpu(), shown, strict=True):
        column[0].imshow(image.permute(1, 2, 0).squeeze(2).numpy(), cmap="gray")
        column[1].imshow(weights, cmap="inferno", vmin=0)
        for ax in column:
            ax.axis("off")
    figure.savefig(path, dpi=150)
    plt.close(figure)
