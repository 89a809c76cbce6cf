"""Image data sets as they lie on disk, read into memory as uint8.

``load`` finds out by itself what it is given; docs/data.md lists the layouts. A file that is broken, foreign or hostile
ends in a ``DataError`` that names it, and nothing in it is ever executed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pnf.data import arrays, celeba, cifar10, folder, idx
from pnf.data.images import SPLITS, DataError, Images, Progress, Request
from pnf.data.transforms import dequantize, height_width, resize

__all__ = ["DataError", "Images", "bundled", "dequantize", "load", "resize"]

_BUNDLED = "fashion-mini"


class _Layout(Protocol):
    """A module that reads one layout."""

    def find(self, folder: Path, /) -> Path | None: ...

    def read(self, root: Path, request: Request, /) -> Images: ...


_LAYOUTS: tuple[_Layout, ...] = (idx, cifar10, celeba)


def bundled() -> Path:
    """The file of the bundled set: 2,000 + 500 images of Fashion-MNIST, evenly over its ten classes."""
    return Path(__file__).with_name("fashion_mini.npz")


def load(
    source: str | Path,
    split: str = "train",
    size: int | tuple[int, int] | None = None,
    *,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Images:
    """Reads one split of a data set into memory.

    Args:
        source: A file or folder in one of the layouts of docs/data.md, or the folder around exactly one of them, or the
            word "fashion-mini" for the bundled set (an existing path of that name wins).
        split: "train", "validation" or "test", as the data set's authors split it. Sets without an official split have
            a deterministic one: see ``folder.read`` and ``arrays.read``.
        size: (height, width), or one number for both, to resize to; by default images keep their size (CelebA: 64).
        limit: Read only the first so many images of the split.
        progress: Wraps the iterable over the images of a folder or of CelebA, e.g. ``rich.progress.track``.

    Returns:
        The images, uint8 [N, C, H, W], with the data set's name.

    Raises:
        DataError: Nothing readable there, no such split, or a file that is broken, foreign or hostile.
        TypeError, ValueError: A wrong ``split``, ``size`` or ``limit``.
        ImportError: Pillow, which only folders of images and CelebA need, is not installed.
    """
    if split not in SPLITS:
        raise ValueError(f"load: split must be one of {', '.join(SPLITS)}, got {split!r}")
    if limit is not None and limit < 1:
        raise ValueError(f"load: limit must be at least 1, got {limit}")
    request = Request(split, None if size is None else height_width("load", size), limit, progress)
    path = Path(source).expanduser()
    try:
        if str(source) == _BUNDLED and not path.exists():
            path = bundled()
        images = _read(path, request)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read: {error.strerror or error}") from error
    if request.size is not None:
        images = Images(resize(images.pixels, request.size), images.name, split)
    return images


def _read(path: Path, request: Request) -> Images:
    if path.is_dir():
        found = _find(path)
        if found is None:
            return folder.read(path, request)
        layout, root = found
        return layout.read(root, request)
    if path.suffix.lower() in arrays.SUFFIXES and path.is_file():
        images = arrays.read(path, request)
        return Images(images.pixels, _BUNDLED, images.split) if path.resolve() == bundled().resolve() else images
    wanted = f"a folder, an .npz or .npy file, or the word {_BUNDLED}"
    if path.exists():
        raise DataError(f"{path}: wanted {wanted}, got another file; unpack an archive, or give the folder around it")
    raise DataError(f"{path}: wanted {wanted}, got no such file or folder; check the path")


def _find(path: Path) -> tuple[_Layout, Path] | None:
    for candidates in ([path], sorted(child for child in path.iterdir() if child.is_dir())):
        found = [(layout, root) for child in candidates for layout in _LAYOUTS if (root := layout.find(child))]
        if len(found) > 1:
            names = ", ".join(str(root.relative_to(path)) for _, root in found)
            raise DataError(f"{path}: wanted one data set, got several: {names}; name one of them")
        if found:
            return found[0]
    return None
