"""What the tests of all libraries share: small flows of pnf, and checks of their layers, in float64."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pnf import fast

EXACT = {"rtol": 1e-12, "atol": 1e-12}

FLOWS: dict[str, Callable[[], nn.Module]] = {
    "images": lambda: fast.ProgressiveFlow((2, 4, 4), 1, coupling="dense", hidden=4),
    "labels": lambda: fast.ProgressiveFlow((1, 4, 4), 1, num_classes=3, hidden=4, blocks=1, num_couplings=1),
    "vector": lambda: fast.ProgressiveFlow((4,), 1, condition_shape=(3,), support="real", coupling="dense", hidden=4),
    "map": lambda: fast.ProgressiveFlow((1, 4, 4), 1, condition_shape=(2, 4, 4), coupling="dense", hidden=4),
    "features": lambda: fast.RealNVP((5,), features=3, coupling="dense", hidden=4),
    "real images": lambda: fast.RealNVP((1, 4, 4), hidden=4, blocks=1, num_couplings=1, alpha=0.0),
}


@pytest.fixture(params=FLOWS)
def flow(request: pytest.FixtureRequest) -> Any:
    """A flow with random parameters, which no first batch sets any more."""
    return randomised(FLOWS[request.param]()).eval()


def randomised(module: nn.Module) -> Any:
    module = module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return module


def condition_of(flow: Any, *leading: int) -> Tensor | None:
    """Random conditions with any leading dims."""
    if getattr(flow, "num_classes", None):
        return torch.randint(flow.num_classes, leading)
    shape = (flow.features,) if getattr(flow, "features", 0) else flow.condition_shape
    return None if shape is None else torch.randn(*leading, *shape, dtype=torch.float64)


def given(flow: Any, condition: Tensor | None) -> dict[str, Tensor]:
    """The keyword argument by which the flow itself takes a condition."""
    if condition is None:
        return {}
    return {"features" if getattr(flow, "features", 0) else "condition": condition}


def typical(flow: Any, condition: Tensor | None, n: int) -> Tensor:
    """Vectors that the flow may well draw; images in [0.25, 0.75], since random flows draw black and white."""
    if len(flow.shape) == 3:
        return 0.25 + 0.5 * torch.rand(n, *flow.shape, dtype=torch.float64)
    return flow.inverse(torch.randn(n, flow.dims, dtype=torch.float64), **given(flow, condition))[0].detach()


def gradients(output: tuple[Tensor, Tensor], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    """Gradients of all outputs together, weighted at random but equally in each call."""
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(part.shape, generator=generator, dtype=part.dtype) for part in output]
    return torch.autograd.grad(sum((w * part).sum() for w, part in zip(weights, output, strict=True)), leaves)


def assert_same(ours: Callable[[Tensor], Any], theirs: Callable[[Tensor], Any], x: Tensor, *leaves: Tensor) -> None:
    """Two functions agree in values, log-determinants and gradients."""
    x = x.clone().requires_grad_()
    results = []
    for function in (ours, theirs):
        y, log_det = function(x)
        log_det = torch.as_tensor(log_det, dtype=x.dtype).expand(len(x))
        results.append((y, log_det, *gradients((y, log_det), [x, *leaves])))
    for ours_, theirs_ in zip(*results, strict=True):
        assert_close(ours_, theirs_, **EXACT)


def assert_module(module: nn.Module, make: Callable[[], nn.Module]) -> None:
    """A module moves with all its tensors, is copied, and is saved and loaded as others are."""
    state = module.state_dict()
    other = make().double()
    other.load_state_dict(state)
    assert_close(other.state_dict(), state, rtol=0, atol=0)
    moved = copy.deepcopy(module).to("meta").float()
    tensors = [*moved.parameters(), *moved.buffers()]
    assert all(t.is_meta and t.dtype != torch.float64 for t in tensors)


class Network(nn.Module):
    """A network of a coupling that works on vectors and images and takes a context, as nflows gives one."""

    def __init__(self, inputs: int, outputs: int, spatial: bool = True, context: int = 0) -> None:
        super().__init__()
        kind: Any = (lambda i, o: nn.Conv2d(i, o, 3, padding=1)) if spatial else nn.Linear
        self.layers = nn.Sequential(kind(inputs + context, 8), nn.Tanh(), kind(8, outputs))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.layers(x if context is None else torch.cat((x, context), 1))
