"""pnf in normflows: a flow as one of its flows, and flows for couplings, Haar wavelets and the squeeze.

``forward`` of a flow in normflows leads from the latent variable to the data, so here it inverts a flow of pnf.

Example:
    >>> import torch, normflows
    >>> from pnf import ProgressiveFlow
    >>> from pnf.bridges.normflows import WholeFlow
    >>> flow = ProgressiveFlow((1, 4, 4), 1, coupling="dense", hidden=8).eval()
    >>> base = normflows.distributions.DiagGaussian(16, trainable=False)
    >>> model = normflows.NormalizingFlow(base, [WholeFlow(flow)])
    >>> x, log_prob = model.sample(2)
    >>> x.shape, model.log_prob(x).shape
    (torch.Size([2, 1, 4, 4]), torch.Size([2]))
"""

import torch
from torch import Tensor, nn

from pnf import ops
from pnf.bridges import requires
from pnf.bridges._flows import Conditional
from pnf.bridges._layers import Coupling, haar, haar_inverse, haar_log_det
from pnf.flows import ProgressiveFlow, RealNVP

with requires("normflows", "normflows"):
    from normflows.flows import Flow

SPLITS = ("channel", "channel_inv")


class WholeFlow(Flow):
    """A flow of pnf as a flow from noise ``z [B, D]`` to ``x [B, *shape]``.

    Args:
        flow: the flow. In a ``ConditionalNormalizingFlow`` the context is its condition.

    Raises:
        TypeError, ValueError: flow is no flow of pnf, or has two conditions.
    """

    def __init__(self, flow: ProgressiveFlow | RealNVP) -> None:
        super().__init__()
        Conditional(flow)
        self.flow = flow

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return Conditional(self.flow).inverse(z, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return Conditional(self.flow).forward(z, context)


class AffineCoupling(Flow):
    """An affine coupling of halves by pnf's kernel: ``y = x exp(scale * tanh(u)) + shift`` on one half.

    It is ``normflows.flows.AffineCouplingBlock(scale_map="exp")`` with a bounded log-scale. The bound ``scale`` of each
    channel is learned.

    Args:
        channels: C, of the input.
        param_map: the network, from the kept channels, and a context if there is one, to all shifts, then all u.
        split_mode: ``"channel"`` keeps the first half of the channels, the larger one if C is odd; ``"channel_inv"``
            the rest.

    Raises:
        ValueError: the split mode is unknown.
    """

    def __init__(self, channels: int, param_map: nn.Module, split_mode: str = "channel") -> None:
        super().__init__()
        if split_mode not in SPLITS:
            raise ValueError(f"AffineCoupling: split_mode must be {' or '.join(map(repr, SPLITS))}, got {split_mode!r}")
        first = torch.arange(channels) < (channels + 1) // 2
        self.coupling = Coupling(first if split_mode == "channel" else ~first)
        self.param_map = param_map

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.coupling(z, lambda kept: self._raw(kept, context))

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.coupling(z, lambda kept: self._raw(kept, context), inverse=True)

    def _raw(self, kept: Tensor, context: Tensor | None) -> Tensor:
        return self.param_map(kept) if context is None else self.param_map(kept, context)


class Squeeze(Flow):
    """Channels moved into 2x2 pixels, and back by the inverse, equal to ``normflows.flows.Squeeze()``."""

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, float]:  # noqa: ARG002
        return ops.squeeze_inverse(z), 0.0

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, float]:  # noqa: ARG002
        return ops.squeeze(z), 0.0


class Haar(Flow):
    """Images from their means and details: ``[B, 4 C, h, w] -> [B, C, 2 h, 2 w]``, all means first."""

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, float]:  # noqa: ARG002
        return haar_inverse(z), -haar_log_det(z)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, float]:  # noqa: ARG002
        return haar(z), haar_log_det(z)
