"""Registration of ops with PyTorch, the same for every family.

The dispatcher is the whole choice of an implementation: the reference is registered for every device, and a compiled
kernel for a device replaces it there. So an op works without its kernels, and none asks which device a tensor is on.
Convolutions and halves of channels are the exception: what PyTorch does faster on a CPU is left to it.
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

LIBRARY = torch.library.Library("pnf", "DEF")

# family -> device -> the kind of kernel that was written for it, and whether it can run
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


@functools.cache
def extension() -> ModuleType | ImportError:
    """The compiled module ``pnf._C``, or why it cannot be loaded."""
    try:
        return importlib.import_module("pnf._C")
    except ImportError as error:
        return error


def cpp(name: str) -> Launch | None:
    """The C++ kernel of that name, on as many threads as the caller lets PyTorch use; if it can be loaded."""
    module = extension()
    if isinstance(module, ImportError):
        return None
    kernel, threads = getattr(module.cpu, name), torch.get_num_threads

    def launch(tensors: Sequence[Tensor], *others: Any) -> None:
        kernel(*[x.data_ptr() for x in tensors], *others, threads())

    return launch


def cuda(name: str) -> Launch | None:
    """The CUDA C++ kernel of that name, on the device of its tensors and the caller's stream; if it was built."""
    module = extension()
    if isinstance(module, ImportError) or not module.build["cuda"]:
        return None
    kernel = getattr(module.cuda, name)

    def launch(tensors: Sequence[Tensor], *others: Any) -> None:
        with torch.cuda.device_of(tensors[0]):
            kernel(*[x.data_ptr() for x in tensors], *others, torch.cuda.current_stream().cuda_stream)

    return launch


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed; it is not imported for the answer."""
    return importlib.util.find_spec("triton") is not None


def triton(family: str, name: str, **constants: Any) -> Launch | None:
    """The Triton launcher of that name, imported at its first call; if Triton is installed.

    It takes the tensors one by one, then the others without their last, the dtype, and the constants by keyword:
    ``inverse=True`` for a launcher of both directions.
    """
    if not has_triton():
        return None

    @functools.cache
    def launcher() -> Callable[..., None]:
        function: Callable[..., None] = getattr(importlib.import_module(f"pnf.kernels.{family}"), name)
        return functools.partial(function, **constants)

    def launch(tensors: Sequence[Tensor], *others: Any) -> None:
        with torch.cuda.device_of(tensors[0]):
            launcher()(*tensors, *others[:-1])

    return launch


def kernels(implement: Callable[[Launch], Callable[..., Any]], **launches: Launch | None) -> list[Kernel]:
    """The implementations of an op: ``implement(launch)`` for each launch, named by its kind."""
    return [Kernel(kind, None if launch is None else implement(launch)) for kind, launch in launches.items()]


DEVICES = {"cpp": "cpu", "cuda": "cuda", "triton": "cuda"}


class Backward(NamedTuple):
    """The backward of an op as an op of its own, ``<name>_backward``, whose derivative is that of its reference.

    Attributes:
        schema: ``"(Tensor grad, Tensor x, ...) -> Tensor"``, the op's arguments and results.
        call: ``call(backward, ctx, *grads)``, a gradient or None for each argument of the forward; it calls the op
            ``backward`` with what the forward saved.
        reference: as for :func:`register`, and so are the others.
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
    """Define an op and everything PyTorch needs to run, differentiate, trace and compile it.

    Args:
        family: the stem of the op's files.
        schema: ``"name(Tensor x, ...) -> Tensor"``, without default values.
        reference: the op in plain PyTorch, in any layout and differentiable to any order. It stands for the op under
            the transforms of ``torch.func`` and in forward mode.
        fake: the result's shapes, strides and dtypes, without its values.
        kernels: the compiled implementations.
        setup_context: ``setup_context(ctx, inputs, output)``, saves what the backward needs.
        backward: an op of its own; or ``backward(ctx, *grads)``, a gradient or None for each argument, made of other
            differentiable ops. By default the reference is differentiated.
        fallback: runs on every device that has no kernel; by default the reference.

    Returns:
        The op, to be called with positional arguments.
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
    # The strides of a result follow those of the arguments, so that a compiler must not change the latter.
    LIBRARY.define(schema, tags=(torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag))
    KERNELS[name] = {"reference": _laid_out(reference if fallback is None else fallback, fake)}
    LIBRARY.impl(name, KERNELS[name]["reference"], "CompositeExplicitAutograd")
    runs: dict[str, Callable[..., Any]] = {}
    for kernel in kernels:
        device = DEVICES[kernel.kind]
        IMPLEMENTATIONS.setdefault(family, {})[device] = kernel.kind, kernel.run is not None
        if kernel.run is not None:
            KERNELS[name][kernel.kind] = runs[device.upper()] = kernel.run
            LIBRARY.impl(name, kernel.run, device.upper())
    torch.library.register_fake(f"pnf::{name}", fake, lib=LIBRARY)
    op = getattr(torch.ops.pnf, name).default
    return register_derivative(LIBRARY, op, runs, Derivative(reference, backward, setup_context))


def _laid_out(function: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """The function with results in memory of their own, with the very strides that ``fake`` gives."""

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
    """``backward, setup_context`` of an op by differentiating its reference: second derivatives need no kernel."""

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
    """Whether it is a list of numbers, which has no gradients."""
    return isinstance(argument, list) and not all(isinstance(x, Tensor) for x in argument)
