"""Backpropagation through couplings that recomputes their inputs from their outputs.

Source: Gomez et al., "The reversible residual network: backpropagation without storing activations" (2017).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from pnf.flows.couplings import BatchNormFlow, ConvCoupling

KEPT = 4
"""Keep the input of every KEPT-th coupling as a checkpoint."""


def couple(
    couplings: Sequence[ConvCoupling], x: Tensor, log_det: Tensor, condition: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Run couplings in order, ``x, log_det -> y, log_det``, with memory for the activations of one of them.

    The backward computes the input of a coupling from its output. The output holds the kept half, so the network can
    run again, and its result inverts the affine map and the normalisation by the statistics of the batch. This adds
    rounding errors. So every fourth input is kept, and gradients differ from plain ones by the errors of three
    couplings. Running statistics are updated once. The backward restores the modes of the forward. It raises if
    parameters have changed since.
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
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.settings = _Settings(couplings, x.device)
        ctx.statistics = []
        kept = []
        for i, coupling in enumerate(couplings):
            if i % KEPT == 0:
                kept.append(x)
            ctx.settings.begin()
            x, log_det, statistics = coupling.transform(x, coupling.raw(x, condition), log_det)
            ctx.statistics.append(statistics)
        ctx.couplings = couplings
        # The backward reads parameters and constant buffers again. They are saved, so that autograd raises if one was
        # changed in place. They are also kept, to notice others in their place.
        ctx.inputs, ctx.read = len(kept), [*parameters, *_constants(couplings)]
        ctx.save_for_backward(x, condition, *kept, *ctx.read)
        return x, log_det

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_log_det: Tensor) -> tuple[Tensor | None, ...]:
        y, condition, *inputs = ctx.saved_tensors[: 2 + ctx.inputs]
        needs_condition = condition is not None and ctx.needs_input_grad[3]
        grad_condition: Tensor | None = None
        zero = torch.zeros(grad_log_det.shape, dtype=grad_log_det.dtype, device=grad_log_det.device)
        found: list[Tensor | None] = []
        with ctx.settings.restored():
            now = [*(p for coupling in ctx.couplings for p in coupling.parameters()), *_constants(ctx.couplings)]
            if len(now) != len(ctx.read) or any(a is not b for a, b in zip(now, ctx.read, strict=True)):
                raise RuntimeError(
                    'memory="invertible": the flow has other parameters now than in the forward, which its backward '
                    'reads again; call backward before they are exchanged, or use memory="plain"'
                )
            for i, (coupling, statistics) in reversed(list(enumerate(zip(ctx.couplings, ctx.statistics, strict=True)))):
                parameters = [p for p in coupling.parameters() if p.requires_grad]
                with torch.enable_grad():
                    kept = y.detach().requires_grad_()
                    beside = condition.detach().requires_grad_() if needs_condition else condition
                    ctx.settings.begin_again(i)
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


def _constants(couplings: Sequence[ConvCoupling]) -> list[Tensor]:
    """The buffers that modules in evaluation read: running statistics."""
    modules = [m for coupling in couplings for m in coupling.modules() if not m.training]
    return [buffer for module in modules for buffer in module.buffers(recurse=False)]


class _Settings:
    """The state, besides tensors, on which the results of couplings depend: modes, precision, random generators."""

    def __init__(self, couplings: Sequence[ConvCoupling], device: torch.device) -> None:
        self.couplings, self.device = couplings, device
        self.modules = [module for coupling in couplings for module in coupling.modules()]
        self.modes = [module.training for module in self.modules]
        self.dtypes = [coupling.network_dtype for coupling in couplings]
        # A network in low precision has its own autocast context, which begins and ends with it.
        self.autocast = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        self.draws = any(isinstance(module, _DropoutNd) and module.training for module in self.modules)
        self.generators: list[list[Tensor]] = []

    def begin(self) -> None:
        """Record the state at the start of a coupling in the forward."""
        if self.draws:
            self.generators.append(_generators(self.device))

    def begin_again(self, i: int) -> None:
        """Restore the state at the start of coupling i for the backward."""
        if self.draws:
            _set_generators(self.device, self.generators[i])

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Restore the state of the forward, but do not update running statistics again."""
        modes = [module.training for module in self.modules]
        dtypes = [coupling.network_dtype for coupling in self.couplings]
        generators = _generators(self.device) if self.draws else []
        norms = [module for module in self.modules if isinstance(module, _NormBase | BatchNormFlow)]
        momenta = [norm.momentum for norm in norms]
        self._set(self.modes, self.dtypes)
        counted = [norm.num_batches_tracked for norm in norms if isinstance(norm, _NormBase) and norm.training]
        counters = [counter for counter in counted if counter is not None]
        for norm in norms:
            norm.momentum = 0.0
        enabled, dtype = self.autocast
        try:
            with torch.autocast(self.device.type, dtype=dtype, enabled=enabled):
                yield
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
            if counters:
                with torch.no_grad():
                    torch._foreach_sub_(counters, 1)
            self._set(modes, dtypes)
            if self.draws:
                _set_generators(self.device, generators)

    def _set(self, modes: Sequence[bool], dtypes: Sequence[torch.dtype | None]) -> None:
        for module, mode in zip(self.modules, modes, strict=True):
            module.training = mode
        for coupling, dtype in zip(self.couplings, dtypes, strict=True):
            coupling.network_dtype = dtype


def _generators(device: torch.device) -> list[Tensor]:
    """The states of the random generators of layers on the device."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_generators(device: torch.device, states: Sequence[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
