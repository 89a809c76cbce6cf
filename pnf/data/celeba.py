"""Reader of aligned CelebA (Liu et al., 2015): ``img_align_celeba/*.jpg`` beside ``list_eval_partition.txt``.

Labels are one of the 40 attributes in ``list_attr_celeba.txt``: 1 for an image that has it.
"""

import codecs
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pnf.data.decode import decode, decode_all
from pnf.data.images import SPLITS, DataError, Images, Request

_IMAGES = "img_align_celeba"
_PARTITION = "list_eval_partition.txt"
_HEIGHT, _WIDTH = 218, 178
_CROP = (40, 15, 188, 163)
_DEFAULT_SIZE = (64, 64)

_ATTRIBUTES = "list_attr_celeba.txt"

# Bytes. The official lists have 2.8 and 26 MB.
_MAX_LIST_SIZE = 2**26


def find(folder: Path) -> Path | None:
    """The folder that holds the images' folder and the list. ``folder`` may also be the images' folder."""
    root = folder.resolve().parent if folder.resolve().name == _IMAGES else folder
    return root if (root / _IMAGES).is_dir() or (root / _PARTITION).is_file() else None


def read(root: Path, request: Request) -> Images:
    """Read one of the three official splits. Rows 40:188 and columns 15:163 are resized to ``size``, 64 by default.

    Raises:
        DataError: the images or a list are missing, or one of them is broken, or there is no such attribute.
    """
    names = _names(root, request.split)[: request.limit]
    labels = _labels(root, names, request.attribute) if request.labels else None
    images = root / _IMAGES
    if not images.is_dir():
        raise DataError(
            f"{root}: wanted the folder {_IMAGES} beside {_PARTITION}, got none; unpack {_IMAGES}.zip there"
        )
    paths = [images / name for name in names]
    size = request.size or _DEFAULT_SIZE
    try:
        pixels = decode_all(paths, _decode, (3, *size), request.progress)
    except FileNotFoundError as error:
        raise DataError(f"{error.filename}: wanted an image that {_PARTITION} lists, got no such file") from error
    edges = f"{size[0]}" if size[0] == size[1] else f"{size[0]}x{size[1]}"
    classes = (f"no {request.attribute}", str(request.attribute)) if request.labels else ()
    return Images(pixels, f"celeba{edges}", request.split, labels, classes)


def _decode(path: Path) -> np.ndarray:
    return decode(path, grey=False, crop=partial(_crop, path))


def _crop(path: Path, height: int, width: int) -> tuple[int, int, int, int]:
    if (height, width) != (_HEIGHT, _WIDTH):
        raise DataError(
            f"{path}: wanted an aligned CelebA image of {_WIDTH} x {_HEIGHT} pixels, got {width} x {height}; "
            "use img_align_celeba.zip"
        )
    return _CROP


def _names(root: Path, split: str) -> list[str]:
    wanted = str(SPLITS.index(split))
    names = []
    path, lines = _lines(root, _PARTITION)
    for number, line in lines:
        fields = line.split()
        # A name that contains a folder could point at any file of the machine.
        if (
            len(fields) != 2
            or fields[1] not in ("0", "1", "2")
            or fields[0] in (".", "..")
            or Path(fields[0]).name != fields[0]
        ):
            raise DataError(f"{path}: wanted lines like '000001.jpg 0', got {line[:80]!r} in line {number}")
        if fields[1] == wanted:
            names.append(fields[0])
    if not names:
        raise DataError(f"{path}: wanted images of the {split} split (number {wanted}), got none")
    return names


def _labels(root: Path, names: list[str], attribute: str | None) -> Tensor:
    """1 for each named image that has the attribute, 0 for the others."""
    path, lines = _lines(root, _ATTRIBUTES)
    # The first line is the number of images, the second has the names of the attributes.
    attributes = next((line.split() for number, line in lines if number > 1), [])
    if attribute not in attributes:
        got = "none" if attribute is None else repr(attribute)
        raise DataError(f"{path}: wanted --attribute, one of {' '.join(attributes)[:800]}, got {got}")
    column = 1 + attributes.index(attribute)
    found: dict[str, str] = {}
    for number, line in lines:
        fields = line.split()
        if len(fields) != 1 + len(attributes) or fields[column] not in ("1", "-1"):
            raise DataError(
                f"{path}: wanted a name and {len(attributes)} numbers 1 or -1, got {line[:80]!r} in line {number}"
            )
        found[fields[0]] = fields[column]
    if missing := next((name for name in names if name not in found), None):
        raise DataError(f"{path}: wanted the attributes of {missing}, got none; put the official list there")
    return torch.tensor([int(found[name] == "1") for name in names])


def _lines(root: Path, name: str) -> tuple[Path, Iterator[tuple[int, str]]]:
    """The path of a list, and its lines that are not empty, with their numbers."""
    path = root / name
    if not path.is_file():
        raise DataError(f"{root}: wanted {name} beside {_IMAGES}, got no such file; put the official list there")
    if path.stat().st_size > _MAX_LIST_SIZE:
        raise DataError(f"{path}: wanted at most {_MAX_LIST_SIZE} bytes, got {path.stat().st_size}")
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: wanted text in UTF-8, got UTF-16; save it as UTF-8")
    # "utf-8-sig" drops the byte-order mark with which editors on Windows begin a file.
    lines = content.decode("utf-8-sig", "replace").splitlines()
    return path, ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
