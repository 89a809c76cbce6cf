"""``pnf anomaly`` and ``pnf quality``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pnf.data import load

Pnf = Callable[..., Any]
Tiny = Callable[..., list[str]]


@pytest.fixture
def negatives(tmp_path: Path) -> Path:
    """The bundled set with inverted grey levels."""
    path = tmp_path / "negatives.npz"
    np.savez(path, train=255 - load("fashion-mini", "train", 16, limit=40).pixels.numpy(), test=_negative())
    return path


def _negative() -> np.ndarray:
    return 255 - load("fashion-mini", "test", 16, limit=40).pixels.numpy()


@pytest.mark.parametrize(
    ("model", "stages"), [("progressive-bounded", ["f0", "f1x", "f1y"]), ("realnvp", ["f"])], ids=["pnf", "realnvp"]
)
def test_anomaly_tells_a_table(
    pnf: Pnf, demo: Path, negatives: Path, tmp_path: Path, model: str, stages: list[str]
) -> None:
    result = pnf("anomaly", demo / model, negatives, "--limit", 30, "--out", tmp_path / "out", "--device", "cpu")
    assert result.code == 0, result.err
    document = json.loads((tmp_path / "out/anomaly.json").read_text())
    assert (document["own"], document["images"], document["foreign"]) == ("fashion-mini", 30, {"negatives": 30})
    assert document["typical_images"] == 20
    measures = document["auroc"]["negatives"]
    assert {measure: list(values) for measure, values in measures.items()} == {
        "image": stages,
        "stage": stages,
        "typicality": [*stages, "all"],
    }
    assert all(0 <= value <= 1 for values in measures.values() for value in values.values())
    assert "AUROC: 30 images of fashion-mini against 30 of negatives" in " ".join(result.out.split())
    assert f"{measures['image'][stages[-1]]:.3f}" in result.out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"anomaly.json", "anomaly.png"}


def test_images_like_its_own_are_guessed_at(pnf: Pnf, progressive: Path, tmp_path: Path) -> None:
    pixels = load("fashion-mini", "test", 16).pixels.numpy()
    np.savez(tmp_path / "own.npz", train=pixels[::2], test=pixels[::2])
    np.savez(tmp_path / "same.npz", train=pixels[1::2], test=pixels[1::2])
    result = pnf("anomaly", progressive, tmp_path / "same.npz", "--data", tmp_path / "own.npz")
    assert result.code == 0, result.err
    document = json.loads((progressive / "anomaly.json").read_text())
    assert document["own"] == "own"
    # Its standard error is 0.026.
    assert document["auroc"]["same"]["image"]["f1y"] == pytest.approx(0.5, abs=0.1)


def test_quality_tells_a_table(pnf: Pnf, progressive: Path) -> None:
    result = pnf("quality", progressive, "-n", 12, "--draws", 2, "--device", "cpu")
    assert result.code == 0, result.err
    document = json.loads((progressive / "quality.json").read_text())
    assert (document["images"], document["size"], document["draws"]) == (12, "16x16", 2)
    assert list(document["quality"]) == ["8x8", "8x16"]
    for methods in document["quality"].values():
        assert list(methods) == ["bilinear", "bicubic", "zero noise", "mean of draws"]
        for values in methods.values():
            assert 0 < values["rmse"] < 1
            assert f"{values['psnr']:.2f}" in result.out
            assert f"{values['ssim']:.4f}" in result.out
    names = {path.name for path in progressive.glob("quality*")}
    assert names == {"quality.json", "quality.png", "quality-images.png"}


def test_mistakes(pnf: Pnf, tiny: Tiny, demo: Path, colours: Path, tmp_path: Path) -> None:
    small, whole = tmp_path / "small", tmp_path / "whole"
    assert pnf(*tiny(small, size=8, steps=1)).code == 0
    assert pnf(*tiny(whole, levels=0, steps=1)).code == 0
    for args, message in (
        (["anomaly", demo, "fashion-mini"], "holds several runs, choose one: "),
        (["anomaly", demo / "realnvp", colours], "the model is of images [1, 16, 16], got colours with [3, 16, 16]"),
        (["anomaly", demo / "realnvp", "fashion-mini"], "two of the data sets have the same name: fashion-mini, fas"),
        (["quality", demo / "realnvp"], "realnvp holds no ProgressiveFlow, and only that can grow images"),
        (["quality", demo, "--data", colours], "the model is of images [1, 16, 16], got colours with [3, 16, 16]"),
        (["quality", small], "SSIM compares images of at least 11 x 11 pixels, got [1, 8, 8]"),
        (["quality", whole], "the flow has one stage, and no lower resolution to start from"),
    ):
        result = pnf(*args)
        assert result.code == 1
        assert result.err.splitlines()[-1].startswith("pnf: ")
        assert message in result.err.splitlines()[-1]
    assert not (demo / "anomaly.json").exists()
