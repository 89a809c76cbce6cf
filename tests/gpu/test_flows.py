"""Whole flows on a GPU: the results of the reference, a step of training as one graph, and runs."""

import copy
import functools
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pnf import fast, ops, reference
from pnf.data import Images
from pnf.fast import networks
from pnf.training import Interrupted, RunConfig, train
from pnf.training.batches import Batches

SHAPE = (2, 4, 4)
SMALL = {"hidden": 8, "blocks": 1, "num_couplings": 1}


def pair(device: str, coupling: str, detail: str, **settings: object) -> list[nn.Module]:
    """A flow of the reference and its twin on kernels, away from the identity."""
    flows = []
    for module in (reference, fast):
        torch.manual_seed(0)
        scales = {"scales": 1, "norm": "batch"} if coupling == "conv" else {}
        flow = module.ProgressiveFlow(SHAPE, 1, coupling=coupling, detail=detail, **scales, **SMALL, **settings)
        with torch.no_grad():
            for p in flow.parameters():
                p.add_(0.1 * torch.randn_like(p))
        flows.append(flow.to(device))
    return flows


def pixels(device: str, seed: int = 0) -> Tensor:
    return torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(seed)).to(device)


def learn(flow: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The log-likelihoods and the gradients of a step of training."""
    found = flow.train().log_prob(x)
    return found, list(torch.autograd.grad(found.mean(), [*flow.parameters()]))


def assert_near(got: list[Tensor], want: list[Tensor], rtol: float) -> None:
    """Gradients that are zero up to rounding are compared at the scale of the others."""
    scale = max(x.abs().max().item() for x in want)
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, rtol=rtol, atol=1e-2 * rtol * scale)


@pytest.mark.parametrize("detail", ["bounded", pytest.param("identity", marks=pytest.mark.slow)])
@pytest.mark.parametrize("coupling", ["dense", "conv"])
def test_equals_the_reference(coupling: str, detail: str, device: str) -> None:
    flow, twin = pair(device, coupling, detail)
    x = pixels(device)
    (want, grads), (got, found) = learn(flow, x), learn(twin, x)
    assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert_near(found, grads, rtol=1e-4)
    z = torch.randn(4, flow.dims, device=device)
    with torch.no_grad():
        for a, b in zip(twin.eval().inverse(z), flow.eval().inverse(z), strict=True):
            assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_dense_networks_are_no_convolutions(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "LINEAR_BY_LIBRARY", False)  # a choice among CPUs
    monkeypatch.delattr(ops, "convolution")
    pair(device, "dense", "bounded")[1].log_prob(pixels(device))


@pytest.mark.slow
def test_invertible_memory_and_plain_have_the_same_gradients(device: str) -> None:
    plain, invertible = (pair(device, "conv", "bounded", memory=memory)[1] for memory in ("plain", "invertible"))
    (want, grads), (got, found) = learn(plain, pixels(device)), learn(invertible, pixels(device))
    assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert_near(found, grads, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["networks", "outside"])
def test_bfloat16_changes_little(where: str, device: str) -> None:
    flow = pair(device, "conv", "bounded")[1]
    want, grads = learn(flow, pixels(device))
    if where == "networks":
        flow.set_network_dtype(torch.bfloat16)
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=where == "outside"):
        got, found = learn(flow, pixels(device))
    assert got.dtype == torch.float32
    assert_close(got, want, rtol=0.02, atol=0.02 * want.abs().max().item())
    for a, b in zip(found, grads, strict=True):
        assert (a - b).norm() <= 0.2 * max(x.norm() for x in grads)


def test_a_step_of_training_as_one_graph(device: str) -> None:
    flow = pair(device, "conv", "bounded")[1].train()
    flow.log_prob(pixels(device))  # sets what the first batch sets
    twin = copy.deepcopy(flow)
    x = pixels(device)

    def stepper(flow: nn.Module) -> Callable[[], None]:
        capturable = torch.device(device).type == "cuda"
        optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3, fused=True, capturable=capturable)

        def step() -> None:
            optimizer.zero_grad()
            (-flow.log_prob(x).mean()).backward()
            optimizer.step()

        return step

    eager, captured = stepper(flow), stepper(twin)
    with torch.cuda.device(device):
        stream, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            captured()
        torch.cuda.current_stream(device).wait_stream(stream)
        eager()
        x.copy_(pixels(device, 1))
        with torch.cuda.graph(graph):
            captured()
        for seed in (1, 2, 3):
            x.copy_(pixels(device, seed))
            eager()
            # A graph of a GPU has not run yet when it is captured; that of the stand-in has.
            if device != "cpu" or seed > 1:
                graph.replay()
    for a, b in zip(twin.parameters(), flow.parameters(), strict=True):
        assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_a_run_resumes_to_the_bit(
    device: str,
    tiny: Callable[..., RunConfig],
    images: Images,
    results: Callable[[Path], dict[str, object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny(
        steps=4,
        checkpoint_every=2,
        validate_every=4,
        num_couplings=1,
        scales=1,
        batch_size=4,
        validation=4,
        coupling="conv",
    )
    go = functools.partial(train, config, images, accelerator=torch.device(device).type)
    go(tmp_path / "whole")
    batch = Batches.__call__

    def interrupt(self: Batches, step: int) -> Tensor:
        if step == 1:
            signal.raise_signal(signal.SIGTERM)
        return batch(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__call__", interrupt)
        with pytest.raises(Interrupted):
            go(tmp_path / "parts")
    go(tmp_path / "parts", resume=True)
    assert results(tmp_path / "parts") == results(tmp_path / "whole")
