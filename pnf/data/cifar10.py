"""Reader of CIFAR-10 (Krizhevsky, 2009) in its "python" (pickled) and "binary" forms.

A pickle is a program, and this reader runs none of it. It checks every opcode first. Stand-ins that keep the numbers
and do nothing replace the few names that the official files refer to, so not even NumPy's own unpickling runs.
"""

import io
import pickle
import pickletools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pnf.data.images import DataError, Images, Request, brief, check_count, missing_split

_BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
_SUFFIXES = ("", ".bin")
_IMAGE_SHAPE = (3, 32, 32)
_IMAGE_SIZE = 3 * 32 * 32
_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Bytes: eight times an official batch.
_MAX_FILE_SIZE = 2**28

_REMEDY = "unpack the official archive again"


def find(folder: Path) -> Path | None:
    """``folder``, if it holds a batch."""
    names = [stem + suffix for stems in _BATCHES.values() for stem in stems for suffix in _SUFFIXES]
    return folder if any((folder / name).is_file() for name in names) else None


def read(root: Path, request: Request) -> Images:
    """Read one of the two official splits, ``[N, 3, 32, 32]``.

    Raises:
        DataError: the split does not exist, or a batch is missing, broken, foreign or hostile.
    """
    if request.split not in _BATCHES:
        raise missing_split(root, request.split, tuple(_BATCHES))
    parts: list[np.ndarray] = []
    numbers: list[np.ndarray] = []
    wanted = request.limit
    for stem in _BATCHES[request.split]:
        path, part, labels = _read_batch(root, stem)
        parts.append(part[:wanted])
        if request.labels:
            numbers.append(_checked(labels, len(part), path)[:wanted])
        if wanted is not None:
            wanted -= len(parts[-1])
            if wanted == 0:
                break
    images = Images(torch.from_numpy(np.concatenate(parts).reshape(-1, *_IMAGE_SHAPE)), "cifar10", request.split)
    return replace(images, labels=torch.from_numpy(np.concatenate(numbers)), classes=_CLASSES) if numbers else images


def _checked(labels: object, count: int, path: Path) -> np.ndarray:
    """The labels of a batch as int64 ``[N]``, if they are what a batch has."""
    numbers = labels.tolist() if isinstance(labels, np.ndarray) else labels
    if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < len(_CLASSES) for n in numbers):
        raise DataError(f"{path}: wanted b'labels' as a list of numbers below {len(_CLASSES)}, got others; {_REMEDY}")
    check_count(str(path), len(numbers), count)
    return np.array(numbers, dtype=np.int64)


def _read_batch(root: Path, stem: str) -> tuple[Path, np.ndarray, object]:
    """The path of a batch, its images, and what it has as their labels."""
    path = next((path for suffix in _SUFFIXES if (path := root / (stem + suffix)).is_file()), None)
    if path is None:
        raise DataError(f"{root}: wanted {stem} or {stem}.bin, got no such file; {_REMEDY}")
    size = path.stat().st_size
    if size > _MAX_FILE_SIZE:
        raise DataError(f"{path}: wanted at most {_MAX_FILE_SIZE} bytes, got {size}; {_REMEDY}")
    content = path.read_bytes()
    return path, *(_parse_binary(content, path) if path.suffix == ".bin" else _parse_pickle(content, path))


def _parse_binary(content: bytes, path: Path) -> tuple[np.ndarray, object]:
    record = 1 + _IMAGE_SIZE
    if not content or len(content) % record:
        raise DataError(f"{path}: wanted records of {record} bytes, got {len(content)} bytes in all; {_REMEDY}")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
    label = int(records[:, 0].max())
    if label >= len(_CLASSES):
        raise DataError(f"{path}: wanted labels below {len(_CLASSES)}, got {label}: not CIFAR-10; {_REMEDY}")
    return records[:, 1:], records[:, 0]


def _parse_pickle(content: bytes, path: Path) -> tuple[np.ndarray, object]:
    try:
        _check_opcodes(content)
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
        entry = batch.get(b"data", batch.get("data")) if isinstance(batch, dict) else None
        array = entry.array if isinstance(entry, _Array) else None
        labels = batch.get(b"labels", batch.get("labels")) if isinstance(batch, dict) else None
    # A broken pickle can raise nearly any error.
    except Exception as error:
        raise DataError(
            f"{path}: wanted a CIFAR-10 batch, got a pickle that is refused ({brief(error)}); {_REMEDY}"
        ) from error
    if array is None or array.ndim != 2 or array.shape[1] != _IMAGE_SIZE or len(array) < 1:
        got = "nothing of the kind" if array is None else f"uint8 {list(array.shape)}"
        raise DataError(f"{path}: wanted a dict with b'data' as uint8 [N, {_IMAGE_SIZE}], got {got}; {_REMEDY}")
    return array, labels


# The opcodes of protocol 2, which the official files use, and those of copies saved again with protocol 3 or 4.
_OPCODES = """
    PROTO FRAME STOP MARK EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 SETITEM SETITEMS APPEND APPENDS
    NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINBYTES
    SHORT_BINBYTES BINPUT LONG_BINPUT BINGET LONG_BINGET MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD
"""
_ALLOWED = frozenset(_OPCODES.split())


def _check_opcodes(content: bytes) -> None:
    for index, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name not in _ALLOWED:
            raise pickle.UnpicklingError(f"opcode {opcode.name}")
        # The memo is an array that grows to the largest index: a few bytes could allocate 64 GiB.
        if opcode.name == "LONG_BINPUT" and isinstance(argument, int) and argument > index:
            raise pickle.UnpicklingError(f"memo index {argument}")


class _Inert:
    """The base of the stand-ins. Without ``__setstate__``, BUILD would write to the attributes of a class."""

    def __setstate__(self, state: Any) -> None:
        """Ignore the state."""


class _Dtype(_Inert):
    def __init__(self, code: bytes | str, *_: Any) -> None:
        self.code = code if isinstance(code, str) else code.decode("ascii")


class _Array(_Inert):
    array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran_order, data = state
        if not isinstance(dtype, _Dtype) or dtype.code not in ("u1", "|u1"):
            raise pickle.UnpicklingError("an array that is not uint8")
        if not isinstance(data, bytes) or not all(type(extent) is int and extent >= 0 for extent in shape):
            raise pickle.UnpicklingError("an array without its bytes")
        self.array = np.frombuffer(data, dtype=np.uint8).reshape(shape, order="F" if fortran_order else "C")


class _Reconstruct(_Inert):
    def __new__(cls, *_: Any) -> Any:
        return _Array()


class _Encode(_Inert):
    """Stands for ``_codecs.encode(text, "latin1")``, as which Python 3 pickles bytes in protocol 2."""

    def __new__(cls, text: str, encoding: str) -> Any:
        if encoding not in ("latin1", b"latin1"):
            raise pickle.UnpicklingError(f"encoding {encoding!r}")
        return text.encode("latin1")


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encode,
}


class _BatchUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        stand_in = _STAND_INS.get((module, name))
        if stand_in is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}"[:120])
        return stand_in
