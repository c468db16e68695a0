"""Losses of self-supervised contrastive learning, computed without ever storing the similarity matrix."""

from ssl_kernels.backends import use_backend
from ssl_kernels.ema import *  # noqa: F403
from ssl_kernels.losses import *  # noqa: F403
from ssl_kernels.memory_queue import *  # noqa: F403

__version__ = "0.1.0"
