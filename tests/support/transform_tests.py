"""Compositions of PyTorch's transforms, for comparing functions that should be equal."""

from collections.abc import Callable

import torch
from torch import Tensor

# From a vector to a vector.
Function = Callable[[Tensor], Tensor]


def draw(size: int, seed: int) -> Tensor:
    """Numbers without a pattern, from a function that torch.vmap does not treat as random."""
    return 1.5 * (torch.arange(1.0, size + 1, dtype=torch.float64) * (seed + 1.7) ** 2).sin()


def weighted(f: Function) -> Function:
    def of(x: Tensor) -> Tensor:
        y = f(x)
        return (y * draw(y.numel(), 1).to(y.dtype)).sum()

    return of


def grad(f: Function) -> Function:
    return torch.func.grad(weighted(f))


def jvp(f: Function) -> Function:
    return lambda x: torch.func.jvp(f, (x,), (draw(x.numel(), 2).to(x.dtype),))[1]


def jacrev(f: Function) -> Function:
    return lambda x: torch.func.jacrev(f)(x).flatten()


def jacfwd(f: Function) -> Function:
    return lambda x: torch.func.jacfwd(f)(x).flatten()


def vmap(f: Function) -> Function:
    return lambda x: torch.func.vmap(f)(torch.stack((x, 0.9 * x))).flatten()


def backward(f: Function) -> Function:
    """The gradient by plain backpropagation, differentiable if the input has a graph."""

    def of(x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x if x.requires_grad else x.clone().requires_grad_()
            loss = weighted(f)(leaf)
            if not loss.requires_grad:
                return torch.zeros_like(x)
            return torch.autograd.grad(loss, leaf, create_graph=True)[0]

    return of


TRANSFORMS: dict[str, Callable[[Function], Function]] = {
    f.__name__: f for f in (grad, jvp, jacrev, jacfwd, vmap, backward)
}


def compare(outer: str, got: Function, want: Function, x: Tensor, rtol: float = 1e-9) -> None:
    """Compare ``outer`` of every transform of two functions, if PyTorch supports it."""
    for inner, transform in TRANSFORMS.items():
        if inner == "backward" != outer:
            # Inside a transform of torch.func, PyTorch gives tensors no graph of the outer kind.
            continue
        a, b = (TRANSFORMS[outer](transform(f))(x).detach() for f in (got, want))
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol, msg=lambda m, i=inner: f"{outer}({i}(f)): {m}")
