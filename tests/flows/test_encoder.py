"""Convolutional flows whose networks share an encoder of the condition."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pnf import fast, reference
from pnf.flows.couplings import Encoder

SMALL: dict[str, Any] = {"hidden": 4, "blocks": 1, "num_couplings": 2, "encoder": 1}
SHAPES = [(1, 8, 8), (3, 4, 8), (2, 16)]
CONDITIONS: dict[str, Callable[[int, tuple[int, ...]], tuple[dict[str, Any], Tensor | None]]] = {
    "nothing": lambda n, shape: ({}, None),
    "labels": lambda n, shape: ({"num_classes": 3}, torch.arange(n) % 3),
    "maps": lambda n, shape: ({"condition_shape": (2, *shape[1:])}, torch.randn(n, 2, *shape[1:])),
}

every_condition = pytest.mark.parametrize("condition", CONDITIONS)


def pair(
    randomise: Callable[..., nn.Module], shape: tuple[int, ...], condition: str, **settings: Any
) -> tuple[list[Any], Tensor, Tensor | None]:
    """A flow of the reference and a compiled one with the same state, images and their condition."""
    given, c = CONDITIONS[condition](6, shape)
    x = torch.rand(6, *shape)
    flows = [module.ProgressiveFlow(shape, 1, **SMALL | given | settings) for module in (reference, fast)]
    flows[0].train()(x, c)
    randomise(flows[0], 0.1)
    flows[1].load_state_dict(flows[0].state_dict())
    return flows, x, c


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("memory", ["plain", "invertible"])
@every_condition
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_reference(
    randomise: Callable[..., nn.Module], shape: tuple[int, ...], condition: str, memory: str, training: bool
) -> None:
    flows, x, c = pair(randomise, shape, condition, norm="batch", memory=memory)
    found = []
    for flow in flows:
        log_prob = flow.train(training).log_prob(x, c)
        found.append([log_prob, *torch.autograd.grad(log_prob.mean(), list(flow.parameters()))])
    for want, got in zip(*found, strict=True):
        assert_close(got, want, rtol=1e-4, atol=1e-5 * max(1, want.abs().max().item()))


@every_condition
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_a_bijection_with_its_log_det(
    randomise: Callable[..., nn.Module], shape: tuple[int, ...], condition: str, log_abs_det: Callable[..., Tensor]
) -> None:
    (flow, _), x, c = pair(randomise, shape, condition)
    flow, x = flow.double().eval(), x[:1].double()
    if c is not None:
        c = c[:1].double() if c.is_floating_point() else c[:1]
    z, log_det = flow(x, c)
    assert_close(log_det, log_abs_det(lambda x: flow(x, c)[0], x))
    assert_close(flow.inverse(z, c)[0], x, rtol=0, atol=1e-8)


def test_derivatives_of_the_encoder(randomise: Callable[..., nn.Module]) -> None:
    found = []
    flows, x, _ = pair(randomise, (1, 8, 8), "nothing", norm="act")
    for flow in flows:
        y = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(flow.log_prob(y).sum(), y, create_graph=True)
        second = torch.autograd.grad(grad.square().sum(), y, retain_graph=True)[0]
        tangent = torch.func.jvp(flow.log_prob, (x,), (torch.ones_like(x),))[1]
        found.append((grad.detach(), second, tangent))
    for want, got in zip(*found, strict=True):
        assert_close(got, want, rtol=1e-3, atol=1e-4 * want.abs().max().item())


def test_runs_once_for_all_couplings(randomise: Callable[..., nn.Module]) -> None:
    flows, x, _ = pair(randomise, (1, 8, 8), "nothing")
    for flow in flows:
        encoders, calls = [m for m in flow.modules() if isinstance(m, Encoder)], []
        for encoder in encoders:
            encoder.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        flow.log_prob(x)
        # The base has no coarser image.
        assert len(encoders) == len(calls) == len(flow.stages) - 1


def test_low_precision_reaches_the_encoder(randomise: Callable[..., nn.Module]) -> None:
    flows, x, _ = pair(randomise, (1, 8, 8), "nothing")
    for flow in flows:
        dtypes: list[torch.dtype] = []
        encoder = next(m for m in flow.modules() if isinstance(m, Encoder))
        encoder.register_forward_hook(lambda m, a, y, dtypes=dtypes: dtypes.extend(t.dtype for t in y))
        want = flow.log_prob(x)
        got = flow.set_network_dtype(torch.bfloat16).log_prob(x)
        assert dtypes[2:] == [torch.bfloat16] * 2
        assert got.dtype is torch.float32
        assert_close(got, want, rtol=0.05, atol=1)


def test_settings_survive_saving(randomise: Callable[..., nn.Module], tmp_path: Any) -> None:
    (flow, _), x, _ = pair(randomise, (1, 8, 8), "nothing")
    flow.eval().save_pretrained(tmp_path)
    again = fast.ProgressiveFlow.from_pretrained(tmp_path)
    assert again.settings.encoder == 1
    assert_close(again.log_prob(x), flow.log_prob(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"encoder": -1}, ValueError, "encoder must be at least 0, got -1"),
        ({"encoder": 1.5}, TypeError, "encoder must be an integer, got 1.5"),
        ({"encoder": 1, "coupling": "dense"}, ValueError, 'encoder must be 0 with coupling="dense", got 1'),
    ],
)
def test_wrong_settings(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        reference.ProgressiveFlow((1, 8, 8), 1, **settings)


def test_flows_without_a_condition_have_none() -> None:
    for module, size in itertools.product((reference, fast), ((2, 8, 8), (16,))):
        assert module.RealNVP(size, encoder=2, hidden=4, blocks=1).flow.encoder is None
