from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pnf.data import DataError, Images, bundled, load, locate


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "valid"}, "load: split must be one of train, validation, test, got 'valid'"),
        ({"limit": 0}, "load: limit must be at least 1, got 0"),
        ({"size": 0}, "load: size must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("fashion-mini", **arguments)  # type: ignore[arg-type]


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: wanted a folder, .*fashion-mini, got no such file or folder; check"):
        load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"nowhere.npz: wanted a folder, .* got no such file"):
        load(tmp_path / "nowhere.npz")


def test_other_files(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match="got another file; unpack an archive, or give the folder around it"):
        load(tmp_path / "cifar-10-python.tar.gz")


def test_system_errors_are_data_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "set.npy", np.zeros((2, 4, 4), dtype=np.uint8))

    def refuse(self: Path, *_: str) -> None:
        raise PermissionError(13, "Permission denied", os.fspath(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"set.npy: cannot be read: Permission denied"):
        load(tmp_path / "set.npy")


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "set.npy", np.zeros((2, 4, 4), dtype=np.uint8))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(load("~/set.npy")) == 2


def test_an_existing_path_wins_over_the_bundled_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("fashion-mini").shape == (1, 28, 28)
    (tmp_path / "fashion-mini").mkdir()
    with pytest.raises(DataError, match="fashion-mini: wanted images"):
        load("fashion-mini")


def test_bundled_set_by_path() -> None:
    assert load(bundled(), "test").name == "fashion-mini"


def test_images() -> None:
    images = Images(torch.zeros(7, 3, 4, 5, dtype=torch.uint8), "name", "train")
    assert images.shape == (3, 4, 5)
    assert len(images) == 7
    assert repr(images) == "Images(name='name', split='train', pixels=uint8 [7, 3, 4, 5])"
    with pytest.raises(TypeError, match=r"Images: pixels must be torch.uint8, got torch.float32"):
        Images(torch.zeros(7, 3, 4, 5), "name", "train")
    with pytest.raises(ValueError, match=r"Images: pixels must be \[N, C, H, W\], got \[7, 3\]"):
        Images(torch.zeros(7, 3, dtype=torch.uint8), "name", "train")


def test_an_empty_source() -> None:
    for source in ("", " ", "\t\n"):
        with pytest.raises(DataError, match=r"load: wanted a folder, .* got an empty name; give its path"):
            load(source)


def test_where_a_set_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert locate("fashion-mini") == "fashion-mini"
    assert locate("~/set.npz") == locate("set.npz") == locate(tmp_path / "set.npz") == str(tmp_path / "set.npz")
    assert locate("~no-such-user/x") == str(tmp_path / "~no-such-user" / "x")
    (tmp_path / "fashion-mini").mkdir()
    assert locate("fashion-mini") == str(tmp_path / "fashion-mini")


@pytest.mark.parametrize("name", ["two\nlines", "bell\a", "\ufeffmark", "caf\udce9", "a\u2028b"])
def test_a_message_has_one_line_whatever_a_file_is_called(tmp_path: Path, name: str) -> None:
    shown = name.replace("\udce9", "\\xe9").encode("ascii", "backslashreplace").decode()
    shown = shown.replace("\n", "\\n").replace("\a", "\\x07")
    for path in (tmp_path / name, tmp_path / f"{name}.npy"):
        with pytest.raises(DataError) as refusal:
            load(path)
        assert str(refusal.value).isprintable()
        assert shown in str(refusal.value)
    (tmp_path / name).mkdir()
    (tmp_path / name / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match="wanted an image") as refusal:
        load(tmp_path / name)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(("name", "shown"), [("two\nlines", r"two\nlines"), ("caf\udce9", r"caf\xe9")])
def test_a_name_that_cannot_be_printed(tmp_path: Path, name: str, shown: str) -> None:
    np.save(tmp_path / f"{name}.npy", np.zeros((20, 5, 5), dtype=np.uint8))
    images = load(tmp_path / f"{name}.npy")
    assert len(images) == 18
    assert images.name == shown


def test_a_data_set_beside_images(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((20, 5, 5), dtype=np.uint8))
    for name in ("set/train/0.png", "MNIST/raw/train-images-idx3-ubyte"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"wanted one data set, got several: MNIST/raw, set/train/0.png; name one of"):
        load(tmp_path)


def test_two_data_sets_at_different_depths(tmp_path: Path) -> None:
    for name in ("cifar-10-batches-py/test_batch", "torchvision/MNIST/raw/train-images-idx3-ubyte"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"got several: cifar-10-batches-py, torchvision/MNIST/raw; name one of them"):
        load(tmp_path)
