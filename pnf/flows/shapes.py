"""Shapes and checks of arguments, shared by the flows."""

import math
from collections.abc import Sequence
from numbers import Real
from operator import index
from typing import Any

import torch
from torch import Tensor, nn

ROUNDING = 1e-6


def check_shape(owner: str, name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape as a tuple, or raise unless it is ``(C, H, W)``, ``(C, D)`` or ``(D,)`` of positive sizes."""
    try:
        sizes = tuple(index(n) for n in shape)
    except TypeError:
        raise TypeError(f"{owner}: {name} must be a sequence of integers, got {shape!r}") from None
    if len(sizes) not in (1, 2, 3) or any(n < 1 for n in sizes):
        raise ValueError(f"{owner}: {name} must be (C, H, W), (C, D) or (D,) with positive sizes, got {sizes}")
    return sizes


def check_choice(owner: str, name: str, value: str, choices: Sequence[str]) -> None:
    """Raise unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(f"{owner}: {name} must be {' or '.join(map(repr, choices))}, got {value!r}")


def check_integer(owner: str, name: str, value: Any, least: int) -> int:
    """Return the value as an int, or raise unless it is an integer and at least ``least``."""
    try:
        truth = isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool)
        number = None if truth else index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"{owner}: {name} must be an integer, got {value!r}")
    if number < least:
        raise ValueError(f"{owner}: {name} must be at least {least}, got {value}")
    return number


def check_number(owner: str, name: str, value: float) -> float:
    """Return the value as a float for JSON, or raise unless it is a real number, also of NumPy or PyTorch."""
    plain = _plain(value)
    if isinstance(plain, bool) or not isinstance(plain, Real):
        raise TypeError(f"{owner}: {name} must be a number, got {value!r}")
    return float(plain)


def check_flag(owner: str, name: str, value: bool) -> bool:
    """Return the value as a bool, or raise unless it is True or False."""
    plain = _plain(value)
    if not isinstance(plain, int) or plain not in (0, 1):
        raise TypeError(f"{owner}: {name} must be True or False, got {value!r}")
    return bool(plain)


def _plain(value: Any) -> Any:
    """Convert a scalar of NumPy or PyTorch to Python's. Return anything else unchanged."""
    return value.item() if getattr(value, "ndim", None) == 0 else value


def check_batch(flow: nn.Module, name: str, x: Tensor, shape: Sequence[int], *, unit: bool = False) -> None:
    """Raise unless x is a batch of a shape in the parameters' dtype and, if ``unit``, has values in [0, 1].

    Values are only checked on the CPU, where that does not wait for a device, and not inside ``torch.vmap``. They may
    pass the bounds by the rounding error of a mean. Values outside that are not checked are clamped.
    """
    owner, dtype = type(flow).__name__, next(flow.parameters()).dtype
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{owner}: {name} must be a floating Tensor, got {got}")
    if x.dtype != dtype:
        raise TypeError(f"{owner}: {name} must have the dtype of the parameters, {dtype}, got {x.dtype}")
    if x.shape[1:] != tuple(shape) or x.dim() != len(shape) + 1:
        raise ValueError(f"{owner}: {name} must be [B, {', '.join(map(str, shape))}], got {list(x.shape)}")
    if unit and x.device.type == "cpu" and x.numel() and not torch.compiler.is_compiling():
        low, high = torch.aminmax(x.detach())
        try:
            # "low < 0 or high > 1" would accept NaN.
            valid = bool(low >= -ROUNDING) and bool(high <= 1 + ROUNDING)
        except RuntimeError:
            return  # torch.vmap shows no values
        if not valid:
            raise ValueError(f"{owner}: {name} must have values in [0, 1], got values from {low:g} to {high:g}")


def as_channels(shape: Sequence[int] | None) -> tuple[int, ...]:
    """Add a dim of channels to a shape without one: ``(D,)`` becomes ``(1, D)``."""
    assert shape is not None
    return (1, *shape) if len(shape) == 1 else tuple(shape)


def bits_per_dim(log_prob: Tensor, dims: int) -> Tensor:
    """Bits per dimension of 8-bit data that is dequantized to [0, 1]: ``8 - log_prob / (D log 2)``."""
    return 8 - log_prob / (dims * math.log(2))


def zero_log_det(x: Tensor) -> Tensor:  # [B]
    """The initial log-determinant of a batch, in float32 or wider."""
    return x.new_zeros(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))


def draw_noise(
    flow: nn.Module,
    n: int,
    dims: Sequence[int],
    temperature: float | Sequence[float],
    generator: torch.Generator | None,
) -> Tensor:  # [n, sum(dims)]
    """Draw ``temperature * eps``, ``eps ~ N(0, I)``, on the generator's device, so that a seed gives the same noise.

    ``dims`` are those of each stage, and there is one temperature for all stages or one for each.
    """
    owner = type(flow).__name__
    n = check_integer(owner, "n", n, 0)
    temperatures = list(temperature) if isinstance(temperature, Sequence) else [temperature]
    if isinstance(temperature, Sequence) and len(temperatures) != len(dims):
        raise ValueError(
            f"{owner}: temperature must be a number or {len(dims)} numbers, one for each stage, got {len(temperatures)}"
        )
    for each in temperatures:
        if not 0 <= each < math.inf:
            raise ValueError(f"{owner}: temperature must be at least 0 and finite, got {each}")
    like = next(flow.parameters())
    device = like.device if generator is None else generator.device
    eps = torch.randn(n, sum(dims), generator=generator, device=device, dtype=like.dtype).to(like.device)
    if len(temperatures) == 1:
        return temperatures[0] * eps
    # The first part has no width, so that there is one if no stage is left.
    parts = eps.split([0, *dims], 1)
    return torch.cat([parts[0], *(scale * part for scale, part in zip(temperatures, parts[1:], strict=True))], 1)
