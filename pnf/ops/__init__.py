"""Differentiable ops with compiled kernels, for other flows too. Signatures are those of ``pnf.reference``."""

from pnf.ops._heap import keep_freed_memory
from pnf.ops.act_norm import act_norm, act_norm_inverse
from pnf.ops.affine_coupling import affine_coupling, affine_coupling_inverse
from pnf.ops.batch_norm import batch_norm
from pnf.ops.batch_norm_relu import batch_norm_relu
from pnf.ops.conditioner_input import conditioner_input
from pnf.ops.convolution import convolution
from pnf.ops.dense_network import dense_network
from pnf.ops.haar import haar_merge, haar_pyramid, haar_pyramid_inverse, haar_split
from pnf.ops.haar_bounded import haar_bounded_merge, haar_bounded_split
from pnf.ops.lattice import lattice_merge, lattice_split
from pnf.ops.logit import logit, logit_inverse
from pnf.ops.masking import mask_apply, mask_input, mask_pack, mask_unpack
from pnf.ops.residual_network import residual_network, residual_network_training
from pnf.ops.squeeze import squeeze, squeeze_inverse
from pnf.ops.standard_normal import standard_normal
from pnf.ops.weight_norm import weight_norm

__all__ = [
    "act_norm",
    "act_norm_inverse",
    "affine_coupling",
    "affine_coupling_inverse",
    "batch_norm",
    "batch_norm_relu",
    "conditioner_input",
    "convolution",
    "dense_network",
    "haar_bounded_merge",
    "haar_bounded_split",
    "haar_merge",
    "haar_pyramid",
    "haar_pyramid_inverse",
    "haar_split",
    "lattice_merge",
    "lattice_split",
    "logit",
    "logit_inverse",
    "mask_apply",
    "mask_input",
    "mask_pack",
    "mask_unpack",
    "residual_network",
    "residual_network_training",
    "squeeze",
    "squeeze_inverse",
    "standard_normal",
    "weight_norm",
]

keep_freed_memory()
