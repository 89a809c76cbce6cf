"""Resizing and dequantization of stored 8-bit images, for training."""

import torch
from torch import Tensor
from torch.nn import functional

# 16 MiB of float32: a chunk stays near the cache, and memory does not grow with the data set.
_CHUNK_ELEMENTS = 2**22


def dequantize(
    pixels: Tensor,  # [...], uint8
    generator: torch.Generator | None = None,
) -> Tensor:
    """Dequantize 8-bit pixels: ``(pixels + u) / 256`` with ``u ~ U[0, 1)``.

    Each result lies in ``[pixel / 256, (pixel + 1) / 256)`` even after rounding to float32. So it is below 1, and
    ``floor(256 * result)`` gives the pixel back. The noise is drawn on the generator's device, so a seed gives the same
    bits wherever the pixels are.

    Args:
        pixels: any shape, uint8.
        generator: the source of the noise; by default the global one of the pixels' device.

    Returns:
        A float32 tensor of the shape and on the device of ``pixels``.

    Raises:
        TypeError: ``pixels`` is not uint8.

    Example:
        >>> import torch
        >>> from pnf.data import dequantize
        >>> pixels = torch.tensor([0, 128, 255], dtype=torch.uint8)
        >>> x = dequantize(pixels, torch.Generator().manual_seed(0))
        >>> (256 * x).floor().to(torch.uint8)
        tensor([  0, 128, 255], dtype=torch.uint8)
    """
    if pixels.dtype != torch.uint8:
        raise TypeError(f"dequantize: pixels must be torch.uint8, got {pixels.dtype}")
    device = pixels.device if generator is None else generator.device
    noise = torch.rand(pixels.shape, generator=generator, dtype=torch.float32, device=device).to(pixels.device)
    return placed(pixels, noise)


def placed(pixels: Tensor, noise: Tensor) -> Tensor:
    """``(pixels + noise) / 256`` in float32, inside of its cell also where it is rounded."""
    levels = pixels.float()
    # The noise has 24 bits, but near 256 the sum has only 16 after the point, so it can round up to the next level.
    ceiling = torch.nextafter(levels + 1, levels)
    return torch.minimum((levels + noise).float(), ceiling) / 256


def resize(
    pixels: Tensor,  # [N, C, H, W], uint8
    size: int | tuple[int, int],
) -> Tensor:
    """Resize 8-bit images bilinearly, with antialiasing when they shrink, and round to the nearest level.

    Pixel centres are at half-integers (``align_corners=False``). The images are resized in chunks, so the memory beyond
    the result is bounded.

    Args:
        pixels: ``[N, C, H, W]``, uint8.
        size: (height, width), or one number for both.

    Returns:
        ``[N, C, *size]``, uint8, on the device of ``pixels``; ``pixels`` itself if it has that size already.

    Raises:
        TypeError: ``pixels`` is not uint8, or ``size`` is not one or two integers.
        ValueError: ``pixels`` is not four-dimensional, or a size is below 1.

    Example:
        >>> import torch
        >>> from pnf.data import resize
        >>> resize(torch.zeros(2, 3, 28, 28, dtype=torch.uint8), 32).shape
        torch.Size([2, 3, 32, 32])
    """
    if pixels.dtype != torch.uint8:
        raise TypeError(f"resize: pixels must be torch.uint8, got {pixels.dtype}")
    if pixels.ndim != 4:
        raise ValueError(f"resize: pixels must be [N, C, H, W], got {list(pixels.shape)}")
    height, width = height_width("resize", size)
    count, channels, old_height, old_width = pixels.shape
    if (height, width) == (old_height, old_width):
        return pixels
    antialias = height < old_height or width < old_width
    resized = pixels.new_empty(count, channels, height, width)
    step = max(1, _CHUNK_ELEMENTS // max(1, channels * max(old_height * old_width, height * width)))
    for start in range(0, count, step):
        chunk = pixels[start : start + step].float()
        chunk = functional.interpolate(chunk, (height, width), mode="bilinear", antialias=antialias)
        resized[start : start + step] = chunk.round_()
    return resized


def height_width(where: str, size: int | tuple[int, int]) -> tuple[int, int]:
    """Check a user's size and return it as (height, width).

    Raises:
        TypeError: ``size`` is not one or two integers.
        ValueError: a size is below 1.
    """
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, (tuple, list)) else ()
    if len(pair) != 2 or not all(isinstance(edge, int) and not isinstance(edge, bool) for edge in pair):
        raise TypeError(f"{where}: size must be an int or (height, width), got {size!r}")
    if min(pair) < 1:
        raise ValueError(f"{where}: size must be at least 1, got {size!r}")
    return pair
