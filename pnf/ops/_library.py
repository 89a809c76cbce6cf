"""Registration of ops with PyTorch, the same for every family.

The dispatcher chooses the implementation: the reference is registered for every device, and a compiled kernel for a
device replaces it there. So an op works without its kernels, and no op asks for the device of a tensor. A GPU that
cannot run a kernel takes the reference, too. The kernel's first launch decides that. Convolutions are the exception:
PyTorch computes those that it does faster on a CPU.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from pnf.ops._autograd import Derivative, register_derivative
from pnf.ops._devices import check_runs, common_device, current_stream, or_reference

LIBRARY = torch.library.Library("pnf", "DEF")

EXACT_STRIDES = getattr(torch.Tag, "needs_exact_strides", torch.Tag.needs_fixed_stride_order)
"""What keeps a compiler from changing the strides of arguments; PyTorch before 2.8 keeps their order only."""

# family -> device -> the kind of its kernel, and whether it can run
IMPLEMENTATIONS: dict[str, dict[str, tuple[str, bool]]] = {}

# op -> kind of implementation -> a function of the op's arguments
KERNELS: dict[str, dict[str, Callable[..., Any]]] = {}

DTYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
"""Numbers of the dtypes in csrc/dtype.h."""

Function = TypeVar("Function", bound=Callable[..., Any])

# Runs a kernel: launch(tensors, *others), outputs first.
Launch = Callable[..., None]


class Kernel(NamedTuple):
    """A compiled implementation of an op: its kind, "cpp", "cuda" or "triton", and a function of the op's arguments.

    The function is None where it cannot run: the extension or Triton is missing.
    """

    kind: str
    run: Callable[..., Any] | None


class UnsupportedProcessorError(ImportError):
    """The compiled module has no kernels for this processor."""


@functools.cache
def extension() -> ModuleType | ImportError:
    """The compiled module ``pnf._C``, or the error why it cannot be used."""
    try:
        module = importlib.import_module("pnf._C")
    except ImportError as error:
        return error
    if not module.cpu.levels():
        return UnsupportedProcessorError(
            "pnf's compiled kernels need a processor with AVX2 and FMA, which this one lacks"
        )
    return module


def cpp(name: str) -> Launch | None:
    """The C++ kernel of a name, if the extension is there. It runs on PyTorch's threads."""
    module = extension()
    if isinstance(module, ImportError):
        return None
    kernel, threads = getattr(module.cpu, name), torch.get_num_threads

    def launch(tensors: Sequence[Tensor], *others: Any) -> None:
        kernel(*[x.data_ptr() for x in tensors], *others, threads())

    return launch


def cuda(name: str) -> Launch | None:
    """The CUDA C++ kernel of a name, if it was built. It runs on the device of its tensors and the caller's stream."""
    module = extension()
    if isinstance(module, ImportError) or not module.build["cuda"]:
        return None
    kernel = getattr(module.cuda, name)

    def launch(tensors: Sequence[Tensor], *others: Any) -> None:
        index = common_device(name, tensors)
        check_runs("cuda", index)
        with torch.cuda.device(index):
            kernel(*[x.data_ptr() for x in tensors], *others, current_stream(index))

    return launch


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed, without an import of it."""
    return importlib.util.find_spec("triton") is not None


def triton(family: str, name: str, **constants: Any) -> Launch | None:
    """The Triton launcher of a name, if Triton is installed. It is imported at its first call.

    It takes the tensors one by one, then the others except the last, which is the dtype, and the constants by keyword,
    such as ``inverse=True`` for a launcher of both directions.
    """
    if not has_triton():
        return None

    @functools.cache
    def launcher() -> Callable[..., None]:
        function: Callable[..., None] = getattr(importlib.import_module(f"pnf.kernels.{family}"), name)
        return functools.partial(function, **constants)

    def launch(tensors: Sequence[Tensor], *others: Any) -> None:
        index = common_device(name, tensors)
        check_runs("triton", index)
        with torch.cuda.device(index):
            launcher()(*tensors, *others[:-1])

    return launch


def kernels(implement: Callable[[Launch], Callable[..., Any]], **launches: Launch | None) -> list[Kernel]:
    """The implementations of an op: ``implement(launch)`` for each launch, named by its kind."""
    return [Kernel(kind, None if launch is None else implement(launch)) for kind, launch in launches.items()]


DEVICES = {"cpp": "cpu", "cuda": "cuda", "triton": "cuda"}


class Backward(NamedTuple):
    """The backward of an op as another op, ``<name>_backward``, whose derivative is that of its reference.

    Attributes:
        schema: ``"(Tensor grad, Tensor x, ...) -> Tensor"``, the op's arguments and results.
        call: ``call(backward, ctx, *grads)`` returns a gradient or None for each argument of the forward. It calls the
            op ``backward`` with the saved tensors.
        reference: as for :func:`register`, like the other attributes.
    """

    schema: str
    call: Callable[..., Any]
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    kernels: Sequence[Kernel] = ()
    fallback: Callable[..., Any] | None = None


def register(
    family: str,
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    kernels: Sequence[Kernel] = (),
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | Backward | None = None,
    fallback: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Define an op, and everything that PyTorch needs to run, differentiate, trace and compile it.

    Args:
        family: the stem of the op's files.
        schema: ``"name(Tensor x, ...) -> Tensor"``, without default values.
        reference: the op in plain PyTorch, in any layout and differentiable to any order. It replaces the op under the
            transforms of ``torch.func`` and in forward mode.
        fake: makes results of the right shapes, strides and dtypes, without values.
        kernels: the compiled implementations.
        setup_context: ``setup_context(ctx, inputs, output)`` saves what the backward needs.
        backward: another op; or ``backward(ctx, *grads)``, which returns a gradient or None for each argument by
            differentiable ops. By default the reference is differentiated.
        fallback: runs on devices without a kernel; by default the reference.

    Returns:
        The op, which takes positional arguments.
    """
    name = schema.partition("(")[0]
    if isinstance(backward, Backward):
        run = register(
            family,
            f"{name}_backward{backward.schema}",
            reference=backward.reference,
            fake=backward.fake,
            kernels=backward.kernels,
            fallback=backward.fallback,
        )
        backward = functools.partial(backward.call, run)
    if backward is None or setup_context is None:
        backward, setup_context = _differentiated(reference)
    # The strides of a result depend on those of the arguments, so a compiler must not change the latter.
    LIBRARY.define(schema, tags=(EXACT_STRIDES, torch.Tag.pt2_compliant_tag))
    KERNELS[name] = {"reference": _laid_out(reference if fallback is None else fallback, fake)}
    LIBRARY.impl(name, KERNELS[name]["reference"], "CompositeExplicitAutograd")
    runs: dict[str, Callable[..., Any]] = {}
    for kernel in kernels:
        device = DEVICES[kernel.kind]
        IMPLEMENTATIONS.setdefault(family, {})[device] = kernel.kind, kernel.run is not None
        if kernel.run is not None:
            run = kernel.run if kernel.kind == "cpp" else or_reference(kernel.run, KERNELS[name]["reference"])
            KERNELS[name][kernel.kind] = runs[device.upper()] = run
            LIBRARY.impl(name, run, device.upper())
    torch.library.register_fake(f"pnf::{name}", fake, lib=LIBRARY)
    op = getattr(torch.ops.pnf, name).default
    return register_derivative(LIBRARY, op, runs, Derivative(reference, backward, setup_context))


def _laid_out(function: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that its results are in new memory, with the strides of ``fake``."""

    def run(*args: Any) -> Any:
        found, wanted = function(*args), fake(*args)
        if isinstance(found, Tensor):
            return wanted.copy_(found)
        return type(wanted)(to.copy_(result) for to, result in zip(wanted, found, strict=True))

    return run


def documented_by(reference: Callable[..., Any]) -> Callable[[Function], Function]:
    """Give a public function the docstring of its reference, which has the same signature."""

    def document(function: Function) -> Function:
        function.__doc__ = reference.__doc__
        return function

    return document


def _differentiated(reference: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., None]]:
    """The ``backward`` and the ``setup_context`` of an op, which differentiate its reference."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        flat, ctx.tree = tree_flatten(inputs, is_leaf=_is_constant_list)
        ctx.save_for_backward(*(x for x in flat if isinstance(x, Tensor)))
        ctx.others = [None if isinstance(x, Tensor) else x for x in flat]
        ctx.places = [i for i, x in enumerate(flat) if isinstance(x, Tensor)]

    def backward(ctx: Any, *grads: Any) -> Any:
        def function(*tensors: Tensor) -> Any:
            inputs = list(ctx.others)
            for i, x in zip(ctx.places, tensors, strict=True):
                inputs[i] = x
            return reference(*tree_unflatten(inputs, ctx.tree))

        pull: Callable[..., Any] = torch.func.vjp(function, *ctx.saved_tensors)[1]
        found: list[Any] = [None] * len(ctx.others)
        for i, grad in zip(ctx.places, pull(grads[0] if len(grads) == 1 else grads), strict=True):
            found[i] = grad
        return tree_unflatten(found, ctx.tree)

    return backward, setup_context


def _is_constant_list(argument: Any) -> bool:
    """Whether an argument is a list of numbers, which has no gradients."""
    return isinstance(argument, list) and not all(isinstance(x, Tensor) for x in argument)
