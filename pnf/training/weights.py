"""The weights of a stage in training, and their moving averages, as the optimiser takes them."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from pnf import cuda_graphs
from pnf.flows import scale_parameters, weight_matrices
from pnf.training.muon import Stack

LINE = 4
"""A tensor begins at a multiple of so many entries of a flat one, since kernels read 16 bytes at once."""


class Weights:
    """The parameters and buffers of a stage, and their moving averages.

    Where a step becomes a CUDA graph, each kind is one flat tensor, and those of the modules are views of it. What is
    done to all of them is then one launch, where lists of a thousand tensors take dozens, and the weight of the average
    can be a tensor, which PyTorch does not take with lists. Muon has them flat on every device, since it takes the
    matrices of one shape together. Otherwise they are lists on a CPU, which add up to other bits.

    Args:
        stage: the module in training, on its device.
        averaged: a copy of it.
        device: the device.
        matrices: whether the optimiser is Muon.

    Attributes:
        learnt: what the optimiser takes.
        stacks: the places of matrices in it, if the optimiser is Muon.
        weight: the weight ``[]`` of the present values in the averages.
    """

    def __init__(self, stage: nn.Module, averaged: nn.Module, device: torch.device, *, matrices: bool = False) -> None:
        self.weight = torch.ones((), device=device)
        self.parameters, self._scales = [*stage.parameters()], [*scale_parameters(stage)]
        self.learnt: list[nn.Parameter] = self.parameters
        pair = stage, averaged
        self._values, self._averages = ([*m.parameters(), *_buffers(m, floating=True)] for m in pair)
        self._counts, self._copies = (_buffers(m, floating=False) for m in pair)
        self._flat: _Flat | None = None
        self.stacks: list[Stack] = []
        if (matrices or cuda_graphs.can_capture(device)) and self.parameters:
            self._flatten(weight_matrices(stage) if matrices else [])

    def _flatten(self, matrices: Sequence[Tensor]) -> None:
        # Scale parameters are first, since the penalty is on them. Then come the others, the matrices by their shapes,
        # and the buffers, which nothing learns.
        shapes = sorted({_rows_and_columns(p) for p in matrices})
        kind_of = {id(p): 2 + shapes.index(_rows_and_columns(p)) for p in matrices} | {id(p): 0 for p in self._scales}
        kinds = [kind_of.get(id(p), 1) for p in self.parameters]
        kinds += [2 + len(shapes)] * (len(self._values) - len(kinds))
        self._flat = _Flat(self._values, kinds)
        self.stacks = self._flat.stacks(kinds, shapes)
        self._values, self._averages = ([self._flat.move(x)] for x in (self._values, self._averages))
        self.learnt = [nn.Parameter(self._values[0][: self._flat.ends[1 + len(shapes)]])]
        self._grad = self.learnt[0].grad = torch.zeros_like(self.learnt[0])
        dtypes = {x.dtype for x in self._counts}
        self._counts, self._copies = (
            [_Flat(same, [0] * len(same)).move(same) for same in ([x for x in xs if x.dtype == d] for d in dtypes)]
            for xs in (self._counts, self._copies)
        )

    @torch.no_grad()
    def collect(self, penalty: float, bound: float) -> None:
        """Prepare the gradients of ``learnt`` for a step.

        Those of ``penalty * sum(p**2)`` over the scale parameters p are added, and the sum is clipped to a norm.
        """
        scales = [(p.grad, p.detach()) for p in self._scales]
        if self._flat is not None:
            to, given = self._flat.views(self._grad, len(self.parameters)), [p.grad for p in self.parameters]
            _of_pairs(torch._foreach_copy_, zip(to, given, strict=True))
            n = self._flat.ends[0]
            scales = [(self._grad[:n], self._values[0][:n])]
        _of_pairs(functools.partial(torch._foreach_add_, alpha=2 * penalty), scales)
        grads = [p.grad for p in self.learnt if p.grad is not None]
        norm = get_total_norm(grads, foreach=True) if self._flat is None else torch.linalg.vector_norm(self._grad)
        clip_grads_with_norm_(self.learnt, bound, norm, foreach=True)

    @torch.no_grad()
    def move_averages(self) -> None:
        """Move the averages towards the present values, and copy what is no floating-point number."""
        if self._flat is not None:
            self._averages[0].lerp_(self._values[0], self.weight)
        elif self._values:
            torch._foreach_lerp_(self._averages, self._values, self.weight.item())
        if self._counts:
            torch._foreach_copy_(self._copies, self._counts)

    def split(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state of an optimiser of the parameters, from that of the optimiser of ``learnt``."""
        if self._flat is None:
            return state
        count = len(self.parameters)
        found: list[dict[str, Tensor]] = [{} for _ in range(count if state["state"] else 0)]
        for name, value in (state["state"][0] if found else {}).items():
            # Each has a count of its own, since an optimiser adds to all of them.
            parts = value.repeat(count).unbind() if name == "step" else self._flat.views(value, count)
            for entry, part in zip(found, parts, strict=True):
                entry[name] = part
        groups = [{**state["param_groups"][0], "params": [*range(count)]}]
        return {"state": dict(enumerate(found)), "param_groups": groups}

    def join(self, state: dict[str, Any]) -> dict[str, Any]:
        """Invert :meth:`split`."""
        if self._flat is None:
            return state
        found: dict[str, Tensor] = {}
        for i, entry in state["state"].items():
            for name, value in entry.items():
                if name == "step":
                    found[name] = value
                else:
                    whole = found.setdefault(name, value.new_zeros(self.learnt[0].shape))
                    self._flat.views(whole, len(self.parameters))[i].copy_(value)
        groups = [{**state["param_groups"][0], "params": [0]}]
        return {"state": {0: found} if found else {}, "param_groups": groups}


def _of_pairs(function: Callable[..., Any], pairs: Iterable[tuple[Tensor | None, Tensor | None]]) -> None:
    """Call a function of two lists with the pairs of which both are there."""
    there = [pair for pair in pairs if pair[0] is not None and pair[1] is not None]
    if there:
        function(*(list(tensors) for tensors in zip(*there, strict=True)))


def _buffers(module: nn.Module, *, floating: bool) -> list[Tensor]:
    return [x for x in module.buffers() if x.is_floating_point() == floating]


def _rows_and_columns(matrix: Tensor) -> tuple[int, int]:
    return matrix.shape[0], matrix.numel() // matrix.shape[0]


def _padded(size: int) -> int:
    return -(-size // LINE) * LINE


class _Flat:
    """The places of tensors of one dtype in a flat one, by kind.

    Attributes:
        ends: where each kind ends.
    """

    def __init__(self, tensors: Sequence[Tensor], kinds: Sequence[int]) -> None:
        self.like, self.places, self.ends = [(x.shape, x.stride()) for x in tensors], [0] * len(tensors), []
        size = 0
        for kind in range(max(kinds) + 1):
            for i in (i for i, other in enumerate(kinds) if other == kind):
                self.places[i] = size
                size += _padded(tensors[i].numel())
            self.ends.append(size)

    def stacks(self, kinds: Sequence[int], shapes: Sequence[tuple[int, int]]) -> list[Stack]:
        """The places of matrices of these shapes, which are the kinds from 2 on."""
        found = []
        for kind, (rows, columns) in enumerate(shapes, 2):
            found.append(Stack(self.ends[kind - 1], kinds.count(kind), rows, columns, _padded(rows * columns)))
        return found

    def views(self, flat: Tensor, count: int) -> list[Tensor]:
        """The views of a flat tensor with the shapes and strides of the first tensors."""
        places = zip(self.places[:count], self.like, strict=False)
        return [flat[place:].as_strided(*like) for place, like in places]

    @torch.no_grad()
    def move(self, tensors: Sequence[Tensor]) -> Tensor:
        """Make a flat tensor, of which the tensors become views."""
        flat = tensors[0].new_zeros(self.ends[-1])
        for x, view in zip(tensors, self.views(flat, len(tensors)), strict=True):
            x.data = view.copy_(x)
        return flat
