"""open_clip's losses: ``from ssl_kernels.compat.open_clip import ClipLoss``.

``open_clip.loss.ClipLoss = ClipLoss`` puts ours where open_clip's training tasks look; its CoCa and distillation losses
work over it too, for it has the methods that they call (``ClipLoss.get_logits``, ``ClipLoss.get_ground_truth``).

The distributed flags mean what they mean there. Recommended is ``ClipLoss(local_loss=True, gather_with_grad=True)``:
the gradient of the whole batch at the least work. Without either, the default, it comes out over ``world_size``; with
``local_loss`` alone it is not the whole batch's at all.
"""

from __future__ import annotations

from torch import Tensor

from ssl_kernels.losses import ClipLoss, SigLipLoss

__all__ = ["ClipLoss", "SigLipLoss", "gather_features"]


def gather_features(
    image_features: Tensor,
    text_features: Tensor,
    local_loss: bool = False,
    gather_with_grad: bool = False,
    rank: int = 0,
    world_size: int = 1,
    use_horovod: bool = False,
) -> tuple[Tensor, Tensor]:
    """The images and the texts of all processes, ``[world_size * N, D]`` each, with the gradient the flags ask for."""
    flags = ClipLoss(local_loss, gather_with_grad, False, rank, world_size, use_horovod)
    return flags.gathered(image_features, text_features)
