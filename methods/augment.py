"""SimCLR's random views: crop, flip, colour jitter, grey, blur, anew for every image, on its device, by kornia."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from methods.config import Config


class Augment(nn.Module):
    """A batch of images to ``views`` lists of differently augmented ones, float in [0, 1].

    Draws from torch's global generator: seed that to get the same views again.
    """

    def __init__(self, config: Config, image_size: int, channels: int) -> None:
        super().__init__()
        try:
            import kornia.augmentation as K
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("augmentations need kornia: pip install 'ssl_kernels[train]'") from error
        size = config.view_size or image_size
        steps: list[nn.Module] = []
        if config.crop[0] < 1 or size != image_size:
            steps.append(K.RandomResizedCrop((size, size), config.crop, cropping_mode="resample", align_corners=False))
        if config.rotate or config.translate or config.shear or config.zoom != (1.0, 1.0):
            shift = (config.translate, config.translate)
            steps.append(K.RandomAffine(config.rotate, shift, config.zoom, config.shear, p=1.0, padding_mode="border"))
        if config.flip:
            steps.append(K.RandomHorizontalFlip(p=config.flip))
        if config.jitter:
            s = config.jitter
            # Hue and saturation mean nothing to a grey image
            colour = (0.8 * s, 0.2 * s) if channels == 3 else (0.0, 0.0)
            steps.append(K.ColorJitter(0.8 * s, 0.8 * s, *colour, p=0.8))
        if config.grey and channels == 3:
            steps.append(K.RandomGrayscale(p=config.grey))
        if config.blur:
            odd = max(3, size // 10 // 2 * 2 + 1)
            steps.append(K.RandomGaussianBlur((odd, odd), (0.1, 2.0), p=config.blur))
        self.steps = nn.Sequential(*steps)

    @torch.no_grad()
    def forward(self, images: Tensor, views: int = 2) -> list[Tensor]:
        x = as_float(images)
        return [self.steps(x).clamp(0, 1) for _ in range(views)]


def as_float(images: Tensor) -> Tensor:
    """uint8 ``[N, C, H, W]`` to float in [0, 1]."""
    return images.float() / 255
