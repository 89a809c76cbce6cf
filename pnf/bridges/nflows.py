"""pnf in nflows: a flow as a transform, and transforms for couplings, Haar wavelets and the squeeze.

Example:
    >>> import torch
    >>> from nflows.distributions import StandardNormal
    >>> from nflows.flows import Flow
    >>> from pnf import ProgressiveFlow
    >>> from pnf.bridges.nflows import FlowTransform
    >>> flow = ProgressiveFlow((1, 4, 4), 1, condition_shape=(3,), coupling="dense", hidden=8).eval()
    >>> model = Flow(FlowTransform(flow), StandardNormal((16,)))
    >>> model.sample(2, torch.randn(5, 3)).shape, model.log_prob(torch.rand(5, 1, 4, 4), torch.randn(5, 3)).shape
    (torch.Size([5, 2, 1, 4, 4]), torch.Size([5]))
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pnf import ops
from pnf.bridges import requires
from pnf.bridges._flows import Conditional
from pnf.bridges._layers import Coupling, haar, haar_inverse, haar_log_det
from pnf.flows import ProgressiveFlow, RealNVP

with requires("nflows", "nflows"):
    from nflows.transforms import Transform


class FlowTransform(Transform):
    """A flow of pnf as a transform of ``x [B, *shape]`` into noise ``z [B, D]``.

    ``nflows.flows.Flow(FlowTransform(flow), StandardNormal((D,)))`` is the density of the flow. A context is the flow's
    condition.

    Args:
        flow: the flow.

    Raises:
        TypeError, ValueError: flow is no flow of pnf, or has two conditions.
    """

    def __init__(self, flow: ProgressiveFlow | RealNVP) -> None:
        super().__init__()
        Conditional(flow)
        self.flow = flow

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return Conditional(self.flow).forward(inputs, context)

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return Conditional(self.flow).inverse(inputs, context)


class AffineCoupling(Transform):
    """An affine coupling by pnf's kernel: ``y = x exp(scale * tanh(u)) + shift`` where the mask is positive.

    It takes the arguments of ``nflows.transforms.AffineCouplingTransform`` and differs in the map of the scale, which
    there is ``sigmoid(u + 2) + 0.001``. The bound ``scale`` of each channel is learned.

    Args:
        mask: ``[C]``, positive for each channel or feature to transform. With halves one pass does it all.
        transform_net_create_fn: makes the network, ``(kept, 2 * transformed) -> module``, called with the kept channels
            and the context. It emits all shifts, then all u.
    """

    def __init__(self, mask: Tensor | Sequence[int], transform_net_create_fn: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.coupling = Coupling(torch.as_tensor(mask) <= 0)
        self.transform_net = transform_net_create_fn(len(self.coupling.kept), 2 * len(self.coupling.moved))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.coupling(inputs, lambda kept: self.transform_net(kept, context))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.coupling(inputs, lambda kept: self.transform_net(kept, context), inverse=True)


class Squeeze(Transform):
    """The squeeze of 2x2 pixels into channels, equal to ``nflows.transforms.SqueezeTransform()``."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        return ops.squeeze(inputs), inputs.new_zeros(inputs.shape[0])

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        return ops.squeeze_inverse(inputs), inputs.new_zeros(inputs.shape[0])


class Haar(Transform):
    """Means and details of 2x2 pixels as channels, all means first: ``[B, C, 2 h, 2 w] -> [B, 4 C, h, w]``."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        return haar(inputs), inputs.new_full((inputs.shape[0],), haar_log_det(inputs))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        return haar_inverse(inputs), inputs.new_full((inputs.shape[0],), -haar_log_det(inputs))
