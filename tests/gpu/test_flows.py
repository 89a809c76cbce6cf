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
from pnf.cuda_graphs import WARMUP, GraphedStep, can_capture
from pnf.data import Images
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


def test_dense_networks_are_linear_layers(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ops, "dense_network")
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


class Learner:
    """A small flow in training, with an optimiser whose rate changes."""

    def __init__(self, device: str) -> None:
        torch.manual_seed(0)
        self.flow = fast.RealNVP((6,), coupling="dense", num_couplings=1, hidden=8).to(device).train()
        capturable = can_capture(torch.device(device))
        self.optimizer = torch.optim.Adam(self.flow.parameters(), 1e-3, fused=True, capturable=capturable)
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        """A step. It is not called where a graph is launched."""
        self.calls += 1
        self.optimizer.zero_grad()
        loss = -self.flow.log_prob(x.flatten(1)[:, :6]).mean()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def take_turns(device: str, steps: int, eager: Learner, other: Learner, graphed: GraphedStep) -> None:
    """Compare steps without and with a graph."""
    # Both take the learning rate from a tensor of float32.
    rate = torch.zeros((), device=device)
    eager.optimizer.param_groups[0]["lr"] = rate
    for seed in range(steps):
        x = pixels(device, seed)
        rate.fill_(1e-3 / (1 + seed))
        other.optimizer.param_groups[0]["lr"] = 1e-3 / (1 + seed)
        assert torch.equal(eager(x), graphed(x))
        for a, b in zip(eager.flow.state_dict().values(), other.flow.state_dict().values(), strict=True):
            assert torch.equal(a, b)


def test_a_graph_takes_the_steps_of_training(device: str) -> None:
    eager, captured = Learner(device), Learner(device)
    graphed = GraphedStep(captured, captured.optimizer)
    take_turns(device, WARMUP + 3, eager, captured, graphed)
    assert not graphed.reason
    assert (eager.calls, captured.calls) == (WARMUP + 3, WARMUP + 1)


def test_a_changed_step_is_captured_again(device: str) -> None:
    eager, captured = Learner(device), Learner(device)
    graphed = GraphedStep(captured, captured.optimizer)
    take_turns(device, WARMUP + 1, eager, captured, graphed)
    calls = captured.calls
    for learner in (eager, captured):
        learner.optimizer.load_state_dict(copy.deepcopy(learner.optimizer.state_dict()))
    take_turns(device, WARMUP + 1, eager, captured, graphed)
    assert captured.calls == 2 * calls
    for learner in (eager, captured):
        learner.optimizer.param_groups[0]["weight_decay"] = 0.1
    take_turns(device, WARMUP + 1, eager, captured, graphed)
    assert captured.calls == 3 * calls
    half = pixels(device)[:2]
    assert torch.equal(eager(half), graphed(half))
    assert captured.calls == 3 * calls + 1


def test_a_step_that_reads_from_the_device_runs_without_a_graph(device: str) -> None:
    eager, captured = Learner(device), Learner(device)

    def step(x: Tensor) -> Tensor:
        loss = captured(x)
        loss.item()
        return loss

    graphed = GraphedStep(step, captured.optimizer)
    with pytest.warns(RuntimeWarning, match="runs without a CUDA graph") as found:
        take_turns(device, WARMUP + 3, eager, captured, graphed)
    assert len(found) == 1
    assert "capturing" in graphed.reason


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_run_is_the_same_without_graphs(
    device: str,
    optimizer: str,
    tiny: Callable[..., RunConfig],
    images: Images,
    results: Callable[[Path], dict[str, object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = tiny(steps=WARMUP + 3, num_couplings=1, batch_size=4, validation=4, coupling="dense", optimizer=optimizer)
    go = functools.partial(train, config, images, accelerator=torch.device(device).type)
    launched: list[object] = []
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda graph: (launched.append(graph), replay(graph))[1])
    go(tmp_path / "graph")
    assert len(launched) == 3
    monkeypatch.setattr("pnf.cuda_graphs.WARMUP", config.steps)
    go(tmp_path / "eager")
    assert len(launched) == 3
    assert results(tmp_path / "graph") == results(tmp_path / "eager")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_run_resumes_to_the_bit(
    device: str,
    optimizer: str,
    tiny: Callable[..., RunConfig],
    images: Images,
    results: Callable[[Path], dict[str, object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Both halves end with graphs.
    config = tiny(
        steps=2 * (WARMUP + 2),
        checkpoint_every=WARMUP + 2,
        validate_every=WARMUP + 2,
        num_couplings=1,
        scales=1,
        batch_size=4,
        validation=4,
        coupling="conv",
        optimizer=optimizer,
    )
    go = functools.partial(train, config, images, accelerator=torch.device(device).type)
    go(tmp_path / "whole")
    batch = Batches.__call__

    def interrupt(self: Batches, step: int) -> Tensor:
        if step == WARMUP + 1:
            signal.raise_signal(signal.SIGTERM)
        return batch(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__call__", interrupt)
        with pytest.raises(Interrupted):
            go(tmp_path / "parts")
    go(tmp_path / "parts", resume=True)
    assert results(tmp_path / "parts") == results(tmp_path / "whole")
