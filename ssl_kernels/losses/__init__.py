"""One file a loss. To add one: write its file, then one import and its name in ``LOSSES`` here."""

from ssl_kernels.losses import clip, dcl, info_nce, nt_xent, siglip, sup_con
from ssl_kernels.losses.clip import *  # noqa: F403
from ssl_kernels.losses.dcl import *  # noqa: F403
from ssl_kernels.losses.info_nce import *  # noqa: F403
from ssl_kernels.losses.nt_xent import *  # noqa: F403
from ssl_kernels.losses.siglip import *  # noqa: F403
from ssl_kernels.losses.sup_con import *  # noqa: F403

LOSSES = (nt_xent, clip, siglip, info_nce, dcl, sup_con)
SPECS = {spec.name: spec for loss in LOSSES for spec in (loss.SPEC, *loss.SPEC.variants)}
