"""pnf in zuko: a flow as a lazy distribution or transformation, and the coupling of vectors.

Example:
    >>> import torch, zuko
    >>> from pnf import ProgressiveFlow
    >>> from pnf.bridges.zuko import AffineCoupling, LazyFlow
    >>> flow = LazyFlow(ProgressiveFlow((1, 4, 4), 1, condition_shape=(3,), coupling="dense", hidden=8))
    >>> flow(torch.randn(5, 3)).sample((2,)).shape
    torch.Size([2, 5, 1, 4, 4])
    >>> base = zuko.lazy.UnconditionalDistribution(zuko.distributions.DiagNormal, torch.zeros(6), torch.ones(6))
    >>> zuko.lazy.Flow([AffineCoupling(6, context=3)], base)(torch.randn(3)).log_prob(torch.randn(7, 6)).shape
    torch.Size([7])
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Transform, constraints

from pnf.bridges import requires
from pnf.bridges._flows import Conditional
from pnf.bridges._layers import Coupling
from pnf.flows import ProgressiveFlow, RealNVP
from pnf.flows.distribution import FlowDistribution

with requires("zuko", "zuko"):
    import zuko

Direction = Callable[[Tensor], tuple[Tensor, Tensor]]


class LazyFlow(zuko.lazy.LazyDistribution):
    """A flow of pnf as a lazy distribution: ``LazyFlow(flow)(c)`` is ``p(x | c)``.

    Args:
        flow: the flow. A context c may have any leading dims before the shape of its condition; labels are integers.

    Raises:
        TypeError, ValueError: flow is no flow of pnf, has two conditions, or samples that leave its support.
    """

    def __init__(self, flow: ProgressiveFlow | RealNVP) -> None:
        super().__init__()
        Conditional(flow).unit()  # raises if there is no support
        self.flow = flow

    def forward(self, c: Tensor | None = None) -> FlowDistribution:
        return Conditional(self.flow).distribution(c)


class LazyFlowTransform(zuko.lazy.LazyTransform):
    """A flow of pnf as a lazy transformation of ``x [*, *shape]`` into noise ``z [*, D]``, to be one of several.

    Args:
        flow: the flow. Leading dims of a context and of x are broadcast. In a ``zuko.lazy.Flow`` the context must be a
            vector, since zuko takes its last dim for the features.

    Raises:
        TypeError, ValueError: flow is no flow of pnf, has two conditions, or samples that leave its support.
    """

    def __init__(self, flow: ProgressiveFlow | RealNVP) -> None:
        super().__init__()
        Conditional(flow).unit()  # raises if there is no support
        self.flow = flow

    def forward(self, c: Tensor | None = None) -> Transform:
        flow = Conditional(self.flow)
        shape, latent = torch.Size(flow.shape), torch.Size((flow.dims,))

        def batched(function: Callable[..., tuple[Tensor, Tensor]], inner: Size, outer: Size) -> Direction:
            def run(x: Tensor) -> tuple[Tensor, Tensor]:
                leading, rest = x.shape[: x.dim() - len(inner)], Size()
                if c is not None:
                    rest = c.shape[len(flow.batch_shape(c)) :]
                    leading = torch.broadcast_shapes(leading, flow.batch_shape(c))
                x = x.expand(leading + inner).reshape(-1, *inner)
                given = None if c is None else c.expand(leading + rest).reshape(-1, *rest)
                y, log_det = function(x, given)
                return y.reshape(leading + outer), log_det.reshape(leading)

            return run

        return _Bijection(
            batched(flow.forward, shape, latent), batched(flow.inverse, latent, shape), shape, latent, flow.unit()
        )


class AffineCoupling(zuko.lazy.LazyTransform):
    """An affine coupling of vectors by pnf's kernel: ``y = x exp(scale * tanh(u)) + shift`` where the mask is False.

    It takes the arguments of ``zuko.flows.coupling.GeneralCouplingTransform``. The network emits all shifts, then all
    u. The bound ``scale`` of each feature is learned.

    Args:
        features: the number of features.
        context: the number of features of the context.
        mask: ``[features]``, True for each feature to keep. By default every second one.
        kwargs: arguments of ``zuko.nn.MLP``.

    Raises:
        ValueError: the mask has another shape, or keeps no feature or all of them.
    """

    def __init__(self, features: int, context: int = 0, mask: Tensor | None = None, **kwargs: Any) -> None:
        super().__init__()
        kept = torch.arange(features) % 2 == 1 if mask is None else torch.as_tensor(mask, dtype=torch.bool)
        count = int(kept.sum())
        if kept.shape != (features,) or not 0 < count < features:
            raise ValueError(
                f"AffineCoupling: mask must be [{features}] and keep some features but not all, got {kept.tolist()}"
            )
        self.coupling = Coupling(kept)
        self.hyper = zuko.nn.MLP(count + context, 2 * (features - count), **kwargs)

    def forward(self, c: Tensor | None = None) -> Transform:
        def couple(inverse: bool) -> Direction:
            def run(x: Tensor) -> tuple[Tensor, Tensor]:
                leading = x.shape[:-1] if c is None else torch.broadcast_shapes(x.shape[:-1], c.shape[:-1])
                flat = x.expand(*leading, x.shape[-1]).reshape(-1, x.shape[-1])
                given = None if c is None else c.expand(*leading, c.shape[-1]).reshape(-1, c.shape[-1])

                def network(kept: Tensor) -> Tensor:
                    return self.hyper(kept if given is None else torch.cat((kept, given), 1))

                y, log_det = self.coupling(flat, network, inverse)
                return y.reshape(*leading, x.shape[-1]), log_det.reshape(leading)

            return run

        shape = torch.Size((len(self.coupling.kept) + len(self.coupling.moved),))
        return _Bijection(couple(False), couple(True), shape, shape)


class _Bijection(Transform):
    """A transform from two functions that return values and log-determinants."""

    bijective = True

    def __init__(
        self, there: Direction, back: Direction, shape: Size, other: Size, unit: bool = False, other_unit: bool = False
    ) -> None:
        super().__init__()
        self.there, self.back, self.shape, self.other = there, back, shape, other
        self.unit, self.other_unit = unit, other_unit

    @property
    def domain(self) -> constraints.Constraint:  # type: ignore[override]
        each = constraints.unit_interval if self.unit else constraints.real
        return constraints.independent(each, len(self.shape))

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        return self.inv.domain

    @property
    def inv(self) -> "_Bijection":
        # The default would compute x -> y again for the log-determinant of y -> x.
        return _Bijection(self.back, self.there, self.other, self.shape, self.other_unit, self.unit)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and ``log |det dy/dx|``."""
        return self.there(x)

    def _call(self, x: Tensor) -> Tensor:
        return self.there(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.back(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return self.there(x)[1]

    def forward_shape(self, shape: Any) -> Size:
        return torch.Size(shape)[: len(shape) - len(self.shape)] + self.other

    def inverse_shape(self, shape: Any) -> Size:
        return torch.Size(shape)[: len(shape) - len(self.other)] + self.shape
