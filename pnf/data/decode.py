"""Image files through Pillow: guarded, on all cores, in bounded memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pnf.data.images import DataError, Progress, brief
from pnf.data.transforms import resize

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))

# Only plain bitmap decoders, whatever the file's name: Pillow would start Ghostscript for a PostScript file.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM")

_GREY_MODES = frozenset(("1", "L", "LA", "La"))
_DEEP_MODES = frozenset(("F", "I", "I;16", "I;16B", "I;16L", "I;16N"))

# Images that are decoded at the same time: about 1.2 GB of 12-megapixel photographs.
_CHUNK = 32

_Result = TypeVar("_Result")


def scan(path: Path) -> tuple[bool, int, int]:
    """(is grey, height, width) from an image's header, without decoding it.

    Raises:
        DataError: The file is not an 8-bit image of a known format, or it is too large to be decoded safely.
    """
    return _open(path, lambda image: (image.mode in _GREY_MODES, image.height, image.width))


def decode(
    path: Path,
    grey: bool,
    crop: Callable[[int, int], tuple[int, int, int, int]] | None = None,
) -> np.ndarray:
    """Decodes an image to uint8 [C, H, W], with C = 1 for ``grey`` and 3 otherwise; an alpha channel is dropped.

    Args:
        path: The file.
        grey: One channel instead of RGB.
        crop: Maps (height, width) to the (top, left, bottom, right) that is kept.

    Raises:
        DataError: As for ``scan``, or the data is broken.
    """

    def convert(image: Any) -> np.ndarray:
        pixels = np.array(image.convert("L" if grey else "RGB"))
        if crop is not None:
            top, left, bottom, right = crop(*pixels.shape[:2])
            pixels = pixels[top:bottom, left:right]
        return np.ascontiguousarray(pixels[None] if grey else pixels.transpose(2, 0, 1))

    return _open(path, convert)


def scan_all(paths: Sequence[Path]) -> list[tuple[bool, int, int]]:
    """``scan`` of every path, in order, on all cores."""
    return list(_map_in_chunks(scan, paths))


def decode_all(
    paths: Sequence[Path],
    decode_one: Callable[[Path], np.ndarray],  # -> [C, h, w], uint8
    size: tuple[int, int],
    progress: Progress | None = None,
) -> Tensor:  # [N, C, *size], uint8
    """Decodes images on all cores and resizes them; the memory beyond the result does not grow with their number.

    Raises:
        DataError: The first image, in order, that cannot be read.
    """
    images = _map_in_chunks(decode_one, paths)
    pixels: Tensor | None = None
    batch: list[Tensor] = []
    done = 0

    def flush() -> None:
        nonlocal pixels, done
        resized = resize(torch.stack(batch), size)
        if pixels is None:
            pixels = resized.new_empty(len(paths), *resized.shape[1:])
        pixels[done : done + len(batch)] = resized
        done += len(batch)
        batch.clear()

    # The paths, whose number is known, are what goes through progress: a bar can show what remains.
    for _, array in zip(progress(paths) if progress else paths, images, strict=True):
        image = torch.from_numpy(array)
        if batch and image.shape != batch[0].shape:
            flush()
        batch.append(image)
        if len(batch) == _CHUNK:
            flush()
    if batch:
        flush()
    assert pixels is not None
    assert done == len(paths)
    return pixels


def _map_in_chunks(function: Callable[[Path], _Result], paths: Sequence[Path]) -> Iterator[_Result]:
    # All at once would hold every decoded image, and decoding while PyTorch resizes would have both fight for the cores.
    with ThreadPoolExecutor(min(_CHUNK, os.cpu_count() or 1)) as pool:
        for start in range(0, len(paths), _CHUNK):
            yield from pool.map(function, paths[start : start + _CHUNK])


def _open(path: Path, use: Callable[[Any], _Result]) -> _Result:
    image_module = _pillow()
    try:
        with image_module.open(path, formats=_FORMATS) as image:
            most = image_module.MAX_IMAGE_PIXELS
            if most is not None and image.width * image.height > most:
                raise DataError(f"{path}: wanted at most {most} pixels, got {image.width} x {image.height}; shrink it")
            if image.mode in _DEEP_MODES:
                raise DataError(f"{path}: wanted 8 bits a channel, got mode {image.mode}; convert it")
            return use(image)
    except (DataError, FileNotFoundError, PermissionError):
        raise
    # Decoders raise OSError, SyntaxError, ValueError, struct.error, ... on broken files.
    except Exception as error:
        raise DataError(
            f"{path}: wanted an image, got a file that Pillow refuses ({brief(error)}); remove or replace it"
        ) from error


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading image files needs Pillow: pip install 'pnf[train]'") from error
    return Image
