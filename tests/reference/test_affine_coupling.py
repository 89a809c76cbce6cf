"""Equations 4 to 8 of Real NVP, entry by entry."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pnf.reference import affine_coupling, affine_coupling_inverse

MASKS = [(None, 0), ("checkerboard", 0), ("checkerboard", 1), ("channel", 0), ("channel", 1)]
SHAPES = [(2, 2, 3, 4), (3, 4, 3, 3), (2, 2, 5), (2, 4, 1, 1)]
every_mask = pytest.mark.parametrize(("mask", "parity"), MASKS)
every_shape = pytest.mark.parametrize("shape", SHAPES)


def arguments(shape: tuple[int, ...], mask: str | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, channels, *size = shape
    transformed = channels // 2 if mask == "channel" else channels
    return tuple(
        torch.randn(s, dtype=torch.float64)
        for s in ((batch, channels, *size), (batch, 2 * transformed, *size), (transformed,), (batch,))
    )


def is_kept(c: int, site: tuple[int, ...], channels: int, mask: str | None, parity: int) -> bool:
    if mask is None:
        return False
    return (c >= channels // 2) == bool(parity) if mask == "channel" else sum(site) % 2 == parity


@every_shape
@every_mask
def test_entry_by_entry(mask: str | None, parity: int, shape: tuple[int, ...]) -> None:
    x, raw, scale, log_det = arguments(shape, mask)
    y, total = affine_coupling(x, raw, scale, log_det, mask, parity)
    channels, transformed = shape[1], scale.numel()
    want, sums = x.clone(), log_det.tolist()
    for b, c, *site in itertools.product(*map(range, shape)):
        if is_kept(c, tuple(site), channels, mask, parity):
            continue
        k = c - transformed if mask == "channel" and parity == 0 else c
        s = scale[k].item() * math.tanh(raw[(b, transformed + k, *site)].item())
        want[(b, c, *site)] = x[(b, c, *site)] * math.exp(s) + raw[(b, k, *site)]
        sums[b] += s
    torch.testing.assert_close(y, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(total, torch.tensor(sums).double(), rtol=1e-6, atol=1e-6)
    assert total.tolist() == pytest.approx(sums, rel=1e-12)


@every_shape
@every_mask
def test_inverse(mask: str | None, parity: int, shape: tuple[int, ...]) -> None:
    x, raw, scale, log_det = arguments(shape, mask)
    y, total = affine_coupling(x, raw, scale, log_det, mask, parity)
    back, zero = affine_coupling_inverse(y, raw, scale, total, mask, parity)
    torch.testing.assert_close(back, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(zero, log_det, rtol=1e-12, atol=1e-12)


@every_mask
def test_log_det_is_that_of_the_jacobian(
    mask: str | None, parity: int, log_abs_det: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
) -> None:
    x, raw, scale, log_det = arguments((1, 2, 3, 3), mask)
    for op in (affine_coupling, affine_coupling_inverse):
        want = log_abs_det(lambda x, op=op: op(x, raw, scale, log_det, mask, parity)[0], x)
        torch.testing.assert_close(op(x, raw, scale, log_det, mask, parity)[1] - log_det, want, rtol=1e-9, atol=1e-9)


@every_mask
def test_kept_entries_come_through_bit_for_bit(mask: str | None, parity: int) -> None:
    x, raw, scale, log_det = (t.half() for t in arguments((2, 4, 3, 5), mask))
    for op in (affine_coupling, affine_coupling_inverse):
        y, _ = op(x, raw, scale, log_det, mask, parity)
        for b, c, *site in itertools.product(*map(range, x.shape)):
            if is_kept(c, tuple(site), 4, mask, parity):
                assert y[(b, c, *site)] == x[(b, c, *site)]


@pytest.mark.parametrize("parity", [0, 1])
def test_raw_under_kept_sites_has_no_effect(parity: int) -> None:
    x, raw, scale, log_det = arguments((2, 2, 3, 4), "checkerboard")
    board = torch.arange(3).view(-1, 1) + torch.arange(4)
    other = torch.where(board % 2 == parity, torch.randn_like(raw), raw)
    for a, b in zip(
        affine_coupling(x, raw, scale, log_det, "checkerboard", parity),
        affine_coupling(x, other, scale, log_det, "checkerboard", parity),
        strict=True,
    ):
        assert torch.equal(a, b)


@every_mask
def test_log_scale_is_bounded_by_scale(mask: str | None, parity: int) -> None:
    x, raw, scale, log_det = arguments((2, 4, 3, 3), mask)
    raw = raw.detach().mul(1e30).requires_grad_()
    y, total = affine_coupling(x, raw, scale, log_det, mask, parity)
    back, _ = affine_coupling_inverse(x, raw, scale, log_det, mask, parity)
    (y.sum() + total.sum() + back.sum()).backward()
    assert y.isfinite().all()
    assert raw.grad.isfinite().all()
    assert (total - log_det).abs().max() <= scale.abs().sum() * 9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_raw_of_a_network_in_low_precision_leaves_x_and_log_det_in_float32(dtype: torch.dtype) -> None:
    x, raw, scale, log_det = (t.float() for t in arguments((2, 2, 3, 4), "checkerboard"))
    low = raw.to(dtype)
    y, total = affine_coupling(x, low, scale, log_det, "checkerboard", 1)
    want, want_total = affine_coupling(x, low.float(), scale, log_det, "checkerboard", 1)
    assert (y.dtype, total.dtype) == (torch.float32, torch.float32)
    assert torch.equal(y, want)
    assert torch.equal(total, want_total)
