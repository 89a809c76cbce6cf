"""Kernels that a training step launches and compiles on a GPU: ``python benchmarks/launches.py [PRESET ...]``.

It needs no GPU. The flows are on PyTorch's meta device, whose tensors have no values, and every op takes the path that
it takes on CUDA. pnf's own launchers are counted as they are called. An operator of PyTorch counts as the kernels that
PyTorch 2.13 launches for it: most launch one, views and allocations none, and KERNELS names the others. What cuDNN
launches inside of a convolution is not counted. A kernel of Triton is compiled once for each of its specialisations.
"""

import argparse
import importlib
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from report import markdown
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction, create_function_from_signature

PRESETS = ("cifar10", "celeba64", "mnist-conv", "mnist-dense")

CHUNK, MOST_CHUNKS, MOST_TENSORS = 65536, 320, (110, 64, 48, 36, 30)
"""Sizes of a launch for many tensors, as in ATen/native/cuda/MultiTensorApply.cuh."""

TARGET = GPUTarget("cuda", 90, 32)

MULTIPROCESSORS = {"A100": 108, "H100": 132}

LAYERS = 384
"""The most layers in a launch of weight_norm, kMostLayers in csrc/cuda/weight_norm.cu."""


class Count:
    """What was launched since the last :meth:`clear`, by the name of an operator, and the kernels to compile.

    Attributes:
        programs: the numbers of programs of each launch of a Triton kernel, by its name.
    """

    def __init__(self) -> None:
        self.launches: Counter[str] = Counter()
        self.programs: defaultdict[str, list[int]] = defaultdict(list)
        self.kernels: set[tuple[str, str]] = set()

    def clear(self) -> None:
        self.launches.clear()
        self.programs.clear()


COUNT = Count()


def _of_lists(lists: int) -> Callable[..., int]:
    """The launches of an operator on several lists of tensors, which takes some of their chunks at a time."""

    def count(args: Sequence[Any], _: Any) -> int:
        launches, tensors, chunks = 0, 0, 0
        for x in args[0]:
            tensors += 1
            for _ in range(math.ceil(x.numel() / CHUNK)):
                chunks += 1
                if chunks == MOST_CHUNKS:
                    launches, tensors, chunks = launches + 1, 1, 0
            if tensors == MOST_TENSORS[lists - 1]:
                launches, tensors, chunks = launches + 1, 0, 0
        return launches + (chunks > 0)

    return count


def _convolution(args: Sequence[Any], out: Tensor) -> int:
    """One, and one for the bias, and one for a weight in another layout than the images."""
    return 1 + (args[2] is not None) + _laid_out_again(args[1], out)


def _convolution_backward(args: Sequence[Any], out: Sequence[Tensor | None]) -> int:
    again = sum(_laid_out_again(args[2], args[0]) for x in out[:1] if x is not None)
    return again + sum(x is not None for x in out)


def _as_cudnn(args: Sequence[Any], out: Any) -> Any:
    """The results in the layout that cuDNN gives them, which those on the meta device have not."""
    if not any(_has_channels_last(x) for x in args[:3] if isinstance(x, Tensor)):
        return out
    if isinstance(out, Tensor):
        return out.contiguous(memory_format=torch.channels_last)
    return tuple(_as_cudnn(args, x) if x is not None and x.dim() == 4 else x for x in out)


def _has_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _laid_out_again(weight: Tensor, images: Tensor) -> bool:
    """Whether cuDNN takes a copy of the weight, in the layout of the images."""
    return _has_channels_last(images) and not weight.is_contiguous(memory_format=torch.channels_last)


KERNELS: dict[str, Callable[[Any, Any], int]] = {
    "aten::convolution": _convolution,
    "aten::convolution_backward": _convolution_backward,
    # A matrix product writes over a copy of what it adds, unless that is a bias.
    "aten::addmm": lambda args, _: 1 + (args[0].dim() > 1),
    "aten::_fused_adam_": _of_lists(4),
    "aten::_foreach_norm": lambda args, _: 2 * _of_lists(1)(args, None),
    "aten::_foreach_mul_": _of_lists(1),
    "aten::_foreach_mul": _of_lists(2),
    "aten::_foreach_add_": _of_lists(2),
    "aten::_foreach_sub": _of_lists(3),
    "aten::_foreach_lerp_": _of_lists(2),
    "aten::_foreach_copy_": _of_lists(2),
    "aten::native_batch_norm": lambda *_: 2,
    "aten::native_batch_norm_backward": lambda *_: 2,
    "aten::var_mean": lambda *_: 1,
}
"""The kernels of an operator, from its arguments and results, where they are not one."""


class Operators(TorchDispatchMode):
    """Counts the operators of PyTorch."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition(".")[0]
        compiled = _compiled(name) if name.startswith("pnf::") else None
        if compiled is not None:
            with self:  # the operators of PyTorch in it count, too
                return compiled(*args)
        out = func(*args, **(kwargs or {}))
        if "convolution" in name:
            out = _as_cudnn(args, out)
        if not (func.is_view or name.startswith("pnf::") or "empty" in name or self.is_free(name, args, out)):
            COUNT.launches[name] += KERNELS.get(name, lambda *_: 1)(args, out)
        return out

    @staticmethod
    def is_free(name: str, args: Any, out: Any) -> bool:
        """Whether nothing is computed."""
        if name in ("aten::_unsafe_view", "aten::detach", "aten::lift_fresh"):
            return True
        return not any(x.numel() for x in tree_leaves((args, out)) if isinstance(x, Tensor))


def _compiled(name: str) -> Callable[..., Any] | None:
    """What runs on a GPU for an op of pnf."""
    kinds: dict[str, Callable[..., Any]] = importlib.import_module("pnf.ops._library").KERNELS[
        name.removeprefix("pnf::")
    ]
    return kinds.get("triton") or kinds.get("cuda")


class Cuda:
    """The compiled CUDA kernels."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        def launch(*args: Any) -> None:
            layers = len(args[-3]) // 3 if name.startswith("weight_norm") else 1
            COUNT.launches[f"pnf::{name}"] += math.ceil(layers / LAYERS)

        return launch


def _run(self: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **options: Any) -> None:  # noqa: ARG001
    """Count a launch of a Triton kernel in place of it."""
    if self not in _BINDERS:
        backend = make_backend(TARGET)
        _BINDERS[self] = create_function_from_signature(self.signature, self.params, backend)
    _, specialization, given = _BINDERS[self](*args, **options)
    name = f"{self.fn.__module__.removeprefix('pnf.kernels.')}.{self.fn.__name__}"
    COUNT.launches[f"triton::{name}"] += 1
    COUNT.programs[name].append(math.prod(grid))
    COUNT.kernels.add((name, f"{specialization} {given}"))


_BINDERS: dict[JITFunction[Any], Any] = {}


class _Meta(str):
    """The meta device, whose dispatch key is not in capitals."""

    def upper(self) -> str:
        return "Meta"


def pretend() -> None:
    """Let pnf's ops have on the meta device what they have on CUDA."""
    package = ModuleType("pnf.ops")
    package.__path__ = [str(Path(importlib.import_module("pnf").__file__ or "").parent / "ops")]
    sys.modules["pnf.ops"] = package
    library = importlib.import_module("pnf.ops._library")
    del sys.modules["pnf.ops"]
    library.extension = lambda: SimpleNamespace(cpu=Cuda(), cuda=Cuda(), build={"cuda": True})
    library.DEVICES = {"cpp": "xpu", "cuda": _Meta(), "triton": _Meta()}
    library.current_stream = lambda _: 0
    with patch.object(torch.library, "register_fake"):  # what runs on meta tensors are the ops themselves
        importlib.import_module("pnf.ops")
    JITFunction.run = _run
    device = {"get_current_device": lambda: 0, "get_current_stream": lambda _: 0}
    driver.set_active(SimpleNamespace(get_current_target=lambda: TARGET, **device))
    torch.cuda.device = lambda _: nullcontext()
    foreach: Any = importlib.import_module("torch.utils._foreach_utils")
    foreach._get_foreach_kernels_supported_devices = lambda: ["meta"]
    optimizer: Any = importlib.import_module("torch.optim.optimizer")
    optimizer._get_fused_kernels_supported_devices = lambda: ["meta"]


class Wrapped(nn.Module):
    """A module as Lightning Fabric wraps it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any) -> Any:
        return self.module(*args)


class Fabric:
    """Lightning Fabric with one process on the meta device."""

    device, world_size, global_rank, is_global_zero = torch.device("meta"), 1, 0, True

    def setup_module(self, module: nn.Module) -> nn.Module:
        return Wrapped(module)

    def setup_optimizers(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        return optimizer

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def no_backward_sync(self, *_: Any, **__: Any) -> Any:
        return nullcontext()

    def to_device(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        return parts


def measure(preset: str, batch: int) -> dict[str, Any]:
    """The launches of a step of a preset, and the kernels of two steps, validation, evaluation and two samples."""
    from pnf import cuda_graphs
    from pnf.training import preset_config, trainer
    from pnf.training.batches import Batch
    from pnf.training.build import build_flow, stage_dims, stage_modules, stage_names
    from pnf.training.stage_trainer import StageTrainer
    from pnf.training.trainer import _Loop

    cuda_graphs.can_capture = lambda _: True
    config = replace(preset_config(preset), batch_size=batch)
    channels = 1 if preset.startswith("mnist") else 3
    flow = build_flow(config, channels).to("meta")
    trainer.GraphedStep = lambda step, *_: step  # type: ignore[assignment, misc]
    fabric: Any = Fabric()
    trainers = [
        StageTrainer(name, stage, dims, config, fabric)
        for name, stage, dims in zip(stage_names(flow), stage_modules(flow), stage_dims(flow), strict=True)
    ]
    x = Batch(torch.empty(batch, channels, config.size, config.size, device="meta"))
    loop = _Loop(config, flow, stage_names(flow), trainers, lambda _: x, x, fabric, Path(), None)  # type: ignore[arg-type]
    with Operators():
        loop.train(x, trainers)  # sets what the first batch sets
        COUNT.clear()
        loop.train(x, trainers)
        launches, first = COUNT.launches.copy(), set(COUNT.kernels)
        programs = {name: sorted(found) for name, found in COUNT.programs.items()}
        with torch.no_grad():
            flow.eval()
            for size in (batch, 40, 250):
                flow.log_prob(torch.empty(size, *flow.shape, device="meta"))
            for size in (64, 10):
                flow.inverse(torch.empty(size, flow.dims, device="meta"))
    return {"launches": launches, "programs": programs, "first": first, "all": set(COUNT.kernels)}


def filled(preset: str, programs: dict[str, list[int]]) -> list[list[str]]:
    """Rows of a table of the programs that each kernel's launches have."""
    return [
        [
            f"{preset}, {name}",
            *(f"{n:,}" for n in (len(found), found[0], found[len(found) // 2], found[-1])),
            *(f"{sum(n < least for n in found):,}" for least in MULTIPROCESSORS.values()),
        ]
        for name, found in sorted(programs.items())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=PRESETS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--by-op", action="store_true", help="the launches by operator")
    parser.add_argument("--programs", action="store_true", help="the programs of each Triton kernel's launches")
    options = parser.parse_args()
    pretend()
    rows, programs = [], []
    for preset in options.presets:
        COUNT.kernels.clear()
        found = measure(preset, options.batch)
        rows.append(
            [
                f"{preset}, {options.batch}",
                *(f"{n:,}" for n in (found["launches"].total(), len(found["first"]), len(found["all"]))),
            ]
        )
        programs += filled(preset, found["programs"])
        if options.by_op:
            for name, n in found["launches"].most_common():
                print(f"{n:6} {name}")
            kernels = Counter(name for name, _ in found["all"])
            for name, n in kernels.most_common():
                print(f"{n:6} {name}")
    head = ["preset, batch", "launches of a step", "Triton kernels to compile before it", "with evaluation, samples"]
    print(markdown(head, rows, left=1))
    if options.programs:
        head = ["preset, kernel", "launches", "fewest programs", "median", "most"]
        head += [f"fewer than an {name} has multiprocessors" for name in MULTIPROCESSORS]
        print("\n" + markdown(head, programs, left=1))


if __name__ == "__main__":
    main()
