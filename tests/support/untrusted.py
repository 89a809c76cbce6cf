"""Every reader of untrusted files, with sound files to start from.

A reader may refuse a file by the errors that it documents. Any other error, or a crash, is a bug.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from pnf import fast
from pnf.data import DataError, load
from pnf.flows.saving import CONFIG_NAME, WEIGHTS_NAME
from pnf.training import RunConfig, RunError, preset_config
from pnf.training.checkpoints import AtomicCheckpointIO


class Reader(NamedTuple):
    """One reader.

    Attributes:
        seeds: the contents of sound files.
        name: the name of the file, alone in a folder.
        read: reads the folder.
        refusals: the errors that the reader documents.
    """

    seeds: Sequence[bytes]
    name: str
    read: Callable[[Path], object]
    refusals: tuple[type[Exception], ...] = (DataError,)

    def try_on(self, content: bytes, folder: Path) -> bool:
        """Read a content. Return False if it is refused."""
        (folder / self.name).write_bytes(content)
        try:
            self.read(folder)
        except self.refusals as error:
            # The message is one line, whatever the file contains.
            if isinstance(error, DataError | RunError) and len(str(error).splitlines()) != 1:
                raise AssertionError("a refusal of several lines") from error
            return False
        return True


def _flow() -> fast.ProgressiveFlow:
    torch.manual_seed(0)
    return fast.ProgressiveFlow((1, 4, 4), 1, coupling="dense", hidden=2, blocks=1, num_couplings=1)


def _saved(compress: bool) -> bytes:
    content = io.BytesIO()
    images = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 1, 4, 4)
    (np.savez_compressed if compress else np.savez)(content, train=images, test=images)
    return content.getvalue()


def _array() -> bytes:
    content = io.BytesIO()
    np.save(content, np.arange(20 * 4 * 4, dtype=np.uint8).reshape(20, 4, 4))
    return content.getvalue()


def _batch(protocol: int) -> bytes:
    return pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1, 2]}, protocol)


def _picture(kind: str) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(content, kind)
    return content.getvalue()


def _checkpoint() -> bytes:
    content = io.BytesIO()
    torch.save({"name": "f0", "step": 1, "averaged": {"w": torch.zeros(3)}}, content)
    return content.getvalue()


def _partition(folder: Path) -> object:
    """Load the images of a list. The folder holds two."""
    images = folder / "img_align_celeba"
    if not images.exists():
        images.mkdir()
        for name in ("a.jpg", "b.jpg"):
            Image.new("RGB", (178, 218)).save(images / name)
    return load(folder, size=8)


def _with(name: str, content: bytes) -> Callable[[Path], object]:
    """Load a flow whose other file is sound."""

    def read(folder: Path) -> object:
        path = folder / name
        if not path.exists():
            path.write_bytes(content)
        return fast.ProgressiveFlow.from_pretrained(folder)

    return read


_IDX = struct.pack(">BBBB3I", 0, 0, 8, 3, 2, 4, 4) + bytes(32)
_CONFIG = json.dumps({"model": "ProgressiveFlow", **_flow().config()}).encode()
_WEIGHTS = save(_flow().state_dict())

READERS = {
    "cifar": Reader([_batch(2), _batch(4)], "test_batch", lambda folder: load(folder, "test")),
    "idx": Reader([_IDX], "train-images-idx3-ubyte", load),
    "idx.gz": Reader([gzip.compress(_IDX, mtime=0)], "train-images-idx3-ubyte.gz", load),
    "npz": Reader([_saved(False), _saved(True)], "images.npz", lambda folder: load(folder / "images.npz")),
    "npy": Reader([_array()], "images.npy", lambda folder: load(folder / "images.npy")),
    "partition": Reader([b"a.jpg 0\nb.jpg 1\n", b"a.jpg 0\nb.jpg 0\n"], "list_eval_partition.txt", _partition),
    "image": Reader([_picture(kind) for kind in ("PNG", "JPEG", "BMP", "TIFF", "PPM")], "a.png", load),
    "config": Reader([_CONFIG], CONFIG_NAME, _with(WEIGHTS_NAME, _WEIGHTS), (ValueError,)),
    "safetensors": Reader([_WEIGHTS], WEIGHTS_NAME, _with(CONFIG_NAME, _CONFIG), (ValueError,)),
    "settings": Reader([preset_config("demo").to_json().encode()], "run.json", RunConfig.load, (RunError,)),
    "checkpoint": Reader(
        [_checkpoint()],
        "f0.ckpt",
        lambda folder: AtomicCheckpointIO().load_checkpoint(folder / "f0.ckpt"),
        (RunError,),
    ),
}


def bomb() -> bytes:
    """An ``.npz`` of a few kilobytes that declares gigabytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "|u1", "fortran_order": False, "shape": (2**20, 1, 64, 64)}
        )
        archive.writestr("train.npy", header.getvalue() + bytes(2**20))
    return content.getvalue()
