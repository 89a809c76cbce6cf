"""Links are followed, as in torchvision's ImageFolder, and no image is read twice."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pnf.data import DataError, load

Save = Callable[..., np.ndarray]


def link(path: Path, target: str | Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def test_linked_classes_files_and_splits(tmp_path: Path, save_image: Save) -> None:
    stored = [save_image(f"store/deep/{i}.png", 4, 4, seed=i) for i in range(3)]
    own = save_image("set/train/own/0.png", 4, 4, seed=9)
    link(tmp_path / "set/train/cats", tmp_path / "store")
    link(tmp_path / "set/train/one.png", "../../store/deep/1.png")
    link(tmp_path / "set/test", "../store")
    link(tmp_path / "alias", "set")
    with pytest.raises(DataError, match=r"wanted images of one split, got a link to images of .*/test too; remove the"):
        load(tmp_path / "set")
    (tmp_path / "set/test").unlink()
    wanted = np.stack([*stored, stored[1], own])
    for name in ("set", "alias"):
        assert np.array_equal(load(tmp_path / name).pixels[:, 0].numpy(), wanted)


def test_loops(tmp_path: Path, save_image: Save) -> None:
    for name in ("train/a/0", "train/b/0", "test/0"):
        save_image(f"{name}.png", 4, 4)
    for name, target in {
        "train/self": ".",
        "train/a/up": "..",
        "train/a/top": "../..",
        "train/a/out": "../../..",
        "train/a/other": "../b",
        "train/b/other": "../a",
        "test/root": tmp_path.resolve(),
    }.items():
        link(tmp_path / name, target)
    assert len(load(tmp_path)) == 2
    assert len(load(tmp_path, "test")) == 1


def test_many_links_among_classes(tmp_path: Path, save_image: Save) -> None:
    for i in range(30):
        save_image(f"{i}/x.png", 4, 4)
    for i in range(30):
        for j in range(30):
            link(tmp_path / f"{i}/to{j}", f"../{j}")
    assert len(load(tmp_path)) + len(load(tmp_path, "test")) == 30


def test_splits_that_link_to_each_other(tmp_path: Path, save_image: Save) -> None:
    save_image("train/0.png", 4, 4)
    save_image("test/0.png", 4, 4)
    link(tmp_path / "train/more", "../test")
    with pytest.raises(DataError, match=r"wanted images of one split, got a link to images of .* too; remove the link"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["train/x.png", "train/cats", "x.JPG"])
def test_a_link_that_leads_nowhere(tmp_path: Path, save_image: Save, name: str) -> None:
    save_image("train/0.png", 4, 4)
    link(tmp_path / name, "/nowhere/there")
    with pytest.raises(
        DataError, match=rf"{name}: wanted an image or a folder, got a link to /nowhere/there, which is"
    ):
        load(tmp_path)


def test_other_links_that_lead_nowhere(tmp_path: Path, save_image: Save) -> None:
    save_image("train/0.png", 4, 4)
    link(tmp_path / "train/notes.txt", "/nowhere")
    link(tmp_path / "train/.#0.png", "/nowhere")
    assert len(load(tmp_path)) == 1


def test_a_link_to_itself(tmp_path: Path, save_image: Save) -> None:
    save_image("train/0.png", 4, 4)
    link(tmp_path / "train/x.png", "x.png")
    with pytest.raises(DataError, match=r"x\.png: "):
        load(tmp_path)


def test_a_folder_that_may_not_be_read(tmp_path: Path, save_image: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image("train/a/0.png", 4, 4)
    save_image("train/b/0.png", 4, 4)
    scan = os.scandir

    def refuse(path: Path) -> object:
        if path == tmp_path / "train" / "b":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"train/b: cannot be read: Permission denied"):
        load(tmp_path)
