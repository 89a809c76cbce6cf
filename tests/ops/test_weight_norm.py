"""The compiled weight normalisation against the reference."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from op_tests import Case, Implementation, OpTests, implementations
from tensors import normal

from pnf import ops, reference
from pnf.ops.weight_norm import given, placed

LAYERS = {
    "network": [((4, 5, 3, 3), True), ((8, 4, 1, 1), False), ((3, 17, 3, 1), True)],
    "no magnitudes": [((4, 5, 3, 3), False), ((2, 3), False)],
    "vectors and signals": [((3,), True), ((2, 5), True), ((2, 3, 5), False)],
    "long rows": [((2, 1000, 3, 3), True)],
    "empty": [((0, 3, 1, 1), True), ((2, 0, 1, 1), True), ((2, 3, 1, 1), False)],
}


def layers(sizes: Sequence[tuple[tuple[int, ...], bool]]) -> list[Any]:
    directions = [normal(*shape) for shape, _ in sizes]
    magnitudes = [normal(shape[0], *(1,) * (len(shape) - 1)) if given else None for shape, given in sizes]
    return [directions, *given(magnitudes)]


class TestWeightNorm(OpTests):
    cases = {
        **{f"forward {name}": Case("weight_norm", lambda s=sizes: layers(s)) for name, sizes in LAYERS.items()},
        **{
            f"backward {name}": Case(
                "weight_norm_backward", lambda s=sizes: [[normal(*shape) for shape, _ in s], *layers(s)]
            )
            for name, sizes in LAYERS.items()
        },
    }


@pytest.mark.parametrize("implementation", implementations("weight_norm"), ids=str)
def test_no_layers(implementation: Implementation) -> None:
    assert implementation.run("weight_norm", [[], [], []]) == []
    assert implementation.run("weight_norm_backward", [[], [], [], []]) == []


@pytest.mark.parametrize("implementation", implementations("weight_norm"), ids=str)
def test_directions_of_zeros(implementation: Implementation) -> None:
    zeros = torch.zeros(2, 3, 1, 1, device=implementation.device)
    grad, magnitude = torch.ones_like(zeros), torch.full((2, 1, 1, 1), 2.0, device=implementation.device)
    (weight,) = implementation.run("weight_norm", [[zeros], [magnitude], [1]])
    assert torch.equal(weight, zeros)
    # The norm of zeros is the constant 1e-6.
    found = implementation.run("weight_norm_backward", [[grad], [zeros], [magnitude], [1]])
    torch.testing.assert_close(found[0], 2e6 * grad)
    assert torch.equal(found[1], torch.zeros_like(magnitude))


@pytest.mark.parametrize("implementation", implementations("weight_norm"), ids=str)
def test_many_layers_equal_each_alone(implementation: Implementation) -> None:
    directions, magnitudes, scaled = layers([((2, i % 7, 3, 1), i % 2 == 0) for i in range(900)])
    weights = implementation.run("weight_norm", [directions, magnitudes, scaled])
    backwards = [directions[::-1], directions[::-1], magnitudes[::-1], scaled[::-1]]
    found = implementation.run("weight_norm_backward", backwards)
    for i, (direction, magnitude) in enumerate(zip(directions, placed(magnitudes, scaled), strict=True)):
        own = given([magnitude])
        (weight,) = implementation.run("weight_norm", [[direction], *own])
        assert torch.equal(weights[i], weight)
        grads = implementation.run("weight_norm_backward", [[direction], [direction], *own])
        assert torch.equal(found[899 - i], grads[0])
        assert magnitude is None or torch.equal(found[-1 - i // 2], grads[1])


V, M = torch.ones(2, 3, 1, 1), torch.ones(2, 1, 1, 1)
MISTAKES = [
    ([V], [], ValueError, "weight_norm: magnitudes must be as many as directions, 1, got 0"),
    ([1], [None], TypeError, "weight_norm: directions[0] must be a floating Tensor, got int"),
    ([V, V.double()], [None, None], TypeError,
     "weight_norm: directions[1] must have the dtype of the first, torch.float32, got torch.float64"),
    ([torch.ones(())], [None], ValueError, "weight_norm: directions[0] must be [O, ...], got []"),
    ([V], [M.double()], TypeError,
     "weight_norm: magnitudes[0] must be None or a Tensor of torch.float32, got torch.float64"),
    ([V], [M[:1]], ValueError, "weight_norm: magnitudes[0] must be [2, 1, 1, 1], got [1, 1, 1, 1]"),
]  # fmt: skip


@pytest.mark.parametrize("functions", [ops, reference], ids=["ops", "reference"])
@pytest.mark.parametrize(("directions", "magnitudes", "error", "text"), MISTAKES)
def test_names_the_mistake(
    functions: Any, directions: list[Any], magnitudes: list[Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error) as caught:
        functions.weight_norm(directions, magnitudes)
    assert str(caught.value) == text
