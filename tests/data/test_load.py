from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pnf.data import DataError, Images, bundled, load


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
