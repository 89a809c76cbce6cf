"""Flows on compiled ops equal the reference with the same state, within the tolerances."""

import copy
import importlib
import itertools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from pnf import fast, reference
from pnf.data import dequantize, load
from pnf.flows.couplings import DenseCoupling
from pnf.flows.networks import DenseNetwork, ResidualNetwork

SETTINGS = list(
    itertools.product(
        [(1, 8, 8), (3, 8, 16), (2, 16), (32,)], ["dense", "conv"], ["bounded", "identity"], ["act", "batch", "none"]
    )
)


def pair(
    randomise: Callable[..., nn.Module], shape: tuple[int, ...], coupling: str, detail: str, norm: str, **settings: Any
) -> tuple[reference.ProgressiveFlow, fast.ProgressiveFlow]:
    settings = {"coupling": coupling, "detail": detail, "norm": norm, "hidden": 8, "blocks": 1, **settings}
    flow = reference.ProgressiveFlow(shape, 1, num_couplings=3, **settings)
    flow.train()(torch.rand(16, *shape))
    randomise(flow, 0.1)
    twin = fast.ProgressiveFlow(shape, 1, num_couplings=3, **settings)
    twin.load_state_dict(flow.state_dict())
    return flow, twin


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("shape", "coupling", "detail", "norm"), SETTINGS, ids=str)
def test_equals_the_reference(
    randomise: Callable[..., nn.Module],
    shape: tuple[int, ...],
    coupling: str,
    detail: str,
    norm: str,
    training: bool,
) -> None:
    flow, twin = (f.train(training) for f in pair(randomise, shape, coupling, detail, norm))
    xs = [torch.rand(5, *shape).requires_grad_() for _ in range(2)]
    xs[1].data.copy_(xs[0].data)
    want, got = flow.log_prob(xs[0]), twin.log_prob(xs[1])
    assert_close(got, want, rtol=1e-5, atol=1e-5 * want.abs().max().item())
    want.sum().backward()
    got.sum().backward()
    grads = [(name, p.grad) for name, p in [*flow.named_parameters(), ("x", xs[0])]]
    # A gradient that is 0 up to rounding, such as a bias before batch normalisation, is compared at the others' scale.
    scale = max(grad.abs().max().item() for _, grad in grads)
    for (name, a), b in zip(grads, [*twin.parameters(), xs[1]], strict=True):
        assert_close(b.grad, a, rtol=1e-4, atol=1e-6 * scale, msg=lambda m, n=name: f"{n}: {m}")
    for (name, a), b in zip(flow.state_dict().items(), twin.state_dict().values(), strict=True):
        assert_close(b, a, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    z = 0.5 * torch.randn(5, flow.dims)
    for a, b in zip(flow.inverse(z), twin.inverse(z), strict=True):
        assert_close(b, a, rtol=1e-5, atol=1e-5 * a.abs().max().item())
    assert_close(twin.encode(xs[0].detach()), flow.encode(xs[0].detach()), rtol=0, atol=0)


@pytest.mark.parametrize("coupling", ["dense", "conv"])
def test_draws_at_a_temperature_for_each_stage_are_the_references(
    randomise: Callable[..., nn.Module], coupling: str
) -> None:
    flow, twin = (f.eval() for f in pair(randomise, (3, 8, 8), coupling, "bounded", "batch"))
    want, got = (
        f.sample(4, temperature=[0.5, 1.0, 0.0], generator=torch.Generator().manual_seed(0)) for f in (flow, twin)
    )
    assert_close(got, want, rtol=1e-5, atol=1e-5)
    low = flow.encode(want)
    want, got = (
        f.upsample(low, temperature=[1.0, 0.5], generator=torch.Generator().manual_seed(0)) for f in (flow, twin)
    )
    assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hidden", [8, 16])
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("norm", ["act", "batch", "none"])
def test_evaluation_without_gradients_equals_the_reference(
    randomise: Callable[..., nn.Module], norm: str, blocks: int, hidden: int
) -> None:
    flow, twin = pair(randomise, (3, 8, 16), "conv", "bounded", norm, blocks=blocks, hidden=hidden)
    x, z = torch.rand(5, 3, 8, 16), 0.5 * torch.randn(5, flow.dims)
    with torch.no_grad():
        for method, argument in (("log_prob", x), ("inverse", z)):
            want, got = (getattr(f.eval(), method)(argument) for f in (flow, twin))
            for a, b in zip(want, got, strict=True):
                assert_close(b, a, rtol=1e-5, atol=1e-5 * a.abs().max().item())
        # Every call reads the current weights.
        before = twin.log_prob(x)
        for f in (flow, twin):
            for parameter in f.parameters():
                parameter.data += 0.1
        assert_close(twin.log_prob(x), flow.log_prob(x), rtol=1e-5, atol=1e-5 * before.abs().max().item())
        assert not torch.equal(twin.log_prob(x), before)


@pytest.mark.parametrize("by_library", [True, False])
def test_linear_layers_by_either_library(
    randomise: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch, by_library: bool
) -> None:
    monkeypatch.setattr(importlib.import_module("pnf.ops.dense_network"), "LINEAR_BY_LIBRARY", by_library)
    found = []
    for flow in pair(randomise, (1, 8, 8), "dense", "bounded", "act"):
        x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        log_prob = flow.log_prob(x)
        leaves = [x, *flow.parameters()]
        batched = torch.autograd.grad(log_prob, leaves, torch.eye(5), is_grads_batched=True, retain_graph=True)
        # Images without a gradient spare that of the condition.
        alone = torch.autograd.grad(flow.log_prob(x.detach()).sum(), leaves[1:])
        found.append([log_prob, *torch.autograd.grad(log_prob.sum(), leaves), *batched, *alone])
    for want, got in zip(*found, strict=True):
        assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def test_a_network_in_the_place_of_a_dense_one_has_one_input(randomise: Callable[..., nn.Module]) -> None:
    flow, twin = pair(randomise, (1, 8, 8), "dense", "bounded", "act")
    for f in (flow, twin):
        for module in f.modules():
            if isinstance(module, DenseCoupling):
                module.network = nn.Sequential(*module.network)
    x = torch.rand(5, 1, 8, 8)
    assert_close(twin.log_prob(x), flow.log_prob(x), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("coupling", ["conv", "dense"])
def test_second_derivatives_equal_the_reference(randomise: Callable[..., nn.Module], coupling: str) -> None:
    found = []
    for flow in pair(randomise, (1, 8, 8), coupling, "bounded", "act"):
        x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
        flow.double()
        (grad,) = torch.autograd.grad(flow.log_prob(x).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), x)[0])
    assert_close(found[1], found[0], rtol=1e-8, atol=1e-8 * found[0].abs().max().item())


@pytest.mark.parametrize("coupling", ["conv", "dense"])
def test_second_derivatives_of_layers_that_share_their_bias(randomise: Callable[..., nn.Module], coupling: str) -> None:
    found = []
    for flow in pair(randomise, (1, 8, 8), coupling, "bounded", "act", hidden=16, blocks=2):
        for module in flow.modules():
            if isinstance(module, ResidualNetwork):
                module.blocks[0].conv2.bias = module.blocks[0].conv1.bias
            elif isinstance(module, DenseNetwork):
                module[2].bias = module[0].bias
        x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
        parameters = list(flow.parameters())
        grads = torch.autograd.grad(flow.log_prob(x).sum(), parameters, create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in grads), parameters))
    for want, got in zip(*found, strict=True):
        assert_close(got, want, rtol=1e-3, atol=1e-3 * want.abs().max().item())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_second_derivatives_through_what_is_computed_again(randomise: Callable[..., nn.Module], training: bool) -> None:
    found = []
    for flow in pair(randomise, (1, 8, 8), "conv", "bounded", "batch", hidden=16):
        x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        (grad,) = torch.autograd.grad(flow.train(training).log_prob(x).sum(), x, create_graph=True)
        found.append([grad, torch.autograd.grad(grad.square().sum(), x)[0]])
    for got, want in zip(*found[::-1], strict=True):
        assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def test_a_coupling_keeps_each_activation_once() -> None:
    """At most 35 MiB for 32 images of 12 x 32 x 32 and networks of two blocks of width 32."""
    kept = []
    for couplings in (1, 2):
        flow = fast.RealNVP((12, 32, 32), hidden=32, blocks=2, num_couplings=couplings, scales=1, norm="batch")
        sizes: dict[int, int] = {}

        def pack(t: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            flow.log_prob(torch.randn(32, 12, 32, 32)).sum()
        kept.append(sum(sizes.values()))
    assert kept[1] - kept[0] < 35 * 2**20


def test_the_same_seed_gives_the_same_bits(randomise: Callable[..., nn.Module]) -> None:
    _, flow = pair(randomise, (1, 8, 8), "conv", "bounded", "batch")
    draws = [flow.eval().sample(4, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(*draws)
    assert draws[0].min() >= 0
    assert draws[0].max() <= 1


def test_can_be_copied_pickled_and_saved(randomise: Callable[..., nn.Module], tmp_path: Any) -> None:
    flow, twin = pair(randomise, (1, 8, 8), "conv", "bounded", "act")
    x = torch.rand(2, 1, 8, 8)
    for other in (copy.deepcopy(twin), pickle.loads(pickle.dumps(twin))):
        assert torch.equal(other.log_prob(x), twin.log_prob(x))
    flow.save_pretrained(tmp_path)
    assert torch.equal(fast.ProgressiveFlow.from_pretrained(tmp_path).log_prob(x), twin.log_prob(x))


def test_is_one_graph(randomise: Callable[..., nn.Module]) -> None:
    torch._dynamo.reset()
    _, flow = pair(randomise, (3, 8, 8), "conv", "bounded", "batch")
    flow.eval()
    x = torch.rand(2, 3, 8, 8)
    for method, argument in ((flow.log_prob, x), (flow.decode, flow.encode(x))):
        assert_close(torch.compile(method, fullgraph=True, backend="aot_eager")(argument), method(argument))
    torch.compile(flow.train().stage_loss, fullgraph=True, backend="aot_eager")(x, 1).backward()
    assert all(p.grad is not None for p in flow.stages[1].parameters())


@pytest.mark.parametrize("coupling", ["dense", pytest.param("conv", marks=pytest.mark.slow)])
def test_one_compiled_loss_takes_any_batch_and_stage(randomise: Callable[..., nn.Module], coupling: str) -> None:
    torch._dynamo.reset()
    _, flow = pair(randomise, (1, 4, 4), coupling, "bounded", "act")
    compiled = torch.compile(flow.stage_loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for stage, count in ((0, 2), (2, 3), (2, 5)):
        x, parameters = torch.rand(count, 1, 4, 4), list(flow.stages[stage].parameters())
        got, want = compiled(x, stage), flow.stage_loss(x, stage)
        assert_close(got, want)
        for a, b in zip(*(torch.autograd.grad(loss, parameters) for loss in (got, want)), strict=True):
            assert_close(a, b)


class NoSynchronisation(TorchDispatchMode):
    """Raises when the host reads a value of a tensor, which would wait for a GPU and break a CUDA graph."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        assert not any(word in name for word in ("_local_scalar_dense", "nonzero", "aten::equal")), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("memory", ["plain", "invertible"])
@pytest.mark.parametrize("norm", ["act", "batch"])
@pytest.mark.parametrize("coupling", ["conv", "dense"])
def test_reads_no_value_of_a_tensor(coupling: str, norm: str, memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if memory == "invertible" and coupling == "dense":
        return
    # The range of the pixels is only checked on a CPU, and not during compilation.
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    flow = fast.ProgressiveFlow((3, 8, 8), 1, coupling=coupling, norm=norm, hidden=8, blocks=1, memory=memory)
    x = torch.rand(4, 3, 8, 8)
    flow.train()(x)
    optimizer = torch.optim.Adam(flow.parameters(), fused=True)
    with NoSynchronisation():
        (-flow.log_prob(x).mean()).backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0, foreach=True)
        optimizer.step()
        flow.eval().log_prob(x)
        flow.sample(2)
        flow.upsample(flow.encode(x), noise=0)


@pytest.mark.parametrize(
    ("coupling", "norm", "settings"),
    [("dense", "act", {"num_couplings": 64, "hidden": 32}), ("conv", "batch", {"num_couplings": 63, "scales": 1})],
)
def test_deep_flows_come_back(coupling: str, norm: str, settings: dict[str, Any]) -> None:
    pixels = load("fashion-mini", "train", 8).pixels
    flow = fast.RealNVP((1, 8, 8), coupling=coupling, norm=norm, alpha=0.05, blocks=1, **{"hidden": 8, **settings})
    # Such a deep flow explodes at the usual learning rate.
    adam = torch.optim.Adam(flow.parameters(), 2e-4)
    for part in pixels[:768].split(64):
        loss = -flow.log_prob(dequantize(part)).mean()
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(flow.parameters(), 100.0)
        adam.step()
    x = dequantize(pixels[-200:])
    with torch.no_grad():
        z, log_det = flow.eval()(x)
        back, inverse_log_det = flow.inverse(z)
    assert_close(back, x, rtol=0, atol=1e-5)
    assert_close(inverse_log_det / flow.dims, -log_det / flow.dims, rtol=0, atol=1e-5)


def test_a_dense_flow_of_one_number_has_networks_of_nothing() -> None:
    flow = reference.RealNVP((1, 1, 1), coupling="dense", hidden=4, alpha=0.05)
    twin = fast.RealNVP((1, 1, 1), coupling="dense", hidden=4, alpha=0.05)
    twin.load_state_dict(flow.state_dict())
    x = torch.rand(3, 1, 1, 1)
    want, got = flow.log_prob(x), twin.log_prob(x)
    assert_close(got, want, rtol=1e-5, atol=1e-5)
    got.sum().backward()
