"""Whole models compile to one graph with ``torch.compile(fullgraph=True)``."""

import pytest
import torch
from torch.testing import assert_close

from pnf.reference import ProgressiveFlow


@pytest.mark.parametrize(
    ("coupling", "detail", "norm"),
    [
        ("dense", "bounded", "act"),
        pytest.param("dense", "identity", "batch", marks=pytest.mark.slow),
        pytest.param("conv", "bounded", "batch", marks=pytest.mark.slow),
        pytest.param("conv", "bounded", "act", marks=pytest.mark.slow),
    ],
)
def test_fullgraph(coupling: str, detail: str, norm: str) -> None:
    torch._dynamo.reset()
    flow = ProgressiveFlow(
        (1, 8, 8), 1, axes="x", coupling=coupling, detail=detail, norm=norm, hidden=4, blocks=1, num_couplings=2
    )
    x, z, low = torch.rand(3, 1, 8, 8), torch.randn(3, 64), torch.rand(3, 1, 8, 4)
    flow.train()(x)
    for method, argument in ((flow.log_prob, x), (flow.inverse, z), (flow.decode, low)):
        flow.eval()
        assert_close(torch.compile(method, fullgraph=True, backend="aot_eager")(argument), method(argument))
    flow.train()
    loss = torch.compile(flow.stage_loss, fullgraph=True, backend="aot_eager")(x, 1)
    loss.backward()
    assert all(p.grad is not None for p in flow.stages[1].parameters())
