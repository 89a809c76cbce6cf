"""The compiled lattice of 8-bit images against the reference."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from op_tests import DTYPES, LAYOUTS, SPLITS, Case, Implementation, OpTests, channels_last, implementations
from torch import Tensor

from pnf import ops, reference

LEVELS = 6


def inside(shape: Sequence[int], least: float = 0.1) -> Tensor:
    """Numbers in [0, 1] that are no nearer to its bounds: noise that no rounding error takes to another level."""
    return least + (1 - 2 * least) * torch.rand(*shape, dtype=torch.float64)


def pixels(shape: Sequence[int], dim: int) -> Tensor:
    """The noises of a pair differ, since their smaller one has a kink where they are equal."""
    half = list(shape)
    half[dim] //= 2
    low, gap, order = inside(half) / 2, inside(half) / 2, torch.rand(half) < 0.5
    first, second = torch.where(order, low, low + gap), torch.where(order, low + gap, low)
    noise = reference.haar_merge((first + second) / 2, (first - second) / 2, dim)
    return (torch.randint(LEVELS, shape) + noise) / LEVELS


class TestSplitAndMerge(OpTests):
    cases = {
        **{
            f"split {shape} {dim}": Case("lattice_split", lambda s=shape, d=dim: [pixels(s, d), LEVELS, d])
            for shape, dim in SPLITS
        },
        **{
            f"merge {shape} {dim}": Case(
                "lattice_merge",
                lambda s=shape, d=dim: [*reference.lattice_split(pixels(s, d), LEVELS, d), LEVELS, d],
            )
            for shape, dim in SPLITS
        },
    }


def assert_identical(got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=0, equal_nan=True)


def assert_merged(got: Tensor, want: Tensor) -> None:
    """PyTorch's square root errs by a unit in the last place on some processors; the kernels' is exact."""
    torch.testing.assert_close(got.cpu(), want, rtol=2 * torch.finfo(want.dtype).eps, atol=0, equal_nan=True)


# Triton's interpreter computes with NumPy, which warns.
@pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")
@pytest.mark.parametrize("levels", [1, 4, 256, 1021])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("implementation", implementations("lattice_split"), ids=str)
def test_bounds_and_numbers_that_are_no_pixels(implementation: Implementation, dtype: torch.dtype, levels: int) -> None:
    """Both sides of the bounds of levels and of images, and special values."""
    near = [n / levels + side for n in (0, 1, 2, levels - 1, levels) for side in (-1e-9, 0, 1e-9, 0.3 / levels)]
    values = torch.tensor([*near, -0.0, 0.5, -1, 2, 3e38, 1e-45, math.nan, math.inf, -math.inf], dtype=dtype)
    x = torch.cartesian_prod(values, values)
    for dim, pairs in ((1, x), (0, x.T.contiguous())):
        on_device = pairs.to(implementation.device)
        want = reference.lattice_split(pairs, levels, dim)
        assert_identical(implementation.run("lattice_split", [on_device, levels, dim]), want)
        for coarser in (want[0], pairs.narrow(dim, 0, 1).contiguous()):
            (got,) = implementation.run("lattice_merge", [coarser.to(implementation.device), on_device, levels, dim])
            assert_merged(got, reference.lattice_merge(coarser, pairs, levels, dim))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_public_functions_are_the_reference(dtype: torch.dtype, layout: str) -> None:
    x = LAYOUTS[layout](torch.rand(2, 4, 16, 48).to(dtype))
    for levels, dim in itertools.product((2, 256, 8161), range(-4, 4)):
        want = reference.lattice_split(x, levels, dim)
        got = ops.lattice_split(x, levels, dim)
        assert_identical(got, want)
        assert_merged(ops.lattice_merge(*got, levels, dim), reference.lattice_merge(*want, levels, dim))


@pytest.mark.parametrize("run", [1, 1000, 3000])
def test_pairs_in_another_layout_than_the_coarser_image(run: int) -> None:
    coarser, pairs = torch.rand(2, 3, 2, run), torch.rand(2, 3, 4, run)
    want = reference.lattice_merge(coarser, pairs, 256, 2)
    assert_merged(ops.lattice_merge(coarser, channels_last(pairs), 256, 2), want)
    assert_merged(ops.lattice_merge(channels_last(coarser), pairs, 256, 2), want)


@pytest.mark.parametrize("functions", [ops, reference], ids=["ops", "reference"])
def test_pixels_without_noise_have_gradients(functions: Any) -> None:
    """Their noise is 0, a bound of the map: at (p, q) = (0, 1/4), v = p / (1 - q + p) has the slopes 4/3 and 0."""
    x = torch.tensor([[0, 0.25]], dtype=torch.float64).div(2).requires_grad_()
    coarser, pairs = functions.lattice_split(x, 2, -1)
    want = torch.tensor([[8 / 9, 0]], dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad(coarser.sum(), x, retain_graph=True)[0], want)
    leaves = [part.detach().requires_grad_() for part in (coarser, pairs)]
    slopes = torch.autograd.grad(functions.lattice_merge(*leaves, 2, -1).sum(), leaves)
    assert slopes[0].item() == 9 / 4
    assert slopes[1][0, 1] == 0


X, HALF = torch.zeros(2, 4, 6), torch.zeros(2, 2, 6)
ERRORS: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (lambda f: f.lattice_split(1, 4, 0), TypeError, "lattice_split: x must be a floating Tensor, got int"),
    (
        lambda f: f.lattice_split(X[:, :3], 4, 1),
        ValueError,
        "lattice_split: x must have an even size along dim 1, got [2, 3, 6]",
    ),
    (
        lambda f: f.lattice_split(X, 4, 3),
        ValueError,
        "lattice_split: x must have an even size along dim 3, got [2, 4, 6]",
    ),
    (lambda f: f.lattice_split(X, 0, 1), ValueError, "lattice_split: levels must be at least 1, got 0"),
    (
        lambda f: f.lattice_merge(HALF.int(), X, 4, 1),
        TypeError,
        "lattice_merge: coarser must be a floating Tensor, got torch.int32",
    ),
    (
        lambda f: f.lattice_merge(HALF, X.long(), 4, 1),
        TypeError,
        "lattice_merge: pairs must be a floating Tensor, got torch.int64",
    ),
    (
        lambda f: f.lattice_merge(HALF, X.double(), 4, 1),
        TypeError,
        "lattice_merge: pairs must have the dtype of coarser, torch.float32, got torch.float64",
    ),
    (lambda f: f.lattice_merge(HALF, X, 4, -4), ValueError, "lattice_merge: coarser must have a dim -4, got [2, 2, 6]"),
    (
        lambda f: f.lattice_merge(HALF, X, 4, 2),
        ValueError,
        "lattice_merge: pairs must be [2, 2, 12], coarser with twice its dim 2, got [2, 4, 6]",
    ),
    (lambda f: f.lattice_merge(HALF, X, -1, 1), ValueError, "lattice_merge: levels must be at least 1, got -1"),
]


@pytest.mark.parametrize(("mistake", "error", "text"), ERRORS, ids=[text[:60] for *_, text in ERRORS])
@pytest.mark.parametrize("functions", [ops, reference], ids=["ops", "reference"])
def test_names_the_mistake(functions: object, mistake: Callable[[Any], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        mistake(functions)
    assert str(caught.value) == text
