"""ActNorm in one pass over memory; the compiled twin of :mod:`pnf.reference.act_norm`.

The backward saves only the arguments and computes exp again, once for each channel.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pnf.ops._layout import cast, dense, dense_as, empty_like
from pnf.ops._library import DTYPES, Backward, Launch, cpp, documented_by, kernels, register, triton
from pnf.reference import act_norm as reference
from pnf.reference import act_norm_inverse as reference_inverse
from pnf.reference._channels import other_dims, per_channel
from pnf.reference._precision import wide
from pnf.reference.act_norm import check_act_norm

__all__ = ["act_norm", "act_norm_inverse"]


@documented_by(reference)
def act_norm(
    x: Tensor,  # [B, C, *spatial]
    shift: Tensor,  # [C]
    log_scale: Tensor,  # [C]
    log_det: Tensor,  # [B]
) -> tuple[Tensor, Tensor]:
    check_act_norm("act_norm", x, shift, log_scale, log_det)
    return _forward(x, shift, log_scale, log_det)


@documented_by(reference_inverse)
def act_norm_inverse(
    y: Tensor,  # [B, C, *spatial]
    shift: Tensor,  # [C]
    log_scale: Tensor,  # [C]
    log_det: Tensor,  # [B]
) -> tuple[Tensor, Tensor]:
    check_act_norm("act_norm_inverse", y, shift, log_scale, log_det)
    return _inverse(y, shift, log_scale, log_det)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """(batch size, channels, sites)."""
    batch, channels, *size = x.shape
    return batch, channels, math.prod(size)


def _compiled(launch: Launch) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(x: Tensor, shift: Tensor, log_scale: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
        x, last = dense(x)
        dtype = wide(x.dtype)
        log_det = cast(log_det, torch.promote_types(log_det.dtype, dtype)).contiguous()
        parameters = cast(shift, dtype).contiguous(), cast(log_scale, dtype).contiguous()
        y, out = empty_like(x, last), empty_like(log_det)
        launch((y, out, x, *parameters, log_det), *_sizes(x), last, DTYPES[x.dtype] | DTYPES[log_det.dtype] << 2)
        return y, out

    return run


def _compiled_backward(launch: Launch) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def run(
        grad_y: Tensor, grad_log_det: Tensor, x: Tensor, shift: Tensor, log_scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, last = dense(x)
        dtype = wide(x.dtype)
        parameters = cast(shift, dtype).contiguous(), cast(log_scale, dtype).contiguous()
        grads = dense_as(grad_y, last), cast(grad_log_det, dtype).contiguous()
        grad_x, grad_shift, grad_log_scale = empty_like(x, last), *(empty_like(p) for p in parameters)
        tensors = grad_x, grad_shift, grad_log_scale, *grads, x, *parameters
        launch(tensors, *_sizes(x), last, DTYPES[x.dtype])
        return grad_x, cast(grad_shift, shift.dtype), cast(grad_log_scale, log_scale.dtype)

    return run


def _reference_backward(inverse: bool) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def run(
        grad_y: Tensor, grad_log_det: Tensor, x: Tensor, shift: Tensor, log_scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype, dims, sign = wide(x.dtype), other_dims(x), -1 if inverse else 1
        grad, factor = grad_y.to(dtype), x.to(dtype)
        grad_x = grad * per_channel((sign * log_scale.to(dtype)).exp(), x)
        if not inverse:
            factor = factor + per_channel(shift.to(dtype), x)
        grad_shift = -grad.sum(dims) if inverse else grad_x.sum(dims)
        gain = math.prod(x.shape[2:]) * grad_log_det.to(dtype).sum()
        grad_log_scale = sign * ((grad_x * factor).sum(dims) + gain)
        return grad_x.to(x.dtype), grad_shift.to(shift.dtype), grad_log_scale.to(log_scale.dtype)

    return run


def _fake(x: Tensor, shift: Tensor, log_scale: Tensor, log_det: Tensor) -> tuple[Tensor, Tensor]:
    out = log_det.new_empty(log_det.shape, dtype=torch.promote_types(log_det.dtype, wide(x.dtype)))
    return empty_like(x, dense(x)[1]), out


def _fake_backward(
    grad_y: Tensor, grad_log_det: Tensor, x: Tensor, shift: Tensor, log_scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_like(x, dense(x)[1]), shift.new_empty(shift.shape), log_scale.new_empty(log_scale.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    *saved, log_det = inputs
    ctx.save_for_backward(*saved)
    ctx.log_det_dtype = log_det.dtype


def _differentiate(backward: Callable[..., Any], ctx: Any, grad_y: Tensor, grad_log_det: Tensor) -> tuple[Tensor, ...]:
    return *backward(grad_y, grad_log_det, *ctx.saved_tensors), cast(grad_log_det, ctx.log_det_dtype)


def _register(name: str, reference: Callable[..., Any], inverse: bool) -> Callable[..., Any]:
    return register(
        "act_norm",
        f"{name}(Tensor x, Tensor shift, Tensor log_scale, Tensor log_det) -> (Tensor, Tensor)",
        reference=reference,
        fake=_fake,
        kernels=kernels(_compiled, cpp=cpp(name), triton=triton("act_norm", "act_norm", inverse=inverse)),
        setup_context=_save,
        backward=Backward(
            "(Tensor grad_y, Tensor grad_log_det, Tensor x, Tensor shift, Tensor log_scale)"
            " -> (Tensor, Tensor, Tensor)",
            call=_differentiate,
            reference=_reference_backward(inverse),
            fake=_fake_backward,
            kernels=kernels(
                _compiled_backward,
                cpp=cpp(f"{name}_backward"),
                triton=triton("act_norm", "act_norm_backward", inverse=inverse),
            ),
        ),
    )


_forward = _register("act_norm", reference, inverse=False)
_inverse = _register("act_norm_inverse", reference_inverse, inverse=True)
