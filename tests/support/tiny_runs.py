"""Runs that take about a second: 200 images of 8 x 8 pixels, three stages, narrow networks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pnf_process
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
    """The folder of an undisturbed run with given settings, trained once. Tests must not change it."""
    folders: dict[RunConfig, Path] = {}

    def make(**overrides: object) -> Path:
        config = tiny(**overrides)
        if config not in folders:
            folders[config] = tmp_path_factory.mktemp("finished")
            assert train(config, images, folders[config], accelerator="cpu") == []
        return folders[config]

    return make


@pytest.fixture(scope="package")
def results() -> Callable[[Path], dict[str, object]]:
    """The contents of the model and of the checkpoints of a run, to the bit."""
    return pnf_process.results
