from __future__ import annotations

import io
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pnf.data import DataError, load


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_keys_are_splits(tmp_path: Path, save: Any) -> None:
    train, test = pixels(5, 3, 8, 6), pixels(2, 3, 8, 6)
    path = tmp_path / "my set.npz"
    save(path, train=train, test=test, labels=np.arange(5.0))
    for split, array in (("train", train), ("test", test)):
        images = load(path, split)
        assert np.array_equal(images.pixels.numpy(), array)
        assert (images.name, images.split) == ("my set", split)
    assert np.array_equal(load(path, limit=2).pixels.numpy(), train[:2])
    assert load(path, size=4).shape == (3, 4, 4)
    with pytest.raises(DataError, match="wanted the validation split, got a set that has only train, test"):
        load(path, "validation")


@pytest.mark.parametrize("form", ["npy", "npz"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_one_array_is_split_by_position(tmp_path: Path, form: str, order: Any) -> None:
    array = np.asarray(pixels(25, 1, 4, 4), order=order)
    path = tmp_path / f"set.{form}"
    if form == "npy":
        np.save(path, array)
    else:
        np.savez_compressed(path, array)
    assert np.array_equal(load(path).pixels.numpy(), array[:23])
    assert np.array_equal(load(path, "test").pixels.numpy(), array[23:])
    assert np.array_equal(load(path, "test", limit=1).pixels.numpy(), array[23:24])
    with pytest.raises(DataError, match="wanted the validation split"):
        load(path, "validation")


def test_too_few_images_for_a_test_split(tmp_path: Path) -> None:
    np.save(tmp_path / "set.npy", pixels(9, 4, 5))
    assert len(load(tmp_path / "set.npy")) == 9
    with pytest.raises(DataError, match="wanted at least 10 images, to use a tenth as the test split, got 9"):
        load(tmp_path / "set.npy", "test")


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((4, 8, 6), None),
        ((20, 4, 4), None),
        ((4, 1, 8, 6), (0, 1, 2, 3)),
        ((4, 8, 6, 3), (0, 3, 1, 2)),
        ((4, 3, 8, 4), (0, 1, 2, 3)),
        ((4, 1, 4, 4), (0, 1, 2, 3)),
        ((4, 4, 4, 3), (0, 3, 1, 2)),
        ((4, 2, 2, 1), (0, 3, 1, 2)),
    ],
)
def test_axes(tmp_path: Path, shape: tuple[int, ...], axes: tuple[int, ...] | None) -> None:
    array = pixels(*shape)
    np.savez(tmp_path / "set.npz", train=array)
    loaded = load(tmp_path / "set.npz").pixels
    assert np.array_equal(loaded.numpy(), array[:, None] if axes is None else array.transpose(axes))
    assert loaded.is_contiguous()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((4, 1, 8, 8), dtype=np.float32),
            r"got float32 \[4, 1, 8, 8\]; scale it to 0..255 and save it as uint8",
        ),
        (np.zeros((4, 8), dtype=np.uint8), r"got uint8 \[4, 8\]; reshape it"),
        (np.zeros((4, 8, 8, 8), dtype=np.uint8), r"with C <= 4, got uint8 \[4, 8, 8, 8\]; reshape it"),
        (np.zeros((0, 1, 8, 8), dtype=np.uint8), "wanted at least one example and entry"),
        (
            np.zeros((32, 32, 3), dtype=np.uint8),
            r"got \[32, 32, 3\], which looks like one colour image; add a first axis",
        ),
        (
            np.zeros((32, 9, 4), dtype=np.uint8),
            r"got \[32, 9, 4\], which looks like one colour image; add a first axis",
        ),
        (np.zeros((5, 2, 1), dtype=np.uint8), r"got \[5, 2, 1\], which looks like one colour image; .* or reshape it"),
        (np.zeros((4, 3, 8, 3), dtype=np.uint8), "where both the second and the last axis can be the channels; resize"),
        (np.zeros((4, 1, 8, 1), dtype=np.uint8), "where both the second and the last axis can be the channels; resize"),
        (np.zeros((4, 4, 8, 2), dtype=np.uint8), "where both the second and the last axis can be the channels; resize"),
        (np.zeros((), dtype=np.uint8), r"got uint8 \[\]; reshape it"),
    ],
)
@pytest.mark.parametrize("form", ["npy", "npz"])
def test_wrong_arrays(tmp_path: Path, array: np.ndarray, message: str, form: str) -> None:
    path = tmp_path / f"set.{form}"
    if form == "npy":
        np.save(path, array)
    else:
        np.savez(path, train=array)
    where = str(path) + ("" if form == "npy" else "[train]")
    with pytest.raises(DataError, match=re.escape(where) + ": .*" + message):
        load(path)


def test_one_image_with_its_channels_first(tmp_path: Path) -> None:
    np.save(tmp_path / "photo.npy", pixels(3, 8, 8))
    with pytest.raises(DataError, match=r"got \[3, 8, 8\], which looks like one colour image; add a first axis"):
        load(tmp_path / "photo.npy")


@pytest.mark.parametrize(
    "keys",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("Train", "train_labels", "Test", "test_labels"),
        ("training", "labels", "testing", "more"),
        ("X_train", "Y_train", "X_eval", "Y_eval"),
    ],
)
def test_keys_of_splits_with_labels_beside(tmp_path: Path, keys: tuple[str, ...]) -> None:
    train, test = pixels(30, 8, 6), pixels(7, 8, 6) // 2
    arrays = (train, np.arange(30, dtype=np.uint8), test, np.arange(7))
    np.savez(tmp_path / "set.npz", **dict(zip(keys, arrays, strict=True)))
    assert np.array_equal(load(tmp_path / "set.npz").pixels[:, 0].numpy(), train)
    assert np.array_equal(load(tmp_path / "set.npz", "test").pixels[:, 0].numpy(), test)
    with pytest.raises(DataError, match="wanted the validation split, got a set that has only train, test"):
        load(tmp_path / "set.npz", "validation")


def test_one_array_that_is_named_after_a_split_is_not_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x_train=pixels(30, 8, 6))
    assert len(load(tmp_path / "set.npz")) == 30
    with pytest.raises(DataError, match="wanted the test split, got a set that has only train"):
        load(tmp_path / "set.npz", "test")


def test_two_arrays_of_one_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x_train=pixels(4, 8, 6), train_masks=pixels(4, 8, 6), test=pixels(2, 8, 6))
    with pytest.raises(
        DataError, match=r"wanted one array of the train split, got \['train_masks', 'x_train'\]; save the images as"
    ):
        load(tmp_path / "set.npz")
    np.savez(tmp_path / "set.npz", train=pixels(4, 8, 6), train_masks=pixels(4, 8, 6), val=pixels(2, 8, 6))
    assert len(load(tmp_path / "set.npz")) == 4
    assert len(load(tmp_path / "set.npz", "validation")) == 2


def test_unknown_keys(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x=pixels(2, 4, 4), z=pixels(2, 4, 4))
    with pytest.raises(
        DataError, match=r"wanted the keys 'train' and 'test', or one array, got \['x', 'z'\]; save it as"
    ):
        load(tmp_path / "set.npz")


class _Touch:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("form", ["npy", "npz"])
def test_objects_are_never_unpickled(tmp_path: Path, form: str) -> None:
    marker = tmp_path / "executed"
    array = np.empty((1, 1, 1), dtype=object)
    array[0, 0, 0] = _Touch(marker)
    path = tmp_path / f"set.{form}"
    if form == "npy":
        np.save(path, array, allow_pickle=True)
    else:
        np.savez(path, train=array)
    with pytest.raises(DataError, match=r"wanted a uint8 array .* got object \[1, 1, 1\]"):
        load(path)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["set.npy", "set.npz"])
def test_a_pickle_under_another_name_is_not_run(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "executed"
    (tmp_path / name).write_bytes(pickle.dumps(_Touch(marker)))
    with pytest.raises(DataError, match=r"wanted a (\.npy header|whole \.npz file)"):
        load(tmp_path / name)
    assert not marker.exists()


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "wanted a .npy header"),
        (b"\x93NUMPY\x09\x00", "wanted a .npy header"),
        (npy_header("__import__('os').system('false')"), "wanted a .npy header"),
        (npy_header("(" * 5000), "wanted a .npy header"),
        (
            npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 3, 4)}") + bytes(23),
            "wanted 24 bytes .* got 23",
        ),
        (
            npy_header("{'descr': '|u1', 'fortran_order': True, 'shape': (2, 3, 4)}") + bytes(25),
            "wanted 24 bytes .* got 25",
        ),
        (
            npy_header(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({2**60}, 3, 4)}}"),
            "wanted 138350580552821637",
        ),
        (
            npy_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-2, -3, 4)}") + bytes(24),
            "wanted at least one",
        ),
    ],
    ids=["empty", "version", "code", "nested", "too short", "too long", "huge shape", "negative shape"],
)
def test_bad_npy(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "set.npy").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "set.npy")


def test_truncated_npz(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, train=pixels(4, 8, 8))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"wanted a whole .npz file, got a broken one .*; save it again"):
        load(path)


def test_damaged_npz(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, train=pixels(40, 8, 8))
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"wanted a whole .npz file, got a broken one .*Bad CRC-32"):
        load(path)


def test_npz_that_declares_more_than_it_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez_compressed(path, train=pixels(2, 8, 8))
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", 2**31)
    path.write_bytes(content)
    with pytest.raises(DataError, match="compressed ones, got a declared size of 2147483648"):
        load(path)


def test_npz_member_larger_than_its_shape(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, pixels(2, 8, 8))
    with zipfile.ZipFile(tmp_path / "set.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.npy", buffer.getvalue() + bytes(2**20))
    with pytest.raises(DataError, match=r"\[train\]: wanted 128 bytes for \[2, 8, 8\], got 1048704"):
        load(tmp_path / "set.npz")


def test_encrypted_npz(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, train=pixels(2, 8, 8))
    content = bytearray(path.read_bytes())
    for marker, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(marker) + offset] |= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"got a broken one .*password required"):
        load(path)
