"""Readers of image data sets, from their files on disk into memory as uint8.

``load`` recognises the layouts that docs/data.md lists. A file that is broken, foreign or hostile raises a
``DataError`` that names it. Nothing in a file is ever executed.
"""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from pnf.data import arrays, celeba, cifar10, folder, idx
from pnf.data.images import SPLITS, DataError, Images, Progress, Reals, Request
from pnf.data.transforms import dequantize, height_width, resize
from pnf.data.tree import walk
from pnf.files import printable

__all__ = ["BUNDLED", "DataError", "Images", "Reals", "bundled", "dequantize", "load", "load_reals", "locate", "resize"]

BUNDLED = "fashion-mini"

# How deep a data set may lie: in a folder, and in two more that unpacked archives often add.
_DEEPEST = 3


class _Layout(Protocol):
    """A module that reads one layout."""

    def find(self, folder: Path, /) -> Path | None: ...

    def read(self, root: Path, request: Request, /) -> Images: ...


_LAYOUTS: tuple[_Layout, ...] = (idx, cifar10, celeba)


def bundled() -> Path:
    """The path of the bundled set: 2,000 training and 500 test images of Fashion-MNIST, balanced over ten classes."""
    return Path(__file__).with_name("fashion_mini.npz")


def load(
    source: str | Path,
    split: str = "train",
    size: int | tuple[int, int] | None = None,
    *,
    limit: int | None = None,
    labels: bool = False,
    attribute: str | None = None,
    progress: Progress | None = None,
) -> Images:
    """Read one split of a data set into memory.

    Args:
        source: a file or folder in one of the layouts of docs/data.md, a folder around exactly one of them, or
            ``"fashion-mini"`` for the bundled set. An existing path of that name wins.
        split: ``"train"``, ``"validation"`` or ``"test"``, as the data set's authors split it. Sets without an
            official split get a deterministic one: see ``folder.read`` and ``arrays.read``.
        size: the (height, width) to resize to, or one number for both. By default images keep their size (CelebA: 64).
        limit: the largest number of images to read, from the start of the split.
        labels: whether to read the class of each image too, from where docs/data.md says.
        attribute: the attribute that is the label of an image of CelebA. Other data sets ignore it.
        progress: wraps the iterables over the images or the parts of a file, e.g. ``rich.progress.track``.

    Returns:
        The images, uint8 ``[N, C, H, W]``, with the data set's name and, if wanted, their labels.

    Raises:
        DataError: ``source``, the split or its labels do not exist, or a file is broken, foreign or hostile.
        TypeError, ValueError: ``split``, ``size`` or ``limit`` is wrong.
        ImportError: Pillow is not installed. Only folders of images and CelebA need it.

    Example:
        >>> from pnf.data import load
        >>> load("fashion-mini", "test", size=32)
        Images(name='fashion-mini', split='test', pixels=uint8 [500, 1, 32, 32])
    """
    request = replace(
        _request("load", split, limit),
        size=None if size is None else height_width("load", size),
        progress=progress,
        labels=labels,
        attribute=attribute,
    )
    path = Path(source)
    try:
        path = Path(locate(source))
        images = _read(bundled() if str(path) == BUNDLED else path, request)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from error
    pixels = images.pixels if request.size is None else resize(images.pixels, request.size)
    classes = tuple(map(printable, images.classes))
    return replace(images, pixels=pixels, name=printable(images.name), classes=classes)


def load_reals(
    source: str | Path, split: str = "train", *, limit: int | None = None, progress: Progress | None = None
) -> Reals:
    """Read one split of an ``.npz`` or ``.npy`` file of floats that are no images into memory.

    Args:
        source: the file, with splits as :func:`load` finds them. An array has the axes ``[N, D]`` (vectors),
            ``[N, C, D]`` (signals) or ``[N, C, H, W]`` (fields).
        split: ``"train"``, ``"validation"`` or ``"test"``.
        limit: the largest number of examples to read, from the start of the split.
        progress: wraps the iterable over the parts of the file.

    Returns:
        The values, in float64 if the file has them so and else in float32, with the data set's name.

    Raises:
        DataError: the file or the split does not exist, or the file is broken or foreign, or holds other numbers.
        ValueError: ``split`` or ``limit`` is wrong.

    Example:
        >>> import numpy as np
        >>> from pnf.data import load_reals
        >>> np.savez("waves.npz", train=np.random.randn(90, 1, 64), test=np.random.randn(10, 1, 64))  # doctest: +SKIP
        >>> load_reals("waves.npz")  # doctest: +SKIP
        Reals(name='waves', split='train', values=float64 [90, 1, 64])
    """
    request = replace(_request("load_reals", split, limit), progress=progress)
    path = Path(locate(source))
    if path.suffix.lower() not in arrays.SUFFIXES or not path.is_file():
        raise DataError(f"{path}: wanted an .npz or .npy file of floats, got no such file; check the path")
    try:
        reals = arrays.read_reals(path, request)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from error
    return replace(reals, name=printable(reals.name))


def _request(where: str, split: str, limit: int | None) -> Request:
    if split not in SPLITS:
        raise ValueError(f"{where}: split must be one of {', '.join(SPLITS)}, got {split!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"{where}: limit must be at least 1, got {limit}")
    return Request(split, limit=limit)


def locate(source: str | Path) -> str:
    """The place of a data set, valid in any working folder: an absolute path, or ``"fashion-mini"``.

    Raises:
        DataError: the source is empty, as an unset shell variable is. Its path would be the working folder.
    """
    if not str(source).strip():
        raise DataError("load: wanted a folder, an .npz or .npy file, got an empty name; give its path")
    path = os.path.expanduser(source)  # noqa: PTH111 - Path.expanduser raises for unknown users
    if path == BUNDLED and not os.path.lexists(path):
        return BUNDLED
    return str(Path(path).absolute())


def _read(path: Path, request: Request) -> Images:
    if path.is_dir():
        return _read_folder(path, request)
    if path.suffix.lower() in arrays.SUFFIXES and path.is_file():
        images = arrays.read(path, request)
        if path.resolve() != bundled().resolve():
            return images
        classes = idx.CLASSES["fashion-mnist"] if request.labels else ()
        return replace(images, name=BUNDLED, classes=classes)
    wanted = f"a folder, an .npz or .npy file, or the word {BUNDLED}"
    if path.exists():
        raise DataError(f"{path}: wanted {wanted}, got another file; unpack an archive, or give the folder around it")
    raise DataError(f"{path}: wanted {wanted}, got no such file or folder; check the path")


def _read_folder(path: Path, request: Request) -> Images:
    if found := _layouts([path]):
        root, layout = _one(path, found)
        return layout.read(root, request)
    tree = walk(path)
    found = _layouts(each for each in tree.folders if len(each.relative_to(path).parts) <= _DEEPEST)
    if not found:
        return folder.read(tree, request)
    root, layout = _one(path, found)
    for images in tree.images.values():
        if not images[0].is_relative_to(root):
            raise _several(path, [root, images[0]])
    return layout.read(root, request)


def _layouts(folders: Iterable[Path]) -> list[tuple[Path, _Layout]]:
    """The root and the layout of each known data set in the folders, outer ones first."""
    found: list[tuple[Path, _Layout]] = []
    for each in folders:
        if not any(each.is_relative_to(root) for root, _ in found):
            found += [(root, layout) for layout in _LAYOUTS if (root := layout.find(each))]
    return found


def _one(path: Path, found: list[tuple[Path, _Layout]]) -> tuple[Path, _Layout]:
    if len(found) > 1:
        raise _several(path, [root for root, _ in found])
    return found[0]


def _several(path: Path, found: list[Path]) -> DataError:
    names = ", ".join(sorted(str(root.relative_to(path)) for root in found))
    return DataError(f"{path}: wanted one data set, got several: {names}; name one of them")
