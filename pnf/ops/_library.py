"""Registration of ops with PyTorch, the same for every family.

The dispatcher is the whole choice of an implementation: the reference is registered for every device, and a compiled
kernel for a device replaces it there. So there is no ``if x.is_cuda`` anywhere, and an op works without its kernels.

Automatic differentiation is registered for each device as well, with an autograd function (of a single level, as the
dispatcher has gone through those of torch.func by then) that calls that device's kernel itself.
``torch.library.register_autograd`` would ask the dispatcher once more for it, which took 10 of 37 microseconds of a
small op, forward and backward.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.function import _SingleLevelFunction
from torch.utils._pytree import tree_flatten, tree_unflatten

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


def triton(family: str, name: str) -> Launch | None:
    """The Triton launcher of that name, imported at its first call; if Triton is installed.

    It takes the tensors one by one, and no dtype, which is the last of the others.
    """
    if not has_triton():
        return None

    @functools.cache
    def launcher() -> Callable[..., None]:
        function: Callable[..., None] = getattr(importlib.import_module(f"pnf.kernels.{family}"), name)
        return function

    def launch(tensors: Sequence[Tensor], *others: Any) -> None:
        with torch.cuda.device_of(tensors[0]):
            launcher()(*tensors, *others[:-1])

    return launch


def kernels(implement: Callable[[Launch], Callable[..., Any]], **launches: Launch | None) -> list[Kernel]:
    """The implementations of an op: ``implement(launch)`` for each launch, named by its kind."""
    return [Kernel(kind, None if launch is None else implement(launch)) for kind, launch in launches.items()]


DEVICES = {"cpp": "cpu", "cuda": "cuda", "triton": "cuda"}


def register(
    family: str,
    schema: str,
    *,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any],
    setup_context: Callable[..., None],
    kernels: Sequence[Kernel] = (),
) -> Callable[..., Any]:
    """Define an op and everything PyTorch needs to run, differentiate, trace and compile it.

    Args:
        family: the stem of the op's files.
        schema: ``"name(Tensor x, ...) -> Tensor"``, without default values.
        reference: runs on every device that has no kernel; returns what ``fake`` describes, strides included.
        fake: the result's shapes, strides and dtypes, without its values.
        backward: ``backward(ctx, *grads)``, a gradient or None for each argument; it calls differentiable ops. Lists
            of tensors in the schema are flattened, in the gradients too.
        setup_context: ``setup_context(ctx, inputs, output)``, saves what the backward needs.
        kernels: the compiled implementations.

    Returns:
        The op, to be called with positional arguments.
    """
    name = schema.partition("(")[0]
    # The strides of a result follow those of the arguments, so that a compiler must not change the latter.
    LIBRARY.define(schema, tags=(torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag))
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    op: Callable[..., Any] = getattr(torch.ops.pnf, name).default
    LIBRARY.impl(name, _autograd(op, None, backward, setup_context), "Autograd", with_keyset=True)
    KERNELS[name] = {"reference": reference}
    for kernel in kernels:
        device = DEVICES[kernel.kind]
        IMPLEMENTATIONS.setdefault(family, {})[device] = kernel.kind, kernel.run is not None
        if kernel.run is None:
            continue
        KERNELS[name][kernel.kind] = kernel.run
        LIBRARY.impl(name, kernel.run, device.upper())
        differentiable = _autograd(op, kernel.run, backward, setup_context)
        LIBRARY.impl(name, differentiable, f"Autograd{device.upper()}", with_keyset=True)
    torch.library.register_fake(f"pnf::{name}", fake, lib=LIBRARY)
    return op


def documented_by(reference: Callable[..., Any]) -> Callable[[Function], Function]:
    """Give a public function the docstring of its reference, which has the same signature."""

    def document(function: Function) -> Function:
        function.__doc__ = reference.__doc__
        return function

    return document


def vjp(reference: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., None]]:
    """``backward, setup_context`` of an op by differentiating its reference: second derivatives need no kernel."""

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
        flat, ctx.tree = tree_flatten(inputs)
        ctx.save_for_backward(*(x for x in flat if isinstance(x, Tensor)))
        ctx.others = [None if isinstance(x, Tensor) else x for x in flat]
        ctx.places = [i for i, x in enumerate(flat) if isinstance(x, Tensor)]

    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            inputs = list(ctx.others)
            for i, x in zip(ctx.places, tensors, strict=True):
                inputs[i] = x
            output = reference(*tree_unflatten(inputs, ctx.tree))
            return (output,) if isinstance(output, Tensor) else tuple(output)

        pull: Callable[..., Any] = torch.func.vjp(function, *ctx.saved_tensors)[1]
        found: list[Any] = [None] * len(ctx.others)
        for i, grad in zip(ctx.places, pull(grads), strict=True):
            found[i] = grad
        return tuple(found)

    return backward, setup_context


def _autograd(
    op: Any,
    run: Callable[..., Any] | None,
    backward: Callable[..., Any],
    setup_context: Callable[..., None],
) -> Callable[..., Any]:
    """The op at the dispatcher's autograd keys: ``run``, or what the dispatcher finds, and the backward."""
    after, below_autograd = torch._C._after_autograd_keyset, torch._C._AutoDispatchBelowAutograd
    # Tracing, functionalisation and the levels of torch.func are still to come where these keys are set.
    keys, keysets = torch._C.DispatchKey, torch._C.DispatchKeySet
    level = keys.FuncTorchDynamicLayerBackMode
    to_come = (keysets(keys.Python) | keysets(keys.Functionalize) | keysets(level)).raw_repr()

    def below(keyset: Any, args: Sequence[Any]) -> Any:
        if run is None or keyset.raw_repr() & to_come:
            with below_autograd():
                return op.redispatch(keyset & after, *args)
        return run(*args)

    class Differentiable(_SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, keyset: Any, *args: Any) -> Any:
            output = below(keyset, args)
            setup_context(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            found = backward(ctx, *grads)
            return (None, *found) if isinstance(found, tuple) else (None, found)

    def apply(function: Any, keyset: Any, *args: Any) -> Any:
        if not keyset.has(level):
            return function.apply(keyset, *args)
        with enable_single_level_autograd_function():
            return function.apply(keyset, *args)

    requires_grad, grad_enabled = torch._C._any_requires_grad, torch.is_grad_enabled

    def differentiable(keyset: Any, *args: Any) -> Any:
        if grad_enabled() and requires_grad(*args):
            return apply(Differentiable, keyset, *args)
        return below(keyset, args)

    kinds = [str(argument.type) for argument in op._schema.arguments]
    lists = [i for i, kind in enumerate(kinds) if kind in ("List[Tensor]", "List[Optional[Tensor]]")]
    returns_list = any("List[Tensor]" in str(result.type) for result in op._schema.returns)
    if not lists and not returns_list:
        return differentiable

    # An autograd.Function takes and gives tensors one by one.
    class FlatDifferentiable(_SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, keyset: Any, lengths: list[int], *flat: Any) -> Any:
            args = list(flat)
            for i, length in zip(lists, lengths, strict=True):
                args[i : i + length] = [args[i : i + length]]
            output = below(keyset, args)
            setup_context(ctx, tuple(args), output)
            return tuple(output) if returns_list else output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            found = backward(ctx, *grads)
            return (None, None, *found) if isinstance(found, tuple) else (None, None, found)

    def flat_differentiable(keyset: Any, *args: Any) -> Any:
        if not (grad_enabled() and requires_grad(*args)):
            return below(keyset, args)
        flat: list[Any] = []
        for i, arg in enumerate(args):
            flat += arg if i in lists else [arg]
        output = apply(FlatDifferentiable, keyset, [len(args[i]) for i in lists], *flat)
        return list(output) if returns_list else output

    return flat_differentiable
