"""Files of earlier releases load in this one, and files of a newer one are refused with the remedy.

``tests/golden`` holds small flows and runs that each release wrote by ``write.py``, with the results it had.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pnf import fast, files, reference
from pnf.data import load
from pnf.evaluation import load_run
from pnf.training import RunConfig, RunError, train
from pnf.training.trainer import checkpoint_path

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.parent for path in GOLDEN.glob("*/flows/*/config.json"))
RUNS = sorted(path.parent for path in GOLDEN.glob("*/runs/*/run.json"))

each_run = pytest.mark.parametrize("run", RUNS, ids=lambda path: str(path.relative_to(GOLDEN)))


def check(flow: Any, folder: Path, rtol: float) -> None:
    """Compare the results of a flow with those that a release stored."""
    expected = load_file(folder / "expected.safetensors")
    x = expected.pop("x")
    condition = expected.pop("condition", None)
    given = {} if condition is None else {"condition": condition}
    with torch.no_grad():
        found = {"log_prob": flow.log_prob(x, **given)}
        found["samples"] = flow.sample(len(x), generator=torch.Generator().manual_seed(0), **given)
        if "projected" in expected:
            found["projected"] = flow.project(x, **given)
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=rtol, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("kind", [fast, reference], ids=["fast", "reference"])
@pytest.mark.parametrize("folder", CASES, ids=lambda path: str(path.relative_to(GOLDEN)))
def test_a_flow_loads_with_its_results(folder: Path, kind: Any) -> None:
    name = json.loads((folder / "config.json").read_text())["model"]
    check(getattr(kind, name).from_pretrained(folder), folder, rtol=1e-5)


@each_run
def test_a_run_goes_on_to_its_results(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    config = RunConfig.load(folder)
    checkpoints = sorted(path.stem for path in (folder / "checkpoints").iterdir())
    before = torch.load(checkpoint_path(folder, checkpoints[0]), weights_only=True)["step"]
    assert before == config.steps - 2
    images = load("fashion-mini", "train", config.size, limit=config.limit)
    assert train(config, images, folder, resume=True, accelerator="cpu") == []
    # Two more steps of an optimiser amplify the rounding of another processor.
    check(load_run(folder)[1], run, rtol=1e-4)


def test_every_release_has_golden_files() -> None:
    """Each covers every kind of networks, details, conditions and support."""
    configs = [json.loads((folder / "config.json").read_text()) for folder in CASES if "0.1.0" in folder.parts]
    assert {config["model"] for config in configs} == {"ProgressiveFlow", "RealNVP"}
    for key, values in {
        "coupling": {"conv", "dense"},
        "norm": {"act", "batch", "none"},
        "detail": {"bounded", "identity"},
        "support": {"unit", "real"},
        "injector": {True, False},
    }.items():
        assert {config[key] for config in configs if key in config} == values
    assert {RunConfig.load(run).model for run in RUNS} == {"progressive", "realnvp"}


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """A copy of a run, of which a test makes one file newer."""
    folder = tmp_path / "run"
    shutil.copytree(RUNS[0], folder)
    return folder


@pytest.mark.parametrize("version", [2, 10**30])
def test_a_flow_of_a_newer_pnf(tmp_path: Path, version: int) -> None:
    folder = tmp_path / "flow"
    shutil.copytree(CASES[0], folder)
    config = json.loads((folder / "config.json").read_text())
    # Its arguments may be unknown here, so the version comes first.
    (folder / "config.json").write_text(json.dumps(config | {"format": version, "colour": "red"}))
    message = rf"config\.json was written by a newer pnf, in format {version}, and this one reads formats up to 1"
    with pytest.raises(ValueError, match=message):
        reference.ProgressiveFlow.from_pretrained(folder)


def test_settings_of_a_newer_pnf(newer: Path) -> None:
    path = newer / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2, "colour": "red"}))
    with pytest.raises(RunError, match=r"run\.json was written by a newer pnf, in format 2, and this one reads"):
        RunConfig.load(newer)


def test_a_checkpoint_of_a_newer_pnf(newer: Path) -> None:
    (path,) = (newer / "checkpoints").iterdir()
    torch.save({"format": 2}, path)
    config = RunConfig.load(newer)
    images = load("fashion-mini", "train", config.size, limit=config.limit)
    with pytest.raises(RunError, match=r"\.ckpt was written by a newer pnf, in format 2, and this one reads"):
        train(config, images, newer, resume=True, accelerator="cpu")


@pytest.mark.parametrize("version", [0, -1, 1.0, True, "1", None, [1]])
def test_a_version_that_is_none(version: object) -> None:
    with pytest.raises(ValueError, match=r"^format must be a positive integer, got "):
        files.without_format({"format": version})


def test_files_carry_the_version_of_their_format(tmp_path: Path) -> None:
    shutil.copytree(RUNS[0], tmp_path / "run")
    config = RunConfig.load(tmp_path / "run")
    config.save(tmp_path / "run")
    images = load("fashion-mini", "train", config.size, limit=config.limit)
    train(config, images, tmp_path / "run", resume=True, accelerator="cpu")
    for name in ("run.json", "model/config.json"):
        assert json.loads((tmp_path / "run" / name).read_text())["format"] == files.FORMAT
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        assert torch.load(path, weights_only=True)["format"] == files.FORMAT
    assert RunConfig.load(tmp_path / "run") == config
