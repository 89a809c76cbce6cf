"""Predictions of peak memory against measurements, and batches within a bound."""

from typing import Any

import pytest
import torch
from torch import Tensor

from pnf import fast, reference
from pnf.flows.peak_memory import LiveMemory, peak_memory

SETTINGS: dict[str, Any] = {"hidden": 8, "blocks": 1, "num_couplings": 1, "norm": "batch", "scales": 1}


@pytest.mark.parametrize("module", [reference, fast])
def test_tells_what_a_step_holds(module: Any) -> None:
    def step() -> None:
        flow = module.ProgressiveFlow((2, 8, 8), 1, **SETTINGS)
        flow.log_prob(torch.rand(4, 2, 8, 8)).mean().backward()

    told = peak_memory(step)
    with LiveMemory() as live:
        step()
    assert told == pytest.approx(live.peak, rel=0.05)
    # The last convolution's input and result, at least.
    assert told > 4 * 8 * 8 * 8 * 4 * 2


def test_leaves_a_flow_alone() -> None:
    flow = fast.ProgressiveFlow((2, 8, 8), 1, **SETTINGS).eval()
    before = {name: x.clone() for name, x in flow.state_dict().items()}
    peak_memory(lambda: flow.inverse(torch.empty(4, flow.dims)))
    assert all(x.equal(before[name]) for name, x in flow.state_dict().items())
    assert all(p.grad is None for p in flow.parameters())


@pytest.mark.parametrize("kind", ["sample", "upsample", "RealNVP"])
def test_draws_the_same_in_batches(kind: str) -> None:
    torch.manual_seed(0)
    flow = (
        fast.RealNVP((2, 8, 8), condition_shape=(1, 8, 8), **SETTINGS).eval()
        if kind == "RealNVP"
        else fast.ProgressiveFlow((2, 8, 8), 1, **SETTINGS).eval()
    )
    low, condition = torch.rand(12, 2, 4, 4), torch.randn(12, 1, 8, 8)

    def draw(max_memory: int | None) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        if kind == "upsample":
            with torch.no_grad():
                return flow.upsample(low, generator=generator, max_memory=max_memory)
        given = (condition,) if kind == "RealNVP" else ()
        return flow.sample(12, *given, generator=generator, max_memory=max_memory)

    whole, result = draw(None), 12 * 2 * 8 * 8 * 4
    with torch.no_grad():
        most = peak_memory(lambda: draw(None))
    sizes = []
    function = type(flow).inverse if kind != "upsample" else type(flow.stages[1]).inverse

    def record(self: Any, *args: Any, **conditions: Any) -> Any:
        sizes.append(len(args[0]))
        return function(self, *args, **conditions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(flow) if kind != "upsample" else type(flow.stages[1]), "inverse", record)
        parts = draw(result + most // 3)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    assert not parts.requires_grad
    assert max(sizes[-3:]) < 12


def test_says_when_one_does_not_fit() -> None:
    flow = fast.ProgressiveFlow((2, 8, 8), 1, **SETTINGS).eval()
    with pytest.raises(ValueError, match=r"one example takes .* MiB, and max_memory leaves"):
        flow.sample(3, max_memory=10_000)
