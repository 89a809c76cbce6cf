"""Single images: read from and written to files."""

import io
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pnf.data import resize
from pnf.data.decode import decode
from pnf.files import replace_file
from pnf.training import RunError


def read_image(
    path: Path, shape: Sequence[int], *, exact: bool, sizes: Sequence[Sequence[int]] = ()
) -> Tensor:  # [1, C, H, W]
    """An image file as a batch of one, in [0, 1], with the channels of a flow.

    Args:
        path: of the file.
        shape: ``(C, H, W)`` of the flow. Larger images are cut to their central square and resized.
        exact: an image smaller than the flow's must have one of ``sizes``; otherwise it is resized too.
        sizes: ``(h, w)`` that the flow can start from.

    Raises:
        RunError: there is no such file, or its size is none that the flow can start from.
        DataError: it is no image that can be read.
    """
    channels, height, width = shape
    try:
        pixels = torch.from_numpy(decode(path, grey=channels == 1)).unsqueeze(0)
    except FileNotFoundError:
        raise RunError(f"{path}: there is no such file") from None
    except PermissionError:
        raise RunError(f"{path} may not be read; change its permissions") from None
    h, w = pixels.shape[2:]
    if exact and (h, w) in [tuple(size) for size in sizes[:-1]]:
        return _centres(pixels)
    if exact and (h < height or w < width):
        wanted = ", ".join(f"{size[0]} x {size[1]}" for size in sizes)
        raise RunError(f"{path} has {h} x {w} pixels (height x width); the flow starts from {wanted} or more")
    side = min(h, w)
    if height == width:
        pixels = pixels[:, :, (h - side) // 2 :, (w - side) // 2 :][:, :, :side, :side]
    return _centres(resize(pixels, (height, width)))


def write_image(image: Tensor, path: Path) -> None:
    """Write an image ``[C, H, W]`` in [0, 1] as an 8-bit PNG."""
    levels = (image.clamp(0, 1) * 256).floor().clamp(max=255).to(torch.uint8).cpu().permute(1, 2, 0).numpy()
    content = io.BytesIO()
    Image.fromarray(levels.squeeze(2) if levels.shape[2] == 1 else levels).save(content, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content.getvalue())


def _centres(pixels: Tensor) -> Tensor:
    """The middle of the interval that each 8-bit level stands for: ``(pixel + 1/2) / 256``."""
    return (pixels.float() + 0.5) / 256
