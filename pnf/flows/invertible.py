"""Backpropagation through couplings that keeps their last result only, and computes the others from it.

Source: Gomez et al., "The reversible residual network: backpropagation without storing activations" (2017).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pnf.flows.couplings import BatchNormFlow, ConvCoupling

KEPT = 4
"""Of so many couplings one input is kept."""


def couple(
    couplings: Sequence[ConvCoupling], x: Tensor, log_det: Tensor, condition: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The couplings one after the other, ``x, log_det -> y, log_det``, with memory for the activations of one of them.

    The backward computes the input of a coupling from its output: what is kept is there, so that the network runs once
    more, as it did, and the affine map and the normalisation, by the statistics of its batch, are undone. That rounds,
    so that every fourth input is kept, and gradients differ from those of plain backpropagation by rounding errors of
    three couplings. Running statistics are updated once.
    """
    parameters = [p for coupling in couplings for p in coupling.parameters()]
    y, log_det = _Couple.apply(couplings, x, log_det, condition, *parameters)
    return y, log_det


class _Couple(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        couplings: Sequence[ConvCoupling],
        x: Tensor,
        log_det: Tensor,
        condition: Tensor | None,
        *parameters: Tensor,  # noqa: ARG004 - for their gradients
    ) -> tuple[Tensor, Tensor]:
        ctx.statistics = []
        kept = []
        for i, coupling in enumerate(couplings):
            if i % KEPT == 0:
                kept.append(x)
            x, log_det, statistics = coupling.transform(x, coupling.raw(x, condition), log_det)
            ctx.statistics.append(statistics)
        ctx.couplings = couplings
        # A network that trains in low precision has a context of its own, which begins and ends with it.
        device = x.device.type
        ctx.autocast = {"device_type": device, "enabled": torch.is_autocast_enabled(device)}
        ctx.autocast["dtype"] = torch.get_autocast_dtype(device)
        ctx.save_for_backward(x, condition, *kept)
        return x, log_det

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_log_det: Tensor) -> tuple[Tensor | None, ...]:
        y, condition, *inputs = ctx.saved_tensors
        needs_condition = condition is not None and ctx.needs_input_grad[3]
        grad_condition: Tensor | None = None
        zero = torch.zeros_like(grad_log_det)
        found: list[Tensor | None] = []
        with torch.autocast(**ctx.autocast):
            for i, (coupling, statistics) in reversed(list(enumerate(zip(ctx.couplings, ctx.statistics, strict=True)))):
                parameters = [p for p in coupling.parameters() if p.requires_grad]
                with torch.enable_grad(), _untracked(coupling):
                    kept = y.detach().requires_grad_()
                    beside = condition.detach().requires_grad_() if needs_condition else condition
                    raw = coupling.raw(kept, beside)
                    x = inputs[i // KEPT]
                    if i % KEPT:
                        with torch.no_grad():
                            x, _ = coupling.undo(y, raw, zero, statistics)
                    x = x.detach().requires_grad_()
                    out, log_det, _ = coupling.transform(x, raw, zero)
                leaves = [x, kept, *([beside] if needs_condition else []), *parameters]
                grads = list(torch.autograd.grad((out, log_det), leaves, (grad_y, grad_log_det), allow_unused=True))
                grad_y = grads.pop(0) + grads.pop(0)
                if needs_condition:
                    grad = grads.pop(0)
                    grad_condition = grad if grad_condition is None else grad_condition + grad
                given = iter(grads)
                found = [next(given) if p.requires_grad else None for p in coupling.parameters()] + found
                y = x.detach()
        return None, grad_y, grad_log_det, grad_condition, *found


@contextmanager
def _untracked(coupling: ConvCoupling) -> Iterator[None]:
    """Batch normalisations that leave their running statistics as they are."""
    layers = [m for m in coupling.modules() if isinstance(m, nn.BatchNorm2d | BatchNormFlow)]
    momenta = [layer.momentum for layer in layers]
    counters = [m.get_buffer("num_batches_tracked") for m in layers if isinstance(m, nn.BatchNorm2d) and m.training]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        if counters:
            with torch.no_grad():
                torch._foreach_sub_(counters, 1)
