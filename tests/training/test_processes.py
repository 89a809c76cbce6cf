"""Several processes under torchrun, each with a share of the batches, give the results of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from pnf.cli import main
from pnf.cli.common import pick_device
from pnf.data import Images, dequantize, load
from pnf.evaluation import evaluate, load_run
from pnf.training import RunConfig, RunError, processes, train

CLOTHES = load("fashion-mini", "test", 8, limit=1, labels=True).classes

SETTINGS = {
    "dense": {"coupling": "dense", "norm": "act"},
    "conv": {"coupling": "conv", "norm": "batch", "steps": 6},
    "labels": {"coupling": "dense", "norm": "act", "steps": 6, "classes": CLOTHES},
    "muon": {"coupling": "conv", "norm": "act", "steps": 6, "optimizer": "muon"},
    "bf16": {"coupling": "conv", "norm": "act", "steps": 6, "precision": "bf16"},
}


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., RunConfig]
) -> Path:
    """Folders of the runs and evaluations of two or four processes."""
    folder = tmp_path_factory.mktemp("shared")
    for name, settings in SETTINGS.items():
        (folder / name).mkdir()
        tiny(batch_size=8, accumulate=4, **settings).save(folder / name)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={request.param}"]
    command += [str(Path(__file__).with_name("shared.py")), str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("name", SETTINGS)
def test_processes_learn_what_one_does(
    shared: Path, tmp_path: Path, tiny: Callable[..., RunConfig], images: Images, name: str
) -> None:
    config = tiny(batch_size=8, accumulate=4, **SETTINGS[name])
    if config.labelled:
        images = load("fashion-mini", "train", 8, limit=200, labels=True)
    assert train(config, images, tmp_path, accelerator="cpu") == []
    _, alone = load_run(tmp_path)
    _, together = load_run(shared / name / "shared")
    held_out = load("fashion-mini", "test", 8, limit=50, labels=config.labelled)
    x = dequantize(held_out.pixels, torch.Generator().manual_seed(0))
    with torch.no_grad():
        want, got = (flow.log_prob(x, held_out.labels) for flow in (alone, together))
    # Parameters are not compared: before a batch normalisation the gradient of a bias is only rounding.
    tolerance = 1e-2 if name == "bf16" else 1e-4
    assert_close(got, want, rtol=tolerance, atol=tolerance * want.abs().max().item())
    if name == "dense":
        for path in sorted((tmp_path / "checkpoints").iterdir()):
            a, b = (torch.load(p, weights_only=True) for p in (path, shared / name / "shared/checkpoints" / path.name))
            assert_close(b["averaged"], a["averaged"], rtol=1e-4, atol=1e-6)
            assert_close(b["optimizer"]["state"], a["optimizer"]["state"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["dense", "labels"])
def test_processes_evaluate_as_one_does(shared: Path, name: str) -> None:
    config, flow = load_run(shared / name / "shared")
    result = evaluate(flow, load("fashion-mini", "test", 8, limit=101, labels=config.labelled), batch_size=10)
    nats, stage_nats = json.loads((shared / name / "result.json").read_text())
    assert nats == result.nats
    assert stage_nats == result.stage_nats


def test_processes_sample_as_one_does(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "samples.png"
    monkeypatch.setattr(sys, "argv", ["pnf", "sample", str(shared / "dense/shared"), "-n", "600", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert out.read_bytes() == (shared / "dense/samples.png").read_bytes()


def test_one_process_writes(shared: Path) -> None:
    folder = shared / "dense/shared"
    assert [path.name for path in (folder / "logs").iterdir()] == ["version_0"]
    rows = (folder / "logs/version_0/metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + 6 + 2  # a header, every second of 12 steps, and two validations
    assert len(list((folder / "tensorboard").iterdir())) == 1


def test_batches_that_cannot_be_shared(
    tmp_path: Path, tiny: Callable[..., RunConfig], images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "size", lambda: 2)
    with pytest.raises(RunError, match=r"^--accumulate must be a multiple of the 2 processes, got 3$"):
        train(tiny(accumulate=3), images, tmp_path, accelerator="cpu")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("rank", [1, 2])
def test_every_process_has_a_gpu_or_a_message(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    if rank < 2:
        assert pick_device("auto") == torch.device("cuda", rank)
    else:
        with pytest.raises(RunError, match="every process needs a GPU, and this machine has 2: start no more"):
            pick_device("auto")


def test_other_launchers_are_not_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "3")
    assert (processes.rank(), processes.local_rank(), processes.size()) == (0, 0, 1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert (processes.rank(), processes.local_rank(), processes.size()) == (3, 3, 3)


def test_a_restart_goes_on_with_the_run(
    tmp_path: Path, tiny: Callable[..., RunConfig], images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny(), images, tmp_path, accelerator="cpu")
    with pytest.raises(RunError, match="holds this run already"):
        train(tiny(), images, tmp_path, accelerator="cpu")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert train(tiny(), images, tmp_path, accelerator="cpu") == []


def test_what_says_that_a_process_is_gone() -> None:
    assert processes.lost(RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection reset by peer"))
    assert processes.lost(torch.distributed.DistNetworkError("closed"))
    assert not processes.lost(RuntimeError("shape '[2]' is invalid"))
