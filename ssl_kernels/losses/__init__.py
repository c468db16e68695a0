"""One file a loss. To add one: write its file, then one import and its name in ``LOSSES`` here."""

from ssl_kernels.losses import (
    byol,
    clip,
    dcl,
    dino,
    dino_head,
    ibot,
    info_nce,
    koleo,
    negative_cosine,
    nt_xent,
    siglip,
    simsiam,
    sup_con,
    t_simcne,
    uniformity,
)
from ssl_kernels.losses.byol import *  # noqa: F403
from ssl_kernels.losses.center import *  # noqa: F403
from ssl_kernels.losses.clip import *  # noqa: F403
from ssl_kernels.losses.dcl import *  # noqa: F403
from ssl_kernels.losses.dino import *  # noqa: F403
from ssl_kernels.losses.dino_head import *  # noqa: F403
from ssl_kernels.losses.ibot import *  # noqa: F403
from ssl_kernels.losses.info_nce import *  # noqa: F403
from ssl_kernels.losses.koleo import *  # noqa: F403
from ssl_kernels.losses.negative_cosine import *  # noqa: F403
from ssl_kernels.losses.nt_xent import *  # noqa: F403
from ssl_kernels.losses.siglip import *  # noqa: F403
from ssl_kernels.losses.simsiam import *  # noqa: F403
from ssl_kernels.losses.sinkhorn import *  # noqa: F403
from ssl_kernels.losses.sup_con import *  # noqa: F403
from ssl_kernels.losses.t_simcne import *  # noqa: F403
from ssl_kernels.losses.uniformity import *  # noqa: F403

LOSSES = (
    nt_xent, clip, siglip, info_nce, dcl, sup_con, negative_cosine, byol, simsiam, t_simcne, koleo, uniformity,
    dino, ibot, dino_head,
)  # fmt: skip
SPECS = {spec.name: spec for loss in LOSSES for spec in (loss.SPEC, *loss.SPEC.variants)}
