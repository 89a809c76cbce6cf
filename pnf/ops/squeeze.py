"""Space-to-depth in the two orders of Real NVP; the compiled twin of :mod:`pnf.reference.squeeze`.

Both ops move bits, so any dtype works and NaN payloads survive. The layout with channels last is kept. Any other tensor
is made contiguous first.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pnf.ops._layout import dense, dense_as, empty
from pnf.ops._library import Launch, cpp, documented_by, kernels, register, triton
from pnf.reference.squeeze import check_squeeze, check_squeeze_inverse
from pnf.reference.squeeze import squeeze as reference
from pnf.reference.squeeze import squeeze_inverse as reference_inverse

__all__ = ["squeeze", "squeeze_inverse"]


@documented_by(reference)
def squeeze(
    x: Tensor,  # [B, C, 2h, 2w]
    order: str = "plain",
) -> Tensor:
    check_squeeze(x, order)
    return _squeeze(x, order)


@documented_by(reference_inverse)
def squeeze_inverse(
    y: Tensor,  # [B, 4C, h, w]
    order: str = "plain",
) -> Tensor:
    check_squeeze_inverse(y, order)
    return _inverse(y, order)


def _compiled(launch: Launch) -> Callable[..., Tensor]:
    def run(x: Tensor, order: str) -> Tensor:
        x, last = dense(x)
        b, c, h, w = x.shape
        h, w = h // 2, w // 2
        y = empty(x, (b, 4 * c, h, w), last)
        launch((y, x), b, c, h, w, order == "factor", last, x.element_size())
        return y

    return run


def _compiled_inverse(launch: Launch) -> Callable[..., Tensor]:
    def run(y: Tensor, order: str) -> Tensor:
        y, last = dense(y)
        b, c, h, w = y.shape
        c //= 4
        x = empty(y, (b, c, 2 * h, 2 * w), last)
        launch((x, y), b, c, h, w, order == "factor", last, y.element_size())
        return x

    return run


def _fake(x: Tensor, order: str) -> Tensor:
    b, c, h, w = x.shape
    return empty(x, (b, 4 * c, h // 2, w // 2), dense(x)[1])


def _fake_inverse(y: Tensor, order: str) -> Tensor:
    b, c, h, w = y.shape
    return empty(y, (b, c // 4, 2 * h, 2 * w), dense(y)[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.order, ctx.last = inputs[1], dense(inputs[0])[1]


# A gradient has the layout of its tensor, as the ops before take it.


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _inverse(dense_as(grad, ctx.last), ctx.order), None


def _differentiate_inverse(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _squeeze(dense_as(grad, ctx.last), ctx.order), None


_squeeze = register(
    "squeeze",
    "squeeze(Tensor x, str order) -> Tensor",
    reference=reference,
    fake=_fake,
    kernels=kernels(_compiled, cpp=cpp("squeeze"), triton=triton("squeeze", "squeeze", inverse=False)),
    setup_context=_save,
    backward=_differentiate,
)
_inverse = register(
    "squeeze",
    "squeeze_inverse(Tensor y, str order) -> Tensor",
    reference=reference_inverse,
    fake=_fake_inverse,
    kernels=kernels(_compiled_inverse, cpp=cpp("squeeze_inverse"), triton=triton("squeeze", "squeeze", inverse=True)),
    setup_context=_save,
    backward=_differentiate_inverse,
)
