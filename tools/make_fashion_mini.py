"""Makes pnf/data/fashion_mini.npz from the original files of Fashion-MNIST.

    python tools/make_fashion_mini.py RAW_DIR OUT

RAW_DIR holds the four idx files (plain or .gz). The first 200 training and the first 50 test images of each class are
kept with their labels, in their original order. The same input and zlib give the same bytes.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np

from pnf.data.idx import read_idx

CLASSES = 10
PER_CLASS = {"train": 200, "test": 50}
_PREFIX = {"train": "train", "test": "t10k"}


def select(raw: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The first images of each class of an official split, uint8 [N, 1, 28, 28], and their labels, uint8 [N].

    Raises:
        FileNotFoundError: An idx file is missing.
        ValueError: A class has too few images, or (as ``DataError``) a file is broken.
    """
    images = read_idx(_file(raw, f"{_PREFIX[split]}-images-idx3-ubyte"), ndim=3)
    labels = read_idx(_file(raw, f"{_PREFIX[split]}-labels-idx1-ubyte"), ndim=1)
    per_class = [np.flatnonzero(labels == label)[: PER_CLASS[split]] for label in range(CLASSES)]
    if any(len(rows) < PER_CLASS[split] for rows in per_class):
        raise ValueError(f"{raw}: wanted {PER_CLASS[split]} {split} images of each class, got fewer")
    rows = np.sort(np.concatenate(per_class))
    return images[rows, None], labels[rows]


def write(arrays: dict[str, np.ndarray], out: Path) -> None:
    """Writes an .npz as ``np.savez_compressed`` does, but with fixed timestamps and the densest compression."""
    with zipfile.ZipFile(out, "w") as archive:
        for key, array in arrays.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{key}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            # The default depends on the system.
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, buffer.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def _file(raw: Path, name: str) -> Path:
    for path in (raw / name, raw / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{raw}: wanted {name} or {name}.gz, got neither")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description="Makes fashion_mini.npz from the original Fashion-MNIST files.")
    parser.add_argument("raw", type=Path, help="the folder with the four idx files")
    parser.add_argument("out", type=Path, help="the .npz to write")
    options = parser.parse_args()
    arrays = {}
    for split in PER_CLASS:
        arrays[split], arrays[f"y_{split}"] = select(options.raw, split)
    write(arrays, options.out)


if __name__ == "__main__":
    main()
