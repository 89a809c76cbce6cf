"""The tests of every compiled op: a family of ops lists its cases, and :class:`OpTests` does the rest.

An implementation may err at most twice as much as the reference does at the same dtype, both measured against the
reference in float64, and by one unit in the last place of the largest result where the reference is exact by luck.
In float64 both sides err, and the error of the reference is predicted from its error in float32.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar, NamedTuple

import numpy
import pytest
import torch
from interpreting import interpreting
from torch import Tensor

import pnf.ops  # noqa: F401 - registers every family
from pnf.ops._library import KERNELS, extension

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
# The number of results that determine the error of the reference, and the most draws to get them. Few results may be
# exact by luck.
KNOWN, DRAWS = 128, 16

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def channels_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if x.dim() > 2 else x


def strided(x: Tensor) -> Tensor:
    return torch.stack((x, x), -1)[..., 1]


def reverse(x: Tensor) -> Tensor:
    return x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))


def offset(x: Tensor) -> Tensor:
    """Copy x to contiguous memory at an address that is aligned for no vector."""
    return torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape)


SPLITS = [
    ((2, 3, 4, 6), -1),
    ((3, 3, 2, 14), 2),
    ((2, 6, 3, 5), 1),
    ((2, 2, 1051), 0),
    ((86,), 0),
    ((2, 5, 1, 2), -1),
    ((0, 2, 4), 1),
    ((2, 0), 1),
]
"""Splits into pairs: runs of 1, less than a vector, more, and more than a tile; an odd number; empty tensors."""

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.Tensor.contiguous,
    "channels_last": channels_last,
    "strided": strided,
    "reversed": reverse,
    "offset": offset,
}


class Case(NamedTuple):
    """Arguments of an op.

    Attributes:
        op: its name in ``torch.ops.pnf``.
        arguments: makes the arguments, in float64 and contiguous on the CPU. A list of tensors counts as one argument.
        differentiable: whether the arguments are far enough from kinks for finite differences.
    """

    op: str
    arguments: Callable[[], Sequence[Any]]
    differentiable: bool = True


class Implementation(NamedTuple):
    """A kind ("reference", "cpp", "triton", "cuda", or "op" for the dispatcher's choice), a device and a C++ level."""

    kind: str
    device: str
    level: int | None = None

    def __str__(self) -> str:
        level = "" if self.level is None else f" {extension().cpu.levels()[self.level]}"
        return f"{self.kind}{level} {self.device}"

    def run(self, op: str, args: Sequence[Any]) -> list[Tensor]:
        function = getattr(torch.ops.pnf, op).default if self.kind == "op" else KERNELS[op][self.kind]
        interpreted = interpreting() if self.kind == "triton" and self.device == "cpu" else nullcontext()
        # The interpreter's NumPy warns about values that are NaN by definition.
        with use_level(self.level), interpreted, torch.no_grad(), numpy.errstate(all="ignore"):
            return as_list(function(*args))


@contextmanager
def use_level(level: int | None) -> Iterator[None]:
    if level is None:
        yield
        return
    before = extension().cpu.level()
    extension().cpu.set_level(level)
    try:
        yield
    finally:
        extension().cpu.set_level(before)


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def implementations(op: str) -> list[Implementation]:
    """The implementations of an op that run here. Without a GPU, Triton's are interpreted.

    The dispatcher's choice on a CPU is left out, since ``test_repeats_bit_for_bit`` compares it.
    """
    found = [Implementation("reference", "cpu"), *(Implementation("op", device) for device in DEVICES[1:])]
    if "cpp" in KERNELS[op]:
        found += [Implementation("cpp", "cpu", level) for level in range(len(extension().cpu.levels()))]
    if "triton" in KERNELS[op]:
        found.append(Implementation("triton", DEVICES[-1]))
    return found


def as_list(out: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else list(out)


def convert(args: Sequence[Any], function: Callable[[Tensor], Tensor]) -> list[Any]:
    """Apply a function to every floating tensor among arguments, in lists too."""
    return [function(a) if isinstance(a, Tensor) else convert(a, function) if isinstance(a, list) else a for a in args]


def largest_errors(low: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    pairs = zip(low, exact, strict=True)
    return [float((b.cpu().double() - c.cpu()).abs().max()) if c.numel() else 0.0 for b, c in pairs]


class Drawn(NamedTuple):
    """Arguments of an op, and the results of the reference.

    Attributes:
        args: the arguments.
        low: the results at the arguments' dtype, or in float32 for float64.
        exact: the results in float64.
        errors: the largest error of each result, over other such arguments too.
    """

    args: list[Any]
    low: list[Tensor]
    exact: list[Tensor]
    errors: list[float]


def draw(op: str, arguments: Callable[[], Sequence[Any]]) -> Drawn:
    """Draw arguments until the error of the reference is known. Return the last draw."""
    fallback, draws = KERNELS[op]["reference"], []
    for _ in range(DRAWS):
        args = list(arguments())
        lower = convert(args, torch.Tensor.float) if flatten(args)[0].dtype is torch.float64 else args
        exact, low = as_list(fallback(*convert(args, torch.Tensor.double))), as_list(fallback(*lower))
        draws.append(largest_errors(low, exact))
        if len(draws) * min((c.numel() for c in exact), default=KNOWN) >= KNOWN:
            break
    return Drawn(args, low, exact, [max(found) for found in zip(*draws, strict=True)])


def assert_accurate(
    got: Sequence[Tensor],
    low: Sequence[Tensor],
    exact: Sequence[Tensor],
    layout: str,
    errors: Sequence[float] | None = None,
) -> None:
    """``got`` errs at most twice as much as ``low``, the reference at the same dtype, both against ``exact``.

    Results in float64 may err three times as much as ``low``, the reference in float32, in their own units. ``errors``
    are those of the reference for other such arguments, in case ``low`` is exact by luck.
    """
    for a, b, c, other in zip(got, low, exact, errors or [0.0] * len(got), strict=True):
        double = got[0].dtype == torch.float64 != low[0].dtype
        assert a.dtype == (torch.float64 if double else b.dtype)
        assert a.shape == b.shape
        if c.numel() == 0:
            continue
        eps, a, b = torch.finfo(got[0].dtype).eps, a.cpu().double(), b.double()
        assert not a.isnan().any() or c.isnan().any(), f"{layout}: NaN, unwritten memory or an undefined operation"
        times = 3 * eps / torch.finfo(low[0].dtype).eps if double else 2
        # In float64 the reference is rounded, too.
        units = 2 if double else 1
        allowed = times * (b - c).abs().max().clamp(min=other) + units * eps * c.abs().max()
        error = (a - c).abs().max()
        assert error <= allowed, f"{layout}: {error:g} > {allowed:g}"


class OpTests:
    """The tests of a family. A test with the argument ``case`` runs for each of ``cases``."""

    cases: ClassVar[dict[str, Case]]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        names = [name for name in ("case", "implementation", "dtype") if name in metafunc.fixturenames]
        rows, ids = [], []
        compiled: set[str] = set()
        for case_name, case in type(self).cases.items() if "case" in names else ():
            values: dict[str, list[Any]] = {
                "case": [case],
                # Tests with a dtype leave out the reference, since they compare with it.
                "implementation": [
                    i for i in implementations(case.op) if "dtype" not in names or i.kind != "reference"
                ],
                "dtype": DTYPES,
            }
            again = metafunc.function.__name__ == "test_compiles_to_one_graph" and case.op in compiled
            compiled.add(case.op)
            for row in itertools.product(*(values[name] for name in names)):
                rows.append(pytest.param(*row, marks=[pytest.mark.slow] if again else []))
                ids.append("-".join([case_name, *(str(value).removeprefix("torch.") for value in row[1:])]))
        if rows:
            metafunc.parametrize(names, rows, ids=ids)

    @pytest.fixture(autouse=True)
    def _poisoned_memory(self) -> Iterator[None]:
        torch.manual_seed(0)
        torch.use_deterministic_algorithms(True, warn_only=True)
        with use_threads(1):
            yield
        torch.use_deterministic_algorithms(False)

    def test_accuracy_and_strides_in_every_layout(
        self, case: Case, implementation: Implementation, dtype: torch.dtype
    ) -> None:
        self.check_accuracy(case, implementation, dtype)

    @pytest.mark.slow
    @pytest.mark.parametrize("units", [1, 2])
    def test_accuracy_with_the_functions_of_a_gpu(self, case: Case, units: int) -> None:
        if "triton" in KERNELS[case.op]:
            from approximate import approximate

            with approximate(units):
                self.check_accuracy(case, Implementation("triton", DEVICES[-1]), torch.float32)

    def check_accuracy(self, case: Case, implementation: Implementation, dtype: torch.dtype) -> None:
        fallback = KERNELS[case.op]["reference"]
        # The values are float32 numbers, so that errors in float64 come from arithmetic alone.
        source, low, exact, errors = draw(case.op, lambda: convert(case.arguments(), lambda x: x.float().to(dtype)))
        for name, layout in LAYOUTS.items():
            # Laid out on the device, since a copy to it would remove gaps and align the address.
            args = convert(source, lambda x, layout=layout: layout(x.to(implementation.device)))
            got, want = implementation.run(case.op, self.prepare(args, implementation)), as_list(fallback(*args))
            # In another layout the reference sums in another order.
            own = errors if dtype is torch.float64 else map(max, errors, largest_errors(want, exact))
            assert_accurate(got, low, exact, name, list(own))
            assert [a.stride() for a in got] == [a.stride() for a in want], name

    def prepare(self, args: list[Any], implementation: Implementation) -> list[Any]:  # noqa: ARG002
        """The arguments for an implementation, where some of them are results of another op."""
        return args

    def test_repeats_bit_for_bit(self, case: Case) -> None:
        """Results are equal on any number of threads. The dispatcher takes the kernel for the newest instructions."""
        args = convert(case.arguments(), torch.Tensor.float)
        newest = Implementation("cpp", "cpu", len(extension().cpu.levels()) - 1)
        results = [newest.run(case.op, args)] if "cpp" in KERNELS[case.op] else []
        for threads in (1, 2, 5, 2):
            with use_threads(threads):
                results.append(Implementation("op", "cpu").run(case.op, args))
        for others in results[1:]:
            for a, b in zip(results[0], others, strict=True):
                assert a.equal(b) or (a.isnan() == b.isnan()).all()

    def test_arguments_are_left_alone(self, case: Case, implementation: Implementation) -> None:
        args = convert(case.arguments(), lambda x: x.float().to(implementation.device))
        before = convert(args, torch.Tensor.clone)
        implementation.run(case.op, args)
        for a, b in zip(flatten(args), flatten(before), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)

    @pytest.mark.parametrize("memory", ["contiguous", "channels_last", "strided"])
    @pytest.mark.parametrize("device", DEVICES)
    def test_opcheck(self, case: Case, memory: str, device: str) -> None:
        args = convert(case.arguments(), lambda x: LAYOUTS[memory](x.float().to(device)).detach().requires_grad_())
        # Without test_aot_dispatch_dynamic, which is slow: test_compiles_to_one_graph traces the same.
        checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
        torch.library.opcheck(getattr(torch.ops.pnf, case.op).default, args, test_utils=checks)

    @pytest.mark.parametrize("memory", ["contiguous", "channels_last"])
    @pytest.mark.parametrize("device", DEVICES)
    def test_first_and_second_derivatives(self, case: Case, memory: str, device: str) -> None:
        if not case.differentiable:
            return
        args = convert(case.arguments(), lambda x: LAYOUTS[memory](x.to(device)).detach().requires_grad_())
        op = getattr(torch.ops.pnf, case.op).default

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            left = iter(tensors)
            return tuple(as_list(op(*convert(args, lambda _: next(left)))))

        assert torch.autograd.gradcheck(function, flatten(args), fast_mode=True)
        assert torch.autograd.gradgradcheck(function, flatten(args), fast_mode=True)

    def test_torch_func_differentiates_it(self, case: Case) -> None:
        # Transforms take the reference, with other rounding errors. tests/ops/test_transforms.py tests more of them.
        args = case.arguments()
        op, tensors = getattr(torch.ops.pnf, case.op).default, flatten(args)

        def loss(*tensors: Tensor) -> Tensor:
            left = iter(tensors)
            return sum(out.float().sin().sum() for out in as_list(op(*convert(args, lambda _: next(left)))))

        got = torch.func.grad(loss, tuple(range(len(tensors))))(*tensors)
        leaves = [x.detach().requires_grad_() for x in tensors]
        for a, b in zip(got, gradients(loss(*leaves), leaves), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, equal_nan=True)

    @pytest.mark.parametrize("device", DEVICES)
    def test_compiles_to_one_graph(self, case: Case, device: str) -> None:
        torch.compiler.reset()
        op = getattr(torch.ops.pnf, case.op).default

        def loss(*args: Any) -> Tensor:
            return sum(out.float().sin().sum() for out in as_list(op(*args)))

        # With symbolic sizes and channels last. tests/flows also compiles for fixed sizes and contiguous tensors.
        compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
        args = convert(case.arguments(), lambda x: channels_last(x.float().to(device)).detach().requires_grad_())
        want, got = loss(*args), compiled(*args)
        torch.testing.assert_close(got, want)
        for a, b in zip(gradients(got, flatten(args)), gradients(want, flatten(args)), strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


def gradients(loss: Tensor, tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The gradients of a loss, zero for tensors that the op treats as constants."""
    return torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)


def flatten(args: Sequence[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for a in args:
        found += [a] if isinstance(a, Tensor) else flatten(a) if isinstance(a, list) else []
    return found
