"""Checkerboard and channel masks of Real NVP, by index arithmetic.

A mask keeps half of the entries of ``x [B, C, *spatial]`` and leaves the rest to be transformed. ``parity`` says
which half is kept:

- ``"checkerboard"``: the sites whose spatial indices sum to ``parity`` modulo 2, for one or two spatial dims;
- ``"channel"``: the first half of the channels for ``parity=0``, the second half for ``parity=1``.

Packed halves of a checkerboard are flat, ``[B, C, n]``, in row-major order of their sites: ``ceil(N / 2)`` of ``N``
sites have parity 0. Packed halves of a channel mask are ``[B, C / 2, *spatial]``.

Source: Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2016), section 3.4.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MASKS = ("checkerboard", "channel")


def mask_apply(
    x: Tensor,  # [B, C, *spatial]
    mask: str,
    parity: int,
) -> Tensor:
    """Keep one half of the entries and set the others to zero: ``where(kept, x, 0)``.

    Args:
        x: ``[B, C, *spatial]``, any dtype.
        mask: ``"checkerboard"`` or ``"channel"``.
        parity: 0 or 1, the half to keep.

    Returns:
        A tensor of the shape of ``x``. The other entries are 0, even where ``x`` is NaN.

    Raises:
        TypeError: ``x`` is no tensor.
        ValueError: the mask or the parity is unknown, there are too few dims, or a channel mask meets an odd number of
            channels.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> ops.mask_apply(torch.ones(1, 1, 2, 3), "checkerboard", 0)
        tensor([[[[1., 0., 1.],
                  [0., 1., 0.]]]])
    """
    check_mask("mask_apply", x, mask, parity)
    return torch.where(kept_entries(x, mask, parity), x, torch.zeros((), dtype=x.dtype, device=x.device))


def mask_pack(
    x: Tensor,  # [B, C, *spatial]
    mask: str,
    parity: int,
) -> tuple[Tensor, Tensor]:
    """Split x into the kept half and the rest, each packed without gaps.

    Args:
        x: ``[B, C, *spatial]``, any dtype.
        mask: ``"checkerboard"`` or ``"channel"``.
        parity: 0 or 1, the half to keep.

    Returns:
        ``kept, rest``: ``[B, C, n]`` and ``[B, C, N - n]`` under a checkerboard over ``N`` sites,
        ``[B, C / 2, *spatial]`` each under a channel mask.

    Raises:
        TypeError: ``x`` is no tensor.
        ValueError: the mask or the parity is unknown, there are too few dims, or a channel mask meets an odd number of
            channels.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> kept, rest = ops.mask_pack(torch.arange(6).view(1, 1, 2, 3), "checkerboard", 0)
        >>> kept, rest
        (tensor([[[0, 2, 4]]]), tensor([[[1, 3, 5]]]))
    """
    check_mask("mask_pack", x, mask, parity)
    if mask == "channel":
        first, second = x.chunk(2, 1)
        return (second.clone(), first.clone()) if parity else (first.clone(), second.clone())
    sites = x.flatten(2)
    if not _rows_alternate(x.shape[2:]):
        kept, rest = sites[..., parity::2], sites[..., 1 - parity :: 2]
        return kept.clone(memory_format=torch.contiguous_format), rest.clone(memory_format=torch.contiguous_format)
    first, second = sites.unflatten(2, (x.shape[2], x.shape[3] // 2, 2)).unbind(-1)
    swap = _odd_rows(x.shape[2], parity, x.device)
    return torch.where(swap, second, first).flatten(2), torch.where(swap, first, second).flatten(2)


def mask_unpack(
    kept: Tensor,  # [B, C, n] or [B, C / 2, *spatial]
    rest: Tensor,  # [B, C, N - n] or [B, C / 2, *spatial]
    mask: str,
    parity: int,
    size: Sequence[int],
) -> Tensor:
    """Invert :func:`mask_pack`: put the two halves back in place.

    Args:
        kept, rest: the packed halves.
        mask: ``"checkerboard"`` or ``"channel"``.
        parity: 0 or 1, the half of ``kept``.
        size: the spatial size of x, ``x.shape[2:]``.

    Returns:
        ``[B, C, *size]``.

    Raises:
        TypeError: ``kept`` or ``rest`` is no tensor, or their dtypes differ.
        ValueError: the mask or the parity is unknown, or the shapes do not fit together.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> x = torch.rand(2, 4, 6, 6)
        >>> kept, rest = ops.mask_pack(x, "channel", 1)
        >>> torch.equal(ops.mask_unpack(kept, rest, "channel", 1, size=(6, 6)), x)
        True
    """
    check_halves("mask_unpack", kept, rest, mask, parity, size)
    if mask == "channel":
        return torch.cat((rest, kept) if parity else (kept, rest), 1)
    if not _rows_alternate(size):
        even, odd = (rest, kept) if parity else (kept, rest)
        pairs = torch.stack((even[..., : odd.shape[2]], odd), 3).flatten(2)
        return torch.cat((pairs, even[..., odd.shape[2] :]), 2).unflatten(2, tuple(size))
    rows = (size[0], size[1] // 2)
    kept, rest = kept.unflatten(2, rows), rest.unflatten(2, rows)
    swap = _odd_rows(size[0], parity, kept.device)
    return torch.stack((torch.where(swap, rest, kept), torch.where(swap, kept, rest)), 4).flatten(3)


def mask_input(
    x: Tensor,  # [B, C, *spatial]
    condition: Tensor,  # [B, K, *spatial]
    mask: str,
    parity: int,
) -> Tensor:
    """Make the input of a conditioner network: the kept half of x, then a condition.

    This op is for flows with their own networks. The networks of this package use
    :func:`pnf.reference.conditioner_input`, which also normalises and applies ReLU in the same pass.

    Args:
        x: ``[B, C, *spatial]``.
        condition: ``[B, K, *spatial]``, of the same dtype; K may be 0.
        mask: ``"checkerboard"`` or ``"channel"``.
        parity: 0 or 1, the half to keep.

    Returns:
        ``[B, C + K, *spatial]`` under a checkerboard (masked x, then the condition), ``[B, C / 2 + K, *spatial]``
        under a channel mask (the kept channels, then the condition).

    Raises:
        TypeError: an argument is no tensor, or the dtypes differ.
        ValueError: the mask or the parity is unknown, there are too few dims, or the sizes of x and the condition
            differ.

    Example:
        >>> import torch
        >>> from pnf import ops
        >>> ops.mask_input(torch.rand(2, 4, 6, 6), torch.rand(2, 3, 6, 6), "channel", 0).shape
        torch.Size([2, 5, 6, 6])
    """
    check_mask("mask_input", x, mask, parity)
    check_condition("mask_input", x, condition)
    if mask == "channel":
        return torch.cat((x.chunk(2, 1)[parity], condition), 1)
    return torch.cat((mask_apply(x, mask, parity), condition), 1)


def check_mask(op: str, x: Tensor, mask: str, parity: int) -> None:
    """Raise the errors that every masking op documents."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: x must be a Tensor, got {type(x).__name__}")
    _check_kind(op, mask, parity)
    if mask == "channel":
        if x.dim() < 2 or x.shape[1] % 2:
            raise ValueError(f"{op}: x must be [B, C, ...] with an even number of channels, got {list(x.shape)}")
    elif x.dim() not in (3, 4):
        raise ValueError(f"{op}: x must be [B, C, D] or [B, C, H, W] for a checkerboard, got {list(x.shape)}")


def rest_of(x: Tensor, mask: str | None, parity: int) -> tuple[int, int]:
    """The channels and the sites of the half that a mask does not keep; those of x without one."""
    channels, sites = x.shape[1], math.prod(x.shape[2:])
    if mask == "channel":
        return channels // 2, sites
    return channels, sites if mask is None else (sites + parity) // 2


def check_condition(op: str, x: Tensor, condition: Tensor) -> None:
    """Raise unless the condition has the batch size, the spatial size and the dtype of x."""
    if not isinstance(condition, Tensor):
        raise TypeError(f"{op}: condition must be a Tensor, got {type(condition).__name__}")
    if condition.dtype != x.dtype:
        raise TypeError(f"{op}: condition must have the dtype of x, {x.dtype}, got {condition.dtype}")
    if condition.dim() != x.dim() or condition.shape[0] != x.shape[0] or condition.shape[2:] != x.shape[2:]:
        want = ", ".join(["K", *(str(size) for size in x.shape[2:])])
        raise ValueError(f"{op}: condition must be [{x.shape[0]}, {want}], got {list(condition.shape)}")


def check_halves(op: str, kept: Tensor, rest: Tensor, mask: str, parity: int, size: Sequence[int]) -> None:
    """Raise unless two halves and a spatial size fit together."""
    for name, half in (("kept", kept), ("rest", rest)):
        if not isinstance(half, Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor, got {type(half).__name__}")
    if kept.dtype != rest.dtype:
        raise TypeError(f"{op}: rest must have the dtype of kept, {kept.dtype}, got {rest.dtype}")
    _check_kind(op, mask, parity)
    if mask == "channel":
        if kept.dim() < 2 or kept.shape != rest.shape or tuple(kept.shape[2:]) != tuple(size):
            raise ValueError(
                f"{op}: kept and rest must both be [B, C, {', '.join(map(str, size))}], "
                f"got {list(kept.shape)} and {list(rest.shape)}"
            )
        return
    if len(size) not in (1, 2) or any(n < 0 for n in size):
        raise ValueError(f"{op}: size must be (D,) or (H, W) for a checkerboard, got {tuple(size)}")
    sites = 1
    for n in size:
        sites *= n
    want = (sites + 1 - parity) // 2
    if kept.dim() != 3 or rest.dim() != 3 or kept.shape[:2] != rest.shape[:2]:
        raise ValueError(f"{op}: kept and rest must be [B, C, n], got {list(kept.shape)} and {list(rest.shape)}")
    if (kept.shape[2], rest.shape[2]) != (want, sites - want):
        raise ValueError(
            f"{op}: size {tuple(size)} and parity {parity} want {want} kept and {sites - want} other sites, "
            f"got {kept.shape[2]} and {rest.shape[2]}"
        )


def _check_kind(op: str, mask: str, parity: int) -> None:
    if mask not in MASKS:
        raise ValueError(f'{op}: mask must be "checkerboard" or "channel", got {mask!r}')
    if parity not in (0, 1):
        raise ValueError(f"{op}: parity must be 0 or 1, got {parity!r}")


def kept_entries(x: Tensor, mask: str, parity: int) -> Tensor:
    """The mask as a bool tensor that broadcasts against x, true at kept entries."""
    if mask == "channel":
        first = torch.arange(x.shape[1], device=x.device) < x.shape[1] // 2
        return (first ^ bool(parity)).view(-1, *(1,) * (x.dim() - 2))
    return _board(x.shape[2:], x.device) == parity


def _board(size: Sequence[int], device: torch.device) -> Tensor:
    """The sum of the spatial indices modulo 2, of shape ``size``."""
    board = torch.zeros((), dtype=torch.long, device=device)
    for n in size:
        board = board.unsqueeze(-1) + torch.arange(n, device=device)
    return board % 2


def _rows_alternate(size: Sequence[int]) -> bool:
    """Whether successive rows begin with different parities. Otherwise parities alternate along all sites in order."""
    return len(size) == 2 and size[1] % 2 == 0


def _odd_rows(height: int, parity: int, device: torch.device) -> Tensor:
    """Whether each row begins with a site outside the kept half: bool ``[H, 1]``."""
    return (torch.arange(height, device=device) % 2 != parity).unsqueeze(1)
