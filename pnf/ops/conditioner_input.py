"""The first stage of a conditioner network; the compiled twin of :mod:`pnf.reference.conditioner_input`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pnf.ops._layout import cast, dense, dense_as, empty, empty_like
from pnf.ops._library import DTYPES, Backward, Launch, cpp, documented_by, kernels, register, triton
from pnf.reference._channels import other_dims, own, per_channel, statistics
from pnf.reference._precision import wide
from pnf.reference.conditioner_input import check_conditioner_input
from pnf.reference.conditioner_input import conditioner_input as reference
from pnf.reference.masking import mask_apply

__all__ = ["conditioner_input"]

# The kinds of normalisation, numbered as in csrc/cpu/conditioner_input.h and the Triton kernels.
NONE, GIVEN, BATCH = range(3)


@documented_by(reference)
def conditioner_input(
    x: Tensor,  # [B, C, *spatial]
    condition: Tensor | None,  # [B, N, *spatial]
    offset: Tensor | None,  # [K]
    mean: Tensor | None = None,  # [K]
    var: Tensor | None = None,  # [K]
    *,
    mask: str,
    parity: int,
    gain: float = 1.0,
    eps: float = 1e-4,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    check_conditioner_input(x, condition, offset, mean, var, mask, parity)
    h, mean, var = _conditioner_input(x, condition, offset, mean, var, mask, parity, gain, eps)
    return (h, None, None) if offset is None else (h, mean, var)


def _sizes(x: Tensor, condition: int, mask: str, parity: int) -> tuple[int, ...]:
    """(batch, channels, first kept one, number of kept ones, condition's channels, height, width, board, parity)."""
    batch, channels, *size = x.shape
    if mask == "channel":
        return batch, channels, parity * (channels // 2), channels // 2, condition, 1, math.prod(size), False, parity
    return batch, channels, 0, channels, condition, size[0] if len(size) == 2 else 1, size[-1], True, parity


def _shape(x: Tensor, condition: Tensor | None, mask: str) -> Sequence[int]:
    columns = x.shape[1] if mask == "channel" else 2 * x.shape[1] + 1
    return [x.shape[0], columns + (0 if condition is None else condition.shape[1]), *x.shape[2:]]


def _compiled(launch: Launch) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def run(
        x: Tensor,
        condition: Tensor | None,
        offset: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        mask: str,
        parity: int,
        gain: float,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, last = dense(x)
        h, dtype = empty(x, _shape(x, condition, mask), last), wide(x.dtype)
        sizes = _sizes(x, 0 if condition is None else condition.shape[1], mask, parity)
        condition = x if condition is None else dense_as(condition, last)
        if offset is None:
            norm, mean, var = NONE, x.new_empty(0, dtype=dtype), x.new_empty(0, dtype=dtype)
        elif mean is None or var is None:
            norm, offset = BATCH, cast(offset, dtype).contiguous()
            mean, var = x.new_empty(offset.shape, dtype=dtype), x.new_empty(offset.shape, dtype=dtype)
        else:
            norm, offset = GIVEN, cast(offset, dtype).contiguous()
            mean, var = own(mean, dtype), own(var, dtype)
        tensors = (h, mean, var, x, condition, mean if offset is None else offset)
        launch(tensors, *sizes, last, norm, gain, eps, DTYPES[x.dtype])
        return h, mean, var

    return run


def _compiled_backward(launch: Launch) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(
        grad_h: Tensor,
        x: Tensor,
        offset: Tensor | None,
        mean: Tensor,
        var: Tensor,
        mask: str,
        parity: int,
        gain: float,
        eps: float,
        batch: bool,
    ) -> tuple[Tensor, Tensor]:
        x, last = dense(x)
        dtype = wide(x.dtype)
        mean, var = cast(mean, dtype).contiguous(), cast(var, dtype).contiguous()
        grad_x, grad_offset = empty_like(x, last), x.new_empty(mean.shape, dtype=dtype)
        norm = NONE if offset is None else BATCH if batch else GIVEN
        parameter = mean if offset is None else cast(offset, dtype).contiguous()
        sizes = _sizes(x, 0, mask, parity)
        beside = grad_h.shape[1] - 2 * sizes[3] - sizes[7]
        sizes = (*sizes[:4], beside, *sizes[5:])
        tensors = (grad_x, grad_offset, dense_as(grad_h, last), x, parameter, mean, var)
        launch(tensors, *sizes, last, norm, gain, eps, DTYPES[x.dtype])
        return grad_x, grad_offset if offset is None else cast(grad_offset, offset.dtype)

    return run


def _reference(
    x: Tensor,
    condition: Tensor | None,
    offset: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    mask: str,
    parity: int,
    gain: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    h, mean, var = reference(x, condition, offset, mean, var, mask=mask, parity=parity, gain=gain, eps=eps)
    none = x.new_empty(0, dtype=wide(x.dtype))
    return h, none if mean is None else mean, none if var is None else var


def _fallback_backward(
    grad_h: Tensor,
    x: Tensor,
    offset: Tensor | None,
    mean: Tensor,
    var: Tensor,
    mask: str,
    parity: int,
    gain: float,
    eps: float,
    batch: bool,
) -> tuple[Tensor, Tensor]:
    dtype, dims = wide(x.dtype), other_dims(x)
    kept = _kept(x.to(dtype), mask, parity)
    positive, negative = grad_h[:, : kept.shape[1]].to(dtype), grad_h[:, kept.shape[1] : 2 * kept.shape[1]].to(dtype)
    if offset is None:
        v, grad_offset = kept * gain, mean.to(dtype)
    else:
        rstd = (var.to(dtype) + eps).rsqrt()
        scale, centred = per_channel(rstd, x), kept - per_channel(mean.to(dtype), x)
        v = (centred * scale + per_channel(offset.to(dtype), x)) * gain
    grad = (torch.where(v <= 0, 0, positive) - torch.where(v >= 0, 0, negative)) * gain
    if offset is not None:
        total, product = grad.sum(dims), (grad * centred).sum(dims)
        grad_offset = total.to(offset.dtype)
        if batch:
            n = x.numel() // max(x.shape[1], 1)
            grad = grad - per_channel(total / n, x) - centred * per_channel(product * rstd.square() / n, x)
        grad = grad * scale
    if mask == "channel":
        zero = torch.zeros_like(grad)
        grad = torch.cat((zero, grad) if parity else (grad, zero), 1)
    else:
        grad = mask_apply(grad, mask, parity)
    return grad.to(x.dtype), grad_offset


def _kept(x: Tensor, mask: str, parity: int) -> Tensor:
    return x.chunk(2, 1)[parity] if mask == "channel" else mask_apply(x, mask, parity)


def _reference_backward(
    grad_h: Tensor,
    x: Tensor,
    offset: Tensor | None,
    mean: Tensor,
    var: Tensor,
    mask: str,
    parity: int,
    gain: float,
    eps: float,
    batch: bool,
) -> tuple[Tensor, Tensor]:
    """The backward with its dependence on x through the batch's statistics, which are saved without a graph."""
    if batch:
        mean, var = statistics(_kept(x.to(wide(x.dtype)), mask, parity), None, None)
    return _fallback_backward(grad_h, x, offset, mean, var, mask, parity, gain, eps, batch)


def _fake(
    x: Tensor,
    condition: Tensor | None,
    offset: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    mask: str,
    parity: int,
    gain: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    channels = 0 if offset is None else offset.shape[0]
    used = [x.new_empty(channels, dtype=wide(x.dtype)) for _ in range(2)]
    return empty(x, _shape(x, condition, mask), dense(x)[1]), used[0], used[1]


def _fake_backward(
    grad_h: Tensor,
    x: Tensor,
    offset: Tensor | None,
    mean: Tensor,
    var: Tensor,
    mask: str,
    parity: int,
    gain: float,
    eps: float,
    batch: bool,
) -> tuple[Tensor, Tensor]:
    dtype = wide(x.dtype) if offset is None else offset.dtype
    return empty_like(x, dense(x)[1]), mean.new_empty(mean.shape, dtype=dtype)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, condition, offset, mean, _, *ctx.others = inputs
    ctx.batch = offset is not None and mean is None
    ctx.condition = None if condition is None else condition.shape[1]
    ctx.save_for_backward(x, offset, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(
    backward: Callable[..., Any], ctx: Any, grad_h: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    if grad_h is None:
        return (None,) * 9
    x, offset, mean, var = ctx.saved_tensors
    grad_x, grad_offset = backward(grad_h, x, offset, mean, var, *ctx.others, ctx.batch)
    # This gradient is a view, like that of torch.cat.
    columns = ctx.condition
    condition = None if columns is None else grad_h.narrow(1, grad_h.shape[1] - columns, columns)
    return grad_x, condition, None if offset is None else grad_offset, *[None] * 6


_conditioner_input = register(
    "conditioner_input",
    "conditioner_input(Tensor x, Tensor? condition, Tensor? offset, Tensor? mean, Tensor? var, str mask, int parity,"
    " float gain, float eps) -> (Tensor, Tensor, Tensor)",
    reference=_reference,
    fake=_fake,
    kernels=kernels(_compiled, cpp=cpp("conditioner_input"), triton=triton("conditioner_input", "conditioner_input")),
    setup_context=_save,
    backward=Backward(
        "(Tensor grad_h, Tensor x, Tensor? offset, Tensor mean, Tensor var, str mask, int parity, float gain,"
        " float eps, bool batch) -> (Tensor, Tensor)",
        call=_differentiate,
        reference=_reference_backward,
        fallback=_fallback_backward,
        fake=_fake_backward,
        kernels=kernels(
            _compiled_backward,
            cpp=cpp("conditioner_input_backward"),
            triton=triton("conditioner_input", "conditioner_input_backward"),
        ),
    ),
)
