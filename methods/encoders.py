"""Encoders, images in [0, 1] to features ``[N, dim]``: ours for small images, any timm or torchvision name beside."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.vit import TimmViT, ViT


class Encoder(nn.Module):
    """A backbone that standardises its images itself, so that its weights can be used without knowing the data set.

    Args:
        backbone: images to features ``[N, dim]``.
        mean, std: of each channel of the images, in [0, 1].
        image_size: side of the images, to find the width of the features.
        channels_last: lay images and weights out with the channels innermost, faster on CPUs and tensor cores.
    """

    def __init__(self, backbone: nn.Module, mean: Tensor, std: Tensor, image_size: int, channels_last: bool) -> None:
        super().__init__()
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.backbone = backbone.to(memory_format=self.format)
        self.register_buffer("mean", mean.view(1, -1, 1, 1))
        self.register_buffer("std", std.view(1, -1, 1, 1))
        self.check(image_size)
        was_training = self.training
        with torch.no_grad():
            features = self.eval()(torch.zeros(1, len(mean), image_size, image_size))
        self.train(was_training)
        if features.dim() != 2:
            raise ValueError(f"encoder: expected features [N, dim], got shape {tuple(features.shape)}")
        self.dim = features.shape[1]

    def forward(
        self, images: Tensor, mask: Tensor | None = None, mask_token: Tensor | None = None, *, tokens: bool = False
    ) -> Tensor:
        """Features ``[N, dim]``; with ``tokens``, those of class and patches, ``[N, 1 + T, dim]``, if it has any.

        ``mask``, bool ``[N, T]``, says which patches are hidden: ``mask_token`` takes their place.
        """
        x = self._standardised(images)
        return self.backbone.tokens(x, mask, mask_token) if tokens else self.backbone(x)

    def attention(self, images: Tensor) -> Tensor:
        """Of the class token on the patches, ``[N, heads, side, side]``."""
        return self.backbone.attention(self._standardised(images))

    def check(self, size: int) -> None:
        """Raises ValueError where images so wide are not whole patches."""
        if self.has_tokens and size % self.backbone.patch_size:
            wanted = f"a divisor of {size}, the side of images or views"
            raise ValueError(f"patch_size: expected {wanted}, got {self.backbone.patch_size}")

    @property
    def has_tokens(self) -> bool:
        """Whether there are patches with tokens of their own: those of a vision transformer."""
        return isinstance(self.backbone, ViT | TimmViT)

    def _standardised(self, images: Tensor) -> Tensor:
        return ((images - self.mean) / self.std).contiguous(memory_format=self.format)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.conv2(y)))


class ResNet(nn.Sequential):
    """A 3x3 stem without pooling, then stages of residual blocks, each stage after the first at half the resolution."""

    def __init__(self, channels: int, widths: tuple[int, ...], blocks: int, stem_stride: int) -> None:
        stem = [nn.Conv2d(channels, widths[0], 3, stem_stride, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
        stages = []
        for k, width in enumerate(widths):
            stages.append(ResidualBlock(widths[max(k - 1, 0)], width, 2 if k else 1))
            stages += [ResidualBlock(width, width, 1) for _ in range(blocks - 1)]
        super().__init__(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def build_encoder(
    name: str,
    image_size: int,
    mean: Tensor,
    std: Tensor,
    *,
    channels_last: bool = True,
    width: int = 32,
    patch_size: int = 4,
) -> Encoder:
    """The encoder called ``name`` for square images of ``image_size`` with ``len(mean)`` channels.

    ``small`` (three blocks, for CPUs; ``width`` is that of its first stage), ``resnet18-cifar`` (no pooling in the
    stem), ``vit`` (six blocks of four heads, each ``width`` wide), ``timm:NAME``, ``torchvision:NAME``.
    """
    channels = len(mean)
    library, _, model = name.partition(":")
    if name == "small":
        # Half the resolution at once where there is enough of it: four times less work in every layer
        backbone = ResNet(channels, (width, 2 * width, 8 * width), 1, stem_stride=2 if image_size > 16 else 1)
    elif name == "resnet18-cifar":
        backbone = ResNet(channels, (64, 128, 256, 512), 2, stem_stride=1)
    elif name == "vit":
        backbone = ViT(channels, image_size, patch_size, 4 * width, heads=4, blocks=6)
    elif library == "timm" and model:
        backbone = _timm(model, channels, image_size)
    elif library == "torchvision" and model:
        backbone = _torchvision(model, channels)
    else:
        raise ValueError(f"encoder: expected small, resnet18-cifar, vit, timm:NAME or torchvision:NAME, got {name!r}")
    return Encoder(backbone, mean, std, image_size, channels_last)


def _timm(name: str, channels: int, image_size: int) -> nn.Module:
    import_torchvision()
    if importlib.util.find_spec("timm") is None:
        raise ModuleNotFoundError(f"encoder: timm:{name} needs timm (pip install timm)")
    timm = importlib.import_module("timm")
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name}*")[:5]) or "see timm.list_models()"
        raise ValueError(f"encoder: expected a name timm knows, got {name!r} (near: {close})")
    more = {}
    if name in timm.list_models(module="vision_transformer"):
        more = {"img_size": image_size, "dynamic_img_size": True}  # the views have other sizes
    made = timm.create_model(name, num_classes=0, in_chans=channels, **more)
    return TimmViT(made) if more and made.has_class_token else made


def _torchvision(name: str, channels: int) -> nn.Module:
    models = import_torchvision("models")
    if name not in models.list_models(module=models):
        raise ValueError(f"encoder: expected a classification model of torchvision, got {name!r}")
    if channels != 3:
        raise ValueError(f"encoder: torchvision models take 3 channels, the images have {channels}; timm's take any")
    model = models.get_model(name, weights=None)
    for classifier in ("fc", "classifier", "heads", "head"):
        if hasattr(model, classifier):
            setattr(model, classifier, nn.Identity())
            return model
    raise ValueError(f"encoder: do not know how to take the classifier off torchvision's {name}; use timm:NAME")


_shim: torch.library.Library | None = None


def import_torchvision(module: str = "") -> ModuleType:
    """torchvision (or one of its modules), imported late: only those who name it need it.

    PyPI's torchvision beside a CPU build of torch cannot load its own operators and stops at its own ``nms``. Models,
    transforms and data sets do not need them, so there the missing schemas are declared; box operators stay missing.
    """
    global _shim
    name = f"torchvision.{module}" if module else "torchvision"
    if importlib.util.find_spec("torchvision") is None:
        raise ModuleNotFoundError("torchvision is not installed (pip install torchvision)")
    try:
        return importlib.import_module(name)
    except RuntimeError as error:
        if "torchvision::nms" not in str(error) or _shim is not None:
            raise
    _shim = torch.library.Library("torchvision", "DEF")
    _shim.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _shim.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module(name)
