"""Reader of NumPy files: an ``.npz`` with a key for each split, or one array. Nothing is ever unpickled."""

import math
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from pnf.data.byte_streams import DEFLATE_LIMIT, read_into, skip
from pnf.data.images import (
    SPLITS,
    DataError,
    Examples,
    Images,
    Reals,
    Request,
    brief,
    check_count,
    missing_split,
    numbered,
)
from pnf.data.names import is_of_labels, is_plain, split_of

SUFFIXES = (".npz", ".npy")

E = TypeVar("E", bound=Examples)

_WANTED_REALS = "an array of floats: vectors [N, D], signals [N, C, D] or fields [N, C, H, W]"

_WANTED = "a uint8 array [N, C, H, W], [N, H, W, C] or [N, H, W]"

# A larger size is a height or a width.
_MAX_CHANNELS = 4


def read(path: Path, request: Request) -> Images:
    """Read a split of a ``.npz`` or ``.npy`` file.

    An ``.npz`` with keys named after splits (``"train"``, ``"x_test"``, ``"val_images"``) has those splits, and its
    labels have the same names with "y" or "labels" (``"y_train"``, ``"test_labels"``). Its other keys are ignored. In a
    file with one array under any other name, and perhaps labels (``"labels"``, ``"y"``), the last tenth (rounded down)
    is ``"test"`` and the rest is ``"train"``.

    Raises:
        DataError: the split or its labels do not exist, two keys could be the split, or the file is foreign, broken or
            holds no 8-bit images. Shape and dtype are checked before any data is read.
    """
    return _read(path, request, _images)


def read_reals(path: Path, request: Request) -> Reals:
    """Read a split of a ``.npz`` or ``.npy`` file of floats, as :func:`read` does.

    Raises:
        DataError: as for :func:`read`, or a value is not finite.
    """
    return _read(path, request, _reals)


class _Content(NamedTuple, Generic[E]):
    """What a file is read as.

    Attributes:
        check: raises unless a shape and a dtype are of that content, given where they are from and whether the array
            is alone in its file.
        least: the fewest axes of its arrays, to tell them from labels.
        make: makes examples of an array, the file's stem and the split.
    """

    check: Callable[[tuple[int, ...], np.dtype, str, bool], None]
    least: int
    make: Callable[[np.ndarray, str, str], E]


def _read(path: Path, request: Request, content: "_Content[E]") -> E:
    if path.suffix.lower() == ".npy":
        if request.labels:
            raise DataError(
                f"{path}: wanted images with labels, got a .npy file, which has only one array; "
                "save both as np.savez(path, images=..., labels=...)"
            )
        with path.open("rb") as stream:
            array = _read_array(stream, path.stat().st_size, str(path), request, content, split_by_position=True)
        return content.make(array, path.stem, request.split)
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_members(archive, path, request, content)
    except (DataError, OSError):
        raise
    # zipfile raises errors that it does not document: UnicodeDecodeError for a name, struct.error, ValueError, ...
    except Exception as error:
        raise DataError(
            f"{path}: wanted a whole .npz file, got a broken one ({brief(error)}); save it again"
        ) from error


def _read_members(archive: zipfile.ZipFile, path: Path, request: Request, content: "_Content[E]") -> E:
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    of_images = [name for name in members if not is_of_labels(name)] or list(members)
    splits = [split for split in SPLITS if any(split_of(name) == split for name in of_images)]
    if splits:
        if request.split not in splits:
            raise missing_split(path, request.split, splits)
        key = _key(archive, path, members, of_images, request.split, content.least)
    elif len(of_images) == 1:
        key = of_images[0]
    else:
        raise DataError(
            f"{path}: wanted the keys 'train' and 'test', or one array, got {str(sorted(members))[:160]}; "
            "save it as np.savez(path, train=..., test=...)"
        )
    with _opened(archive, members[key], path) as (stream, where):
        array = _read_array(stream, members[key].file_size, where, request, content, split_by_position=not splits)
    examples = content.make(array, path.stem, request.split)
    if not request.labels:
        return examples
    count = _peek(archive, members[key])[0]
    split = request.split if splits else None
    found = [name for name in members if is_of_labels(name) and name != key and split_of(name) == split]
    if len(found) != 1:
        name = f"y_{split}" if split else "labels"
        raise DataError(
            f"{path}: wanted one array of labels beside {key!r}, got {str(sorted(found or members))[:160]}; "
            f"save the labels as {name!r}"
        )
    with _opened(archive, members[found[0]], path) as (stream, where):
        numbers = _read_labels(stream, members[found[0]].file_size, where, count)
    start, stop = (0, count) if splits else _rows(count, where, request)
    rows = slice(start, stop if request.limit is None else min(stop, start + request.limit))
    labels, classes = numbered(numbers, where, rows)
    assert isinstance(examples, Images)
    return replace(examples, labels=labels, classes=classes)


@contextmanager
def _opened(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Iterator[tuple[IO[bytes], str]]:
    """The stream of a member of plausible size, and its name for errors."""
    key = info.filename.removesuffix(".npy")
    where = f"{path}[{key if key.isprintable() else ascii(key)}]"
    stored = min(info.compress_size, path.stat().st_size)
    if info.file_size > stored * DEFLATE_LIMIT:
        raise DataError(
            f"{where}: wanted at most {stored * DEFLATE_LIMIT} bytes from {stored} compressed ones, "
            f"got a declared size of {info.file_size}; save it again"
        )
    with archive.open(info) as stream:
        yield stream, where


def _key(
    archive: zipfile.ZipFile,
    path: Path,
    members: dict[str, zipfile.ZipInfo],
    of_images: list[str],
    split: str,
    least: int,
) -> str:
    """The key of a split's images: the split's plain name, or else the one key that holds no labels."""
    keys = [name for name in of_images if split_of(name) == split]
    if plain := [name for name in keys if is_plain(name)]:
        keys = plain
    elif len(keys) > 1:
        keys = [name for name in keys if len(_peek(archive, members[name])) >= least] or keys
    if len(keys) > 1:
        raise DataError(
            f"{path}: wanted one array of the {split} split, got {str(sorted(keys))[:160]}; "
            f"save the images as {split!r}"
        )
    return keys[0]


def _peek(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[int, ...]:
    """The shape of a member."""
    with archive.open(info) as stream:
        return _shape(stream, info.filename)[0]


def _read_labels(stream: IO[bytes], size: int, where: str, count: int) -> np.ndarray:  # [count] of integers
    shape, _, dtype = _shape(stream, where)
    if dtype.kind not in "iu" or not shape or math.prod(shape) != shape[0] or shape[0] < 1:
        raise DataError(
            f"{where}: wanted labels as integers [N], got {dtype} {list(shape)}; number the classes from 0, and save "
            "them as int64"
        )
    check_count(where, shape[0], count)  # before memory is allocated
    _check_size(stream, size, shape, dtype, where)
    array = np.empty(count, dtype=dtype)
    read_into(stream, array.view(np.uint8), where)
    return array


def _read_array(
    stream: IO[bytes],
    size: int,  # of the whole stream, in bytes
    where: str,
    request: Request,
    content: "_Content[E]",
    split_by_position: bool,
) -> np.ndarray:
    shape, fortran_order, dtype = _shape(stream, where)
    content.check(shape, dtype, where, split_by_position)
    if min(shape) < 1:
        raise DataError(f"{where}: wanted at least one example and entry, got {list(shape)}; save it again")
    _check_size(stream, size, shape, dtype, where)
    start, stop = _rows(shape[0], where, request) if split_by_position else (0, shape[0])
    if request.limit is not None:
        stop = min(stop, start + request.limit)
    if fortran_order:
        array = np.empty(shape[::-1], dtype=dtype)
        read_into(stream, array.reshape(-1).view(np.uint8), where, request.progress)
        return array.T[start:stop]
    array = np.empty((stop - start, *shape[1:]), dtype=dtype)
    skip(stream, start * math.prod(shape[1:]) * dtype.itemsize)
    read_into(stream, array.reshape(-1).view(np.uint8), where, request.progress)
    return array


def _shape(stream: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """The shape, whether the order is Fortran's, and the dtype in a .npy header."""
    try:
        version = npy.read_magic(stream)
        # Version 3 only adds unicode field names. An array of bytes has no fields.
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        return read_header(stream)
    except (zipfile.BadZipFile, zlib.error):
        raise
    # The header is a Python literal. A hostile one can raise undocumented errors in ast and numpy.
    except Exception as error:
        raise DataError(
            f"{where}: wanted a .npy header, got something else ({brief(error)}); save it with NumPy"
        ) from error


def _check_images(shape: tuple[int, ...], dtype: np.dtype, where: str, alone: bool) -> None:
    if dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and not _channel_axes(shape)):
        remedy = "scale it to 0..255 and save it as uint8" if dtype != np.uint8 else "reshape it"
        if dtype.kind == "f":
            remedy += ", or give --support real if it is no image"
        raise DataError(f"{where}: wanted {_WANTED} with C <= {_MAX_CHANNELS}, got {dtype} {list(shape)}; {remedy}")
    if len(shape) == 3 and (shape[2] <= min(_MAX_CHANNELS, shape[1] - 1) or (alone and shape[0] == 3)):
        raise DataError(
            f"{where}: wanted {_WANTED}, got {list(shape)}, which looks like one colour image; "
            "add a first axis (array[None]) if it is one, or reshape it to [N, 1, H, W]"
        )
    if len(shape) == 4 and len(_channel_axes(shape)) > 1:
        raise DataError(
            f"{where}: wanted {_WANTED}, got {list(shape)}, where both the second and the last axis can be the "
            "channels; resize the images, so that only one can"
        )


def _check_reals(shape: tuple[int, ...], dtype: np.dtype, where: str, alone: bool) -> None:  # noqa: ARG001
    if dtype.kind != "f" or dtype.itemsize > 8 or len(shape) not in (2, 3, 4):
        remedy = "reshape it" if dtype.kind == "f" else "save it as float32"
        raise DataError(f"{where}: wanted {_WANTED_REALS}, got {dtype} {list(shape)}; {remedy}")


def _check_size(stream: IO[bytes], size: int, shape: tuple[int, ...], dtype: np.dtype, where: str) -> None:
    declared, held = math.prod(shape) * dtype.itemsize, size - stream.tell()
    if declared != held:
        raise DataError(f"{where}: wanted {declared} bytes for {list(shape)}, got {held}; save it again")


def _rows(count: int, where: str, request: Request) -> tuple[int, int]:
    cut = count - count // 10
    if request.split == "train":
        return 0, cut
    if request.split == "test":
        if cut == count:
            raise DataError(f"{where}: wanted at least 10 images, to use a tenth as the test split, got {count}")
        return cut, count
    raise missing_split(Path(where), request.split, ("train", "test"))


def _channel_axes(shape: tuple[int, ...]) -> list[int]:
    """The axes that can be the channels. If both are small enough, prefer those of size 1 or 3."""
    axes = [axis for axis in (1, 3) if shape[axis] <= _MAX_CHANNELS]
    return [axis for axis in axes if shape[axis] in (1, 3)] or axes if len(axes) > 1 else axes


def _channels_first(array: np.ndarray) -> Tensor:
    if array.ndim == 3:
        array = array[:, None]
    elif _channel_axes(array.shape) == [3]:
        array = array.transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(array))


def _make_images(array: np.ndarray, name: str, split: str) -> Images:
    return Images(_channels_first(array), name, split)


def _make_reals(array: np.ndarray, name: str, split: str) -> Reals:
    # Rounded to float32, a large mean would leave little of small variations, so wide numbers keep their width.
    values = torch.from_numpy(array.astype(np.float64 if array.itemsize > 4 else np.float32))
    finite = values.flatten(1).isfinite().all(1)
    if not finite.all():
        row = int(finite.logical_not().nonzero()[0])
        raise DataError(f"{name}: wanted finite numbers, got others in example {row}; remove or replace them")
    return Reals(values, name, split)


_images = _Content(_check_images, 3, _make_images)
_reals = _Content(_check_reals, 2, _make_reals)
