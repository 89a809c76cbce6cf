"""Whole flows under one signature, whatever their condition is."""

from typing import Any

import torch
from torch import Size, Tensor

from pnf.flows import ProgressiveFlow, RealNVP
from pnf.flows.distribution import FlowDistribution
from pnf.flows.op_table import OpTable


class Conditional:
    """A flow whose condition is one tensor: labels, a vector, a map, or the features of a :class:`RealNVP`.

    Args:
        flow: the flow.

    Raises:
        TypeError: flow is no flow of pnf.
        ValueError: flow is a :class:`RealNVP` with two conditions.
    """

    def __init__(self, flow: ProgressiveFlow | RealNVP) -> None:
        if not isinstance(flow, ProgressiveFlow | RealNVP):
            raise TypeError(f"pnf.bridges: flow must be a ProgressiveFlow or a RealNVP, got {type(flow).__name__}")
        self.flow = flow
        self.name, self.condition_shape = "condition", flow.condition_shape
        if isinstance(flow, RealNVP) and flow.features:
            if flow.condition_shape is not None:
                raise ValueError("pnf.bridges: flow must have either condition_shape or features, got both")
            self.name, self.condition_shape = "features", (flow.features,)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.flow.shape

    @property
    def dims(self) -> int:
        return self.flow.dims

    @property
    def ops(self) -> OpTable:
        return self.flow.ops

    def unit(self) -> bool:
        """Whether samples are in [0, 1].

        Raises:
            ValueError: they can leave the support.
        """
        return self.flow.unit_samples

    def parameters(self) -> Any:
        return self.flow.parameters()

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.flow(x, **self._given(condition))

    def inverse(self, z: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.flow.inverse(z, **self._given(condition))

    def log_prob(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.flow.log_prob(x, **self._given(condition))

    def batch_shape(self, condition: Tensor | None) -> Size:
        """The leading dims of a condition: all of them for labels."""
        if condition is None:
            return torch.Size()
        return condition.shape[: condition.dim() - len(self.condition_shape or ())]

    def distribution(self, condition: Tensor | None, kind: type[FlowDistribution] = FlowDistribution) -> Any:
        """The flow as a distribution, with a batch of any dims for a condition of any leading dims.

        Raises:
            ValueError: samples can leave the support.
        """
        return kind(self, condition, unit=self.unit(), batch_shape=self.batch_shape(condition))

    def _given(self, condition: Tensor | None) -> dict[str, Tensor]:
        return {} if condition is None else {self.name: condition}
