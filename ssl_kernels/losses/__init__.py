"""One file a loss. To add one: write its file, then one import and its name in ``LOSSES`` here."""

from ssl_kernels.losses import nt_xent
from ssl_kernels.losses.nt_xent import *  # noqa: F403

LOSSES = (nt_xent,)
SPECS = {spec.name: spec for loss in LOSSES for spec in (loss.SPEC, *loss.SPEC.variants)}
