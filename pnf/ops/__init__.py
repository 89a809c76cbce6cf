"""Differentiable ops with compiled kernels, for people who build flows; same signatures as in pnf.reference."""

from pnf.ops.haar_bounded import haar_bounded_merge, haar_bounded_split
from pnf.ops.masking import mask_apply, mask_input, mask_pack, mask_unpack
from pnf.ops.standard_normal import standard_normal

__all__ = [
    "haar_bounded_merge",
    "haar_bounded_split",
    "mask_apply",
    "mask_input",
    "mask_pack",
    "mask_unpack",
    "standard_normal",
]
