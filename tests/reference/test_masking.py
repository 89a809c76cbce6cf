"""The masks against their definition in the Real NVP paper, entry by entry in plain Python."""

import itertools

import pytest
import torch
from torch import Tensor

from pnf.reference import mask_apply, mask_input, mask_pack, mask_unpack

CASES = [
    (mask, parity, shape)
    for parity in (0, 1)
    for mask, shapes in {
        "checkerboard": [(2, 3, 4, 6), (1, 2, 3, 5), (2, 1, 4, 3), (1, 1, 1, 4), (2, 2, 8), (1, 3, 5), (1, 1, 0)],
        "channel": [(2, 4, 2, 3), (3, 2), (1, 6, 5), (1, 2, 2, 1, 3)],
    }.items()
    for shape in shapes
]


def kept(index: tuple[int, ...], mask: str, parity: int, shape: tuple[int, ...]) -> bool:
    if mask == "channel":
        return (index[1] >= shape[1] // 2) == bool(parity)
    return sum(index[2:]) % 2 == parity


def indices(shape: tuple[int, ...]) -> itertools.product:
    return itertools.product(*map(range, shape))


def counting(shape: tuple[int, ...]) -> Tensor:
    return torch.arange(1.0, 1 + torch.Size(shape).numel(), dtype=torch.float64).view(shape)


@pytest.mark.parametrize(("mask", "parity", "shape"), CASES)
def test_apply_keeps_the_half_and_zeroes_the_rest(mask: str, parity: int, shape: tuple[int, ...]) -> None:
    x = counting(shape)
    y = mask_apply(x, mask, parity)
    for index in indices(shape):
        assert y[index] == (x[index] if kept(index, mask, parity, shape) else 0)


@pytest.mark.parametrize(("mask", "parity", "shape"), CASES)
def test_pack_lists_each_half_in_order(mask: str, parity: int, shape: tuple[int, ...]) -> None:
    x = counting(shape)
    halves = mask_pack(x, mask, parity)
    for half, keep in zip(halves, (True, False), strict=True):
        want = [x[i].item() for i in indices(shape) if kept(i, mask, parity, shape) == keep]
        assert half.flatten().tolist() == want
        assert half.shape[:2] == (shape[0], shape[1] // 2 if mask == "channel" else shape[1])


@pytest.mark.parametrize(("mask", "parity", "shape"), CASES)
def test_unpack_is_the_inverse_of_pack(mask: str, parity: int, shape: tuple[int, ...]) -> None:
    x = counting(shape)
    halves = mask_pack(x, mask, parity)
    assert torch.equal(mask_unpack(*halves, mask, parity, shape[2:]), x)
    assert torch.equal(mask_unpack(*halves[::-1], mask, 1 - parity, shape[2:]), x)


@pytest.mark.parametrize(("mask", "parity", "shape"), CASES)
def test_both_parities_share_out_every_entry(mask: str, parity: int, shape: tuple[int, ...]) -> None:
    x = counting(shape)
    assert torch.equal(mask_apply(x, mask, parity) + mask_apply(x, mask, 1 - parity), x)


@pytest.mark.parametrize(("mask", "parity", "shape"), CASES)
def test_input_puts_the_condition_beside_what_is_kept(mask: str, parity: int, shape: tuple[int, ...]) -> None:
    x, condition = counting(shape), -counting((shape[0], 3, *shape[2:]))
    left = mask_pack(x, mask, parity)[0] if mask == "channel" else mask_apply(x, mask, parity)
    assert torch.equal(mask_input(x, condition, mask, parity), torch.cat((left, condition), 1))
    assert torch.equal(mask_input(x, condition[:, :0], mask, parity), left)


@pytest.mark.parametrize(("mask", "parity", "shape"), [case for case in CASES if 0 not in case[2]])
def test_derivatives(mask: str, parity: int, shape: tuple[int, ...]) -> None:
    x = counting(shape).requires_grad_()
    for function in (
        lambda t: mask_apply(t, mask, parity),
        lambda t: mask_pack(t, mask, parity),
        lambda t: mask_unpack(*mask_pack(t, mask, parity), mask, parity, shape[2:]),
        lambda t: mask_input(t, t * t, mask, parity),
    ):
        assert torch.autograd.gradcheck(function, x)
