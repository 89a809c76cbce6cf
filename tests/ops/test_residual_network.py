"""The compiled residual network against the reference."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_tests import Case, Implementation, OpTests
from tensors import normal
from torch import Tensor

from pnf import ops, reference
from pnf.ops.weight_norm import given

# Batch, hidden, outputs, height, width, blocks, size: networks without blocks, which compile fastest, and of 1x1
# convolutions, tiles cut at the edges, one and two vectors of channels, widths without a kernel, and empty tensors.
NETWORKS = [
    (5, 16, 4, 3, 3, 0, 3),
    (2, 16, 6, 5, 7, 1, 3),
    (3, 32, 12, 4, 4, 2, 3),
    (2, 7, 5, 3, 4, 2, 1),
    (2, 3, 2, 4, 4, 1, 3),
    (0, 16, 4, 4, 4, 1, 3),
]


def network(
    batch: int, hidden: int, outputs: int, height: int, width: int, blocks: int, size: int, norm: bool
) -> list[Any]:
    skip, square = (hidden, hidden, 1, 1), (hidden, hidden, size, size)
    shapes = [skip, *[square, square, skip] * blocks, (outputs, hidden, 1, 1)]
    directions = [normal(*shape) for shape in shapes]
    magnitudes = [normal(shape[0], 1, 1, 1) if i % 3 != 1 else None for i, shape in enumerate(shapes)]
    biases = [normal(shape[0]) for shape in shapes]
    norms = []
    for _ in range(2 * blocks + 1 if norm else 0):
        norms += [normal(hidden), normal(hidden), normal(hidden), 0.5 + torch.rand(hidden, dtype=torch.float64)]
    return [normal(batch, hidden, height, width), directions, magnitudes, biases, norms, 1e-4]


def registered(h: Tensor, directions: list[Tensor], magnitudes: list[Tensor | None], *others: Any) -> list[Any]:
    """The arguments of the op in ``torch.ops``."""
    return [h, directions, *given(magnitudes), *others]


class TestResidualNetwork(OpTests):
    # Means and variances are constants.
    cases = {
        f"{sizes}{' normalised' if norm else ''}": Case(
            "residual_network",
            lambda s=sizes, n=norm: registered(*network(*s, n)),
            differentiable=sizes[0] > 0 and not norm,
        )
        for sizes in NETWORKS
        for norm in (True, False)
    }


# Batch, inputs, hidden, outputs, height, width, blocks, size. One has more entries of a channel than one program takes
# on a GPU.
TRAINED = [
    (3, 5, 16, 4, 4, 4, 0, 3),
    (2, 3, 8, 6, 5, 6, 1, 3),
    (3, 4, 5, 3, 3, 4, 2, 3),
    (3, 2, 4, 2, 27, 26, 1, 3),
    (6, 2, 7, 2, 1, 7, 1, 1),
]


def trained(
    batch: int, inputs: int, hidden: int, outputs: int, height: int, width: int, blocks: int, size: int
) -> list[Any]:
    skip, square = (hidden, hidden, 1, 1), (hidden, hidden, size, size)
    shapes = [(hidden, inputs, size, size), skip, *[square, square, skip] * blocks, (outputs, hidden, 1, 1)]
    weights = [normal(*shape) / math.sqrt(math.prod(shape[1:])) for shape in shapes]
    norms = [normal(hidden) for _ in range(4 * blocks + 2)]
    return [normal(batch, inputs, height, width), weights, [normal(shape[0]) for shape in shapes], norms, 1e-4]


def trained_backward(*sizes: int, of_input: bool) -> list[Any]:
    arguments = trained(*sizes)
    y, *layers = torch.ops.pnf.residual_network_training(*arguments)
    return [torch.randn_like(y), *arguments[:4], layers, arguments[4], of_input]


class TestResidualNetworkTraining(OpTests):
    cases = {str(sizes): Case("residual_network_training", lambda s=sizes: trained(*s)) for sizes in TRAINED}


class TestResidualNetworkTrainingBackward(OpTests):
    # Alone, the backward does not know that the layers depend on x.
    cases = {
        f"{sizes} {of_input}": Case(
            "residual_network_training_backward",
            lambda s=sizes, o=of_input: trained_backward(*s, of_input=o),
            differentiable=False,
        )
        for sizes, of_input in zip(TRAINED[:4], (True, True, False, True), strict=True)
    }

    def prepare(self, args: list[Any], implementation: Implementation) -> list[Any]:
        layers = implementation.run("residual_network_training", [*args[1:5], args[6]])[1:]
        return [*args[:5], layers, *args[6:]]


def changed(index: int, change: Callable[[Any], Any]) -> list[Any]:
    arguments = network(2, 16, 4, 4, 4, 1, 3, True)
    arguments[index] = change(arguments[index])
    return arguments


@pytest.mark.parametrize("function", [ops.residual_network, reference.residual_network], ids=["ops", "reference"])
@pytest.mark.parametrize(
    ("index", "change", "error", "message"),
    [
        (0, lambda h: h.long(), TypeError, "h must be a floating Tensor"),
        (0, lambda h: h[0], ValueError, r"h must be \[B, hidden, H, W\], got \[16, 4, 4\]"),
        (0, lambda h: h.float(), TypeError, r"directions\[0\] must be a Tensor of the dtype of h, torch.float32"),
        (1, lambda d: d[:4], ValueError, "magnitudes must be as many as directions, 4, got 5"),
        (1, lambda d: [d[0][:8], *d[1:]], ValueError, r"magnitudes\[0\] must be \[8, 1, 1, 1\]"),
        (1, lambda d: [d[0], d[1][..., :2], *d[2:]], ValueError, r"directions\[1\] must be \[16, 16, h, w\] with odd"),
        (1, lambda d: [*d[:4], d[4][:, :8]], ValueError, r"directions\[4\] must be \[O, 16, h, w\]"),
        (3, lambda b: b[:4], ValueError, "biases must be 5 tensors, got 4"),
        (3, lambda b: [b[0][:8], *b[1:]], ValueError, r"biases\[0\] must be \[16\], got \[8\]"),
        (4, lambda n: n[:8], ValueError, "norms must be 12 tensors, got 8"),
        (4, lambda n: [n[0], 1.0, *n[2:]], TypeError, r"norms\[1\] must be a Tensor .* got float"),
        (4, lambda n: [*n[:11], n[11][:3]], ValueError, r"norms\[11\] must be \[16\], got \[3\]"),
    ],
)
def test_names_the_mistake(
    function: Callable[..., Tensor], index: int, change: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(*changed(index, change))


@pytest.mark.parametrize("function", [ops.residual_network, reference.residual_network], ids=["ops", "reference"])
def test_filters_are_three_for_each_block(function: Callable[..., Tensor]) -> None:
    h, directions, magnitudes, biases, _, eps = network(2, 16, 4, 4, 4, 1, 3, False)
    with pytest.raises(ValueError, match="directions must be 3 for each block and 2 more, got 4"):
        function(h, directions[:4], magnitudes[:4], biases[:4], [], eps)


def changed_training(index: int, change: Callable[[Any], Any]) -> list[Any]:
    arguments = trained(2, 3, 16, 4, 4, 4, 1, 3)
    arguments[index] = change(arguments[index])
    return arguments


@pytest.mark.parametrize(
    "function", [ops.residual_network_training, reference.residual_network_training], ids=["ops", "reference"]
)
@pytest.mark.parametrize(
    ("index", "change", "error", "message"),
    [
        (0, lambda x: x.long(), TypeError, "x must be a floating Tensor"),
        (0, lambda x: x[0], ValueError, r"x must be \[B, I, H, W\], got \[3, 4, 4\]"),
        (0, lambda x: x[:0], ValueError, "x must have at least one entry per channel"),
        (0, lambda x: x[:, :2], ValueError, r"weights\[0\] must be \[O, 2, h, w\] with odd"),
        (1, lambda w: w[:5], ValueError, "weights must be 3 for each block and 3 more, got 5"),
        (1, lambda w: [w[0], w[2], *w[2:]], ValueError, r"weights\[1\] must be \[16, 16, 1, 1\], got \[16, 16, 3, 3\]"),
        (1, lambda w: [*w[:2], w[2][..., :2], *w[3:]], ValueError, r"weights\[2\] must be \[16, 16, h, w\] with odd"),
        (1, lambda w: [*w[:5], w[5][:, :8]], ValueError, r"weights\[5\] must be \[O, 16, 1, 1\]"),
        (2, lambda b: b[:5], ValueError, "biases must be 6 tensors, got 5"),
        (2, lambda b: [*b[:5], b[0]], ValueError, r"biases\[5\] must be \[4\], got \[16\]"),
        (3, lambda n: n[:4], ValueError, "norms must be 6 tensors, got 4"),
        (3, lambda n: [1.0, *n[1:]], TypeError, r"norms\[0\] must be a floating Tensor"),
        (3, lambda n: [n[0][:3], *n[1:]], ValueError, r"norms\[0\] must be \[16\], got \[3\]"),
    ],
)
def test_names_the_mistake_in_training(
    function: Callable[..., Any], index: int, change: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(*changed_training(index, change))
