"""The flows on compiled ops: a drop-in for those of :mod:`pnf.reference`, with the same parameters and results."""

import torch
from torch import Tensor

from pnf import flows, ops
from pnf.fast import networks

OPS = flows.OpTable(**{name: getattr(ops, name) for name in flows.OpTable._fields})


class RealNVP(flows.RealNVP):
    __doc__ = flows.RealNVP.__doc__
    ops = OPS
    residual_network = networks.ResidualNetwork
    dense_network = networks.DenseNetwork
    conv_network = networks.ConvNetwork
    conv_encoder = networks.ConvEncoder
    memory_format = torch.channels_last

    def forward(
        self, x: Tensor, condition: Tensor | None = None, features: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling():
            return super().forward(x, condition, features)
        with networks.tracked_together():
            return super().forward(x, condition, features)

    forward.__doc__ = flows.RealNVP.forward.__doc__


class ProgressiveFlow(flows.ProgressiveFlow):
    __doc__ = flows.ProgressiveFlow.__doc__
    ops = OPS
    flow_class = RealNVP
