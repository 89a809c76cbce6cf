"""Files that are broken at random or hostile. ``python tests/fuzz_readers.py`` tries many more, guided by coverage."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
from untrusted import READERS, bomb

from pnf.data import DataError, load


def mutate(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) + 1)
        kind = chance.randrange(4)
        if kind == 0:
            del changed[at : at + chance.randint(1, 8)]
        elif kind == 1:
            changed[at:at] = chance.randbytes(chance.randint(1, 8))
        elif changed:
            changed[at % len(changed)] = chance.choice([0, 1, 127, 128, 255, chance.randrange(256)])
    return bytes(changed)


@pytest.mark.parametrize("name", READERS)
def test_files_broken_at_random_are_read_or_refused(name: str, tmp_path: Path) -> None:
    reader, chance = READERS[name], random.Random(0)
    for seed in reader.seeds:
        assert reader.try_on(seed, tmp_path), "a seed is no sound file"
        for _ in range(100):
            reader.try_on(mutate(seed, chance), tmp_path)


def test_an_archive_that_declares_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    path.write_bytes(bomb())
    with pytest.raises(DataError, match=r"bomb\.npz\[train\]: wanted 4294967296 bytes for "):
        load(path)


def test_a_name_of_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "lines.npz"
    np.savez(path, **{"two\nlines": np.zeros(3)})
    with pytest.raises(DataError, match=r"lines\.npz\['two\\nlines'\]: wanted a uint8 array"):
        load(path)


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "name.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tréin.npy", b"")
    content = path.read_bytes()
    path.write_bytes(content.replace("é".encode(), b"\x80\x80"))
    with pytest.raises(DataError, match=r"name\.npz: wanted a whole \.npz file, got a broken one"):
        load(path)
