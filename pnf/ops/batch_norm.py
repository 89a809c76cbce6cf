"""Batch normalisation as a layer of a flow; the compiled twin of :mod:`pnf.reference.batch_norm`."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pnf.ops._layout import cast, dense, dense_as, empty_like, has_channels_last
from pnf.ops._library import DTYPES, KERNELS, Backward, Launch, cpp, documented_by, kernels, register, triton
from pnf.ops.masking import mask_pack, mask_unpack
from pnf.reference._channels import other_dims, own, per_channel, statistics
from pnf.reference._precision import wide
from pnf.reference.batch_norm import batch_norm as reference
from pnf.reference.batch_norm import check_batch_norm
from pnf.reference.masking import mask_pack as reference_mask_pack
from pnf.reference.masking import rest_of

__all__ = ["batch_norm"]


@documented_by(reference)
def batch_norm(
    x: Tensor,  # [B, C, *spatial]
    log_det: Tensor,  # [B]
    mean: Tensor | None = None,  # [C]
    var: Tensor | None = None,  # [C]
    eps: float = 1e-4,
    mask: str | None = None,
    parity: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_batch_norm(x, log_det, mean, var, mask, parity)
    if mask is None or (not x.is_cpu and _has_halves(x, mask)):
        y, log_det, mean, var = _batch_norm(x, log_det, mean, var, eps, mask, parity)
        return y, log_det, mean, var
    # Of a packed half the backward keeps half as much.
    kept, rest = mask_pack(x, mask, parity)
    rest, log_det, mean, var = _batch_norm(rest, log_det, mean, var, eps, None, 0)
    return mask_unpack(kept, rest, mask, parity, x.shape[2:]), log_det, mean, var


def _sizes(x: Tensor, mask: str | None, parity: int) -> tuple[int, int, int]:
    """(batch size, channels, sites) of what is normalised."""
    return x.shape[0], *rest_of(x, mask, parity)


def _has_halves(x: Tensor, mask: str) -> bool:
    """Whether a kernel can normalise a half where it lies: the halves are equal, and the channels last in memory."""
    equal = mask == "channel" or math.prod(x.shape[2:]) % 2 == 0
    return equal and not x.is_contiguous() and has_channels_last(x)


def _compiled(launch: Launch, halves: bool) -> Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The op by a kernel, which can normalise a half where it lies, or not."""

    def run(
        x: Tensor,
        log_det: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        eps: float,
        mask: str | None,
        parity: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if mask is not None and not (halves and _has_halves(x, mask)):
            return KERNELS["batch_norm"]["reference"](x, log_det, mean, var, eps, mask, parity)
        x, last = dense(x)
        sizes = _sizes(x, mask, parity)
        dtype, of_batch = wide(x.dtype), mean is None or var is None
        log_det = cast(log_det, torch.promote_types(log_det.dtype, dtype)).contiguous()
        if mean is None or var is None:
            mean, var = (x.new_empty(sizes[1], dtype=dtype) for _ in range(2))
        else:
            mean, var = own(mean, dtype), own(var, dtype)
        y, out = empty_like(x, last), empty_like(log_det)
        launch(
            (y, out, mean, var, x, log_det),
            *sizes,
            last,
            of_batch,
            eps,
            *((mask, parity, x.shape[-1]) if halves else ()),
            DTYPES[x.dtype] | DTYPES[log_det.dtype] << 2,
        )
        return y, out, mean, var

    return run


def _compiled_backward(launch: Launch, halves: bool) -> Callable[..., Tensor]:
    def run(
        grad_y: Tensor,
        grad_log_det: Tensor,
        x: Tensor,
        mean: Tensor,
        var: Tensor,
        eps: float,
        mask: str | None,
        parity: int,
        batch: bool,
    ) -> Tensor:
        if mask is not None and not (halves and _has_halves(x, mask)):
            return KERNELS["batch_norm_backward"]["reference"](
                grad_y, grad_log_det, x, mean, var, eps, mask, parity, batch
            )
        x, last = dense(x)
        dtype, grad_x = wide(x.dtype), empty_like(x, last)
        others = (cast(t, dtype).contiguous() for t in (mean, var))
        tensors = grad_x, dense_as(grad_y, last), cast(grad_log_det, dtype).contiguous(), x, *others
        half = (mask, parity, x.shape[-1]) if halves else ()
        launch(tensors, *_sizes(x, mask, parity), last, batch, eps, *half, DTYPES[x.dtype])
        return grad_x

    return run


def _fallback_backward(
    grad_y: Tensor,
    grad_log_det: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    mask: str | None,
    parity: int,
    batch: bool,
) -> Tensor:
    if mask is not None:
        kept, grad_y = mask_pack(grad_y, mask, parity)
        x, size = mask_pack(x, mask, parity)[1], x.shape[2:]
        rest = _fallback_backward(grad_y, grad_log_det, x, mean, var, eps, None, 0, batch)
        return mask_unpack(kept, rest, mask, parity, size)
    dtype, dims = wide(x.dtype), other_dims(x)
    scale = (var.to(dtype) + eps).rsqrt()
    grad = grad_y.to(dtype)
    if batch:
        centred, entries = x.to(dtype) - per_channel(mean.to(dtype), x), x.numel() // max(x.shape[1], 1)
        slope = (grad * centred).sum(dims) * scale.square() / entries + grad_log_det.to(dtype).mean() * scale
        grad = grad - per_channel(grad.sum(dims) / entries, x) - centred * per_channel(slope, x)
    return (grad * per_channel(scale, x)).to(x.dtype)


def _reference_backward(
    grad_y: Tensor,
    grad_log_det: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    mask: str | None,
    parity: int,
    batch: bool,
) -> Tensor:
    """The backward with its dependence on x through the batch's statistics, which are saved without a graph."""
    if batch:
        half = x if mask is None else reference_mask_pack(x, mask, parity)[1]
        mean, var = statistics(half.to(wide(x.dtype)), None, None)
    return _fallback_backward(grad_y, grad_log_det, x, mean, var, eps, mask, parity, batch)


def _fake(
    x: Tensor, log_det: Tensor, mean: Tensor | None, var: Tensor | None, eps: float, mask: str | None, parity: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = wide(x.dtype)
    used = [x.new_empty(_sizes(x, mask, parity)[1], dtype=dtype) for _ in range(2)]
    out = log_det.new_empty(log_det.shape, dtype=torch.promote_types(log_det.dtype, dtype))
    return empty_like(x, dense(x)[1]), out, used[0], used[1]


def _fake_backward(
    grad_y: Tensor,
    grad_log_det: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    mask: str | None,
    parity: int,
    batch: bool,
) -> Tensor:
    return empty_like(x, dense(x)[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x, log_det, mean, _, *ctx.others = inputs
    ctx.batch, ctx.log_det_dtype = mean is None, log_det.dtype
    ctx.save_for_backward(x, *output[2:])
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)


def _differentiate(
    backward: Callable[..., Any], ctx: Any, grad_y: Tensor | None, grad_log_det: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    x, mean, var = ctx.saved_tensors
    if grad_y is None and grad_log_det is None:
        return (None,) * 7
    grad_y = torch.zeros_like(x) if grad_y is None else grad_y
    grad_log_det = mean.new_zeros(x.shape[:1]) if grad_log_det is None else grad_log_det
    grad_x = backward(grad_y, grad_log_det, x, mean, var, *ctx.others, ctx.batch)
    return grad_x, cast(grad_log_det, ctx.log_det_dtype), *[None] * 5


_batch_norm = register(
    "batch_norm",
    "batch_norm(Tensor x, Tensor log_det, Tensor? mean, Tensor? var, float eps, str? mask, int parity)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    reference=reference,
    fake=_fake,
    kernels=[
        *kernels(partial(_compiled, halves=False), cpp=cpp("batch_norm")),
        *kernels(partial(_compiled, halves=True), triton=triton("batch_norm", "batch_norm")),
    ],
    setup_context=_save,
    backward=Backward(
        "(Tensor grad_y, Tensor grad_log_det, Tensor x, Tensor mean, Tensor var, float eps, str? mask, int parity,"
        " bool batch) -> Tensor",
        call=_differentiate,
        reference=_reference_backward,
        fallback=_fallback_backward,
        fake=_fake_backward,
        kernels=[
            *kernels(partial(_compiled_backward, halves=False), cpp=cpp("batch_norm_backward")),
            *kernels(partial(_compiled_backward, halves=True), triton=triton("batch_norm", "batch_norm_backward")),
        ],
    ),
)
