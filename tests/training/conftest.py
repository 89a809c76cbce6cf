"""Runs that take about a second: 200 images of 8 x 8 pixels, three stages, narrow networks."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric

from pnf.data import Images, load
from pnf.training import RunConfig, preset_config, train

_TINY = {
    "size": 8,
    "limit": 200,
    "levels": 1,
    "hidden": 8,
    "blocks": 1,
    "num_couplings": 2,
    "steps": 12,
    "batch_size": 16,
    "warmup": 3,
    "ema": 0.9,
    "validation": 20,
    "validate_every": 6,
    "checkpoint_every": 4,
    "log_every": 2,
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def tiny() -> Callable[..., RunConfig]:
    def make(**overrides: object) -> RunConfig:
        return preset_config("demo", **(_TINY | overrides))

    return make


@pytest.fixture(scope="package")
def images() -> Images:
    return load("fashion-mini", "train", 8, limit=200)


@pytest.fixture
def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.fixture(scope="package")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., RunConfig], images: Images
) -> Callable[..., Path]:
    """The folder of an undisturbed run with these settings, trained once; not to be changed."""
    folders: dict[RunConfig, Path] = {}

    def make(**overrides: object) -> Path:
        config = tiny(**overrides)
        if config not in folders:
            folders[config] = tmp_path_factory.mktemp("finished")
            assert train(config, images, folders[config], accelerator="cpu") == []
        return folders[config]

    return make


@pytest.fixture(scope="package")
def kill_and_resume() -> ModuleType:
    """The module of that name in this folder, which is a program too."""
    path = Path(__file__).with_name("kill_and_resume.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="package")
def pnf(kill_and_resume: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Starts the command as a process of its own, without the seconds that imports take."""
    with kill_and_resume.Pnf(tmp_path_factory.mktemp("pnf")) as pnf:
        yield pnf


@pytest.fixture(scope="package")
def results(kill_and_resume: ModuleType) -> Callable[[Path], dict[str, object]]:
    """What is in the model and in the checkpoints of a run, to the bit."""
    read: Callable[[Path], dict[str, object]] = kill_and_resume.results
    return read
