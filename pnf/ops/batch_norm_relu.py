"""Batch normalisation and ReLU; the compiled twin of :mod:`pnf.reference.batch_norm_relu`."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pnf.ops._layout import cast, dense, dense_as, empty_like
from pnf.ops._library import DTYPES, Backward, Launch, cpp, documented_by, kernels, register, triton
from pnf.reference._channels import other_dims, own, per_channel, statistics
from pnf.reference._precision import wide
from pnf.reference.batch_norm_relu import batch_norm_relu as reference
from pnf.reference.batch_norm_relu import check_batch_norm_relu

__all__ = ["batch_norm_relu"]


@documented_by(reference)
def batch_norm_relu(
    x: Tensor,  # [B, C, *spatial]
    weight: Tensor,  # [C]
    bias: Tensor,  # [C]
    mean: Tensor | None = None,  # [C]
    var: Tensor | None = None,  # [C]
    eps: float = 1e-4,
) -> tuple[Tensor, Tensor, Tensor]:
    check_batch_norm_relu(x, weight, bias, mean, var)
    y, mean, var = _batch_norm_relu(x, weight, bias, mean, var, eps)
    return y, mean, var


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """(batch size, channels, sites)."""
    return x.shape[0], x.shape[1], math.prod(x.shape[2:])


def _compiled(launch: Launch) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def run(
        x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None, var: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, last = dense(x)
        y, dtype, of_batch = empty_like(x, last), wide(x.dtype), mean is None or var is None
        weight, bias = cast(weight, dtype).contiguous(), cast(bias, dtype).contiguous()
        if mean is None or var is None:
            mean, var = x.new_empty(weight.shape, dtype=dtype), x.new_empty(weight.shape, dtype=dtype)
        else:
            mean, var = own(mean, dtype), own(var, dtype)
        launch((y, mean, var, x, weight, bias), *_sizes(x), last, of_batch, eps, DTYPES[x.dtype])
        return y, mean, var

    return run


def _compiled_backward(launch: Launch) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def run(
        grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float, batch: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, last = dense(x)
        dtype = wide(x.dtype)
        parameters = [cast(p, dtype).contiguous() for p in (weight, bias, mean, var)]
        grads = empty_like(x, last), *(x.new_empty(weight.shape, dtype=dtype) for _ in range(2))
        launch((*grads, dense_as(grad_y, last), x, *parameters), *_sizes(x), last, batch, eps, DTYPES[x.dtype])
        return grads[0], cast(grads[1], weight.dtype), cast(grads[2], bias.dtype)

    return run


def _fallback_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float, batch: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, dims = wide(x.dtype), other_dims(x)
    rstd = (var.to(dtype) + eps).rsqrt()
    scale = per_channel(weight.to(dtype) * rstd, x)
    centred = x.to(dtype) - per_channel(mean.to(dtype), x)
    grad = torch.where(centred * scale + per_channel(bias.to(dtype), x) <= 0, 0, grad_y.to(dtype))
    grad_bias, product = grad.sum(dims), (grad * centred).sum(dims)
    if batch:
        entries = x.numel() // max(x.shape[1], 1)
        grad = grad - per_channel(grad_bias / entries, x) - centred * per_channel(product * rstd.square() / entries, x)
    return (scale * grad).to(x.dtype), (product * rstd).to(weight.dtype), grad_bias.to(bias.dtype)


def reference_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float, batch: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The backward with its dependence on x through the batch's statistics, which are saved without a graph."""
    if batch:
        mean, var = statistics(x.to(wide(x.dtype)), None, None)
    return _fallback_backward(grad_y, x, weight, bias, mean, var, eps, batch)


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor | None, var: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    used = [x.new_empty(x.shape[1], dtype=wide(x.dtype)) for _ in range(2)]
    return empty_like(x, dense(x)[1]), used[0], used[1]


def _fake_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float, batch: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_like(x, dense(x)[1]), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, mean, _, ctx.eps = inputs
    ctx.batch = mean is None
    ctx.save_for_backward(x, weight, bias, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(
    backward: Callable[..., Any], ctx: Any, grad_y: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return (None,) * 6
    return *backward(grad_y, *ctx.saved_tensors, ctx.eps, ctx.batch), None, None, None


_batch_norm_relu = register(
    "batch_norm_relu",
    "batch_norm_relu(Tensor x, Tensor weight, Tensor bias, Tensor? mean, Tensor? var, float eps)"
    " -> (Tensor, Tensor, Tensor)",
    reference=reference,
    fake=_fake,
    kernels=kernels(_compiled, cpp=cpp("batch_norm_relu"), triton=triton("batch_norm_relu", "batch_norm_relu")),
    setup_context=_save,
    backward=Backward(
        "(Tensor grad_y, Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor var, float eps, bool batch)"
        " -> (Tensor, Tensor, Tensor)",
        call=_differentiate,
        reference=reference_backward,
        fallback=_fallback_backward,
        fake=_fake_backward,
        kernels=kernels(
            _compiled_backward,
            cpp=cpp("batch_norm_relu_backward"),
            triton=triton("batch_norm_relu", "batch_norm_relu_backward"),
        ),
    ),
)
