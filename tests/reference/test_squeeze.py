"""Both orders of space-to-depth, as index maps."""

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pnf.reference import squeeze, squeeze_inverse

ORDERS: dict[str, Callable[[int, int, int, int], int]] = {
    "plain": lambda c, i, j, channels: 4 * c + 2 * i + j,
    "factor": lambda c, i, j, channels: channels * [(0, 0), (1, 1), (0, 1), (1, 0)].index((i, j)) + c,
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 6), (1, 1, 2, 2), (1, 2, 2, 8), (2, 2, 0, 4)])
def test_every_entry_is_where_the_docstring_says(order: str, shape: tuple[int, int, int, int]) -> None:
    x = torch.arange(torch.Size(shape).numel()).view(shape)
    y = squeeze(x, order)
    b, c, h, w = shape
    assert y.shape == (b, 4 * c, h // 2, w // 2)
    assert y.dtype == x.dtype
    for n, k, p, q, i, j in itertools.product(range(b), range(c), range(h // 2), range(w // 2), (0, 1), (0, 1)):
        assert y[n, ORDERS[order](k, i, j, c), p, q] == x[n, k, 2 * p + i, 2 * q + j]
    assert torch.equal(squeeze_inverse(y, order), x)


def test_the_first_half_in_factor_order_is_the_diagonal() -> None:
    x = torch.rand(2, 3, 4, 4)
    first = squeeze(x, "factor")[:, :6]
    assert torch.equal(first, torch.cat((x[..., 0::2, 0::2], x[..., 1::2, 1::2]), 1))


def test_plain_is_the_order_of_pixel_unshuffle() -> None:
    x = torch.rand(2, 3, 4, 6)
    assert torch.equal(squeeze(x), torch.nn.functional.pixel_unshuffle(x, 2))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.tuples(*[st.integers(0, 4)] * 4), st.sampled_from(sorted(ORDERS)))
def test_both_ways_round_for_any_size(size: tuple[int, int, int, int], order: str) -> None:
    b, c, h, w = size
    x, y = torch.rand(b, c, 2 * h, 2 * w), torch.rand(b, 4 * c, h, w)
    assert torch.equal(squeeze_inverse(squeeze(x, order), order), x)
    assert torch.equal(squeeze(squeeze_inverse(y, order), order), y)
