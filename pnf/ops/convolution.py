"""Convolutions; the compiled twin of :mod:`pnf.reference.convolution`.

On a CPU in float32, 1x1 convolutions are matrix products, and 3x3 ones use Winograd's form, which takes 3
multiplications for a result and a channel instead of 9, or 4 in narrow images. Rounding errors are about those of a
direct convolution, and larger in the gradient of a weight. A NaN or an infinity spreads over a tile of 2x4 pixels, or
of 2x2 in narrow images. PyTorch computes all other convolutions.

In bfloat16 and float16, a processor without instructions for them computes in float32, and only what goes in and what
comes out is rounded.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, unfold

from pnf.ops._layout import dense, empty, empty_like
from pnf.ops._library import KERNELS, Backward, Launch, cpp, documented_by, kernels, register
from pnf.ops._processor import WIDENED
from pnf.reference.convolution import check_convolution
from pnf.reference.convolution import convolution as reference

__all__ = ["convolution"]

MULTIPLE = 16
"""The longest vector of float32. The channels in or out of a 3x3 convolution must be a multiple of it."""

FEW = 6
"""Forward, PyTorch's 3x3 convolutions are as fast if fewer channels than this go in."""


@documented_by(reference)
def convolution(
    x: Tensor,  # [B, I, H, W]
    weight: Tensor,  # [O, I, h, w]
    bias: Tensor,  # [O]
    add: Tensor | None = None,  # [B, O, H, W]
    relu: bool = False,
) -> Tensor:
    if has_kernel(x, weight):
        check_convolution(x, weight, bias, add)
        return _convolution(x, weight, bias, add, relu)
    dtype = widened(x)
    if dtype is None or not (add is None or add.dtype is dtype):
        return reference(x, weight, bias, add, relu)
    check_convolution(x, weight, bias, add)
    with torch.autocast("cpu", enabled=False):
        return _convolution(x.to(dtype), weight.to(dtype), bias.to(dtype), add, relu)


def convolution_backward(grad_y: Tensor, x: Tensor, weight: Tensor, of_input: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x (empty unless ``of_input``), of the weight and of the bias."""
    if has_kernel(x, weight):
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.pnf.convolution_backward(grad_y, x, weight, of_input)
        return found
    return _fallback_backward(grad_y, x, weight, of_input)


def widened(x: Tensor) -> torch.dtype | None:
    """The dtype of half precision that x has or autocast gives it, if this processor computes it in float32."""
    if not isinstance(x, Tensor) or not x.is_cpu:
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    return dtype if dtype in WIDENED and x.dtype in (dtype, torch.float32) else None


def has_kernel(x: Tensor, weight: Tensor) -> bool:
    """Whether the compiled convolution takes the arguments."""
    if not isinstance(x, Tensor) or not isinstance(weight, Tensor) or not x.is_cpu or torch.is_autocast_enabled("cpu"):
        return False
    return x.dtype == weight.dtype == torch.float32 and filter_has_kernel(weight)


def filter_has_kernel(weight: Tensor) -> bool:
    """Whether the compiled convolution takes a weight of this shape."""
    outputs, inputs, *size = weight.shape if weight.dim() == 4 else (0, 0)
    if not outputs or not inputs:
        return False
    return size == [1, 1] or (size == [3, 3] and (outputs % MULTIPLE == 0 or inputs % MULTIPLE == 0))


def filter_sizes(weight: Tensor, last: bool) -> tuple[int, ...]:
    """(inputs, outputs, size, stride of an output, of an input, of a tap)."""
    outputs, inputs, size, _ = weight.shape
    taps = size * size
    return (inputs, outputs, size, taps * inputs, *((1, inputs) if last else (taps, 1)))


def _sizes(x: Tensor, weight: Tensor, last: bool) -> tuple[int, ...]:
    """(batch, height, width), and :func:`filter_sizes` of the weight."""
    batch, _, height, width = x.shape
    return batch, height, width, *filter_sizes(weight, last)


def _compiled(launch: Launch) -> Callable[..., Tensor]:
    def run(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, relu: bool) -> Tensor:
        if x.dtype in WIDENED and weight.dtype is x.dtype:
            added = None if add is None else add.float()
            return run(x.float(), weight.float(), bias.float(), added, relu).to(x.dtype)
        if not has_kernel(x, weight):
            return KERNELS["convolution"]["reference"](x, weight, bias, add, relu)
        x = x.contiguous(memory_format=torch.channels_last)
        if weight.shape[1] < FEW and weight.shape[2] == 3:
            return reference(x, weight, bias, add, relu).contiguous(memory_format=torch.channels_last)
        weight, last = dense(weight)
        y = empty(x, (x.shape[0], weight.shape[0], *x.shape[2:]), True)
        added = y if add is None else add.contiguous(memory_format=torch.channels_last)
        launch((y, added, x, weight, bias.contiguous()), *_sizes(x, weight, last), add is not None, relu)
        return y

    return run


def _compiled_backward(launch: Launch) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    def run(grad_y: Tensor, x: Tensor, weight: Tensor, of_input: bool) -> tuple[Tensor, Tensor, Tensor]:
        if x.dtype in WIDENED and weight.dtype is x.dtype:
            grad_x, grad_weight, grad_bias = run(grad_y.float(), x.float(), weight.float(), of_input)
            return grad_x.to(x.dtype), grad_weight.to(x.dtype), grad_bias.to(x.dtype)
        if not has_kernel(x, weight):
            return KERNELS["convolution_backward"]["reference"](grad_y, x, weight, of_input)
        x, grad_y = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad_y))
        weight, last = dense(weight)
        grad_x = empty_like(x, True) if of_input else x.new_empty(0)
        grad_weight, grad_bias = empty_like(weight, last), weight.new_empty(weight.shape[0])
        launch((grad_x, grad_weight, grad_bias, grad_y, x, weight), *_sizes(x, weight, last), of_input)
        return grad_x, grad_weight, grad_bias

    return run


def _fallback_backward(grad_y: Tensor, x: Tensor, weight: Tensor, of_input: bool) -> tuple[Tensor, Tensor, Tensor]:
    padding = [size // 2 for size in weight.shape[2:]]
    mask = [of_input, True, True]
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad_y, x, weight, [weight.shape[0]], [1, 1], padding, [1, 1], False, [0, 0], 1, mask
    )
    return grad_x if of_input else x.new_empty(0), grad_weight, grad_bias


def reference_backward(grad_y: Tensor, x: Tensor, weight: Tensor, of_input: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The backward as products, since derivatives of PyTorch's own backward do not take symbolic sizes."""
    padding = [size // 2 for size in weight.shape[2:]]
    grad_x = conv2d(grad_y, weight.transpose(0, 1).flip(2, 3), padding=padding) if of_input else x.new_empty(0)
    seen = unfold(x, weight.shape[2:], padding=tuple(padding))
    batch, outputs, height, width = grad_y.shape
    grads = grad_y.reshape(batch, outputs, height * width)  # flatten has no batching rule
    grad_weight = (grads @ seen.transpose(1, 2)).sum(0).view(weight.shape)
    return grad_x, grad_weight, grad_y.sum((0, 2, 3))


def _fake(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, relu: bool) -> Tensor:
    return empty(x, (x.shape[0], weight.shape[0], *x.shape[2:]), True)


def _fake_backward(grad_y: Tensor, x: Tensor, weight: Tensor, of_input: bool) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = empty_like(x, True) if of_input else x.new_empty(0)
    return grad_x, empty_like(weight, dense(weight)[1]), weight.new_empty(weight.shape[0])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, add, relu = inputs
    ctx.of_input, ctx.added = x.requires_grad, add is not None
    ctx.save_for_backward(x, weight, output if relu else None)


def _differentiate(backward: Callable[..., Any], ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, y = ctx.saved_tensors
    if y is not None:
        grad_y = torch.ops.aten.threshold_backward(grad_y, y, 0)
    grad_x, grad_weight, grad_bias = backward(grad_y, x, weight, ctx.of_input)
    return grad_x if ctx.of_input else None, grad_weight, grad_bias, grad_y if ctx.added else None, None


_convolution = register(
    "convolution",
    "convolution(Tensor x, Tensor weight, Tensor bias, Tensor? add, bool relu) -> Tensor",
    reference=reference,
    fake=_fake,
    kernels=kernels(_compiled, cpp=cpp("convolution")),
    setup_context=_save,
    backward=Backward(
        "(Tensor grad_y, Tensor x, Tensor weight, bool of_input) -> (Tensor, Tensor, Tensor)",
        call=_differentiate,
        reference=reference_backward,
        fallback=_fallback_backward,
        fake=_fake_backward,
        kernels=kernels(_compiled_backward, cpp=cpp("convolution_backward")),
    ),
)
