"""The command in this process, and a folder with a tiny trained ProgressiveFlow and its baseline."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from pnf.cli import main

# GNU readline, which pytest loads, sets a width that child processes inherit, and consoles keep the first width.
os.environ.pop("COLUMNS", None)

_TINY = {
    "size": 16,
    "limit": 200,
    "levels": 1,
    "hidden": 8,
    "blocks": 1,
    "num-couplings": 2,
    "steps": 10,
    "batch-size": 16,
    "warmup": 3,
    "validation": 20,
    "validate-every": 5,
    "checkpoint-every": 5,
    "log-every": 2,
}


@dataclass(frozen=True)
class Result:
    """The exit status of a command, and its output."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def pnf() -> Callable[..., Result]:
    """Runs a command through the entry point, and lets its exceptions pass."""

    def run(*args: object) -> Result:
        argv = ["pnf", *(str(arg) for arg in args)]
        with (
            redirect_stdout(io.StringIO()) as out,
            redirect_stderr(io.StringIO()) as err,
            patch.object(sys, "argv", argv),
            patch.dict("os.environ", COLUMNS="200"),
            pytest.raises(SystemExit) as stop,
        ):
            main()
        assert isinstance(stop.value.code, int)
        return Result(stop.value.code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="package")
def tiny() -> Callable[..., list[str]]:
    """The arguments that train a tiny run in a folder."""

    def make(folder: Path | None, **settings: object) -> list[str]:
        options = _TINY | {key.replace("_", "-"): value for key, value in settings.items()}
        out = [] if folder is None else ["--out", str(folder)]
        return ["train", "demo", "--device", "cpu", *out, *(f"--{key}={value}" for key, value in options.items())]

    return make


@pytest.fixture(scope="package")
def demo(tmp_path_factory: pytest.TempPathFactory, pnf: Callable[..., Result], tiny: Callable[..., list[str]]) -> Path:
    """A folder of two runs, ``progressive-bounded`` and ``realnvp``. Tests must not change it."""
    folder = tmp_path_factory.mktemp("runs") / "demo"
    for args in (
        tiny(folder / "progressive-bounded"),
        tiny(folder / "realnvp", model="realnvp"),
    ):
        result = pnf(*args)
        assert result.code == 0, result.err
    return folder


@pytest.fixture
def progressive(demo: Path, tmp_path: Path) -> Path:
    """A copy of the trained ProgressiveFlow: stages of 8 x 8, 8 x 16 and 16 x 16 grey pixels."""
    return shutil.copytree(demo / "progressive-bounded", tmp_path / "progressive-bounded")


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., Path]:
    """Makes a PNG of smooth noise from a height, a width and optionally channels."""

    def make(name: str, *shape: int) -> Path:
        noise = np.random.default_rng(0).uniform(40, 210, shape)
        path = tmp_path / name
        Image.fromarray(noise.astype(np.uint8)).save(path)
        return path

    return make


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A data set of RGB images."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 3, 16, 16), dtype=np.uint8)
    path = tmp_path / "colours.npz"
    np.savez(path, train=pixels[:40], test=pixels[40:])
    return path
