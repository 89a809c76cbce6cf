"""Launches of kernels that Triton has compiled before."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

REMEMBERED = 1024
"""Launches that a kernel remembers, each of other sizes, before it forgets them all."""


class CachedLaunch:
    """A kernel of Triton that remembers its launches: ``kernel[grid](*arguments, **options)``.

    Triton asks of every argument whether the code must be another one, which takes longer than all else that it does
    for a launch. This asks whether there was a launch of the same numbers, with tensors of the same dtypes that are
    aligned alike, on the same device. If so, what was compiled for it is launched; otherwise Triton is asked.

    A tuple counts as the same if it is the same object. Debugging and instrumentation that are switched on after a
    launch do not compile it again; hooks of launches are called as always.
    """

    def __init__(self, kernel: JITFunction[Any]) -> None:
        self.kernel = kernel
        self._launches: dict[tuple[Any, ...], tuple[Callable[..., None], tuple[Any, ...]]] = {}

    def __getitem__(self, grid: tuple[int, ...] | Callable[..., tuple[int, ...]]) -> Callable[..., None]:
        """A function of the kernel's arguments, constants included, and of Triton's options by keyword."""

        def launch(*args: Any, **options: Any) -> None:
            device = driver.active.get_current_device()
            # True, 1 and 1.0 are equal, and three codes.
            key = [device, grid, *options.items(), *map(type, args)]
            for x in args:
                if isinstance(x, Tensor):
                    key.append(x.dtype)
                    key.append(x.data_ptr() % 16 == 0)
                else:
                    key.append(id(x) if isinstance(x, tuple) else x)
            found = self._launches.get(known := tuple(key))
            if found is None:
                self._compile(known, grid, args, options)
            else:
                found[0](*args, stream=driver.active.get_current_stream(device))

        return launch

    def _compile(self, key: tuple[Any, ...], grid: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Launch the kernel as Triton does, and remember it."""
        compiled = self.kernel[grid](*args, **options)
        if compiled is None or callable(grid) or len(args) < len(self.kernel.arg_names):
            return
        if len(self._launches) == REMEMBERED:
            self._launches.clear()
        # While the arguments are kept no other tuples have their ids.
        tuples = tuple(x for x in args if isinstance(x, tuple))
        self._launches[key] = compiled[(*grid, 1, 1)[:3]], tuples


def cached_launch(kernel: Any) -> Any:
    """Let a kernel of ``triton.jit`` remember its launches; one of the interpreter, or on AMD's GPUs, stays as it is.

    There a kernel also depends on whether a tensor has more than 2 GiB.
    """
    return CachedLaunch(kernel) if isinstance(kernel, JITFunction) and torch.version.hip is None else kernel
