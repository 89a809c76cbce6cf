"""The compiled residual network against the reference."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_tests import Case, OpTests
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
