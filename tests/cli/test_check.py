"""``pnf check``: a verdict on a trained flow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

Pnf = Callable[..., Any]


@pytest.mark.parametrize("name", ["progressive-bounded", "realnvp"])
def test_a_sound_model_holds(demo: Path, pnf: Pnf, name: str) -> None:
    result = pnf("check", demo / name, "--device", "cpu")
    assert result.code == 0, result.out + result.err
    assert "every check holds" in result.out
    assert "FAILS" not in result.out
    for check in ("x -> z -> x in float32", "off its Jacobian", "gradients at extreme images"):
        assert check in result.out
    assert ("projecting again" in result.out) == (name != "realnvp")


def test_the_only_run_in_a_folder(progressive: Path, pnf: Pnf) -> None:
    result = pnf("check", progressive.parent, "-n", 2)
    assert result.code == 0, result.out + result.err


@pytest.mark.parametrize("data", [[], ["--data", "fashion-mini"]])
def test_a_flow_without_a_run(demo: Path, pnf: Pnf, data: list[str]) -> None:
    result = pnf("check", demo / "progressive-bounded/model", "-n", 4, *data)
    assert result.code == 0, result.out + result.err


@pytest.mark.parametrize(
    ("damage", "fails"),
    [(float("nan"), "likelihoods of the images: not finite"), (1e30, "x -> z -> x in float32: error of a pixel")],
)
def test_a_broken_model_fails(progressive: Path, pnf: Pnf, damage: float, fails: str) -> None:
    path = progressive / "model/model.safetensors"
    weights = load_file(path)
    weights["stages.1.flow.flow.norms.0.shift"][:] = damage
    save_file(weights, path)
    result = pnf("check", progressive, "-n", 4)
    assert result.code == 1
    assert result.err.strip().startswith(f"pnf: {progressive} fails: ")
    assert fails in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_other_images(progressive: Path, colours: Path, pnf: Pnf) -> None:
    result = pnf("check", progressive, "--data", colours)
    assert result.code == 1
    assert "the model is of images [1, 16, 16], got colours with [3, 16, 16]" in result.err
