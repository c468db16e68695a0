"""One file a loss. To add one: write its file, then one import and one entry in ``SPECS`` here."""

from ssl_kernels.losses import nt_xent
from ssl_kernels.losses.nt_xent import *  # noqa: F403

SPECS = {module.SPEC.name: module.SPEC for module in (nt_xent,)}
