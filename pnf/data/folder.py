"""Reader of any folder of images, with its subfolders."""

import hashlib
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from pnf.data.decode import SUFFIXES, decode, decode_all, scan_all
from pnf.data.images import SPLITS, DataError, Images, Request, brief_list, missing_split
from pnf.data.names import split_of
from pnf.data.tree import Tree


def read(tree: Tree, request: Request) -> Images:
    """Read a split of a folder of images, sorted by relative name.

    Subfolders named after splits are the splits, in the folder itself or in the one folder below it that has any.
    Without them an image's name decides, so that adding images never moves others. An image is in the test split if
    the first eight bytes of the SHA-256 of its relative name (with "/"), as a big-endian number, are divisible by ten.

    With a ``size`` every image is cropped to that aspect ratio around its centre, and resized. Pixels have one channel
    if every image of all splits is grey, and three otherwise. Labels are the outermost folders inside the split, or
    inside the root. With them images are sorted by that SHA-256, so that a limit takes from every class its share.

    Raises:
        DataError: there is no image or no such split, the splits are ambiguous, an image has no class, images differ in
            size without a ``size``, or an image cannot be read.
    """
    root, splits = _splits(tree)
    if not tree.images:
        raise DataError(
            f"{root}: wanted images ({', '.join(sorted(SUFFIXES))}) or a known data set, got neither; see docs/data.md"
        )
    if request.split not in (splits or ("train", "test")):
        raise missing_split(root, request.split, tuple(splits) or ("train", "test"))
    if splits:
        by_split = {split: _sorted(top, tree) for split, top in splits.items()}
        every = [path for paths in by_split.values() for path in paths]
        paths, top = by_split[request.split], splits[request.split]
    else:
        every, top = _sorted(root, tree), root
        _refuse_splits_by_file(root, every)
        paths = [path for path in every if _split(path.relative_to(root)) == request.split]
    if not paths:
        raise DataError(
            f"{root}: wanted images of the {request.split} split, got none; add images or a subfolder for it"
        )

    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    if request.labels:
        # Those of the training split number the classes of all splits.
        training = by_split.get("train", paths) if splits else every
        classes = _classes(training, splits.get("train", top))
        paths = sorted(paths, key=lambda path: _digest(path.relative_to(top)))
        labels = _labels(paths[: request.limit], top, classes)
    headers = scan_all(every)
    grey = all(is_grey for is_grey, _, _ in headers)
    size = request.size
    if size is None:
        size = headers[0][1:]
        other = next((index for index, header in enumerate(headers) if header[1:] != size), None)
        if other is not None:
            raise DataError(
                f"{every[other]}: wanted {size[1]} x {size[0]} pixels, as {every[0].name} has, "
                f"got {headers[other][2]} x {headers[other][1]}; give a size"
            )
    decode_one = partial(decode, grey=grey, crop=partial(_centred, size))
    pixels = decode_all(paths[: request.limit], decode_one, (1 if grey else 3, *size), request.progress)
    return Images(pixels, root.resolve().name, request.split, labels, classes)


def _classes(paths: list[Path], top: Path) -> tuple[str, ...]:
    """The names of the folders that hold the images, each a class, in order."""
    for path in paths:
        if path.parent == top:
            raise DataError(
                f"{path}: wanted a folder for each class, with its images, to take labels from, got an image in {top}; "
                "move it into the folder of its class"
            )
    return tuple(sorted({path.relative_to(top).parts[0] for path in paths}))


def _labels(paths: list[Path], top: Path, classes: tuple[str, ...]) -> Tensor:
    foreign = [name for name in _classes(paths, top) if name not in classes]
    if foreign:
        raise DataError(
            f"{top}: wanted folders of the training images' classes {brief_list(classes)}, got {brief_list(foreign)}; "
            "rename or remove them"
        )
    numbers = {name: i for i, name in enumerate(classes)}
    return torch.tensor([numbers[path.relative_to(top).parts[0]] for path in paths])


def _splits(tree: Tree) -> tuple[Path, dict[str, Path]]:
    """The folder of the data set in a tree, and its split folders, if there are any.

    An ambiguous tree is refused, so that test images never become training images.
    """
    found: dict[Path, dict[Path, str]] = {}
    for folder in tree.images:
        for top, split in _split_folder(folder, tree.root):
            found.setdefault(top.parent, {})[top] = split
    if not found:
        return tree.root, {}
    root = min(found, key=lambda folder: (len(folder.parts), folder))
    splits: dict[str, Path] = {}
    for top, split in sorted(found[root].items(), key=lambda item: (SPLITS.index(item[1]), item[0])):
        if split in splits:
            raise DataError(
                f"{root}: wanted one folder of the {split} split, got {splits[split].name} and {top.name}; "
                "move or rename one of them"
            )
        splits[split] = top
    first = next(iter(splits.values()))
    for folder, (image, *_) in tree.images.items():
        if not folder.is_relative_to(root):
            other = next((top for top, _ in _split_folder(folder, tree.root)), image)
            raise DataError(
                f"{tree.root}: wanted one data set, got {first.relative_to(tree.root)} and "
                f"{other.relative_to(tree.root)}; give the folder of one of them, e.g. {root}"
            )
        beside = image.relative_to(root).parts[0]
        if len(splits) == 1 and beside != first.name:
            raise DataError(
                f"{root}: wanted all images in split folders, as {first.name} is one, got {beside} beside it; "
                f"give {first}, or rename {first.name} if it is a class"
            )
    for split, top in splits.items():
        inside = [found for folder in tree.images if folder.is_relative_to(top) for found in _split_folder(folder, top)]
        kinds = {kind for _, kind in inside}
        # A class may be named like a split ("train", beside "car" and "ship"), but hardly two, or one in a lone split.
        if len(kinds) > 1 or (len(splits) == 1 and kinds - {split}):
            names = ", ".join(sorted({folder.name for folder, _ in inside}))[:160]
            raise DataError(
                f"{top}: wanted images of the {split} split, got folders of other splits in it: {names}; "
                "give this folder, or rename them if they are classes"
            )
    return root, splits


def _refuse_splits_by_file(root: Path, every: list[Path]) -> None:
    kinds = {split_of(path.stem): path for path in every}
    if None not in kinds and len(kinds) > 1:
        names = ", ".join(path.name for path in kinds.values())
        raise DataError(
            f"{root}: wanted splits in folders, got images that are all named after splits, like {names[:160]}; move "
            "the images of each split into a folder of its own"
        )


def _split_folder(folder: Path, root: Path) -> list[tuple[Path, str]]:
    """The outermost folder from ``root`` down to ``folder`` with the name of a split, and the split: none or one."""
    names = folder.relative_to(root).parts
    found = [(root.joinpath(*names[: i + 1]), split) for i, name in enumerate(names) if (split := split_of(name))]
    return found[:1]


def _sorted(top: Path, tree: Tree) -> list[Path]:
    paths = (path for folder, paths in tree.images.items() if folder.is_relative_to(top) for path in paths)
    return sorted(paths, key=lambda path: path.relative_to(top).as_posix())


def _split(name: Path) -> str:
    return "train" if int.from_bytes(_digest(name)[:8], "big") % 10 else "test"


def _digest(name: Path) -> bytes:
    return hashlib.sha256(name.as_posix().encode("utf-8", "surrogateescape")).digest()


def _centred(size: tuple[int, int], height: int, width: int) -> tuple[int, int, int, int]:
    """The largest centred crop (top, left, bottom, right) with the aspect ratio of ``size``."""
    rows = min(height, max(1, round(width * size[0] / size[1])))
    columns = min(width, max(1, round(height * size[1] / size[0])))
    top, left = (height - rows) // 2, (width - columns) // 2
    return top, left, top + rows, left + columns
