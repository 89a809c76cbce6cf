"""Automatic differentiation of the ops, in every mode that PyTorch has.

A compiled kernel reads memory, so it supports plain backpropagation only: a :class:`torch.autograd.Function` with its
own backward, which is differentiable in turn. Under any other transform the op is its reference, plain PyTorch that
supports every mixture and depth of transforms:

- ``torch.func`` (``grad``, ``vmap``, ``jvp``, ``jacfwd``, ``functionalize``, ...) finds the reference at the dispatcher
  key that comes before all others while a transform is active. Plain calls pay nothing for it.
- Forward-mode differentiation (``torch.autograd.forward_ad``) finds it at the autograd key, if a dual level is open.

Plain backpropagation is registered at the autograd key of each device, with a function that calls the device's kernel
directly. ``torch.library.register_autograd`` would go through the dispatcher again, which takes 8 of 33 microseconds of
a small op, forward and backward. The direct way needs private names of PyTorch, those in :func:`_lean`, which existed
from torch 2.8 to 2.15. If one is missing, ``register_autograd`` is used.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

TRANSFORMED = "FuncTorchDynamicLayerFrontMode"
"""The dispatcher's key of an active ``torch.func`` transform. Only the keys of tracing from Python come before it."""

BATCHED = "Batched"
"""The key of batched gradients (``is_grads_batched=True``), a separate kind of ``vmap``. PyTorch calls most ops once
for each gradient there, but not ops on lists. Their references avoid views without a batching rule (``flatten``)."""

DEFERRED = ("Python", "Functionalize", "Negative", "Conjugate", "ZeroTensor")
"""Keys after the autograd keys that must act before a kernel reads memory: tracing, functionalisation, and tensors with
a lazy sign, conjugate or zeros."""

Run = Callable[..., Any]


class Derivative(NamedTuple):
    """The derivative of an op.

    Attributes:
        reference: the op in plain PyTorch, differentiable to any order.
        backward: ``backward(ctx, *grads)`` returns a gradient or None for each argument, by differentiable ops. A list
            of tensors in the schema is one argument, with a list as its gradient.
        setup_context: ``setup_context(ctx, inputs, output)`` saves what the backward needs.
    """

    reference: Run
    backward: Run
    setup_context: Callable[..., None]


def register_derivative(
    library: torch.library.Library, op: Any, kernels: Mapping[str, Run], derivative: Derivative
) -> Run:
    """Make an op differentiable, everywhere and on the devices of its kernels.

    Args:
        library: the op's library.
        op: the op.
        kernels: for dispatcher keys of devices, such as ``"CPU"``, the functions that run there.
        derivative: the op's derivative.

    Returns:
        The op, which takes positional arguments.
    """
    name = op._schema.name
    library.impl(name, derivative.reference, TRANSFORMED)
    if any("List[Tensor]" in str(argument.type) for argument in (*op._schema.arguments, *op._schema.returns)):
        library.impl(name, derivative.reference, BATCHED)
    lean = _lean(library)
    if lean is not None:
        lean(op, None, "Autograd", derivative)
        for device, run in kernels.items():
            lean(op, run, f"Autograd{device}", derivative)
        run_op: Run = op
        return run_op
    torch.library.register_autograd(name, derivative.backward, setup_context=derivative.setup_context, lib=library)

    # register_autograd has no forward mode: it would silently drop the tangents.
    def run_op_or_reference(*args: Any) -> Any:
        return (derivative.reference if forward_ad._current_level >= 0 else op)(*args)

    return run_op_or_reference


def _lean(library: torch.library.Library) -> Callable[[Any, Run | None, str, Derivative], None] | None:
    """The fast registration, ``register(op, run, key, derivative)``, if PyTorch has the private names that it needs.

    It registers ``run`` at an autograd key, or the dispatcher's next function if ``run`` is None.
    """
    try:
        after, below_autograd = torch._C._after_autograd_keyset, torch._C._AutoDispatchBelowAutograd
        requires_grad, grad_enabled = torch._C._any_requires_grad, torch.is_grad_enabled
        to_come = 0
        for key in DEFERRED:
            to_come |= torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)).raw_repr()
    except AttributeError:
        return None

    def register(op: Any, run: Run | None, key: str, derivative: Derivative) -> None:
        reference, backward, setup_context = derivative
        schema = op._schema
        lists = [i for i, argument in enumerate(schema.arguments) if str(argument.type) == "List[Tensor]"]
        returns_list = [str(result.type) for result in schema.returns] == ["List[Tensor]"]

        def below(keyset: Any, args: Sequence[Any]) -> Any:
            if run is None or keyset.raw_repr() & to_come:
                with below_autograd():
                    return op.redispatch(keyset & after, *args)
            return run(*args)

        class Differentiable(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, keyset: Any, lengths: list[int], *args: Any) -> Any:
                args = _gathered(args, lists, lengths) if lists else args
                output = below(keyset, args)
                setup_context(ctx, args, output)
                return tuple(output) if returns_list else output

            @staticmethod
            def backward(ctx: Any, *grads: Tensor) -> Any:
                found = backward(ctx, list(grads)) if returns_list else backward(ctx, *grads)
                return None, None, *(_spread(found, lists) if lists else found)

        def differentiable(keyset: Any, *args: Any) -> Any:
            if forward_ad._current_level >= 0:
                return reference(*args)
            if not (grad_enabled() and requires_grad(*args)):
                return below(keyset, args)
            if not lists and not returns_list:
                return Differentiable.apply(keyset, [], *args)
            output = Differentiable.apply(keyset, [len(args[i]) for i in lists], *_spread(args, lists))
            return list(output) if returns_list else output

        library.impl(schema.name, differentiable, key, with_keyset=True)

    return register


# An autograd.Function takes and returns tensors one by one, not in lists.


def _spread(args: Sequence[Any], lists: Sequence[int]) -> list[Any]:
    """Replace each list among the arguments by its entries."""
    flat: list[Any] = []
    for i, arg in enumerate(args):
        flat += arg if i in lists else [arg]
    return flat


def _gathered(flat: Sequence[Any], lists: Sequence[int], lengths: Sequence[int]) -> tuple[Any, ...]:
    """Invert :func:`_spread`."""
    args = list(flat)
    for i, length in zip(lists, lengths, strict=True):
        args[i : i + length] = [args[i : i + length]]
    return tuple(args)
