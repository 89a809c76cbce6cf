"""pnf in Pyro: the distribution of a flow for ``pyro.sample``, as a prior or a likelihood of images.

Example:
    >>> import torch, pyro
    >>> from pnf import ProgressiveFlow
    >>> from pnf.bridges.pyro import distribution
    >>> flow = ProgressiveFlow((1, 4, 4), 1, num_classes=3, coupling="dense", hidden=8).eval()
    >>> def model(labels):
    ...     with pyro.plate("images", len(labels)):
    ...         return pyro.sample("x", distribution(flow, labels))
    >>> model(torch.tensor([0, 2])).shape
    torch.Size([2, 1, 4, 4])
"""

from torch import Tensor

from pnf.bridges import requires
from pnf.bridges._flows import Conditional
from pnf.flows import ProgressiveFlow, RealNVP
from pnf.flows import distribution as _flows

with requires("pyro", "pyro"):
    from pyro.distributions.torch_distribution import TorchDistributionMixin


class FlowDistribution(_flows.FlowDistribution, TorchDistributionMixin):
    """The density of a flow with the methods of Pyro's distributions: ``to_event``, ``mask``, ``expand_by``."""

    expand = _flows.FlowDistribution.expand


def distribution(flow: ProgressiveFlow | RealNVP, condition: Tensor | None = None) -> FlowDistribution:
    """The flow as a distribution of Pyro, with a batch of distributions for conditions.

    Its parameters are those of the flow. ``pyro.module("flow", flow)`` in a model lets Pyro train them.

    Args:
        flow: the flow.
        condition: labels ``[*]``, or vectors or maps with any leading dims.

    Raises:
        TypeError, ValueError: flow is no flow of pnf, has two conditions, or samples that leave its support.
    """
    made: FlowDistribution = Conditional(flow).distribution(condition, FlowDistribution)
    return made
