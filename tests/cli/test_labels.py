"""The commands on a run that is conditioned on labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pnf.cli.evaluate import best_of
from pnf.data import load
from pnf.evaluation import evaluate, load_run
from pnf.training.fingerprints import Fingerprint

Pnf = Callable[..., Any]
Tiny = Callable[..., list[str]]
Picture = Callable[..., Path]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, pnf: Pnf, tiny: Tiny) -> Path:
    folder = tmp_path_factory.mktemp("labelled") / "run"
    result = pnf(*tiny(folder), "--labels")
    assert result.code == 0, result.err
    assert "Training progressive on 200 images of fashion-mini [1, 16, 16], 10 classes, in" in result.err
    return folder


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_the_run_names_its_classes(run: Path) -> None:
    assert json.loads((run / "run.json").read_text())["classes"][:2] == ["T-shirt", "Trouser"]
    assert json.loads((run / "model/config.json").read_text())["num_classes"] == 10


def test_evaluate(pnf: Pnf, run: Path, tmp_path: Path) -> None:
    result = pnf("evaluate", run, "--limit", 40, "--out", tmp_path)
    assert result.code == 0, result.err
    written = json.loads((tmp_path / "metrics.json").read_text())["models"]["run"]
    assert (written["data"], written["limit"]) == ("fashion-mini", 40)
    found = written["result"]["classification"]
    images = load("fashion-mini", "test", 16, limit=40, labels=True)
    of_class = Fingerprint.load(run).of_class
    same = asdict(evaluate(load_run(run)[1], images, of_class=of_class).classification)
    assert found.pop("prior") == pytest.approx([count / 200 for count in of_class])
    assert found == pytest.approx({key: value for key, value in same.items() if key != "prior"}, rel=1e-5)
    assert f"{100 * found['accuracy']:.2f} ± {100 * found['accuracy_error']:.2f} %" in result.out


def test_labelled_and_other_runs_are_not_compared(pnf: Pnf, run: Path, demo: Path, tmp_path: Path) -> None:
    result = pnf("evaluate", run, demo, "--limit", 20, "--out", tmp_path)
    assert result.code == 0, result.err
    assert "run (given the label)" in result.out
    assert "realnvp (given the label)" not in result.out


def test_the_best_model_is_of_those_that_can_be_compared(demo: Path, run: Path) -> None:
    images = load("fashion-mini", "test", 16, limit=20, labels=True)
    plain = {name: load_run(demo / name) for name in ("realnvp", "progressive-bounded")}
    unlabelled = replace(images, labels=None, classes=())
    found = {name: (config, evaluate(flow, unlabelled)) for name, (config, flow) in plain.items()}
    assert best_of(found) == min(result.bits_per_dim for _, result in found.values())
    config, flow = load_run(run)
    assert best_of(found | {"run": (config, evaluate(flow, images))}) is None


def test_the_figures_name_the_data_as_the_settings_do(
    pnf: Pnf, demo: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "grey.npz", test=np.load(colours)["test"][:, :1])
    monkeypatch.chdir(tmp_path)
    result = pnf("evaluate", demo / "realnvp", "--data", "grey.npz", "--out", tmp_path)
    assert result.code == 0, result.err
    written = json.loads((tmp_path / "metrics.json").read_text())["models"]["realnvp"]
    assert (written["data"], written["limit"]) == (str(tmp_path / "grey.npz"), None)


def test_without_the_shares_of_the_classes_they_are_taken_as_equal(pnf: Pnf, run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "data.json").unlink()
    result = pnf("evaluate", copy, "--limit", 20)
    assert result.code == 0, result.err
    note = "has no data.json with the share of each class: all are taken as equally probable"
    assert note in result.err
    foreign = tmp_path / "sorted.npz"
    np.savez(foreign, test=load("fashion-mini", "test", 16).pixels.numpy())
    assert note in pnf("anomaly", copy, foreign, "--limit", 20).err
    assert note not in pnf("anomaly", run, foreign, "--limit", 20, "--out", tmp_path).err


def test_a_limit_that_leaves_classes_out_is_told(pnf: Pnf, run: Path, tmp_path: Path) -> None:
    result = pnf("evaluate", run, "--limit", 2, "--out", tmp_path)
    assert result.code == 0, result.err
    images = load("fashion-mini", "test", 16, limit=2, labels=True)
    seen = {images.classes[label] for label in images.labels}
    absent = ", ".join(name for name in images.classes if name not in seen)
    assert f"No image is of the classes {absent}: " in result.err
    assert "No image" not in pnf("evaluate", run, "--out", tmp_path).err


def test_sample_draws_a_row_for_each_class(pnf: Pnf, run: Path, tmp_path: Path) -> None:
    for name, args in {
        "all": ["-n", 8],
        "two": ["-n", 8, "--label", "Bag", "--label", 0],
        "one": ["--label", 3],
    }.items():
        result = pnf("sample", run, "--out", tmp_path / f"{name}.png", *args)
        assert result.code == 0, result.err
    (_, all_height), (_, two_height) = size(tmp_path / "all.png"), size(tmp_path / "two.png")
    assert all_height - two_height == 8 * (96 + 4)
    assert size(tmp_path / "one.png")[1] == all_height - 2 * (96 + 4), "64 samples of one class are 8 x 8"


def test_sampling_a_class_does_not_depend_on_the_others(run: Path) -> None:
    from pnf.evaluation import load_flow

    flow = load_flow(run / "model")
    import torch

    def draw(labels: list[int]) -> torch.Tensor:
        return flow.sample(len(labels), torch.tensor(labels), generator=torch.Generator().manual_seed(0))

    assert torch.equal(draw([4, 4])[0], draw([4, 7])[0])
    assert not torch.equal(draw([4, 4])[1], draw([4, 7])[1])


@pytest.mark.parametrize(
    "args",
    [
        ["upscale", "-n", 2],
        ["upscale", "-n", 2, "--sampled"],
        ["upscale", "-n", 2, "--label", "Bag"],
        ["project", "-n", 2],
        ["quality", "-n", 2, "--draws", 1],
        ["check", "-n", 2],
    ],
)
def test_commands_on_held_out_images(pnf: Pnf, run: Path, args: list[Any]) -> None:
    result = pnf(args[0], run, *args[1:])
    assert result.code == 0, result.err


def test_files_need_a_class(pnf: Pnf, run: Path, picture: Picture, tmp_path: Path) -> None:
    photo = picture("photo.png", 20, 20)
    for command in (["upscale", run, photo, "--out", tmp_path], ["project", run, photo, "--out", tmp_path / "p.png"]):
        refused = pnf(*command)
        assert refused.code == 1
        assert "the run has labels: give the class with --label: T-shirt, Trouser" in refused.err
        assert pnf(*command, "--label", "Bag").code == 0
        several = pnf(*command, "--label", "Bag", "--label", "Shirt")
        assert "give one --label for all, or one for each of 1 images, got 2" in several.err


def test_the_class_changes_what_upscaling_gives(pnf: Pnf, run: Path, picture: Picture, tmp_path: Path) -> None:
    photo = picture("photo.png", 20, 20)
    drawn = []
    for label in ("Bag", "Bag", "Boot"):
        assert pnf("upscale", run, photo, "--temperature", 1, "--out", tmp_path, "--label", label).code == 0
        drawn.append((tmp_path / "photo-t1-1.png").read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]


def test_foreign_images_need_no_labels(pnf: Pnf, run: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", test=np.random.default_rng(0).integers(0, 256, (20, 16, 16), np.uint8))
    result = pnf("anomaly", run, tmp_path / "other.npz", "--limit", 20, "--out", tmp_path)
    assert result.code == 0, result.err
    written = json.loads((tmp_path / "anomaly.json").read_text())
    assert written["prior"] == pytest.approx([count / 200 for count in Fingerprint.load(run).of_class])


def test_a_saved_flow_with_labels_is_checked_on_samples_of_each_class(pnf: Pnf, run: Path) -> None:
    assert pnf("check", run / "model", "-n", 3).code == 0
    for data in ("fashion-mini", "celeba"):
        result = pnf("check", run / "model", "-n", 3, "--data", data)
        assert "--data must be labelled as in training, and only a run knows how: give the run's folder" in result.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data", "fashion-mini", "--attribute", "Smiling"], "--attribute is the label of an image of CelebA: give"),
        (["--labels", "--model", "realnvp"], "wrong settings: settings: Value error, the realnvp baseline takes no"),
    ],
)
def test_mistakes_in_training(pnf: Pnf, tiny: Tiny, tmp_path: Path, args: list[str], message: str) -> None:
    result = pnf(*tiny(tmp_path / "run"), *args)
    assert result.code == 1
    assert message in result.err
    assert not (tmp_path / "run").exists()


def test_training_names_classes_without_images(pnf: Pnf, tiny: Tiny, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 16, 16), np.uint8)
    np.savez(tmp_path / "sorted.npz", train=images, y_train=np.repeat([0, 1, 3], [20, 10, 10]))
    args = tiny(tmp_path / "run", data=tmp_path / "sorted.npz", limit=30, steps=1, validation=4)
    result = pnf(*args, "--labels", "--stages", "f0")
    assert result.code == 0, result.err
    assert "No training image is of the classes 2, 3: the flow cannot learn them" in result.err


def test_data_without_labels(pnf: Pnf, tiny: Tiny, colours: Path, run: Path, tmp_path: Path) -> None:
    for args in ([*tiny(tmp_path / "run", data=colours), "--labels"], ["evaluate", run, "--data", colours]):
        result = pnf(*args)
        assert result.code == 1
        assert "wanted one array of labels beside" in result.err


def test_a_run_without_labels_takes_none(pnf: Pnf, demo: Path) -> None:
    for command in ("sample", "upscale", "project"):
        result = pnf(command, demo / "progressive-bounded", "--label", "Bag")
        assert result.code == 1
        assert "the run has no labels, so it can take no --label; train one with: pnf train --labels" in result.err


def test_resuming_takes_the_labels_of_the_run(pnf: Pnf, run: Path) -> None:
    assert pnf("train", "--resume", run, "--device", "cpu").code == 0
    assert "--resume goes on with a run's own settings" in pnf("train", "--resume", run, "--labels").err
