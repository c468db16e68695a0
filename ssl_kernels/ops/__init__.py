r"""The waist: reductions over a similarity matrix that is never stored, as differentiable ``torch.library`` ops.

Everything above (losses, methods) speaks to these functions; everything below (backends) implements them. Schemas,
argument checks, shapes without data (fake), gradients and autocast live here, once, and nowhere else: one file an
operation, ``checks`` and ``library`` are what they share.
"""

from ssl_kernels.ops.across import Reduced, cross_lse
from ssl_kernels.ops.aligned import cosine
from ssl_kernels.ops.averaging import average_
from ssl_kernels.ops.biased import biased_lse
from ssl_kernels.ops.checks import (
    FLOATS,
    accumulate_dtype,
    check_alike,
    check_not_empty,
    check_number,
    check_pairs,
    check_parts,
    check_rows,
    check_views,
    check_width,
)
from ssl_kernels.ops.cross_mean import cross_softplus_mean
from ssl_kernels.ops.distances import student_lse
from ssl_kernels.ops.log_distance import log_distance
from ssl_kernels.ops.neighbours import nearest
from ssl_kernels.ops.pairwise import pair_softplus
from ssl_kernels.ops.prototypes import prototype_cross_entropy, prototype_lse
from ssl_kernels.ops.ring import enqueue_
from ssl_kernels.ops.views import view_cross_entropy, view_cross_entropy_sum
from ssl_kernels.ops.within import mean_log_share, self_lse, softplus_mean

__all__ = [
    "FLOATS",
    "Reduced",
    "accumulate_dtype",
    "average_",
    "biased_lse",
    "check_alike",
    "check_not_empty",
    "check_number",
    "check_pairs",
    "check_parts",
    "check_rows",
    "check_views",
    "check_width",
    "cosine",
    "cross_lse",
    "cross_softplus_mean",
    "enqueue_",
    "log_distance",
    "mean_log_share",
    "nearest",
    "pair_softplus",
    "prototype_cross_entropy",
    "prototype_lse",
    "self_lse",
    "softplus_mean",
    "student_lse",
    "view_cross_entropy",
    "view_cross_entropy_sum",
]
