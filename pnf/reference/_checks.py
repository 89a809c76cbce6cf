"""Checks of arguments, shared by the reference ops."""

from torch import Tensor


def check_floating(op: str, name: str, x: Tensor) -> None:
    """Raise unless x is a floating tensor."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{op}: {name} must be a floating Tensor, got {got}")
