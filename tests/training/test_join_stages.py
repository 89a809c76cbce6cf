"""Stages that were trained in separate folders, joined into one run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pnf.data import Images
from pnf.training import RunConfig, RunError, join, train

Make = Callable[..., RunConfig]


@pytest.fixture
def apart(tmp_path: Path, tiny: Make, images: Images) -> dict[str, Path]:
    """The stages, each in a separate folder."""
    folders = {name: tmp_path / name for name in ("f0", "f1x", "f1y")}
    for name, folder in folders.items():
        assert train(tiny(), images, folder, stages=[name], accelerator="cpu") != []
    return folders


def test_joined_stages_are_the_run_that_trained_them_together(
    tmp_path: Path, apart: dict[str, Path], finished: Callable[..., Path], results: Callable[[Path], Any]
) -> None:
    assert join(list(apart.values()), tmp_path / "joined") == []
    assert results(tmp_path / "joined") == results(finished())


def test_what_is_missing_is_told_and_can_be_trained(
    tmp_path: Path,
    apart: dict[str, Path],
    tiny: Make,
    images: Images,
    finished: Callable[..., Path],
    results: Callable[[Path], Any],
) -> None:
    joined = tmp_path / "joined"
    assert join([apart["f0"], apart["f1y"]], joined) == ["f1x"]
    assert not (joined / "model").exists()
    assert train(tiny(), images, joined, resume=True, accelerator="cpu") == []
    assert results(joined) == results(finished())


def test_stages_of_machines_with_the_data_in_other_places(
    tmp_path: Path, tiny: Make, images: Images, finished: Callable[..., Path], results: Callable[[Path], Any]
) -> None:
    for name, place in (("f0", "/home/a/set.npz"), ("f1x", "/data/set.npz")):
        train(tiny(data=place), images, tmp_path / name, stages=[name], accelerator="cpu")
    joined = tmp_path / "joined"
    assert join([tmp_path / "f0", tmp_path / "f1x"], joined) == ["f1y"]
    assert train(tiny(data="/home/a/set.npz"), images, joined, resume=True, accelerator="cpu") == []
    model = "model/model.safetensors"
    assert results(joined)[model] == results(finished())[model]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"lr": 0.5}, "has another lr than"), ({"limit": 100, "hidden": 9}, "has another hidden, limit than")],
)
def test_other_settings(
    tmp_path: Path, apart: dict[str, Path], tiny: Make, settings: dict[str, Any], message: str
) -> None:
    (tmp_path / "other").mkdir()
    tiny(**settings).save(tmp_path / "other")
    with pytest.raises(RunError, match=message):
        join([apart["f0"], tmp_path / "other"], tmp_path / "joined")
    assert not (tmp_path / "joined").exists()


def test_other_images_damage_and_a_folder_in_use(tmp_path: Path, apart: dict[str, Path]) -> None:
    runs = list(apart.values())
    with pytest.raises(RunError, match="f1x holds a run already: choose another --out"):
        join(runs, apart["f1x"])
    data = (apart["f1x"] / "data.json").read_text()
    (apart["f1x"] / "data.json").write_text(data.replace('"images": 200', '"images": 201'))
    with pytest.raises(RunError, match=r"f1x was trained on other images than .*f0: only stages of one flow can be"):
        join(runs, tmp_path / "joined")
    (apart["f1x"] / "data.json").write_text(data[:20])
    with pytest.raises(RunError, match=r"data\.json is missing or damaged: restore it"):
        join(runs, tmp_path / "joined")
    (apart["f1x"] / "data.json").write_text(data)
    shutil.copy(apart["f1x"] / "checkpoints/f1x.ckpt", apart["f0"] / "checkpoints/f1y.ckpt")
    with pytest.raises(RunError, match=r"f1y\.ckpt is not of this run: remove it, or restore it"):
        join(runs, tmp_path / "joined")
    assert not (tmp_path / "joined").exists()
