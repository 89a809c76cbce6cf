"""Fixtures of the tests of flows. Everything is in float64 unless a test is about float32."""

from collections.abc import Callable

import pytest
import torch
from tensors import one_thread_and_one_seed as one_thread_and_one_seed
from torch import Tensor, nn


@pytest.fixture
def randomise() -> Callable[..., nn.Module]:
    """Sets random parameters and statistics, since a new flow is close to the identity, which proves little."""

    def of(module: nn.Module, size: float = 0.3) -> nn.Module:
        with torch.no_grad():
            for layer in module.modules():
                # Scaled by the width of a convolution, so that results keep their size.
                width = layer.weight[0].numel() if isinstance(layer, nn.Conv2d) else 1
                for p in layer.parameters(recurse=False):
                    p.add_(size / (width**0.5 if p.dim() == 4 else 1) * torch.randn_like(p))
            for name, buffer in module.named_buffers():
                if name.endswith("running_mean"):
                    buffer.add_(size * torch.randn_like(buffer))
                elif name.endswith("running_var"):
                    buffer.mul_((size * torch.randn_like(buffer)).exp())
        return module

    return of


@pytest.fixture
def log_abs_det() -> Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]:
    """``log |det df/dx|`` of each example, from the Jacobian of f on a batch of this example alone."""

    def of(f: Callable[..., Tensor], x: Tensor, *others: Tensor | None) -> Tensor:
        each = []
        for i in range(x.shape[0]):
            rest = [None if other is None else other[i : i + 1] for other in others]
            jacobian = torch.autograd.functional.jacobian(
                lambda x, rest=rest: f(x, *rest).flatten(), x[i : i + 1], vectorize=True
            )
            each.append(torch.linalg.slogdet(jacobian.flatten(1)).logabsdet)
        return torch.stack(each)

    return of
