"""Tiny models for the page: a progressive flow of 8 x 8 pixels, the same with labels, and RealNVP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tiny_runs import _one_thread as _one_thread
from tiny_runs import finished as finished
from tiny_runs import images as images
from tiny_runs import tiny as tiny

from pnf.app.models import Model, load_models
from pnf.data import load
from pnf.training import RunConfig, train

CPU = torch.device("cpu")
PNF = "from pnf.cli import main; main()"


@pytest.fixture(scope="package")
def run(finished: Callable[..., Path]) -> Path:
    return finished()


@pytest.fixture(scope="package")
def labelled_run(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., RunConfig]) -> Path:
    """A run with labels, whose last class had no training images."""
    images = load("fashion-mini", "train", 8, labels=True)
    images = images.take(images.labels < 9)
    folder = tmp_path_factory.mktemp("labelled")
    assert train(tiny(steps=40, lr=0.02).of_classes(images.classes), images, folder, accelerator="cpu") == []
    return folder


@pytest.fixture(scope="package")
def progressive(run: Path) -> Model:
    return load_models([run], CPU)[0]


@pytest.fixture(scope="package")
def labelled(labelled_run: Path) -> Model:
    return load_models([labelled_run], CPU)[0]


@pytest.fixture(scope="package")
def realnvp_run(finished: Callable[..., Path]) -> Path:
    return finished(model="realnvp")


@pytest.fixture(scope="package")
def realnvp(realnvp_run: Path) -> Model:
    return load_models([realnvp_run], CPU)[0]


@pytest.fixture(scope="package")
def served(labelled_run: Path, realnvp_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page for a progressive flow with labels and for RealNVP. Ctrl-C ends it and leaves nothing."""
    temporary = tmp_path_factory.mktemp("temporary")
    # A proxy that does not exist: whoever asks for something from elsewhere gets an error.
    environment = os.environ | {"TMPDIR": str(temporary), "ALL_PROXY": "http://127.0.0.1:9", "GRADIO_SHARE": "True"}
    args = [sys.executable, "-c", PNF, "app", str(labelled_run), str(realnvp_run), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("The page: http://127.0.0.1:"), line or process.communicate()[1]
        yield line.split()[2]
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    assert (process.returncode, rest) == (0, "")
    assert not [path for path in temporary.iterdir() if path.name.startswith("pnf-app-")]
