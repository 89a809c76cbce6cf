"""A machine with a GPU as far as Python sees, for ``pytest -p stand_in tests/gpu``: no line breaks on its first day.

Tensors are on the CPU and say that they are on a GPU. The launchers of Triton's kernels have the interpreter run them,
those of CUDA's kernels the C++ kernels of the CPU, which take the same arguments but the stream. Streams are numbers,
and a graph repeats the operators that it saw.
"""

import importlib
import itertools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pnf

REMOTE = "_is_on_another_device"

launches: list[tuple[str, int]] = []
"""The CUDA kernels that were launched, and their streams."""


class Stream:
    numbers = itertools.count(1)
    current: list["Stream"] = []

    def __init__(self, *_: Any) -> None:
        self.cuda_stream = next(Stream.numbers)

    def wait_stream(self, other: "Stream") -> None:
        assert isinstance(other, Stream)


Stream.current.append(Stream())


@contextmanager
def on_stream(stream: Stream) -> Iterator[None]:
    Stream.current.append(stream)
    yield
    Stream.current.pop()


def _refuse(*_: Any) -> None:
    raise RuntimeError("operation not permitted when stream is capturing")


class Graph(TorchDispatchMode):
    """The operators that run inside ``torch.cuda.graph``, with tensors whose memory :meth:`replay` fills anew.

    Nothing may be read from a GPU meanwhile, and what they changed is as before in the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for x in tree_leaves(args[i] if i < len(args) else (kwargs or {}).get(argument.name)):
                    self.keep(x)
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.calls.append((func, args, kwargs or {}, out))
        return out

    def __enter__(self) -> "Graph":
        self.locked = patch.multiple(torch.Tensor, item=_refuse, tolist=_refuse, __bool__=_refuse)
        self.locked.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.locked.stop()
        for x, before in self.before.values():
            x.copy_(before)
        self.before.clear()

    def keep(self, x: Any) -> None:
        if isinstance(x, Tensor) and x.numel() and x.untyped_storage().data_ptr() not in self.before:
            whole = x.detach().as_strided((x.untyped_storage().nbytes() // x.itemsize,), (1,), 0)
            self.before[x.untyped_storage().data_ptr()] = whole, _clone(whole)

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, out in self.calls:
                for to, result in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(to, Tensor) and to is not result:
                        to.copy_(result)


class Twin:
    """The CUDA kernels: those of the CPU, on one thread."""

    def __init__(self, cpu: Any) -> None:
        self.cpu = cpu

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self.cpu, name)

        def launch(*args: Any) -> None:
            launches.append((name, args[-1]))
            kernel(*args[:-1], 1)

        return launch


def elsewhere(x: Tensor) -> Tensor:
    """A copy on another device than the GPU; copies of it are there, too."""
    copy = _clone(x.detach())
    setattr(copy, REMOTE, True)
    return copy


_clone = Tensor.clone


def _clone_there(x: Tensor, **options: Any) -> Tensor:
    return elsewhere(x) if hasattr(x, REMOTE) else _clone(x, **options)


def _register() -> None:
    """Let every op have on the CPU what it has on a GPU."""
    package = ModuleType("pnf.ops")
    package.__path__ = [str(Path(pnf.__file__).parent / "ops")]
    sys.modules["pnf.ops"] = package
    library, devices = (importlib.import_module(f"pnf.ops.{name}") for name in ("_library", "_devices"))
    del sys.modules["pnf.ops"]
    built = library.extension()
    stand_in = SimpleNamespace(cpu=built.cpu, cuda=Twin(built.cpu), build={**built.build, "cuda": True})
    library.extension = lambda: stand_in
    library.DEVICES = {"cpp": "xpu", "cuda": "cpu", "triton": "cpu"}
    library.current_stream = lambda index: torch.cuda.current_stream(index).cuda_stream
    devices._PROBES = dict.fromkeys(devices._PROBES, lambda: "")
    importlib.import_module("pnf.ops")


def _disguise() -> None:
    torch.Tensor.get_device = lambda x: -1 if hasattr(x, REMOTE) else 0
    torch.Tensor.is_cpu = property(lambda x: hasattr(x, REMOTE))
    torch.Tensor.clone = _clone_there
    torch.cuda.device = lambda index: nullcontext()
    torch.cuda.Stream, torch.cuda.stream, torch.cuda.CUDAGraph = Stream, on_stream, Graph
    torch.cuda.current_stream = lambda device=None: Stream.current[-1]
    torch.cuda.graph = lambda graph: graph
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.cuda.synchronize = lambda device=None: None
    graphs = importlib.import_module("pnf.cuda_graphs")
    graphs.can_capture = lambda device: True


_register()
_disguise()
