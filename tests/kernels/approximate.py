"""Triton's interpreter with the errors of a GPU.

NumPy rounds quotients and roots to the nearest and its exponentials nearly so, where a GPU's instructions err by some
units in the last place: ``div.full.f32`` by 2, ``ex2.approx.f32`` by 2, ``sqrt.approx.f32`` by 1, and the logarithm of
CUDA's library by 1. What Triton computes from them, such as ``exp(x)`` by ``ex2(x log2(e))``, errs by more. In float64
quotients and roots are exact.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
from triton.runtime import interpreter

builder = interpreter.interpreter_builder

LOG2_E = np.float32(1.4426950408889634)


def off(y: np.ndarray, units: int) -> np.ndarray:
    """The numbers, each so many units too large or too small, as a hash of it says."""
    if y.dtype not in (np.float32, np.float64):
        return y
    bits = np.ascontiguousarray(y).view(np.uint32 if y.dtype == np.float32 else np.uint64)
    sign = np.where(bits.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(63), 1, -1)
    return np.where(np.isfinite(y), y + (sign * units * np.spacing(np.abs(y))).astype(y.dtype), y)


def exp(x: np.ndarray, units: int) -> np.ndarray:
    """As ``ex2.approx`` of a rounded product."""
    return off(np.exp2(x * LOG2_E), units) if x.dtype == np.float32 else off(np.exp(x), 1)


@contextmanager
def approximate(units: int) -> Iterator[None]:
    """Kernels are interpreted with functions that err by so many units, and by one where a GPU promises that."""

    def unary(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda arg: builder.unary_op(arg, function)

    def quotient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        z = np.divide(x, y)
        return off(z, units) if z.dtype == np.float32 else z

    def root(x: np.ndarray) -> np.ndarray:
        y = np.sqrt(x)
        return off(y, units) if y.dtype == np.float32 else y

    functions = {
        "create_exp": unary(lambda x: exp(x, units)),
        "create_exp2": unary(lambda x: off(np.exp2(x), units)),
        "create_log": unary(lambda x: off(np.log(x), 1)),
        "create_log2": unary(lambda x: off(np.log2(x), 1)),
        "create_sqrt": unary(root),
        "create_fdiv": lambda x, y: builder.binary_op(x, y, quotient),
    }
    with patch.multiple(builder, **functions), np.errstate(all="ignore"):
        yield
