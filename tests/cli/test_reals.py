"""The commands on a run on real data."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pnf.evaluation import evaluate_reals, load_run
from pnf.evaluation.runs import load_images

Pnf = Callable[..., Any]
Tiny = Callable[..., list[str]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, pnf: Pnf, tiny: Tiny) -> Path:
    folder = tmp_path_factory.mktemp("real")
    x = 1000 + 50 * np.random.default_rng(0).normal(size=(150, 2, 16))
    np.savez(folder / "waves.npz", train=x[:100], test=x[100:])
    args = [arg for arg in tiny(folder / "run", data=folder / "waves.npz") if not arg.startswith("--size")]
    result = pnf(*args, "--support", "real")
    assert result.code == 0, result.err
    assert "Training progressive on 100 standardised examples of waves [2, 16] in" in result.err
    assert "bits/dim" not in result.err
    return folder / "run"


def test_evaluate_says_nats_of_the_data_itself(pnf: Pnf, run: Path) -> None:
    result = pnf("evaluate", run)
    assert result.code == 0, result.err
    assert "nats/dim" in result.out
    assert "bits" not in result.out
    found = json.loads((run / "metrics.json").read_text())["models"]["run"]["result"]
    # A Gaussian of standard deviation 50 has -5.33, and few steps cost little.
    assert -5.8 < found["nats_per_dim"] < -5.2


def test_samples_are_in_the_units_of_the_data(pnf: Pnf, run: Path, tmp_path: Path) -> None:
    assert pnf("sample", run, "-n", 200, "--out", tmp_path / "s.npz").code == 0
    samples = np.load(tmp_path / "s.npz")["samples"]
    assert samples.shape == (200, 2, 16)
    assert samples.dtype == np.float64, "float32 would round small variations about a large mean away"
    assert abs(samples.mean() - 1000) < 10
    assert 35 < samples.std() < 80
    assert "--out must end in .npz, got" in pnf("sample", run, "--out", tmp_path / "s.png").err


def test_the_density_of_the_documentation(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs/training.md").read_text()
    (block,) = re.findall("```python\n(from pnf.evaluation import load_run\n.*?)```", text, re.DOTALL)
    waves = np.load(run.parent / "waves.npz")["test"]
    names: dict[str, Any] = {"x": torch.from_numpy(waves)}
    (run.parent / "runs").mkdir()
    (run.parent / "runs/waves").symlink_to(run)
    monkeypatch.chdir(run.parent)
    exec(block, names)
    config, flow = load_run(run)
    assert config.standardisation is not None
    result = evaluate_reals(flow, load_images(config, "test"), config.standardisation)
    assert names["log_prob"].mean().item() == pytest.approx(result.nats, rel=1e-5)


def test_curves_and_checks(pnf: Pnf, run: Path, demo: Path, tmp_path: Path) -> None:
    assert pnf("curves", run, "--out", tmp_path / "c.png").code == 0
    mixed = pnf("curves", run, demo, "--out", tmp_path / "c.png")
    assert "images have bits/dim, and real data has not: draw the curves of their runs one by one" in mixed.err
    assert pnf("check", run, "-n", 2).code == 0
    assert pnf("check", run / "model", "-n", 2).code == 0
    assert "only a run knows how" in pnf("check", run / "model", "--data", "fashion-mini").err


@pytest.mark.parametrize("args", [["upscale"], ["project"], ["quality"], ["anomaly", "fashion-mini"]])
def test_commands_for_images_refuse_the_run(pnf: Pnf, run: Path, args: list[str]) -> None:
    result = pnf(args[0], run, *args[1:])
    assert result.code == 1
    assert "is a run on real data, and this command is for images; see pnf evaluate and pnf sample" in result.err


def test_draws_are_of_8_bit_images(pnf: Pnf, run: Path) -> None:
    assert "--draws is of the noise of 8-bit images" in pnf("evaluate", run, "--draws", 2).err


def test_real_data_has_no_labels(pnf: Pnf, tiny: Tiny, tmp_path: Path) -> None:
    args = tiny(tmp_path / "run", data=tmp_path)
    assert "--labels are of images: leave it out with --support real" in pnf(*args, "--labels", "--support=real").err


def test_resuming_needs_the_same_data(pnf: Pnf, run: Path, tmp_path: Path) -> None:
    assert pnf("train", "--resume", run, "--device", "cpu").code == 0
    np.savez(tmp_path / "other.npz", train=np.random.default_rng(1).normal(size=(100, 2, 16)))
    np.savez(tmp_path / "few.npz", test=1000 + np.random.default_rng(1).normal(size=(1, 2, 16)))
    result = pnf("train", "--resume", run, "--data", tmp_path / "other.npz", "--device", "cpu")
    assert "was trained on other examples than those in" in result.err
    result = pnf("evaluate", run, "--data", tmp_path / "few.npz")
    assert "a standard error needs at least 2 examples, got 1" in result.err
