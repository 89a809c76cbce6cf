"""Write the golden files of the installed release: ``python tests/golden/write.py tests/golden/0.1.0``.

``flows`` holds small flows of every kind, each with inputs and results in ``expected.safetensors``. ``runs`` holds
training runs, stopped at ``STOPPED`` of their steps, with the results of the same run at its end. The next releases
load them in ``tests/test_upgrades.py``. Files of a release are never written again.
"""

import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pnf import ProgressiveFlow, RealNVP
from pnf.data import dequantize, load
from pnf.training import Interrupted, preset_config, train
from pnf.training.batches import Batches

STOPPED = 4

_SMALL = {"hidden": 2, "blocks": 1, "num_couplings": 1}
_DENSE = {"coupling": "dense", "hidden": 4, "blocks": 1, "num_couplings": 2}

FLOWS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "demo": (ProgressiveFlow, {"shape": (1, 4, 4), "levels": 1, **_DENSE}),
    "mnist-conv": (ProgressiveFlow, {"shape": (1, 8, 8), "levels": 1, "norm": "batch", "scales": 1, **_SMALL}),
    "cifar10": (
        ProgressiveFlow,
        {"shape": (3, 8, 16), "levels": 1, "axes": "x", "norm": "batch", "scales": 2, **_SMALL},
    ),
    "paper": (
        ProgressiveFlow,
        {"shape": (2, 4, 4), "levels": 1, "axes": "yx", "detail": "identity", "injector": False, "norm": "none"}
        | _SMALL,
    ),
    "labels": (ProgressiveFlow, {"shape": (1, 4, 4), "levels": 1, "num_classes": 3, **_DENSE}),
    "vector": (ProgressiveFlow, {"shape": (1, 4, 4), "levels": 1, "axes": "x", "condition_shape": (2,), **_SMALL}),
    "map": (ProgressiveFlow, {"shape": (1, 4, 4), "levels": 1, "axes": "x", "condition_shape": (1, 4, 4), **_SMALL}),
    "real": (ProgressiveFlow, {"shape": (8,), "levels": 2, "support": "real", **_DENSE}),
    "realnvp": (RealNVP, {"shape": (1, 8, 8), "alpha": 0.05, "norm": "batch", "scales": 2, **_SMALL}),
    "realnvp-dense": (RealNVP, {"shape": (6,), "condition_shape": (6,), **_DENSE}),
}

RUNS: dict[str, tuple[str, dict[str, object]]] = {
    "dense": ("demo", {"model": "progressive", "hidden": 4, "blocks": 1, "num_couplings": 2, "warmup": 2}),
    "conv": ("mnist-conv", {"model": "realnvp", "scales": 1, "keep": "best", "lr": 0.01, **_SMALL}),
}
_RUN = {
    "data": "fashion-mini",
    "size": 4,
    "limit": 40,
    "levels": 1,
    "steps": STOPPED + 2,
    "batch_size": 8,
    "ema": 0.5,
    "validation": 8,
    "validate_every": 2,
    "log_every": 2,
}


def results(flow: Any, x: Tensor, condition: Tensor | None) -> dict[str, Tensor]:
    """What a flow makes of images, and its samples from a seed."""
    given = {} if condition is None else {"condition": condition}
    with torch.no_grad():
        found = {"log_prob": flow.log_prob(x, **given)}
        found["samples"] = flow.sample(len(x), generator=torch.Generator().manual_seed(0), **given)
        if isinstance(flow, ProgressiveFlow):
            found["projected"] = flow.project(x, **given)
    return {name: tensor.contiguous() for name, tensor in found.items()}


def write_flow(folder: Path, kind: type[nn.Module], settings: dict[str, Any]) -> None:
    """Write one flow, with parameters that are not those of its start."""
    torch.manual_seed(0)
    flow: Any = kind(**settings)
    x = torch.rand(4, *flow.shape)
    condition = None
    if settings.get("num_classes"):
        condition = torch.tensor([0, 1, 2, 1])
    elif settings.get("condition_shape"):
        condition = torch.rand(4, *settings["condition_shape"])
    given = {} if condition is None else {"condition": condition}
    flow.train().log_prob(x, **given)  # starts ActNorm, and moves the statistics of batch normalisation
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    flow.eval().save_pretrained(folder)
    inputs = {"x": x, **given}
    save_file(inputs | results(flow, x, condition), folder / "expected.safetensors")


def write_run(folder: Path, preset: str, settings: dict[str, object]) -> None:
    """Write the folder of a run that was stopped, and the results of the finished one."""
    config = preset_config(preset, **(_RUN | settings))
    images = load("fashion-mini", "train", config.size, limit=config.limit)
    shutil.rmtree(folder, ignore_errors=True)
    batch = Batches.__call__

    def interrupt(self: Batches, at: int) -> Tensor:
        if at == STOPPED - 1:
            signal.raise_signal(signal.SIGTERM)
        return batch(self, at)

    Batches.__call__ = interrupt  # type: ignore[method-assign]
    try:
        train(config, images, folder, accelerator="cpu")
    except Interrupted:
        pass
    finally:
        Batches.__call__ = batch  # type: ignore[method-assign]
    finished = folder / "finished"
    shutil.copytree(folder, finished)
    assert train(config, images, finished, resume=True, accelerator="cpu") == []
    kind = ProgressiveFlow if config.model == "progressive" else RealNVP
    x = dequantize(images.pixels[:4], torch.Generator().manual_seed(0))
    expected = {"x": x, **results(kind.from_pretrained(finished / "model"), x, None)}
    for name in ("finished", "logs", "tensorboard"):
        shutil.rmtree(folder / name)
    save_file(expected, folder / "expected.safetensors")


def main(root: Path) -> None:
    """Write all golden files into a folder."""
    torch.set_num_threads(1)
    for name, (kind, settings) in FLOWS.items():
        write_flow(root / "flows" / name, kind, settings)
    for name, (preset, more) in RUNS.items():
        write_run(root / "runs" / name, preset, more)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
