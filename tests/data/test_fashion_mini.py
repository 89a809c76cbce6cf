"""The bundled set and the script that makes it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import struct
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pnf.data import DataError, bundled, load

ROOT = Path(__file__).parents[2]

# SHA-256 of the pixels.
DIGESTS = {
    "train": "6c59094797e4bc9e7232843d7bf5085c15b67423354dab959246e3e5faa16517",
    "test": "8290027af94aca7e3fc849f33dfc396c78f36427f84a8cde695ad92490d3e4f1",
}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_fashion_mini", ROOT / "tools" / "make_fashion_mini.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_originals(folder: Path, per_class: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(0)
    written = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        labels = generator.permutation(np.repeat(np.arange(10, dtype=np.uint8), per_class))
        images = generator.integers(0, 256, (len(labels), 3, 2), dtype=np.uint8)
        for name, array in (("labels-idx1", labels), ("images-idx3", images)):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (folder / f"{prefix}-{name}-ubyte").write_bytes(header + array.tobytes())
        written[split] = (images, labels)
    return written


@pytest.mark.parametrize(("split", "count"), [("train", 2000), ("test", 500)])
def test_bundled_set(split: str, count: int, tool: ModuleType) -> None:
    images = load("fashion-mini", split)
    assert (images.name, images.split, images.shape, len(images)) == ("fashion-mini", split, (1, 28, 28), count)
    assert hashlib.sha256(images.pixels.numpy().tobytes()).hexdigest() == DIGESTS[split]
    originals = os.environ.get("PNF_FASHION_MNIST_RAW")
    if originals:
        assert np.array_equal(tool.select(Path(originals), split), images.pixels.numpy())


def test_bundled_file_is_small_and_has_its_licence() -> None:
    assert bundled().stat().st_size < 2_000_000
    licence = bundled().with_name("FASHION_MNIST_LICENSE").read_text()
    assert "Copyright (c) 2017 Zalando SE" in licence


def test_no_validation_split() -> None:
    with pytest.raises(DataError, match="wanted the validation split, got a set that has only train, test"):
        load("fashion-mini", "validation")


def test_tool_takes_the_first_of_each_class(tmp_path: Path, tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    originals = write_originals(tmp_path, per_class=210)
    for name in ("one.npz", "two.npz"):
        monkeypatch.setattr(sys, "argv", ["make_fashion_mini.py", str(tmp_path), str(tmp_path / name)])
        tool.main()
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with np.load(tmp_path / "one.npz") as made:
        for split, per_class in (("train", 200), ("test", 50)):
            images, labels = originals[split]
            seen = [0] * 10
            wanted = []
            for image, label in zip(images, labels, strict=True):
                seen[label] += 1
                if seen[label] <= per_class:
                    wanted.append(image)
            assert np.array_equal(made[split][:, 0], np.stack(wanted))


def test_tool_errors(tmp_path: Path, tool: ModuleType) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"wanted train-images-idx3-ubyte or train-images-idx3-ubyte.gz, got neither"
    ):
        tool.select(tmp_path, "train")
    write_originals(tmp_path, per_class=60)
    with pytest.raises(ValueError, match="wanted 200 train images of each class, got fewer"):
        tool.select(tmp_path, "train")


@pytest.mark.parametrize("pattern", ["fashion_mini.npz", "FASHION_MNIST_LICENSE"])
def test_package_holds_it(pattern: str) -> None:
    assert bundled().with_name(pattern).is_file()
