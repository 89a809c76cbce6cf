"""The images and folders below a folder, through links."""

import os
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from pnf.data.decode import SUFFIXES
from pnf.data.images import DataError
from pnf.data.names import split_of

_Identity = tuple[int, int]  # device and inode


@dataclass(frozen=True)
class Tree:
    """The contents of a folder.

    Attributes:
        root: the folder.
        folders: all folders below it, the nearest first.
        images: all files with the suffix of an image, by their folder.
    """

    root: Path
    folders: list[Path] = field(default_factory=list)
    images: dict[Path, list[Path]] = field(default_factory=dict)


def walk(root: Path) -> Tree:
    """Find the images and folders below a folder, except hidden ones.

    Links to folders are followed, unless they lead to a folder around them. A folder with several paths is entered once
    in each split folder, by the path with the fewest links.

    Raises:
        DataError: a link to an image or a folder leads nowhere, or a link makes two splits share a folder.
    """
    tree = Tree(root)
    around = frozenset(_identity(folder) for folder in (root.resolve(), *root.resolve().parents))
    # A folder, the folders around it, and the split folder among them.
    waiting: deque[tuple[Path, frozenset[_Identity], Path | None]] = deque([(root, frozenset(), None)])
    entered: set[tuple[Path | None, _Identity]] = set()
    homes: dict[_Identity, Path] = {}
    while waiting:
        folder, above, top = waiting.popleft()
        here = _identity(folder)
        if here in above or (top, here) in entered:
            continue
        entered.add((top, here))
        above = above | {here} if folder != root else around
        if folder != root:
            tree.folders.append(folder)
        with os.scandir(folder) as entries:
            # Thumbnails and resource forks (._name.jpg) are hidden and do not belong to the set.
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        for entry in sorted(visible, key=lambda entry: entry.name):
            path = folder / entry.name
            is_image = path.suffix.lower() in SUFFIXES
            if entry.is_dir():
                # Links wait until all real folders have been entered.
                add = waiting.append if entry.is_symlink() else waiting.appendleft
                add((path, above, path if top is None and split_of(entry.name) else top))
            elif is_image and entry.is_file():
                tree.images.setdefault(folder, []).append(path)
            elif entry.is_symlink() and (is_image or not path.suffix) and not path.exists():
                raise DataError(
                    f"{path}: wanted an image or a folder, got a link to {path.readlink()}, which is not there; "
                    "restore it or remove the link"
                )
        if folder in tree.images and top is not None and (other := homes.setdefault(here, top)) != top:
            raise DataError(
                f"{folder}: wanted images of one split, got a link to images of {other} too; remove the link"
            )
    tree.folders.sort(key=lambda path: len(path.parts))
    return tree


def _identity(path: Path) -> _Identity:
    status = path.stat()
    return status.st_dev, status.st_ino
