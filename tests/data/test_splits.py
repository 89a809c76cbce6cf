"""Official splits never mix, whatever the names and the places of their folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pnf.data import DataError, load
from pnf.data.names import split_of

Save = Callable[..., np.ndarray]


@pytest.mark.parametrize(
    ("split", "names"),
    [
        (
            "train",
            "train Train TRAIN training Training seg_train train-images train2017 train_1 x_train trainset trainA",
        ),
        ("validation", "validation valid val VAL dev val2017 valid_set imagenet-val"),
        ("test", "test Testing TEST eval evaluation test1 seg_test TestSet testdata my.test.images"),
        (None, "trains station trainval train_test latest contest evaluate developer images data testament 2017 _"),
    ],
)
def test_names(split: str | None, names: str) -> None:
    assert {name: split_of(name) for name in names.split()} == dict.fromkeys(names.split(), split)


@pytest.mark.parametrize("around", [".", "myset", "archive/myset", "a/b/c/d"])
@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Train", "Test"),
        ("TRAIN", "TEST"),
        ("training", "testing"),
        ("train-images", "eval-images"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("training_set/training_set", "test_set/test_set"),
        ("train2017", "test2017"),
    ],
)
def test_spellings_and_folders_around_them(
    tmp_path: Path, save_image: Save, around: str, train: str, test: str
) -> None:
    wanted = {
        split: np.stack(
            [save_image(f"set/{around}/{top}/{kind}/{i}.png", 4, 4, seed=seed + i) for kind in "ab" for i in range(6)]
        )
        for split, top, seed in (("train", train, 0), ("test", test, 50))
    }
    for split, pixels in wanted.items():
        assert np.array_equal(load(tmp_path / "set", split).pixels[:, 0].numpy(), pixels)
    with pytest.raises(DataError, match="wanted the validation split, got a set that has only train, test"):
        load(tmp_path / "set", "validation")
    assert load(tmp_path / "set").name == (tmp_path / "set" / around).resolve().name


@pytest.mark.parametrize("name", ["val", "valid", "dev", "Validation"])
def test_validation(tmp_path: Path, save_image: Save, name: str) -> None:
    save_image("train/0.png", 4, 4)
    wanted = save_image(f"{name}/0.png", 4, 4, seed=1)
    assert np.array_equal(load(tmp_path, "validation").pixels[0, 0].numpy(), wanted)
    assert len(load(tmp_path)) == 1
    with pytest.raises(DataError, match="wanted the test split, got a set that has only train, validation"):
        load(tmp_path, "test")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train/0", "Train/0", "test/0"],
            r"wanted one folder of the train split, got Train and train; move or rename",
        ),
        (["train/0", "val/0", "valid/0"], r"wanted one folder of the validation split, got val and valid; move or"),
        (["trainA/0", "trainB/0", "testA/0"], r"wanted one folder of the train split, got trainA and trainB"),
        (["a/train/0", "a/test/0", "b/train/0", "b/test/0"], r"wanted one data set, got a/t.* and b/t.*; give .*/a$"),
        (["images/train/0", "images/val/0", "masks/train/0"], r"wanted one data set, got images/train and masks/train"),
        (["set/train/0", "set/test/0", "cover"], r"wanted one data set, got set/train and cover.png; give .*/set$"),
        (["set/train/0", "set/test/0", "photos/0"], r"wanted one data set, got set/train and photos/0.png; give"),
        (["train/0", "ships/0"], r"as train is one, got ships beside it; give .*/train, or rename train if it is a cl"),
        (["train/0", "0"], r"as train is one, got 0.png beside it; give"),
        (["trainval/0", "test/0"], r"as test is one, got trainval beside it; give"),
        (["train/train/0", "train/val/0"], r"/train: wanted images of the train split, got .* in it: train, val; give"),
        (["train/train/0", "train/val/0", "test/0"], r"/train: wanted images of the train split, got .* train, val;"),
        (["test/train/0", "test/a/0"], r"/test: wanted images of the test split, got folders of .* train; give this"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test", "validation"])
def test_what_can_be_read_in_two_ways(
    tmp_path: Path, save_image: Save, names: list[str], message: str, split: str
) -> None:
    for name in names:
        save_image(f"{name}.png", 4, 4)
    with pytest.raises(DataError, match=message) as refusal:
        load(tmp_path, split)
    assert str(refusal.value).startswith(str(tmp_path))


def test_files_that_are_named_after_splits(tmp_path: Path, save_image: Save) -> None:
    for name in ("train-0", "train-1", "b/test_0"):
        save_image(f"{name}.png", 4, 4)
    with pytest.raises(DataError, match=r"wanted splits in folders, got images that are all named after splits, like"):
        load(tmp_path)
    (tmp_path / "b" / "test_0.png").rename(tmp_path / "b" / "crash_test.jpg")
    for i in range(40):
        save_image(f"{i}.png", 4, 4)
    assert len(load(tmp_path)) + len(load(tmp_path, "test")) == 43


def test_images_beside_two_split_folders_are_in_no_split(tmp_path: Path, save_image: Save) -> None:
    for name in ("train/0", "test/0", "seg_pred/0", "cover", "more/train/0"):
        save_image(f"{name}.png", 4, 4)
    save_image("broken.png", 4, 4)
    (tmp_path / "broken.png").write_bytes(b"")
    assert len(load(tmp_path)) == len(load(tmp_path, "test")) == 1


def test_classes_can_be_named_after_a_split(tmp_path: Path, save_image: Save) -> None:
    for top in ("train", "test"):
        for kind in ("car", "ship", "train"):
            save_image(f"{top}/{kind}/0.png", 4, 4)
    assert len(load(tmp_path)) == len(load(tmp_path, "test")) == 3


def test_split_folders_without_images_are_none(tmp_path: Path, save_image: Save) -> None:
    for i in range(40):
        save_image(f"images/{i}.png", 4, 4)
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "0.txt").write_text("0")
    assert len(load(tmp_path)) + len(load(tmp_path, "test")) == 40
