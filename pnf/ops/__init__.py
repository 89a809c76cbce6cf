"""Differentiable ops with compiled kernels, for people who build flows; same signatures as in pnf.reference."""

from pnf.ops.affine_coupling import affine_coupling, affine_coupling_inverse
from pnf.ops.masking import mask_apply, mask_input, mask_pack, mask_unpack
from pnf.ops.standard_normal import standard_normal

__all__ = [
    "affine_coupling",
    "affine_coupling_inverse",
    "mask_apply",
    "mask_input",
    "mask_pack",
    "mask_unpack",
    "standard_normal",
]
