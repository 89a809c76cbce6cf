"""The labels of images in every layout."""

from __future__ import annotations

import gzip
import pickle
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pnf.data import DataError, Images, load

Maker = Callable[..., tuple[Path, dict[str, np.ndarray]]]


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def idx_labels(folder: Path, prefix: str, labels: list[int], compressed: bool = False) -> None:
    content = bytes((0, 0, 8, 1)) + len(labels).to_bytes(4, "big") + bytes(labels)
    path = folder / f"{prefix}-labels-idx1-ubyte"
    if compressed:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("compressed", [False, True])
def test_idx(idx_folder: Maker, compressed: bool) -> None:
    folder, _ = idx_folder(compressed=compressed)
    idx_labels(folder, "train", [3, 0, 2, 9, 3, 1], compressed)
    idx_labels(folder, "t10k", [1, 1, 0], compressed)
    images = load(folder, labels=True)
    assert images.labels is not None
    assert images.labels.tolist() == [3, 0, 2, 9, 3, 1]
    assert images.classes == tuple("0123456789")
    limited = load(folder, "test", labels=True, limit=2)
    assert limited.labels is not None
    assert (limited.labels.tolist(), len(limited)) == ([1, 1], 2)
    assert load(folder).labels is None
    assert load(folder).classes == ()


def test_idx_of_other_sets_have_as_many_classes_as_labels(idx_folder: Maker) -> None:
    folder, _ = idx_folder("letters/raw")
    idx_labels(folder, "train", [3, 1, 2, 26, 3, 1])
    assert load(folder, labels=True, limit=1).classes == tuple(map(str, range(27)))


def test_idx_without_labels_or_with_too_few(idx_folder: Maker) -> None:
    folder, _ = idx_folder()
    with pytest.raises(DataError, match=r"wanted train-labels-idx1-ubyte \(or .gz\), got no such file; get the file"):
        load(folder, labels=True)
    idx_labels(folder, "train", [0, 1])
    with pytest.raises(DataError, match="wanted a label for each of 6 images, got 2; get both files again"):
        load(folder, labels=True, limit=1)


@pytest.mark.parametrize("binary", [False, True])
def test_cifar10(cifar_folder: Maker, binary: bool) -> None:
    folder, _ = cifar_folder(binary)
    images = load(folder, labels=True)
    assert images.labels is not None
    assert images.labels.tolist() == ([9] * 10 if binary else [0, 1] * 5)
    assert images.classes[9] == "truck"
    limited = load(folder, labels=True, limit=3)
    assert limited.labels is not None
    assert torch.equal(limited.labels, images.labels[:3])


@pytest.mark.parametrize("labels", [None, [0, 1, 10], [0, 1, -1], [0, 1, True], [0, 1], "012", [[0], 1, 2]])
def test_cifar10_with_wrong_labels(tmp_path: Path, labels: object) -> None:
    batch = {"data": pixels(3, 3072)} | ({} if labels is None else {"labels": labels})
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    assert len(load(tmp_path, "test")) == 3
    with pytest.raises(DataError, match=r"(as a list of numbers below 10|a label for each of 3 images|is refused)"):
        load(tmp_path, "test", labels=True)


def attributes(root: Path, text: str) -> None:
    (root / "list_attr_celeba.txt").write_text(text)


def test_an_attribute_of_celeba(celeba_folder: tuple[Path, Any]) -> None:
    root, _ = celeba_folder
    rows = [f"{i:06d}.jpg {smiling} -1" for i, smiling in enumerate((1, -1, 1, 1, 1), start=1)]
    attributes(root, "5\nSmiling Male\n" + "\n".join(rows) + "\n")
    images = load(root, size=8, labels=True, attribute="Smiling")
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, 1]
    assert images.classes == ("no Smiling", "Smiling")
    with pytest.raises(DataError, match="wanted --attribute, one of Smiling Male, got none"):
        load(root, size=8, labels=True)
    with pytest.raises(DataError, match="wanted --attribute, one of Smiling Male, got 'smile'"):
        load(root, size=8, labels=True, attribute="smile")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\nSmiling\n000001.jpg 1\n", "wanted the attributes of 000002.jpg, got none"),
        ("1\nSmiling\n000001.jpg 1 1\n", "wanted a name and 1 numbers 1 or -1, got '000001.jpg 1 1' in line 3"),
        ("1\nSmiling\n000001.jpg 2\n", "wanted a name and 1 numbers 1 or -1"),
        ("", "wanted --attribute, one of , got 'Smiling'"),
    ],
)
def test_broken_attributes_of_celeba(celeba_folder: tuple[Path, Any], text: str, message: str) -> None:
    root, _ = celeba_folder
    attributes(root, text)
    with pytest.raises(DataError, match=re.escape(message)):
        load(root, size=8, labels=True, attribute="Smiling")
    (root / "list_attr_celeba.txt").unlink()
    with pytest.raises(DataError, match=r"wanted list_attr_celeba.txt beside img_align_celeba, got no such file"):
        load(root, size=8, labels=True, attribute="Smiling")


def save(path: Path, grey: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 4), grey, dtype=np.uint8)).save(path)


def test_folders_of_classes_inside_splits(tmp_path: Path) -> None:
    for name in ("train/dog/a.png", "train/cat/deep/b.png", "train/eel/c.png", "test/eel/d.png", "test/cat/e.png"):
        save(tmp_path / name)
    train, test = (load(tmp_path, split, labels=True) for split in ("train", "test"))
    assert train.classes == test.classes == ("cat", "dog", "eel")
    assert train.labels is not None
    assert test.labels is not None
    assert sorted(train.labels.tolist()) == [0, 1, 2]
    assert sorted(test.labels.tolist()) == [0, 2], "numbered as in the training split"
    save(tmp_path / "test/fox/f.png")
    with pytest.raises(DataError, match="wanted folders of the training images' classes cat, dog, eel, got fox"):
        load(tmp_path, "test", labels=True)


def test_folders_of_classes_without_splits(tmp_path: Path) -> None:
    for i in range(40):
        save(tmp_path / "ab"[i % 2] / f"{i}.png", grey=i % 2)
    for split in ("train", "test"):
        images = load(tmp_path, split, labels=True)
        assert images.labels is not None
        assert torch.equal(images.labels, images.pixels[:, 0, 0, 0].long())
        assert images.classes == ("a", "b")
    save(tmp_path / "loose.png")
    with pytest.raises(DataError, match=r"loose.png: wanted a folder for each class, .* move it into the folder of"):
        load(tmp_path, labels=True)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_limit_takes_from_every_class_its_share(tmp_path: Path, split: str) -> None:
    for i in range(60):
        save(tmp_path / split / "abc"[i % 3] / f"{i}.png", grey=i % 3)
    if split == "test":
        for name in "abc":
            save(tmp_path / "train" / name / "0.png")
    every, some = load(tmp_path, split, labels=True), load(tmp_path, split, labels=True, limit=30)
    assert every.labels is not None
    assert some.labels is not None
    assert some.labels.bincount(minlength=3).min() >= 5
    assert torch.equal(some.labels, every.labels[:30]), "a limit takes the first of the whole split"
    assert torch.equal(some.labels, some.pixels[:, 0, 0, 0].long())


@pytest.mark.parametrize(
    "keys",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("train", "train_targets", "test", "Y_test"),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int64, ">i4"])
def test_npz_by_split(tmp_path: Path, keys: tuple[str, ...], dtype: Any) -> None:
    arrays = pixels(4, 5, 5), np.array([2, 0, 1, 2], dtype), pixels(3, 5, 5), np.array([[1], [0], [1]], dtype)
    np.savez(tmp_path / "set.npz", **dict(zip(keys, arrays, strict=True)))
    train, test = (load(tmp_path / "set.npz", split, labels=True) for split in ("train", "test"))
    assert train.labels is not None
    assert test.labels is not None
    assert (train.labels.tolist(), train.classes) == ([2, 0, 1, 2], ("0", "1", "2"))
    assert (test.labels.tolist(), test.classes) == ([1, 0, 1], ("0", "1"))


def test_npz_by_position(tmp_path: Path) -> None:
    labels = np.arange(20) % 4
    np.savez(tmp_path / "set.npz", images=pixels(20, 5, 5), labels=labels)
    train = load(tmp_path / "set.npz", labels=True, limit=5)
    test = load(tmp_path / "set.npz", "test", labels=True)
    assert train.labels is not None
    assert test.labels is not None
    assert train.labels.tolist() == labels[:5].tolist()
    assert test.labels.tolist() == labels[18:].tolist()
    assert train.classes == test.classes == ("0", "1", "2", "3")
    assert len(load(tmp_path / "set.npz")) == 18, "labels are no second array of images"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(3, np.int64), "wanted a label for each of 4 images, got 3"),
        (np.array([0, 1, 2, -1]), "wanted labels from 0 to 65535, got -1 to 2; number the classes from 0"),
        (np.array([0, 1, 2, 70000]), "wanted labels from 0 to 65535, got 0 to 70000"),
        (np.zeros(4), r"wanted labels as integers \[N\], got float64 \[4\]; number the classes"),
        (np.zeros((4, 10), np.int64), r"wanted labels as integers \[N\], got int64 \[4, 10\]"),
        (np.array(["a", "b", "c", "d"]), r"wanted labels as integers \[N\], got <U1 \[4\]"),
        (None, r"wanted one array of labels beside 'train', got \['train'\]; save the labels as 'y_train'"),
    ],
)
def test_wrong_labels_in_npz(tmp_path: Path, labels: np.ndarray | None, message: str) -> None:
    np.savez(tmp_path / "set.npz", train=pixels(4, 5, 5), **({} if labels is None else {"y_train": labels}))
    assert len(load(tmp_path / "set.npz")) == 4
    with pytest.raises(DataError, match=message):
        load(tmp_path / "set.npz", labels=True)


def test_many_labels_of_few_images_take_no_memory(tmp_path: Path, idx_folder: Maker) -> None:
    many = 2**23
    np.savez_compressed(tmp_path / "set.npz", train=pixels(4, 5, 5), y_train=np.zeros(many, np.uint8))
    folder, _ = idx_folder(compressed=True)
    idx_labels(folder, "train", [0] * many, compressed=True)
    for source in (tmp_path / "set.npz", folder):
        tracemalloc.start()
        with pytest.raises(DataError, match=f"wanted a label for each of [46] images, got {many}; get both files"):
            load(source, labels=True)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < many / 4


def test_a_limit_bounds_the_memory_of_images_with_labels(tmp_path: Path) -> None:
    images, labels = np.zeros((2**16, 8, 8), np.uint8), bytes(2**16)
    header = bytes((0, 0, 8, 3)) + b"".join(size.to_bytes(4, "big") for size in images.shape)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header + images.tobytes())
    idx_labels(tmp_path, "train", list(labels))
    tracemalloc.start()
    some = load(tmp_path, labels=True, limit=3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert some.labels is not None
    assert (len(some), some.labels.dtype) == (3, torch.int64)
    assert peak < images.nbytes / 2


def test_npy_has_no_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "set.npy", pixels(4, 5, 5))
    with pytest.raises(DataError, match=r"a .npy file, which has only one array; save both as np.savez"):
        load(tmp_path / "set.npy", labels=True)


def test_the_bundled_set() -> None:
    for split, count in (("train", 200), ("test", 50)):
        images = load("fashion-mini", split, labels=True)
        assert images.labels is not None
        assert images.labels.bincount().tolist() == [count] * 10
        assert images.classes[9] == "Boot"


def some(labels: list[int], classes: str) -> Images:
    return Images(
        torch.arange(len(labels)).byte().view(-1, 1, 1, 1), "some", "test", torch.tensor(labels), tuple(classes)
    )


def test_classes_are_matched_by_name() -> None:
    images = some([0, 1, 1], "bc").with_classes("abcd")
    assert images.labels is not None
    assert (images.labels.tolist(), images.classes) == ([1, 2, 2], tuple("abcd"))
    assert len(some([1, 1], "xa").with_classes("ab")) == 2, "a class without images does not matter"
    with pytest.raises(DataError, match="some: wanted images of the classes a, b, got some of c; remove them"):
        some([0, 1], "ac").with_classes("ab")


def test_images_take_their_labels_along() -> None:
    taken = some([0, 1, 2], "abc").take(torch.tensor([2, 0]))
    assert taken.labels is not None
    assert (taken.pixels.flatten().tolist(), taken.labels.tolist()) == ([2, 0], [2, 0])


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.zeros(3), TypeError, "labels must be torch.int64, got torch.float32"),
        (torch.zeros(2, dtype=torch.int64), ValueError, r"labels must be \[3\], got \[2\]"),
        (torch.tensor([0, 1, 2]), ValueError, "labels must be from 0 to 1, got 0 to 2"),
    ],
)
def test_wrong_labels(labels: torch.Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Images(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), "some", "train", labels, ("a", "b"))
