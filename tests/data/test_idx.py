from __future__ import annotations

import gzip
import re
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pnf.data import DataError, load
from pnf.data.idx import read_idx

Maker = Callable[..., tuple[Path, dict[str, np.ndarray]]]


def header(*shape: int, kind: int = 8) -> bytes:
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, kind, len(shape), *shape)


def write(folder: Path, content: bytes, suffix: str = "") -> Path:
    path = folder / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_both_splits(idx_folder: Maker, compressed: bool) -> None:
    folder, arrays = idx_folder(compressed=compressed)
    for split, array in arrays.items():
        images = load(folder, split)
        assert np.array_equal(images.pixels.numpy(), array[:, None])
        assert (images.name, images.split, images.shape, len(images)) == ("mnist", split, (1, 5, 4), len(array))


@pytest.mark.parametrize("up", [0, 1, 2])
def test_given_any_folder_around_it(idx_folder: Maker, up: int) -> None:
    folder, arrays = idx_folder()
    given = (folder, *folder.parents)[up]
    assert np.array_equal(load(given).pixels[:, 0].numpy(), arrays["train"])


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("MNIST/raw", "mnist"),
        ("mnist", "mnist"),
        ("FashionMNIST/raw", "fashion-mnist"),
        ("fashion_mnist", "fashion-mnist"),
        ("KMNIST/raw", "KMNIST"),
    ],
)
def test_name_comes_from_the_folder(idx_folder: Maker, folder: str, name: str) -> None:
    assert load(idx_folder(folder)[0]).name == name


def test_relative_path(idx_folder: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(idx_folder("FashionMNIST/raw")[0])
    assert load(".").name == "fashion-mnist"


def test_limit_and_size(idx_folder: Maker) -> None:
    folder, arrays = idx_folder()
    assert np.array_equal(load(folder, limit=2).pixels[:, 0].numpy(), arrays["train"][:2])
    assert len(load(folder, limit=100)) == 6
    assert load(folder, size=(8, 16)).shape == (1, 8, 16)


def test_several_sets_are_ambiguous(idx_folder: Maker) -> None:
    idx_folder("MNIST/raw")
    folder, _ = idx_folder("FashionMNIST/raw")
    root = folder.parents[1]
    with pytest.raises(DataError, match=r"wanted one data set, got several: FashionMNIST/raw, MNIST/raw; name one"):
        load(root)


def test_no_validation_split(idx_folder: Maker) -> None:
    with pytest.raises(DataError, match="wanted the validation split, got a set that has only train, test"):
        load(idx_folder()[0], "validation")


def test_missing_file(idx_folder: Maker) -> None:
    folder, _ = idx_folder()
    (folder / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(DataError, match=r"wanted t10k-images-idx3-ubyte .* got no such file; get the file again"):
        load(folder, "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "wanted an idx file of unsigned bytes with 3 dimension.s., got an empty file"),
        (b"<html>not found</html>", "wanted an idx file .* got the first bytes 3c68746d"),
        (header(2, 2, 2, kind=0x0D) + bytes(32), "wanted an idx file of unsigned bytes"),
        (header(0, 2, 2), r"wanted at least one entry, got the declared shape \[0, 2, 2\]"),
        (header(2, 3, 4) + bytes(23), r"wanted 24 bytes after the header, as its shape \[2, 3, 4\] declares, got 23;"),
        (header(2, 3, 4) + bytes(25), "wanted 24 bytes .* got 25;"),
        (header(2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(9), "got 9;"),
    ],
    ids=["empty", "html", "float32", "no entries", "too short", "too long", "huge shape"],
)
def test_bad_plain_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=re.escape(str(path)) + ": " + ".*" + message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not gzip at all", "wanted a whole gzip file"),
        (gzip.compress(header(2, 3, 4) + bytes(24))[:-12], "wanted a whole gzip file"),
        (gzip.compress(header(2, 3, 4) + bytes(23)), "wanted 24 bytes of data, got 23: it is cut short"),
        (gzip.compress(header(2, 3, 4) + bytes(25)), "wanted the end after 24 bytes of data, got more"),
        (gzip.compress(header(2**31, 2**10, 2**10) + bytes(9)), "wanted 2251799813685248 bytes .* got at most"),
    ],
    ids=["not gzip", "cut stream", "too short", "too long", "huge shape"],
)
def test_bad_gzip_file(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path, content, ".gz")
    with pytest.raises(DataError, match=re.escape(str(path)) + ": " + ".*" + message):
        load(tmp_path)


def test_gzip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = write(tmp_path, gzip.compress(header(2, 3, 4) + bytes(2**26)), ".gz")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="got more"):
            read_idx(path, ndim=3)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()
