"""The specification: every op in plain differentiable PyTorch, and the flows bound to them."""

from pnf import flows
from pnf.reference.act_norm import act_norm as act_norm
from pnf.reference.act_norm import act_norm_inverse as act_norm_inverse
from pnf.reference.affine_coupling import affine_coupling as affine_coupling
from pnf.reference.affine_coupling import affine_coupling_inverse as affine_coupling_inverse
from pnf.reference.batch_norm import batch_norm as batch_norm
from pnf.reference.batch_norm_relu import batch_norm_relu as batch_norm_relu
from pnf.reference.conditioner_input import conditioner_input as conditioner_input
from pnf.reference.convolution import convolution as convolution
from pnf.reference.dense_network import dense_network as dense_network
from pnf.reference.haar import haar_merge as haar_merge
from pnf.reference.haar import haar_pyramid as haar_pyramid
from pnf.reference.haar import haar_pyramid_inverse as haar_pyramid_inverse
from pnf.reference.haar import haar_split as haar_split
from pnf.reference.haar_bounded import haar_bounded_merge as haar_bounded_merge
from pnf.reference.haar_bounded import haar_bounded_split as haar_bounded_split
from pnf.reference.lattice import lattice_merge as lattice_merge
from pnf.reference.lattice import lattice_split as lattice_split
from pnf.reference.logit import logit as logit
from pnf.reference.logit import logit_inverse as logit_inverse
from pnf.reference.masking import mask_apply as mask_apply
from pnf.reference.masking import mask_input as mask_input
from pnf.reference.masking import mask_pack as mask_pack
from pnf.reference.masking import mask_unpack as mask_unpack
from pnf.reference.residual_network import residual_network as residual_network
from pnf.reference.residual_network import residual_network_training as residual_network_training
from pnf.reference.squeeze import squeeze as squeeze
from pnf.reference.squeeze import squeeze_inverse as squeeze_inverse
from pnf.reference.standard_normal import standard_normal as standard_normal
from pnf.reference.weight_norm import weight_norm as weight_norm

OPS = flows.OpTable(
    haar_split=haar_split,
    haar_merge=haar_merge,
    haar_bounded_split=haar_bounded_split,
    haar_bounded_merge=haar_bounded_merge,
    lattice_split=lattice_split,
    lattice_merge=lattice_merge,
    act_norm=act_norm,
    act_norm_inverse=act_norm_inverse,
    affine_coupling=affine_coupling,
    affine_coupling_inverse=affine_coupling_inverse,
    batch_norm=batch_norm,
    mask_apply=mask_apply,
    mask_pack=mask_pack,
    mask_unpack=mask_unpack,
    squeeze=squeeze,
    squeeze_inverse=squeeze_inverse,
    standard_normal=standard_normal,
    logit=logit,
    logit_inverse=logit_inverse,
)


class RealNVP(flows.RealNVP):
    __doc__ = flows.RealNVP.__doc__
    ops = OPS


class ProgressiveFlow(flows.ProgressiveFlow):
    __doc__ = flows.ProgressiveFlow.__doc__
    ops = OPS
    flow_class = RealNVP
