"""Settings that every method shares. The field docstrings are the help text of the command line."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

# What may differ between a run and its resumption: nothing that the weights depend on. The data may have moved, since
# their fingerprint is compared; what a recipe stands for is compared setting by setting.
FREE = {
    *("data", "skip_broken", "recipe", "out", "resume", "save_every", "log_every", "knn_every", "knn_k"),
    *("knn_temperature", "linear_probe", "tensorboard", "progress", "debug"),
}


@dataclass(frozen=True)
class Config:
    """Settings shared by all methods."""

    least_views: ClassVar[int] = 2
    local_views = 0  # no setting here, hence no annotation: those of methods/multicrop.py have some

    # ------------------------------------------------------------------------------------------------------- data
    data: str
    """An image folder (DIR/CLASS/*.jpg, or DIR/{train,test}/CLASS/*.jpg), an .npz of `images` uint8 [N, H, W, C] and
    `labels`, a folder with train.npz and test.npz, or digits; cifar10:ROOT and stl10:ROOT through torchvision; for
    methods with captions a .tsv of image file and caption, or a folder with train.tsv and val.tsv."""
    image_size: int | None = None
    """Side in pixels to which folder images are resized and centre-cropped; default: that of the first, at most 224."""
    skip_broken: bool = False
    """Leave out images that cannot be read, and name them, instead of stopping."""
    recipe: str | None = None
    """Start from a named set of settings (see `python -m methods --help`); flags beside it still win."""
    # ----------------------------------------------------------------------------------------------------- encoder
    encoder: str = "small"
    """small, resnet18-cifar, vit (a small transformer), timm:NAME or torchvision:NAME."""
    width: int = 32
    """Channels of the small encoder's first stage; of the vit, width of a head: it has four."""
    patch_size: int = 4
    """Side of the vit's patches in pixels; it has to divide that of the images and of the views."""
    # ---------------------------------------------------------------------------------------------------- training
    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 256
    """Images per optimiser step, of all processes together."""
    accumulate: int = 1
    """Cut each process's share of a batch into this many micro-batches and add up their gradients. Each micro-batch has
    its own loss, among its own images only: less memory, but not the loss of the whole batch, unless --grad-cache."""
    grad_cache: bool = False
    """With --accumulate: one loss of the whole batch, with its exact gradient. Embeds every image twice."""
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    """LARS is for batches of thousands."""
    lr: float = 2e-3
    """Highest learning rate; warmed up linearly, then a cosine down to 0."""
    weight_decay: float = 1e-4
    """Not applied to biases and norms."""
    final_weight_decay: float | None = None
    """What it becomes along half a cosine; default: it stays."""
    clip_gradient: float = 0.0
    """Largest norm of a step's gradient, which is scaled down to it; 0: any."""
    momentum: float = 0.9
    """Of SGD and LARS; AdamW's first beta."""
    warmup_epochs: float = 1.0
    """Epochs until the highest learning rate."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16, fp16: autocast, fp16 with scaled gradients. On a CPU without AMX they are slower than fp32."""
    compile: bool = False
    """torch.compile the encoder: worth its minute on a GPU."""
    sync_batch_norm: bool = True
    """Of several processes, batch norms take the statistics of the whole batch, as one process does."""
    bn_groups: int = 1
    """Batch norms take their statistics from so many parts of each process's batch, each its own, as so many processes
    would that do not share them."""
    channels_last: bool = True
    """Memory layout of images and kernels."""
    device: str = "auto"
    """cpu, cuda, cuda:1 ...; auto: the GPU if there is one."""
    threads: int = 0
    """CPU threads; 0: as torch decides. The last bits of the weights depend on it."""
    loss_backend: Literal["auto", "cpu", "cuda", "triton", "reference"] = "auto"
    """Which backend of ssl_kernels computes the loss; auto: the fastest for the device."""
    seed: int = 0
    """Of the weights, the order of the images and the augmentations."""
    # ----------------------------------------------------------------------------------------------- augmentations
    views: int = 2
    """Augmented views of each image in a step. The paper has 2; more cost more, and learn in fewer epochs."""
    view_size: int | None = None
    """Side of the views in pixels; default: that of the images. Smaller views cost less, and since crops enlarge what
    they show, things look as large in them as in the whole images of the evaluation (Touvron et al. 2019)."""
    crop: tuple[float, float] = (0.2, 1.0)
    """Random resized crop: share of the area that is kept. The paper has 0.08 1.0."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: float = 0.5
    """Strength s of the colour jitter: brightness, contrast, saturation 0.8 s, hue 0.2 s, on 80 % of the images.
    The paper has 1.0 on ImageNet and 0.5 on CIFAR-10."""
    grey: float = 0.2
    """Probability of dropping the colours."""
    blur: float = 0.0
    """Probability of a Gaussian blur a tenth of the image wide; 0.5 on ImageNet, none on 32x32 images."""
    second_blur: float | None = None
    """That of every second view; default: the same. BYOL, MoCo v3 and DINO have 1.0 and 0.1."""
    solarize: float = 0.0
    """Probability of inverting the brighter half of the range, in every second view; 0.2 in the same papers."""
    rotate: float = 0.0
    """Largest rotation in degrees (not SimCLR's; for digits)."""
    translate: float = 0.0
    """Largest shift as a share of the side (not SimCLR's; for digits)."""
    shear: float = 0.0
    """Largest shear in degrees (not SimCLR's; for digits)."""
    zoom: tuple[float, float] = (1.0, 1.0)
    """Range of scaling about the centre (not SimCLR's; for digits)."""
    # ------------------------------------------------------------------------------------------------ what is kept
    out: Path | None = None
    """Folder for settings, checkpoint, metrics and results; default: runs/METHOD."""
    resume: bool = False
    """Go on from the checkpoint in --out, to the same weights as without the interruption; starts if there is none."""
    save_every: int = 1
    """Epochs between checkpoints."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl."""
    knn_every: int = 1
    """Epochs between evaluations (kNN and the collapse monitor); 0: only after the last epoch."""
    knn_k: int = 20
    """Neighbours that vote."""
    knn_temperature: float = 0.07
    """A neighbour at cosine s has exp(s / T) votes."""
    linear_probe: bool = True
    """Fit a linear classifier on the features at the end."""
    tensorboard: bool = True
    """Write TensorBoard events too, where it is installed."""
    progress: bool = True
    """Show a progress bar."""
    debug: bool = False
    """On an error, print the whole traceback instead of one line."""

    @property
    def backend(self) -> str | None:
        """``loss_backend`` as the losses want it."""
        return None if self.loss_backend == "auto" else self.loss_backend

    def as_dict(self) -> dict[str, Any]:
        """Plain types only, as JSON would give them back."""
        return json.loads(json.dumps(asdict(self), default=str))


def check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a probability, got {value}")


def check_shares(name: str, value: tuple[float, float]) -> None:
    if not 0 < value[0] <= value[1] <= 1:
        raise ValueError(f"{name}: expected 0 < smallest <= largest <= 1, got {value}")


def check(config: Config, processes: int) -> None:
    """Raises ValueError for settings that no run can have, naming the argument, what came and what was expected."""
    counts = (
        "epochs",
        "batch_size",
        "accumulate",
        "save_every",
        "log_every",
        "knn_k",
        "width",
        "patch_size",
        "bn_groups",
    )
    for name in counts:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(config, name)}")
    numbers = ("lr", "weight_decay", "final_weight_decay", "clip_gradient", "momentum", "warmup_epochs", "knn_every")
    for name in (*numbers, "threads", "jitter"):
        value = getattr(config, name)
        if value is not None and not value >= 0:
            raise ValueError(f"{name}: expected a number >= 0, got {value}")
    for name in ("flip", "grey", "blur", "second_blur", "solarize"):
        if getattr(config, name) is not None:
            check_probability(name, getattr(config, name))
    check_shares("crop", config.crop)
    if config.views < config.least_views:
        raise ValueError(f"views: expected at least {config.least_views}, got {config.views}")
    if config.view_size is not None and config.view_size < 4:
        raise ValueError(f"view_size: expected at least 4 pixels, got {config.view_size}")
    parts = processes * config.accumulate
    if config.batch_size % parts:
        wanted = f"a multiple of {processes} processes x {config.accumulate} micro-batches"
        raise ValueError(f"batch_size: expected {wanted}, got {config.batch_size}")
    if config.batch_size // parts < 2 * config.bn_groups:
        wanted = f"at least 2 images in each of {parts * config.bn_groups} parts"
        raise ValueError(f"batch_size: expected {wanted}, got {config.batch_size}")
    if processes > 1 and config.sync_batch_norm and config.bn_groups > 1:
        raise ValueError(f"bn_groups: expected 1 beside sync_batch_norm, got {config.bn_groups}; --no-sync-batch-norm?")
    if config.grad_cache and config.accumulate == 1:
        raise ValueError("grad_cache: expected accumulate of at least 2, or there is nothing to cache")
