"""A run remembers the path and the fingerprint of its data, and each command that reads the data checks them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Pnf = Callable[..., Any]
Tiny = Callable[..., list[str]]

READING_TEST = (
    ["evaluate", "{run}"],
    ["evaluate", "{run}", "--limit", "20"],
    ["check", "{run}"],
    ["upscale", "{run}"],
    ["project", "{run}"],
    ["quality", "{run}", "-n", "8"],
    ["anomaly", "{run}", "fashion-mini", "--limit", "40"],
)
SOME = (["evaluate", "{run}"], ["project", "{run}"], ["train", "--resume", "{run}", "--device", "cpu"])


def pixels(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 16, 16), dtype=np.uint8)


def save(path: Path, train: int = 0, test: int = 1) -> Path:
    np.savez(path, train=pixels(train, 60), test=pixels(test, 40))
    return path


def arguments(args: list[str], run: Path, *more: object) -> list[str]:
    return [*(arg.format(run=run) for arg in args), *map(str, more)]


def nats(run: Path) -> list[float]:
    models = json.loads((run / "metrics.json").read_text())["models"]
    return [model["result"]["nats"] for model in models.values()]


@pytest.fixture
def run(pnf: Pnf, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was trained on ``here/set.npz`` by that relative path, in the working folder ``elsewhere``."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "here").mkdir()
    save(tmp_path / "here" / "set.npz")
    monkeypatch.chdir(tmp_path / "here")
    assert pnf(*tiny(tmp_path / "run", data="set.npz", limit=50, steps=2)).code == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "run"


@pytest.mark.parametrize("spelling", ["set.npz", "./set.npz", "../here/set.npz", "~/set.npz"])
def test_the_path_is_absolute(
    pnf: Pnf, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    (tmp_path / "here").mkdir()
    save(tmp_path / "here" / "set.npz")
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    monkeypatch.chdir(tmp_path / "here")
    assert pnf(*tiny(tmp_path / "run", data=spelling, limit=50, steps=1)).code == 0
    data = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert Path(data).is_absolute()
    assert Path(data).samefile("set.npz")
    # The working folder of the command holds another set of that name.
    save(tmp_path / "set.npz", test=5)
    monkeypatch.chdir(tmp_path)
    assert pnf("evaluate", "run").code == 0
    assert pnf("train", "--resume", "run", "--device", "cpu").code == 0


@pytest.mark.parametrize("args", READING_TEST)
def test_other_test_images(pnf: Pnf, run: Path, tmp_path: Path, args: list[str]) -> None:
    path = tmp_path / "here" / "set.npz"
    assert pnf(*arguments(args, run)).code == 0
    before = sorted(run.rglob("*"))
    save(path, test=2)
    result = pnf(*arguments(args, run))
    assert result.code == 1
    assert result.err == (
        f"pnf: {run} was trained beside other test images than those in {path} now: restore them, or give the data set "
        "to take with --data\n"
    )
    assert sorted(run.rglob("*")) == before
    # An explicit --data is used without a check.
    assert pnf(*arguments(args, run, "--data", path)).code == 0


def test_other_training_images(pnf: Pnf, run: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "here" / "set.npz", train=2)
    assert pnf("evaluate", run).code == 0
    for args in (["anomaly", str(run), "fashion-mini"], ["train", "--resume", str(run)]):
        result = pnf(*args)
        assert result.code == 1
        assert result.err.splitlines()[-1].startswith(f"pnf: {run} was trained on other images than those in {path}: ")


def test_data_that_has_moved(pnf: Pnf, run: Path, tmp_path: Path) -> None:
    (tmp_path / "here" / "set.npz").rename(tmp_path / "moved.npz")
    for args in SOME:
        assert pnf(*arguments(args, run, "--data", tmp_path / "moved.npz")).code == 0
    result = pnf("evaluate", run)
    assert result.code == 1
    assert "set.npz: wanted a folder, an .npz or .npy file, or the word fashion-mini, got no such file" in result.err


def test_a_folder_around_the_run(pnf: Pnf, run: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    run.rename(tmp_path / "runs" / "one")
    assert pnf("upscale", tmp_path / "runs").code == 0
    save(tmp_path / "here" / "set.npz", test=2)
    result = pnf("upscale", tmp_path / "runs")
    assert result.code == 1
    assert "was trained beside other test images" in result.err


def test_the_word_is_the_bundled_set_wherever_the_run_is_read(
    pnf: Pnf, progressive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pnf("evaluate", progressive, "--data", "fashion-mini").code == 0
    wanted = nats(progressive)
    (tmp_path / "fashion-mini" / "test").mkdir(parents=True)
    Image.fromarray(pixels(0, 1)[0, 0]).save(tmp_path / "fashion-mini" / "test" / "0.png")
    monkeypatch.chdir(tmp_path)
    assert pnf("evaluate", progressive).code == 0
    assert nats(progressive) == wanted
    assert pnf("upscale", "--pretrained", "fashion-mnist", "-n", 1).code == 0
    assert json.loads((progressive / "run.json").read_text())["data"] == "fashion-mini"


def test_a_run_of_an_older_version(pnf: Pnf, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path was relative, also in its checkpoints, and it only remembers its training images."""
    import torch

    path = str(tmp_path / "here" / "set.npz")
    for file in run.glob("checkpoints/*.ckpt"):
        checkpoint = torch.load(file, weights_only=True)
        checkpoint["settings"] = checkpoint["settings"].replace(path, "set.npz")
        torch.save(checkpoint, file)
    (run / "run.json").write_text((run / "run.json").read_text().replace(path, "set.npz"))
    data = json.loads((run / "data.json").read_text())
    del data["test"]
    (run / "data.json").write_text(json.dumps(data))
    monkeypatch.chdir(tmp_path / "here")
    save(Path("set.npz"), test=2)
    for args in SOME:
        assert pnf(*arguments(args, run)).code == 0
    (run / "data.json").unlink()
    assert pnf("evaluate", run).code == 0


def test_a_damaged_memory_of_the_data(pnf: Pnf, run: Path) -> None:
    for content in ('{"images": 1}', "[]", "{", '{"images": 50, "shape": [1, 16, 16], "crc32": 1, "test": 3}'):
        (run / "data.json").write_text(content)
        result = pnf("evaluate", run)
        assert result.code == 1
        assert result.err == f"pnf: {run}/data.json is damaged; remove it to go on without a check of the images\n"


@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines", "caf\u00e9".encode()])
def test_names_of_any_bytes(pnf: Pnf, tiny: Tiny, tmp_path: Path, name: bytes) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    for split, count in (("train", 40), ("test", 12)):
        (folder / split).mkdir(parents=True)
        for i, image in enumerate(pixels(count, count)):
            Image.fromarray(image[0]).save(folder / split / f"{i}.png")
    settings = {"data": folder, "limit": 30, "validation": 5, "steps": 2}
    assert pnf(*tiny(tmp_path / "run", **settings)).code == 0
    assert os.fsencode(json.loads((tmp_path / "run" / "run.json").read_text())["data"]) == os.fsencode(folder)
    for args in (*SOME, ["anomaly", "{run}", "fashion-mini", "--limit", "10"]):
        result = pnf(*arguments(args, tmp_path / "run"))
        assert result.code == 0, result.err
    shutil.rmtree(folder / "test")
    result = pnf("evaluate", tmp_path / "run")
    assert result.code == 1
    assert len(result.err.splitlines()) == 1
    assert "got a set that has only train" in result.err


@pytest.mark.parametrize("data", ["", " "])
@pytest.mark.parametrize("args", [["train", "demo", "--out", "run"], ["evaluate", "{run}"], ["check", "{run}/model"]])
def test_an_empty_path(
    pnf: Pnf, progressive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], data: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Image.fromarray(pixels(0, 1)[0, 0]).save("0.png")
    result = pnf(*arguments(args, progressive), "--data", data)
    assert result.code == 1
    assert "empty" in result.err
    assert len(result.err.splitlines()) == 1
    assert [path.name for path in Path().iterdir()] == ["0.png"]
