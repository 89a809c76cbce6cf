"""S, Δ and ⊕ of the paper's section 2."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pnf.reference import haar_merge, haar_pyramid, haar_pyramid_inverse, haar_split

AXES = ("x", "y", "xy", "yx")
SEEDS = st.integers(0, 99)
LogAbsDet = Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]


def rand(*shape: int) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64)


def neighbours(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    entries = x.unbind(dim)
    return torch.stack(entries[0::2], dim), torch.stack(entries[1::2], dim)


def close(a: Tensor, b: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("shape", "dim"),
    [((2, 3, 4, 6), 2), ((2, 3, 4, 6), -1), ((2, 4, 3), 1), ((6,), 0), ((4, 2), -2), ((2, 1, 2, 3, 4), 2), ((2, 0), 1)],
)
def test_split_is_mean_and_half_difference(shape: tuple[int, ...], dim: int) -> None:
    x = rand(*shape)
    s, d = haar_split(x, dim)
    if x.numel():
        x0, x1 = neighbours(x, dim)
        close(s, (x0 + x1) / 2)
        close(d, (x0 - x1) / 2)
    close(haar_merge(s, d, dim), x)


def test_merge_interleaves_sum_and_difference() -> None:
    s, d = torch.tensor([10.0, 20.0]), torch.tensor([1.0, 2.0])
    assert haar_merge(s, d, 0).tolist() == [11.0, 9.0, 22.0, 18.0]


@pytest.mark.parametrize("dim", [1, 2])
def test_each_pair_costs_log_2(dim: int, log_abs_det: LogAbsDet) -> None:
    x = rand(2, 2, 4)
    pairs = 4
    close(log_abs_det(lambda x: torch.cat(haar_split(x, dim), dim), x), x.new_full((2,), -pairs * math.log(2)))
    close(log_abs_det(lambda x: haar_merge(*x.chunk(2, dim), dim), x), x.new_full((2,), pairs * math.log(2)))


def test_pyramid_is_the_paper_s_order() -> None:
    x = rand(2, 3, 8, 12)
    base, details = haar_pyramid(x, 2)
    assert [tuple(d.shape[2:]) for d in details] == [(2, 3), (2, 6), (4, 6), (4, 12)]
    for i in range(2):
        for j in range(3):
            close(base[..., i, j], x[..., 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean((-1, -2)))
    image = base
    for d, dim in zip(details, (-1, -2, -1, -2), strict=True):
        image = haar_merge(image, d, dim)
    close(image, x)


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("levels", [0, 1, 2])
def test_pyramid_is_repeated_splits(levels: int, axes: str) -> None:
    x = rand(2, 2, 4, 8)
    base, details = haar_pyramid(x, levels, axes)
    assert len(details) == levels * len(axes)
    image = x
    for d, axis in zip(details[::-1], (axes[::-1] * levels), strict=True):
        image, want = haar_split(image, {"x": -1, "y": -2}[axis])
        close(d, want)
    close(base, image)
    close(haar_pyramid_inverse(base, details, axes), x)


def test_pyramid_inverse_stops_where_the_details_do() -> None:
    x = rand(2, 1, 8, 8)
    base, details = haar_pyramid(x, 2)
    coarse, _ = haar_pyramid(x, 1)
    close(haar_pyramid_inverse(base, details[:2]), coarse)
    close(haar_pyramid_inverse(base, []), base)


@pytest.mark.parametrize("axes", AXES)
def test_pyramid_costs_log_2_for_each_detail(axes: str, log_abs_det: LogAbsDet) -> None:
    def flat(x: Tensor) -> Tensor:
        base, details = haar_pyramid(x, 1, axes)
        return torch.cat([part.flatten(1) for part in (base, *details)], 1)

    x = rand(2, 1, 4, 2)
    details = haar_pyramid(x, 1, axes)[1]
    cost = sum(d[0].numel() for d in details) * math.log(2)
    close(log_abs_det(flat, x), x.new_full((2,), -cost))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 3), st.sampled_from(AXES), st.lists(st.integers(1, 3), min_size=2, max_size=4), SEEDS)
def test_pyramid_comes_back_for_any_shape(levels: int, axes: str, shape: list[int], seed: int) -> None:
    for axis, dim in (("x", -1), ("y", -2)):
        shape[dim] *= 2**levels if axis in axes else 1
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    base, details = haar_pyramid(x, levels, axes)
    assert base.numel() + sum(d.numel() for d in details) == x.numel()
    close(haar_pyramid_inverse(base, details, axes), x)


# Errors
