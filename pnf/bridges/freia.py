"""pnf in FrEIA: a flow as an invertible module, and modules for couplings, Haar wavelets and the squeeze.

Example:
    >>> import torch
    >>> from FrEIA.framework import SequenceINN
    >>> from pnf.bridges.freia import AffineCoupling, Haar
    >>> network = lambda inputs, outputs: torch.nn.Conv2d(inputs, outputs, 3, padding=1)
    >>> model = SequenceINN(1, 8, 8)
    >>> model.append(Haar)
    >>> model.append(AffineCoupling, subnet_constructor=network)
    >>> z, log_det = model(torch.randn(2, 1, 8, 8))
    >>> z.shape, log_det.shape
    (torch.Size([2, 4, 4, 4]), torch.Size([2]))
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pnf import ops
from pnf.bridges import requires
from pnf.bridges._flows import Conditional
from pnf.bridges._layers import Coupling, haar, haar_inverse, haar_log_det
from pnf.flows import ProgressiveFlow, RealNVP
from pnf.flows.shapes import zero_log_det

with requires("FrEIA", "freia"):
    from FrEIA.modules import InvertibleModule

Shapes = Sequence[tuple[int, ...]]
Result = tuple[tuple[Tensor], Tensor | float]


class WholeFlow(InvertibleModule):
    """A flow of pnf as a module from ``x [B, *shape]`` to noise ``z [B, D]``.

    Args:
        dims_in: the shape of the input, that of the flow.
        dims_c: the shape of the condition, if the flow has one.
        flow: the flow.

    Raises:
        TypeError, ValueError: flow is no flow of pnf, has two conditions, or other shapes.
    """

    def __init__(self, dims_in: Shapes, dims_c: Shapes | None = None, *, flow: ProgressiveFlow | RealNVP) -> None:
        super().__init__(dims_in, dims_c)
        if [tuple(dims) for dims in dims_in] != [Conditional(flow).shape]:
            raise ValueError(f"WholeFlow: dims_in must be [{flow.shape}], the shape of the flow, got {list(dims_in)}")
        self.flow = flow

    def forward(
        self,
        x_or_z: Sequence[Tensor],
        c: Sequence[Tensor] | None = None,
        rev: bool = False,
        jac: bool = True,  # noqa: ARG002
    ) -> Result:
        flow = Conditional(self.flow)
        run = flow.inverse if rev else flow.forward
        y, log_det = run(x_or_z[0], c[0] if c else None)
        return (y,), log_det

    def output_dims(self, input_dims: Shapes) -> Shapes:
        return [(math.prod(input_dims[0]),)]


class AffineCoupling(InvertibleModule):
    """Affine couplings of both parts of the channels in turn by pnf's kernel: ``y = x exp(clamp * tanh(u)) + shift``.

    It has the arguments and the numbers of ``FrEIA.modules.GLOWCouplingBlock(clamp_activation="TANH")``, whose networks
    emit u first. To load its weights, swap the halves of the last layers' outputs.

    Args:
        dims_in: the shape of the input, ``(C, ...)``.
        dims_c: the shapes of conditions, with the spatial size of the input.
        subnet_constructor: makes a network, ``(inputs, outputs) -> module``. It emits all shifts, then all u.
        clamp: the bound of the log-scale.
        split_len: the channels of the first part: their number, or a float for their share.
    """

    def __init__(
        self,
        dims_in: Shapes,
        dims_c: Shapes = (),
        subnet_constructor: Callable[[int, int], nn.Module] | None = None,
        clamp: float = 2.0,
        split_len: float = 0.5,
    ) -> None:
        super().__init__(dims_in, dims_c)
        if subnet_constructor is None:
            raise ValueError("AffineCoupling: subnet_constructor must be given")
        channels, conditions = dims_in[0][0], sum(dims[0] for dims in dims_c)
        length = round(channels * split_len) if isinstance(split_len, float) else split_len
        if not 0 < length < channels:
            raise ValueError(
                f"AffineCoupling: split_len must leave both parts some of {channels} channels, got {split_len}"
            )
        first = torch.arange(channels) < length
        self.second, self.first = (Coupling(kept, clamp) for kept in (first, ~first))
        self.subnet1 = subnet_constructor(length + conditions, 2 * (channels - length))
        self.subnet2 = subnet_constructor(channels - length + conditions, 2 * length)

    def forward(
        self,
        x_or_z: Sequence[Tensor],
        c: Sequence[Tensor] | None = None,
        rev: bool = False,
        jac: bool = True,  # noqa: ARG002
    ) -> Result:
        x, log_det = x_or_z[0], zero_log_det(x_or_z[0])
        steps = [(self.first, self.subnet2), (self.second, self.subnet1)]
        for coupling, subnet in reversed(steps) if rev else steps:

            def network(kept: Tensor, subnet: nn.Module = subnet) -> Tensor:
                return subnet(torch.cat((kept, *c), 1) if c else kept)

            x, log_det = coupling(x, network, rev, log_det)
        return (x,), log_det

    def output_dims(self, input_dims: Shapes) -> Shapes:
        return input_dims


class Squeeze(InvertibleModule):
    """The squeeze of 2x2 pixels into channels, equal to ``FrEIA.modules.IRevNetDownsampling``."""

    def forward(
        self,
        x_or_z: Sequence[Tensor],
        c: Sequence[Tensor] | None = None,  # noqa: ARG002
        rev: bool = False,
        jac: bool = True,  # noqa: ARG002
    ) -> Result:
        return ((ops.squeeze_inverse if rev else ops.squeeze)(x_or_z[0]),), 0.0

    def output_dims(self, input_dims: Shapes) -> Shapes:
        return _quartered("Squeeze", input_dims)


class Haar(InvertibleModule):
    """Means and details of 2x2 pixels as channels, equal to ``FrEIA.modules.HaarDownsampling``.

    Args:
        dims_in, dims_c: the shapes of the input and of conditions, which have no effect.
        order_by_wavelet: whether all means come first, or the four channels of each channel stay together.
        rebalance: the factor of all entries. The mean of four pixels has 0.5, an orthonormal transform 1.
    """

    def __init__(
        self, dims_in: Shapes, dims_c: Shapes | None = None, order_by_wavelet: bool = False, rebalance: float = 1.0
    ) -> None:
        super().__init__(dims_in, dims_c)
        if rebalance == 0:
            raise ValueError("Haar: rebalance must not be 0")
        self.by_wavelet, self.factor = order_by_wavelet, 2 * rebalance

    def forward(
        self,
        x_or_z: Sequence[Tensor],
        c: Sequence[Tensor] | None = None,  # noqa: ARG002
        rev: bool = False,
        jac: bool = True,  # noqa: ARG002
    ) -> Result:
        (x,) = x_or_z
        log_det = haar_log_det(x) + math.log(abs(self.factor)) * math.prod(x.shape[1:])
        if rev:
            x = haar_inverse(x, by_wavelet=self.by_wavelet)
            return (x if self.factor == 1 else x / self.factor,), -log_det
        y = haar(x, by_wavelet=self.by_wavelet)
        return (y if self.factor == 1 else y * self.factor,), log_det

    def output_dims(self, input_dims: Shapes) -> Shapes:
        return _quartered("Haar", input_dims)


def _quartered(name: str, dims: Shapes) -> Shapes:
    """The shape of images whose 2x2 pixels are channels."""
    if len(dims) != 1 or len(dims[0]) != 3 or dims[0][1] % 2 or dims[0][2] % 2:
        raise ValueError(f"{name}: the input must be (C, H, W) with an even height and width, got {list(dims)}")
    c, h, w = dims[0]
    return [(4 * c, h // 2, w // 2)]
