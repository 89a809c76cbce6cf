"""Runs on real data, against Gaussian fields whose density is known."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from pnf import reference
from pnf.data import DataError, Reals, load_reals
from pnf.evaluation import evaluate_reals, load_run
from pnf.evaluation.likelihood import stage_log_probs
from pnf.evaluation.runs import load_images
from pnf.training import PRESETS, RunConfig, RunError, preset_config, train
from pnf.training.standardisation import Standardisation, standardisation_of

_TINY = {
    "support": "real",
    "hidden": 16,
    "num_couplings": 4,
    "levels": 1,
    "validation": 20,
    "validate_every": 50,
    "checkpoint_every": 100,
    "warmup": 5,
    "batch_size": 64,
}


def real(data: Path, **overrides: object) -> tuple[RunConfig, Reals]:
    """The settings of a run on a file, and its standardised training data."""
    reals = load_reals(data)
    config = preset_config("demo", data=str(data), **(_TINY | overrides)).of_reals(reals)
    assert config.standardisation is not None
    return config, config.standardisation.of(reals)


@pytest.mark.parametrize("shape", [(8,), (2, 8), (1, 4, 4)])
def test_an_untrained_flow_is_a_known_gaussian_field(shape: tuple[int, ...]) -> None:
    """Its couplings are the identity, so x is a fixed linear map A of Gaussian noise: x ~ N(mean, A A^T)."""
    scaling = Standardisation(shape, tuple(range(shape[0])), tuple(0.5 + k for k in range(shape[0])))
    flow = reference.ProgressiveFlow(shape, 1, support="real", coupling="dense", hidden=4, norm="none").double().eval()
    with torch.no_grad():
        zero = scaling.invert(flow.inverse(torch.zeros(1, flow.dims, dtype=torch.float64))[0]).flatten()
        columns = scaling.invert(flow.inverse(torch.eye(flow.dims, dtype=torch.float64))[0]).flatten(1) - zero
        x = scaling.invert(flow.sample(5, generator=torch.Generator().manual_seed(0)))
        found = flow.log_prob(scaling.apply(x)) + scaling.log_det
    covariance = columns.mT @ columns
    torch.testing.assert_close(found, MultivariateNormal(zero, covariance).log_prob(x.flatten(1)))
    if len(shape) == 3:
        # The variances of s, d1 and d2 add up; of two neighbours in a column, s and d1 are the same and d2 opposite.
        assert (covariance[0, 0] / 0.25, covariance[0, 4] / 0.25) == pytest.approx((3, 1))


def autoregressive(n: int, rho: float) -> np.ndarray:
    """Signals of 8 steps, ``x[t+1] = rho x[t] + sqrt(1 - rho^2) noise``, times 50 and plus 1000."""
    noise = np.random.default_rng(0).normal(size=(n, 8))
    x = [noise[:, 0]]
    for t in range(1, 8):
        x.append(rho * x[-1] + math.sqrt(1 - rho**2) * noise[:, t])
    return 1000 + 50 * np.stack(x, 1)[:, None]


def test_training_approaches_the_entropy(tmp_path: Path) -> None:
    rho, x = 0.9, autoregressive(2500, 0.9)
    np.savez(tmp_path / "set.npz", train=x[:2000], test=x[2000:])
    config, reals = real(tmp_path / "set.npz", steps=250, lr=5e-3)
    assert train(config, reals, tmp_path / "run", accelerator="cpu") == []
    config, flow = load_run(tmp_path / "run")
    test = load_images(config, "test", run=tmp_path / "run")
    assert config.standardisation is not None
    result = evaluate_reals(flow, test, config.standardisation)
    independent = -(0.5 * math.log(2 * math.pi * math.e) + math.log(50))
    best = independent - 7 / 16 * math.log(1 - rho**2)
    assert best - 0.12 < result.nats_per_dim < best + 3 * result.nats_per_dim_error
    assert result.nats_per_dim > independent + 0.5, "it has learnt that neighbours are alike"
    assert sum(result.stage_nats.values()) + result.standardisation_nats == pytest.approx(result.nats)
    assert result.examples == 500
    of_example = stage_log_probs(flow, test).sum(1) + config.standardisation.log_det
    assert result.nats_error == pytest.approx((of_example.std() / math.sqrt(500)).item())


def test_the_run_holds_what_its_density_needs(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", train=autoregressive(100, 0.5))
    config, reals = real(tmp_path / "set.npz", steps=2)
    train(config, reals, tmp_path / "run", stages=["f0"], accelerator="cpu")
    written = json.loads((tmp_path / "run/run.json").read_text())
    assert (written["support"], written["shape"], len(written["mean"])) == ("real", [1, 8], 1)
    assert "size" not in written
    loaded = RunConfig.load(tmp_path / "run")
    assert loaded == config
    assert config.same_model(config.to_json())
    assert train(loaded, reals, tmp_path / "run", resume=True, accelerator="cpu") == []
    with pytest.raises(RunError, match="validation must be less than the 100 training examples, got 100"):
        train(replace(config, validation=100), reals, tmp_path / "other", accelerator="cpu")


def test_settings_that_could_not_be_read_again_are_refused(tmp_path: Path) -> None:
    x = torch.randn(3, 22000, generator=torch.Generator().manual_seed(0)).double()
    config = preset_config("demo", support="real")
    with pytest.raises(RunError, match=r"run.json would have 1,.* bytes, more than 1,048,576: give vectors as signals"):
        config.of_reals(Reals(x, "some", "train")).save(tmp_path)
    assert list(tmp_path.iterdir()) == []
    config.of_reals(Reals(x[:, None], "some", "train")).save(tmp_path)
    assert RunConfig.load(tmp_path).shape == (1, 22000)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_takes_real_data(tmp_path: Path, preset: str) -> None:
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    config = preset_config(preset, support="real").of_reals(Reals(x, "some", "train"))
    config.save(tmp_path)
    assert RunConfig.load(tmp_path) == config


@pytest.mark.parametrize("shape", [(5,), (2, 6), (3, 4, 2)])
def test_standardised_data_has_mean_0_and_variance_1(shape: tuple[int, ...]) -> None:
    values = torch.randn(50, *shape, generator=torch.Generator().manual_seed(0)).double()
    scale = torch.arange(1, shape[0] + 1).view(-1, *[1] * (len(shape) - 1)) * 1e4
    reals = Reals((scale * (values + 3)).float(), "some", "train")
    found = standardisation_of(reals)
    y = found.apply(reals.values)
    by_channel = y.double().movedim(1, 0).flatten(1)
    torch.testing.assert_close(by_channel.mean(1), torch.zeros(shape[0]).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(by_channel.std(1, correction=0), torch.ones(shape[0]).double())
    torch.testing.assert_close(found.invert(y), reals.values, rtol=1e-5, atol=0.1)
    assert found.log_det == pytest.approx(-math.log(math.prod(found.std)) * math.prod(shape[1:]))


def test_constant_and_misshapen_data() -> None:
    with pytest.raises(DataError, match="some: wanted values that vary, got entry 1 constant; remove it"):
        standardisation_of(Reals(torch.tensor([[1.0, 2], [3, 2]]), "some", "train"))
    with pytest.raises(DataError, match="some: wanted values that vary, got channel 0 constant"):
        standardisation_of(Reals(torch.ones(3, 1, 4), "some", "train"))
    with pytest.raises(DataError, match="some: wanted values with fractions, got entry 0 of integers only, which have"):
        standardisation_of(Reals(torch.tensor([[1.0, 2.5], [3, 2]]), "some", "train"))
    with pytest.raises(DataError, match="got channel 0 beyond the range of float64; change its unit"):
        standardisation_of(Reals(torch.tensor([[[1e200]], [[-1e200]]]).double(), "some", "train"))
    with pytest.raises(DataError, match="wanted numbers like those in training, got some far beyond; remove them"):
        Standardisation((2,), (0, 0), (1, 1)).of(Reals(torch.tensor([[1e300, 0]]).double(), "some", "test"))
    with pytest.raises(DataError, match=r"some: wanted examples \[3\], got \[2\]; reshape them"):
        Standardisation((3,), (0, 0, 0), (1, 1, 1)).of(Reals(torch.zeros(2, 2), "some", "test"))


def test_a_large_mean_leaves_small_variations(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(500, 4))
    np.savez(tmp_path / "pressure.npz", train=101325 + 0.01 * noise)
    _, reals = real(tmp_path / "pressure.npz")
    assert reals.values.dtype == torch.float32
    wanted = (noise - noise.mean(0)) / noise.std(0)
    np.testing.assert_allclose(reals.values.numpy(), wanted, atol=1e-6)


def test_large_numbers_in_float32_need_not_be_integers() -> None:
    x = 1e8 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    assert standardisation_of(Reals(x, "some", "train")).std == pytest.approx([1e8, 1e8], rel=0.3)


def test_standardisation_takes_place_on_the_device_of_the_data() -> None:
    scaling = Standardisation((2,), (1.0, 2.0), (3.0, 4.0))
    x = torch.empty(5, 2, device="meta")
    assert scaling.apply(x).device == scaling.invert(x).device == x.device


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"detail": "bounded"}, 'with support "real", detail must be "identity" and alpha None'),
        ({"alpha": 0.1}, "and alpha None"),
        ({"flip": True}, 'with support "real" there are no flips and no labels'),
        ({"size": 16}, "--size is of images: with --support real examples keep their shape"),
        ({"shape": (4,), "mean": (0.0,), "std": (1.0,)}, "mean and std must have 4 entries, got 1 and 1"),
        ({"shape": (1, 4), "mean": (0.0,), "std": (0.0,)}, "std must be positive, got 0"),
        ({"shape": (), "mean": (), "std": ()}, r"shape must be \(D,\), \(C, D\) or \(C, H, W\), got \(\)"),
    ],
)
def test_wrong_settings(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(RunError, match=message):
        preset_config("demo", support="real", **overrides)
