"""The images and folders below a folder, links followed."""

from __future__ import annotations

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
    """What is below a folder.

    Attributes:
        root: the folder.
        folders: all folders below it, the nearest first.
        images: all files with the suffix of an image, by the folder that they are in.
    """

    root: Path
    folders: list[Path] = field(default_factory=list)
    images: dict[Path, list[Path]] = field(default_factory=dict)


def walk(root: Path) -> Tree:
    """Finds the images and folders below a folder; hidden ones are passed over.

    Linked folders are followed. One that leads to a folder around it is not, and a folder that several paths lead to is
    entered once in each split folder, by the path with the fewest links.

    Raises:
        DataError: A link to an image or a folder leads nowhere, or a link makes two splits share a folder.
    """
    tree = Tree(root)
    around = frozenset(_identity(folder) for folder in (root.resolve(), *root.resolve().parents))
    # Folder, the folders that it lies in, and the split folder among them.
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
            # Thumbnails and resource forks (._name.jpg) are hidden, and are no images of the set.
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        for entry in sorted(visible, key=lambda entry: entry.name):
            path = folder / entry.name
            is_image = path.suffix.lower() in SUFFIXES
            if entry.is_dir():
                # Links wait until every folder proper has been entered.
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
