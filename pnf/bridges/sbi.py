"""pnf in sbi: a flow as a conditional density estimator, for posteriors (NPE) and likelihoods (NLE).

::

    from functools import partial
    from sbi.inference import NPE
    from pnf.bridges.sbi import build_posterior

    inference = NPE(prior, density_estimator=partial(build_posterior, embedding_net=network))
    inference.append_simulations(theta, x).train()
    samples = inference.build_posterior().sample((1000,), x=observation)
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from pnf.bridges import requires
from pnf.bridges._flows import Conditional
from pnf.fast import RealNVP
from pnf.flows import ProgressiveFlow
from pnf.flows import RealNVP as AnyRealNVP

with requires("sbi", "sbi"):
    from sbi.neural_nets.estimators import ConditionalDensityEstimator

FIRST_BATCH = 1024
"""The most simulations that set the first scale of a flow."""


class FlowEstimator(ConditionalDensityEstimator):
    """A flow of pnf as an estimator of ``p(input | condition)``.

    Args:
        flow: the flow of inputs, which takes what ``embedding_net`` returns as its condition.
        embedding_net: a network of the condition, such as a convolutional one for images. By default there is none.
        condition_shape: the shape of a condition, if there is a network of it.
        shift, scale: if given, the flow sees ``(input - shift) / scale``, numbers or tensors of an input's shape; scale
            is positive.

    Raises:
        TypeError, ValueError: flow is no flow of pnf, has no condition or two, samples that leave its support, or a
            scale that is not positive.
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        flow: ProgressiveFlow | AnyRealNVP,
        embedding_net: nn.Module | None = None,
        condition_shape: tuple[int, ...] | None = None,
        *,
        shift: Tensor | float = 0.0,
        scale: Tensor | float = 1.0,
    ) -> None:
        conditional = Conditional(flow)
        conditional.unit()  # raises if there is no support
        own_shape = conditional.condition_shape
        if own_shape is None:
            raise ValueError("FlowEstimator: flow must have a vector or a map as its condition")
        if not (torch.as_tensor(scale) > 0).all():  # also if it is NaN
            raise ValueError("FlowEstimator: scale must be positive")
        super().__init__(flow, torch.Size(flow.shape), torch.Size(condition_shape or own_shape))
        self._embedding_net = nn.Identity() if embedding_net is None else embedding_net
        like = next(flow.parameters())
        for name, value in (("shift", shift), ("scale", scale)):
            moment = torch.as_tensor(value, dtype=like.dtype, device=like.device)
            self.register_buffer(name, moment.expand(flow.shape).clone())

    @property
    def embedding_net(self) -> nn.Module:
        return self._embedding_net

    def log_prob(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:  # noqa: A002, ARG002
        x, features = self._aligned(input, condition)
        log_prob = Conditional(self.net).log_prob(x.flatten(0, 1), features.flatten(0, 1))
        return log_prob.reshape(x.shape[:2]) - self.scale.log().sum()

    def loss(self, input: Tensor, condition: Tensor, **kwargs: Any) -> Tensor:  # noqa: A002, ARG002
        return -self.log_prob(input.unsqueeze(0), condition)[0]

    def sample(self, sample_shape: Any, condition: Tensor, **kwargs: Any) -> Tensor:  # noqa: ARG002
        with torch.no_grad():
            return self.sample_and_log_prob(sample_shape, condition)[0]

    def sample_and_log_prob(
        self,
        sample_shape: Any,
        condition: Tensor,
        **kwargs: Any,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        self._check_condition_shape(condition)
        features = self.embedding_net(condition)
        x, log_prob = Conditional(self.net).distribution(features).rsample_and_log_prob(torch.Size(sample_shape))
        return x * self.scale + self.shift, log_prob - self.scale.log().sum()

    def inverse_transform(self, input: Tensor, condition: Tensor) -> Tensor:  # noqa: A002
        """The noise ``[*, D]`` of inputs ``[*, *input_shape]``, standard normal if the estimator is right.

        The leading dims of inputs and conditions are broadcast.
        """
        self._check_input_shape(input)
        self._check_condition_shape(condition)
        dims = len(self.condition_shape)
        leading = condition.shape[: condition.dim() - dims]
        features = self.embedding_net(condition.reshape(-1, *self.condition_shape))
        features = features.reshape(*leading, *features.shape[1:])
        leading = torch.broadcast_shapes(input.shape[: input.dim() - len(self.input_shape)], leading)
        x = ((input - self.shift) / self.scale).expand(*leading, *self.input_shape).reshape(-1, *self.input_shape)
        rest = features.shape[condition.dim() - dims :]
        z, _ = Conditional(self.net).forward(x, features.expand(*leading, *rest).reshape(-1, *rest))
        return z.reshape(*leading, -1)

    def _aligned(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised inputs and features of conditions, both ``[samples, batch, ...]``."""
        self._check_input_shape(x)
        self._check_condition_shape(condition)
        if x.dim() <= len(self.input_shape) + 1:
            x = x.unsqueeze(0)
        if condition.dim() <= len(self.condition_shape) + 1:
            condition = condition.unsqueeze(0)
        features = self.embedding_net(condition.flatten(0, 1))
        features = features.reshape(*condition.shape[:2], *features.shape[1:])
        leading = torch.broadcast_shapes(x.shape[:2], condition.shape[:2])
        x = ((x - self.shift) / self.scale).expand(*leading, *self.input_shape)
        return x, features.expand(*leading, *features.shape[2:])


def build_posterior(theta: Tensor, x: Tensor, embedding_net: nn.Module | None = None, **settings: Any) -> FlowEstimator:
    """Build the estimator of ``p(theta | x)`` for ``NPE(density_estimator=build_posterior)``.

    Args:
        theta, x: simulations, which give shapes and scales. Both are standardised: vectors entry by entry, images and
            others of more dims as a whole.
        embedding_net: a network of standardised x, returning ``[B, F]``. By default x is flattened.
        settings: of :class:`pnf.RealNVP`. Default: ``coupling="dense"``, ``hidden=64``.
    """
    return _build(theta, x, embedding_net, settings)


def build_likelihood(
    theta: Tensor, x: Tensor, embedding_net: nn.Module | None = None, **settings: Any
) -> FlowEstimator:
    """Build the estimator of ``p(x | theta)`` for ``NLE(density_estimator=build_likelihood)``.

    The arguments are those of :func:`build_posterior`, with a network of theta.
    """
    return _build(x, theta, embedding_net, settings)


class _Standardize(nn.Module):
    """``(x - shift) / scale``."""

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


def _build(
    inputs: Tensor, conditions: Tensor, embedding_net: nn.Module | None, settings: dict[str, Any]
) -> FlowEstimator:
    embedding = nn.Sequential(_Standardize(*_moments(conditions)), embedding_net or nn.Flatten())
    with torch.no_grad():
        features = embedding(conditions[:2])
    if features.dim() != 2:
        raise ValueError(f"embedding_net must return [B, F], got {list(features.shape)}")
    given = {"coupling": "dense", "hidden": 64, **settings}
    flow = RealNVP(inputs.shape[1:], features=features.shape[1], **given).to(inputs.device, inputs.dtype)
    shift, scale = _moments(inputs)
    estimator = FlowEstimator(flow, embedding, tuple(conditions.shape[1:]), shift=shift, scale=scale)
    # ActNorm learns from the first batch, and sbi begins with one of two simulations.
    with torch.no_grad():
        estimator.loss(inputs[:FIRST_BATCH], conditions[:FIRST_BATCH])
    return estimator


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the deviation of finite entries, 1 for constants: of each entry of vectors, else of all."""
    finite = x[x.reshape(len(x), -1).isfinite().all(1)]
    dims = [0] if x.dim() == 2 else list(range(x.dim()))
    var, mean = torch.var_mean(finite, dims, correction=0)
    scale = var.sqrt()
    return mean, torch.where(scale > math.sqrt(torch.finfo(x.dtype).tiny), scale, 1)
