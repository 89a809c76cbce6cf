"""Reader of the idx files of MNIST and its relatives (http://yann.lecun.com/exdb/mnist): a header, then bytes."""

import gzip
import math
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pnf.data.byte_streams import DEFLATE_LIMIT, Readable, read_into
from pnf.data.images import DataError, Images, Progress, Request, brief, check_count, missing_split, numbered

_PREFIX = {"train": "train", "test": "t10k"}
_NAMES = ("{}-{}-idx{}-ubyte", "{}-{}.idx{}-ubyte", "{}-{}-idx{}-ubyte.gz", "{}-{}.idx{}-ubyte.gz")
_IMAGES, _LABELS = ("images", 3), ("labels", 1)
_UNSIGNED_BYTE = 0x08
_CLOTHES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot")
CLASSES = {"mnist": tuple("0123456789"), "fashion-mnist": _CLOTHES}
"""The names of the classes of the data sets whose names are known."""
_REMEDY = "get the file again"


def find(folder: Path) -> Path | None:
    """The folder that holds the idx files: ``folder`` or its subfolder ``raw``."""
    for root in (folder, folder / "raw"):
        if any(_file(root, prefix, _IMAGES) for prefix in _PREFIX.values()):
            return root
    return None


def read(root: Path, request: Request) -> Images:
    """Read one of the two official splits, ``[N, 1, H, W]``.

    Raises:
        DataError: the split does not exist, or a file of it is missing or broken, or there is not a label for each
            image.
    """
    if request.split not in _PREFIX:
        raise missing_split(root, request.split, tuple(_PREFIX))
    source, name = _existing(root, request.split, _IMAGES), _name(root)
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    if request.labels:
        path = _existing(root, request.split, _LABELS)
        check_count(str(path), _count(path, ndim=1), _count(source, ndim=3))  # before memory is allocated
        labels, classes = numbered(read_idx(path, ndim=1), str(path), slice(request.limit))
        known = CLASSES.get(name, ())
        classes = known if len(known) >= len(classes) else classes
    stored = read_idx(source, ndim=3, limit=request.limit, progress=request.progress)
    pixels = torch.from_numpy(stored).unsqueeze(1)
    return Images(pixels, name, request.split, labels, classes)


def read_idx(path: Path, ndim: int, limit: int | None = None, progress: Progress | None = None) -> np.ndarray:
    """Read the first ``limit`` entries of an idx file of unsigned bytes, plain or gzipped.

    Args:
        path: the file. It is decompressed if its name ends in ``.gz``.
        ndim: the required number of dimensions: 3 for images, 1 for labels.
        limit: the number of entries to read along the first dimension; all by default.
        progress: wraps the iterable over the parts of the file.

    Returns:
        A uint8 array of the shape in the header, with at most ``limit`` entries along the first dimension.

    Raises:
        DataError: the file is foreign, truncated, too long, or declares more than it can hold. Memory is allocated
            only for a size that the file can hold, and at most one byte beyond the declared size is decompressed.
    """
    with _opened(path, ndim) as (stream, shape):
        count = shape[0] if limit is None else min(limit, shape[0])
        array = np.empty((count, *shape[1:]), dtype=np.uint8)
        read_into(stream, array, str(path), progress)
        if count == shape[0] and stream.read(1):
            raise DataError(f"{path}: wanted the end after {math.prod(shape)} bytes of data, got more; {_REMEDY}")
    return array


def _count(path: Path, ndim: int) -> int:
    """The number of entries that an idx file declares, and may hold."""
    with _opened(path, ndim) as (_, shape):
        return shape[0]


@contextmanager
def _opened(path: Path, ndim: int) -> Iterator[tuple[Readable, tuple[int, ...]]]:
    """The stream of an idx file behind its header, and the shape in it, which the file may hold."""
    compressed = path.suffix == ".gz"
    header_size = 4 + 4 * ndim
    try:
        with gzip.open(path) if compressed else path.open("rb") as stream:
            header = stream.read(header_size)
            if len(header) < header_size or header[:4] != bytes((0, 0, _UNSIGNED_BYTE, ndim)):
                wanted = f"an idx file of unsigned bytes with {ndim} dimension(s)"
                got = f"the first bytes {header.hex(' ', 4)}" if header else "an empty file"
                raise DataError(f"{path}: wanted {wanted}, got {got}; {_REMEDY}")
            shape = tuple(int(extent) for extent in np.frombuffer(header, dtype=">u4", offset=4))
            if min(shape) < 1:
                raise DataError(f"{path}: wanted at least one entry, got the declared shape {list(shape)}; {_REMEDY}")
            declared = math.prod(shape)
            stored = path.stat().st_size
            possible = stored * DEFLATE_LIMIT if compressed else stored - header_size
            if declared > possible or (not compressed and declared < possible):
                raise DataError(
                    f"{path}: wanted {declared} bytes after the header, as its shape {list(shape)} declares, "
                    f"got {'at most ' if compressed else ''}{possible}; {_REMEDY}"
                )
            yield stream, shape
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(
            f"{path}: wanted a whole gzip file, got one that is broken ({brief(error)}); {_REMEDY}"
        ) from error


def _existing(root: Path, split: str, kind: tuple[str, int]) -> Path:
    path = _file(root, _PREFIX[split], kind)
    if path is None:
        raise DataError(
            f"{root}: wanted {_NAMES[0].format(_PREFIX[split], *kind)} (or .gz), got no such file; {_REMEDY}"
        )
    return path


def _file(root: Path, prefix: str, kind: tuple[str, int]) -> Path | None:
    return next((path for name in _NAMES if (path := root / name.format(prefix, *kind)).is_file()), None)


def _name(root: Path) -> str:
    root = root.resolve()
    name = root.parent.name if root.name == "raw" else root.name
    letters = re.sub("[^a-z0-9]", "", name.lower())
    if "fashion" in letters:
        return "fashion-mnist"
    return "mnist" if letters == "mnist" else name
