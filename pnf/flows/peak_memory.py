"""Prediction of a computation's peak memory without running it, and batches that keep within a bound."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


def peak_memory(function: Callable[[], object]) -> int:
    """The peak of the bytes of new tensors that ``function`` holds at once.

    It runs on tensors with shapes and without memory, so its time depends only on the number of operators, about a
    millisecond for each. Existing tensors, such as the parameters of a flow, and memory inside operators do not count.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), LiveMemory() as live:
        function()
    return live.peak


class MemoryLimitError(ValueError):
    """One example takes more memory than is allowed."""


@torch.no_grad()
def in_batches(
    owner: str, function: Callable[..., Tensor], tensors: Sequence[Tensor], max_memory: int | None
) -> Tensor:
    """Compute ``function(*tensors)`` in the fewest batches along dim 0 that keep within ``max_memory`` bytes.

    Raises:
        MemoryLimitError: one example takes more.
    """
    n = len(tensors[0])
    if max_memory is None or n == 0:
        return function(*tensors)
    results: list[Tensor] = []

    def peak(batch: int) -> int:
        def run() -> None:
            results.append(function(*(x.new_empty(batch, *x.shape[1:]) for x in tensors)))

        return peak_memory(run)

    least, most = peak(1), peak(n)
    result = results[0].nbytes
    left = max_memory - n * result
    if left < least:
        raise MemoryLimitError(
            f"{owner}: one example takes {_mebibytes(least)}, and max_memory leaves {_mebibytes(left)} beside the "
            f"{_mebibytes(n * result)} of the result"
        )
    # The peak is a maximum of linear functions of the batch size, and so convex.
    size = n if most <= left + n * result else 1 + (left - least) * (n - 1) // max(most - least, 1)
    out: Tensor | None = None
    for start in range(0, n, size):
        found = function(*(x[start : start + size] for x in tensors))
        if size == n:
            return found
        out = found.new_empty(n, *found.shape[1:]) if out is None else out
        out[start : start + size] = found
    assert out is not None
    return out


def _mebibytes(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


class LiveMemory(TorchDispatchMode):
    """Adds up the bytes of results during their lifetimes.

    Attributes:
        peak: their most at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Arguments existed before, so results that are views of them, or written into them, do not count.
        tree_map_only(Tensor, self._know, (args, kwargs))
        return tree_map_only(Tensor, self._count, func(*args, **(kwargs or {})))

    def _know(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            # Later, another storage can get the same address. It counts.
            weakref.finalize(storage, self.known.discard, storage._cdata)
        return x

    def _count(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key, size)
        return x

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size
