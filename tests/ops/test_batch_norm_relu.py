"""The compiled batch normalisation with ReLU against the reference."""

import itertools
import math
from typing import Any

import pytest
import torch
from op_tests import LAYOUTS, Case, Implementation, OpTests, implementations, use_threads
from tensors import normal
from torch import Tensor

from pnf import ops, reference

SHAPES = [(3, 5, 3, 7), (40, 2), (2, 17, 9)]
MANY = (3, 4, 700)
"""More entries of a channel than one program takes on a GPU."""
EPS = 1e-3


def forward(*shape: int, given: bool = False) -> list[Any]:
    """Arguments whose channels have different means, large and small."""
    channels = shape[1]
    centre = (3 - 2 * torch.arange(channels, dtype=torch.float64)).view(-1, *(1,) * (len(shape) - 2))
    statistics = (normal(channels), normal(channels).square()) if given else (None, None)
    return [normal(*shape) + centre, normal(channels), normal(channels), *statistics, EPS]


def backward(*shape: int, batch: bool) -> list[Any]:
    x, weight, bias, *_ = forward(*shape)
    _, mean, var = reference.batch_norm_relu(x, weight, bias)
    return [normal(*shape), x, weight, bias, mean, var, EPS, batch]


class TestBatchNormRelu(OpTests):
    # The forward's second derivatives differentiate the backward. Alone, it does not know that the statistics of a
    # batch depend on x, and it depends on the bias only through the sign.
    cases = {
        **{f"batch {shape}": Case("batch_norm_relu", lambda s=shape: forward(*s)) for shape in [*SHAPES[::2], MANY]},
        **{
            f"given {shape}": Case("batch_norm_relu", lambda s=shape: forward(*s, given=True), differentiable=False)
            for shape in [(40, 2), (1, 1, 1), (0, 3, 2), (2, 0, 3)]
        },
        **{
            f"backward {batch} {shape}": Case(
                "batch_norm_relu_backward", lambda s=shape, b=batch: backward(*s, batch=b), differentiable=False
            )
            for batch, shape in [*itertools.product((True, False), SHAPES[:2]), (True, MANY)]
        },
        "backward of nothing": Case(
            "batch_norm_relu_backward", lambda: [normal(0, 3, 2), *forward(0, 3, 2, given=True), False], False
        ),
    }


every_implementation = pytest.mark.parametrize("implementation", implementations("batch_norm_relu"), ids=str)


@every_implementation
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("shape", "ratio"), [((5, 3, 61, 47), 1e3), ((70, 4, 9), 1e4), ((3, 2, 5000), 1e4)])
def test_statistics_far_from_zero(
    implementation: Implementation, layout: str, shape: tuple[int, ...], ratio: float
) -> None:
    torch.manual_seed(0)
    x = LAYOUTS[layout]((torch.randn(shape) + ratio).to(implementation.device))
    ones = torch.ones(shape[1], device=implementation.device)
    _, mean, var = implementation.run("batch_norm_relu", [x, ones, ones, None, None, EPS])
    dims = [0, *range(2, x.dim())]
    want_var, want_mean = torch.var_mean(x.double(), dims, correction=0)
    # PyTorch sums in float32 and the kernels in float64.
    torch.testing.assert_close(
        mean.double(), want_mean, rtol=1e-6 if implementation.kind == "reference" else 2e-7, atol=0
    )
    torch.testing.assert_close(var.double(), want_var, rtol=4e-6, atol=0)


@every_implementation
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_blocks_that_differ_and_channels_that_are_constant(implementation: Implementation, layout: str) -> None:
    x = torch.randn(6, 3, 3000)
    x[:3] += 100
    x[:, 1] = 0.1
    x = LAYOUTS[layout](x.to(implementation.device))
    ones = torch.ones(3, device=implementation.device)
    y, mean, var = implementation.run("batch_norm_relu", [x, ones, ones, None, None, EPS])
    want = reference.batch_norm_relu(x.double(), ones.double(), ones.double(), eps=EPS)
    torch.testing.assert_close(mean.double(), want[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(var.double(), want[2], rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(y.double(), want[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(9, 3, 4100), (5, 33, 30, 30), (40, 64, 4, 4), (2, 5, 30000)])
def test_large_tensors_on_any_number_of_threads(shape: tuple[int, ...], layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(shape)).requires_grad_()
    weight, bias = torch.rand(shape[1]).requires_grad_(), torch.randn(shape[1]).requires_grad_()
    grad = torch.randn(shape)
    results = []
    for threads in (1, 2, 3):
        with use_threads(threads):
            y, mean, var = ops.batch_norm_relu(x, weight, bias)
            results.append([y, mean, var, *torch.autograd.grad(y, (x, weight, bias), grad)])
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))
    exact = [a.detach().double().requires_grad_() for a in (x, weight, bias)]
    y, mean, var = reference.batch_norm_relu(*exact)
    want = [y, mean, var, *torch.autograd.grad(y, exact, grad.double())]
    for a, b in zip(results[0], want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=2e-5, atol=2e-6 * b.abs().max().item())


@every_implementation
def test_nan_and_infinities_with_given_statistics(implementation: Implementation) -> None:
    x = torch.tensor([[0.5, 1.0], [math.nan, -1.0], [math.inf, -math.inf], [1e-45, -0.0]])
    args = [a.to(implementation.device) for a in (x, torch.tensor([2.0, -3.0]), torch.zeros(2))]
    given = [torch.zeros(2, device=x.device), torch.ones(2, device=x.device)]
    got = implementation.run("batch_norm_relu", [*args, *given, 0.0])[0]
    torch.testing.assert_close(got.cpu(), reference.batch_norm_relu(*args, *given, 0.0)[0], equal_nan=True)
    grad = torch.ones_like(x)
    want = torch.ops.pnf.batch_norm_relu_backward.default(grad, *args, *given, 0.0, False)[0]
    assert want.isfinite().all()
    got = implementation.run("batch_norm_relu_backward", [grad, *args, *given, 0.0, False])[0]
    torch.testing.assert_close(got, want)


@every_implementation
def test_nan_spoils_its_channel_only(implementation: Implementation) -> None:
    x = torch.randn(4, 3, 5, device=implementation.device)
    x[1, 1, 2] = math.nan
    y, mean, var = implementation.run("batch_norm_relu", [x, *torch.ones(2, 3, device=x.device), None, None, EPS])
    for a in (y.transpose(0, 1).flatten(1), mean.unsqueeze(1), var.unsqueeze(1)):
        assert a[1].isnan().all()
        assert not a[[0, 2]].isnan().any()


@every_implementation
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_with_parameters_in_float32(implementation: Implementation, dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, 5, dtype=dtype, device=implementation.device)
    weight, bias = torch.randn(2, 4, device=x.device)
    y, mean, var = implementation.run("batch_norm_relu", [x, weight, bias, None, None, EPS])
    want = reference.batch_norm_relu(x.float(), weight, bias, eps=EPS)
    assert (y.dtype, mean.dtype, var.dtype) == (dtype, torch.float32, torch.float32)
    torch.testing.assert_close((mean, var), want[1:])
    torch.testing.assert_close(y.float(), want[0], rtol=torch.finfo(dtype).eps, atol=1e-5)
    grads = implementation.run("batch_norm_relu_backward", [y, x, weight, bias, mean, var, EPS, True])
    assert [g.dtype for g in grads] == [dtype, torch.float32, torch.float32]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_given_statistics_are_constants(layout: str) -> None:
    x, weight, bias, mean, var, eps = forward(3, 2, 3, 2, given=True)
    args = [LAYOUTS[layout](a).requires_grad_() for a in (x, weight, bias)]
    mean.requires_grad_()
    var.requires_grad_()

    def function(*a: Tensor) -> Tensor:
        return ops.batch_norm_relu(*a, mean, var, eps)[0]

    assert torch.autograd.gradcheck(function, args)
    assert torch.autograd.gradgradcheck(function, args)
    assert torch.autograd.grad(function(*args).sum(), (mean, var), allow_unused=True) == (None, None)


def test_statistics_have_memory_of_their_own_and_no_gradient() -> None:
    x, weight, bias, mean, var, eps = forward(3, 2, 4, given=True)
    args = [a.requires_grad_() for a in (x, weight, bias)]
    for given in ((mean, var), (None, None)):
        y, *used = ops.batch_norm_relu(*args, *given, eps)
        assert y.requires_grad
        for a, b in zip(used, given, strict=True):
            assert not a.requires_grad
            assert b is None or (torch.equal(a, b) and a.data_ptr() != b.data_ptr())


ones = torch.ones(3)


@pytest.mark.parametrize(
    ("args", "error", "text"),
    [
        ((1, ones, ones), TypeError, "batch_norm_relu: x must be a floating Tensor, got int"),
        ((ones, ones, ones), ValueError, "batch_norm_relu: x must be [B, C, ...], got [3]"),
        ((torch.ones(2, 3), ones.int(), ones), TypeError, "batch_norm_relu: weight must be a floating Tensor, got"),
        ((torch.ones(2, 3), ones, ones[:2]), ValueError, "batch_norm_relu: bias must be [3], got [2]"),
        (
            (torch.ones(2, 3), ones, ones, ones),
            ValueError,
            "batch_norm_relu: mean and var must be given together, got mean only",
        ),
        ((torch.ones(2, 3), ones, ones, ones, ones[:1]), ValueError, "batch_norm_relu: var must be [3], got [1]"),
        (
            (torch.ones(0, 3, 2), ones, ones),
            ValueError,
            "batch_norm_relu: x must have at least one entry per channel, or mean and var be given, got [0, 3, 2]",
        ),
    ],
)
@pytest.mark.parametrize("functions", [ops, reference], ids=["ops", "reference"])
def test_names_the_mistake(functions: Any, args: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error) as caught:
        functions.batch_norm_relu(*args)
    assert str(caught.value).startswith(text)
