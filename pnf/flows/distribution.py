"""A flow as a distribution of :mod:`torch.distributions`."""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from pnf.flows.op_table import OpTable


class Flow(Protocol):
    """What a distribution needs of a flow."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def ops(self) -> OpTable: ...

    @property
    def dims(self) -> int: ...

    def parameters(self) -> Any: ...

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]: ...

    def log_prob(self, x: Tensor, condition: Tensor | None = None) -> Tensor: ...


class FlowDistribution(Distribution):
    """The density of a flow, given a condition if it has one.

    ``event_shape`` is the flow's shape. ``batch_shape`` is that of the conditions, ``[B]``, and empty without one.
    Parameters are the flow's own: gradients flow into them, and what they are changed to holds at once.

    Args:
        flow: the flow.
        condition: ``[*batch_shape, ...]``, conditions as the flow takes them, or None.
        unit: whether samples are in [0, 1].
        batch_shape: the number of equal distributions, of a flow without condition.
        validate_args: whether ``log_prob`` checks shape and support.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 - as the base class declares it
    has_rsample = True

    def __init__(
        self,
        flow: Flow,
        condition: Tensor | None = None,
        *,
        unit: bool,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008 - it is constant
        validate_args: bool | None = None,
    ) -> None:
        self.flow, self.condition, self.unit = flow, condition, unit
        super().__init__(batch_shape, torch.Size(flow.shape), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """[0, 1] or the real numbers, for each entry of an event."""
        each = constraints.unit_interval if self.unit else constraints.real
        return constraints.independent(each, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> "FlowDistribution":
        """The same distribution for a larger batch."""
        batch_shape, condition = torch.Size(batch_shape), self.condition
        torch.empty(()).expand(self.batch_shape).expand(batch_shape)  # raises the error of any other distribution
        if condition is not None:
            condition = condition.expand(batch_shape + condition.shape[len(self.batch_shape) :])
        new = self._get_checked_instance(FlowDistribution, _instance)
        FlowDistribution.__init__(new, self.flow, condition, unit=self.unit, batch_shape=batch_shape)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Samples with a graph to the parameters and the condition: ``[*sample_shape, *batch_shape, *event_shape]``."""
        return self._draw(torch.Size(sample_shape))[0]

    def rsample_and_log_prob(self, sample_shape: Any = torch.Size()) -> tuple[Tensor, Tensor]:  # noqa: B008
        """Samples and their log-densities from one pass: ``log p(x) = log N(z; 0, I) - log |det dx/dz|``.

        The density is that of the exact sample, before its values are rounded or clamped. For images
        :meth:`log_prob` takes a pixel that is nearer than ``2**-24`` to 0 or 1 as this far inside. So for samples with
        such a pixel it is another number, by tens of nats for the bundled models. For the other samples both agree to
        rounding.

        Returns:
            ``[*sample_shape, *batch_shape, *event_shape]`` and ``[*sample_shape, *batch_shape]`` in nats, both with a
            graph.
        """
        x, z, log_det = self._draw(torch.Size(sample_shape))
        return x, self.flow.ops.standard_normal(z).reshape(log_det.shape) - log_det

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Samples without a graph."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """``log p(value)`` in nats: ``[*sample_shape, *batch_shape]``.

        Raises:
            ValueError: value has another shape or, if arguments are validated, is not in the support.
        """
        if value.shape[-len(self.event_shape) :] != self.event_shape:
            wanted = ", ".join(map(str, self.event_shape))
            raise ValueError(f"FlowDistribution: value must be [..., {wanted}], got {list(value.shape)}")
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[: value.dim() - len(self.event_shape)], self.batch_shape)
        x = value.expand(shape + self.event_shape).reshape(-1, *self.event_shape)
        return self.flow.log_prob(x, self._conditions(shape)).reshape(shape)

    def _draw(self, sample_shape: torch.Size) -> tuple[Tensor, Tensor, Tensor]:
        """Samples, their noise ``[-1, D]`` and ``log |det dx/dz|``."""
        shape = sample_shape + self.batch_shape
        like = next(iter(self.flow.parameters()))
        z = torch.randn(shape.numel(), self.flow.dims, dtype=like.dtype, device=like.device)
        x, log_det = self.flow.inverse(z, self._conditions(shape))
        return x.reshape(shape + self.event_shape), z, log_det.reshape(shape)

    def _conditions(self, shape: torch.Size) -> Tensor | None:
        """A condition for each of ``shape`` examples, in one batch."""
        if self.condition is None:
            return None
        rest = self.condition.shape[len(self.batch_shape) :]
        return self.condition.expand(shape + rest).reshape(-1, *rest)
