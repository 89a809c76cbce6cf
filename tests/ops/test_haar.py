"""The compiled Haar splits, merges and pyramids against the reference."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from op_tests import LAYOUTS, SPLITS, Case, Implementation, OpTests, channels_last, implementations
from tensors import normal
from torch import Tensor

from pnf import ops, reference

# Whole vectors and less, one axis and two, every number of levels that a pass takes.
PYRAMIDS = [
    ((2, 3, 4, 32), 1, "xy"),
    ((1, 2, 8, 64), 2, "yx"),
    ((1, 1, 8, 16), 3, "xy"),
    ((3, 2, 2, 6), 1, "yx"),
    ((2, 3, 48), 3, "x"),
    ((2, 4, 5), 2, "y"),
    ((4, 1031), 2, "y"),
    ((0, 2, 4, 4), 1, "xy"),
]


def halves(shape: tuple[int, ...], dim: int) -> list[Tensor]:
    return [normal(*s.shape) for s in reference.haar_split(normal(*shape), dim)]


def parts(shape: tuple[int, ...], levels: int, axes: str) -> list[Tensor]:
    base, details = reference.haar_pyramid(normal(*shape), levels, axes)
    return [normal(*part.shape) for part in (base, *details)]


class TestSplitAndMerge(OpTests):
    cases = {
        **{
            f"split {shape} {dim}": Case("haar_split", lambda s=shape, d=dim: [normal(*s), d, 0.5])
            for shape, dim in SPLITS
        },
        **{
            f"merge {shape} {dim}": Case("haar_merge", lambda s=shape, d=dim: [*halves(s, d), d, 1.0])
            for shape, dim in SPLITS
        },
    }


class TestPyramid(OpTests):
    cases = {
        f"{shape} {levels} {axes}": Case("haar_pyramid", lambda s=shape, n=levels, a=axes: [normal(*s), n, a, 0.5])
        for shape, levels, axes in PYRAMIDS
    }


class TestPyramidInverse(OpTests):
    cases = {
        f"{shape} {levels} {axes}": Case(
            "haar_pyramid_inverse", lambda s=shape, n=levels, a=axes: [parts(s, n, a), a, 1.0]
        )
        for shape, levels, axes in PYRAMIDS
    }


def assert_identical(got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    """Equal to the bit, except for the bits of NaN."""
    for a, b in zip(got, want, strict=True):
        a = a.cpu()
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        assert (a.isnan() | (a.signbit() == b.signbit())).all()


# Triton's interpreter computes with NumPy, which warns.
@pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("implementation", implementations("haar_split"), ids=str)
def test_special_values_are_the_reference_s_to_the_bit(implementation: Implementation, dtype: torch.dtype) -> None:
    tiny, huge = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    values = [0.0, -0.0, 1.0, math.nan, math.inf, -math.inf, huge, -huge, tiny, tiny / 3, tiny / 7, -tiny / 64]
    # All quadruples as squares in two rows, which are longer than any vector.
    x = torch.cartesian_prod(*[torch.tensor(values, dtype=dtype)] * 4).view(-1, 2, 2).transpose(0, 1)
    x = x.reshape(1, 1, 2, -1)
    on_device = x.to(implementation.device)
    for dim in (-1, -2):
        s, d = reference.haar_split(x, dim)
        assert_identical(implementation.run("haar_split", [on_device, dim, 0.5]), [s, d])
        moved = [on_device.narrow(dim, 0, s.shape[dim]), on_device.narrow(dim, s.shape[dim], s.shape[dim])]
        want = reference.haar_merge(*(part.cpu() for part in moved), dim)
        assert_identical(implementation.run("haar_merge", [*moved, dim, 1.0]), [want])
    for axes in ("xy", "yx"):
        base, details = reference.haar_pyramid(x, 1, axes)
        assert_identical(implementation.run("haar_pyramid", [on_device, 1, axes, 0.5]), [base, *details])
        given = [part.to(implementation.device) for part in (base, *details)]
        want = reference.haar_pyramid_inverse(base, details, axes)
        assert_identical(implementation.run("haar_pyramid_inverse", [given, axes, 1.0]), [want])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("axes", ["x", "y", "xy", "yx"])
@pytest.mark.parametrize("levels", [0, 1, 3, 4])
def test_public_functions_are_the_reference_to_the_bit(levels: int, axes: str, dtype: torch.dtype, layout: str) -> None:
    x = LAYOUTS[layout](normal(2, 4, 16, 48).to(dtype))
    base, details = reference.haar_pyramid(x, levels, axes)
    got, found = ops.haar_pyramid(x, levels, axes)
    assert_identical([got, *found], [base, *details])
    for count in range(len(details) + 1):
        want = reference.haar_pyramid_inverse(base, details[:count], axes)
        assert_identical([ops.haar_pyramid_inverse(base, details[:count], axes)], [want])
    for dim in range(-4, 4):
        s, d = reference.haar_split(x, dim)
        assert_identical(ops.haar_split(x, dim), [s, d])
        assert_identical([ops.haar_merge(s, d, dim)], [reference.haar_merge(s, d, dim)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_pyramid_rounds_once(dtype: torch.dtype) -> None:
    x = normal(2, 3, 16, 32).to(dtype)
    base, details = reference.haar_pyramid(x.float(), 3)
    got, found = ops.haar_pyramid(x, 3)
    assert_identical([got, *found], [part.to(dtype) for part in (base, *details)])


@pytest.mark.parametrize("implementation", implementations("haar_split"), ids=str)
def test_a_sum_does_not_overflow_on_the_way(implementation: Implementation) -> None:
    x = torch.full((2, 4), torch.finfo(torch.float16).max, dtype=torch.float16, device=implementation.device)
    s, d = implementation.run("haar_split", [x, 1, 0.5])
    assert s.equal(x[:, :2])
    assert not d.any()


@pytest.mark.parametrize("run", [1000, 3000])
def test_details_in_another_layout_than_the_means(run: int) -> None:
    s, d = normal(2, 3, 2, run), channels_last(normal(2, 3, 2, run))
    for a, b in ((s, d), (d, s)):
        assert_identical([ops.haar_merge(a, b, 2)], [reference.haar_merge(a, b, 2)])
        assert_identical([ops.haar_pyramid_inverse(a, [b], "y")], [reference.haar_pyramid_inverse(a, [b], "y")])


X = torch.zeros(2, 4, 6)
ERRORS: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (lambda f: f.haar_split(1, 0), TypeError, "haar_split: x must be a floating Tensor, got int"),
    (
        lambda f: f.haar_split(X[:, :3], 1),
        ValueError,
        "haar_split: x must have an even size along dim 1, got [2, 3, 6]",
    ),
    (lambda f: f.haar_split(X.sum(), 0), ValueError, "haar_split: x must have an even size along dim 0, got []"),
    (lambda f: f.haar_split(X, 3), ValueError, "haar_split: x must have an even size along dim 3, got [2, 4, 6]"),
    (lambda f: f.haar_merge(X.int(), X, 1), TypeError, "haar_merge: s must be a floating Tensor, got torch.int32"),
    (lambda f: f.haar_merge(X, X.long(), 1), TypeError, "haar_merge: d must be a floating Tensor, got torch.int64"),
    (
        lambda f: f.haar_merge(X, X.double(), 1),
        TypeError,
        "haar_merge: d must have the dtype of s, torch.float32, got torch.float64",
    ),
    (
        lambda f: f.haar_merge(X, X[:1], 1),
        ValueError,
        "haar_merge: d must have the shape of s, [2, 4, 6], got [1, 4, 6]",
    ),
    (lambda f: f.haar_merge(X.sum(), X.sum(), 0), ValueError, "haar_merge: s must have a dim 0, got []"),
    (lambda f: f.haar_merge(X, X, -4), ValueError, "haar_merge: s must have a dim -4, got [2, 4, 6]"),
    (
        lambda f: f.haar_pyramid(X, 1, "z"),
        ValueError,
        'haar_pyramid: axes must be "x", "y", "xy" or "yx", got \'z\'',
    ),
    (lambda f: f.haar_pyramid(X.int(), 1), TypeError, "haar_pyramid: x must be a floating Tensor, got torch.int32"),
    (
        lambda f: f.haar_pyramid(X[0, 0], 1, "xy"),
        ValueError,
        "haar_pyramid: x must have a multiple of 2 along dim -2, got [6]",
    ),
    (
        lambda f: f.haar_pyramid_inverse(X, [X], ""),
        ValueError,
        'haar_pyramid_inverse: axes must be "x", "y", "xy" or "yx", got \'\'',
    ),
    (
        lambda f: f.haar_pyramid_inverse(X, [X.int()]),
        TypeError,
        "haar_pyramid_inverse: details[0] must be a floating Tensor, got torch.int32",
    ),
    (
        lambda f: f.haar_pyramid_inverse(X.int(), []),
        TypeError,
        "haar_pyramid_inverse: base must be a floating Tensor, got torch.int32",
    ),
    (lambda f: f.haar_pyramid(X, -1), ValueError, "haar_pyramid: levels must be at least 0, got -1"),
    (
        lambda f: f.haar_pyramid(X, 2),
        ValueError,
        "haar_pyramid: x must have a multiple of 4 along dim -1, got [2, 4, 6]",
    ),
    (
        lambda f: f.haar_pyramid_inverse(X, [X, X]),
        ValueError,
        "haar_pyramid_inverse: details[1] must have the shape of s, [2, 4, 12], got [2, 4, 6]",
    ),
    (
        lambda f: f.haar_pyramid_inverse(X, [X.half()]),
        TypeError,
        "haar_pyramid_inverse: details[0] must have the dtype of s, torch.float32, got torch.float16",
    ),
    (
        lambda f: f.haar_pyramid_inverse(X[0, 0], [X[0, 0]], "y"),
        ValueError,
        "haar_pyramid_inverse: s must have a dim -2, got [6]",
    ),
]


@pytest.mark.parametrize(("mistake", "error", "text"), ERRORS)
@pytest.mark.parametrize("functions", [ops, reference], ids=["ops", "reference"])
def test_names_the_mistake(functions: object, mistake: Callable[[Any], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        mistake(functions)
    assert str(caught.value) == text
