"""Whole models against the reference, torch.compile and others' flows: ``python benchmarks/models.py FILE.json``.

Each row is one interleaved run, since only calls that run by turns can be compared. Its results are medians. The table
is printed, and ``benchmarks/report.py`` can also make it from the file.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytest_benchmark.utils import get_commit_info
from report import report
from rich.progress import track
from torch import Tensor
from torch.nn.functional import conv2d
from torch.utils._python_dispatch import TorchDispatchMode

import pnf
from pnf import fast, reference
from pnf.training import exact_arithmetic
from pnf.training.hardware import most_memory, processor, reset_peak_memory

Call = Callable[[], Any]

CONV = {"coupling": "conv", "hidden": 64, "blocks": 4, "norm": "batch", "scales": 1}
DENSE = {"coupling": "dense", "hidden": 256, "blocks": 2, "num_couplings": 6}

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SECONDS = 8.0
ROUNDS = (5, 60)


class Row(NamedTuple):
    """A row of the table: calls to time against each other.

    Attributes:
        name: the name of the row.
        calls: the calls by name. The first is the reference.
    """

    name: str
    calls: dict[str, Call]


def build(module: Any, shape: tuple[int, ...], settings: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return module.ProgressiveFlow(shape, 2, **settings).to(DEVICE)


def step(flow: torch.nn.Module, loss: Callable[..., Tensor], *inputs: Tensor) -> Call:
    """A training step with Adam that can run in a CUDA graph."""
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-5, fused=True, capturable=DEVICE == "cuda")

    def run() -> None:
        optimizer.zero_grad()
        loss(*inputs).backward()
        optimizer.step()

    return run


def nll(flow: Any) -> Callable[..., Tensor]:
    return lambda *inputs: -flow.log_prob(*inputs).mean()


class Recorder(TorchDispatchMode):
    """Records the convolutions and matrix products inside its context, and counts their multiplications."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions: list[tuple[torch.Size, torch.Size, list[int]]] = []
        self.products: list[tuple[torch.Size, torch.Size]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.convolutions.append((args[0].shape, args[1].shape, args[4]))
        elif func is torch.ops.aten.addmm.default:
            self.products.append((args[1].shape, args[2].shape))
        return func(*args, **(kwargs or {}))

    def flops(self) -> int:
        """The FLOPs of the convolutions: two for each multiplication."""
        return sum(2 * x[0] * x[2] * x[3] * w.numel() for x, w, _ in self.convolutions)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE)


def record(function: Call) -> Recorder:
    with Recorder() as recorder, torch.no_grad():
        function()
    return recorder


def alone(recorder: Recorder, backward: bool) -> Call:
    """The convolutions and products alone, with channels last in memory."""
    cases: list[tuple[Callable[..., Tensor], list[Tensor], Tensor]] = []
    for x, w, padding in recorder.convolutions:
        tensors = [normal(*shape).contiguous(memory_format=torch.channels_last) for shape in (x, w)]
        leaves = [t.requires_grad_(backward) for t in (*tensors, normal(w[0]))]
        function = lambda a, b, c, padding=padding: conv2d(a, b, c, padding=padding)  # noqa: E731
        cases.append((function, leaves, torch.randn_like(function(*leaves))))
    for x, w in recorder.products:
        leaves = [t.requires_grad_(backward) for t in (normal(w[1]), normal(*x), normal(*w))]
        cases.append((torch.addmm, leaves, normal(x[0], w[1])))

    def run() -> None:
        for function, leaves, grad in cases:
            y = function(*leaves)
            if backward:
                torch.autograd.grad(y, leaves, grad)

    return run


def training_rows() -> Iterator[Row]:
    for name, shape, settings, batch, what in (
        ("conv, batch 16", (3, 32, 32), CONV, 16, "convolutions alone"),
        ("MNIST dense, batch 128", (1, 32, 32), DENSE, 128, "matrix products alone"),
    ):
        x = torch.rand(batch, *shape, device=DEVICE)
        plain, ours = build(reference, shape, settings), build(fast, shape, settings)
        calls = {"reference": step(plain, nll(plain), x), "pnf": step(ours, nll(ours), x)}
        calls[what] = alone(record(lambda plain=plain, x=x: plain.log_prob(x)), backward=True)
        if settings is CONV:
            low = build(fast, shape, settings).set_network_dtype(torch.bfloat16)
            calls["pnf, bfloat16 networks"] = step(low, nll(low), x)
        yield Row(f"training step, {name}", calls)


def inference_rows() -> Iterator[Row]:
    shape = (3, 32, 32)
    plain, ours = (build(module, shape, CONV).eval() for module in (reference, fast))
    for batch in (16, 1):
        x, z = torch.rand(batch, *shape, device=DEVICE), normal(batch, 3072)
        for name, method, argument in (("log_prob", "log_prob", x), ("sample", "inverse", z)):
            functions = {"reference": getattr(plain, method), "pnf": getattr(ours, method)}
            calls = {key: lambda f=f, a=argument: quiet(f, a) for key, f in functions.items()}
            yield Row(f"{name}, conv, evaluation, batch {batch}", calls)


def compiled_rows() -> Iterator[Row]:
    """One stage of two couplings, since torch.compile takes tens of minutes for a whole model."""
    size = (3, 16, 16)
    settings = {"condition_shape": size, "hidden": 64, "blocks": 4, "num_couplings": 1, "scales": 1, "norm": "batch"}

    def flow(module: Any) -> Any:
        torch.manual_seed(0)
        return module.RealNVP(size, **settings).to(DEVICE)

    x, condition = normal(16, *size), normal(16, *size)
    plain, ours, other = flow(reference), flow(fast), flow(reference)
    code = torch.compile(nll(other), fullgraph=True, dynamic=False)
    yield Row(
        "training step, one conv stage of 2 couplings, 3x16x16, batch 16",
        {
            "reference": step(plain, nll(plain), x, condition),
            "torch.compile": step(other, code, x, condition),
            "pnf": step(ours, nll(ours), x, condition),
        },
    )
    for model in (plain, ours, other):
        model.eval()
    for batch in (16, 1):
        torch._dynamo.reset()
        code = torch.compile(other.log_prob, fullgraph=True, dynamic=False)
        functions = {"reference": plain.log_prob, "torch.compile": code, "pnf": ours.log_prob}
        arguments = x[:batch].contiguous(), condition[:batch].contiguous()
        yield Row(
            f"log_prob of the same, evaluation, batch {batch}",
            {key: lambda f=f, a=arguments: quiet(f, *a) for key, f in functions.items()},
        )


def quiet(function: Callable[..., Any], *arguments: Tensor) -> None:
    with torch.no_grad():
        function(*arguments)


def peers() -> dict[str, Any]:
    """Flows from parts of other libraries: 8 affine couplings over 12 x 16 x 16, with residual networks 64 wide."""
    size, channels, couplings, hidden, blocks = (12, 16, 16), 12, 8, 64, 4
    found: dict[str, Any] = {}

    class Network(torch.nn.Module):
        """The plain network of their examples, without normalisation and with skip connections only in its blocks."""

        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.first = torch.nn.Conv2d(inputs, hidden, 3, padding=1)
            self.blocks = torch.nn.ModuleList(
                torch.nn.Sequential(
                    torch.nn.ReLU(),
                    torch.nn.Conv2d(hidden, hidden, 3, padding=1),
                    torch.nn.ReLU(),
                    torch.nn.Conv2d(hidden, hidden, 3, padding=1),
                )
                for _ in range(blocks)
            )
            self.last = torch.nn.Conv2d(hidden, outputs, 1)

        def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:  # noqa: ARG002 - nflows gives one
            h = self.first(x)
            for block in self.blocks:
                h = h + block(h)
            return self.last(h.relu())

    try:
        import normflows

        base = normflows.distributions.DiagGaussian(size, trainable=False)
        flows = [
            layer
            for _ in range(couplings)
            for layer in (
                normflows.flows.AffineCouplingBlock(Network(channels // 2, channels), scale_map="exp"),
                normflows.flows.Permute(channels, mode="swap"),
            )
        ]
        model = normflows.NormalizingFlow(base, flows)
        found["normflows"] = (model, model.log_prob, lambda n, m=model: m.sample(n))
    except ImportError:
        pass
    try:
        from nflows import distributions, flows, transforms

        masks = [(torch.arange(channels) + i) % 2 for i in range(couplings)]
        model = flows.Flow(
            transforms.CompositeTransform([transforms.AffineCouplingTransform(mask, Network) for mask in masks]),
            distributions.StandardNormal(size),
        )
        found["nflows"] = (model, model.log_prob, lambda n, m=model: m.sample(n))
    except ImportError:
        pass
    try:
        from FrEIA import framework, modules

        model = framework.SequenceINN(*size)
        for _ in range(couplings):
            model.append(modules.AllInOneBlock, subnet_constructor=Network)

        def log_prob(x: Tensor, m: Any = model) -> Tensor:
            z, log_det = m(x)
            return log_det - 0.5 * z.flatten(1).square().sum(1)

        found["FrEIA"] = (model, log_prob, lambda n, m=model: m(normal(n, *size), rev=True))
    except ImportError:
        pass
    return found


def peer_rows() -> Iterator[Row]:
    """Time against other libraries, with the convolution FLOPs. Our flow has as many couplings and is as wide."""
    x = normal(16, 12, 16, 16)
    torch.manual_seed(0)
    ours = fast.RealNVP((12, 16, 16), hidden=64, blocks=4, num_couplings=7, scales=1, norm="act").to(DEVICE)
    ours(x)
    plain = reference.RealNVP((12, 16, 16), hidden=64, blocks=4, num_couplings=7, scales=1, norm="act").to(DEVICE)
    plain(x)
    work = {"pnf": record(lambda: plain.log_prob(x)).flops()}
    models = {"pnf": (ours, ours.log_prob, lambda n: ours.sample(n)), **peers()}
    for model, *_ in models.values():
        model.to(DEVICE)
    for name, (_, log_prob, _) in models.items():
        work.setdefault(name, record(lambda f=log_prob: f(x)).flops())
    labels = {name: f"{name} ({work[name] / 1e9:.1f} GFLOP)" for name in models}
    yield Row(
        "training step of 8 couplings, 12x16x16, batch 16",
        {labels[k]: step(m, lambda x, f=f: -f(x).mean(), x) for k, (m, f, _) in models.items()},
    )
    for model, *_ in models.values():
        model.eval()
    yield Row("log_prob of the same", {labels[k]: lambda f=f: quiet(f, x) for k, (_, f, _) in models.items()})
    yield Row("sample of the same", {labels[k]: lambda f=f: quiet(lambda: f(16)) for k, (_, _, f) in models.items()})


def memory_rows() -> Iterator[dict[str, Any]]:
    """The increase of peak memory in a training step, in a separate process, and the times of both kinds by turns."""
    # Free memory returns to the system at once, so that the peak is that of memory in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    for couplings in (4, 8, 16):
        times = race(Row("", {memory: step_with(memory, couplings) for memory in ("plain", "invertible")}))
        for memory, seconds in times.items():
            script = [sys.executable, __file__, "--step", memory, str(couplings)]
            done = subprocess.run(script, capture_output=True, check=True, env=environment)
            yield {
                "memory": memory,
                "couplings": couplings,
                "mib": float(done.stdout),
                "seconds": statistics.median(seconds),
            }


def step_with(memory: Any, couplings: int) -> Call:
    torch.manual_seed(0)
    size = (12, 32, 32)
    flow = fast.RealNVP(size, hidden=32, blocks=1, num_couplings=couplings - 1, scales=1, norm="batch", memory=memory)
    return step(flow.to(DEVICE), nll(flow), normal(32, *size))


def memory_of_a_step(memory: str, couplings: int) -> float:
    """The increase of peak memory in MiB."""
    run, device = step_with(memory, couplings), torch.device(DEVICE)
    for _ in range(3):
        run()
    reset_peak_memory(device)
    start = most_memory(device)
    run()
    return (most_memory(device) - start) / 2**20


def scaling_rows() -> Iterator[dict[str, Any]]:
    """A training step at fixed pixels per batch, as images grow."""
    for size, levels, batch in ((32, 2, 64), (64, 3, 16), (128, 4, 4), (256, 5, 1)):
        torch.manual_seed(0)
        flow = fast.ProgressiveFlow((3, size, size), levels, hidden=32, blocks=2, num_couplings=1, scales=1).to(DEVICE)
        x = torch.rand(batch, 3, size, size, device=DEVICE)
        times = race(Row("", {"pnf": step(flow, nll(flow), x)}))["pnf"]
        yield {"size": size, "batch": batch, "seconds": statistics.median(times)}


FIRST_STEP = """
import time, torch
start = time.perf_counter()
from pnf.fast import ProgressiveFlow
device = "cuda" if torch.cuda.is_available() else "cpu"
flow = ProgressiveFlow((3, 32, 32), 2, hidden=64, blocks=4, scales=1).to(device)
flow.log_prob(torch.rand(16, 3, 32, 32, device=device)).mean().backward()
float(next(flow.parameters()).grad.sum())
print(time.perf_counter() - start)
"""


def first_step() -> float:
    """Seconds from the import of pnf to the end of a first forward and backward, in a separate process."""
    # -P: the working folder may hold the sources.
    done = subprocess.run([sys.executable, "-P", "-c", FIRST_STEP], capture_output=True, check=True)
    return float(done.stdout)


def race(row: Row) -> dict[str, list[float]]:
    """Seconds of each call in each round."""

    synchronise = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None

    def timed(call: Call) -> float:
        synchronise()
        start = time.perf_counter()
        call()
        synchronise()
        return time.perf_counter() - start

    for call in row.calls.values():
        call()
    once = sum(timed(call) for call in row.calls.values())
    rounds = min(max(round(SECONDS / once), ROUNDS[0]), ROUNDS[1])
    durations: dict[str, list[float]] = {name: [] for name in row.calls}
    order = list(row.calls)
    gc.collect()
    gc.disable()
    for _ in range(rounds):
        order = [*order[1:], order[0]]
        for name in order:
            durations[name].append(timed(row.calls[name]))
    gc.enable()
    return durations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=Path("models.json"))
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile, which takes minutes")
    options = parser.parse_args()
    exact_arithmetic()
    if options.step:
        print(memory_of_a_step(options.step[0], int(options.step[1])))
        return
    results: dict[str, Any] = {
        "machine": machine(),
        "commit_info": get_commit_info(),
        "date": datetime.now(UTC).date().isoformat(),
        "rows": [],
        "memory": [],
        "scaling": [],
    }
    try:
        makers = [training_rows(), inference_rows(), peer_rows(), *([] if options.no_compile else [compiled_rows()])]
        for maker in track(makers, "models"):
            for row in maker:
                if options.only in row.name:
                    seconds = {name: statistics.median(times) for name, times in race(row).items()}
                    results["rows"].append({"name": row.name, "seconds": seconds})
                    options.results.write_text(json.dumps(results, indent=2) + "\n")
        for name, rows in (("memory", memory_rows()), ("scaling", scaling_rows())):
            results[name] = list(rows) if options.only in name else []
        results["first_step"] = first_step()
        options.results.write_text(json.dumps(results, indent=2) + "\n")
    except KeyboardInterrupt:
        print("stopped; what was measured:")
    finally:
        print(report([results]))


def machine() -> dict[str, Any]:
    return {
        "processor": processor(torch.device("cpu")),
        "cuda": torch.cuda.get_device_name() if DEVICE == "cuda" else None,
        "threads": torch.get_num_threads(),
        "pnf": pnf.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
