"""The compiled standard normal log-density against the reference."""

import math

import pytest
import torch
from op_tests import Case, Implementation, OpTests, implementations
from tensors import normal

from pnf import ops, reference

SHAPES = [(3, 2, 4, 5), (2, 5001), (300, 3), (1, 1), (4,), (0, 3), (5, 0)]


class TestStandardNormal(OpTests):
    cases = {
        **{f"forward {shape}": Case("standard_normal", lambda s=shape: [normal(*s)]) for shape in SHAPES},
        **{
            f"backward {shape}": Case("standard_normal_backward", lambda s=shape: [normal(s[0]), normal(*s)])
            for shape in SHAPES
        },
    }


@pytest.mark.parametrize("implementation", implementations("standard_normal"), ids=str)
def test_nan_and_infinities(implementation: Implementation) -> None:
    z = torch.tensor([[0.0, 1.0], [math.nan, 0.0], [math.inf, 0.0], [1e-45, -0.0]], device=implementation.device)
    (out,) = implementation.run("standard_normal", [z])
    torch.testing.assert_close(out.cpu(), reference.standard_normal(z.cpu()), equal_nan=True)


@pytest.mark.parametrize(
    ("z", "error", "text"),
    [
        (1, TypeError, "standard_normal: z must be a floating Tensor, got int"),
        (torch.zeros(2, dtype=torch.long), TypeError, "standard_normal: z must be a floating Tensor, got torch.int64"),
        (torch.zeros(()), ValueError, "standard_normal: z must be [B, ...], got []"),
    ],
)
@pytest.mark.parametrize("functions", [ops, reference], ids=["ops", "reference"])
def test_names_the_mistake(functions: object, z: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        functions.standard_normal(z)
    assert str(caught.value) == text
