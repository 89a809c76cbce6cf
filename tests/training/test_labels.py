"""Runs that are conditioned on labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pnf.data import Images, dequantize, load
from pnf.evaluation import load_run
from pnf.training import RunConfig, RunError, join, train
from pnf.training.fingerprints import Fingerprint
from pnf.training.stage_trainer import StageTrainer

Make = Callable[..., RunConfig]
Results = Callable[[Path], dict[str, object]]


@pytest.fixture(scope="module")
def labelled() -> Images:
    return load("fashion-mini", "train", 8, limit=200, labels=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny: Make, labelled: Images) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    assert train(tiny().of_classes(labelled.classes), labelled, folder, accelerator="cpu") == []
    return folder


def test_the_flow_has_the_classes_of_the_images(whole: Path, labelled: Images) -> None:
    config, flow = load_run(whole)
    assert config.classes == labelled.classes
    assert flow.num_classes == 10
    x = dequantize(labelled.pixels[:4])
    with torch.no_grad():
        assert not torch.equal(flow.log_prob(x, torch.zeros(4).long()), flow.log_prob(x, torch.ones(4).long()))


def test_labels_are_learnt(tmp_path: Path, tiny: Make) -> None:
    """Bright and dark images, which a label tells apart, are likelier under their own label."""
    labels = torch.arange(200) % 2
    dark = torch.randint(100, (200, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    images = Images((dark + 150 * labels.view(-1, 1, 1, 1)).byte(), "some", "train", labels, ("dark", "bright"))
    config = tiny(steps=40, levels=0, lr=0.02).of_classes(images.classes)
    assert train(config, images, tmp_path, accelerator="cpu") == []
    _, flow = load_run(tmp_path)
    with torch.no_grad():
        x = dequantize(images.pixels, torch.Generator().manual_seed(0))
        assert (flow.log_prob(x, labels) > flow.log_prob(x, 1 - labels)).double().mean() > 0.8


def test_without_labels_nothing_is_written_about_them(tmp_path: Path, tiny: Make, images: Images) -> None:
    train(tiny(steps=2), images, tmp_path, accelerator="cpu")
    assert not {"classes", "attribute"} & json.loads((tmp_path / "run.json").read_text()).keys()
    assert "of_class" not in json.loads((tmp_path / "data.json").read_text())


def test_stages_trained_apart_and_resumed_are_those_of_one_run(
    tmp_path: Path, tiny: Make, labelled: Images, whole: Path, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny().of_classes(labelled.classes)
    train(config, labelled, tmp_path / "a", stages=["f1x", "f1y"], accelerator="cpu")
    train_step = StageTrainer.train_step

    def stop(self: StageTrainer, batches: object) -> torch.Tensor:
        if self.step == 5:
            raise KeyboardInterrupt
        return train_step(self, batches)  # type: ignore[arg-type]

    monkeypatch.setattr(StageTrainer, "train_step", stop)
    with pytest.raises(KeyboardInterrupt):
        train(config, labelled, tmp_path / "b", stages=["f0"], accelerator="cpu")
    monkeypatch.undo()
    assert train(RunConfig.load(tmp_path / "b"), labelled, tmp_path / "b", stages=["f0"], resume=True) != []
    assert join([tmp_path / "a", tmp_path / "b"], tmp_path / "joined") == []
    assert results(tmp_path / "joined") == results(whole)


def test_other_labels_are_other_data(tmp_path: Path, tiny: Make, labelled: Images) -> None:
    config = tiny(steps=2).of_classes(labelled.classes)
    train(config, labelled, tmp_path, stages=["f0"], accelerator="cpu")
    assert labelled.labels is not None
    swapped = replace(labelled, labels=labelled.labels.flip(0))
    with pytest.raises(RunError, match="was trained on other images than those in"):
        train(config, swapped, tmp_path, resume=True, accelerator="cpu")
    fingerprint = Fingerprint.load(tmp_path)
    assert fingerprint is not None
    assert fingerprint.of_class == labelled.labels.bincount(minlength=10).tolist()


def test_images_and_settings_must_agree(tmp_path: Path, tiny: Make, images: Images, labelled: Images) -> None:
    with pytest.raises(RunError, match=r"the run has the classes none, and its images \('T-shirt'"):
        train(tiny(), labelled, tmp_path, accelerator="cpu")
    with pytest.raises(RunError, match=r"the run has the classes \('a', 'b'\), and its images none"):
        train(tiny().of_classes(["a", "b"]), images, tmp_path, accelerator="cpu")


def test_one_class_is_none(tiny: Make) -> None:
    with pytest.raises(RunError, match="there must be from 2 to 65536 classes, got 1: leave out --labels"):
        tiny().of_classes(["a"])


def test_names_of_classes_that_could_not_be_read_again_are_refused(tmp_path: Path, tiny: Make) -> None:
    config = tiny().of_classes([f"{i} " + "long " * 50 for i in range(5000)])
    with pytest.raises(RunError, match="more than 1,048,576: give the classes shorter names"):
        config.save(tmp_path)


def test_the_baseline_takes_no_labels(tiny: Make) -> None:
    with pytest.raises(RunError, match="the realnvp baseline takes no labels: leave out --labels, or --model realnvp"):
        tiny(model="realnvp").of_classes(["a", "b"])
