"""Tensors whose memory does not hold their values: a lazy sign, a lazy conjugate, zeros without memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_calls import OPS, Op
from torch import Tensor
from torch.testing import assert_close
from transform_tests import draw

from pnf import ops, reference

DTYPES = [torch.float64, torch.float32]


def negated(x: Tensor) -> Tensor:
    """Return x with the negative of its values in memory."""
    found = torch.complex(x, -x).conj().imag
    assert found.is_neg()
    return found


def zero(x: Tensor) -> Tensor:
    """Zeros without memory."""
    return torch._efficientzerotensor(*x.shape, dtype=x.dtype)


def results(op: Op, module: Any, tensors: list[Tensor]) -> list[Tensor]:
    out = op.call(module, *tensors)
    return [out] if isinstance(out, Tensor) else list(out)


def tensors_of(op: Op, dtype: torch.dtype) -> list[Tensor]:
    return [draw(torch.Size(shape).numel(), i).view(shape).to(dtype) for i, shape in enumerate(op.shapes)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [negated, zero])
@pytest.mark.parametrize("name", OPS)
def test_arguments(name: str, bits: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    op = OPS[name]
    for i in range(len(op.shapes)):
        lazy, plain = tensors_of(op, dtype), tensors_of(op, dtype)
        lazy[i] = bits(lazy[i])
        if bits is zero:
            plain[i] = torch.zeros_like(plain[i])
        want = results(op, reference, plain)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                assert_close(results(op, ops, lazy), want, rtol=1e-5, atol=1e-5)
        # Beside tensors with gradients, the call goes through autograd.
        learned = [x if j == i else x.requires_grad_() for j, x in enumerate(lazy)]
        assert_close([y.detach() for y in results(op, ops, learned)], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [negated, zero])
@pytest.mark.parametrize("name", OPS)
def test_gradients(name: str, bits: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    op, found = OPS[name], []
    for module in (ops, reference):
        tensors = [x.requires_grad_() for x in tensors_of(op, dtype)]
        outputs = [y for y in results(op, module, tensors) if y.requires_grad]
        weights = [bits(draw(y.numel(), 5).view(y.shape).to(y.dtype)) for y in outputs]
        found.append(torch.autograd.grad(outputs, tensors, weights, allow_unused=True, materialize_grads=True))
    assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


MOVES = ["mask_apply", "mask_pack", "mask_pack channel", "mask_unpack", "mask_input", "squeeze", "squeeze_inverse"]


@pytest.mark.parametrize("name", MOVES)
def test_conjugates_are_moved(name: str) -> None:
    op = OPS[name]
    plain = [torch.complex(x, x.cos()) for x in tensors_of(op, torch.float64)]
    lazy = [x.conj_physical().conj() for x in plain]
    assert all(x.is_conj() for x in lazy)
    for requires_grad in (False, True):
        got = results(op, ops, [x.detach().requires_grad_(requires_grad) for x in lazy])
        assert_close([y.detach() for y in got], results(op, reference, plain), rtol=0, atol=0)
