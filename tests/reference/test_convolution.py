"""Convolutions against their definition."""

import itertools

import pytest
import torch

from pnf.reference import convolution


@pytest.mark.parametrize("size", [(3, 3), (1, 1), (1, 3), (5, 3)], ids=str)
@pytest.mark.parametrize("add", [True, False])
def test_definition(size: tuple[int, int], add: bool) -> None:
    torch.manual_seed(0)
    batch, inputs, outputs, height, width = 2, 3, 4, 4, 5
    x = torch.randn(batch, inputs, height, width, dtype=torch.float64)
    weight, bias = torch.randn(outputs, inputs, *size, dtype=torch.float64), torch.randn(outputs, dtype=torch.float64)
    added = torch.randn(batch, outputs, height, width, dtype=torch.float64) if add else None
    want = bias.view(-1, 1, 1).expand(batch, -1, height, width).clone()
    if added is not None:
        want += added
    for i, j, k, m in itertools.product(range(height), range(width), range(size[0]), range(size[1])):
        row, column = i + k - size[0] // 2, j + m - size[1] // 2
        if 0 <= row < height and 0 <= column < width:
            want[..., i, j] += x[..., row, column] @ weight[..., k, m].T
    torch.testing.assert_close(convolution(x, weight, bias, added), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("inputs", "outputs"), [(0, 2), (2, 0), (0, 0)])
def test_sums_of_nothing(inputs: int, outputs: int) -> None:
    bias = torch.arange(outputs, dtype=torch.float64)
    y = convolution(bias.new_ones(3, inputs, 4, 5), bias.new_ones(outputs, inputs, 3, 3), bias)
    assert y.equal(bias.view(-1, 1, 1).expand(3, -1, 4, 5))
