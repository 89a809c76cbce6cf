"""The compiled bounded-detail map against the reference."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from op_tests import (
    DTYPES,
    Case,
    Implementation,
    OpTests,
    assert_accurate,
    convert,
    draw,
    implementations,
)
from tensors import normal
from torch import Tensor

from pnf import ops, reference
from pnf.reference.haar_bounded import BOUNDARY

# NumPy in Triton's interpreter warns about values that are correct here.
INVALID = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:overflow:RuntimeWarning")

# Shapes of x and the axis of its pairs: vectors with a rest, rows of odd lengths, more channels than a tile has pairs,
# more than one chunk of a row, and an empty batch.
SHAPES = [((2, 3, 4, 6), 3), ((3, 2, 10, 7), 2), ((2, 20, 2), 2), ((0, 3, 4, 4), 3)]


def pixels(*shape: int) -> Tensor:
    return 0.02 + 0.96 * torch.rand(shape, dtype=torch.float64)


def gammas(channels: int) -> Tensor:
    return 2 * torch.rand(channels, dtype=torch.float64) - 1


def half(shape: Sequence[int], dim: int) -> list[int]:
    return [n // 2 if i == dim else n for i, n in enumerate(shape)]


def split(x: tuple[int, ...], dim: int) -> dict[str, Case]:
    s = half(x, dim)
    grads: Callable[[], list[Tensor]] = lambda: [normal(*s), normal(*s), normal(x[0])]  # noqa: E731
    name = f"{x} {dim}"
    return {
        name: Case("haar_bounded_split", lambda: [pixels(*x), gammas(x[1]), dim]),
        f"backward {name}": Case("haar_bounded_split_backward", lambda: [*grads(), pixels(*x), gammas(x[1]), dim]),
    }


def merge(x: tuple[int, ...], dim: int) -> dict[str, Case]:
    s = half(x, dim)
    name = f"{x} {dim}"
    return {
        name: Case("haar_bounded_merge", lambda: [pixels(*s), normal(*s), gammas(x[1]), dim]),
        f"backward {name}": Case(
            "haar_bounded_merge_backward",
            lambda: [normal(*x), normal(x[0]), pixels(*s), normal(*s), gammas(x[1]), dim],
        ),
    }


class TestSplit(OpTests):
    cases = {name: case for x, dim in SHAPES for name, case in split(x, dim).items()}


class TestMerge(OpTests):
    cases = {name: case for x, dim in SHAPES for name, case in merge(x, dim).items()}


def weights(out: Tensor) -> Tensor:
    sizes = torch.linspace(1, 2, out.numel(), dtype=out.dtype, device=out.device)
    sizes[1::2] *= -1
    return sizes.view(out.shape)


def results_and_gradients(implementation: Implementation, name: str, args: list[Any]) -> list[Tensor]:
    """The results, and the gradients of a weighted sum of each result separately."""
    moved = [a.to(implementation.device) if isinstance(a, Tensor) else a for a in args]
    results = implementation.run(name, moved)
    found = list(results)
    for i in range(len(results)):
        grads = [weights(out) if i == j else torch.zeros_like(out) for j, out in enumerate(results)]
        found += implementation.run(f"{name}_backward", [*grads, *moved])
    return [out.cpu() for out in found]


def of_reference(name: str, args: list[Any]) -> list[Tensor]:
    leaves = [a.detach().requires_grad_() if isinstance(a, Tensor) else a for a in args]
    results = getattr(reference, name)(*leaves)
    found = list(results)
    for out in results:
        sum_of_it = (weights(out) * out).sum()
        found += torch.autograd.grad(sum_of_it, leaves[:-1], retain_graph=True, materialize_grads=True)
    return [out.detach() for out in found]


GREY = [0.5 - 2**-10, 0.5, 0.5 + 2**-10]
EDGES = [0.0, BOUNDARY / 2, BOUNDARY, 2 * BOUNDARY, 0.25, *GREY, 0.75, 1 - 2 * BOUNDARY, 1 - BOUNDARY, 1.0]
DETAILS = [0.0, -0.0, 1e-40, 0.3, -0.3, 15.0, -15.0, 200.0, -200.0]


def assert_edges(implementation: Implementation, name: str, args: list[Any], dtype: torch.dtype) -> None:
    """Compare float64 entry by entry, to find wrong branches. Float32 rounds exponents up to 64 too coarsely."""
    for a, b in zip(results_and_gradients(implementation, name, args), of_reference(name, args), strict=True):
        assert a.isfinite().all()
        if dtype is torch.float64:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-7)
        else:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(b.abs().max().item(), 1))


@pytest.mark.parametrize("gamma", [-1e3, -6.0, -4.0, -0.5, 0.0, 1.0, 4.0, 6.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("implementation", implementations("haar_bounded_split"), ids=str)
def test_black_white_and_grey(implementation: Implementation, dtype: torch.dtype, gamma: float) -> None:
    """Both sides of each clamp and of 1/2, ``d = m``, ``d = -m`` and ``d = 0``."""
    edges, details = torch.tensor(EDGES, dtype=dtype), torch.tensor(DETAILS, dtype=dtype)
    x, g = torch.cartesian_prod(edges, edges).view(1, 1, -1), torch.tensor([gamma], dtype=dtype)
    assert_edges(implementation, "haar_bounded_split", [x, g, 2], dtype)
    # A mean outside [0, 1] gives clipped pixels.
    means = torch.cat((edges, torch.tensor([-0.1, 1.2], dtype=dtype)))
    s, u = torch.cartesian_prod(means, details).T[:, None, None].contiguous()
    assert_edges(implementation, "haar_bounded_merge", [s, u, g, 2], dtype)
    pixels = implementation.run("haar_bounded_merge", [a.to(implementation.device) for a in (s, u, g)] + [2])[0]
    assert pixels.min() >= 0
    assert pixels.max() <= 1


@INVALID
@pytest.mark.parametrize("implementation", implementations("haar_bounded_split"), ids=str)
def test_nan_and_infinities_in_split(implementation: Implementation) -> None:
    nan, inf = math.nan, math.inf
    x = torch.tensor(
        [[0.25, 0.5], [nan, 0.5], [0.5, nan], [inf, 0.5], [0.5, -inf], [inf, -inf], [1e-45, -0.0], [3e38] * 2]
    )
    args = [x.view(-1, 1, 2), torch.tensor([0.5])]
    got = implementation.run("haar_bounded_split", [a.to(implementation.device) for a in args] + [2])
    for a, b in zip(got, reference.haar_bounded_split(*args, 2), strict=True):
        torch.testing.assert_close(a.cpu(), b, equal_nan=True)


@INVALID
@pytest.mark.parametrize("implementation", implementations("haar_bounded_merge"), ids=str)
def test_nan_and_infinities_in_merge(implementation: Implementation) -> None:
    nan, inf = math.nan, math.inf
    pairs = [
        [0.25, 0.5],
        [nan, 0.5],
        [0.5, nan],
        [0.3, inf],
        [0.3, -inf],
        [inf, 1.0],
        [-inf, 1.0],
        [1e-45, 3e38],
        [0.0, -0.0],
    ]
    s, u = torch.tensor(pairs).view(-1, 1, 1, 2).unbind(-1)
    args = [s, u, torch.tensor([0.5])]
    got = implementation.run("haar_bounded_merge", [a.to(implementation.device) for a in args] + [2])
    for a, b in zip(got, reference.haar_bounded_merge(*args, 2), strict=True):
        torch.testing.assert_close(a.cpu(), b, equal_nan=True)


@pytest.mark.parametrize(
    "implementation", [i for i in implementations("haar_bounded_split") if i.kind == "cpp"], ids=str
)
@pytest.mark.parametrize("shape", [(2, 2, 8258), (1, 300, 2)], ids=str)
def test_long_rows_and_many_channels(implementation: Implementation, shape: tuple[int, ...]) -> None:
    for case in (split(shape, 2) | merge(shape, 2)).values():
        args, low, exact, errors = draw(case.op, lambda c=case: convert(c.arguments(), torch.Tensor.float))
        assert_accurate(implementation.run(case.op, args), low, exact, case.op, errors)


def units(got: Tensor, want: Tensor, least: float = 0.0) -> float:
    """The largest error of float32, in units in the last place of the result or of ``least``, the larger one."""
    unit = (want.abs().clamp(min=least).log2().floor() - 23).clamp(min=-149).exp2()
    return ((got.double() - want).abs() / unit).max().item()


@pytest.mark.parametrize(
    "implementation", [i for i in implementations("haar_bounded_split") if i.kind == "cpp"], ids=str
)
def test_logarithm_is_accurate(implementation: Implementation) -> None:
    """``u = (log a - log(1/4)) / 2`` where ``gamma = 0``."""
    a = torch.cat((torch.logspace(-23.9, -2, 20000, base=2), torch.linspace(0.2, 0.5, 20000)))
    x, gamma = torch.stack((a, torch.full_like(a, 0.25)), -1).view(1, 1, -1), torch.zeros(1)
    _, u, _ = implementation.run("haar_bounded_split", [x, gamma, 2])
    # Both logarithms and their difference may err. A unit of log(1/4) is two of its half.
    assert units(u.flatten(), (4 * a.double()).log() / 2, least=math.log(2)) < 2


@pytest.mark.parametrize(
    "implementation", [i for i in implementations("haar_bounded_merge") if i.kind == "cpp"], ids=str
)
def test_exponential_and_sigmoid_are_accurate(implementation: Implementation) -> None:
    """``x = sigmoid(2 u), sigmoid(-2 u)`` where ``s = 1/2`` and ``gamma = 0``, down to denormals."""
    u = torch.cat((torch.linspace(-52, 52, 40001), torch.logspace(-30, 0, 2000), torch.tensor([500.0, -500.0, 3e38])))
    u, s = u.view(-1, 1, 1), torch.full((len(u), 1, 1), 0.5)
    x, log_det = implementation.run("haar_bounded_merge", [s, u, torch.zeros(1), 2])
    v = 2 * u.double().flatten()
    assert units(x[:, 0, 0], v.sigmoid()) < 3
    # sigmoid(-v) is 0 where it is too small for float32.
    assert units(x[:, 0, 1], (-v).sigmoid()) < 3
    want = 2 * math.log(2) - v.abs() - 2 * (-v.abs()).exp().log1p()
    kept = v.abs() < 1e38
    assert units(log_det[kept], want[kept], least=2.0) < 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("implementation", implementations("haar_bounded_split"), ids=str)
def test_comes_back(implementation: Implementation, last: bool, dtype: torch.dtype) -> None:
    x = pixels(2, 3, 6, 70).to(dtype).to(implementation.device)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    gamma = torch.tensor([-0.5, 0.0, 1.0], dtype=dtype, device=implementation.device)
    for dim in (2, 3):
        s, u, log_det = implementation.run("haar_bounded_split", [x, gamma, dim])
        back, log_det_back = implementation.run("haar_bounded_merge", [s, u, gamma, dim])
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(back, x, rtol=16 * eps, atol=16 * eps)
        torch.testing.assert_close(log_det_back, -log_det, rtol=0.01 if dtype.itemsize == 2 else 1e-5, atol=1e-2)


@pytest.mark.parametrize(
    ("dtype", "gamma_dtype"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float64),
        (torch.float64, torch.float32),
        (torch.float32, torch.bfloat16),
    ],
    ids=str,
)
@pytest.mark.parametrize("dim", [2, -1])
def test_gamma_of_another_dtype(dtype: torch.dtype, gamma_dtype: torch.dtype, dim: int) -> None:
    x, gamma = pixels(2, 3, 4, 6).to(dtype), torch.tensor([-0.5, 0.25, 1.0], dtype=gamma_dtype)
    detail = normal(2, 3, 4, 6).to(dtype)
    for name, args in (("haar_bounded_split", [x, gamma]), ("haar_bounded_merge", [x, detail, gamma])):
        outcomes = []
        for functions in (ops, reference):
            leaves = [a.detach().requires_grad_() for a in args]
            results = getattr(functions, name)(*leaves, dim)
            outcomes.append([*results, *torch.autograd.grad(results, leaves, [weights(out) for out in results])])
        for a, b in zip(*outcomes, strict=True):
            eps = max(torch.finfo(dtype).eps, torch.finfo(b.dtype).eps)
            torch.testing.assert_close(a, b, rtol=0, atol=16 * eps * b.abs().max().item())


@pytest.mark.parametrize("dim", [-1, -2])
@pytest.mark.parametrize("name", ["haar_bounded_split", "haar_bounded_merge"])
def test_unchecked_ops_take_a_negative_dim(name: str, dim: int) -> None:
    x, d, gamma = pixels(2, 3, 4, 6), normal(2, 3, 4, 6), gammas(3)
    args = [x, gamma] if name == "haar_bounded_split" else [x, d, gamma]
    outcomes = []
    for axis in (dim, dim % 4):
        results = getattr(torch.ops.pnf, name)(*args, axis)
        backward = getattr(torch.ops.pnf, f"{name}_backward")
        outcomes.append([*results, *backward(*(weights(out) for out in results), *args, axis)])
    for got, want in zip(*outcomes, strict=True):
        assert torch.equal(got, want)


X, G = torch.rand(2, 3, 4, 4), torch.zeros(3)
MISTAKES = [
    (lambda f: f.haar_bounded_split(1, G, 2), TypeError, "haar_bounded_split: x must be a floating Tensor, got int"),
    (
        lambda f: f.haar_bounded_split(X, 0.5, 2),
        TypeError,
        "haar_bounded_split: gamma must be a floating Tensor, got float",
    ),
    (
        lambda f: f.haar_bounded_split(X[..., 1:], G, -1),
        ValueError,
        "haar_bounded_split: x must have an even size along dim -1, got [2, 3, 4, 3]",
    ),
    (
        lambda f: f.haar_bounded_split(X, G, 0),
        ValueError,
        "haar_bounded_split: dim must be a spatial axis of [B, C, ...], got dim 0 of [2, 3, 4, 4]",
    ),
    (
        lambda f: f.haar_bounded_split(X, G[:2], -1),
        ValueError,
        "haar_bounded_split: gamma must be [3], one for each channel, got [2]",
    ),
    (
        lambda f: f.haar_bounded_merge(X.int(), X, G, -1),
        TypeError,
        "haar_bounded_merge: s must be a floating Tensor, got torch.int32",
    ),
    (
        lambda f: f.haar_bounded_merge(X, X, G, 7),
        ValueError,
        "haar_bounded_merge: s must have a dim 7, got [2, 3, 4, 4]",
    ),
    (
        lambda f: f.haar_bounded_merge(X, X, G, -3),
        ValueError,
        "haar_bounded_merge: dim must be a spatial axis of [B, C, ...], got dim -3 of [2, 3, 4, 4]",
    ),
    (
        lambda f: f.haar_bounded_merge(X, X.double(), G, 2),
        TypeError,
        "haar_bounded_merge: u must have the dtype of s, torch.float32, got torch.float64",
    ),
    (
        lambda f: f.haar_bounded_merge(X, X[:1], G, 2),
        ValueError,
        "haar_bounded_merge: u must have the shape of s, [2, 3, 4, 4], got [1, 3, 4, 4]",
    ),
    (
        lambda f: f.haar_bounded_merge(X, X, G[:2], 2),
        ValueError,
        "haar_bounded_merge: gamma must be [3], one for each channel, got [2]",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), MISTAKES, ids=[text[:60] for *_, text in MISTAKES])
@pytest.mark.parametrize("functions", [ops, reference], ids=["ops", "reference"])
def test_names_the_mistake(functions: object, call: Callable[[Any], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        call(functions)
    assert str(caught.value) == text


@pytest.mark.parametrize("functions", [ops, reference], ids=["ops", "reference"])
def test_the_mean_has_a_gradient_only_from_x(functions: Any) -> None:
    """What is computed of the mean, such as the input of a conditioner network, needs no backward then."""
    x, gamma = pixels(2, 3, 4, 4), gammas(3).requires_grad_()
    s, u, log_det = functions.haar_bounded_split(x, gamma, 3)
    assert not s.requires_grad
    want = torch.autograd.grad(u.square().sum() + log_det.sum(), gamma)
    s, u, log_det = functions.haar_bounded_split(x.requires_grad_(), gamma, 3)
    assert s.requires_grad
    torch.testing.assert_close(torch.autograd.grad(s.sum() + u.square().sum() + log_det.sum(), gamma), want)
