"""Checkerboard and channel masks without a mask tensor; the compiled twin of :mod:`pnf.reference.masking`.

Every op moves bits, so any dtype works, and NaN payloads and signed zeros survive. The layout with channels last is
kept. Any other tensor is made contiguous first.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pnf.ops._layout import dense, dense_as, empty, empty_like
from pnf.ops._library import Backward, Launch, cpp, cuda, documented_by, kernels, register
from pnf.reference import masking as reference

__all__ = ["mask_apply", "mask_input", "mask_pack", "mask_unpack"]


@documented_by(reference.mask_apply)
def mask_apply(
    x: Tensor,  # [B, C, *spatial]
    mask: str,
    parity: int,
) -> Tensor:
    reference.check_mask("mask_apply", x, mask, parity)
    return _apply(x, mask, parity)


@documented_by(reference.mask_pack)
def mask_pack(
    x: Tensor,  # [B, C, *spatial]
    mask: str,
    parity: int,
) -> tuple[Tensor, Tensor]:
    reference.check_mask("mask_pack", x, mask, parity)
    kept, rest = _pack(x, mask, parity)
    return kept, rest


@documented_by(reference.mask_unpack)
def mask_unpack(
    kept: Tensor,  # [B, C, n] or [B, C / 2, *spatial]
    rest: Tensor,  # [B, C, N - n] or [B, C / 2, *spatial]
    mask: str,
    parity: int,
    size: Sequence[int],
) -> Tensor:
    reference.check_halves("mask_unpack", kept, rest, mask, parity, size)
    # torch.jit.trace represents sizes as tensors, which a list of integers does not accept.
    return _unpack(kept, rest, mask, parity, [int(n) for n in size] if torch.jit.is_tracing() else size)  # type: ignore[attr-defined]


@documented_by(reference.mask_input)
def mask_input(
    x: Tensor,  # [B, C, *spatial]
    condition: Tensor,  # [B, K, *spatial]
    mask: str,
    parity: int,
) -> Tensor:
    reference.check_mask("mask_input", x, mask, parity)
    reference.check_condition("mask_input", x, condition)
    return _input(x, condition, mask, parity)


def _packed_shapes(x: Tensor, mask: str, parity: int) -> tuple[list[int], list[int]]:
    batch, channels, *size = x.shape
    if mask == "channel":
        return [batch, channels // 2, *size], [batch, channels // 2, *size]
    sites = math.prod(size)
    return [batch, channels, (sites + 1 - parity) // 2], [batch, channels, (sites + parity) // 2]


def _unpacked_shape(kept: Tensor, mask: str, size: Sequence[int]) -> list[int]:
    return [kept.shape[0], kept.shape[1] * (2 if mask == "channel" else 1), *size]


def _kept_channels(channels: int, mask: str) -> int:
    return channels // 2 if mask == "channel" else channels


def _board(shape: Sequence[int], mask: str, last: bool) -> tuple[int, int, int, int]:
    """The sizes [outer, height, width, inner] of a tensor's memory, as in csrc/masking.h."""
    batch, channels, *size = shape
    if mask == "channel":
        sites = math.prod(size)
        return (batch * sites, 1, 2, channels // 2) if last else (batch, 1, 2, channels // 2 * sites)
    height = size[0] if len(size) == 2 else 1
    return (batch, height, size[-1], channels) if last else (batch * channels, height, size[-1], 1)


def _beside(shape: Sequence[int], condition: int, mask: str, last: bool) -> tuple[int, int, int, int]:
    """(rows, entries of x in a row, kept ones, entries of the condition)."""
    batch, channels, *size = shape
    sites = math.prod(size)
    rows, length = (batch * sites, 1) if last else (batch, sites)
    return rows, channels * length, _kept_channels(channels, mask) * length, condition * length


def _compiled_apply(launch: Launch) -> Callable[..., Tensor]:
    def run(x: Tensor, mask: str, parity: int) -> Tensor:
        x, last = dense(x)
        out = empty_like(x, last)
        launch((out, x), *_board(x.shape, mask, last), x.element_size(), parity)
        return out

    return run


def _compiled_pack(launch: Launch) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(x: Tensor, mask: str, parity: int) -> tuple[Tensor, Tensor]:
        x, last = dense(x)
        kept, rest = (empty(x, shape, last) for shape in _packed_shapes(x, mask, parity))
        board = _board(x.shape, mask, last)
        launch((kept, rest, x), *board, x.element_size(), parity)
        return kept, rest

    return run


def _compiled_unpack(launch: Launch) -> Callable[..., Tensor]:
    def run(kept: Tensor, rest: Tensor, mask: str, parity: int, size: Sequence[int]) -> Tensor:
        kept, last = dense(kept)
        rest = dense_as(rest, last)
        out = empty(kept, _unpacked_shape(kept, mask, size), last)
        board = _board(out.shape, mask, last)
        launch((out, kept, rest), *board, kept.element_size(), parity)
        return out

    return run


def _compiled_input(launch: Launch) -> Callable[..., Tensor]:
    def run(x: Tensor, condition: Tensor, mask: str, parity: int) -> Tensor:
        x, last = dense(x)
        condition = dense_as(condition, last)
        channels = _kept_channels(x.shape[1], mask) + condition.shape[1]
        out = empty(x, [x.shape[0], channels, *x.shape[2:]], last)
        beside, board = _beside(x.shape, condition.shape[1], mask, last), _board(x.shape, mask, last)
        launch((out, x, condition), *beside, *board, x.element_size(), parity)
        return out

    return run


def _compiled_input_backward(launch: Launch) -> Callable[..., Tensor]:
    def run(grad: Tensor, channels: int, mask: str, parity: int) -> Tensor:
        grad, last = dense(grad)
        batch, columns, *size = grad.shape
        x = empty(grad, [batch, channels, *size], last)
        condition = columns - _kept_channels(channels, mask)
        beside, board = _beside(x.shape, condition, mask, last), _board(x.shape, mask, last)
        launch((x, grad), *beside, *board, grad.element_size(), parity)
        return x

    return run


def _reference_input_backward(grad: Tensor, channels: int, mask: str, parity: int) -> Tensor:
    x = grad[:, : _kept_channels(channels, mask)]
    if mask == "channel":
        zero = torch.zeros_like(x)
        return torch.cat((zero, x) if parity else (x, zero), 1)
    return reference.mask_apply(x, mask, parity)


def _fake_apply(x: Tensor, mask: str, parity: int) -> Tensor:
    return empty_like(x, dense(x)[1])


def _fake_pack(x: Tensor, mask: str, parity: int) -> tuple[Tensor, Tensor]:
    last = dense(x)[1]
    kept, rest = _packed_shapes(x, mask, parity)
    return empty(x, kept, last), empty(x, rest, last)


def _fake_unpack(kept: Tensor, rest: Tensor, mask: str, parity: int, size: Sequence[int]) -> Tensor:
    return empty(kept, _unpacked_shape(kept, mask, size), dense(kept)[1])


def _fake_input(x: Tensor, condition: Tensor, mask: str, parity: int) -> Tensor:
    channels = _kept_channels(x.shape[1], mask) + condition.shape[1]
    return empty(x, [x.shape[0], channels, *x.shape[2:]], dense(x)[1])


def _fake_input_backward(grad: Tensor, channels: int, mask: str, parity: int) -> Tensor:
    return empty(grad, [grad.shape[0], channels, *grad.shape[2:]], dense(grad)[1])


def _save_apply(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.mask, ctx.parity = inputs


def _apply_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _apply(grad, ctx.mask, ctx.parity), None, None


def _save_pack(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.mask, ctx.parity = inputs
    ctx.size = x.shape[2:]


def _pack_backward(ctx: Any, kept: Tensor, rest: Tensor) -> tuple[Tensor, None, None]:
    return _unpack(kept, rest, ctx.mask, ctx.parity, ctx.size), None, None


def _save_unpack(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, ctx.mask, ctx.parity, _ = inputs


def _unpack_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
    if ctx.mask == "channel":
        first, second = grad.chunk(2, 1)
        kept, rest = (second, first) if ctx.parity else (first, second)
    else:
        kept, rest = _pack(grad, ctx.mask, ctx.parity)
    return kept, rest, None, None, None


def _save_input(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, _, ctx.mask, ctx.parity = inputs
    ctx.channels = x.shape[1]


def _input_backward(backward: Callable[..., Any], ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    x = backward(grad, ctx.channels, ctx.mask, ctx.parity)
    return x, grad[:, _kept_channels(ctx.channels, ctx.mask) :], None, None


_apply = register(
    "masking",
    "mask_apply(Tensor x, str mask, int parity) -> Tensor",
    reference=reference.mask_apply,
    fake=_fake_apply,
    kernels=kernels(_compiled_apply, cpp=cpp("mask_apply"), cuda=cuda("mask_apply")),
    setup_context=_save_apply,
    backward=_apply_backward,
)
_pack = register(
    "masking",
    "mask_pack(Tensor x, str mask, int parity) -> (Tensor, Tensor)",
    reference=reference.mask_pack,
    fake=_fake_pack,
    kernels=kernels(_compiled_pack, cpp=cpp("mask_pack"), cuda=cuda("mask_pack")),
    setup_context=_save_pack,
    backward=_pack_backward,
)
_unpack = register(
    "masking",
    "mask_unpack(Tensor kept, Tensor rest, str mask, int parity, SymInt[] size) -> Tensor",
    reference=reference.mask_unpack,
    fake=_fake_unpack,
    kernels=kernels(_compiled_unpack, cpp=cpp("mask_unpack"), cuda=cuda("mask_unpack")),
    setup_context=_save_unpack,
    backward=_unpack_backward,
)
_input = register(
    "masking",
    "mask_input(Tensor x, Tensor condition, str mask, int parity) -> Tensor",
    reference=reference.mask_input,
    fake=_fake_input,
    kernels=kernels(_compiled_input, cpp=cpp("mask_input"), cuda=cuda("mask_input")),
    setup_context=_save_input,
    backward=Backward(
        "(Tensor grad, SymInt channels, str mask, int parity) -> Tensor",
        call=_input_backward,
        reference=_reference_input_backward,
        fake=_fake_input_backward,
        kernels=kernels(_compiled_input_backward, cpp=cpp("mask_input_backward"), cuda=cuda("mask_input_backward")),
    ),
)
