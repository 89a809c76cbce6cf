"""The network of a dense coupling as one op; the compiled twin of :mod:`pnf.reference.dense_network`.

On a CPU in float32 all layers are one call, forward and backward. Between small products most of the time would pass in
PyTorch and Python. x and the condition are not put together: the first product adds up over the columns of the weight
for both. Where PyTorch's products are faster, the same op calls them.

In bfloat16 and float16, a processor without instructions for them computes in float32, and only what goes into the
network and what comes out of it is rounded.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pnf.ops._library import KERNELS, Backward, Launch, cpp, documented_by, kernels, register
from pnf.ops._processor import LINEAR_BY_LIBRARY, WIDENED
from pnf.ops.convolution import widened
from pnf.reference.dense_network import check_dense_network, dense_layers, joined
from pnf.reference.dense_network import dense_network as reference

__all__ = ["dense_network"]

Tensors = Sequence[Tensor]


@documented_by(reference)
def dense_network(
    x: Tensor,  # [B, kept]
    condition: Tensor | None,  # [B, condition]
    weights: Tensors,  # [O, I] each
    biases: Tensors,  # [O] each
) -> Tensor:
    check_dense_network(x, condition, weights, biases)
    if not torch.is_autocast_enabled(x.device.type):
        y: Tensor = _dense_network(x, condition, list(weights), list(biases))[0]
        return y
    dtype = widened(x)
    if dtype is None:
        return reference(x, condition, weights, biases)
    condition = None if condition is None else condition.to(dtype)
    with torch.autocast("cpu", enabled=False):
        y = _dense_network(x.to(dtype), condition, [w.to(dtype) for w in weights], [b.to(dtype) for b in biases])[0]
    return y


def _compiled(launch: Launch) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(x: Tensor, condition: Tensor | None, weights: Tensors, biases: Tensors) -> tuple[Tensor, Tensor]:
        if x.dtype in WIDENED:
            given = None if condition is None else condition.float()
            y, hidden = run(x.float(), given, _float(weights), _float(biases))
            return y.to(x.dtype), hidden.to(x.dtype)
        if not _has_kernel(x, weights):
            found: tuple[Tensor, Tensor] = KERNELS["dense_network"]["reference"](x, condition, weights, biases)
            return found
        if LINEAR_BY_LIBRARY:
            return _by_library(x, condition, weights, biases)
        x, weights, (y, hidden) = x.contiguous(), _contiguous(weights), _fake(x, condition, weights, biases)
        given = x.new_empty(0) if condition is None else condition.contiguous()
        launch((y, hidden, x, given, *weights, *_contiguous(biases)), _sizes(x, weights), x.shape[0])
        return y, hidden

    return run


def _compiled_backward(launch: Launch) -> Callable[..., list[Tensor]]:
    def run(
        grad_y: Tensor,
        x: Tensor,
        condition: Tensor | None,
        weights: Tensors,
        biases: Tensors,
        hidden: Tensor,
        of_x: bool,
        of_condition: bool,
    ) -> list[Tensor]:
        if x.dtype in WIDENED:
            given = None if condition is None else condition.float()
            others = _float(weights), _float(biases), hidden.float(), of_x, of_condition
            return [grad.to(x.dtype) for grad in run(grad_y.float(), x.float(), given, *others)]
        if LINEAR_BY_LIBRARY or not _has_kernel(x, weights):
            return _fallback_backward(grad_y, x, condition, weights, biases, hidden, of_x, of_condition)
        x, weights, batch = x.contiguous(), _contiguous(weights), x.shape[0]
        given = x.new_empty(0) if condition is None else condition.contiguous()
        grads = _fake_backward(grad_y, x, condition, weights, biases, hidden, of_x, of_condition)
        hidden = hidden.contiguous()
        tensors = (*grads, torch.empty_like(hidden), grad_y.contiguous(), hidden, x, given, *weights)
        launch(tensors, _sizes(x, weights), batch)
        return grads

    return run


def _float(tensors: Tensors) -> list[Tensor]:
    return [x.float() for x in tensors]


def _contiguous(tensors: Tensors) -> list[Tensor]:
    return [x.contiguous() for x in tensors]


def _has_kernel(x: Tensor, weights: Tensors) -> bool:
    """Whether compiled products take the arguments: in float32, none of them empty."""
    return x.dtype is torch.float32 and x.shape[0] > 0 and all(weight.numel() for weight in weights)


def _sizes(x: Tensor, weights: Tensors) -> list[int]:
    """The features of x, of the input, and of each layer's result."""
    return [x.shape[1], weights[0].shape[1], *(weight.shape[0] for weight in weights)]


def _layers(hidden: Tensor, batch: int, weights: Tensors) -> list[Tensor]:
    """Views of the results ``[B, O]`` of all layers but the last."""
    widths = [weight.shape[0] for weight in weights[:-1]]
    parts = hidden.split([batch * width for width in widths])
    return [part.view(batch, width) for part, width in zip(parts, widths, strict=True)]


def _by_library(x: Tensor, condition: Tensor | None, weights: Tensors, biases: Tensors) -> tuple[Tensor, Tensor]:
    """The network by PyTorch's products, without what joins x and the condition."""
    y, hidden = _fake(x, condition, weights, biases)
    kept, h = x.shape[1], x
    for i, to in enumerate((*_layers(hidden, x.shape[0], weights), y)):
        torch.addmm(biases[i], h, (weights[i] if i else weights[i][:, :kept]).t(), out=to)
        if i == 0 and condition is not None:
            to.addmm_(condition, weights[i][:, kept:].t())
        h = to if i + 1 == len(weights) else to.relu_()
    return y, hidden


def _gradients(
    grad: Tensor, x: Tensor, condition: Tensor | None, weights: Tensors, hidden: Tensors, of_x: bool, of_condition: bool
) -> list[Tensor]:
    """The gradients of x and the condition, empty unless they are wanted, of the weights and of the biases.

    The condition, which may be most of the input, has no product of its own if nobody wants a gradient of it.
    """
    of_weights, of_biases = [], []
    for i in reversed(range(len(weights))):
        h = hidden[i - 1] if i else joined(x, condition)
        of_weights.append(grad.t() @ h)
        of_biases.append(grad.sum(0))
        if i:
            grad = torch.ops.aten.threshold_backward(grad @ weights[i], h, 0)
    kept, nothing = x.shape[1], x.new_empty(0)
    wanted = weights[0][:, 0 if of_x else kept : None if of_condition else kept]
    of_inputs = grad @ wanted if of_x or of_condition else nothing
    if of_x and of_condition:
        both = of_inputs[:, :kept].contiguous(), of_inputs[:, kept:].contiguous()
    else:
        both = (of_inputs, nothing) if of_x else (nothing, of_inputs)
    return [*both, *of_weights[::-1], *of_biases[::-1]]


def _fallback_backward(
    grad_y: Tensor,
    x: Tensor,
    condition: Tensor | None,
    weights: Tensors,
    biases: Tensors,
    hidden: Tensor,
    of_x: bool,
    of_condition: bool,
) -> list[Tensor]:
    layers = _layers(hidden, x.shape[0], weights)
    return _gradients(grad_y, x, condition, weights, layers, of_x, of_condition)


def _reference_backward(
    grad_y: Tensor,
    x: Tensor,
    condition: Tensor | None,
    weights: Tensors,
    biases: Tensors,
    hidden: Tensor,
    of_x: bool,
    of_condition: bool,
) -> list[Tensor]:
    """The backward with its dependence on x through all layers, which were saved without a graph."""
    layers = dense_layers(x, condition, weights, biases)
    return _gradients(grad_y, x, condition, weights, layers, of_x, of_condition)


def _reference(x: Tensor, condition: Tensor | None, weights: Tensors, biases: Tensors) -> tuple[Tensor, Tensor]:
    *hidden, y = dense_layers(x, condition, weights, biases)
    nothing = x.new_empty(0)
    return y, torch.cat([nothing, *(h.reshape(-1) for h in hidden)]).detach()  # flatten has no batching rule


def _fake(x: Tensor, condition: Tensor | None, weights: Tensors, biases: Tensors) -> tuple[Tensor, Tensor]:
    batch = x.shape[0]
    return (
        x.new_empty(batch, weights[-1].shape[0]),
        x.new_empty(batch * sum(weight.shape[0] for weight in weights[:-1])),
    )


def _fake_backward(
    grad_y: Tensor,
    x: Tensor,
    condition: Tensor | None,
    weights: Tensors,
    biases: Tensors,
    hidden: Tensor,
    of_x: bool,
    of_condition: bool,
) -> list[Tensor]:
    of_given = x if condition is None else condition
    inputs = [t.new_empty(t.shape if wanted else 0) for t, wanted in ((x, of_x), (of_given, of_condition))]
    return [*inputs, *(p.new_empty(p.shape) for p in (*weights, *biases))]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, condition, weights, biases = inputs
    ctx.layers, ctx.of_x = len(weights), x.requires_grad
    ctx.of_condition = condition is not None and condition.requires_grad
    ctx.save_for_backward(x, condition, *weights, *biases, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(
    backward: Callable[..., Any], ctx: Any, grad_y: Tensor | None, _: None
) -> tuple[Tensor | list[Tensor] | list[None] | None, ...]:
    count = ctx.layers
    if grad_y is None:
        return None, None, [None] * count, [None] * count
    x, condition, *parameters, hidden = ctx.saved_tensors
    weights, biases = parameters[:count], parameters[count:]
    of_x, of_condition, *found = backward(grad_y, x, condition, weights, biases, hidden, ctx.of_x, ctx.of_condition)
    return of_x if ctx.of_x else None, of_condition if ctx.of_condition else None, found[:count], found[count:]


_dense_network = register(
    "dense_network",
    "dense_network(Tensor x, Tensor? condition, Tensor[] weights, Tensor[] biases) -> (Tensor, Tensor)",
    reference=_reference,
    fake=_fake,
    kernels=kernels(_compiled, cpp=cpp("dense_network")),
    setup_context=_save,
    backward=Backward(
        "(Tensor grad_y, Tensor x, Tensor? condition, Tensor[] weights, Tensor[] biases, Tensor hidden, bool of_x,"
        " bool of_condition) -> Tensor[]",
        call=_differentiate,
        reference=_reference_backward,
        fallback=_fallback_backward,
        fake=_fake_backward,
        kernels=kernels(_compiled_backward, cpp=cpp("dense_network_backward")),
    ),
)
