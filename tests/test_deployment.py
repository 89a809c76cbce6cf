"""Exported flows run without pnf, as docs/deployment.md says: its code, and every kind of flow in every form."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from pnf import fast, reference

PAGE = Path(__file__).parents[1] / "docs" / "deployment.md"
EXPORT, *RUN = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)

# PyTorch's exporters call parts of PyTorch and of onnxscript that are going out of use.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(torch|onnx|copyreg).*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:(torch|onnx|copyreg).*"),
]

CONV = {"hidden": 4, "blocks": 1, "num_couplings": 1}
DENSE = {"coupling": "dense", "hidden": 4, "blocks": 1, "num_couplings": 1}


class Method(nn.Module):
    """A method of a flow as a module."""

    def __init__(self, flow: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.flow, self.call = flow, call

    def forward(self, x: Tensor, *more: Tensor) -> Any:
        return self.call(self.flow, x, *more)


def trained(flow: Any, *given: Tensor) -> Any:
    """A flow with other parameters than those of its start."""
    flow.train().log_prob(torch.rand(3, *flow.shape), *given)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return flow.eval().requires_grad_(False)


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All three forms are made by the page's code and run by it, each in a process that never imports pnf."""
    monkeypatch.chdir(tmp_path)
    # A small flow of the fast ops in place of the page's, with as small an image at its lowest resolution.
    trained(fast.ProgressiveFlow((1, 16, 8), 1, axes="y", **DENSE)).save_pretrained("fashion-mnist")
    exec(EXPORT, {})
    flow = reference.ProgressiveFlow.from_pretrained("fashion-mnist")
    inputs = [torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))] * 2
    inputs.append(torch.from_numpy(np.random.default_rng(0).random((16, 1, 8, 8), dtype=np.float32)))
    for code, z in zip(RUN, inputs, strict=True):
        seed = "" if "onnx" in code else "import torch; torch.manual_seed(0)\n"
        end = (
            "\nimport sys, numpy; numpy.save('images.npy', images); assert not {'pnf', 'safetensors'} & {*sys.modules}"
        )
        done = subprocess.run([sys.executable, "-P", "-c", seed + code + end], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        images = torch.from_numpy(np.load("images.npy"))
        torch.testing.assert_close(images, flow.decode(z).detach(), rtol=0, atol=1e-6)


def case(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A method of a kind of flow, and examples of its inputs."""
    torch.manual_seed(0)
    kind, method = name.split()
    condition: tuple[Tensor, ...] = ()
    shape, settings = (1, 8, 8), dict(CONV)
    if kind == "batch":
        settings["norm"] = "batch"
    elif kind == "dense":
        shape, settings = (3, 4, 4), dict(DENSE)
    elif kind == "labels":
        condition, settings["num_classes"] = (torch.tensor([0, 1, 2]),), 3
    elif kind == "vector":
        condition, settings["condition_shape"] = (torch.rand(3, 2),), (2,)
    elif kind == "map":
        condition, settings["condition_shape"] = (torch.rand(3, 1, 8, 8),), (1, 8, 8)
    elif kind == "identity":
        settings |= {"detail": "identity", "norm": "none", "memory": "invertible"}
    elif kind == "real":
        shape, settings = (8,), DENSE | {"support": "real"}
    if kind == "realnvp":
        flow: Any = trained(reference.RealNVP(shape, alpha=0.05, norm="batch", **settings))
    else:
        flow = trained(reference.ProgressiveFlow(shape, 1, **settings), *condition)
    x = torch.rand(3, *shape)
    if method == "log_prob":
        return Method(flow, lambda f, x, *c: f.log_prob(x, *c)), (x, *condition)
    if method == "decode":
        return Method(flow, lambda f, z, *c: f.decode(z, condition=(c or (None,))[0])), (flow.encode(x), *condition)
    if method == "upsample":
        noise = torch.randn(3, flow.dims - flow.stage_dims[0])
        call = Method(flow, lambda f, x, noise, *c: f.upsample(x, noise=noise, condition=(c or (None,))[0]))
        return call, (flow.encode(x), noise, *condition)
    return Method(flow, lambda f, z, *c: f.inverse(z, *c)[0]), (torch.randn(3, x[0].numel()), *condition)


CASES = [
    "batch decode",
    "batch log_prob",
    "batch upsample",
    "batch sample",
    "dense log_prob",
    "dense upsample",
    "labels log_prob",
    "labels upsample",
    "vector log_prob",
    "map log_prob",
    "map sample",
    "identity log_prob",
    "identity upsample",
    "real log_prob",
    "real sample",
    "realnvp log_prob",
    "realnvp sample",
]


def exported(module: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    more = ({0: batch},) * (len(inputs) - 1)
    return torch.export.export(module, inputs, dynamic_shapes=({0: batch}, more) if more else ({0: batch},))


def check(run: Callable[..., Any], module: nn.Module, inputs: tuple[Tensor, ...], rtol: float) -> None:
    """Compare a program with the flow, on batches of three, six and one."""
    for batch in (inputs, tuple(torch.cat((x, x)) for x in inputs), tuple(x[:1] for x in inputs)):
        wanted = module(*batch)
        torch.testing.assert_close(torch.as_tensor(run(*batch)), wanted, rtol=rtol, atol=rtol)


each_case = pytest.mark.parametrize("name", CASES)


@pytest.mark.slow
@each_case
def test_a_program_has_the_same_numbers(name: str, tmp_path: Path) -> None:
    module, inputs = case(name)
    torch.export.save(exported(module, inputs), tmp_path / "program.pt2")
    check(torch.export.load(tmp_path / "program.pt2").module(), module, inputs, rtol=1e-6)


@pytest.mark.slow
@each_case
def test_onnx_has_the_same_numbers(name: str, tmp_path: Path) -> None:
    module, inputs = case(name)
    torch.onnx.export(exported(module, inputs), verbose=False).save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    assert all(isinstance(i.shape[0], str) for i in session.get_inputs()), "the batch is dynamic"

    def run(*batch: Tensor) -> Tensor:
        feed = {name: x.numpy() for name, x in zip(names, batch, strict=True)}
        return torch.from_numpy(session.run(None, feed)[0])

    check(run, module, inputs, rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense upsample", "labels log_prob", "real sample", "realnvp log_prob"])
def test_a_compiled_package_has_the_same_numbers(name: str, tmp_path: Path) -> None:
    module, inputs = case(name)
    path = torch._inductor.aoti_compile_and_package(
        exported(module, inputs), package_path=str(tmp_path / "package.pt2")
    )
    check(torch._inductor.aoti_load_package(path), module, inputs, rtol=2e-5)
