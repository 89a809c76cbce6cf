from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pnf.data import DataError, load, resize

Made = tuple[Path, dict[str, list[np.ndarray]]]


def cropped(images: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)[:, 40:188, 15:163].transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_splits_crop_and_size(celeba_folder: Made, split: str) -> None:
    root, decoded = celeba_folder
    images = load(root, split)
    assert torch.equal(images.pixels, resize(cropped(decoded[split]), 64))
    assert (images.name, images.split, images.shape) == ("celeba64", split, (3, 64, 64))


def test_other_sizes(celeba_folder: Made) -> None:
    root, decoded = celeba_folder
    images = load(root, size=148)
    assert torch.equal(images.pixels, cropped(decoded["train"]))
    assert images.name == "celeba148"
    assert load(root, size=(16, 32)).name == "celeba16x32"


def test_given_around_and_inside(celeba_folder: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    root, _ = celeba_folder
    assert len(load(root.parent)) == 3
    assert len(load(root / "img_align_celeba")) == 3
    monkeypatch.chdir(root / "img_align_celeba")
    assert len(load(".")) == 3


def test_limit_and_progress(celeba_folder: Made) -> None:
    root, decoded = celeba_folder
    seen: list[Any] = []

    def progress(items: Iterable[Any]) -> Iterable[Any]:
        assert len(items) == 2  # type: ignore[arg-type]
        for item in items:
            seen.append(item)
            yield item

    images = load(root, limit=2, progress=progress)
    assert torch.equal(images.pixels, resize(cropped(decoded["train"][:2]), 64))
    assert len(seen) == 2


def test_missing_list(celeba_folder: Made) -> None:
    root, _ = celeba_folder
    (root / "list_eval_partition.txt").unlink()
    with pytest.raises(DataError, match=r"wanted list_eval_partition.txt beside img_align_celeba, got no such file"):
        load(root)


def test_missing_images(celeba_folder: Made) -> None:
    root, _ = celeba_folder
    (root / "img_align_celeba" / "000002.jpg").unlink()
    with pytest.raises(DataError, match=r"000002.jpg: wanted an image that list_eval_partition.txt lists, got no such"):
        load(root)
    (root / "img_align_celeba").rename(root / "elsewhere")
    with pytest.raises(DataError, match=r"wanted the folder img_align_celeba beside list_eval_partition.txt, got none"):
        load(root)


def test_image_of_another_size(celeba_folder: Made) -> None:
    root, _ = celeba_folder
    Image.new("RGB", (64, 64)).save(root / "img_align_celeba" / "000003.jpg")
    with pytest.raises(DataError, match=r"000003.jpg: wanted an aligned CelebA image of 178 x 218 pixels, got 64 x 64"):
        load(root, "validation")


def test_broken_image(celeba_folder: Made) -> None:
    root, _ = celeba_folder
    path = root / "img_align_celeba" / "000004.jpg"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"000004.jpg: wanted an image, got a file that Pillow refuses .*truncated"):
        load(root, "test")


@pytest.mark.parametrize(
    "line", ["000001.jpg", "000001.jpg 3", "000001.jpg train", "../secret.jpg 0", "/etc/secret.jpg 0", "a b 0", ".. 0"]
)
def test_bad_list(celeba_folder: Made, line: str) -> None:
    root, _ = celeba_folder
    (root / "list_eval_partition.txt").write_text(f"000001.jpg 0\n\n{line}\n")
    with pytest.raises(DataError, match=r"wanted lines like '000001.jpg 0', got .* in line 3"):
        load(root)


def test_a_list_with_a_byte_order_mark(celeba_folder: Made) -> None:
    root, decoded = celeba_folder
    path = root / "list_eval_partition.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert torch.equal(load(root).pixels, resize(cropped(decoded["train"]), 64))


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_list_in_utf_16(celeba_folder: Made, encoding: str) -> None:
    root, _ = celeba_folder
    (root / "list_eval_partition.txt").write_bytes("\ufeff000001.jpg 0\r\n".encode(encoding))
    with pytest.raises(DataError, match=r"list_eval_partition.txt: wanted text in UTF-8, got UTF-16; save it as UTF-8"):
        load(root)


@pytest.mark.parametrize("around", ["a", "a/b", "a/b/c"])
def test_folders_around_it(celeba_folder: Made, tmp_path: Path, around: str) -> None:
    root, decoded = celeba_folder
    (tmp_path / "up" / around).parent.mkdir(parents=True)
    root.rename(tmp_path / "up" / around)
    assert torch.equal(load(tmp_path / "up", "test").pixels, resize(cropped(decoded["test"]), 64))


def test_split_without_images(celeba_folder: Made) -> None:
    root, _ = celeba_folder
    (root / "list_eval_partition.txt").write_text("000001.jpg 0\n")
    with pytest.raises(DataError, match=r"wanted images of the test split \(number 2\), got none"):
        load(root, "test")


def test_huge_list(celeba_folder: Made) -> None:
    root, _ = celeba_folder
    with (root / "list_eval_partition.txt").open("wb") as stream:
        stream.truncate(2**26 + 1)
    with pytest.raises(DataError, match="wanted at most 67108864 bytes, got 67108865"):
        load(root)
