"""The first stage of a convolutional conditioner network, from x and the mask of its coupling."""

import torch
from torch import Tensor

from pnf.reference._channels import check_statistics, per_channel, statistics
from pnf.reference._checks import check_floating
from pnf.reference._precision import widen
from pnf.reference.masking import check_condition, check_mask, mask_apply


def conditioner_input(
    x: Tensor,  # [B, C, *spatial]
    condition: Tensor | None,  # [B, N, *spatial]
    offset: Tensor | None,  # [K]
    mean: Tensor | None = None,  # [K]
    var: Tensor | None = None,  # [K]
    *,
    mask: str,
    parity: int,
    gain: float = 1.0,
    eps: float = 1e-4,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Make the input of a conditioner network, ``h = [relu(v), relu(-v), board, condition]``.

    ``v = gain * ((kept - mean) / sqrt(var + eps) + offset)``. Without an offset nothing is normalised:
    ``v = gain * kept``. Under a checkerboard, ``kept`` has all ``K = C`` channels, with zeros at the other sites, which
    take part in the statistics, and ``board`` is one channel, 1 at kept sites and 0 elsewhere. Under a channel mask,
    ``kept`` has the ``K = C / 2`` channels that the mask keeps, and there is no ``board``.

    By default ``mean`` and ``var`` are those of the batch, as in :func:`pnf.reference.batch_norm_relu`. Given ones are
    constants.

    Args:
        x: ``[B, C, *spatial]``, floating.
        condition: ``[B, N, *spatial]``, of the same dtype, or None for ``N = 0``.
        offset: ``[K]``, floating, or None.
        mean, var: ``[K]``, floating, both or neither.
        mask: ``"checkerboard"`` or ``"channel"``, see :mod:`pnf.reference.masking`.
        parity: 0 or 1, the half to keep.
        gain: a factor. Real NVP doubles the input under a checkerboard, since half of it is zero.
        eps: added to the variance.

    Returns:
        ``h`` in the dtype of x, ``[B, 2 K + 1 + N, *spatial]`` under a checkerboard and ``[B, 2 K + N, *spatial]``
        under a channel mask; and the ``mean`` and ``var`` used, ``[K]`` in float32 or wider, in new memory and without
        a gradient, or None and None without an offset.

    Raises:
        TypeError: an argument is no floating tensor, or the condition has another dtype than x.
        ValueError: the mask or the parity is unknown, the shapes do not fit together, only one of ``mean`` and ``var``
            is given, they are given without an offset, or x has no entries and they are not given.

    Source: the code that Dinh, Sohl-Dickstein and Bengio published with "Density estimation using Real NVP" (2016).

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> x, condition = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 8, 8)
        >>> h, mean, var = ops.conditioner_input(x, condition, torch.zeros(4), mask="checkerboard", parity=0)
        >>> h.shape  # 2 * 4 + 1 + 3 channels
        torch.Size([2, 12, 8, 8])
    """
    check_conditioner_input(x, condition, offset, mean, var, mask, parity)
    each = widen(x)
    v = each.chunk(2, 1)[parity] if mask == "channel" else mask_apply(each, mask, parity)
    if offset is not None:
        mean, var = statistics(v, mean, var)
        v = (v - per_channel(mean, x)) * per_channel((var + eps).rsqrt(), x) + per_channel(offset.to(v.dtype), x)
        mean, var = mean.detach(), var.detach()
    v = v * gain
    parts = [v.relu(), (-v).relu()]
    if mask == "checkerboard":
        parts.append(mask_apply(each.new_ones(each.shape[0], 1, *each.shape[2:]), mask, parity))
    h = torch.cat(parts, 1).to(x.dtype)
    return h if condition is None else torch.cat((h, condition), 1), mean, var


def check_conditioner_input(
    x: Tensor,
    condition: Tensor | None,
    offset: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    mask: str,
    parity: int,
) -> None:
    """Raise the errors that :func:`conditioner_input` documents."""
    op = "conditioner_input"
    check_floating(op, "x", x)
    check_mask(op, x, mask, parity)
    if condition is not None:
        check_condition(op, x, condition)
    if offset is None:
        if mean is not None or var is not None:
            raise ValueError(f"{op}: mean and var must be None without an offset, for nothing is normalised")
        return
    check_floating(op, "offset", offset)
    kept = x.shape[1] // 2 if mask == "channel" else x.shape[1]
    if offset.shape != (kept,):
        raise ValueError(f"{op}: offset must be [{kept}], got {list(offset.shape)}")
    check_statistics(op, x, kept, mean, var)
