"""Launches that a kernel remembers are those that Triton would make, on a machine with two GPUs that is a fake."""

import gc
import inspect
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
import triton.language as tl
from kernel_table import run
from launching import Machine, noting
from torch import Tensor
from triton import knobs
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

import pnf.ops  # noqa: F401 - registers every family
from pnf.kernels import _launch

SOURCE = Path(inspect.getfile(_launch)).read_text()


def _kernel(y, x, n, sizes, BLOCK: tl.constexpr):
    tl.store(y, tl.load(x) + n + sizes[0] + BLOCK)


class Sizes(NamedTuple):
    """A tuple of a kernel's arguments."""

    n: int
    WIDTH: tl.constexpr = tl.constexpr(4)


SIZES = Sizes(3)


@pytest.fixture
def machine() -> Iterator[Machine]:
    with noting() as found:
        yield found


def launcher(module: Any = _launch) -> Any:
    """A new kernel that remembers its launches."""
    return module.cached_launch(JITFunction(_kernel))


class Launch(NamedTuple):
    """A launch of the kernel."""

    y: Tensor
    x: Tensor
    n: Any = 7
    sizes: Any = SIZES
    block: Any = 64
    grid: Any = (5,)
    device: int = 0
    num_warps: int = 4

    def on(self, kernel: Any, machine: Machine) -> tuple[Any, ...]:
        """What is launched: the kernel that would be compiled, its grid, its stream and its arguments."""
        machine.device = self.device
        machine.launches.clear()
        kernel[self.grid](self.y, self.x, self.n, self.sizes, self.block, num_warps=self.num_warps)
        (found,) = machine.launches
        return found.kernel.what, found.grid, found.stream, [id(x) for x in found.arguments]


MEMORY = torch.zeros(64)
LAUNCH = Launch(MEMORY, MEMORY[4:])

CHANGES = {
    "the alignment of a tensor": LAUNCH._replace(x=MEMORY[1:]),
    "the dtype of a tensor": LAUNCH._replace(x=MEMORY.half()),
    "a number that is 1": LAUNCH._replace(n=1),
    "a number that is a multiple of 16": LAUNCH._replace(n=32),
    "a number of 64 bits": LAUNCH._replace(n=2**31 + 1),
    "a number's type": LAUNCH._replace(n=7.0),
    "a constant": LAUNCH._replace(block=128),
    "a tuple": LAUNCH._replace(sizes=Sizes(16)),
    "a tuple's constant": LAUNCH._replace(sizes=Sizes(3, tl.constexpr(8))),
    "no argument": LAUNCH._replace(n=None),
    "the grid": LAUNCH._replace(grid=(5, 2)),
    "an option": LAUNCH._replace(num_warps=8),
    "the device": LAUNCH._replace(device=1),
}


def is_right(kernel: Any, other: Launch, machine: Machine) -> bool:
    """Whether two launches by turns are those of plain Triton."""
    plain = JITFunction(_kernel)
    return all(launch.on(kernel, machine) == launch.on(plain, machine) for launch in (LAUNCH, other) * 2)


@pytest.mark.parametrize("other", CHANGES.values(), ids=CHANGES)
def test_launches_what_triton_does(other: Launch, machine: Machine) -> None:
    kernel = launcher()
    assert is_right(kernel, other, machine)
    machine.asked = 0
    assert LAUNCH.on(kernel, machine) != other.on(kernel, machine)
    assert not machine.asked  # both are remembered


FAULTS = {
    "the alignment of a tensor": ("x.data_ptr() % 16 == 0", "True"),
    "the dtype of a tensor": ("key.append(x.dtype)", "pass"),
    "a number that is 1": ("else x)", "else 0)"),
    "a number that is a multiple of 16": ("else x)", "else x % 5)"),
    "a number of 64 bits": ("else x)", "else x % 2)"),
    "a number's type": (", *map(type, args)]", "]"),
    "a constant": ("else x)", "else 0)"),
    "a tuple": ("id(x) if isinstance(x, tuple)", "0 if isinstance(x, tuple)"),
    "a tuple's constant": ("id(x) if isinstance(x, tuple)", "x[0] if isinstance(x, tuple)"),
    "the grid": ("[device, grid,", "[device,"),
    "an option": ("*options.items(), ", ""),
    "the device": ("[device, grid,", "[grid,"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_key_that_leaves_something_out_is_found(what: str, machine: Machine) -> None:
    right, wrong = FAULTS[what]
    assert SOURCE.count(right) == 1
    module = ModuleType("faulty")
    exec(SOURCE.replace(right, wrong), module.__dict__)
    assert not is_right(launcher(module), CHANGES[what], machine)


def test_grid_that_is_a_function(machine: Machine) -> None:
    def grid(meta: dict[str, Any]) -> tuple[int, ...]:
        return (meta["n"] // 2,)

    assert is_right(launcher(), LAUNCH._replace(grid=grid), machine)
    assert LAUNCH._replace(grid=grid).on(launcher(), machine)[1] == (3, 1, 1)


def test_constants_by_keyword(machine: Machine) -> None:
    kernel = launcher()
    for _ in range(2):
        kernel[(5,)](MEMORY, MEMORY[4:], 7, SIZES, BLOCK=64)
    first, second = machine.launches
    assert first.kernel is second.kernel


def test_tuples_of_the_same_place_in_memory(machine: Machine) -> None:
    """A tuple that was thrown away leaves its id to the next."""
    kernel, plain = launcher(), JITFunction(_kernel)
    for i in range(200):
        launch = LAUNCH._replace(sizes=Sizes(i))
        assert launch.on(kernel, machine)[0] == launch.on(plain, machine)[0]
        del launch


def test_launches_beyond_those_that_are_remembered(machine: Machine) -> None:
    kernel, plain = launcher(), JITFunction(_kernel)
    for n in range(_launch.REMEMBERED + 2):
        launch = LAUNCH._replace(n=n)
        assert launch.on(kernel, machine)[0] == launch.on(plain, machine)[0]
    assert len(kernel._launches) == 2


def test_hooks_of_launches_are_called(machine: Machine) -> None:
    kernel, names = launcher(), []
    LAUNCH.on(kernel, machine)

    def hook(metadata: Any) -> None:
        names.append(metadata.get()["name"])

    knobs.runtime.launch_enter_hook.add(hook)
    try:
        machine.asked = 0
        LAUNCH.on(kernel, machine)
    finally:
        knobs.runtime.launch_enter_hook.remove(hook)
    assert names == ["_kernel"]
    assert not machine.asked


def test_no_tensor_is_kept(machine: Machine) -> None:
    kernel, x = launcher(), torch.zeros(4)
    there = weakref.ref(x)
    LAUNCH._replace(x=x).on(kernel, machine)
    machine.launches.clear()
    del x
    gc.collect()
    assert there() is None


def test_compiles_ahead_without_a_launch(machine: Machine) -> None:
    """A run of Triton that launches nothing returns nothing to remember."""
    kernel, ahead = launcher(), lambda *args, **options: None
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(JITFunction, "run", ahead)
        kernel[(5,)](*LAUNCH[:5])
    assert not kernel._launches
    assert is_right(kernel, CHANGES["a constant"], machine)


def test_kernels_of_amd_and_of_the_interpreter_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    interpreted = InterpretedFunction(_kernel)
    assert _launch.cached_launch(interpreted) is interpreted
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert isinstance(launcher(), JITFunction)


@pytest.mark.skipif(torch.version.hip is not None, reason="AMD's GPUs ask Triton at every launch")
def test_every_kernel_remembers() -> None:
    """All calls of tests/kernels/cases.py, twice."""
    assert run("launching.py", "", interpret=False) == {"wrong": [], "never launched": []}
