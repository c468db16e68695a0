"""Random views: crop, flip, colour jitter, grey, blur, solarize, anew for every image, on its device, by kornia."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from methods.config import Config


class Augment(nn.Module):
    """A batch of images to lists of differently augmented ones, float in [0, 1]: the views of a step.

    Draws from torch's global generator: seed that to get the same views again.
    """

    def __init__(self, config: Config, image_size: int, channels: int) -> None:
        super().__init__()
        size = config.view_size or image_size
        second = config.blur if config.second_blur is None else config.second_blur
        self.count, self.local_count = config.views, config.local_views
        self.sizes = {size}
        # Every second view may be solarized, and blurred more or less often than the others
        self.steps = nn.ModuleList(
            _steps(config, image_size, channels, size, config.crop, blur, solarize)
            for blur, solarize in ((config.blur, 0.0), (second, config.solarize))
        )
        if config.local_views:
            local = config.local_size_of(size)
            self.sizes.add(local)
            self.local = _steps(config, image_size, channels, local, config.local_crop, config.local_blur, 0.0)

    @torch.no_grad()
    def forward(self, images: Tensor, views: int | None = None) -> list[Tensor]:
        """All views of a step, the local ones last; or as many as asked for, none of them local."""
        x = as_float(images)
        drawn = [self.steps[k % 2](x) for k in range(self.count if views is None else views)]
        if views is None:
            drawn += [self.local(x) for _ in range(self.local_count)]
        return [view.clamp(0, 1) for view in drawn]


def _steps(
    config: Config,
    image_size: int,
    channels: int,
    size: int,
    crop: tuple[float, float],
    blur: float,
    solarize: float,
) -> nn.Sequential:
    """What is done to one view, ``size`` pixels wide."""
    try:
        import kornia.augmentation as K
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("augmentations need kornia: pip install 'ssl_kernels[train]'") from error
    steps: list[nn.Module] = []
    if crop[0] < 1 or size != image_size:
        steps.append(K.RandomResizedCrop((size, size), crop, cropping_mode="resample", align_corners=False))
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
    if blur:
        odd = max(3, size // 10 // 2 * 2 + 1)
        steps.append(K.RandomGaussianBlur((odd, odd), (0.1, 2.0), p=blur))
    if solarize:
        steps.append(K.RandomSolarize(thresholds=(0.5, 0.5), additions=(0.0, 0.0), p=solarize))
    return nn.Sequential(*steps)


def as_float(images: Tensor) -> Tensor:
    """uint8 ``[N, C, H, W]`` to float in [0, 1]."""
    return images.float() / 255
