"""Batch normalisation as a layer of a flow against its definition and the Jacobian."""

import math

import pytest
import torch
from tensors import normal
from torch import Tensor
from torch.autograd.functional import jacobian
from torch.nn import functional

from pnf.reference import batch_norm, mask_pack

EPS = 1e-3
shapes = pytest.mark.parametrize("shape", [(3, 4, 2, 5), (5, 3, 7), (6, 2)], ids=str)


@shapes
def test_values_are_those_of_pytorch(shape: tuple[int, ...]) -> None:
    x, log_det = 3 * normal(*shape) + 2, normal(shape[0])
    mean, var = torch.zeros(shape[1]).double(), torch.ones(shape[1]).double()
    # With momentum 1 the running statistics are those of the batch, with the unbiased variance.
    want = functional.batch_norm(x, mean, var, training=True, momentum=1.0, eps=EPS)
    y, out, *found = batch_norm(x, log_det, eps=EPS)
    n = x.numel() // shape[1]
    torch.testing.assert_close((y, found[0], found[1] * n / (n - 1)), (want, mean, var))
    gain = -0.5 * math.prod(shape[2:]) * (found[1] + EPS).log().sum()
    torch.testing.assert_close(out, log_det + gain)


@shapes
def test_log_det_is_that_of_the_jacobian(shape: tuple[int, ...]) -> None:
    x, mean, var = normal(*shape), normal(shape[1]), normal(shape[1]).square()

    def one(x: Tensor) -> Tensor:
        return batch_norm(x[None], torch.zeros(1).double(), mean, var, EPS)[0][0]

    size = math.prod(shape[1:])
    for example in x:
        want = jacobian(one, example).reshape(size, size).slogdet().logabsdet
        got = batch_norm(example[None], torch.zeros(1).double(), mean, var, EPS)[1]
        torch.testing.assert_close(got, want[None])


@shapes
def test_first_and_second_derivatives(shape: tuple[int, ...]) -> None:
    x, log_det = normal(*shape).requires_grad_(), normal(shape[0]).requires_grad_()
    function = lambda *args: batch_norm(*args, eps=EPS)[:2]  # noqa: E731
    assert torch.autograd.gradcheck(function, (x, log_det))
    assert torch.autograd.gradgradcheck(function, (x, log_det))


def test_statistics_have_no_gradient() -> None:
    x = normal(4, 2, 3).requires_grad_()
    assert not any(t.requires_grad for t in batch_norm(x, torch.zeros(4).double())[2:])


@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize(("mask", "shape"), [("checkerboard", (3, 2, 3, 4)), ("channel", (3, 4, 5))], ids=str)
def test_a_mask_keeps_a_half(mask: str, parity: int, shape: tuple[int, ...]) -> None:
    x, log_det = normal(*shape), normal(3)
    y, out, mean, var = batch_norm(x, log_det, eps=EPS, mask=mask, parity=parity)
    kept, rest = mask_pack(x, mask, parity)
    assert torch.equal(mask_pack(y, mask, parity)[0], kept)
    want = batch_norm(rest, log_det, eps=EPS)
    torch.testing.assert_close((mask_pack(y, mask, parity)[1], out, mean, var), want)
