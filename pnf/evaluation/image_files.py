"""Reading and writing of single images, and checks of the names of files to write."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pnf.data import resize
from pnf.data.decode import decode
from pnf.figures import FORMATS
from pnf.files import replace_file
from pnf.training.config import RunError


def read_image(
    path: Path, shape: Sequence[int], *, exact: bool, sizes: Sequence[Sequence[int]] = ()
) -> Tensor:  # [1, C, H, W]
    """Read an image file as a batch of one, in [0, 1], with the channels of a flow.

    Args:
        path: the file.
        shape: ``(C, H, W)`` of the flow. Larger images are cropped to their central square and resized.
        exact: whether an image smaller than the flow's must have one of ``sizes``; otherwise it is resized.
        sizes: the sizes ``(h, w)`` from which the flow can start.

    Raises:
        RunError: the file does not exist, or the flow cannot start from its size.
        DataError: the file is no readable image.
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
        return centres(pixels)
    if exact and (h < height or w < width):
        wanted = ", ".join(f"{size[0]} x {size[1]}" for size in sizes)
        raise RunError(f"{path} has {h} x {w} pixels (height x width); the flow starts from {wanted} or more")
    side = min(h, w)
    if height == width:
        pixels = pixels[:, :, (h - side) // 2 :, (w - side) // 2 :][:, :, :side, :side]
    return centres(resize(pixels, (height, width)))


def check_targets(targets: Sequence[Path], inputs: Sequence[Path] = ()) -> None:
    """Raise unless files can be written under their names. Commands call this before they compute anything.

    Args:
        targets: the files that a command will write.
        inputs: the files that it will read.

    Raises:
        RunError: two of the targets are one file, a target is an input, or no file can have its name.
    """
    for i, target in enumerate(targets):
        if target in targets[:i]:
            raise RunError(f"two of the pictures would be {target}: make them one by one, or give each value once")
        folder = next(parent for parent in target.parents if parent.exists())
        if not folder.is_dir():
            raise RunError(f"{folder}: File exists, and is no folder; choose another --out")
        longest = os.pathconf(folder, "PC_NAME_MAX")
        if any(len(os.fsencode(part)) > longest for part in target.relative_to(folder).parts):
            raise RunError(f"{target}: File name too long, at most {longest} bytes fit; choose another --out")
        if target.is_dir():
            raise RunError(f"{target} is a folder, and no picture can replace it; choose another --out")
        for file in inputs:
            if file.exists() and target.exists() and file.samefile(target):
                raise RunError(f"{target} is one of the files to read, and would be replaced; choose another --out")


def picture(target: Path, inputs: Sequence[Path] = ()) -> Path:
    """Check the name of a picture that will be written, with the errors of :func:`check_targets`, and return it."""
    if target.suffix.lower() not in FORMATS:
        raise RunError(f"--out must end in .png, .svg or .pdf, got {target}")
    check_targets([target], inputs)
    return target


def chart(out: Path, name: str) -> Path:
    """The file of a chart: ``out`` itself if its name is that of a picture, and else a PNG in the folder ``out``."""
    return out if out.suffix.lower() in FORMATS and not out.is_dir() else out / f"{name}.png"


def npz(target: Path) -> Path:
    """Check the name of a file of samples that will be written, and return it."""
    if target.suffix.lower() != ".npz":
        raise RunError(f"samples of real data are arrays: --out must end in .npz, got {target}")
    check_targets([target])
    return target


def write_image(image: Tensor, path: Path) -> None:
    """Write an image ``[C, H, W]`` in [0, 1] as an 8-bit PNG."""
    levels = eight_bits(image).cpu().permute(1, 2, 0).numpy()
    content = io.BytesIO()
    Image.fromarray(levels.squeeze(2) if levels.shape[2] == 1 else levels).save(content, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content.getvalue())


def centres(pixels: Tensor) -> Tensor:
    """The middle of the interval of each 8-bit level: ``(pixel + 1/2) / 256``."""
    return (pixels.float() + 0.5) / 256


def eight_bits(image: Tensor) -> Tensor:
    """The 8-bit levels of an image in [0, 1], as uint8. Those of :func:`centres` are the pixels again."""
    return (image.clamp(0, 1) * 256).floor().clamp(max=255).to(torch.uint8)
