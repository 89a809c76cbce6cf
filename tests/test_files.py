"""Atomic writing of files, also on file systems with fewer features than a local disk."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pnf import figures
from pnf.files import (
    LARGEST_JSON,
    json_bytes,
    read_json,
    remove_unfinished,
    replace_file,
    replace_files,
    replace_json,
)
from pnf.reference import RealNVP

UNSUPPORTED = [errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.ENOSYS]


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def fails(number: int, when: Callable[[int], bool] = lambda _: True) -> Callable[[int], None]:
    """An ``os.fsync`` that fails on some handles."""
    real = os.fsync

    def fsync(handle: int) -> None:
        if when(handle):
            raise OSError(number, os.strerror(number))
        real(handle)

    return fsync


def is_folder(handle: int) -> bool:
    return stat.S_ISDIR(os.fstat(handle).st_mode)


@pytest.mark.parametrize(("mask", "expected"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o027, 0o640)])
def test_new_files_follow_the_umask(tmp_path: Path, mask: int, expected: int) -> None:
    with umask(mask):
        replace_file(tmp_path / "file", b"new")
        RealNVP((4,), coupling="dense", hidden=2, blocks=1, num_couplings=1).save_pretrained(tmp_path / "model")
        figures.save(figures.image_grid(torch.rand(1, 1, 4, 4)), tmp_path / "grid.png")
    for path in ("file", "model/config.json", "model/model.safetensors", "grid.png"):
        assert mode(tmp_path / path) == expected


@pytest.mark.parametrize("before", [0o600, 0o664, 0o640])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path, before: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(before)
    with umask(0o022):
        replace_file(path, b"new")
    assert (path.read_bytes(), mode(path)) == (b"new", before)


def test_the_umask_of_the_process_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # All threads share the umask, so files of another thread could get a wrong mode.
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("the umask was changed"))
    threads = [threading.Thread(target=replace_file, args=(tmp_path / f"{i}", b"x" * i)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {path.name: len(path.read_bytes()) for path in tmp_path.iterdir()} == {f"{i}": i for i in range(8)}


@pytest.mark.parametrize("number", [*UNSUPPORTED, errno.EACCES])
def test_a_file_system_without_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o600)
    monkeypatch.setattr(os, "chmod", refuse)
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("number", UNSUPPORTED)
@pytest.mark.parametrize("when", [is_folder, lambda _: True], ids=["folder", "everything"])
def test_a_file_system_that_cannot_synchronise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, when: Callable[[int], bool]
) -> None:
    monkeypatch.setattr(os, "fsync", fails(number, when))
    replace_file(tmp_path / "file", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"new")]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fails(number))
    with pytest.raises(OSError, match=os.strerror(number)) as told:
        replace_file(path, b"new")
    assert (told.value.errno, told.value.filename, told.value.filename2) == (number, str(path), None)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_folder_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(os, "fsync", fails(number, is_folder))
    with pytest.raises(OSError, match=os.strerror(number)):
        replace_file(tmp_path / "file", b"new")


def test_a_folder_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: object, flags: int, *more: int) -> int:
        if Path(str(path)).is_dir():
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(str(path), flags, *more)

    monkeypatch.setattr(os, "open", refuse)
    replace_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize(
    "name", ["x" * 255, "x" * 250, "é" * 127, "x" * 64, "x" * 65, "[ab]*?", "line\nbreak", "caf\udce9"]
)
def test_names_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / name
    replace_file(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("killed"))
    with monkeypatch.context() as patch:
        # A kill removes nothing.
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(pytest.fail.Exception):
            replace_file(path, b"new")
    assert len(list(tmp_path.iterdir())) == 2
    other = tmp_path / ".other.ab12"
    other.touch()
    remove_unfinished(path)
    assert {each.name for each in tmp_path.iterdir()} == {name, other.name}
    assert path.read_bytes() == b"old"


def test_the_name_of_the_temporary_file_is_no_longer_than_a_long_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # eCryptfs allows names of 143 bytes.
    seen: list[Path] = []
    monkeypatch.setattr(os, "replace", lambda source, _: seen.append(Path(source)))
    for length in range(1, 256):
        replace_file(tmp_path / ("x" * length), b"")
    assert all(len(path.name) <= max(length, 74) for length, path in enumerate(seen, 1))


def test_nothing_unfinished_is_looked_for_in_a_folder_that_is_missing(tmp_path: Path) -> None:
    remove_unfinished(tmp_path / "missing" / "file")


def test_files_that_belong_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    replace_files({a: b"old", b: b"old"})
    calls: list[int] = []
    monkeypatch.setattr(os, "fsync", fails(errno.ENOSPC, lambda handle: bool(calls.append(handle)) or len(calls) == 2))
    with pytest.raises(OSError, match=f"No space left on device: '{b}'"):
        replace_files({a: b"new", b: b"new"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old", "b": b"old"}


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    replace_json(path, {"a": [1, 0.1]})
    assert path.read_bytes() == json_bytes({"a": [1, 0.1]})
    assert read_json(path) == {"a": [1, 0.1]}
    with pytest.raises(TypeError):
        replace_json(path, {"a": object()})
    assert read_json(path) == {"a": [1, 0.1]}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"[" * 10**5, "nested too deep"), (b" " * (LARGEST_JSON + 1), "more than 1048576 bytes"), (b"{", "Expecting")],
    ids=["deep", "large", "damaged"],
)
def test_hostile_json(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "file.json")
