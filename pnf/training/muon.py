"""Muon, an optimiser that takes the weights of a layer as a matrix."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

MOMENTUM = 0.95
"""The decay of the average of a matrix's gradients."""

BETAS = 0.9, 0.999
"""The decays of Adam's averages of other gradients and of their squares."""

EPS = 1e-8
"""What Adam adds to the root of the average square."""

QUINTIC = 3.4445, -4.7750, 2.0315
"""The coefficients of ``s -> a s + b s**3 + c s**5``, which moves singular values s from (0, 1] towards 1."""

ITERATIONS = 5
"""The number of times that the polynomial is applied. Then all but tiny singular values are between 0.68 and 1.2."""


class Stack(NamedTuple):
    """The place of n matrices of one shape in a flat tensor: the first entry, n, the shape, and their distance."""

    start: int
    number: int
    rows: int
    columns: int
    distance: int

    def of(self, flat: Tensor) -> Tensor:  # [n, rows, columns]
        """The matrices, as a view of the flat tensor."""
        return flat.as_strided(
            (self.number, self.rows, self.columns), (self.distance, self.columns, 1), flat.storage_offset() + self.start
        )


class Muon(Optimizer):
    """Muon for the matrices in a flat parameter, and Adam for what is in front of them.

    With the average m of a matrix's gradients g, a step is::

        m <- 0.95 m + 0.05 g    W <- W - lr sqrt(max(1, rows / columns)) U V^T,    U S V^T = 0.95 m + 0.05 g

    So all directions of a matrix move alike, however small their gradients are. U V^T is approximated by five steps of
    a polynomial of the matrix. Matrices of one shape take them together. ``torch.optim.Muon`` takes them one by one, in
    bfloat16, and only weights of linear layers.

    Entries in front of the first matrix take steps of Adam with the same learning rate.

    Args:
        params: one parameter of one dim.
        stacks: the places of the matrices in it, in order. They lie behind all other entries.
        lr: the learning rate. It may become a tensor, so that a step can be a CUDA graph.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    """

    def __init__(self, params: Sequence[nn.Parameter], stacks: Sequence[Stack], lr: float) -> None:
        # Capturable, so that a loaded count of steps goes to the device of the parameter.
        super().__init__(params, {"lr": lr, "capturable": True})
        self.stacks = tuple(stacks)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure
        """Take a step. The state is that of Adam, with zeros as ``exp_avg_sq`` of matrices."""
        group = self.param_groups[0]
        (flat,), lr = group["params"], group["lr"]
        state = self.state[flat]
        if not state:
            state["step"] = torch.zeros((), device=flat.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(flat), torch.zeros_like(flat)
        state["step"] += 1
        end = self.stacks[0].start if self.stacks else flat.numel()
        weight, grad, average, square = (x[:end] for x in (flat, flat.grad, state["exp_avg"], state["exp_avg_sq"]))
        _adam(weight, grad, average, square, state["step"], lr)
        for stack in self.stacks:
            weight, grad, average = (stack.of(x) for x in (flat, flat.grad, state["exp_avg"]))
            average.lerp_(grad, 1 - MOMENTUM)
            update = orthogonal(torch.lerp(average, grad, 1 - MOMENTUM))
            weight.sub_(update * (lr * max(1, stack.rows / stack.columns) ** 0.5))


def _adam(weight: Tensor, grad: Tensor, average: Tensor, square: Tensor, step: Tensor, lr: float | Tensor) -> None:
    average.lerp_(grad, 1 - BETAS[0])
    square.lerp_(grad.square(), 1 - BETAS[1])
    spread = (square / (1 - BETAS[1] ** step)).sqrt_().add_(EPS)
    weight.sub_(average / spread * (lr / (1 - BETAS[0] ** step)))


def orthogonal(
    matrices: Tensor,  # [n, rows, columns]
) -> Tensor:  # as matrices
    """About U V^T of each matrix U S V^T: its singular values, but tiny ones, are moved near 1."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-20)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT
