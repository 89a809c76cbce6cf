"""Checkerboard and channel masks without a mask tensor; the compiled twin of :mod:`pnf.reference.masking`.

Every op moves bits, so that any dtype works and NaN payloads and signed zeros survive. A tensor whose memory has the
channels last keeps them there; a tensor that is neither that nor contiguous is made contiguous first.
"""

import math
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from pnf.ops._library import Kernel, cpu_module, cuda_module, launch_cpu, launch_cuda, register
from pnf.reference import masking as reference

__all__ = ["mask_apply", "mask_input", "mask_pack", "mask_unpack"]


def mask_apply(
    x: Tensor,  # [B, C, *spatial]
    mask: str,
    parity: int,
) -> Tensor:
    """Keep the entries of one half and set the others to zero: ``where(kept, x, 0)``.

    Args:
        x: ``[B, C, *spatial]``, any dtype.
        mask: ``"checkerboard"`` or ``"channel"``.
        parity: 0 or 1, the half that is kept.

    Returns:
        A tensor of the shape and memory format of ``x``. Entries that are not kept are 0, even where ``x`` is NaN.

    Raises:
        TypeError: ``x`` is no tensor.
        ValueError: an unknown mask or parity, too few dims, or an odd number of channels under a channel mask.
    """
    reference.check_mask("mask_apply", x, mask, parity)
    return _apply(x, mask, parity)


def mask_pack(
    x: Tensor,  # [B, C, *spatial]
    mask: str,
    parity: int,
) -> tuple[Tensor, Tensor]:
    """Split x into the half that is kept and the rest, each without gaps.

    Args:
        x: ``[B, C, *spatial]``, any dtype.
        mask: ``"checkerboard"`` or ``"channel"``.
        parity: 0 or 1, the half that is kept.

    Returns:
        ``kept, rest``: ``[B, C, n]`` and ``[B, C, N - n]`` under a checkerboard over ``N`` sites,
        ``[B, C / 2, *spatial]`` each under a channel mask. Channels that come last in the memory of x do so here too.

    Raises:
        TypeError: ``x`` is no tensor.
        ValueError: an unknown mask or parity, too few dims, or an odd number of channels under a channel mask.
    """
    reference.check_mask("mask_pack", x, mask, parity)
    kept, rest = _pack(x, mask, parity)
    return kept, rest


def mask_unpack(
    kept: Tensor,  # [B, C, n] or [B, C / 2, *spatial]
    rest: Tensor,  # [B, C, N - n] or [B, C / 2, *spatial]
    mask: str,
    parity: int,
    size: Sequence[int],
) -> Tensor:
    """Put two packed halves back in place: ``mask_unpack(*mask_pack(x, mask, parity), mask, parity, size) == x``.

    Args:
        kept, rest: what :func:`mask_pack` returned.
        mask: ``"checkerboard"`` or ``"channel"``.
        parity: 0 or 1, the half that ``kept`` is.
        size: the spatial size of x, ``x.shape[2:]``.

    Returns:
        ``[B, C, *size]``, in the memory format of ``kept``.

    Raises:
        TypeError: ``kept`` or ``rest`` is no tensor, or their dtypes differ.
        ValueError: an unknown mask or parity, or shapes that do not belong together.
    """
    reference.check_halves("mask_unpack", kept, rest, mask, parity, size)
    return _unpack(kept, rest, mask, parity, size)


def mask_input(
    x: Tensor,  # [B, C, *spatial]
    condition: Tensor,  # [B, K, *spatial]
    mask: str,
    parity: int,
) -> Tensor:
    """The input of a conditioner network: what is kept of x beside a condition.

    Args:
        x: ``[B, C, *spatial]``.
        condition: ``[B, K, *spatial]``, of the same dtype; K may be 0.
        mask: ``"checkerboard"`` or ``"channel"``.
        parity: 0 or 1, the half that is kept.

    Returns:
        ``[B, C + K, *spatial]`` under a checkerboard (masked x, then the condition), ``[B, C / 2 + K, *spatial]``
        under a channel mask (the kept channels, then the condition); in the memory format of ``x``.

    Raises:
        TypeError: an argument is no tensor, or the dtypes differ.
        ValueError: an unknown mask or parity, too few dims, or sizes of x and the condition that differ.
    """
    reference.check_mask("mask_input", x, mask, parity)
    reference.check_condition("mask_input", x, condition)
    return _input(x, condition, mask, parity)


def _dense(x: Tensor) -> tuple[Tensor, bool]:
    """X without gaps in its memory, and whether its channels come last there."""
    if x.is_contiguous():
        return x, False
    if x.movedim(1, -1).is_contiguous():
        return x, True
    return x.contiguous(), False


def _dense_as(x: Tensor, last: bool) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x.contiguous()


def _empty(x: Tensor, shape: Sequence[int], last: bool) -> Tensor:
    if last:
        return x.new_empty((shape[0], *shape[2:], shape[1])).movedim(-1, 1)
    return x.new_empty(shape)


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
    """The view [outer, height, width, inner] of a tensor's memory that csrc/masking.h speaks of."""
    batch, channels, *size = shape
    if mask == "channel":
        sites = math.prod(size)
        return (batch * sites, 1, 2, channels // 2) if last else (batch, 1, 2, channels // 2 * sites)
    height = size[0] if len(size) == 2 else 1
    return (batch, height, size[-1], channels) if last else (batch * channels, height, size[-1], 1)


def _beside(shape: Sequence[int], condition: int, mask: str, last: bool) -> tuple[int, int, int, int]:
    """Rows, and the lengths in a row of x, of its kept entries and of the condition."""
    batch, channels, *size = shape
    sites = math.prod(size)
    rows, length = (batch * sites, 1) if last else (batch, sites)
    return rows, channels * length, _kept_channels(channels, mask) * length, condition * length


Launch = Callable[..., None]


def _compiled_apply(launch: Launch, module: ModuleType) -> Callable[..., Tensor]:
    kernel = module.mask_apply

    def run(x: Tensor, mask: str, parity: int) -> Tensor:
        x, last = _dense(x)
        out = _empty(x, x.shape, last)
        launch(kernel, x, out.data_ptr(), x.data_ptr(), *_board(x.shape, mask, last), x.element_size(), parity)
        return out

    return run


def _compiled_pack(launch: Launch, module: ModuleType) -> Callable[..., tuple[Tensor, Tensor]]:
    kernel = module.mask_pack

    def run(x: Tensor, mask: str, parity: int) -> tuple[Tensor, Tensor]:
        x, last = _dense(x)
        kept, rest = (_empty(x, shape, last) for shape in _packed_shapes(x, mask, parity))
        board = _board(x.shape, mask, last)
        launch(kernel, x, kept.data_ptr(), rest.data_ptr(), x.data_ptr(), *board, x.element_size(), parity)
        return kept, rest

    return run


def _compiled_unpack(launch: Launch, module: ModuleType) -> Callable[..., Tensor]:
    kernel = module.mask_unpack

    def run(kept: Tensor, rest: Tensor, mask: str, parity: int, size: Sequence[int]) -> Tensor:
        kept, last = _dense(kept)
        rest = _dense_as(rest, last)
        out = _empty(kept, _unpacked_shape(kept, mask, size), last)
        board = _board(out.shape, mask, last)
        launch(kernel, kept, out.data_ptr(), kept.data_ptr(), rest.data_ptr(), *board, kept.element_size(), parity)
        return out

    return run


def _compiled_input(launch: Launch, module: ModuleType) -> Callable[..., Tensor]:
    kernel = module.mask_input

    def run(x: Tensor, condition: Tensor, mask: str, parity: int) -> Tensor:
        x, last = _dense(x)
        condition = _dense_as(condition, last)
        channels = _kept_channels(x.shape[1], mask) + condition.shape[1]
        out = _empty(x, [x.shape[0], channels, *x.shape[2:]], last)
        beside, board = _beside(x.shape, condition.shape[1], mask, last), _board(x.shape, mask, last)
        pointers = out.data_ptr(), x.data_ptr(), condition.data_ptr()
        launch(kernel, x, *pointers, *beside, *board, x.element_size(), parity)
        return out

    return run


def _compiled_input_backward(launch: Launch, module: ModuleType) -> Callable[..., tuple[Tensor, Tensor]]:
    kernel = module.mask_input_backward

    def run(grad: Tensor, channels: int, mask: str, parity: int) -> tuple[Tensor, Tensor]:
        grad, last = _dense(grad)
        batch, columns, *size = grad.shape
        x = _empty(grad, [batch, channels, *size], last)
        condition = _empty(grad, [batch, columns - _kept_channels(channels, mask), *size], last)
        beside, board = _beside(x.shape, condition.shape[1], mask, last), _board(x.shape, mask, last)
        pointers = x.data_ptr(), condition.data_ptr(), grad.data_ptr()
        launch(kernel, grad, *pointers, *beside, *board, grad.element_size(), parity)
        return x, condition

    return run


def _reference_apply(x: Tensor, mask: str, parity: int) -> Tensor:
    return _dense_as(reference.mask_apply(x, mask, parity), _dense(x)[1])


def _reference_pack(x: Tensor, mask: str, parity: int) -> tuple[Tensor, Tensor]:
    last = _dense(x)[1]
    kept, rest = reference.mask_pack(x, mask, parity)
    return _dense_as(kept, last), _dense_as(rest, last)


def _reference_unpack(kept: Tensor, rest: Tensor, mask: str, parity: int, size: Sequence[int]) -> Tensor:
    return _dense_as(reference.mask_unpack(kept, rest, mask, parity, size), _dense(kept)[1])


def _reference_input(x: Tensor, condition: Tensor, mask: str, parity: int) -> Tensor:
    return _dense_as(reference.mask_input(x, condition, mask, parity), _dense(x)[1])


def _reference_input_backward(grad: Tensor, channels: int, mask: str, parity: int) -> tuple[Tensor, Tensor]:
    last = _dense(grad)[1]
    kept = _kept_channels(channels, mask)
    x, condition = grad[:, :kept], grad[:, kept:]
    if mask == "channel":
        zero = torch.zeros_like(x)
        x = torch.cat((zero, x) if parity else (x, zero), 1)
    else:
        x = reference.mask_apply(x, mask, parity)
    return _dense_as(x, last), _dense_as(condition.clone(), last)


def _fake_apply(x: Tensor, mask: str, parity: int) -> Tensor:  # noqa: ARG001
    return _empty(x, x.shape, _dense(x)[1])


def _fake_pack(x: Tensor, mask: str, parity: int) -> tuple[Tensor, Tensor]:
    last = _dense(x)[1]
    kept, rest = _packed_shapes(x, mask, parity)
    return _empty(x, kept, last), _empty(x, rest, last)


def _fake_unpack(
    kept: Tensor,
    rest: Tensor,  # noqa: ARG001
    mask: str,
    parity: int,  # noqa: ARG001
    size: Sequence[int],
) -> Tensor:
    return _empty(kept, _unpacked_shape(kept, mask, size), _dense(kept)[1])


def _fake_input(x: Tensor, condition: Tensor, mask: str, parity: int) -> Tensor:  # noqa: ARG001
    channels = _kept_channels(x.shape[1], mask) + condition.shape[1]
    return _empty(x, [x.shape[0], channels, *x.shape[2:]], _dense(x)[1])


def _fake_input_backward(grad: Tensor, channels: int, mask: str, parity: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    last = _dense(grad)[1]
    batch, columns, *size = grad.shape
    condition = columns - _kept_channels(channels, mask)
    return _empty(grad, [batch, channels, *size], last), _empty(grad, [batch, condition, *size], last)


def _save_apply(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    _, ctx.mask, ctx.parity = inputs


def _apply_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _apply(grad, ctx.mask, ctx.parity), None, None


def _save_pack(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG001
    x, ctx.mask, ctx.parity = inputs
    ctx.size = x.shape[2:]


def _pack_backward(ctx: Any, kept: Tensor, rest: Tensor) -> tuple[Tensor, None, None]:
    return _unpack(kept, rest, ctx.mask, ctx.parity, ctx.size), None, None


def _save_unpack(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    _, _, ctx.mask, ctx.parity, _ = inputs


def _unpack_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
    kept, rest = _pack(grad, ctx.mask, ctx.parity)
    return kept, rest, None, None, None


def _save_input(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, _, ctx.mask, ctx.parity = inputs
    ctx.channels = x.shape[1]


def _differentiate_input(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
    x, condition = _input_backward(grad, ctx.channels, ctx.mask, ctx.parity)
    return x, condition, None, None


def _save_input_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG001
    _, _, ctx.mask, ctx.parity = inputs


def _differentiate_input_backward(ctx: Any, x: Tensor, condition: Tensor) -> tuple[Tensor, None, None, None]:
    return _input(x, condition, ctx.mask, ctx.parity), None, None, None


def _kernels(compiled: Callable[[Launch, ModuleType], Callable[..., Any]]) -> dict[str, Kernel]:
    kernels = {}
    if (module := cpu_module()) is not None:
        kernels["cpu"] = Kernel("cpp", compiled(launch_cpu, module))
    if (module := cuda_module()) is not None:
        kernels["cuda"] = Kernel("cuda", compiled(launch_cuda, module))
    return kernels


_apply = register(
    "masking",
    "mask_apply(Tensor x, str mask, int parity) -> Tensor",
    reference=_reference_apply,
    fake=_fake_apply,
    backward=_apply_backward,
    setup_context=_save_apply,
    **_kernels(_compiled_apply),
)
_pack = register(
    "masking",
    "mask_pack(Tensor x, str mask, int parity) -> (Tensor, Tensor)",
    reference=_reference_pack,
    fake=_fake_pack,
    backward=_pack_backward,
    setup_context=_save_pack,
    **_kernels(_compiled_pack),
)
_unpack = register(
    "masking",
    "mask_unpack(Tensor kept, Tensor rest, str mask, int parity, SymInt[] size) -> Tensor",
    reference=_reference_unpack,
    fake=_fake_unpack,
    backward=_unpack_backward,
    setup_context=_save_unpack,
    **_kernels(_compiled_unpack),
)
_input = register(
    "masking",
    "mask_input(Tensor x, Tensor condition, str mask, int parity) -> Tensor",
    reference=_reference_input,
    fake=_fake_input,
    backward=_differentiate_input,
    setup_context=_save_input,
    **_kernels(_compiled_input),
)
_input_backward = register(
    "masking",
    "mask_input_backward(Tensor grad, SymInt channels, str mask, int parity) -> (Tensor, Tensor)",
    reference=_reference_input_backward,
    fake=_fake_input_backward,
    backward=_differentiate_input_backward,
    setup_context=_save_input_backward,
    **_kernels(_compiled_input_backward),
)
