"""The compiled dense network against the reference."""

import importlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from op_tests import Case, OpTests
from tensors import normal
from torch import Tensor

from pnf import ops, reference

MODULE = importlib.import_module("pnf.ops.dense_network")

# Batch, features of x and of the condition, and of each layer's result: one layer, panels that end within a vector and
# at its end, several slabs of a batch, nothing but a condition, and empty tensors.
NETWORKS = [
    (5, 6, 0, (4,)),
    (3, 5, 7, (33, 20, 3)),
    (30, 16, 32, (32, 64, 16)),
    (300, 3, 40, (17, 6)),
    (4, 0, 9, (16, 5)),
    (4, 3, 2, (0, 6)),
    (4, 0, 0, (5, 2)),
    (0, 3, 2, (8, 4)),
]


def network(batch: int, kept: int, others: int, widths: tuple[int, ...]) -> list[Any]:
    weights = [normal(o, i) / max(i, 1) ** 0.5 for i, o in pairwise([kept + others, *widths])]
    condition = normal(batch, others) if others else None
    return [normal(batch, kept), condition, weights, [normal(o) for o in widths]]


def backward(*sizes: Any, of_x: bool, of_condition: bool) -> list[Any]:
    arguments = network(*sizes)
    y, hidden = torch.ops.pnf.dense_network(*arguments)
    return [torch.randn_like(y), *arguments, hidden, of_x, of_condition]


def named(sizes: tuple[Any, ...]) -> str:
    return " ".join(map(str, sizes))


class TestDenseNetwork(OpTests):
    cases = {named(sizes): Case("dense_network", lambda s=sizes: network(*s), sizes[0] > 0) for sizes in NETWORKS}

    @pytest.fixture(autouse=True)
    def _own_products(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(MODULE, "LINEAR_BY_LIBRARY", False)


class TestDenseNetworkBackward(OpTests):
    # Alone, the backward does not know that the hidden layers depend on x.
    cases = {
        f"{named(sizes)} {of_x} {of_condition}": Case(
            "dense_network_backward",
            lambda s=sizes, w=(of_x, of_condition): backward(*s, of_x=w[0], of_condition=w[1]),
            differentiable=False,
        )
        for sizes, of_x, of_condition in [
            (NETWORKS[0], True, False),
            (NETWORKS[1], True, True),
            (NETWORKS[2], False, True),
            (NETWORKS[2], True, False),
            (NETWORKS[3], False, False),
            *((sizes, True, False) for sizes in NETWORKS[4:]),
        ]
    }

    @pytest.fixture(autouse=True)
    def _own_products(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(MODULE, "LINEAR_BY_LIBRARY", False)


def found(function: Callable[..., Tensor], arguments: list[Any], of: list[Tensor]) -> list[Tensor]:
    y = function(*arguments)
    return [y, *torch.autograd.grad(y, of, torch.linspace(-1, 1, y.numel()).view(y.shape))]


@pytest.mark.parametrize("of", ["x", "condition", "both", "neither"])
@pytest.mark.parametrize("sizes", [NETWORKS[1], NETWORKS[3]], ids=str)
def test_products_of_either_library(monkeypatch: pytest.MonkeyPatch, sizes: tuple[Any, ...], of: str) -> None:
    x, condition, weights, biases = network(*sizes)
    x, condition = x.float(), condition.float()
    weights, biases = ([t.float().requires_grad_() for t in tensors] for tensors in (weights, biases))
    wanted = {"x": [x], "condition": [condition], "both": [x, condition], "neither": []}[of]
    leaves = [*(t.requires_grad_() for t in wanted), *weights, *biases]
    arguments = [x, condition, weights, biases]
    want = found(reference.dense_network, arguments, leaves)
    for by_library in (True, False):
        monkeypatch.setattr(MODULE, "LINEAR_BY_LIBRARY", by_library)
        for a, b in zip(found(ops.dense_network, arguments, leaves), want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize("where", ["autocast", "arguments"])
def test_half_precision_without_instructions_is_float32_rounded_at_both_ends(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    for name in ("dense_network", "convolution"):
        monkeypatch.setattr(importlib.import_module(f"pnf.ops.{name}"), "WIDENED", frozenset([torch.bfloat16]))
    x, condition, weights, biases = network(*NETWORKS[1])
    tensors = [t.float() for t in (x, condition, *weights, *biases)]
    halves = [t.bfloat16() for t in tensors]

    def function(x: Tensor, condition: Tensor, *parameters: Tensor) -> Tensor:
        return ops.dense_network(x, condition, parameters[:3], parameters[3:])

    want = function(*(t.float() for t in halves))
    leaves = [t.requires_grad_() for t in (tensors if where == "autocast" else halves)]
    with torch.autocast("cpu", torch.bfloat16, enabled=where == "autocast"):
        y = function(*leaves)
    assert torch.equal(y, want.bfloat16())
    for grad, leaf in zip(torch.autograd.grad(y.sum(), leaves), leaves, strict=True):
        assert grad.dtype == leaf.dtype


def changed(index: int, change: Callable[[Any], Any]) -> list[Any]:
    arguments = network(2, 3, 4, (5, 2))
    arguments[index] = change(arguments[index])
    return arguments


@pytest.mark.parametrize("function", [ops.dense_network, reference.dense_network], ids=["ops", "reference"])
@pytest.mark.parametrize(
    ("index", "change", "error", "message"),
    [
        (0, lambda x: x.long(), TypeError, "x must be a floating Tensor"),
        (0, lambda x: x[0], ValueError, r"x must be \[B, kept\], got \[3\]"),
        (0, lambda x: x[:, :2], ValueError, r"weights\[0\] must be \[O, 6\], got \[5, 7\]"),
        (1, lambda c: c.float(), TypeError, "condition must have the dtype of x, torch.float64, got torch.float32"),
        (1, lambda c: c[:1], ValueError, r"condition must be \[2, condition\], got \[1, 4\]"),
        (1, lambda c: None, ValueError, r"weights\[0\] must be \[O, 3\], got \[5, 7\]"),
        (2, lambda w: [w[0], w[1].float()], TypeError, r"weights\[1\] must have the dtype of x"),
        (2, lambda w: [w[0], w[1][:, :4]], ValueError, r"weights\[1\] must be \[O, 5\], got \[2, 4\]"),
        (2, lambda w: [], ValueError, "weights and biases must be as many, and at least one each, got 0 and 2"),
        (3, lambda b: b[:1], ValueError, "weights and biases must be as many, and at least one each, got 2 and 1"),
        (3, lambda b: [b[0], 1.0], TypeError, r"biases\[1\] must be a floating Tensor, got float"),
        (3, lambda b: [b[0], b[0]], ValueError, r"biases\[1\] must be \[2\], got \[5\]"),
    ],
)
def test_names_the_mistake(
    function: Callable[..., Tensor], index: int, change: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(*changed(index, change))
