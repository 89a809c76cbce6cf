from __future__ import annotations

import builtins
import io
import os
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pnf.data import DataError, load

Maker = Callable[..., tuple[Path, dict[str, np.ndarray]]]


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("above", [False, True])
def test_both_splits(cifar_folder: Maker, binary: bool, above: bool) -> None:
    folder, arrays = cifar_folder(binary)
    for split, array in arrays.items():
        images = load(folder.parent if above else folder, split)
        assert np.array_equal(images.pixels.numpy(), array)
        assert (images.name, images.split, images.shape) == ("cifar10", split, (3, 32, 32))


def test_fixture_is_what_pickle_reads(cifar_folder: Maker) -> None:
    folder, arrays = cifar_folder()
    batch = pickle.loads((folder / "test_batch").read_bytes(), encoding="bytes")
    assert set(batch) == {b"batch_label", b"labels", b"data", b"filenames"}
    assert np.array_equal(batch[b"data"].reshape(-1, 3, 32, 32), arrays["test"])


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_batches_saved_again_by_python_3(tmp_path: Path, protocol: int, order: Any) -> None:
    data = np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8)
    saved = pickle.dumps({"data": np.asarray(data, order=order), "labels": [1, 2, 3]}, protocol=protocol)
    (tmp_path / "test_batch").write_bytes(saved)
    assert np.array_equal(load(tmp_path, "test").pixels.numpy().reshape(3, 3072), data)


@pytest.mark.parametrize("limit", [1, 3, 4, 100])
def test_limit(cifar_folder: Maker, limit: int) -> None:
    folder, arrays = cifar_folder()
    assert np.array_equal(load(folder, limit=limit).pixels.numpy(), arrays["train"][:limit])


def test_pixels_can_be_written(cifar_folder: Maker) -> None:
    pixels = load(cifar_folder(binary=True)[0], "test").pixels
    assert pixels.numpy().flags.writeable
    assert pixels.is_contiguous()


def test_missing_batch(cifar_folder: Maker) -> None:
    folder, _ = cifar_folder()
    (folder / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"wanted data_batch_3 or data_batch_3.bin, got no such file; unpack"):
        load(folder)


def test_no_validation_split(cifar_folder: Maker) -> None:
    with pytest.raises(DataError, match="wanted the validation split, got a set that has only train, test"):
        load(cifar_folder()[0], "validation")


def test_too_large_file(tmp_path: Path) -> None:
    with (tmp_path / "test_batch").open("wb") as stream:
        stream.truncate(2**28 + 1)
    with pytest.raises(DataError, match="wanted at most 268435456 bytes, got 268435457"):
        load(tmp_path, "test")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "wanted records of 3073 bytes, got 0 bytes in all"),
        (bytes(3072), "wanted records of 3073 bytes, got 3072 bytes in all"),
        (b"\x0a" + bytes(3072), "wanted labels below 10, got 10: not CIFAR-10"),
    ],
)
def test_bad_binary(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "test_batch.bin").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path, "test")


@pytest.mark.parametrize(
    "batch",
    [
        [1, 2, 3],
        {"labels": [1]},
        {"data": b"bytes"},
        {"data": np.zeros((2, 3071), dtype=np.uint8)},
        {"data": np.zeros((0, 3072), dtype=np.uint8)},
        {"data": np.zeros((2, 3072), dtype=np.float32)},
        {"data": np.zeros((2, 3072), dtype=np.int8)},
    ],
)
def test_foreign_pickle(tmp_path: Path, batch: Any) -> None:
    path = tmp_path / "test_batch"
    path.write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(DataError, match=re.escape(str(path)) + ": wanted a .*; unpack the official archive again"):
        load(tmp_path, "test")


@pytest.mark.parametrize("keep", [0, 1, 20, 150, 1000, -1])
def test_truncated_pickle(cifar_folder: Maker, keep: int) -> None:
    path = cifar_folder()[0] / "test_batch"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="wanted a CIFAR-10 batch, got a pickle that is refused"):
        load(path.parent, "test")


class _Call:
    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


def _attacks(marker: Path) -> dict[str, Any]:
    python = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    touch = _Call(os.system, f"touch '{marker}'")
    nested = np.empty((1, 1), dtype=object)
    nested[0, 0] = touch
    reconstruct = np.zeros(1).__reduce__()[0]
    return {
        "system": touch,
        "in the data": {"data": touch},
        "eval": _Call(eval, python),
        "exec": _Call(exec, python),
        "getattr": _Call(getattr, _Call(__import__, "os"), "system"),
        "object array": {"data": nested},
        "array state": {
            "data": _Call(reconstruct, np.ndarray, (0,), b"b", state=(1, (1,), np.dtype("O"), False, [touch]))
        },
        "dtype state": {"data": _Call(np.dtype, "V8", state=(3, "|", None, touch, None, 8, 1, 16))},
        "NumPy loader": _Call(np.load, str(marker)),
    }


_NAMES = sorted(_attacks(Path("unused")))


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("name", _NAMES)
def test_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, protocol: int) -> None:
    marker = tmp_path / "executed"
    (tmp_path / "test_batch").write_bytes(pickle.dumps(_attacks(marker)[name], protocol=protocol))

    def reached(*_: Any, **__: Any) -> None:
        marker.touch()

    monkeypatch.setattr(np, "load", reached)
    monkeypatch.setattr(builtins, "eval", reached)
    with pytest.raises(
        DataError, match=r"wanted a CIFAR-10 batch, got a pickle that is refused|got nothing of the kind"
    ):
        load(tmp_path, "test")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["system", "eval", "object array", "array state"])
def test_the_attacks_would_work_on_a_free_unpickler(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "executed"
    pickle.loads(pickle.dumps(_attacks(marker)[name], protocol=2))
    assert marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\x80\x02cposix\nsystem\nU\x01x\x85R.", id="system"),
        pytest.param(b"\x80\x02c_codecs\nencode\nU\x01xU\x03hex\x86R.", id="another codec"),
        pytest.param(b"\x80\x02cnumpy\nndarray\n(J\xff\xff\xff\x7f\x85tR.", id="allocation"),
        pytest.param(b"\x80\x02cnumpy\nndarray\n}U\x05arrayK\x01sb.", id="attribute of a stand-in"),
        pytest.param(b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nN}U\x01xK\x01s\x86b.", id="slot of a stand-in"),
        pytest.param(b"\x80\x02]r" + struct.pack("<I", 2**32 - 2) + b".", id="memo bomb"),
        pytest.param(b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.", id="declared bytes"),
        pytest.param(b"\x80\x02T" + struct.pack("<i", 2**31 - 1) + b"x.", id="declared string"),
        pytest.param(b"\x80\x02U\x01xQ.", id="persistent id"),
        pytest.param(b"\x80\x02\x82\x01.", id="extension"),
        pytest.param(b"(ios\nsystem\n.", id="inst"),
        pytest.param(b"\x80\x02c" + b"x" * 10000 + b"\n\x1b[2J\n.", id="long name"),
    ],
)
def test_hostile_opcodes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match=r"wanted a CIFAR-10 batch, got a pickle that is refused") as caught:
        load(tmp_path, "test")
    assert len(str(caught.value)) < 500 + len(str(tmp_path))


def test_a_refused_file_leaves_nothing_behind(cifar_folder: Maker) -> None:
    folder, arrays = cifar_folder()
    good = (folder / "test_batch").read_bytes()
    for target in (b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"c_codecs\nencode\n"):
        hostile = io.BytesIO()
        hostile.write(b"\x80\x02" + target + b"N}U\x08__init__NsU\x0c__setstate__Ns\x86b.")
        (folder / "test_batch").write_bytes(hostile.getvalue())
        with pytest.raises(DataError, match="refused"):
            load(folder, "test")
    (folder / "test_batch").write_bytes(good)
    assert np.array_equal(load(folder, "test").pixels.numpy(), arrays["test"])
