"""Space-to-depth in the two orders of Real NVP, both pure permutations.

Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2016), section 3.6.
"""

import torch
from torch import Tensor

ORDERS = ("plain", "factor")


def squeeze(
    x: Tensor,  # [B, C, 2h, 2w]
    order: str = "plain",
) -> Tensor:
    """Move each 2x2 block of pixels into channels: ``y[b, k(c, i, j), h, w] = x[b, c, 2 h + i, 2 w + j]``.

    - ``"plain"``: ``k = 4 c + 2 i + j``;
    - ``"factor"``: ``k = C r(i, j) + c`` with the sub-pixels (0,0), (1,1), (0,1), (1,0) ranked 0 to 3, so that the
      first half of the channels is the diagonal.

    Args:
        x: ``[B, C, H, W]`` with even H and W, any dtype.
        order: ``"plain"`` or ``"factor"``.

    Returns:
        ``[B, 4 C, H / 2, W / 2]``.

    Raises:
        TypeError: x is no tensor.
        ValueError: the order is unknown, x has not four dims, or its height or width is odd.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> x = torch.arange(4).view(1, 1, 2, 2)
        >>> ops.squeeze(x).flatten(), ops.squeeze(x, "factor").flatten()
        (tensor([0, 1, 2, 3]), tensor([0, 3, 1, 2]))
    """
    check_squeeze(x, order)
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // 2, 2, w // 2, 2)
    if order == "plain":
        return x.permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
    x = x.permute(0, 3, 5, 1, 2, 4).reshape(b, 4, c, h // 2, w // 2)
    x00, x01, x10, x11 = x.unbind(1)
    return torch.cat((x00, x11, x01, x10), 1)


def squeeze_inverse(
    y: Tensor,  # [B, 4C, h, w]
    order: str = "plain",
) -> Tensor:
    """Invert :func:`squeeze`: move channels back into 2x2 blocks of pixels.

    Args:
        y: ``[B, 4 C, h, w]``, any dtype.
        order: ``"plain"`` or ``"factor"``.

    Returns:
        ``[B, C, 2 h, 2 w]``.

    Raises:
        TypeError: y is no tensor.
        ValueError: the order is unknown, y has not four dims, or the number of channels is no multiple of 4.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> ops.squeeze_inverse(torch.arange(4).view(1, 4, 1, 1))
        tensor([[[[0, 1],
                  [2, 3]]]])
    """
    check_squeeze_inverse(y, order)
    b, k, h, w = y.shape
    c = k // 4
    if order == "plain":
        return y.reshape(b, c, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c, 2 * h, 2 * w)
    y00, y11, y01, y10 = y.chunk(4, 1)
    y = torch.stack((y00, y01, y10, y11), 1)
    return y.reshape(b, 2, 2, c, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c, 2 * h, 2 * w)


def check_squeeze(x: Tensor, order: str) -> None:
    """Raise the errors that :func:`squeeze` documents."""
    _check("squeeze", x, order)
    if x.shape[2] % 2 or x.shape[3] % 2:
        raise ValueError(f"squeeze: x must have an even height and width, got {list(x.shape)}")


def check_squeeze_inverse(y: Tensor, order: str) -> None:
    """Raise the errors that :func:`squeeze_inverse` documents."""
    _check("squeeze_inverse", y, order)
    if y.shape[1] % 4:
        raise ValueError(f"squeeze_inverse: y must have a multiple of 4 channels, got {list(y.shape)}")


def _check(op: str, x: Tensor, order: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: the input must be a Tensor, got {type(x).__name__}")
    if order not in ORDERS:
        raise ValueError(f'{op}: order must be "plain" or "factor", got {order!r}')
    if x.dim() != 4:
        raise ValueError(f"{op}: the input must be [B, C, H, W], got {list(x.shape)}")
