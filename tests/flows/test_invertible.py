"""Backpropagation that reconstructs activations, against the plain one."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pnf import fast, reference
from pnf.flows import networks

SETTINGS = {"coupling": "conv", "hidden": 8, "blocks": 1, "num_couplings": 3}


def pair(randomise: Callable[..., nn.Module], module: Any, norm: str, shape: tuple[int, ...] = (2, 8, 8)) -> list[Any]:
    flow = module.ProgressiveFlow(shape, 1, norm=norm, **SETTINGS).double().train()
    flow(torch.rand(8, *shape, dtype=torch.float64))
    randomise(flow, 0.1)
    twin = module.ProgressiveFlow(shape, 1, norm=norm, memory="invertible", **SETTINGS).double().train()
    twin.load_state_dict(flow.state_dict())
    return [flow, twin]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["act", "batch", "none"])
@pytest.mark.parametrize("module", [reference, fast])
def test_equals_plain_backpropagation(
    randomise: Callable[..., nn.Module], module: Any, norm: str, training: bool
) -> None:
    x = torch.rand(4, 2, 8, 8, dtype=torch.float64)
    found = []
    for flow in pair(randomise, module, norm):
        flow.train(training)
        pixels = x.clone().requires_grad_()
        loss = -flow.log_prob(pixels).mean()
        leaves = [pixels, *flow.parameters()]
        found.append((loss, torch.autograd.grad(loss, leaves), flow.state_dict()))
    (loss, grads, state), (twin_loss, twin_grads, twin_state) = found
    assert_close(twin_loss, loss, rtol=0, atol=0)
    for a, b in zip(twin_grads, grads, strict=True):
        assert_close(a, b, rtol=1e-8, atol=1e-10)
    for name, tensor in state.items():
        assert_close(twin_state[name], tensor, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_in_float32_with_many_couplings(randomise: Callable[..., nn.Module]) -> None:
    found = []
    for memory, dtype in (("plain", torch.float64), ("plain", torch.float32), ("invertible", torch.float32)):
        torch.manual_seed(1)
        flow = fast.RealNVP((4, 8, 8), hidden=16, blocks=1, num_couplings=15, scales=1, norm="batch", memory=memory)
        randomise(flow, 0.05)
        x = torch.randn(16, 4, 8, 8, generator=torch.Generator().manual_seed(2))
        (-flow.to(dtype).log_prob(x.to(dtype)).mean()).backward()
        found.append(torch.cat([p.grad.flatten().double() for p in flow.parameters()]))
    exact, plain, reconstructed = found
    # Reconstruction adds rounding errors of the same kind.
    assert (reconstructed - exact).norm() <= 3 * (plain - exact).norm()


@pytest.mark.parametrize("where", ["networks", "outside"])
def test_low_precision(randomise: Callable[..., nn.Module], where: str) -> None:
    x, found = torch.rand(4, 2, 8, 8), []
    for flow in pair(randomise, fast, "batch"):
        flow.float()
        if where == "networks":
            flow.set_network_dtype(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=where == "outside"):
            loss = -flow.log_prob(x).mean()
        loss.backward()
        found.append([p.grad for p in flow.parameters()])
    scale = max(grad.abs().max().item() for grad in found[0])
    for a, b in zip(found[1], found[0], strict=True):
        assert_close(a, b, rtol=0.05, atol=0.02 * scale)


def test_frozen_parameters_and_a_condition_with_a_gradient(randomise: Callable[..., nn.Module]) -> None:
    found = []
    for memory in ("plain", "invertible"):
        torch.manual_seed(0)
        flow = reference.RealNVP((2, 4, 4), condition_shape=(3, 4, 4), memory=memory, **SETTINGS).double()
        randomise(flow, 0.1)
        for name, parameter in flow.named_parameters():
            parameter.requires_grad_("conv" in name)
        x, condition = (torch.randn(3, c, 4, 4, dtype=torch.float64).requires_grad_() for c in (2, 3))
        flow.log_prob(x, condition).sum().backward()
        found.append([x.grad, condition.grad, *(p.grad for p in flow.parameters() if p.requires_grad)])
    for a, b in zip(found[1], found[0], strict=True):
        assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_second_derivatives_are_refused(randomise: Callable[..., nn.Module]) -> None:
    flow = pair(randomise, reference, "act")[1]
    x = torch.rand(2, 2, 8, 8, dtype=torch.float64).requires_grad_()
    (grad,) = torch.autograd.grad(flow.log_prob(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_saves_the_ends_only() -> None:
    saved = []
    for couplings in (2, 6):
        flow = fast.RealNVP((4, 8, 8), hidden=16, blocks=2, num_couplings=couplings, scales=1, memory="invertible")
        x = torch.randn(8, 4, 8, 8)
        flow(x)
        parameters = {p.untyped_storage().data_ptr() for p in flow.parameters()}
        sizes: dict[int, int] = {}

        def pack(t: torch.Tensor, sizes: dict[int, int] = sizes, known: set[int] = parameters) -> torch.Tensor:
            storage = t.untyped_storage()
            if storage.data_ptr() not in known:
                sizes[storage.data_ptr()] = storage.nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            flow.log_prob(x).sum()
        saved.append(sum(sizes.values()))
    # One more input of 8 x 4 x 8 x 8, that of every fourth coupling.
    assert saved[1] == saved[0] + 4 * 8 * 4 * 8 * 8


def test_is_no_part_of_the_configuration_and_wants_convolutions() -> None:
    flow = fast.RealNVP((4, 8, 8), memory="invertible")
    assert "memory" not in flow.config()
    assert copy.deepcopy(flow).settings.memory == "invertible"
    with pytest.raises(ValueError, match='memory must be "plain"'):
        fast.RealNVP((4, 8, 8), coupling="dense", memory="invertible")
    with pytest.raises(ValueError, match="memory must be"):
        fast.RealNVP((4, 8, 8), memory="small")


def gradients(flow: nn.Module, between: Callable[[nn.Module], Any]) -> list[torch.Tensor]:
    pixels = torch.rand(6, 2, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    torch.manual_seed(2)
    loss = flow.log_prob(pixels).mean()
    between(flow)
    found = torch.autograd.grad(loss, [pixels, *flow.parameters()], allow_unused=True, materialize_grads=True)
    return [*found, torch.rand(1)]


BETWEEN = {
    "a sample": lambda flow: flow.sample(2),
    "evaluation": lambda flow: flow.eval(),
    "evaluation and a sample": lambda flow: flow.eval().sample(2),
    "training": lambda flow: flow.train(),
    "low precision": lambda flow: flow.set_network_dtype(torch.bfloat16),
    "another batch": lambda flow: flow.log_prob(torch.rand(3, 2, 8, 8, dtype=torch.float64)) if flow.training else None,
    "another momentum": lambda flow: [
        setattr(m, "momentum", 0.5) for m in flow.modules() if isinstance(m, nn.BatchNorm2d)
    ],
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["act", "batch"])
@pytest.mark.parametrize("between", BETWEEN)
def test_what_happens_before_the_backward_changes_no_gradient(
    randomise: Callable[..., nn.Module], between: str, norm: str, training: bool
) -> None:
    plain, twin = pair(randomise, fast, norm)
    want = gradients(plain.train(training), lambda flow: None)
    got = gradients(twin.train(training), BETWEEN[between])
    for a, b in zip(got[:-1], want[:-1], strict=True):
        assert_close(a, b, rtol=1e-8, atol=1e-10)
    modes = {"evaluation": False, "evaluation and a sample": False, "training": True}
    assert all(m.training == modes.get(between, training) for m in twin.modules())


@pytest.mark.parametrize("module", [reference, fast])
def test_dropout_drops_the_same_again(randomise: Callable[..., nn.Module], module: Any) -> None:
    found = []
    for flow in pair(randomise, module, "act"):
        for network in (m for m in flow.modules() if isinstance(m, networks.ResidualNetwork)):
            network.out_norm = nn.Dropout(0.5)
        found.append(gradients(flow, lambda flow: torch.rand(1)))
    for a, b in zip(*found, strict=True):
        assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_parameters_that_changed_are_an_error(randomise: Callable[..., nn.Module]) -> None:
    def step(flow: nn.Module) -> None:
        with torch.no_grad():
            for p in flow.parameters():
                p.mul_(1.1)

    flow = pair(randomise, fast, "act")[1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(flow, step)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(
            pair(randomise, fast, "batch")[1].eval(),
            lambda flow: flow.train().log_prob(torch.rand(2, 2, 8, 8).double()),
        )


def test_exchanged_parameters_are_an_error(randomise: Callable[..., nn.Module]) -> None:
    flow = pair(randomise, fast, "act")[1]
    others = {name: 1.1 * p for name, p in flow.named_parameters()}
    z, log_det = torch.func.functional_call(flow, others, (torch.rand(2, 2, 8, 8, dtype=torch.float64),))
    with pytest.raises(RuntimeError, match=r'other parameters now than in the forward.*memory="plain"'):
        (z.sum() + log_det.sum()).backward()
