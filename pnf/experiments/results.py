"""The files of an experiment's run beside its model: a result with its provenance, and log-likelihoods."""

import io
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pnf
from pnf.files import replace_file
from pnf.training.config import RunError
from pnf.training.hardware import processor

RESULT, LOG_PROBS = "result.json", "log_probs.npy"


def save_log_probs(log_probs: Tensor, folder: Path) -> None:
    """Write log-likelihoods into a run's folder."""
    content = io.BytesIO()
    np.save(content, log_probs.numpy())
    replace_file(folder / LOG_PROBS, content.getvalue())


def provenance(device: torch.device) -> dict[str, object]:
    """The provenance of a result: code, hardware and versions."""
    return {
        "commit": _commit(),
        "hardware": processor(device),
        "threads": torch.get_num_threads(),
        "pnf": pnf.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def read_result(path: Path) -> Any:
    """Read a JSON file of results.

    Raises:
        RunError: the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise RunError(f"{path} is damaged; remove it to make it anew") from None


def _commit() -> str | None:
    """The commit of these sources, if they are a checkout."""
    folder = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("describe", "--always", "--dirty", "--exclude", "*")
    except (OSError, subprocess.CalledProcessError):
        return None
