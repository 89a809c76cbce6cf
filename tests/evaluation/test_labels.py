"""Evaluation of flows that are conditioned on labels."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pnf.data import DataError, Images, dequantize, load
from pnf.evaluation import evaluate, load_run
from pnf.evaluation.likelihood import (
    class_log_probs,
    classify,
    log_prior,
    stage_log_probs,
    variational_log_probs,
    without_labels,
)
from pnf.evaluation.runs import class_counts, load_images, pick_labels
from pnf.flows import ProgressiveFlow
from pnf.training import Flow, RunConfig, RunError, seeded, train
from pnf.training.batches import TEST_NOISE

Make = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: Make) -> Path:
    images = load("fashion-mini", "train", 8, limit=200, labels=True)
    folder = tmp_path_factory.mktemp("labelled")
    assert train(tiny().of_classes(images.classes), images, folder, accelerator="cpu") == []
    return folder


@pytest.fixture(scope="module")
def flow(run: Path) -> Flow:
    return load_run(run)[1]


@pytest.fixture(scope="module")
def held_out() -> Images:
    return load("fashion-mini", "test", 8, limit=60, labels=True)


def test_the_likelihood_is_that_given_the_label(flow: Flow, held_out: Images) -> None:
    result = evaluate(flow, held_out, seed=3, draws=2)
    with torch.no_grad():
        log_prob = flow.log_prob(dequantize(held_out.pixels, seeded(3, TEST_NOISE)), held_out.labels)
    assert result.nats == pytest.approx(log_prob.double().mean().item(), rel=1e-5)
    assert sum(result.stage_nats.values()) == pytest.approx(result.nats)
    torch.testing.assert_close(stage_log_probs(flow, held_out, seed=3).sum(1), log_prob.double(), rtol=1e-5, atol=0)


def test_fitted_noise_is_that_of_the_density_given_the_label(flow: Flow, held_out: Images) -> None:
    bound = variational_log_probs(flow, held_out)[:, 0]
    uniform = stage_log_probs(flow, held_out).sum(1)
    assert (bound - uniform).mean() > 0
    wrong = variational_log_probs(flow, replace(held_out, labels=(held_out.labels + 1) % 10))[:, 0]
    assert not torch.equal(wrong, bound)


def test_classes_are_judged_by_bayes_rule(flow: Flow, held_out: Images) -> None:
    counts = list(range(1, 11))
    result = evaluate(flow, held_out, seed=3, of_class=counts).classification
    assert result is not None
    x = dequantize(held_out.pixels, seeded(3, TEST_NOISE))
    with torch.no_grad():
        given = [flow.log_prob(x, torch.full((60,), c)).double() + math.log(counts[c] / 55) for c in range(10)]
    joint = torch.stack(given, 1)
    assert held_out.labels is not None
    right = (joint.argmax(1) == held_out.labels).double()
    assert result.accuracy == pytest.approx(right.mean().item())
    assert result.accuracy_error == pytest.approx((right.std() / math.sqrt(60)).item())
    assert result.bits_per_dim == pytest.approx(8 - joint.logsumexp(1).mean().item() / (64 * math.log(2)), rel=1e-5)
    assert (result.classes, result.images) == (10, 60)
    assert result.prior == pytest.approx([count / 55 for count in counts])


def test_the_speed_counts_an_image_once_for_each_class_and_draw(
    flow: Flow, held_out: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pnf.evaluation.likelihood.time.perf_counter", iter((100.0, 102.0)).__next__)
    assert evaluate(flow, held_out, draws=3).images_per_second == pytest.approx((10 + 2) * 60 / 2)


def test_calibration() -> None:
    """Of four images with a confidence of 0.8 one is wrong, and of one with 0.99 none."""
    posterior = torch.tensor([[0.8, 0.2]] * 4 + [[0.01, 0.99]], dtype=torch.float64)
    images = Images(torch.zeros(5, 1, 1, 1).byte(), "some", "test", torch.tensor([0, 0, 0, 1, 1]), ("a", "b"))
    found = classify(posterior.log() - 7, log_prior(2, None), images, dims=1)
    assert found.calibration_error == pytest.approx((4 * 0.05 + 0.01) / 5)
    assert found.accuracy == pytest.approx(0.8)


def test_of_one_class_every_image_is_right() -> None:
    images = Images(torch.zeros(3, 1, 1, 1).byte(), "some", "test", torch.tensor([0, 0, 0]), ("a",))
    found = classify(torch.tensor([[-3.0], [-4.0], [-5.0]]).double(), log_prior(1, None), images, dims=1)
    assert (found.accuracy, found.calibration_error) == (1, pytest.approx(0, abs=1e-6))


def test_certain_images_share_a_bin_with_nearly_certain_ones() -> None:
    """The last of 15 bins holds a mean confidence of 0.985 and 8 of 10 images that are right."""
    confidence = torch.tensor([1.0] * 5 + [0.97] * 5, dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 1, 1, 0, 0, 0, 0, 0])
    images = Images(torch.zeros(10, 1, 1, 1).byte(), "some", "test", labels, ("a", "b"))
    given = torch.stack((confidence, 1 - confidence), 1).log()
    found = classify(given, log_prior(2, None), images, dims=1)
    assert found.calibration_error == pytest.approx(0.185)


def test_a_class_without_training_images_is_never_chosen() -> None:
    assert log_prior(3, [1, 0, 3]).exp().tolist() == pytest.approx([0.25, 0, 0.75])
    assert log_prior(2, None).exp().tolist() == pytest.approx([0.5, 0.5])


def test_likelihoods_without_labels_at_each_resolution(flow: Flow, held_out: Images) -> None:
    """Their sums up to a stage are the likelihoods of the smaller image under the mixture of the classes."""
    assert isinstance(flow, ProgressiveFlow)
    prior = log_prior(10, range(1, 11))
    found = without_labels(class_log_probs(flow, held_out, seed=3), prior)
    x = dequantize(held_out.pixels, seeded(3, TEST_NOISE))
    with torch.no_grad():
        given = torch.stack([flow.stage_log_probs(x, torch.full((60,), c)).double() for c in range(10)], 1)
    for k in range(3):
        wanted = (given[:, :, : k + 1].sum(2) + prior).logsumexp(1)
        torch.testing.assert_close(found[:, : k + 1].sum(1), wanted, rtol=1e-5, atol=1e-4)


def test_images_without_labels_are_refused(flow: Flow, held_out: Images) -> None:
    with pytest.raises(RunError, match="the model has 10 classes, and the images of fashion-mini were read without"):
        evaluate(flow, replace(held_out, labels=None, classes=()))
    with pytest.raises(RunError, match="were read without labels"):
        evaluate(flow, replace(held_out, labels=None))


def test_the_shares_of_the_classes_are_those_of_the_run_itself(run: Path, tiny: Make, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    tiny(seed=1).save(tmp_path / "a")
    shutil.copytree(run, tmp_path / "b")
    config = RunConfig.load(run)
    assert class_counts(config, tmp_path) == class_counts(config, run) is not None


def test_labels_of_another_flow_are_refused(held_out: Images) -> None:
    from pnf import reference

    plain = reference.ProgressiveFlow((1, 8, 8), 1, coupling="dense", hidden=4)
    with pytest.raises(
        RunError, match="the model has no classes, and the images of fashion-mini were read with labels"
    ):
        evaluate(plain, held_out)


def test_images_of_a_run_have_its_classes(run: Path, tmp_path: Path) -> None:
    config = RunConfig.load(run)
    images = load_images(config, "test", run=run, limit=20)
    assert images.classes == config.classes
    assert class_counts(config, run) == load_images(config, "train", limit=200).labels.bincount().tolist()  # type: ignore[union-attr]
    config.save(tmp_path)
    assert class_counts(config, tmp_path) is None
    (tmp_path / "run.json").unlink()
    import numpy as np

    np.savez(tmp_path / "other.npz", test=np.zeros((2, 8, 8), np.uint8), y_test=np.array([0, 1]))
    with pytest.raises(DataError, match=r"other: wanted images of the classes T-shirt, .*, got some of 0, 1; remove"):
        load_images(config, "test", data=str(tmp_path / "other.npz"))


def test_classes_are_named_or_numbered(run: Path, tiny: Make) -> None:
    config = RunConfig.load(run)
    assert pick_labels(config, ["Bag", "0", "9"]) == [8, 0, 9]
    assert pick_labels(tiny().of_classes(["1", "0"]), ["0"]) == [1], "a name comes before a number"
    for name in ("10", "-1", "hat"):
        with pytest.raises(RunError, match=f"there is no class {name}; there are T-shirt, Trouser"):
            pick_labels(config, [name])
    with pytest.raises(RunError, match="the run has no labels, so it can take no --label; train one with: pnf train"):
        pick_labels(tiny(), ["0"])
