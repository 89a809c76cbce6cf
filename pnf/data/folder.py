"""Any folder of images, read recursively."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

from pnf.data.decode import SUFFIXES, decode, decode_all, scan_all
from pnf.data.images import SPLITS, DataError, Images, Request, missing_split


def read(root: Path, request: Request) -> Images:
    """Reads a split of a folder of images, sorted by relative name.

    Subfolders ``train``, ``validation`` and ``test``, where any of them exists, are the splits. Otherwise an image is
    in the test split if the first eight bytes of the SHA-256 of its relative name (with "/"), as a big-endian number,
    are divisible by ten, and in the training split if not: adding images never moves others.

    With a ``size`` every image is cropped, centred, to that aspect ratio and resized. Without one they are left as they
    are. Pixels have one channel if every image of all splits is grey, and three otherwise.

    Raises:
        DataError: No image, no such split, images of several sizes and no ``size``, or an image that cannot be read.
    """
    splits = [split for split in SPLITS if (root / split).is_dir()]
    if splits and request.split not in splits:
        raise missing_split(root, request.split, splits)
    if not splits and request.split == "validation":
        raise missing_split(root, request.split, ("train", "test"))
    every = [path for top in splits or (".",) for path in _images(root / top)]
    if not every:
        raise DataError(
            f"{root}: wanted images ({', '.join(sorted(SUFFIXES))}) or a known data set, got neither; see docs/data.md"
        )
    if splits:
        paths = [path for path in every if path.is_relative_to(root / request.split)]
    else:
        paths = [path for path in every if _split(path.relative_to(root)) == request.split]
    if not paths:
        raise DataError(
            f"{root}: wanted images of the {request.split} split, got none; add images or a subfolder for it"
        )

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
    return Images(pixels, root.resolve().name, request.split)


def _images(top: Path) -> list[Path]:
    # Hidden files and folders hold thumbnails and resource forks (._name.jpg), not images of the set.
    found = [
        path
        for path in top.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(top).parts)
        and path.is_file()
    ]
    return sorted(found, key=lambda path: path.relative_to(top).as_posix())


def _split(name: Path) -> str:
    digest = hashlib.sha256(name.as_posix().encode("utf-8", "surrogateescape")).digest()
    return "train" if int.from_bytes(digest[:8], "big") % 10 else "test"


def _centred(size: tuple[int, int], height: int, width: int) -> tuple[int, int, int, int]:
    """The largest centred (top, left, bottom, right) with the aspect ratio of ``size``."""
    rows = min(height, max(1, round(width * size[0] / size[1])))
    columns = min(width, max(1, round(height * size[1] / size[0])))
    top, left = (height - rows) // 2, (width - columns) // 2
    return top, left, top + rows, left + columns
