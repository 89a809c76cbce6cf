"""ActNorm against its definition, entry by entry."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pnf.reference import act_norm, act_norm_inverse

every_shape = pytest.mark.parametrize("shape", [(3, 2), (2, 3, 5), (2, 4, 3, 2), (2, 1, 2, 1, 3)], ids=str)


def arguments(shape: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(s, dtype=torch.float64) for s in (shape, shape[1], shape[1], shape[0])]


@every_shape
def test_entry_by_entry(shape: tuple[int, ...]) -> None:
    x, shift, log_scale, log_det = arguments(shape)
    y, total = act_norm(x, shift, log_scale, log_det)
    want, sums = torch.empty_like(x), log_det.tolist()
    for b, c, *site in itertools.product(*map(range, shape)):
        at = (b, c, *site)
        want[at] = (x[at].item() + shift[c].item()) * math.exp(log_scale[c].item())
        sums[b] += log_scale[c].item()
    torch.testing.assert_close(y, want, rtol=1e-12, atol=1e-12)
    assert total.tolist() == pytest.approx(sums, rel=1e-12)


@every_shape
def test_inverse(shape: tuple[int, ...]) -> None:
    x, shift, log_scale, log_det = arguments(shape)
    y, total = act_norm(x, shift, log_scale, log_det)
    back, zero = act_norm_inverse(y, shift, log_scale, total)
    torch.testing.assert_close(back, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(zero, log_det, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("op", [act_norm, act_norm_inverse])
def test_log_det_is_that_of_the_jacobian(
    op: Callable[..., tuple[Tensor, Tensor]], log_abs_det: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
) -> None:
    x, *others, log_det = arguments((1, 2, 3, 3))
    want = log_abs_det(lambda x: op(x, *others, log_det)[0], x)
    torch.testing.assert_close(op(x, *others, log_det)[1] - log_det, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("op", [act_norm, act_norm_inverse])
def test_x_in_low_precision_leaves_parameters_and_log_det_in_float32(
    op: Callable[..., tuple[Tensor, Tensor]],
) -> None:
    x, *others = (t.float() for t in arguments((2, 3, 4)))
    low = x.bfloat16()
    y, total = op(low, *others)
    want, want_total = op(low.float(), *others)
    assert (y.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(y, want.bfloat16())
    assert torch.equal(total, want_total)
