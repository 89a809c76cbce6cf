"""Makers of tiny files in every layout. Each returns the pixels that it wrote."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def random_pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def python2_batch(data: np.ndarray) -> bytes:
    """A CIFAR-10 batch like those of Python 2's cPickle and NumPy, in protocol 2, opcode by opcode."""
    rows, columns = data.shape
    names = b"".join(b"U\x08" + f"im_{i:05d}".encode() + b"q" + bytes([40 + i]) for i in range(rows))
    raw = data.tobytes()
    return (
        b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03"
        b"U\x06labelsq\x04]q\x05(" + b"".join(b"K" + bytes([i % 10]) for i in range(rows)) + b"e"
        b"U\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09"
        b"(K\x01" + b"M" + struct.pack("<H", rows) + b"M" + struct.pack("<H", columns) + b"\x86"
        b"cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
        b"U\x09filenamesq\x0c](" + names + b"eu."
    )


@pytest.fixture
def idx_folder(tmp_path: Path) -> Callable[..., tuple[Path, dict[str, np.ndarray]]]:
    def make(name: str = "MNIST/raw", compressed: bool = False) -> tuple[Path, dict[str, np.ndarray]]:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        arrays = {"train": random_pixels(6, 5, 4), "test": random_pixels(3, 5, 4, seed=1)}
        for split, prefix in (("train", "train"), ("test", "t10k")):
            content = idx_bytes(arrays[split])
            path = folder / f"{prefix}-images-idx3-ubyte"
            if compressed:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content))
            else:
                path.write_bytes(content)
        return folder, arrays

    return make


@pytest.fixture
def cifar_folder(tmp_path: Path) -> Callable[..., tuple[Path, dict[str, np.ndarray]]]:
    def make(binary: bool = False) -> tuple[Path, dict[str, np.ndarray]]:
        folder = tmp_path / ("cifar-10-batches-bin" if binary else "cifar-10-batches-py")
        folder.mkdir()
        batches = {f"data_batch_{i}": random_pixels(2, 3072, seed=i) for i in range(1, 6)}
        batches["test_batch"] = random_pixels(3, 3072, seed=6)
        for stem, data in batches.items():
            if binary:
                labels = np.full((len(data), 1), 9, dtype=np.uint8)
                (folder / f"{stem}.bin").write_bytes(np.concatenate([labels, data], axis=1).tobytes())
            else:
                (folder / stem).write_bytes(python2_batch(data))
        train = np.concatenate([batches[f"data_batch_{i}"] for i in range(1, 6)])
        return folder, {
            "train": train.reshape(-1, 3, 32, 32),
            "test": batches["test_batch"].reshape(-1, 3, 32, 32),
        }

    return make


@pytest.fixture
def celeba_folder(tmp_path: Path) -> tuple[Path, dict[str, list[np.ndarray]]]:
    """Images as Pillow decodes them, [218, 178, 3], by split."""
    root = tmp_path / "celeba"
    (root / "img_align_celeba").mkdir(parents=True)
    decoded: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    lines = []
    for number, split in enumerate(["train", "train", "validation", "test", "train"], start=1):
        path = root / "img_align_celeba" / f"{number:06d}.jpg"
        smooth = Image.fromarray(random_pixels(8, 7, 3, seed=number)).resize((178, 218), Image.Resampling.BICUBIC)
        smooth.save(path, quality=95)
        with Image.open(path) as image:
            decoded[split].append(np.array(image))
        lines.append(f"{path.name} {['train', 'validation', 'test'].index(split)}\n")
    (root / "list_eval_partition.txt").write_text("".join(lines))
    return root, decoded


@pytest.fixture
def save_image(tmp_path: Path) -> Callable[..., np.ndarray]:
    def save(name: str, *shape: int, seed: int = 0) -> np.ndarray:
        pixels = random_pixels(*shape, seed=seed)
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return pixels

    return save
