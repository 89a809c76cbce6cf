"""Differentiable ops with compiled kernels, for people who build flows; same signatures as in pnf.reference."""

from pnf.ops.batch_norm_relu import batch_norm_relu
from pnf.ops.conditioner_input import conditioner_input
from pnf.ops.logit import logit, logit_inverse
from pnf.ops.masking import mask_apply, mask_input, mask_pack, mask_unpack
from pnf.ops.squeeze import squeeze, squeeze_inverse
from pnf.ops.standard_normal import standard_normal

__all__ = [
    "batch_norm_relu",
    "conditioner_input",
    "logit",
    "logit_inverse",
    "mask_apply",
    "mask_input",
    "mask_pack",
    "mask_unpack",
    "squeeze",
    "squeeze_inverse",
    "standard_normal",
]
