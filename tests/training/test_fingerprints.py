from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pnf.data import Images
from pnf.training import RunConfig, RunError
from pnf.training.fingerprints import Fingerprint, HeldOut, check_test, check_training, remember

Make = Callable[..., RunConfig]


def images(count: int, size: int = 8, split: str = "test") -> Images:
    pixels = torch.randint(0, 256, (1000, 1, size, size), generator=torch.Generator().manual_seed(0))
    return Images(pixels[:count].byte(), "set", split)


def written(folder: Path, count: int) -> None:
    found = Fingerprint.of(images(5, split="train"))
    found.test = HeldOut.of(images(count))
    found.save(folder)


@pytest.mark.parametrize("count", [1, 2, 3, 64, 100])
def test_the_same_images(tmp_path: Path, tiny: Make, count: int) -> None:
    written(tmp_path, count)
    check_test(tmp_path, tiny(limit=None), images(count))
    check_test(tmp_path, tiny(limit=None), images(count), count + 1)
    for limit in range(1, count + 1):
        check_test(tmp_path, tiny(limit=None), images(limit), limit)


@pytest.mark.parametrize("changed", [0, 5, 63, 98, 99])
def test_another_image(tmp_path: Path, tiny: Make, changed: int) -> None:
    written(tmp_path, 100)
    other = images(100)
    other.pixels[changed, 0, 3, 3] ^= 1
    with pytest.raises(RunError, match=r"was trained beside other test images than those in fashion-mini now: restore"):
        check_test(tmp_path, tiny(limit=None), other)


@pytest.mark.parametrize(
    ("count", "limit", "known_of", "same"),
    [
        (99, None, None, False),
        (99, 100, None, False),
        (99, 99, None, True),
        (101, None, None, False),
        (101, 101, None, False),
        (101, None, 200, False),
        (500, None, 100, True),
        (500, 500, 100, True),
        (99, None, 100, False),
        (60, 60, 100, True),
    ],
)
def test_fewer_or_more(
    tmp_path: Path, tiny: Make, count: int, limit: int | None, known_of: int | None, same: bool
) -> None:
    """The fingerprint covers a hundred images: all of them, or the first if the run has that limit."""
    written(tmp_path, 100)
    if same:
        check_test(tmp_path, tiny(limit=known_of), images(count), limit)
    else:
        with pytest.raises(RunError, match="other test images"):
            check_test(tmp_path, tiny(limit=known_of), images(count), limit)


def test_other_shapes_and_splits(tmp_path: Path, tiny: Make) -> None:
    written(tmp_path, 100)
    with pytest.raises(RunError, match="other test images"):
        check_test(tmp_path, tiny(limit=None), images(100, 4))
    check_training(tmp_path, tiny(), images(5, split="train"))
    with pytest.raises(RunError, match="was trained on other images than those in fashion-mini: restore them, or cho"):
        check_training(tmp_path, tiny(), images(6, split="train"))


def test_a_set_without_test_images(tmp_path: Path, tiny: Make) -> None:
    remember(tmp_path, tiny(data=str(tmp_path)), images(5, split="train"))
    assert json.loads((tmp_path / "data.json").read_text()).keys() == {"images", "shape", "crc32"}
    check_test(tmp_path, tiny(), images(7))


def test_no_memory(tmp_path: Path, tiny: Make) -> None:
    check_test(tmp_path, tiny(), images(7))
    check_training(tmp_path, tiny(), images(7, split="train"))
