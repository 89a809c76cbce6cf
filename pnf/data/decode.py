"""Decoding of image files with Pillow: guarded, on all cores, in bounded memory."""

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

# Only plain bitmap decoders, whatever the file's name: for a PostScript file Pillow would start Ghostscript.
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM")

_GREY_MODES = frozenset(("1", "L", "LA", "La"))
_PALETTE_MODES = frozenset(("P", "PA"))
_DEEP_MODES = frozenset(("F", "I", "I;16", "I;16B", "I;16L", "I;16N"))

_CHUNK = 256

_Result = TypeVar("_Result")


def scan(path: Path) -> tuple[bool, int, int]:
    """(is grey, height, width) of an image, from its header. Only an image with a palette is decoded for this.

    Raises:
        DataError: the file is not an 8-bit image of a known format, or it is too large to decode safely.
    """
    return _open(path, lambda image: (_is_grey(image), image.height, image.width))


def decode(
    path: Path,
    grey: bool,
    crop: Callable[[int, int], tuple[int, int, int, int]] | None = None,
) -> np.ndarray:
    """Decode an image to uint8 ``[C, H, W]``, with C = 1 for ``grey`` and 3 otherwise. Alpha is dropped.

    Args:
        path: the file.
        grey: whether to return one channel instead of RGB.
        crop: maps (height, width) to the (top, left, bottom, right) to keep.

    Raises:
        DataError: as for ``scan``, or the data is broken.
    """

    def convert(image: Any) -> np.ndarray:
        pixels = np.array(image.convert("L" if grey else "RGB"))
        if crop is not None:
            top, left, bottom, right = crop(*pixels.shape[:2])
            pixels = pixels[top:bottom, left:right]
        return np.ascontiguousarray(pixels[None] if grey else pixels.transpose(2, 0, 1))

    return _open(path, convert)


def scan_all(paths: Sequence[Path]) -> list[tuple[bool, int, int]]:
    """Apply ``scan`` to every path on all cores, and return the results in order."""
    return list(_map_in_chunks(scan, paths))


def decode_all(
    paths: Sequence[Path],
    decode_one: Callable[[Path], np.ndarray],  # -> [C, h, w], uint8
    shape: tuple[int, int, int],
    progress: Progress | None = None,
) -> Tensor:  # [N, *shape], uint8
    """Decode images and resize them to ``shape``, (C, H, W), on all cores.

    At any time, each core holds at most one image at its full size.

    Raises:
        DataError: an image cannot be read. The message names the first one in order.
    """
    pixels = torch.empty(len(paths), *shape, dtype=torch.uint8)

    def decode_and_resize(path: Path) -> Tensor:
        return resize(torch.from_numpy(decode_one(path))[None], shape[1:])[0]

    threads = torch.get_num_threads()
    # The images already run in parallel. OpenMP threads inside each worker would oversubscribe the cores and spin.
    torch.set_num_threads(1)
    try:
        images = enumerate(_map_in_chunks(decode_and_resize, paths))
        # Progress wraps the paths, whose number is known, so that a bar can show the rest.
        for _, (index, image) in zip(progress(paths) if progress else paths, images, strict=True):
            pixels[index] = image
    finally:
        torch.set_num_threads(threads)
    return pixels


def _map_in_chunks(function: Callable[[Path], _Result], paths: Sequence[Path]) -> Iterator[_Result]:
    # One map over all paths would hold every result that is not used yet.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), _CHUNK):
            yield from pool.map(function, paths[start : start + _CHUNK])


def _open(path: Path, use: Callable[[Any], _Result]) -> _Result:
    image_module = _pillow()
    try:
        with image_module.open(path, formats=_FORMATS) as image:
            most = image_module.MAX_IMAGE_PIXELS
            if most is not None and image.width * image.height > most:
                raise DataError(f"{path}: wanted at most {most} pixels, got {image.width} x {image.height}; shrink it")
            if (mode := _deep_mode(image)) is not None:
                raise DataError(f"{path}: wanted 8 bits a channel, got mode {mode}; convert it")
            # Pillow would warn about a palette with alpha, which is dropped anyway.
            image.info.pop("transparency", None)
            return use(image)
    except (DataError, FileNotFoundError, PermissionError):
        raise
    # Decoders raise OSError, SyntaxError, ValueError, struct.error, ... on broken files.
    except Exception as error:
        raise DataError(
            f"{path}: wanted an image, got a file that Pillow refuses ({brief(error)}); remove or replace it"
        ) from error


def _deep_mode(image: Any) -> str | None:
    """The mode of an image with more than 8 bits a channel, else None. Pillow would truncate some of these images."""
    if image.mode in _DEEP_MODES:
        return str(image.mode)
    for _, _, _, args in image.tile:
        raw_mode, *more = args if isinstance(args, tuple) else (args,)
        # Pillow passes the largest value to its PPM decoder. A BMP with 16 bits a pixel has 5 or 6 a channel.
        if image.format == "PPM" and more and more[0] > 255:
            return f"{raw_mode} up to {more[0]}"
        if image.format != "BMP" and ";16" in str(raw_mode):
            return str(raw_mode)
    return None


def _is_grey(image: Any) -> bool:
    if image.mode not in _PALETTE_MODES:
        return image.mode in _GREY_MODES
    pixels = np.asarray(image.convert("RGB"))
    return bool((pixels == pixels[..., :1]).all())


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("reading image files needs Pillow: pip install 'pnf[train]'") from error
    return Image
