"""What a GPU reaches: ``python benchmarks/gpu.py FILE.json PART``, without one ``--small`` on the CPU.

First a large copy and a large product of matrices, then a part. ``ops``: every op against the bandwidth of that copy
and against its reference, from sizes where launches are all to more than 1 GB, and the networks' convolutions in both
layouts of memory. ``presets``: a step of training, log-likelihoods and samples, plain
and as one CUDA graph, stages in turn and at once. ``stages``: a step of the largest stage of each, torch.compile's too.
Results are checked before they are timed. SIGINT ends it with a table of what there is.
"""

import argparse
import functools
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from models import DEVICE, machine, nll, quiet, step
from report import markdown
from report import time as show_time
from rich.progress import track
from torch import Tensor
from torch.autograd import DeviceType
from torch.nn.functional import conv2d
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

from pnf import fast, ops, reference
from pnf.flows.config import progressive_settings
from pnf.training import exact_arithmetic, preset_config, tensor_float_32
from pnf.training.build import stage_inputs, stage_modules
from pnf.training.cuda_streams import Branches

CUDA = DEVICE == "cuda"
Call = Callable[[], Any]

PUBLISHED = "Fused Haar kernels as published (fast_wtconv) are 2.9 to 3.0 times as fast as eager."

SECONDS = 0.3
"""How long a call is repeated."""


def seconds(call: Call) -> float:
    """The median over repetitions, by the device's own clock on a GPU."""
    call()
    durations: list[float] = []
    began = time.perf_counter()
    while len(durations) < 3 or (time.perf_counter() - began < SECONDS and len(durations) < 200):
        if CUDA:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            durations.append(start.elapsed_time(end) / 1e3)
        else:
            before = time.perf_counter()
            call()
            durations.append(time.perf_counter() - before)
    return statistics.median(durations)


def graphed(call: Call) -> Call:
    """The call as one CUDA graph; itself on a CPU."""
    if not CUDA:
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def profiled(call: Call) -> dict[str, float]:
    """Kernels of a call (operators on a CPU), and the share of convolutions in their time."""
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]) as run:
        call()
        if CUDA:
            torch.cuda.synchronize()
    events = run.key_averages()
    spent = {e.key: e.self_device_time_total if CUDA else e.self_cpu_time_total for e in events}
    launched = sum(e.count for e in events if (e.device_type == DeviceType.CUDA) == CUDA)
    convolutions = sum(v for k, v in spent.items() if "convolution" in k)
    # On a GPU both an operator and its kernels are in the list, with the same time.
    return {"launches": launched, "convolutions": convolutions / max(sum(spent.values()) / (2 if CUDA else 1), 1e-9)}


def limits(small: bool) -> dict[str, float]:
    """The bandwidth of a copy, bytes read and written, and the speed of products of matrices."""
    source = torch.randn(2**22 if small else 2**28, device=DEVICE)
    target = torch.empty_like(source)
    found = {"copy, GB/s": 2 * source.nbytes / seconds(lambda: target.copy_(source)) / 1e9}
    n = 512 if small else 8192
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(n, n, device=DEVICE, dtype=dtype) for _ in range(2))
        name = str(dtype).removeprefix("torch.")
        found[f"product of {n}x{n} {name}, TFLOPS"] = 2 * n**3 / seconds(lambda a=a, b=b: a @ b) / 1e12
    return found


def op_calls(
    m: Any, shape: tuple[int, ...], dtype: torch.dtype
) -> dict[str, tuple[Callable[..., Any], list[Tensor], float]]:
    """By op of a module: the function, its arguments, and how many of their bytes the backward reads again."""
    b, c = shape[:2]

    def normal(*size: int) -> Tensor:
        return torch.randn(size, device=DEVICE, dtype=dtype)

    x, half = normal(*shape), normal(b, c, shape[2], shape[3] // 2)
    last = x.contiguous(memory_format=torch.channels_last)
    pixels = torch.rand(shape, device=DEVICE, dtype=dtype)
    raw, log_det = normal(b, 2 * c, *shape[2:]), torch.zeros(b, device=DEVICE)
    vector = torch.rand(c, device=DEVICE)
    again = (x.numel() + raw.numel() / 2) / (x.numel() + raw.numel())
    return {
        "haar_split": (lambda x: m.haar_split(x, -1), [x], 0),
        "haar_split, height": (lambda x: m.haar_split(x, -2), [x], 0),
        "haar_merge": (lambda s, d: m.haar_merge(s, d, -1), [half, half.clone()], 0),
        "haar_pyramid": (lambda x: m.haar_pyramid(x, 2), [x], 0),
        "haar_bounded_split": (lambda x, g: m.haar_bounded_split(x, g, -1), [pixels, vector], 1),
        "lattice_split": (lambda x: m.lattice_split(x, 256, -1), [pixels], 1),
        "act_norm": (m.act_norm, [last, vector, vector.clone(), log_det], 1),
        "affine_coupling": (lambda *a: m.affine_coupling(*a, "checkerboard"), [x, raw, vector, log_det], again),
        "affine_coupling_inverse": (
            lambda *a: m.affine_coupling_inverse(*a, "checkerboard"),
            [x, raw, vector, log_det],
            1,
        ),
        "batch_norm": (lambda x, v: m.batch_norm(x, v)[:2], [last, log_det], 1),
        "batch_norm_relu": (lambda x, w, v: m.batch_norm_relu(x, w, v)[0], [last, vector, vector.clone()], 1),
        "conditioner_input": (
            lambda x, v: m.conditioner_input(x, None, v, mask="checkerboard", parity=0)[0],
            [last, vector],
            1,
        ),
        "mask_apply": (lambda x: m.mask_apply(x, "checkerboard", 0), [x], 0),
        "mask_pack": (lambda x: m.mask_pack(x, "checkerboard", 0), [x], 0),
        "squeeze": (lambda x: m.squeeze(x), [x], 0),
        "logit": (lambda x: m.logit(x, 0.05), [pixels], 1),
        "standard_normal": (m.standard_normal, [x], 1),
    }


def op_rows(small: bool, bandwidth: float) -> Iterator[dict[str, Any]]:
    shapes = [(8, 4, 8, 8), (64, 12, 64, 64), (256, 16, 256, 256)]
    for shape in shapes[:1] if small else shapes:
        for dtype in (torch.float32, torch.bfloat16):
            plain = op_calls(reference, shape, dtype)
            for name, (function, arguments, saved) in op_calls(ops, shape, dtype).items():
                for backward in (False, True):
                    leaves = [a.detach().requires_grad_(backward) for a in arguments]
                    outputs = as_list(function(*leaves))
                    if not backward:
                        check(outputs, as_list(plain[name][0](*leaves)))
                    grads = [torch.randn_like(y) for y in outputs]

                    def call(
                        f: Any = function, leaves: Any = leaves, grads: Any = grads, back: bool = backward
                    ) -> None:
                        results = as_list(f(*leaves))
                        if back:
                            torch.autograd.grad(results, leaves, grads)

                    moved = sum(t.nbytes for t in (*leaves, *outputs))
                    if backward:
                        moved += sum(t.nbytes for t in (*leaves, *outputs)) + round(
                            saved * sum(t.nbytes for t in leaves)
                        )
                    taken, eager = seconds(graphed(call)), seconds(graphed(functools.partial(call, plain[name][0])))
                    yield {
                        "op": name,
                        "passes": "forward+backward" if backward else "forward",
                        "shape": "x".join(map(str, shape)),
                        "dtype": str(dtype).removeprefix("torch."),
                        "seconds": taken,
                        "eager": eager,
                        "launches": profiled(call)["launches"],
                        "share": moved / taken / 1e9 / bandwidth,
                    }


def layout_rows(small: bool) -> Iterator[dict[str, Any]]:
    """A convolution of the presets' networks with its gradients: ``preserve`` is the channels first."""
    formats = {"preserve": torch.contiguous_format, "channels last": torch.channels_last}
    for b, c, n in [(4, 16, 8)] if small else [(64, 64, 32), (64, 128, 16), (64, 32, 64)]:
        for arithmetic in ("float32", "TF32"):
            for name, layout in formats.items():
                x, weight = (
                    torch.randn(shape, device=DEVICE).contiguous(memory_format=layout).requires_grad_()
                    for shape in ((b, c, n, n), (c, c, 3, 3))
                )
                grad = torch.randn_like(x)

                def call(x: Any = x, weight: Any = weight, grad: Any = grad) -> None:
                    torch.autograd.grad(conv2d(x, weight, padding=1), (x, weight), grad)

                with tensor_float_32(arithmetic == "TF32"):
                    taken = seconds(graphed(call))
                yield {
                    "shape": f"{b}x{c}x{n}x{n}",
                    "arithmetic": arithmetic,
                    "layout": name,
                    "seconds": taken,
                    "tflops": 3 * 2 * 9 * b * c * c * n * n / taken / 1e12,
                }


def check(got: list[Tensor], want: list[Tensor]) -> None:
    """Nothing is timed that is wrong; what the reference itself errs by is for the tests to say."""
    for a, b in zip(got, want, strict=True):
        rtol = 2e-2 if b.dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item())


def as_list(out: Any) -> list[Tensor]:
    """The tensors of a result, which may be in tuples and lists."""
    return tree_leaves(out)


def build(module: Any, name: str, small: bool) -> Any:
    """The flow of a preset, or one of its kind that takes no time."""
    config = preset_config(name)
    if small:
        scales = None if config.scales is None else 1
        config = replace(config, size=16, hidden=16, blocks=1, num_couplings=1, scales=scales)
    channels = 1 if name.startswith("mnist") else 3
    torch.manual_seed(0)
    flow = module.ProgressiveFlow((channels, config.size, config.size), config.levels, **progressive_settings(config))
    # The compiled flow is laid out as in training.
    flow.to(DEVICE, memory_format=torch.channels_last if CUDA and module is fast else torch.preserve_format)
    with torch.no_grad():
        flow.log_prob(torch.rand(8, *flow.shape, device=DEVICE))  # sets what the first batch sets
    return flow


def together(flow: Any) -> Callable[[Tensor], Tensor]:
    """The loss of all stages, each on a stream of its own."""
    branches = Branches(torch.device(DEVICE), len(flow.stages))

    def loss(x: Tensor) -> Tensor:
        losses = []
        for i, (stage, image) in enumerate(zip(stage_modules(flow), stage_inputs(flow, x), strict=True)):
            with branches.branch(i):
                losses.append(-stage.log_prob(image).mean())
        branches.join()
        return torch.stack(losses).sum()

    return loss


def preset_rows(small: bool, stage_alone: bool) -> Iterator[dict[str, Any]]:
    for name in ("mnist-dense", "cifar10", "celeba64"):
        for batch in (4,) if small else (64, 256):
            yield from (stage_rows if stage_alone else flow_rows)(name, batch, small)


Work = dict[str, Callable[[], Call]]
"""By label, what makes a call: a graph and the states of an optimiser are there only while they are timed."""


def stage_rows(name: str, batch: int, small: bool) -> Iterator[dict[str, Any]]:
    """The largest stage alone: code for a whole preset takes torch.compile tens of minutes."""
    plain, ours = (build(module, name, small).train() for module in (reference, fast))
    x = torch.rand(batch, *ours.shape, device=DEVICE)

    def loss(flow: Any) -> Callable[[Tensor], Tensor]:
        return lambda y: -flow.stages[-1].log_prob(y).mean()

    def compiled(mode: str) -> Call:
        torch.compiler.reset()
        return step(plain.stages[-1], torch.compile(loss(plain), mode=mode, dynamic=False), x)

    work: Work = {
        "reference": lambda: step(plain.stages[-1], loss(plain), x),
        "pnf": lambda: step(ours.stages[-1], loss(ours), x),
        "pnf, one graph": lambda: graphed(step(ours.stages[-1], loss(ours), x)),
        "torch.compile": lambda: compiled("default"),
        "torch.compile, max-autotune": lambda: compiled("max-autotune-no-cudagraphs" if small else "max-autotune"),
    }
    yield from measured(work, [plain, ours], preset=name, batch=batch, what="training step, largest stage")


def flow_rows(name: str, batch: int, small: bool) -> Iterator[dict[str, Any]]:
    plain, ours = (build(module, name, small) for module in (reference, fast))
    low = build(fast, name, small).set_network_dtype(torch.bfloat16)
    flows = [plain, ours, low]
    x = torch.rand(batch, *ours.shape, device=DEVICE)
    noise = torch.randn(batch, ours.dims, device=DEVICE)
    coarse = ours.encode(x)
    with torch.no_grad():
        check([ours.eval().log_prob(x)], [plain.eval().log_prob(x)])
    training: Work = {
        "reference": lambda: step(plain, nll(plain), x),
        "pnf": lambda: step(ours, nll(ours), x),
        "pnf, one graph": lambda: graphed(step(ours, nll(ours), x)),
        "pnf, one graph, stages at once": lambda: graphed(step(ours, together(ours), x)),
        "pnf, bfloat16": lambda: step(low, nll(low), x),
        "pnf, bfloat16, one graph": lambda: graphed(step(low, nll(low), x)),
    }
    if CUDA:
        training["pnf, TF32"] = lambda: tensor_float_32()(step(ours, nll(ours), x))
    for flow in flows:
        flow.train()
    yield from measured(training, flows, preset=name, batch=batch, what="training step")
    functions: dict[str, Callable[[Any], None]] = {
        "log_prob": lambda f: quiet(f.log_prob, x),
        "sample": lambda f: quiet(f.inverse, noise),
        "upsample": lambda f: quiet(lambda: f.upsample(coarse, noise=0)),
    }
    for flow in flows:
        flow.eval()
    for what, function in functions.items():
        work: Work = {
            "reference": lambda f=function: lambda: f(plain),
            "pnf": lambda f=function: lambda: f(ours),
            "pnf, one graph": lambda f=function: graphed(lambda: f(ours)),
        }
        yield from measured(work, flows, preset=name, batch=batch, what=what)


def measured(work: Work, flows: list[Any], **labels: Any) -> Iterator[dict[str, Any]]:
    """Each call by itself; what does not fit into the device's memory has no time."""
    for label, make in work.items():
        for flow in flows:
            flow.zero_grad()
        gc.collect()
        row: dict[str, Any] = {**labels, "by": label, "seconds": None, "images_per_second": None, "mib": None}
        if CUDA:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            call = make()
            row["seconds"] = seconds(call)
            row["images_per_second"] = labels["batch"] / row["seconds"]
            row["mib"] = torch.cuda.max_memory_allocated() / 2**20 if CUDA else None
            row |= {} if "graph" in label else profiled(call)
            del call
        except torch.OutOfMemoryError:
            pass
        yield row


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    parts = [
        f"- {results['machine']['cuda'] or results['machine']['processor']}, torch {results['machine']['torch']}\n"
        + "\n".join(f"- {name}: {value:.4g}" for name, value in results["limits"].items())
    ]
    cells = [
        [
            *(r[key] for key in ("op", "passes", "shape", "dtype")),
            show_time(r["seconds"]),
            str(r["launches"]),
            f"{r['share']:.0%}",
            f"{r['eager'] / r['seconds']:.1f}x",
        ]
        for r in results["ops"]
    ]
    if cells:
        head = ["op", "passes", "shape", "dtype", "time", "launches", "of a copy", "faster than eager"]
        parts += [markdown(head, cells, left=4), PUBLISHED]
    cells = [
        [r["shape"], r["arithmetic"], r["layout"], show_time(r["seconds"]), f"{r['tflops']:.3g}"]
        for r in results["layouts"]
    ]
    if cells:
        parts.append(markdown(["convolution, 3x3", "", "layout", "time", "TFLOPS"], cells, left=3))
    cells = []
    for r in results["presets"]:
        first = next(q for q in results["presets"] if all(q[k] == r[k] for k in ("preset", "batch", "what")))
        cells.append(
            [
                f"{r['preset']}, {r['batch']}",
                r["what"],
                r["by"],
                show_time(r["seconds"]) if r["seconds"] else "out of memory",
                f"{r['seconds'] / first['seconds']:.2f}" if r["seconds"] and first["seconds"] else "",
                f"{r['images_per_second']:.0f}" if r["seconds"] else "",
                f"{r['mib']:.0f}" if r["mib"] is not None else "",
                str(r.get("launches", "")),
                f"{r['convolutions']:.0%}" if "convolutions" in r else "",
            ]
        )
    if cells:
        head = ["preset, batch", "", "by", "time", "of reference", "images/s", "MiB", "launches", "convolutions"]
        parts.append(markdown(head, cells, left=3))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--small", action="store_true", help="sizes that take no time, which prove the script")
    parser.add_argument("part", choices=["ops", "presets", "stages"])
    options = parser.parse_args()
    exact_arithmetic()
    found = limits(options.small)
    results: dict[str, Any] = {"machine": machine(), "limits": found, "ops": [], "layouts": [], "presets": []}
    parts = (
        {"layouts": layout_rows(options.small), "ops": op_rows(options.small, found["copy, GB/s"])}
        if options.part == "ops"
        else {"presets": preset_rows(options.small, stage_alone=options.part == "stages")}
    )
    try:
        for name, rows in parts.items():
            for row in track(rows, name):
                results[name].append(row)
                options.results.write_text(json.dumps(results, indent=2) + "\n")
    except KeyboardInterrupt:
        print("stopped; what was measured:")
    finally:
        print(table(results))


if __name__ == "__main__":
    main()
