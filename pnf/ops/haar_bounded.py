"""The bounded-detail map; the compiled twin of :mod:`pnf.reference.haar_bounded`."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pnf.ops._layout import cast, dense, dense_as, empty, empty_like, scaled
from pnf.ops._library import DTYPES, Backward, Launch, cpp, documented_by, kernels, register, triton
from pnf.reference import haar, haar_bounded
from pnf.reference._channels import per_channel
from pnf.reference._precision import at_least, at_most, wide, widen
from pnf.reference.haar_bounded import BOUNDARY, LARGEST_EXPONENT

__all__ = ["haar_bounded_merge", "haar_bounded_split"]


@documented_by(haar_bounded.haar_bounded_split)
def haar_bounded_split(
    x: Tensor,  # [B, C, ..., 2n, ...]
    gamma: Tensor,  # [C]
    dim: int,
) -> tuple[Tensor, Tensor, Tensor]:
    haar.check_split("haar_bounded_split", x, dim)
    haar_bounded.check_gamma("haar_bounded_split", x, gamma, dim)
    s, u, log_det = _split(x, gamma, dim)
    return s, u, log_det


@documented_by(haar_bounded.haar_bounded_merge)
def haar_bounded_merge(
    s: Tensor,  # [B, C, ..., n, ...]
    u: Tensor,  # [B, C, ..., n, ...]
    gamma: Tensor,  # [C]
    dim: int,
) -> tuple[Tensor, Tensor]:
    haar.check_merge("haar_bounded_merge", s, u, "u", dim)
    haar_bounded.check_gamma("haar_bounded_merge", s, gamma, dim)
    x, log_det = _merge(s, u, gamma, dim)
    return x, log_det


def _sizes(shape: Sequence[int], dim: int, last: bool) -> tuple[int, int, int, int, bool]:
    """(batch, channels, pairs of an example, distance within a pair, whether channels are last) of means."""
    stride = math.prod(shape[dim % len(shape) + 1 :]) * (shape[1] if last else 1)
    return shape[0], shape[1], math.prod(shape[1:]), stride, last


def _compiled_split(launch: Launch) -> Callable[..., tuple[Tensor, ...]]:
    def run(x: Tensor, gamma: Tensor, dim: int) -> tuple[Tensor, ...]:
        x, last = dense(x)
        shape = scaled(x.shape, dim, 1, 2)
        s, u, dtype = empty(x, shape, last), empty(x, shape, last), wide(x.dtype)
        log_det = x.new_empty(shape[0], dtype=dtype)
        tensors = s, u, log_det, x, cast(gamma, dtype).contiguous()
        launch(tensors, *_sizes(shape, dim, last), DTYPES[x.dtype])
        return s, u, log_det

    return run


def _compiled_split_backward(launch: Launch) -> Callable[..., tuple[Tensor, ...]]:
    def run(
        grad_s: Tensor, grad_u: Tensor, grad_log_det: Tensor, x: Tensor, gamma: Tensor, dim: int
    ) -> tuple[Tensor, ...]:
        x, last = dense(x)
        shape, dtype = x.shape, wide(x.dtype)
        grad_x, grad_gamma = empty(x, shape, last), x.new_empty(shape[1], dtype=dtype)
        grads = dense_as(grad_s, last), dense_as(grad_u, last), cast(grad_log_det, dtype).contiguous()
        tensors = grad_x, grad_gamma, *grads, x, cast(gamma, dtype).contiguous()
        launch(tensors, *_sizes(scaled(shape, dim, 1, 2), dim, last), DTYPES[x.dtype])
        return grad_x, cast(grad_gamma, gamma.dtype)

    return run


def _compiled_merge(launch: Launch) -> Callable[..., tuple[Tensor, ...]]:
    def run(s: Tensor, u: Tensor, gamma: Tensor, dim: int) -> tuple[Tensor, ...]:
        s, last = dense(s)
        shape, dtype = s.shape, wide(s.dtype)
        x, log_det = empty(s, scaled(shape, dim, 2), last), s.new_empty(shape[0], dtype=dtype)
        tensors = x, log_det, s, dense_as(u, last), cast(gamma, dtype).contiguous()
        launch(tensors, *_sizes(shape, dim, last), DTYPES[s.dtype])
        return x, log_det

    return run


def _compiled_merge_backward(launch: Launch) -> Callable[..., tuple[Tensor, ...]]:
    def run(grad_x: Tensor, grad_log_det: Tensor, s: Tensor, u: Tensor, gamma: Tensor, dim: int) -> tuple[Tensor, ...]:
        s, last = dense(s)
        shape, dtype = s.shape, wide(s.dtype)
        grad_s, grad_u = empty(s, shape, last), empty(s, shape, last)
        grad_gamma = s.new_empty(shape[1], dtype=dtype)
        grads = dense_as(grad_x, last), cast(grad_log_det, dtype).contiguous()
        tensors = grad_s, grad_u, grad_gamma, *grads, s, dense_as(u, last), cast(gamma, dtype).contiguous()
        launch(tensors, *_sizes(shape, dim, last), DTYPES[s.dtype])
        return grad_s, grad_u, cast(grad_gamma, gamma.dtype)

    return run


def _reference_split_backward(
    grad_s: Tensor, grad_u: Tensor, grad_log_det: Tensor, x: Tensor, gamma: Tensor, dim: int
) -> tuple[Tensor, ...]:
    x0, x1 = haar.pairs(x, dim)
    s = (x0 + x1) / 2
    low = s <= 0.5
    a, b, m = torch.where(low, x0, 1 - x1), torch.where(low, x1, 1 - x0), torch.where(low, s, 1 - s)
    inner_a, inner_b, inner_m = (at_least(each, BOUNDARY) for each in (a, b, m))
    log_m, log_ratio = inner_m.log(), inner_a.log() - inner_b.log()
    g, grad_u, grad = per_channel(gamma.to(s.dtype), s), widen(grad_u), _per_example(grad_log_det, s)
    half = grad_u * at_most(g * log_m, LARGEST_EXPONENT).exp() / 2
    of_exponent = torch.where(g * log_m <= LARGEST_EXPONENT, half * log_ratio, 0)
    of_a = torch.where(a >= BOUNDARY, (half - grad) / inner_a, 0)
    of_b = torch.where(b >= BOUNDARY, (-half - grad) / inner_b, 0)
    of_m = torch.where(m >= BOUNDARY, (of_exponent * g + grad * (1 + g)) / inner_m, 0)
    mean = (widen(grad_s) + torch.where(low, of_m, -of_m)) / 2
    grad_x = haar.interleave(mean + torch.where(low, of_a, -of_b), mean + torch.where(low, of_b, -of_a), dim)
    return grad_x.to(x.dtype), _per_gamma((of_exponent + grad) * log_m, gamma)


def _reference_merge_backward(
    grad_x: Tensor, grad_log_det: Tensor, s: Tensor, u: Tensor, gamma: Tensor, dim: int
) -> tuple[Tensor, ...]:
    wide_s, wide_u = widen(s), widen(u)
    low = wide_s <= 0.5
    m = torch.where(low, wide_s, 1 - wide_s)
    inner_m = at_least(m, BOUNDARY)
    log_m = inner_m.log()
    g, grad = per_channel(gamma.to(wide_s.dtype), wide_s), _per_example(grad_log_det, wide_s)
    factor = 2 * at_most(-g * log_m, LARGEST_EXPONENT).exp()
    v = wide_u * factor
    up, down = v.sigmoid(), (-v).sigmoid()
    a, b = 2 * m * up, 2 * m * down
    of_x0, of_x1 = haar.pairs(grad_x, dim)
    of_x0 = torch.where(_is_pixel(torch.where(low, a, 1 - b)), of_x0, 0)
    of_x1 = torch.where(_is_pixel(torch.where(low, b, 1 - a)), of_x1, 0)
    of_a, of_b = torch.where(low, of_x0, -of_x1), torch.where(low, of_x1, -of_x0)
    of_u = (2 * m * (of_a - of_b) * up * down - grad * (up - down)) * factor
    of_exponent = torch.where(-g * log_m <= LARGEST_EXPONENT, of_u * wide_u, 0)
    of_log_m = grad * (1 - g) - of_exponent * g
    of_m = 2 * (of_a * up + of_b * down) + torch.where(m >= BOUNDARY, of_log_m / inner_m, 0)
    grad_s = torch.where(low, of_m, -of_m).to(s.dtype)
    grad_gamma = _per_gamma(-(of_exponent + grad) * log_m, gamma)
    return grad_s, of_u.to(u.dtype), grad_gamma


def _is_pixel(x: Tensor) -> Tensor:
    return (x >= 0) & (x <= 1)


def _per_example(grad: Tensor, x: Tensor) -> Tensor:
    return grad.view(-1, *(1,) * (x.dim() - 1))


def _per_gamma(grad: Tensor, gamma: Tensor) -> Tensor:
    return grad.transpose(0, 1).flatten(1).sum(1).to(gamma.dtype)


def _fake_split(x: Tensor, gamma: Tensor, dim: int) -> tuple[Tensor, ...]:
    shape, last = scaled(x.shape, dim, 1, 2), dense(x)[1]
    return empty(x, shape, last), empty(x, shape, last), x.new_empty(shape[0], dtype=wide(x.dtype))


def _fake_split_backward(*inputs: Any) -> tuple[Tensor, ...]:
    *_, x, gamma, _ = inputs
    return empty_like(x, dense(x)[1]), gamma.new_empty(gamma.shape)


def _fake_merge(s: Tensor, u: Tensor, gamma: Tensor, dim: int) -> tuple[Tensor, ...]:
    return empty(s, scaled(s.shape, dim, 2), dense(s)[1]), s.new_empty(s.shape[0], dtype=wide(s.dtype))


def _fake_merge_backward(*inputs: Any) -> tuple[Tensor, ...]:
    *_, s, _, gamma, _ = inputs
    last = dense(s)[1]
    return empty_like(s, last), empty_like(s, last), gamma.new_empty(gamma.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.dim = inputs
    ctx.save_for_backward(*tensors)


def _save_split(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _save(ctx, inputs, output)
    if not inputs[0].requires_grad:
        ctx.mark_non_differentiable(output[0])  # the mean does not depend on gamma


def _differentiate(backward: Callable[..., Any], ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    return *backward(*grads, *ctx.saved_tensors, ctx.dim), None


_split = register(
    "haar_bounded",
    "haar_bounded_split(Tensor x, Tensor gamma, int dim) -> (Tensor, Tensor, Tensor)",
    reference=haar_bounded.haar_bounded_split,
    fake=_fake_split,
    kernels=kernels(
        _compiled_split,
        cpp=cpp("haar_bounded_split"),
        triton=triton("haar_bounded", "haar_bounded_split"),
    ),
    setup_context=_save_split,
    backward=Backward(
        "(Tensor grad_s, Tensor grad_u, Tensor grad_log_det, Tensor x, Tensor gamma, int dim) -> (Tensor, Tensor)",
        call=_differentiate,
        reference=_reference_split_backward,
        fake=_fake_split_backward,
        kernels=kernels(
            _compiled_split_backward,
            cpp=cpp("haar_bounded_split_backward"),
            triton=triton("haar_bounded", "haar_bounded_split_backward"),
        ),
    ),
)

_merge = register(
    "haar_bounded",
    "haar_bounded_merge(Tensor s, Tensor u, Tensor gamma, int dim) -> (Tensor, Tensor)",
    reference=haar_bounded.haar_bounded_merge,
    fake=_fake_merge,
    kernels=kernels(
        _compiled_merge,
        cpp=cpp("haar_bounded_merge"),
        triton=triton("haar_bounded", "haar_bounded_merge"),
    ),
    setup_context=_save,
    backward=Backward(
        "(Tensor grad_x, Tensor grad_log_det, Tensor s, Tensor u, Tensor gamma, int dim) -> (Tensor, Tensor, Tensor)",
        call=_differentiate,
        reference=_reference_merge_backward,
        fake=_fake_merge_backward,
        kernels=kernels(
            _compiled_merge_backward,
            cpp=cpp("haar_bounded_merge_backward"),
            triton=triton("haar_bounded", "haar_bounded_merge_backward"),
        ),
    ),
)
